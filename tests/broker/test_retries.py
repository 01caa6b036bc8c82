# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""What fails is tried again after a delay in the broker, and ends in QUEUE.dead with why."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from tavrida import discovery, dispatcher, exceptions
from tavrida.client import RPCClient
from tavrida.config import ConnectionConfig
from tavrida.plugins.transports import Delivery, QueueState
from tavrida.retries import Retry
from tavrida.server import Server
from tavrida.service import ServiceController
from tavrida.testing import faults
from tests.broker.conftest import EXCHANGE, QUEUE, Connect, Serve, next_of
from tests.processes import Program
from tests.rabbitmq import Node
from tests.transports.bench import Bench
from tests.waiting import DEADLINE, eventually

CRASHING = Path(__file__).with_name("crashing.py")

#: Attempts that follow soon.
SOON = Retry(attempts=3, first_delay=0.1, factor=2, jitter=0.0)

QUEUE_TYPES = ["quorum", "classic"]


@dispatcher.rpc_service("svc")
class Service(ServiceController):
    """Handlers that fail until they are told not to."""

    seen: SimpleQueue[Any] = SimpleQueue()

    def fail(self, message: Any, good: int) -> dict[str, Any]:
        self.seen.put((time.monotonic(), message))
        if message.attempt < good:
            raise OSError(f"failure {message.attempt}")
        return {"attempt": message.attempt}

    @dispatcher.rpc_method(service="svc", method="work")
    def work(self, request: Any, proxy: Any, good: int = 9) -> dict[str, Any]:
        return self.fail(request, good)

    @dispatcher.rpc_method(service="svc", method="patient", retry=SOON)
    def patient(self, request: Any, proxy: Any, good: int = 9) -> dict[str, Any]:
        return self.fail(request, good)

    @dispatcher.rpc_method(service="svc", method="slow", retry=Retry(attempts=2, first_delay=60))
    def slow(self, request: Any, proxy: Any) -> dict[str, Any]:
        return self.fail(request, 9)

    @dispatcher.rpc_method(service="svc", method="asks")
    def asks(self, request: Any, proxy: Any, good: int) -> None:
        proxy.svc.answer(good=good).call()

    @dispatcher.rpc_method(service="svc", method="answer")
    def answer(self, request: Any, proxy: Any, good: int) -> dict[str, Any]:
        if good < 0:
            raise ValueError("an error to handle")
        return {"good": good}

    @dispatcher.rpc_response_method(service="svc", method="answer")
    def answered(self, response: Any, proxy: Any, good: int) -> None:
        self.fail(response, good)

    @dispatcher.rpc_error_method(service="svc", method="answer")
    def refused(self, error: Any, proxy: Any) -> None:
        self.fail(error, -error.context["good"])

    @dispatcher.subscription_method(service="other", method="event")
    async def event(self, notification: Any, proxy: Any, good: int) -> None:
        self.fail(notification, good)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    Service.seen = SimpleQueue()
    known = discovery.LocalDiscovery()
    known.register_remote_publisher("other", EXCHANGE)
    Service.set_discovery(known)


@pytest.fixture
def bench(url: str) -> Iterator[Bench]:
    """Looks into the queues."""
    with Bench(url) as bench:
        yield bench


def attempts(count: int) -> list[Any]:
    """Return the messages of the next attempts."""
    return [Service.seen.get(timeout=DEADLINE)[1] for _ in range(count)]


def dead_letter(bench: Bench, queue: str = QUEUE) -> tuple[Delivery, dict[str, Any]]:
    """Return the next dead letter, and its headers."""
    connection = bench.connect()
    letter = eventually(lambda: connection.get(f"{queue}.dead"))
    assert letter is not None
    bench.ack(letter)
    headers = dict(letter.properties.headers or {})
    headers.pop("x-delivery-count", None)  # RabbitMQ's, of our looking at it
    return letter, headers


@pytest.mark.parametrize("queue_type", QUEUE_TYPES)
def test_what_fails_comes_again_after_a_growing_delay(
    serve: Serve, connect: Connect, bench: Bench, queue_type: str
) -> None:
    """The same message, as often as it takes, and then it is done."""
    serve(Service, retry=SOON, queue_type=queue_type)
    connect("svc").svc.work(good=3).cast(correlation_id="chain")
    (first, one), (second, two), (third, three) = (
        Service.seen.get(timeout=DEADLINE) for _ in range(3)
    )
    assert 0.1 <= second - first
    assert 0.2 <= third - second
    assert [1, 2, 3] == [one.attempt, two.attempt, three.attempt]
    for again in (two, three):
        assert (one.headers, one.payload, one.context) == (
            again.headers,
            again.payload,
            again.context,
        )
        assert not again.redelivered
    connection = bench.connect()
    for queue in (QUEUE, f"{QUEUE}.dead", f"{QUEUE}.retry.100", f"{QUEUE}.retry.200"):
        state = connection.inspect(queue)
        assert state is not None
        assert 0 == state.messages


