# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Publishing: what goes wrong with one message is told to its sender, and costs no other."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

import pytest
from pika.adapters.blocking_connection import BlockingChannel

from tavrida import discovery, dispatcher, exceptions
from tavrida.config import ConnectionConfig
from tavrida.publishing import OVERDRAFT
from tavrida.service import ServiceController
from tests.broker.conftest import EXCHANGE, QUEUE, Connect, Serve, next_of
from tests.faults.proxy import Proxy
from tests.rabbitmq import Node
from tests.transports.bench import Bench, publication
from tests.waiting import DEADLINE, eventually


@dispatcher.rpc_service("svc")
class Service(ServiceController):
    seen: SimpleQueue[Any] = SimpleQueue()
    #: How many messages of this process await their confirm; who floods rests until there are few.
    unconfirmed: Callable[[], int]

    @dispatcher.rpc_method(service="svc", method="ok")
    def ok(self, request: Any, proxy: Any, n: int = 0) -> dict[str, Any]:
        self.seen.put((n, request.message_id))
        return {"n": n}

    @dispatcher.rpc_method(service="svc", method="flood")
    async def flood(self, request: Any, proxy: Any, count: int, rest: int) -> dict[str, Any]:
        """Cast so often, and rest after so many."""
        for n in range(count):
            proxy.svc.ok(n=n).cast()
            while rest and n % rest == rest - 1 and self.unconfirmed() > rest:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return {}


@pytest.fixture(autouse=True)
def _fresh() -> None:
    Service.seen = SimpleQueue()
    Service.set_discovery(discovery.LocalDiscovery())


@pytest.fixture
def bench(amqp_url: str) -> Iterator[Bench]:
    """Bare connections to RabbitMQ."""
    with Bench(amqp_url) as bench:
        yield bench


def _seen() -> list[Any]:
    return [Service.seen.get() for _ in range(Service.seen.qsize())]


def test_what_the_loop_has_not_looked_at_is_not_overdue(bench: Bench) -> None:
    """Else a loop that is busy for a while would fail what it never sent, or send what failed."""
    connection = bench.connect(publish_timeout=2.0)
    queue = connection.queue()
    is_busy = threading.Event()

    def be_busy() -> None:
        is_busy.set()
        time.sleep(2.5)

    bench.loop.submit(be_busy)
    assert is_busy.wait(DEADLINE)
    sent = [connection.submit(queue, body) for body in (b"one", b"two")]
    assert [None, None] == [outcome.wait() for outcome in sent]
    assert [b"one", b"two"] == bench.bodies_in(queue)


def test_a_message_to_a_missing_exchange_costs_no_other_a_duplicate(
    serve: Serve, connect: Connect, config: ConnectionConfig
) -> None:
    """The broker closes the channel of one that names no exchange; so that one is never sent."""
    serve(Service)
    known = discovery.LocalDiscovery()
    known.register_remote_service("svc", EXCHANGE)
    for ghost in "abc":
        known.register_remote_service(f"ghost_{ghost}", f"no_{ghost}")
    client = connect(discovery=known, config=replace(config, max_unconfirmed=300))

    def send_all() -> None:
        with client.pipeline():
            for n in range(600):
                client.svc.ok(n=n).cast()
                if n % 200 == 100:
                    client[f"ghost_{'abc'[n // 200]}"].boo().cast()

    with pytest.raises(exceptions.PipelineFailed) as caught:
        send_all()
    assert 3 == len(caught.value.failures)
    for _, error in caught.value.failures:
        assert isinstance(error, exceptions.ServiceUnavailable)
        assert "does not exist" in str(error)
    eventually(lambda: Service.seen.qsize() >= 600)
    client.svc.ok(n=-1).call(timeout=DEADLINE)
    assert {(n, 1) for n in range(-1, 600)} == set(Counter(n for n, _ in _seen()).items())


def test_many_threads_share_little_room(
    serve: Serve, connect: Connect, config: ConnectionConfig
) -> None:
    """Each that waits is woken in its turn."""
    serve(Service)
    client = connect("svc", config=replace(config, max_unconfirmed=3))

    def send_some(thread: int) -> None:
        with client.pipeline():
            for n in range(60 * thread, 60 * thread + 60):
                client.svc.ok(n=n).cast()

    with ThreadPoolExecutor(8) as threads:
        assert 8 == len(list(threads.map(send_some, range(8), timeout=DEADLINE)))
    eventually(lambda: Service.seen.qsize() >= 480)
    assert set(range(480)) == {n for n, _ in _seen()}
    link = client._sender.link
    assert link is not None
    assert 0 == link.publisher.unconfirmed


