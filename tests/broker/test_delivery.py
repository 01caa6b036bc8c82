# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""When a delivery is acknowledged, and what becomes of one that cannot be handled."""

from __future__ import annotations

import json
import signal
import threading
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from tavrida import discovery, dispatcher, exceptions
from tavrida.service import ServiceController
from tests.broker.conftest import EXCHANGE, QUEUE, Connect, Serve, next_of
from tests.processes import Program
from tests.rabbitmq import Node
from tests.waiting import DEADLINE, eventually

PROGRAM = Path(__file__).with_name("program.py")


@dispatcher.rpc_service("svc")
class Service(ServiceController):
    """Handlers that fail, and one that sends."""

    gate = threading.Event()
    seen: SimpleQueue[Any] = SimpleQueue()

    @dispatcher.rpc_method(service="svc", method="fails")
    def fails(self, request: Any, proxy: Any, **rest: Any) -> None:
        raise ZeroDivisionError("on purpose")

    @dispatcher.rpc_method(service="svc", method="ok")
    def ok(self, request: Any, proxy: Any, n: int = 0) -> dict[str, Any]:
        self.seen.put(n)
        return {"n": n}

    @dispatcher.rpc_method(service="svc", method="gated")
    def gated(self, request: Any, proxy: Any) -> None:
        self.seen.put("began")
        assert self.gate.wait(DEADLINE)

    @dispatcher.rpc_method(service="svc", method="cast_nobody")
    def cast_nobody(self, request: Any, proxy: Any) -> None:
        proxy.nobody.x().cast()


@pytest.fixture(autouse=True)
def _fresh() -> None:
    Service.gate = threading.Event()
    Service.seen = SimpleQueue()
    known = discovery.LocalDiscovery()
    known.register_remote_service("nobody", EXCHANGE)
    Service.set_discovery(known)


def _dead(channel: BlockingChannel) -> tuple[Any, bytes]:
    """Return properties and body of the next dead letter."""
    return next_of(channel, f"{QUEUE}.dead")[1:]


def _depth(node: Node, vhost: str, queue: str) -> dict[str, int]:
    """Messages ready and unacknowledged in a queue."""
    columns = ("messages_ready", "messages_unacknowledged")
    for line in node.ctl(
        "list_queues", "-p", vhost, "--no-table-headers", "name", *columns
    ).splitlines():
        name, ready, unacknowledged = line.split("\t")
        if name == queue:
            return {"ready": int(ready), "unacknowledged": int(unacknowledged)}
    raise AssertionError(f"no queue {queue}")


def test_a_delivery_is_acknowledged_when_its_handler_has_ended_and_not_before(
    serve: Serve, connect: Connect, rabbitmq: Node, vhost: str
) -> None:
    """While the handler runs, the broker keeps the message."""
    serve(Service)
    connect("svc").svc.gated().cast()
    Service.seen.get(timeout=DEADLINE)
    assert {"ready": 0, "unacknowledged": 1} == _depth(rabbitmq, vhost, QUEUE)
    Service.gate.set()
    eventually(lambda: _depth(rabbitmq, vhost, QUEUE) == {"ready": 0, "unacknowledged": 0})


def test_a_cast_whose_handler_fails_is_dead_lettered_with_why(
    serve: Serve, connect: Connect, channel: BlockingChannel
) -> None:
    """Body and properties as they were; reason, traceback, place and time in headers."""
    serve(Service)
    connect("svc").svc.fails(a=1).cast(correlation_id="chain")
    properties, body = _dead(channel)
    headers = properties.headers
    assert b'{"context":{},"payload":{"a":1}}' == body
    assert ("chain", "request", "test") == (
        properties.correlation_id,
        properties.type,
        properties.app_id,
    )
    assert "ZeroDivisionError: on purpose" == headers["dead_reason"]
    assert "in fails" in headers["dead_traceback"]
    assert (QUEUE, EXCHANGE, "svc.fails") == (
        headers["dead_queue"],
        headers["dead_exchange"],
        headers["dead_routing_key"],
    )
    assert headers["dead_at"] > 1_700_000_000