@pytest.mark.parametrize("queue_type", QUEUE_TYPES)
def test_what_fails_every_time_is_dead_lettered_as_it_was_published(
    serve: Serve, bench: Bench, queue_type: str
) -> None:
    """With the reason of the last failure, how often it was tried, and since when."""
    began = int(time.time())
    serve(Service, retry=SOON, queue_type=queue_type)
    body = b'{"context":{"good":7},"payload":{"good":7}}'
    given = {"correlation_id": "chain", "app_id": "test.me", "message_id": "m1", "type": "request"}
    bench.connect().publish(EXCHANGE, "svc.work", body, headers={"colour": "red"}, **given)
    letter, headers = dead_letter(bench)
    assert 3 == len(attempts(3))
    assert given == {name: getattr(letter.properties, name) for name in given}
    assert body == letter.body
    trace = headers.pop("dead_traceback")
    assert trace.endswith("OSError: failure 3")
    assert "in work" in trace
    assert began <= headers.pop("dead_first_at") <= headers.pop("dead_at") <= time.time()
    assert {
        "colour": "red",
        "dead_reason": "OSError: failure 3",
        "dead_error": "OSError",
        "dead_attempts": 3,
        "dead_queue": QUEUE,
        "dead_exchange": EXCHANGE,
        "dead_routing_key": "svc.work",
    } == headers


@pytest.mark.parametrize("good", [2, -2], ids=["response", "error"])
def test_handlers_of_answers_are_tried_again(serve: Serve, connect: Connect, good: int) -> None:
    """Of responses, and of errors."""
    serve(Service, retry=SOON)
    connect("svc").svc.asks(good=good).cast()
    first, second = attempts(2)
    assert ("response" if good > 0 else "error") == second.message_type
    assert (1, 2) == (first.attempt, second.attempt)
    assert first.headers == second.headers


def test_handlers_of_notifications_are_tried_again(
    serve: Serve, connect: Connect, bench: Bench
) -> None:
    """Also those of a plain client, whose topic is nowhere but in the routing key."""
    serve(Service, retry=SOON)
    bench.connect().publish(
        EXCHANGE, "other.event", b'{"good": 2}', type="notification", message_id="m"
    )
    first, second = attempts(2)
    assert "other.event" == str(first.source) == str(second.source)
    assert first.payload == second.payload == {"good": 2}


def test_a_plain_request_keeps_its_place_over_the_detour(
    serve: Serve, connect: Connect, bench: Bench
) -> None:
    """It says by its routing key alone what it is for; the dead letter still says so."""
    serve(Service, retry=SOON)
    bench.connect().publish(EXCHANGE, "svc.work", b'{"good": 9}')
    assert [1, 2, 3] == [each.attempt for each in attempts(3)]
    _, headers = dead_letter(bench)
    assert (EXCHANGE, "svc.work") == (headers["dead_exchange"], headers["dead_routing_key"])


def test_a_call_is_answered_with_the_error_and_not_tried_again(
    serve: Serve, connect: Connect
) -> None:
    """Its caller waits; the server's retry is for what nobody waits for."""
    serve(Service, retry=SOON)
    with pytest.raises(exceptions.RemoteError, match="failure 1"):
        connect("svc").svc.work(good=2).call()
    assert 1 == len(attempts(1))
    assert Service.seen.empty()


def test_a_call_is_tried_again_where_its_handler_asks_for_it(
    serve: Serve, connect: Connect, bench: Bench
) -> None:
    """The caller gets one answer: of the attempt that succeeds, or of the last one."""
    serve(Service, retry=False)
    svc = connect("svc").svc
    assert {"attempt": 2} == svc.patient(good=2).call().payload
    with pytest.raises(exceptions.RemoteError, match="failure 3"):
        svc.patient(good=9).call()
    state = bench.connect().inspect(f"{QUEUE}.dead")
    assert state is not None
    assert 0 == state.messages