def test_what_wakes_those_who_wait_for_room_does_not_pile_up(
    connect: Connect, config: ConnectionConfig
) -> None:
    """A broker confirms hundreds at once, and one thread waits."""
    known = discovery.LocalDiscovery()
    known.register_local_publisher("svc", EXCHANGE)
    config = replace(config, max_unconfirmed=200)
    client = connect(source="svc.ok", config=config, discovery=known)
    with client.pipeline():
        for n in range(3000):
            client.publish(n=n)
    link = client._sender.link
    assert link is not None
    # One that the loop puts in and one of a thread may come together.
    assert link.publisher._room.qsize() <= 2


def test_an_exchange_deleted_under_its_publisher_is_told_and_found_again(
    connect: Connect, channel: BlockingChannel
) -> None:
    """One clear error for each message while it is gone, and no state that has to be cleared."""

    def declare() -> None:
        channel.exchange_declare(EXCHANGE, "topic", durable=True)
        channel.queue_declare(QUEUE, durable=True)
        channel.queue_bind(QUEUE, EXCHANGE, "svc.ok")

    declare()
    client = connect("svc")
    client.svc.ok(n=1).cast()
    channel.exchange_delete(EXCHANGE)
    for _ in range(3):
        with pytest.raises(exceptions.ServiceUnavailable, match="does not exist"):
            client.svc.ok(n=2).cast()
    declare()
    client.svc.ok(n=3).cast()
    bodies = [next_of(channel, QUEUE)[2] for _ in range(2)]
    assert [1, 3] == [json.loads(body)["payload"]["n"] for body in bodies]


def test_a_returned_message_is_told_to_its_own_sender(bench: Bench) -> None:
    """Also where others, with the same message id, are confirmed together with it."""
    connection = bench.connect()
    name, _ = connection.reply_queue()
    keys = [name, "nowhere", name, "nowhere", "nowhere", name] * 100
    sent = [connection.send("", key, is_mandatory=True, message_id="the same") for key in keys]
    # What is not mandatory is never returned, even if it is the same in all else.
    sent.append(connection.send("", "nowhere", message_id="the same"))
    keys.append("unasked")
    for key, outcome in zip(keys, sent, strict=True):
        error = outcome.wait()
        assert (key == "nowhere") is isinstance(error, exceptions.ServiceUnavailable)


def test_what_is_sent_again_keeps_its_message_id(
    serve: Serve, connect: Connect, rabbitmq: Node, vhost: str
) -> None:
    """So that who handles it can tell a duplicate; and all that was confirmed is handled."""
    serve(Service)
    client = connect("svc")
    sent = 0
    for _ in range(3):
        with client.pipeline():
            for _ in range(300):
                client.svc.ok(n=sent).cast()
                sent += 1
            rabbitmq.ctl("close_all_connections", "--vhost", vhost, "for the test")
    ids: dict[int, set[str]] = {}

    def all_handled() -> bool:
        for n, message_id in _seen():
            ids.setdefault(n, set()).add(message_id)
        return len(ids) == sent

    eventually(all_handled)
    assert all(len(each) == 1 for each in ids.values())
    assert sent == len(set.union(*ids.values()))


def test_a_message_whose_confirm_was_lost_arrives_twice_with_the_same_id(
    bench: Bench, rabbitmq: Node, amqp_url: str
) -> None:
    """The sender cannot know; who handles both can."""
    direct = bench.connect()
    queue = direct.queue()
    with Proxy(rabbitmq.port) as proxy:
        far = bench.connect(url=(amqp_url.replace(str(rabbitmq.port), str(proxy.port)),))
        far.may_be_lost = True
        proxy.slow_down(delay=1.0)
        outcome = far.send("", queue, b"once", message_id="the id")
        eventually(lambda: (found := direct.inspect(queue)) and found.messages == 1)
        assert not outcome.is_known
        proxy.cut()
        proxy.heal()
        assert outcome.wait() is None
        far.close()
    copies = bench.drain(queue)
    assert ["the id"] * 2 == [each.properties.message_id for each in copies]


def test_a_body_over_our_own_limit_is_refused_before_it_is_sent(
    serve: Serve, connect: Connect, config: ConnectionConfig
) -> None:
    """By whoever would send it: the caller of a request, and the service with its answer."""
    serve(Service)
    client = connect("svc", config=replace(config, max_message_size=1000))
    with pytest.raises(exceptions.MessageTooLarge, match="max_message_size allows 1000"):
        client.svc.ok(text="x" * 1000).cast()
    assert {"n": 1} == client.svc.ok(n=1).call(timeout=DEADLINE).payload