@pytest.mark.parametrize(
    ("properties", "body", "reason"),
    [
        ({}, b"{not json", "cannot be read as application/json"),
        ({}, b"[1, 2]", "should be an object with names, not list"),
        ({}, b"[" * 100_000, "cannot be read"),
        ({"type": "gossip"}, b"{}", "'gossip' is none of request"),
        ({"content_type": "text/xml"}, b"<a/>", "'text/xml' is not accepted here"),
        ({"headers": {"destination": "a.b.c"}}, b"{}", "destination: 'a.b.c'"),
        ({"headers": {"deadline": "soon"}}, b"{}", "'deadline'"),
        ({"headers": {"request_id": {"deep": [1]}}}, b"{}", "'request_id'"),
        ({"type": "response"}, b"{}", "no handler here for the response"),
        ({"type": "notification"}, b"{}", "no handler here for the notification"),
    ],
)
@pytest.mark.parametrize("is_call", [False, True])
def test_what_cannot_be_understood_is_dead_lettered_or_answered_with_an_error(
    serve: Serve,
    channel: BlockingChannel,
    properties: dict[str, Any],
    body: bytes,
    reason: str,
    is_call: bool,
) -> None:
    """Once, with the reason; it is never delivered again, and the server goes on."""
    serve(Service)
    reply = channel.queue_declare("", exclusive=True).method.queue
    given = {"correlation_id": "c1", **properties}
    kind = given.get("type", "request")
    if is_call:
        given["reply_to"] = reply
    channel.basic_publish(EXCHANGE, "svc.ok", body, pika.BasicProperties(**given))
    if is_call and kind not in ("response", "notification"):
        _, answer, text = next_of(channel, reply)
        assert ("error", "c1") == (answer.type, answer.correlation_id)
        assert reason in json.loads(text)["message"]
    else:
        dead, text = _dead(channel)
        assert reason in dead.headers["dead_reason"]
        assert body == text
    channel.cancel()
    channel.basic_publish(EXCHANGE, "svc.ok", b'{"n": 7}', pika.BasicProperties())
    assert 7 == Service.seen.get(timeout=DEADLINE)
    assert 0 == channel.queue_declare(QUEUE, passive=True).method.message_count


def test_a_handler_whose_cast_found_nobody_has_failed(
    serve: Serve, connect: Connect, channel: BlockingChannel
) -> None:
    """What a handler sent belongs to the delivery: not confirmed, not done."""
    serve(Service)
    connect("svc").svc.cast_nobody().cast()
    properties, _ = _dead(channel)
    assert "ServiceUnavailable: nobody serves 'nobody'" in properties.headers["dead_reason"]


def test_an_answer_to_a_caller_who_is_gone_is_no_reason_to_handle_again(
    serve: Serve, channel: BlockingChannel
) -> None:
    """The request is done; nothing is dead-lettered, nothing comes back."""
    serve(Service)
    channel.basic_publish(
        EXCHANGE, "svc.ok", b'{"n": 1}', pika.BasicProperties(reply_to="gone", correlation_id="c")
    )
    channel.basic_publish(EXCHANGE, "svc.ok", b'{"n": 2}', pika.BasicProperties())
    assert {1, 2} == {Service.seen.get(timeout=DEADLINE) for _ in range(2)}
    for queue in (QUEUE, f"{QUEUE}.dead"):
        assert 0 == channel.queue_declare(queue, passive=True).method.message_count


def test_the_dead_letter_outlives_the_expiration_of_its_message(
    serve: Serve, connect: Connect, channel: BlockingChannel
) -> None:
    """A request of a short call that cannot be decoded is kept after the call is over."""
    serve(Service)
    channel.basic_publish(
        EXCHANGE, "svc.ok", b"{broken", pika.BasicProperties(expiration="60000", message_id="m1")
    )
    properties, _ = _dead(channel)
    assert (None, "m1") == (properties.expiration, properties.message_id)


def test_stop_gives_back_what_has_not_started(
    serve: Serve, connect: Connect, channel: BlockingChannel
) -> None:
    """What runs ends and is acknowledged; the rest is there for another process, in order."""
    server = serve(Service, concurrency=1, prefetch=10)
    svc = connect("svc").svc
    svc.gated().cast()
    Service.seen.get(timeout=DEADLINE)
    for n in range(5):
        svc.ok(n=n).cast()
    stopping = threading.Thread(target=server.stop)
    stopping.start()
    eventually(lambda: channel.queue_declare(QUEUE, passive=True).method.message_count == 5)
    Service.gate.set()
    stopping.join(DEADLINE)
    assert not stopping.is_alive()
    assert Service.seen.empty()
    serve(Service, concurrency=1)
    assert list(range(5)) == [Service.seen.get(timeout=DEADLINE) for _ in range(5)]


