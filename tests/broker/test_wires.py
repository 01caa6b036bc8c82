# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The same over either wire: the fast one beneath pika's API, and the plain one of its API."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from queue import SimpleQueue
from typing import Any

import pytest

from tavrida import dispatcher, exceptions
from tavrida.plugins.transports import Delivery
from tavrida.plugins.transports.amqp import transport
from tavrida.plugins.transports.amqp.wire import FastWire, PlainWire, Wire
from tavrida.service import ServiceController
from tests.broker.conftest import QUEUE, Connect, Serve, next_of
from tests.rabbitmq import Node
from tests.transports.bench import Bench, numbered
from tests.waiting import DEADLINE, eventually

#: More than a frame of RabbitMQ holds, 128 kB.
LARGE = "x" * 300_000


@dispatcher.rpc_service("svc")
class Service(ServiceController):
    seen: SimpleQueue[Any] = SimpleQueue()
    gate = threading.Event()

    @dispatcher.rpc_method("svc", "echo")
    async def echo(self, request: Any, proxy: Any, text: str, n: int = 0) -> dict[str, Any]:
        return {"text": text, "n": n}

    @dispatcher.rpc_method("svc", "note")
    def note(self, request: Any, proxy: Any, n: int) -> None:
        self.gate.wait(DEADLINE)
        self.seen.put(n)