def test_a_call_whose_deadline_comes_before_the_next_attempt_is_answered_at_once(
    serve: Serve, connect: Connect
) -> None:
    """Also that of a plain client, whose deadline is the default here."""
    serve(Service)
    with pytest.raises(exceptions.RemoteError, match="failure 1"):
        connect("svc").svc.slow().call(timeout=10)


def test_a_message_that_is_wrong_itself_is_not_tried_again(
    serve: Serve, connect: Connect, bench: Bench
) -> None:
    """Neither a payload that does not fit, nor bytes that are none."""
    serve(Service, retry=SOON)
    connect("svc").svc.work(good="much").cast()
    _, headers = dead_letter(bench)
    assert ("InvalidPayload", 1) == (headers["dead_error"], headers["dead_attempts"])
    bench.connect().publish(EXCHANGE, "svc.work", b"{broken")
    _, headers = dead_letter(bench)
    assert ("MalformedMessage", 1) == (headers["dead_error"], headers["dead_attempts"])
    assert Service.seen.empty()


def test_exceptions_that_are_never_tried_again_go_to_the_dead_letters_at_once(
    serve: Serve, connect: Connect, bench: Bench
) -> None:
    """By the name of a base class of theirs."""
    serve(Service, retry=Retry(attempts=3, first_delay=60, never=("OSError",)))
    connect("svc").svc.work().cast()
    assert 1 == dead_letter(bench)[1]["dead_attempts"]


def test_what_waits_outlives_its_server(serve: Serve, connect: Connect, bench: Bench) -> None:
    """The broker gives it back to whoever serves then, with its count."""
    first = serve(Service, retry=Retry(attempts=2, first_delay=0.5, jitter=0.0))
    connect("svc").svc.work(good=2).cast()
    assert 1 == attempts(1)[0].attempt
    connection = bench.connect()
    eventually(lambda: (state := connection.inspect(f"{QUEUE}.retry.500")) and state.messages)
    first.stop()
    serve(Service, retry=False)
    assert 2 == attempts(1)[0].attempt


def test_a_deleted_delay_queue_is_declared_again(
    serve: Serve, connect: Connect, channel: BlockingChannel, caplog: pytest.LogCaptureFixture
) -> None:
    """What fails meanwhile is not lost."""
    serve(Service, retry=SOON)
    channel.queue_delete(f"{QUEUE}.retry.100")
    channel.queue_delete(f"{QUEUE}.retry.200")
    connect("svc").svc.work(good=3).cast()
    assert [1, 2, 3] == [each.attempt for each in attempts(3)]
    assert f"Queue {QUEUE}.retry.100 is gone; declaring it again." in caplog.text