def test_stop_gives_up_on_handlers_that_take_longer_than_graceful_timeout(
    serve: Serve, connect: Connect
) -> None:
    """Their messages go back to the queue and are handled by the next server."""
    server = serve(Service, graceful_timeout=0.2)
    connect("svc").svc.gated().cast()
    assert "began" == Service.seen.get(timeout=DEADLINE)
    server.stop()
    Service.gate.set()
    serve(Service)
    assert "began" == Service.seen.get(timeout=DEADLINE)


def test_after_kill_9_while_it_handles_another_process_answers(
    connect: Connect, url: str, tmp_path: Path
) -> None:
    """Nothing is lost: the caller of the killed process gets its answer from the other one."""
    work = connect("work").work
    end = tmp_path / "end"
    with Program([PROGRAM, url, "first"]) as first:
        first.line("is serving")
        answer: Future[Any] = work["until"](path=str(end)).future(timeout=DEADLINE)
        first.line("first handles, redelivered False")
        with Program([PROGRAM, url, "second"]) as second:
            second.line("is serving")
            assert -signal.SIGKILL == first.end(signal.SIGKILL)
            second.line("second handles, redelivered True")
            end.touch()
            assert {"by": "second", "redelivered": True} == answer.result(DEADLINE).payload


def test_sigterm_lets_the_running_handler_end_and_exits_with_0(
    connect: Connect, url: str, tmp_path: Path
) -> None:
    """Its answer arrives, and its message is not delivered again."""
    end = tmp_path / "end"
    with Program([PROGRAM, url, "only"]) as program:
        program.line("is serving")
        answer = connect("work").work["until"](path=str(end)).future(timeout=DEADLINE)
        program.line("only handles")
        program.process.send_signal(signal.SIGTERM)
        program.line("Got SIGTERM")
        end.touch()
        assert "only" == answer.result(DEADLINE)["by"]
        program.line("tavrida stopped")
        assert 0 == program.process.wait(DEADLINE)
    with Program([PROGRAM, url, "next"]) as program:
        program.line("is serving")
        assert {"n": 1} == connect("work").work.quick(n=1).call(timeout=DEADLINE).payload
        program.end()
        assert not any("handles" in line for line in program.output)


def test_a_second_sigterm_stops_at_once(connect: Connect, url: str, tmp_path: Path) -> None:
    """A handler that hangs does not keep the process."""
    with Program([PROGRAM, url, "stuck"]) as program:
        program.line("is serving")
        connect("work").work["until"](path=str(tmp_path / "never")).cast()
        program.line("stuck handles")
        program.process.send_signal(signal.SIGTERM)
        program.line("Got SIGTERM")
        assert 128 + signal.SIGTERM == program.end(signal.SIGTERM)


def test_a_queue_that_exists_with_other_arguments_is_one_clear_error(
    serve: Serve, channel: BlockingChannel
) -> None:
    """Old value, new value, remedy."""
    dead = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": f"{QUEUE}.dead"}
    channel.queue_declare(QUEUE, durable=True, arguments={"x-queue-type": "quorum", **dead})
    with pytest.raises(exceptions.TopologyConflict) as caught:
        serve(Service, queue_type="classic")
    text = str(caught.value)
    assert f"queue '{QUEUE}' exists already" in text
    assert "x-queue-type is 'quorum', wanted is 'classic'" in text
    assert "tavrida topology apply" in text


def test_queues_are_durable_quorum_queues_with_a_delivery_limit_by_default(
    serve: Serve, connect: Connect, rabbitmq: Node, vhost: str
) -> None:
    """And the dead-letter queue is one as well."""
    serve(Service, queue_type="quorum")
    assert {"n": 1} == connect("svc").svc.ok(n=1).call(timeout=DEADLINE).payload
    found = rabbitmq.ctl("list_queues", "-p", vhost, "name", "type", "durable", "arguments")
    lines = {line.split("\t")[0]: line for line in found.splitlines()}
    for name in (QUEUE, f"{QUEUE}.dead"):
        assert "quorum\ttrue" in lines[name]
    assert '"x-delivery-limit",20' in lines[QUEUE].replace(" ", "")