@pytest.fixture(params=[FastWire, PlainWire], autouse=True)
def wire(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[PlainWire]:
    """Have connections made of either; return which."""
    monkeypatch.setattr(transport, "Wire", request.param)
    monkeypatch.setattr(Service, "seen", SimpleQueue())
    monkeypatch.setattr(Service, "gate", threading.Event())
    used: type[PlainWire] = request.param
    return used


def test_the_fast_wire_is_used_with_the_pika_that_is_tested() -> None:
    """Else everything here would be measured and tested with the other one."""
    assert Wire is FastWire


def test_calls_small_and_large_come_back(serve: Serve, connect: Connect, amqp_url: str) -> None:
    """Many at a time, in one frame and in three, and one that nobody serves."""
    serve(Service, concurrency=20)
    client = connect("svc", "nobody")
    sent = [(f"{n}" if n % 10 else LARGE, n) for n in range(200)]
    answers = [(client.svc.echo(text=text, n=n).future(timeout=DEADLINE)) for text, n in sent]
    assert sent == [(a.result()["text"], a.result()["n"]) for a in answers]
    with pytest.raises(exceptions.ServiceUnavailable):
        client.nobody.echo(text="").call()


def test_a_delivery_that_cannot_be_taken_harms_no_other(
    serve: Serve,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    amqp_url: str,
) -> None:
    """Several come together; a fault of ours with one of them is logged, and the others go on."""
    serve(Service, concurrency=20)
    client = connect("svc")
    client.svc.echo(text="").call(timeout=DEADLINE)
    link = client._sender._link
    assert link is not None
    finish = link.caller._finish
    faults = iter([True])

    def fail_once(*given: Any) -> None:
        if next(faults, False):
            raise RuntimeError("of our making")
        finish(*given)

    monkeypatch.setattr(link.caller, "_finish", fail_once)
    answers = [client.svc.echo(text="", n=n).future(timeout=3) for n in range(20)]
    errors = [error for answer in answers if (error := answer.exception(DEADLINE)) is not None]
    assert [exceptions.CallTimeout] == [type(error) for error in errors]
    assert "cannot be taken" in caplog.text


def test_casts_are_settled_and_leave_nothing(
    serve: Serve, connect: Connect, rabbitmq: Node, vhost: str, amqp_url: str
) -> None:
    """Confirmed at their sender, acknowledged by their handler: the queue is empty then."""
    server = serve(Service, concurrency=7)
    Service.gate.set()
    client = connect("svc")
    with client.pipeline():
        for n in range(500):
            client.svc.note(n=n).cast()
    handled = Counter(Service.seen.get(timeout=DEADLINE) for _ in range(500))
    assert dict.fromkeys(range(500), 1) == handled
    server.stop()
    assert f"{QUEUE}\t0" in rabbitmq.ctl("list_queues", "-p", vhost, "name", "messages")


def test_what_a_server_held_when_it_stopped_is_not_lost(
    serve: Serve, connect: Connect, channel: Any, amqp_url: str
) -> None:
    """What had begun is acknowledged with the goodbye, and what had not is back in the queue."""
    server = serve(Service, concurrency=2, prefetch=10)
    client = connect("svc")
    with client.pipeline():
        for n in range(6):
            client.svc.note(n=n).cast()
    eventually(lambda: len(server._processor.open_handlings) == 6)
    stopping = threading.Thread(target=server.stop)
    stopping.start()
    eventually(lambda: len(server._processor.open_handlings) == 2)
    Service.gate.set()
    stopping.join(DEADLINE)
    assert [0, 1] == sorted(Service.seen.get(timeout=DEADLINE) for _ in range(2))
    assert Service.seen.empty()
    bodies = [next_of(channel, QUEUE)[2] for _ in range(4)]
    assert ["2", "3", "4", "5"] == sorted(body.decode()[-3] for body in bodies)


def test_acknowledgements_leave_together_where_the_prefetch_has_room(
    amqp_url: str, wire: type[PlainWire], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of a turn of its own; with little room none waits, also after a reload."""
    frames, acknowledge = list[int](), wire.acknowledge

    def counted(self: PlainWire, channel: Any, tag: int, *, multiple: bool) -> None:
        frames.append(tag)
        acknowledge(self, channel, tag, multiple=multiple)

    async def settle(deliveries: list[Delivery]) -> int:
        frames.clear()
        for delivery in deliveries:
            delivery.ack()
            await asyncio.sleep(0)
        return len(frames)

    monkeypatch.setattr(wire, "acknowledge", counted)
    with Bench(amqp_url) as bench:
        publisher, consumer = bench.connect(), bench.connect()
        queue = publisher.queue()
        inbox = consumer.consume(queue, prefetch=100)
        publisher.put(queue, *numbered(60))
        # A frame each if they did not wait; a machine that stalls between two has some more.
        assert bench.run(settle(inbox.take(60))) < 30
        consumer.change_prefetch(queue, 4)
        publisher.put(queue, *numbered(4, 60))
        assert 4 == bench.run(settle(inbox.take(4)))
        consumer.close()
        assert [] == bench.bodies_in(queue)


def test_the_tags_of_consumers_are_short(amqp_url: str, rabbitmq: Node, vhost: str) -> None:
    """Each delivery has the tag of its consumer; also where the prefetch changed."""
    with Bench(amqp_url) as bench:
        consumer = bench.connect()
        queue = consumer.queue()
        consumer.consume(queue, 2)
        consumer.reply_queue()
        consumer.change_prefetch(queue, 3)
        columns = ("--no-table-headers", "consumer_tag")
        tags = rabbitmq.ctl("list_consumers", "-p", vhost, *columns).split()
        assert ["2", "3"] == sorted(tags)


def test_what_ends_in_the_turn_in_which_it_closes_is_acknowledged(amqp_url: str) -> None:
    """Though others just left: those that would wait for more to come have no time for that."""
    with Bench(amqp_url) as bench:
        publisher, consumer = bench.connect(), bench.connect()
        queue = publisher.queue()
        inbox = consumer.consume(queue)
        publisher.put(queue, *numbered(30))
        first, second, *_ = inbox.take(30)

        async def close() -> None:
            first.ack()
            bench.loop.at_end(second.ack)
            await consumer.transport.close()

        bench.run(close())
        assert numbered(30)[2:] == bench.bodies_in(queue)


def test_a_cut_connection_is_made_again(
    serve: Serve, connect: Connect, rabbitmq: Node, vhost: str, amqp_url: str
) -> None:
    """Consumers, confirms and answers are there again, on channels of the same numbers."""
    serve(Service)
    client = connect("svc")
    assert "a" == client.svc.echo(text="a").call(timeout=DEADLINE)["text"]
    rabbitmq.ctl("close_all_connections", "--vhost", vhost, "test")
    eventually(lambda: _answers(client))
    assert LARGE == client.svc.echo(text=LARGE).call(timeout=DEADLINE)["text"]


def _answers(client: Any) -> bool:
    try:
        return bool(client.svc.echo(text="b").call(timeout=DEADLINE)["text"])
    except (exceptions.CallInterrupted, exceptions.ConnectionFailed, exceptions.CallTimeout):
        return False