def test_a_retry_is_one_warning_and_the_end_an_error(
    serve: Serve, connect: Connect, bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """With the attempt, of how many, when the next one comes, and the failure."""
    caplog.set_level(logging.WARNING, "tavrida")
    serve(Service, retry=SOON)
    connect("svc").svc.work().cast(correlation_id="c")
    dead_letter(bench)
    first, second, last = caplog.records
    assert (
        "Handling the request svc.work from test (correlation id c) failed: OSError: failure 1; "
        "attempt 1 of 3, the next within 0.1 s" == first.getMessage()
    )
    assert "failure 2; attempt 2 of 3, the next within 0.2 s" in second.getMessage()
    assert "failure 3; attempt 3, the last" in last.getMessage()
    levels = [logging.WARNING, logging.WARNING, logging.ERROR]
    assert levels == [each.levelno for each in caplog.records]
    assert [False, False, True] == [bool(each.exc_info) for each in caplog.records]


@pytest.mark.parametrize("queue_type", QUEUE_TYPES)
def test_a_dead_cast_that_a_shovel_moves_back_is_handled(
    serve: Serve, connect: Connect, channel: BlockingChannel, amqp_url: str, queue_type: str
) -> None:
    """As the management pages move messages: to the queue itself, with its name as the key."""
    serve(Service, queue_type=queue_type)
    connect("svc").svc.work().cast()
    assert 1 == len(attempts(1))
    tag, properties, body = next_of(channel, f"{QUEUE}.dead")
    channel.basic_publish("", QUEUE, body, properties)
    channel.basic_ack(tag)
    (again,) = attempts(1)
    assert "svc.work" == str(again.destination)


def test_headers_of_strangers_about_retries_stop_nothing(
    serve: Serve, connect: Connect, bench: Bench
) -> None:
    """What contradicts the wire format counts as absent, and nobody sees it."""
    serve(Service, retry=False)
    odd = {
        "retry_exchange": 7,
        "retry_attempt": "many",
        "retry_since": True,
        "retry_crashes": -5,
        "retry_error": None,
        "x-death": "odd",
        "mine": 1,
    }
    bench.connect().publish(EXCHANGE, "svc.work", b'{"good": 1}', headers=odd, message_id="m")
    (message,) = attempts(1)
    assert (1, {"mine": 1}) == (message.attempt, message.extra_headers)


@pytest.mark.parametrize("retry", [SOON, False])
def test_copies_go_to_no_queue_that_the_original_named_besides(
    serve: Serve, channel: BlockingChannel, bench: Bench, retry: Retry | bool
) -> None:
    """RabbitMQ would send a retry, or a dead letter, there as well."""
    serve(Service, retry=retry)
    channel.queue_declare("besides")
    connection = bench.connect()
    inbox = connection.consume("besides")
    properties = pika.BasicProperties(headers={"CC": ["besides"], "mine": 1})
    channel.basic_publish(EXCHANGE, "svc.work", b"{}", properties)
    _letter, headers = dead_letter(bench)
    assert (1, False) == (headers["mine"], "CC" in headers)
    connection.round_trip()
    assert [] == inbox.all


def test_odd_deaths_of_strangers_do_not_harm_the_delay_queue(
    serve: Serve, connect: Connect, channel: BlockingChannel
) -> None:
    """RabbitMQ 3.10 ends a queue when a message with such a header expires in it."""
    serve(Service, retry=SOON)
    properties = pika.BasicProperties(headers={"x-death": "odd"})
    channel.basic_publish(EXCHANGE, "svc.work", b'{"good": 2}', properties)
    assert [1, 2] == [each.attempt for each in attempts(2)]


@pytest.mark.parametrize("queue_type", QUEUE_TYPES)
def test_a_message_that_kills_its_process_is_dead_lettered_and_no_other_one(
    url: str,
    config: ConnectionConfig,
    bench: Bench,
    connect: Connect,
    tmp_path: Path,
    queue_type: str,
) -> None:
    """After delivery_limit, with a reason; those beside it are handled, though it comes first."""
    notes, limit, count = tmp_path / "notes", 4, 12

    def server() -> Program:
        return Program([CRASHING, url, queue_type, str(limit), str(notes)])

    connection = bench.connect()

    def dead() -> int:
        state = connection.inspect("work_queue.dead")
        return state.messages if state else 0

    with server() as first:
        eventually(lambda: (state := connection.inspect("work_queue")) and state.consumers)
        first.end()
    work = connect("work").work
    work.kill().cast()
    for n in range(count):
        work.note(n=n).cast()
    kills = 0
    while not dead():
        with server() as running:
            eventually(lambda: running.process.poll() is not None or dead())
            kills += running.process.poll() == 9
    assert limit < kills <= 2 * limit
    with server():
        eventually(lambda: len(set(notes.read_text().split())) == count)
        letter, headers = dead_letter(bench, "work_queue")
    assert b'{"context":{},"payload":{}}' == letter.body
    assert 0 == dead()
    if queue_type == "classic":
        assert "DeliveredTooOften" == headers["dead_error"]
    else:
        assert "delivery_limit" == headers["x-death"][0]["reason"]
    ran = Counter(notes.read_text().split())
    assert set(ran) == {str(n) for n in range(count)}


def test_a_message_that_was_delivered_too_often_is_an_error_and_not_a_retry(
    serve: Serve, channel: BlockingChannel, caplog: pytest.LogCaptureFixture, amqp_url: str
) -> None:
    """Though its handler is run again after any exception of its own."""
    settings: dict[str, Any] = {"retry": Retry(on=("Exception",)), "delivery_limit": 4}
    serve(Service, **settings).stop()
    headers: dict[str, Any] = {"retry_exchange": EXCHANGE, "retry_routing_key": "svc.work"}
    properties = pika.BasicProperties(headers=headers | {"retry_crashes": 4}, message_id="m")
    channel.basic_publish("", QUEUE, b"{}", properties)
    tag, _, _ = next_of(channel, QUEUE)
    channel.basic_nack(tag)
    channel.cancel()
    serve(Service, **settings)
    next_of(channel, f"{QUEUE}.dead")
    (record,) = [each for each in caplog.records if "DeliveredTooOften" in each.message]
    assert (logging.ERROR, False) == (record.levelno, "the next within" in record.message)


@dispatcher.rpc_service("held")
class Gated(ServiceController):
    """Handlers that note that they began, and go on when the gate is open."""

    gate: Future[None] = Future()
    seen: SimpleQueue[Any] = SimpleQueue()

    @dispatcher.rpc_method(service="held", method="waits")
    async def waits(self, request: Any, proxy: Any, n: int) -> None:
        self.seen.put(n)
        await asyncio.wrap_future(self.gate)

    @dispatcher.rpc_method(service="held", method="ends")
    async def ends(self, request: Any, proxy: Any) -> dict[str, Any]:
        return {}

    @dispatcher.rpc_method(service="held", method="answers")
    def answers(self, request: Any, proxy: Any) -> dict[str, Any]:
        self.seen.put("answers")
        self.gate.result(DEADLINE)
        return {"done": True}

    @dispatcher.rpc_method(service="held", method="tells")
    def tells(self, request: Any, proxy: Any) -> None:
        self.seen.put("tells")
        self.gate.result(DEADLINE)
        proxy.held.ends().cast()


@pytest.fixture
def _gated() -> Iterator[None]:
    Gated.gate, Gated.seen = Future(), SimpleQueue()
    known = discovery.LocalDiscovery()
    known.register_remote_service("held", EXCHANGE)
    Gated.set_discovery(known)
    yield
    if not Gated.gate.done():
        Gated.gate.set_result(None)


@pytest.mark.usefixtures("_gated")
@pytest.mark.parametrize("queue_type", QUEUE_TYPES)
def test_messages_whose_process_only_lost_its_connections_are_no_suspects(
    url: str, serve: Serve, connect: Connect, bench: Bench, queue_type: str
) -> None:
    """However often it did: they begin side by side as always, and not one at a time."""
    count, cuts = 20, 4
    broken = faults.Faults(url)
    config = ConnectionConfig(url=(broken.url,), async_engine=True, retry_delay=0.05)
    server = serve(Gated, config=config, queue_type=queue_type, concurrency=count * (cuts + 2))
    client = connect("held")
    with client.pipeline():
        for n in range(count):
            client.held.waits(n=n).cast()

    def begun() -> set[int]:
        return {Gated.seen.get(timeout=DEADLINE) for _ in range(count)}

    def held(times: int) -> bool:
        """Tell whether all that was begun is there, and originals of counted copies are not."""
        return len(server._processor.open_handlings) == times * count

    assert set(range(count)) == begun()
    for times in range(1, cuts + 1):
        eventually(functools.partial(held, times))
        broken.add(faults.lose_connection("ack", entry_point="held.ends"))
        cut_at = time.monotonic()
        client.held.ends().cast()
        assert set(range(count)) == begun()
        assert count / 2 > time.monotonic() - cut_at  # one at a time would take longer
    Gated.gate.set_result(None)
    connection = bench.connect()
    eventually(lambda: (state := connection.inspect(QUEUE)) and state.messages == 0)
    assert QueueState(0, 0) == connection.inspect(f"{QUEUE}.dead")


@pytest.fixture
def alarm(rabbitmq: Node) -> Iterator[Callable[[bool], None]]:
    """Call it to have the broker take no messages, or again; it does when the test is over."""

    def sound(is_on: bool) -> None:
        mark = "0.00001" if is_on else "0.4"
        rabbitmq.eval(f"vm_memory_monitor:set_vm_memory_high_watermark({mark})")

    yield sound
    sound(False)


def wait_for_a_timeout(connect: Connect, config: ConnectionConfig, seconds: float) -> None:
    """Return when a publication has waited in vain for so long."""
    client = connect("held", config=replace(config, publish_timeout=seconds))
    with pytest.raises(exceptions.PublishTimeout):
        client.held.ends().cast()


@pytest.mark.usefixtures("_gated")
def test_a_delivery_stays_while_what_its_handler_sends_meets_an_alarm(
    amqp_url: str,
    serve: Serve,
    connect: Connect,
    bench: Bench,
    config: ConnectionConfig,
    alarm: Callable[[bool], None],
) -> None:
    """It would only be given back, and run in vain, until the queue takes it for deadly."""
    quick = replace(config, publish_timeout=0.3)
    serve(Gated, config=quick, queue_type="quorum", delivery_limit=2)
    connect("held").held.tells().cast()
    assert "tells" == Gated.seen.get(timeout=DEADLINE)
    alarm(True)
    Gated.gate.set_result(None)
    wait_for_a_timeout(connect, config, 3.0)
    assert Gated.seen.empty()
    alarm(False)
    assert "tells" == Gated.seen.get(timeout=DEADLINE)
    connection = bench.connect()
    eventually(lambda: (state := connection.inspect(QUEUE)) and state.messages == 0)
    assert QueueState(0, 0) == connection.inspect(f"{QUEUE}.dead")
    assert Gated.seen.empty()


@pytest.mark.usefixtures("_gated")
def test_an_answer_that_meets_an_alarm_is_sent_when_it_is_over(
    amqp_url: str,
    serve: Serve,
    connect: Connect,
    config: ConnectionConfig,
    alarm: Callable[[bool], None],
) -> None:
    """And its handler is not run again for it."""
    server = serve(Gated, config=replace(config, publish_timeout=0.3), queue_type="quorum")
    held = connect("held").held
    call = held.answers().future(timeout=DEADLINE)
    assert "answers" == Gated.seen.get(timeout=DEADLINE)
    alarm(True)
    Gated.gate.set_result(None)
    wait_for_a_timeout(connect, config, 1.5)
    alarm(False)
    assert {"done": True} == call.result(DEADLINE).payload
    eventually(lambda: not server._processor.open_handlings)
    held.ends().call(timeout=DEADLINE)  # what was given back would come before it
    assert Gated.seen.empty()


@pytest.mark.usefixtures("_gated")
def test_a_server_that_stops_waits_for_no_alarm(
    amqp_url: str,
    serve: Serve,
    connect: Connect,
    bench: Bench,
    config: ConnectionConfig,
    alarm: Callable[[bool], None],
) -> None:
    """What it kept goes back to the queue."""
    server = serve(
        Gated, config=replace(config, publish_timeout=0.3), queue_type="quorum", graceful_timeout=60
    )
    connect("held").held.tells().cast()
    assert "tells" == Gated.seen.get(timeout=DEADLINE)
    alarm(True)
    Gated.gate.set_result(None)
    wait_for_a_timeout(connect, config, 1.0)
    processor = server._processor
    assert 1 == len(processor.open_handlings)
    stopping = threading.Thread(target=server.stop)
    stopping.start()
    eventually(lambda: not processor.open_handlings)
    alarm(False)  # a connection that is blocked is not closed in good order
    stopping.join()
    connection = bench.connect()
    eventually(lambda: (state := connection.inspect(QUEUE)) and state.messages)


@pytest.mark.parametrize("queue_type", QUEUE_TYPES)
def test_a_copy_whose_confirm_does_not_come_is_sent_again(
    url: str, serve: Serve, connect: Connect, bench: Bench, queue_type: str
) -> None:
    """And the delivery is not given back: the failed attempt is not made again."""
    broken = faults.Faults(url)
    config = ConnectionConfig(url=(broken.url,), async_engine=True, publish_timeout=1.0)
    serve(Service, config=config, retry=SOON, queue_type=queue_type)
    lost = faults.lose_confirm(kind="request")
    broken.add(lost)
    connect("svc").svc.work(good=2).cast()
    assert [1, 2, 2] == [each.attempt for each in attempts(3)]
    assert 1 == broken.struck(lost)
    connection = bench.connect()
    eventually(lambda: (state := connection.inspect(QUEUE)) and state.messages == 0)
    assert Service.seen.empty()


@pytest.mark.slow
@pytest.mark.parametrize("queue_type", QUEUE_TYPES)
def test_what_waits_outlives_a_broker_that_is_killed(
    node: Callable[[], Node], queue_type: str
) -> None:
    """Every message comes again, with its count."""
    broker, count = node(), 50
    config = ConnectionConfig(
        url=(broker.url(),), async_engine=True, retry_delay=0.1, max_retry_delay=0.5
    )
    known = discovery.LocalDiscovery()
    known.register_remote_service("svc", EXCHANGE)
    retry = Retry(attempts=2, first_delay=5, jitter=0.0)
    with Server(config, QUEUE, EXCHANGE, [Service], queue_type=queue_type, retry=retry):
        with RPCClient(config, discovery=known, source="test") as client, client.pipeline():
            for _ in range(count):
                client.svc.work(good=2).cast()
        assert {1} == {each.attempt for each in attempts(count)}
        broker.kill()
        broker.start()
        again: set[str] = set()
        while len(again) < count:  # some first attempts may come again too
            again |= {each.message_id for each in attempts(1) if each.attempt == 2}