def test_a_body_over_the_brokers_limit_is_told_to_its_sender_alone(
    bench: Bench, rabbitmq: Node
) -> None:
    """The broker closes the channel, and those beside it are sent again."""
    rabbitmq.eval("application:set_env(rabbit, max_message_size, 10000)")
    try:
        connection = bench.connect()
        queue = connection.queue()
        sent = [
            connection.send("", queue, b"x" * (20_000 if n == 50 else n + 1)) for n in range(100)
        ]
        refused = sent.pop(50).wait()
        assert isinstance(refused, exceptions.PublishFailed)
        assert "takes bodies of 10000 bytes at most, that of the message" in str(refused)
        assert "set max_message_size to the same in [connection]" in str(refused)
        assert [None] * 99 == [each.wait() for each in sent]
    finally:
        rabbitmq.eval("application:set_env(rabbit, max_message_size, 134217728)")
    sizes = {len(body) for body in bench.bodies_in(queue)}
    assert {n + 1 for n in range(100) if n != 50} == sizes


def test_an_async_handler_that_floods_is_stopped_by_one_sentence(
    serve: Serve,
    connect: Connect,
    config: ConnectionConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It cannot wait, so that nothing else would bound the memory; resting now and then helps."""
    server = serve(Service, config=replace(config, max_unconfirmed=20), concurrency=2)
    assert server._processor is not None
    publisher = server._processor.publisher
    monkeypatch.setattr(Service, "unconfirmed", lambda _: publisher.unconfirmed, raising=False)
    client = connect("svc")
    with pytest.raises(exceptions.RemoteError, match="10 times max_unconfirmed") as caught:
        client.svc.flood(count=20 * OVERDRAFT + 1, rest=0).call(timeout=DEADLINE)
    assert "PublishFailed" == caught.value.error_class
    eventually(lambda: not publisher.unconfirmed)
    client.svc.flood(count=20 * OVERDRAFT, rest=0).call(timeout=DEADLINE)
    eventually(lambda: not publisher.unconfirmed)
    client.svc.flood(count=20 * OVERDRAFT * 2, rest=20).call(timeout=DEADLINE)


@pytest.mark.parametrize("how", ["confirm", "return"])
def test_a_callback_that_comes_late_from_a_channel_before_is_nobodys(
    bench: Bench, channel: BlockingChannel, how: str
) -> None:
    """Its tags count the messages of that channel: on the present one they are other messages."""
    connection = bench.connect()
    exchange, queue = "a stranger's", connection.queue()
    transport: Any = connection.transport
    channel.exchange_declare(exchange, "topic", durable=True)
    connection.publish(exchange, "x")
    before = transport._publishing
    channel.exchange_delete(exchange)
    with pytest.raises(exceptions.ServiceUnavailable):
        connection.publish(exchange, "x")  # the broker closes the channel
    eventually(lambda: transport._publishing not in (None, before))
    frame = before.pika  # whatever: nobody may look into it

    def send_and_hear_late() -> None:
        outcome = connection._outcome()
        late = publication("", queue, b"late", is_mandatory=True)
        transport.publish(late, outcome)
        if how == "confirm":
            transport._on_confirm(before, 1, False, True)
        else:
            transport._on_return(before.pika, frame, late.properties, b"")
        assert not outcome.is_known

    bench.call(send_and_hear_late)
    assert connection.outcomes[-1].wait() is None
    assert 1 == len(bench.bodies_in(queue))


def test_settling_a_delivery_of_a_connection_before_does_not_settle_another(
    bench: Bench, rabbitmq: Node, vhost: str
) -> None:
    """The tags of a new channel begin at 1 again."""
    connection = bench.connect()
    connection.may_be_lost = True
    queue = connection.queue()
    connection.put(queue, b"a", b"b")
    inbox = connection.consume(queue)
    old = inbox.take(2)
    rabbitmq.ctl("close_all_connections", "--vhost", vhost, "for the test")
    new = inbox.take(2)
    assert not any(each.is_live for each in old)
    bench.ack(*old)
    bench.reject(*old)
    assert [b"a", b"b"] == sorted(each.body for each in new)
    assert all(each.is_live for each in new)
    connection.round_trip()  # nothing was wrong with the channel
    bench.requeue(*new)
    assert [b"a", b"b"] == sorted(inbox.bodies(2))
    connection.close()


def test_a_consumer_whose_channel_the_broker_closes_consumes_again(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as over an acknowledgement of a tag that it does not know; and it is said."""
    connection = bench.connect()
    connection.may_be_lost = True
    queue = connection.queue()
    connection.put(queue, b"a")
    inbox = connection.consume(queue)
    inbox.next()
    transport: Any = connection.transport
    bench.call(lambda: transport._consuming.pika.basic_ack(99))
    again = inbox.next()
    assert (b"a", True) == (again.body, again.redelivered)
    assert "unknown delivery tag 99" in caplog.text
    assert 1 == len(inbox.all) - 1
    connection.publish("", queue)
