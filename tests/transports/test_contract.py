# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""What every transport does, as RabbitMQ 3.10 does it. docs/plugins.md tells how to run it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from queue import SimpleQueue
from typing import Any

import pytest

from tavrida import exceptions
from tavrida.envelope import new_id
from tavrida.plugins.transports import Delivery, Events, QueueState
from tavrida.topology import Binding, Exchange, Queue
from tests.processes import Program
from tests.transports.bench import (
    Bench,
    Connection,
    new_name,
    numbered,
    publication,
    transport_class,
)
from tests.transports.conftest import Hold
from tests.waiting import DEADLINE, eventually

#: Seconds. What is prompt takes milliseconds; a busy machine takes longer.
PROMPT = 5.0


def ack(delivery: Delivery) -> None:
    delivery.ack()


def headers_of(delivery: Delivery) -> dict[str, Any]:
    return dict(delivery.properties.headers or {})


def death_of(delivery: Delivery, number: int = 0) -> dict[str, Any]:
    """Return what x-death tells of a death, the last one first, without the time."""
    death = dict(headers_of(delivery)["x-death"][number])
    assert datetime.now(UTC) - death.pop("time") < timedelta(seconds=60)
    return death


# -- topics ------------------------------------------------------------------------------------

KEYS = ["", ".", "a", "a.", ".a", "a.b", "a..b", "a.b.c", "b", "b.a", "ab", "a*", "*", "#", "A"]
WORDS = ["a", "b", "ab", "a*", "*", "#", "A"]


@pytest.mark.parametrize(
    ("pattern", "matching"),
    [
        ("#", KEYS),
        ("#.#", KEYS),
        ("*", WORDS),
        ("*.*", [".", "a.", ".a", "a.b", "b.a"]),
        ("*.#", KEYS[1:]),
        ("#.*", KEYS[1:]),
        ("a.*", ["a.", "a.b"]),
        ("*.a", [".a", "b.a"]),
        ("a.*.b", ["a..b"]),
        ("*.b.*", ["a.b.c"]),
        ("a.#", ["a", "a.", "a.b", "a..b", "a.b.c"]),
        ("#.a", ["a", ".a", "b.a"]),
        ("a.#.b", ["a.b", "a..b"]),
        ("#.b.#", ["a.b", "a..b", "a.b.c", "b", "b.a"]),
        ("a.*.#", ["a.", "a.b", "a..b", "a.b.c"]),
        ("a.#.*", ["a.", "a.b", "a..b", "a.b.c"]),
        ("a.b", ["a.b"]),
        ("a", ["a"]),
        ("a*", ["a*"]),
        ("a#", []),
        ("", [""]),
        (".", ["."]),
        ("a.", ["a."]),
    ],
)
def test_a_pattern_takes_the_routing_keys_that_it_matches(
    bench: Bench, connection: Connection, pattern: str, matching: list[str]
) -> None:
    """A star is one word, which may be empty; a hash is any number of words, also none."""
    exchange = connection.exchange()
    queue = connection.bound(exchange, pattern)
    sent = [connection.send(exchange, key, key.encode()) for key in KEYS]
    assert [None] * len(KEYS) == [outcome.wait() for outcome in sent]
    assert matching == [body.decode() for body in bench.bodies_in(queue)]


def test_a_queue_gets_one_copy_however_many_of_its_bindings_match(
    bench: Bench, connection: Connection
) -> None:
    """And every queue that matches gets its own."""
    exchange = connection.exchange()
    one = connection.bound(exchange, "#", "a.*", "*.b", "a.b")
    other = connection.bound(exchange, "a.b")
    connection.publish(exchange, "a.b", b"once")
    assert [b"once"] == bench.bodies_in(one)
    assert [b"once"] == bench.bodies_in(other)


def test_the_copies_of_a_message_live_on_their_own(bench: Bench, connection: Connection) -> None:
    """What becomes of one in its queue is nothing to the other."""
    exchange, dead = connection.exchange(), connection.queue()
    one = connection.queue(dead_letter_to=dead)
    connection.declare(Binding(exchange, one, "a"))
    other = connection.bound(exchange, "a")
    connection.publish(exchange, "a", b"copy", headers={"h": 1})
    bench.reject(connection.consume(one).next())
    assert "x-death" in headers_of(connection.consume(dead).next())
    (copy,) = bench.drain(other)
    assert (b"copy", {"h": 1}, False) == (copy.body, headers_of(copy), copy.redelivered)


def test_a_queue_can_be_bound_to_several_exchanges(bench: Bench, connection: Connection) -> None:
    """As a service that hears notifications of others is; each exchange has patterns of its own."""
    first, second = connection.exchange(), connection.exchange()
    queue = connection.bound(first, "a")
    connection.declare(Binding(second, queue, "b"))
    for exchange in (first, second):
        for key in ("a", "b"):
            connection.publish(exchange, key, exchange.encode())
    assert [first.encode(), second.encode()] == bench.bodies_in(queue)


def test_the_default_exchange_reaches_every_queue_by_its_name(
    bench: Bench, connection: Connection
) -> None:
    """Without a binding; stars and dots mean nothing there."""
    queue = connection.queue()
    connection.publish("", queue, b"here", is_mandatory=True)
    for key in ("#", "*.*", queue + ".", queue.upper()):
        with pytest.raises(exceptions.ServiceUnavailable):
            connection.publish("", key, b"nowhere", is_mandatory=True)
    assert [b"here"] == bench.bodies_in(queue)


def test_names_and_routing_keys_are_any_text(bench: Bench, connection: Connection) -> None:
    """Spaces, quotes, signs and every language; upper and lower case differ."""
    exchange, queue = (new_name(f"{what} 'größe' %s \"x\"; --/?#") for what in ("Ex", "Qu"))
    key = "wörd with space.'\";--.%00"
    connection.declare(
        Exchange(exchange), Queue(queue, "classic"), Binding(exchange, queue, f"#.{key}")
    )
    connection.publish(exchange, key, b"by topic", is_mandatory=True)
    connection.publish("", queue, b"by name", is_mandatory=True)
    with pytest.raises(exceptions.ServiceUnavailable):
        connection.publish(exchange, key.upper(), is_mandatory=True)
    found = bench.drain(queue)
    assert [(b"by topic", exchange, key), (b"by name", "", queue)] == [
        (delivery.body, delivery.exchange, delivery.routing_key) for delivery in found
    ]


def test_a_delivery_tells_where_its_message_was_sent(bench: Bench, connection: Connection) -> None:
    """Exchange and routing key of the publication, and the queue that it came from."""
    exchange = connection.exchange()
    queue = connection.bound(exchange, "a.#")
    inbox = connection.consume(queue)
    connection.publish(exchange, "a.b.c", b"by topic")
    delivery = inbox.next()
    assert (exchange, "a.b.c", queue) == (
        delivery.exchange,
        delivery.routing_key,
        delivery.queue,
    )
    assert (b"by topic", False, True) == (delivery.body, delivery.redelivered, delivery.is_live)
    connection.publish("", queue, b"by name")
    delivery = inbox.next()
    assert ("", queue, queue) == (delivery.exchange, delivery.routing_key, delivery.queue)


# -- what becomes of a publication -------------------------------------------------------------


def test_a_mandatory_message_that_no_queue_takes_is_service_unavailable(
    connection: Connection,
) -> None:
    """At once; the error names the exchange and the routing key."""
    exchange = connection.exchange()
    connection.bound(exchange, "other.*")
    began = time.monotonic()
    with pytest.raises(exceptions.ServiceUnavailable, match=re.escape("'shop.buy'")) as caught:
        connection.publish(exchange, "shop.buy", is_mandatory=True)
    assert exchange in str(caught.value)
    name = new_name("queue")
    with pytest.raises(exceptions.ServiceUnavailable, match=name):
        connection.publish("", name, is_mandatory=True)
    assert time.monotonic() - began < PROMPT


def test_a_message_that_no_queue_takes_is_confirmed_when_it_is_not_mandatory(
    bench: Bench, connection: Connection
) -> None:
    """And gone: a binding that is made later does not bring it back."""
    exchange, queue = connection.exchange(), connection.queue()
    connection.publish(exchange, "a", b"early")
    connection.declare(Binding(exchange, queue, "a"))
    connection.publish(exchange, "a", b"late")
    assert [b"late"] == bench.bodies_in(queue)


def test_mandatory_is_asked_of_each_message_alone(bench: Bench, connection: Connection) -> None:
    """Messages that find a queue and messages that do not, side by side."""
    queue = connection.queue()
    keys = [queue if number % 3 else "nobody" for number in range(30)]
    sent = [connection.send("", key, is_mandatory=bool(n % 2)) for n, key in enumerate(keys)]
    lost = [isinstance(outcome.wait(), exceptions.ServiceUnavailable) for outcome in sent]
    assert [key == "nobody" and bool(n % 2) for n, key in enumerate(keys)] == lost
    assert 20 == len(bench.drain(queue))


@pytest.mark.parametrize("is_mandatory", [False, True])
def test_a_missing_exchange_is_service_unavailable(
    connection: Connection, is_mandatory: bool
) -> None:
    """Mandatory or not: it is a mistake of the sender; the error names exchange and key."""
    with pytest.raises(exceptions.ServiceUnavailable, match=r"nowhere.*shop\.buy"):
        connection.publish("nowhere", "shop.buy", is_mandatory=is_mandatory)


def test_publications_beside_one_to_a_missing_exchange_are_unharmed(
    bench: Bench, connection: Connection, kind: str
) -> None:
    """All of them are confirmed and there, in order; one in flight may be there twice."""
    queue = connection.queue(kind)
    sent = [connection.send("", queue, body) for body in numbered(50)]
    lost = connection.send("nowhere", "a")
    sent += [connection.send("", queue, body) for body in numbered(50, first=50)]
    assert isinstance(lost.wait(), exceptions.ServiceUnavailable)
    assert [None] * 100 == [outcome.wait() for outcome in sent]
    assert numbered(100) == list(dict.fromkeys(bench.bodies_in(queue)))


def test_a_transport_can_publish_when_it_is_open(bench: Bench) -> None:
    """And says so."""
    connection = bench.connection()
    assert not bench.call(lambda: connection.transport.can_publish)
    connection.open()
    assert bench.call(lambda: connection.transport.can_publish)


def test_done_is_called_once_and_on_the_loop(bench: Bench, connection: Connection) -> None:
    """Whatever it is called with; the bench checks it at the end of every test."""
    queue = connection.queue()
    sent = [
        connection.send("", queue, b"fine"),
        connection.send("", "nobody", is_mandatory=True),
        connection.send("nowhere", ""),
        connection.send("", "x" * 256),
    ]
    ended = [type(outcome.wait()) for outcome in sent]
    unavailable = exceptions.ServiceUnavailable
    assert [type(None), unavailable, unavailable, exceptions.PublishFailed] == ended
    connection.close()
    connection.check()


def test_a_sender_whose_done_fails_harms_nobody(bench: Bench, connection: Connection) -> None:
    """The failure is logged, and the connection goes on."""
    queue = connection.queue()

    def fail(error: Exception | None) -> None:
        raise ZeroDivisionError("on purpose")

    bench.loop.submit(connection.transport.publish, publication("", queue, b"one"), fail)
    connection.put(queue, b"two")
    assert [b"one", b"two"] == bench.bodies_in(queue)


def test_done_may_publish(bench: Bench, connection: Connection) -> None:
    """One message after the other, each when the one before is confirmed."""
    queue = connection.queue()
    left = numbered(20)
    ended = threading.Event()

    def publish_next(error: Exception | None) -> None:
        assert error is None
        if left:
            connection.transport.publish(publication("", queue, left.pop(0)), publish_next)
        else:
            ended.set()

    bench.call(publish_next, None)
    assert ended.wait(DEADLINE)
    assert numbered(20) == bench.bodies_in(queue)


def test_publications_of_one_thread_keep_their_order(bench: Bench, connection: Connection) -> None:
    """Four threads hand over to the loop; between threads there is no order."""
    queue = connection.queue()

    def publish(thread: int) -> None:
        for number in range(100):
            connection.send("", queue, b"%d %d" % (thread, number))

    threads = [threading.Thread(target=publish, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert [None] * 400 == [outcome.wait() for outcome in connection.outcomes]
    found = [tuple(map(int, body.split())) for body in bench.bodies_in(queue)]
    for number in range(4):
        assert [(number, n) for n in range(100)] == [each for each in found if each[0] == number]


# -- properties, headers and bodies ------------------------------------------------------------

PROPERTIES: dict[str, Any] = {
    "content_type": "application/json",
    "correlation_id": "c" * 255,
    "reply_to": "some.queue",
    "message_id": "m1",
    "type": "request",
    "app_id": "größe",
}


def received(
    bench: Bench, connection: Connection, body: bytes = b"", **properties: Any
) -> Delivery:
    """Return a message as it arrives."""
    queue = connection.queue()
    connection.put(queue, body, **properties)
    (delivery,) = bench.drain(queue)
    return delivery


def test_all_properties_arrive_as_they_were_sent(bench: Bench, connection: Connection) -> None:
    """Up to the longest that AMQP allows, and in any language."""
    properties = received(bench, connection, **PROPERTIES).properties
    assert PROPERTIES == {name: getattr(properties, name) for name in PROPERTIES}


def test_properties_that_were_not_sent_are_none(bench: Bench, connection: Connection) -> None:
    """Not empty strings; there may be no headers at all."""
    properties = received(bench, connection).properties
    absent = set(PROPERTIES) - {"message_id"}
    assert {None} == {getattr(properties, name) for name in absent}
    assert {} == dict(properties.headers or {})


@pytest.mark.parametrize(
    "value",
    [
        "",
        "text",
        "größe ✓ 🐰",
        0,
        -1,
        2**31,
        2**63 - 1,
        -(2**63),
        True,
        False,
        None,
        b"\x00\xff",
        Decimal("1.5"),
        datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        [],
        [1, "a", None, [True, {"deep": 2**40}]],
        {},
        {"a": {"b": ["c"]}, "n": 2**40},
        "x" * 16_384,
    ],
    ids=lambda value: f"{value!r:.30}",
)
def test_a_header_arrives_with_its_value_and_type(
    bench: Bench, connection: Connection, value: Any
) -> None:
    """Whatever AMQP's field tables hold but floats; integers have 64 bits and are plain ints."""
    found = headers_of(received(bench, connection, headers={"name": value, "ünïcode": 1}))
    assert {"name": value, "ünïcode": 1} == found
    assert repr(value) == repr(found["name"])


@pytest.mark.parametrize(
    "body", [b"", b"\x00\xff" * 100, bytes(range(256)) * 4096], ids=["empty", "binary", "1 MB"]
)
def test_a_body_arrives_byte_by_byte(bench: Bench, connection: Connection, body: bytes) -> None:
    """Empty, binary and large ones."""
    found = received(bench, connection, body).body
    assert type(found) is bytes
    assert body == found


@pytest.mark.parametrize(
    "properties",
    [
        {"headers": {"large": "x" * 130_000}},
        {"headers": {f"h{n}": "ü" * 16_000 for n in range(5)}},
        {"headers": {"float": 1.5}},
        {"headers": {"object": object()}},
        {"headers": {"nested": [{"float": 1.5}]}},
        {"headers": {"int": 2**63}},
        {"headers": {"surrogate": "\ud800"}},
        {"headers": {"n" * 256: 1}},
        {"headers": {"nested": {"n" * 256: 1}}},
        {"headers": {1: 1}},
        {"correlation_id": "c" * 256},
        {"reply_to": "ü" * 128},
        {"message_id": "\ud800"},
    ],
    ids=lambda properties: f"{properties!r:.30}",
)
def test_what_cannot_be_written_is_publish_failed(
    bench: Bench, connection: Connection, properties: dict[str, Any]
) -> None:
    """Nothing of it is sent, and the connection goes on; sizes are in bytes."""
    queue = connection.queue()
    with pytest.raises(exceptions.PublishFailed):
        connection.publish("", queue, b"bad", **properties)
    connection.put(queue, b"good")
    assert [b"good"] == bench.bodies_in(queue)


@pytest.mark.parametrize("key", ["k" * 256, "ü" * 128, "\ud800"], ids=["long", "wide", "surrogate"])
def test_a_routing_key_or_exchange_that_amqp_cannot_write_is_publish_failed(
    bench: Bench, connection: Connection, key: str
) -> None:
    """255 bytes are the limit; the connection goes on."""
    exchange = connection.exchange()
    with pytest.raises(exceptions.PublishFailed):
        connection.publish(exchange, key, is_mandatory=True)
    with pytest.raises(exceptions.PublishFailed):
        connection.publish(key, "a")
    queue = connection.bound(exchange, "#")
    connection.publish(exchange, "k" * 255, b"good")
    assert [b"good"] == bench.bodies_in(queue)


# -- declaring ---------------------------------------------------------------------------------


def test_declaring_again_changes_nothing(bench: Bench, connection: Connection, kind: str) -> None:
    """From any connection, at any time; messages and bindings stay."""
    exchange, queue, dead = (new_name(what) for what in ("exchange", "queue", "dead"))
    limit = 5 if kind == "quorum" else None
    topology = (
        Exchange(exchange),
        Queue(dead, kind),
        Queue(queue, kind, dead, limit, 60_000),
        Binding(exchange, queue, "a.*"),
    )
    connection.declare(*topology)
    connection.publish(exchange, "a.b", b"one")
    connection.declare(*topology)
    other = bench.connect()
    other.declare(*topology)
    other.publish(exchange, "a.b", b"two")
    assert [b"one", b"two"] == bench.bodies_in(queue)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (Queue("", "classic"), Queue("", "quorum"), ("classic", "quorum")),
        (Queue("", "classic", "x"), Queue("", "classic", "y"), ("'x'", "'y'")),
        (Queue("", "classic"), Queue("", "classic", "y"), ()),
        (Queue("", "classic", "x"), Queue("", "classic"), ()),
        (
            Queue("", "quorum", delivery_limit=17),
            Queue("", "quorum", delivery_limit=18),
            ("17", "18"),
        ),
        (Queue("", "quorum"), Queue("", "quorum", delivery_limit=18), ("18",)),
        (
            Queue("", "classic", message_ttl=1700),
            Queue("", "classic", message_ttl=1800),
            ("1700", "1800"),
        ),
        (Queue("", "classic", message_ttl=1700), Queue("", "classic"), ("1700",)),
    ],
    ids=["type", "dead_letter_to", "new", "gone", "limit", "new limit", "ttl", "no ttl"],
)
def test_a_queue_that_exists_with_other_properties_is_a_topology_conflict(
    bench: Bench, connection: Connection, old: Queue, new: Queue, told: tuple[str, ...]
) -> None:
    """It names queue, old value and new value; the queue stays, and the connection goes on."""
    name = new_name("queue")

    def named(queue: Queue) -> Queue:
        return Queue(
            name, queue.type, queue.dead_letter_to, queue.delivery_limit, queue.message_ttl
        )

    connection.declare(named(old))
    connection.put(name, b"stays")
    with pytest.raises(exceptions.TopologyConflict) as caught:
        connection.declare(named(new))
    for text in (name, *told):
        assert text in str(caught.value)
    connection.declare(named(old))
    assert [b"stays"] == bench.bodies_in(name)


@pytest.mark.parametrize(
    ("old", "new", "differences"),
    [
        (Queue("", "classic"), Queue("", "classic"), {}),
        (Queue("", "quorum", "d", 20), Queue("", "quorum", "d", 20), {}),
        (
            Queue("", "classic", "d", None, 1700),
            Queue("", "quorum", "e", 20, 1800),
            {
                "x-queue-type": ("classic", "quorum"),
                "x-dead-letter-routing-key": ("d", "e"),
                "x-message-ttl": (1700, 1800),
            },
        ),
        (
            Queue("", "quorum", "d", 20),
            Queue("", "classic", "d"),
            {"x-queue-type": ("quorum", "classic"), "x-delivery-limit": (20, None)},
        ),
        (
            Queue("", "quorum", "", 20),
            Queue("", "quorum", "", 21, 1700),
            {"x-delivery-limit": (20, 21), "x-message-ttl": (None, 1700)},
        ),
    ],
    ids=["same", "same quorum", "to quorum", "to classic", "arguments"],
)
def test_a_queue_tells_all_that_is_different(
    connection: Connection, old: Queue, new: Queue, differences: dict[str, tuple[object, object]]
) -> None:
    """Of each setting the old and the new value; nothing is changed, and what is not there is None.

    What a classic queue has no use for may be told or not, and what a transport sets by itself.
    """
    name = new_name("queue")
    assert connection.compare(replace(new, name=name)) is None
    assert connection.inspect(name) is None
    connection.declare(replace(old, name=name))
    found = dict(connection.compare(replace(new, name=name)) or {})
    for own in ("x-dead-letter-strategy", "x-overflow"):
        found.pop(own, None)
    if old.type == "classic":
        found.pop("x-delivery-limit", None)
    assert differences == found
    assert {} == connection.compare(replace(old, name=name))


def test_an_exchange_can_be_looked_for(connection: Connection) -> None:
    """It is there, or not."""
    exchange = connection.exchange()
    assert {} == connection.compare(Exchange(exchange))
    assert connection.compare(Exchange(new_name("exchange"))) is None


def test_bindings_change_without_a_time_between(
    bench: Bench, connection: Connection, kind: str
) -> None:
    """Whatever is published meanwhile is in one of the queues, or in both."""
    exchange, other = connection.exchange(), connection.exchange()
    old = connection.bound(exchange, "a.*", "b", kind=kind)
    new = connection.queue(kind)
    connection.declare(Binding(other, old, "a.*"))
    bindings = [
        [Binding(exchange, queue, key) for key in ("a.*", "b")] + [Binding(other, queue, "a.*")]
        for queue in (old, new)
    ]
    publisher = bench.connect()
    sent = [publisher.send(exchange, "a.b", body, is_mandatory=True) for body in numbered(100)]
    connection.rebind(*bindings)
    sent += [
        publisher.send(each, key, body, is_mandatory=True)
        for each, key, body in [(exchange, "b", b"100"), (other, "a.c", b"101")]
    ]
    assert {None} == {outcome.wait() for outcome in sent}
    before, after = bench.bodies_in(old), bench.bodies_in(new)
    assert {*before, *after} == set(numbered(102))
    assert [b"100", b"101"] == after[-2:]
    assert b"100" not in before
    connection.rebind(*bindings)  # once more, when there is nothing left to do
    publisher.publish(exchange, "b", b"again", is_mandatory=True)
    assert [b"again"] == bench.bodies_in(new)


def test_rebinding_what_does_not_exist_is_a_transport_error(connection: Connection) -> None:
    """It names what is missing; the old binding stays, and the connection goes on."""
    exchange = connection.exchange()
    queue = connection.bound(exchange, "a")
    for new in (Binding(exchange, "nowhere", "a"), Binding("nowhere", queue, "a")):
        with pytest.raises(exceptions.TransportError, match="nowhere"):
            connection.rebind([Binding(exchange, queue, "a")], [new])
    connection.publish(exchange, "a", is_mandatory=True)


def test_only_an_empty_queue_without_consumers_is_deleted(
    bench: Bench, connection: Connection, kind: str
) -> None:
    """Its bindings go with it; its name is free for a queue of another kind."""
    exchange = connection.exchange()
    queue = connection.bound(exchange, "a", kind=kind)
    connection.put(queue, b"one")
    with pytest.raises(exceptions.TransportError, match=rf"{queue}.* 1 messages"):
        connection.delete(queue)
    consumer = bench.connect()
    bench.ack(consumer.consume(queue).next())
    eventually(lambda: connection.inspect(queue) == QueueState(0, 1))
    with pytest.raises(exceptions.TransportError, match=rf"{queue}.* 1 consumers"):
        connection.delete(queue)
    consumer.close()
    eventually(lambda: connection.inspect(queue) == QueueState(0, 0))
    connection.delete(queue)
    connection.delete(queue)
    assert connection.inspect(queue) is None
    with pytest.raises(exceptions.ServiceUnavailable):
        connection.publish(exchange, "a", is_mandatory=True)
    connection.declare(Queue(queue, "quorum" if kind == "classic" else "classic"))
    connection.put(queue, b"two")
    assert [b"two"] == bench.bodies_in(queue)


def test_what_was_deleted_or_unbound_does_not_come_back_with_a_new_connection(
    bench: Bench, connection: Connection, cut: Callable[[], None]
) -> None:
    """Though all else that was declared does."""
    connection.may_be_lost = True
    exchange = connection.exchange()
    deleted, old = connection.queue(), connection.bound(exchange, "a")
    new = connection.queue()
    connection.rebind([Binding(exchange, old, "a")], [Binding(exchange, new, "a")])
    connection.delete(deleted)
    for each in bench.connections:
        each.may_be_lost = True
    cut()
    connection.lost.get(timeout=DEADLINE)
    connection.publish(exchange, "a", b"one", is_mandatory=True)
    assert connection.inspect(deleted) is None
    assert QueueState(0, 0) == connection.inspect(old)
    assert QueueState(1, 0) == connection.inspect(new)


@pytest.mark.parametrize("missing", ["exchange", "queue"])
def test_binding_what_does_not_exist_is_a_transport_error(
    connection: Connection, missing: str
) -> None:
    """It names what is missing; the connection goes on."""
    exchange = "nowhere" if missing == "exchange" else connection.exchange()
    queue = "nowhere" if missing == "queue" else connection.queue()
    with pytest.raises(exceptions.TransportError, match="nowhere"):
        connection.declare(Binding(exchange, queue, "a"))
    connection.queue()


def test_a_name_that_amqp_cannot_write_is_a_transport_error(connection: Connection) -> None:
    """It has at most 255 bytes; the connection goes on."""
    for thing in (Exchange("x" * 256), Queue("ü" * 128, "classic")):
        with pytest.raises(exceptions.TransportError):
            connection.declare(thing)
    name = "q" * (255 - 9) + new_name("")
    connection.declare(Queue(name, "classic"))
    connection.put(name, b"one")


def test_a_topology_may_be_declared_by_many_at_once(bench: Bench) -> None:
    """As the instances of a service do that start together."""
    exchange, queue = new_name("exchange"), new_name("queue")
    connections = [bench.connect() for _ in range(5)]
    topology = (Exchange(exchange), Queue(queue, "classic"), Binding(exchange, queue, "#"))
    threads = [threading.Thread(target=each.declare, args=topology) for each in connections]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    for each in connections:
        each.publish(exchange, "a", b"one", is_mandatory=True)
    assert [b"one"] * 5 == bench.bodies_in(queue)


# -- consuming ---------------------------------------------------------------------------------


def test_a_queue_delivers_in_the_order_of_publication(bench: Bench, kind: str) -> None:
    """Also what waited before there was a consumer."""
    connection = bench.connect()
    queue = connection.queue(kind)
    connection.put(queue, *numbered(50))
    inbox = bench.connect().consume(queue, 7, ack)
    connection.put(queue, *numbered(50, first=50))
    assert numbered(100) == inbox.bodies(100)


def test_a_queue_keeps_its_messages_while_nobody_consumes(
    bench: Bench, connection: Connection, kind: str
) -> None:
    """Consumers come and go; what none of them acknowledged is there for the next."""
    queue = connection.queue(kind)
    connection.put(queue, *numbered(5))
    for number in range(4):
        consumer = bench.connect()
        inbox = consumer.consume(queue, 1)
        delivery = inbox.next()
        assert b"%d" % number == delivery.body
        bench.ack(delivery)
        inbox.next()
        consumer.close()
    assert [b"4"] == bench.bodies_in(queue)


def test_prefetch_limits_what_is_unsettled(bench: Bench, connection: Connection, kind: str) -> None:
    """The next one comes when one is settled, in whichever way; not before."""
    queue = connection.queue(kind, dead_letter_to=connection.queue(kind))
    connection.put(queue, *numbered(10))
    consumer = bench.connect()
    inbox = consumer.consume(queue, 3)
    first, second, third = inbox.take(3)
    consumer.round_trip()
    assert inbox.is_empty
    bench.ack(second)
    assert b"3" == inbox.next().body
    bench.reject(first, third)
    assert [b"4", b"5"] == inbox.bodies(2)
    consumer.round_trip()
    assert inbox.is_empty


def test_prefetch_counts_each_queue_of_a_connection_alone(
    bench: Bench, connection: Connection
) -> None:
    """A full queue does not keep another one waiting."""
    busy, quiet = connection.queue(), connection.queue()
    connection.put(busy, *numbered(5))
    connection.put(quiet, *numbered(5))
    consumer = bench.connect()
    first, second = consumer.consume(busy, 1), consumer.consume(quiet, 2)
    assert [b"0"] == first.bodies(1)
    deliveries = second.take(2)
    bench.ack(*deliveries)
    assert [b"2", b"3"] == second.bodies(2)
    assert {quiet} == {delivery.queue for delivery in deliveries}
    consumer.round_trip()
    assert first.is_empty
    assert second.is_empty


def test_a_prefetch_of_any_size_is_taken(bench: Bench, connection: Connection) -> None:
    """AMQP's 65,535 may be less than a server's concurrency."""
    queue = connection.queue()
    inbox = connection.consume(queue, 100_000)
    connection.put(queue, b"one")
    assert b"one" == inbox.next().body


def test_a_transport_tells_whether_other_processes_reach_its_place(
    bench: Bench, connection: Connection, place: Any
) -> None:
    """Where they do not, a server cannot have several."""
    assert place.is_shared == bench.transport_class.is_shared(connection.transport.config)


def test_a_prefetch_that_is_raised_lets_more_come_at_once(
    bench: Bench, connection: Connection, kind: str
) -> None:
    """Over the same connection; what came before stays, and can be settled."""
    queue = connection.queue(kind)
    connection.put(queue, *numbered(30))
    consumer = bench.connect()
    inbox = consumer.consume(queue, 2)
    early = inbox.take(2)
    consumer.round_trip()
    assert inbox.is_empty
    consumer.change_prefetch(queue, 10)
    late = inbox.take(8)
    assert [True] * 2 == [delivery.is_live for delivery in early]
    bench.ack(*early, *late)
    later = inbox.take(10)
    assert numbered(20) == [delivery.body for delivery in (*early, *late, *later)]
    assert not any(delivery.redelivered for delivery in (*early, *late, *later))
    consumer.round_trip()
    assert len(inbox.drained()) <= 2  # those of before may count or not
    state = connection.inspect(queue)
    assert state is not None
    assert 1 == state.consumers


def test_a_prefetch_that_is_lowered_holds_when_what_was_there_is_settled(
    bench: Bench, connection: Connection, kind: str
) -> None:
    """Nothing goes back, nothing comes twice."""
    queue = connection.queue(kind)
    connection.put(queue, *numbered(30))
    consumer = bench.connect()
    inbox = consumer.consume(queue, 10)
    early = inbox.take(10)
    consumer.change_prefetch(queue, 3)
    consumer.round_trip()
    late = inbox.drained()
    assert len(late) <= 3  # those of before may count or not
    bench.ack(*early, *late)
    consumer.round_trip()
    last = inbox.take(3)
    consumer.round_trip()
    assert inbox.is_empty
    found = [*early, *late, *last]
    assert numbered(len(found)) == [delivery.body for delivery in found]
    assert not any(delivery.redelivered for delivery in found)
    consumer.close()
    assert sorted(numbered(30)[len(early) + len(late) :]) == sorted(bench.bodies_in(queue))


def test_a_prefetch_changes_again_and_again_while_messages_come(
    bench: Bench, connection: Connection, kind: str
) -> None:
    """None is lost, none is delivered twice, and one consumer is left."""
    queue = connection.queue(kind)
    consumer = bench.connect()
    arrived: list[Delivery] = []

    def take(delivery: Delivery) -> None:
        arrived.append(delivery)
        delivery.ack()

    consumer.consume(queue, 1, take)
    sent = [connection.send("", queue, body, is_mandatory=True) for body in numbered(2000)]
    for number in range(50):
        consumer.change_prefetch(queue, 1 + number % 5)
    assert {None} == {outcome.wait() for outcome in sent}
    eventually(lambda: len(arrived) >= 2000)
    consumer.round_trip()
    assert sorted(numbered(2000)) == sorted(delivery.body for delivery in arrived)
    # RabbitMQ takes back what a quorum queue has on its way to a consumer that ends.
    assert kind == "quorum" or not any(delivery.redelivered for delivery in arrived)
    state = connection.inspect(queue)
    assert state is not None
    assert 1 == state.consumers


def test_consumers_of_a_queue_share_its_messages(bench: Bench, kind: str) -> None:
    """Each message comes to one of them, once, and none is lost."""
    publisher, one, other = bench.connect(), bench.connect(), bench.connect()
    queue = publisher.queue(kind)
    arrived: list[bytes] = []

    def take(delivery: Delivery) -> None:
        arrived.append(delivery.body)
        delivery.ack()

    one.consume(queue, 5, take)
    other.consume(queue, 5, take)
    publisher.put(queue, *numbered(300))
    eventually(lambda: len(arrived) >= 300)
    one.round_trip()
    other.round_trip()
    assert sorted(numbered(300)) == sorted(arrived)


def test_a_consumer_that_is_full_leaves_messages_to_others(bench: Bench, kind: str) -> None:
    """With prefetch 1 each of two gets one of two messages."""
    publisher = bench.connect()
    queue = publisher.queue(kind)
    publisher.put(queue, b"first", b"second")
    one = bench.connect().consume(queue, 1)
    assert b"first" == one.next().body
    other = bench.connect().consume(queue, 1)
    assert b"second" == other.next().body


def test_a_queue_can_be_looked_at(bench: Bench, connection: Connection, kind: str) -> None:
    """How many messages wait and how many consume it; what was handed over does not wait."""
    queue = connection.queue(kind)
    connection.put(queue, *numbered(5))
    state = connection.inspect(queue)
    assert QueueState(5, 0) == state
    consumer, other = bench.connect(), bench.connect()
    consumer.consume(queue, 2).take(2)
    eventually(lambda: connection.inspect(queue) == QueueState(3, 1))
    other.consume(queue, 1).next()
    eventually(lambda: connection.inspect(queue) == QueueState(2, 2))
    consumer.close()
    other.close()
    eventually(lambda: connection.inspect(queue) == QueueState(5, 0))
    assert connection.inspect(new_name("queue")) is None


def test_what_is_unacknowledged_and_who_is_connected_may_be_told(
    bench: Bench, connection: Connection, kind: str
) -> None:
    """Both or neither: a transport that cannot tell says None, and never a number."""
    queue = connection.queue(kind)
    connection.put(queue, *numbered(3))
    reader = bench.connect()
    reader.consume(queue, 2).take(2)
    state, others = connection.inspect(queue), connection.connections()
    assert state is not None
    if others is None:
        assert state.unacknowledged is None
        return
    assert 2 == state.unacknowledged
    (found,) = [each for each in others if each.name == reader.transport.name and each.queues]
    assert ((queue,), 2) == (found.queues, found.unacknowledged)
    assert found.since is not None
    assert found.since.tzinfo is not None
    assert connection.transport.name in [each.name for each in others]


def test_a_message_can_be_got_without_consuming(
    bench: Bench, connection: Connection, kind: str
) -> None:
    """In the order of the queue; it is held until it is settled, in whichever way."""
    dead = connection.queue(kind)
    queue = connection.queue(kind, dead_letter_to=dead)
    connection.put(queue, *numbered(4), headers={"n": 1})
    taken = [connection.get(queue) for _ in range(3)]
    assert numbered(3) == [each.body for each in taken if each]
    first, second, third = filter(None, taken)
    assert 1 == headers_of(first)["n"]
    assert ("", queue, queue, False) == (
        first.exchange,
        first.routing_key,
        first.queue,
        first.redelivered,
    )
    eventually(lambda: connection.inspect(queue) == QueueState(1, 0))
    bench.ack(first)
    bench.requeue(second)
    bench.reject(third)
    eventually(lambda: connection.inspect(queue) == QueueState(2, 0))
    eventually(lambda: connection.inspect(dead) == QueueState(1, 0))
    assert not first.is_live
    assert [b"1", b"3"] == sorted(bench.bodies_in(queue))
    assert connection.get(queue) is None
    assert connection.get(queue) is None


def test_what_was_got_goes_back_with_its_connection(
    bench: Bench, connection: Connection, kind: str
) -> None:
    """Nobody settled it."""
    queue = connection.queue(kind)
    connection.put(queue, b"one")
    other = bench.connect()
    assert other.get(queue) is not None
    assert connection.get(queue) is None
    other.close()
    (again,) = bench.drain(queue)
    assert b"one" == again.body
    assert again.redelivered


def test_messages_can_be_got_beside_a_consumer_beyond_its_prefetch(
    bench: Bench, connection: Connection, kind: str
) -> None:
    """What was got does not count as a consumer, whatever the broker thinks of it."""
    queue = connection.queue(kind)
    connection.put(queue, *numbered(5))
    inbox = connection.consume(queue, 1)
    assert b"0" == inbox.next().body
    got = [connection.get(queue) for _ in range(2)]  # kept, as by whoever handles them
    assert [b"1", b"2"] == [each.body for each in got if each]
    eventually(lambda: connection.inspect(queue) == QueueState(2, 1))


def test_several_may_get_from_a_queue_at_the_same_time(bench: Bench, kind: str) -> None:
    """Each message comes once; who gives up waiting gets none."""
    connection = bench.connect()
    queue = connection.queue(kind)
    connection.put(queue, *numbered(20))

    async def all_at_once() -> list[bytes]:
        quitter = asyncio.create_task(connection.transport.get(queue))
        await asyncio.sleep(0)
        quitter.cancel()
        await asyncio.wait([quitter])
        got = await asyncio.gather(*(connection.transport.get(queue) for _ in range(19)))
        return [each.body for each in got if each]

    found = bench.run(all_at_once())
    assert 19 == len(set(found))
    assert set(found) <= set(numbered(20))


def test_giving_up_to_get_a_message_harms_no_other_one(bench: Bench, kind: str) -> None:
    """Neither one that somebody waits for nor one that was got before."""
    connection = bench.connect()
    queue = connection.queue(kind)
    connection.put(queue, *numbered(3))
    held = connection.get(queue)
    assert held is not None

    async def two() -> Delivery | None:
        first, second = (asyncio.create_task(connection.transport.get(queue)) for _ in range(2))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.wait([first, second])
        assert second.cancelled()
        return first.result()

    got = bench.run(two())
    assert got is not None
    assert (b"1", True) == (got.body, held.is_live)


def test_a_message_that_is_got_for_nobody_goes_back(bench: Bench, kind: str) -> None:
    """Whenever the one who asked for it gave up."""
    connection = bench.connect()
    queue = connection.queue(kind)
    connection.put(queue, b"one")

    async def give_up_after(turns: int) -> None:
        asked = asyncio.create_task(connection.transport.get(queue))
        for _ in range(turns):
            await asyncio.sleep(0)
        asked.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            if (got := await asked) is not None:
                got.requeue()

    for turns in range(8):
        bench.run(give_up_after(turns))
        eventually(lambda: connection.inspect(queue) == QueueState(1, 0))


def test_getting_from_a_queue_that_does_not_exist_is_a_transport_error(
    bench: Bench, connection: Connection
) -> None:
    """It names the queue; consumers of the same connection go on."""
    queue = connection.queue()
    inbox = connection.consume(queue)
    with pytest.raises(exceptions.TransportError, match=r"no_such_queue"):
        connection.get("no_such_queue")
    connection.put(queue, b"one")
    assert b"one" == inbox.next().body
    assert connection.get(queue) is None


def test_consuming_a_queue_that_does_not_exist_is_a_transport_error(connection: Connection) -> None:
    """It names the queue; the transport goes on, though perhaps over a new connection."""
    connection.may_be_lost = True
    with pytest.raises(exceptions.TransportError, match=r"no_such_queue"):
        connection.consume("no_such_queue")
    queue = connection.queue()
    inbox = connection.consume(queue)
    connection.put(queue, b"one")
    assert b"one" == inbox.next().body


def test_deliveries_come_on_the_loop(bench: Bench, connection: Connection) -> None:
    """Where they may be settled at once, and messages published."""
    back = connection.queue()
    queue = connection.queue()
    is_on_loop = []

    def answer(delivery: Delivery) -> None:
        is_on_loop.append(bench.loop.is_current)
        to = publication("", back, delivery.body)
        connection.transport.publish(to, lambda error: delivery.ack())

    connection.consume(queue, 3, answer)
    inbox = connection.consume(back, 3, ack)
    connection.put(queue, *numbered(10))
    assert numbered(10) == inbox.bodies(10)
    assert {True} == set(is_on_loop)


def test_a_delivery_may_be_given_back_where_it_arrives(
    bench: Bench, connection: Connection, kind: str
) -> None:
    """As a server does that is stopping; it arrives again, which is no recursion."""
    queue = connection.queue(kind)
    times = 0

    def refuse(delivery: Delivery) -> None:
        nonlocal times
        times += 1
        if times <= 300:
            delivery.requeue()
        else:
            delivery.ack()

    inbox = connection.consume(queue, 1, refuse)
    connection.put(queue, b"one")
    assert [False] + [True] * 300 == [d.redelivered for d in inbox.take(301)]


def test_five_thousand_messages_arrive_complete_and_in_order(bench: Bench, kind: str) -> None:
    """Published while they are consumed."""
    publisher = bench.connect()
    queue = publisher.queue(kind)
    consumer = bench.connect()
    inbox = consumer.consume(queue, 100, ack)
    publisher.put(queue, *numbered(5000))
    assert numbered(5000) == inbox.bodies(5000)
    consumer.close()
    assert [] == bench.bodies_in(queue)


# -- settling ----------------------------------------------------------------------------------


def test_acknowledged_messages_do_not_come_back(bench: Bench, kind: str) -> None:
    """Those that were not, do; the order of acknowledgements does not matter."""
    connection = bench.connect()
    queue = connection.queue(kind)
    connection.put(queue, *numbered(5))
    consumer = bench.connect()
    zero, _, two, _, four = consumer.consume(queue).take(5)
    bench.ack(four, zero, two)
    consumer.close()
    assert [b"1", b"3"] == bench.bodies_in(queue)


def test_what_a_closed_connection_held_is_delivered_again_first(bench: Bench, kind: str) -> None:
    """In its old order, marked as redelivered; the rest follows, and is not marked."""
    connection = bench.connect()
    queue = connection.queue(kind)
    connection.put(queue, *numbered(5))
    consumer = bench.connect()
    consumer.consume(queue, 3).take(3)
    connection.put(queue, b"new")
    consumer.close()
    found = bench.drain(queue)
    assert [*numbered(5), b"new"] == [delivery.body for delivery in found]
    assert [True] * 3 + [False] * 3 == [delivery.redelivered for delivery in found]


def test_a_waiting_consumer_gets_what_a_closed_connection_held(bench: Bench, kind: str) -> None:
    """At once."""
    connection, other = bench.connect(), bench.connect()
    queue = connection.queue(kind)
    held = connection.consume(queue, 10)
    connection.put(queue, *numbered(3))
    held.take(3)
    inbox = other.consume(queue, 10)
    began = time.monotonic()
    connection.close()
    found = inbox.take(3)
    assert time.monotonic() - began < PROMPT
    assert [(body, True) for body in numbered(3)] == [(d.body, d.redelivered) for d in found]


@pytest.mark.parametrize(
    ("kind", "limit", "order"),
    [
        ("classic", None, [0, 1, 2, 3, 4, 5]),
        ("quorum", 10, [2, 0, 1, 3, 4, 5]),
        ("quorum", None, [3, 4, 5, 2, 0, 1]),
    ],
    ids=["classic", "quorum with a limit", "quorum"],
)
def test_where_messages_that_are_given_back_stand_in_the_queue(
    bench: Bench, kind: str, limit: int | None, order: list[int]
) -> None:
    """Classic: in their old place. Quorum: first in line with a delivery limit, last without."""
    connection = bench.connect()
    queue = connection.queue(kind, delivery_limit=limit)
    connection.put(queue, *numbered(6))
    consumer = bench.connect()
    zero, one, two = consumer.consume(queue, 3).take(3)
    consumer.cancel()
    bench.requeue(two, zero, one)
    consumer.round_trip()
    consumer.close()
    found = bench.drain(queue)
    assert [b"%d" % number for number in order] == [delivery.body for delivery in found]
    assert [number < 3 for number in order] == [delivery.redelivered for delivery in found]


def test_a_message_that_is_given_back_is_delivered_again_unchanged(
    bench: Bench, connection: Connection, kind: str
) -> None:
    """To its own consumer too. Only a quorum queue counts, in the header x-delivery-count."""
    exchange = connection.exchange()
    queue = connection.bound(exchange, "a", kind=kind)
    inbox = connection.consume(queue)
    connection.publish(exchange, "a", b"one", headers={"h": 1}, **PROPERTIES)
    for number in range(4):
        delivery = inbox.next()
        count = {"x-delivery-count": number} if kind == "quorum" and number else {}
        assert {"h": 1} | count == headers_of(delivery)
        assert (b"one", exchange, "a", queue, number > 0) == (
            delivery.body,
            delivery.exchange,
            delivery.routing_key,
            delivery.queue,
            delivery.redelivered,
        )
        assert PROPERTIES == {name: getattr(delivery.properties, name) for name in PROPERTIES}
        bench.requeue(delivery)


def test_a_message_that_is_given_back_may_go_to_another_consumer(bench: Bench, kind: str) -> None:
    """Here its own is full, and then gone."""
    connection, other = bench.connect(), bench.connect()
    queue = connection.queue(kind)
    connection.put(queue, b"one")
    delivery = connection.consume(queue).next()
    connection.cancel()
    inbox = other.consume(queue)
    bench.requeue(delivery)
    again = inbox.next()
    assert (b"one", True) == (again.body, again.redelivered)


@pytest.mark.parametrize("first", ["ack", "requeue", "reject"])
@pytest.mark.parametrize("second", ["ack", "requeue", "reject"])
def test_settling_a_second_time_does_nothing(
    bench: Bench, connection: Connection, first: str, second: str
) -> None:
    """The first one counts, and the connection goes on."""
    dead = connection.queue()
    queue = connection.queue(dead_letter_to=dead)
    connection.put(queue, b"one")
    consumer = bench.connect()
    delivery = consumer.consume(queue).next()
    consumer.cancel()
    assert delivery.is_live
    bench.call(getattr(delivery, first))
    assert not delivery.is_live
    bench.call(getattr(delivery, second))
    consumer.round_trip()
    consumer.close()
    assert ([b"one"] if first == "requeue" else []) == bench.bodies_in(queue)
    assert ([b"one"] if first == "reject" else []) == bench.bodies_in(dead)


@pytest.mark.parametrize("how", ["ack", "requeue", "reject"])
def test_settling_after_the_close_does_nothing(
    bench: Bench, connection: Connection, how: str
) -> None:
    """The message is back in its queue already."""
    dead = connection.queue()
    queue = connection.queue(dead_letter_to=dead)
    connection.put(queue, b"one")
    consumer = bench.connect()
    delivery = consumer.consume(queue).next()
    consumer.close()
    assert not delivery.is_live
    bench.call(getattr(delivery, how))
    assert ([b"one"], []) == (bench.bodies_in(queue), bench.bodies_in(dead))


# -- dead letters ------------------------------------------------------------------------------


def test_a_rejected_message_goes_to_the_dead_letter_queue(
    bench: Bench, connection: Connection, kind: str
) -> None:
    """By the default exchange, unchanged but for the headers that say what happened."""
    exchange, dead = connection.exchange(), connection.queue(kind)
    queue = connection.queue(kind, dead_letter_to=dead)
    connection.declare(Binding(exchange, queue, "a.*"))
    connection.publish(exchange, "a.b", b"bad", headers={"h": 1}, **PROPERTIES)
    bench.reject(connection.consume(queue).next())
    letter = connection.consume(dead).next()
    assert (b"bad", "", dead, dead, False) == (
        letter.body,
        letter.exchange,
        letter.routing_key,
        letter.queue,
        letter.redelivered,
    )
    assert PROPERTIES == {name: getattr(letter.properties, name) for name in PROPERTIES}
    headers = headers_of(letter)
    assert 1 == len(headers.pop("x-death"))
    assert {
        "count": 1,
        "reason": "rejected",
        "queue": queue,
        "exchange": exchange,
        "routing-keys": ["a.b"],
    } == death_of(letter)
    assert {
        "h": 1,
        "x-first-death-reason": "rejected",
        "x-first-death-queue": queue,
        "x-first-death-exchange": exchange,
    } == headers


def test_the_numbers_in_x_death_are_plain_ints(bench: Bench, connection: Connection) -> None:
    """A handler may put them into its answer, which serializers have to write."""
    dead = connection.queue()
    queue = connection.queue(dead_letter_to=dead)
    connection.put(queue, b"bad")
    bench.reject(connection.consume(queue).next())
    assert int is type(death_of(connection.consume(dead).next())["count"])


def test_a_rejected_message_is_gone_where_there_is_no_dead_letter_queue(
    bench: Bench, connection: Connection, kind: str
) -> None:
    """None was named, or the one that was named does not exist."""
    for settings in ({}, {"dead_letter_to": "no_such_queue"}):
        queue = connection.queue(kind, **settings)
        consumer = bench.connect()
        connection.put(queue, b"bad")
        bench.reject(consumer.consume(queue).next())
        consumer.round_trip()
        consumer.close()
        assert [] == bench.bodies_in(queue)


def test_dead_letters_keep_the_order_of_their_rejection(
    bench: Bench, connection: Connection, kind: str
) -> None:
    """Not that of the queue they came from."""
    dead = connection.queue(kind)
    queue = connection.queue(kind, dead_letter_to=dead)
    connection.put(queue, *numbered(4))
    zero, one, two, three = connection.consume(queue).take(4)
    letters = connection.consume(dead)
    for each in (three, zero, two, one):
        bench.reject(each)
    assert [b"3", b"0", b"2", b"1"] == letters.bodies(4)


def test_x_death_tells_each_queue_that_a_message_died_in(
    bench: Bench, connection: Connection, kind: str
) -> None:
    """The last one first; x-first-death-* go on telling the first."""
    third = connection.queue(kind)
    second = connection.queue(kind, dead_letter_to=third)
    first = connection.queue(kind, dead_letter_to=second)
    connection.put(first, b"bad")
    for queue in (first, second):
        bench.reject(connection.consume(queue).next())
    letter = connection.consume(third).next()
    deaths = [death_of(letter, number) for number in (0, 1)]
    assert [(second, "", [second]), (first, "", [first])] == [
        (death["queue"], death["exchange"], death["routing-keys"]) for death in deaths
    ]
    assert first == headers_of(letter)["x-first-death-queue"]


def test_x_death_counts_how_often_a_message_died_in_a_queue(
    bench: Bench, connection: Connection, kind: str
) -> None:
    """Also when it is published again with its headers, as a retry is."""
    work, delay = new_name("work"), new_name("delay")
    connection.declare(Queue(work, kind), Queue(delay, kind, work, None, 20))
    inbox = connection.consume(work)
    connection.put(work, b"again")
    delivery = inbox.next()
    for number in range(1, 4):
        connection.put(delay, b"again", headers=headers_of(delivery))
        bench.ack(delivery)
        delivery = inbox.next()
        assert (number, delay, "expired") == (
            death_of(delivery)["count"],
            death_of(delivery)["queue"],
            death_of(delivery)["reason"],
        )
        assert 1 == len(headers_of(delivery)["x-death"])


def test_a_dead_letter_cycle_without_a_rejection_is_ended(
    bench: Bench, connection: Connection, kind: str
) -> None:
    """What would run in circles by expiry alone is dropped when it comes round."""
    first, second, alone = (new_name("queue") for _ in range(3))
    connection.declare(
        Queue(first, kind, second, None, 50),
        Queue(second, kind, first, None, 50),
        Queue(alone, kind, alone, None, 50),
    )
    connection.put(first, b"round")
    connection.put(alone, b"round")
    time.sleep(0.8)  # eight rounds, if it went on
    inboxes = [connection.consume(queue) for queue in (first, second, alone)]
    connection.round_trip()
    assert [True] * 3 == [inbox.is_empty for inbox in inboxes]


def test_a_dead_letter_cycle_goes_on_as_long_as_somebody_rejects(
    bench: Bench, connection: Connection, kind: str
) -> None:
    """A retry by rejection: work, then a delay, then work again, with a count of each."""
    work, delay = new_name("work"), new_name("delay")
    connection.declare(Queue(work, kind, delay), Queue(delay, kind, work, None, 20))
    inbox = connection.consume(work)
    connection.put(work, b"round")
    for number in range(1, 4):
        bench.reject(inbox.next())
        delivery = inbox.next()
        assert [("expired", delay, number), ("rejected", work, number)] == [
            (death["reason"], death["queue"], death["count"])
            for death in (death_of(delivery, 0), death_of(delivery, 1))
        ]
        bench.requeue(delivery)


# -- expiry ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ttl", "expiration"), [(200, None), (None, 200), (200, 60_000), (60_000, 200)]
)
def test_a_message_that_waits_too_long_goes_to_the_dead_letter_queue(
    connection: Connection, kind: str, ttl: int | None, expiration: int | None
) -> None:
    """Though nobody consumes; the shorter of the queue's and its own time counts, not less."""
    dead = connection.queue(kind)
    queue = connection.queue(kind, dead_letter_to=dead, message_ttl=ttl)
    inbox = connection.consume(dead)
    began = time.monotonic()
    connection.put(queue, b"old", expiration=expiration)
    letter = inbox.next()
    assert 0.2 <= time.monotonic() - began < PROMPT
    expected: dict[str, Any] = {
        "count": 1,
        "reason": "expired",
        "queue": queue,
        "exchange": "",
        "routing-keys": [queue],
    }
    if expiration is not None:
        expected["original-expiration"] = str(expiration)
    assert expected == death_of(letter)
    assert "expired" == headers_of(letter)["x-first-death-reason"]


def test_a_message_that_expired_is_not_delivered(
    bench: Bench, connection: Connection, kind: str
) -> None:
    """Without a dead-letter queue it is gone; those behind it are not."""
    queue = connection.queue(kind)
    connection.put(queue, b"old", expiration=50)
    connection.put(queue, b"young", expiration=60_000)
    time.sleep(0.1)
    assert [b"young"] == bench.bodies_in(queue)


def test_a_message_in_time_is_delivered_and_expires_no_more(
    bench: Bench, connection: Connection, kind: str
) -> None:
    """Whoever has it may take its time; given back too late, it expires at once."""
    dead = connection.queue(kind)
    queue = connection.queue(kind, dead_letter_to=dead)
    inbox, letters = connection.consume(queue), connection.consume(dead)
    connection.put(queue, b"kept", b"given back", expiration=300)
    kept, given_back = inbox.take(2)
    time.sleep(0.4)
    assert letters.is_empty
    bench.requeue(given_back)
    letter = letters.next()
    assert (b"given back", "expired") == (letter.body, death_of(letter)["reason"])
    bench.ack(kept)
    connection.round_trip()
    assert inbox.is_empty
    assert letters.is_empty


def test_a_message_expires_when_it_is_first_in_line(
    bench: Bench, connection: Connection, kind: str
) -> None:
    """Until then it waits behind those that last longer, and overtakes none."""
    dead = connection.queue(kind)
    queue = connection.queue(kind, dead_letter_to=dead)
    letters = connection.consume(dead)
    began = time.monotonic()
    connection.put(queue, b"long", expiration=400)
    connection.put(queue, b"short", expiration=50)
    assert [b"long", b"short"] == letters.bodies(2)
    assert 0.4 <= time.monotonic() - began < PROMPT


def test_a_dead_letter_does_not_expire(bench: Bench, connection: Connection, kind: str) -> None:
    """Its expiration stayed behind; what it was stands in x-death."""
    dead = connection.queue(kind)
    queue = connection.queue(kind, dead_letter_to=dead)
    inbox = connection.consume(queue)
    connection.put(queue, b"bad", expiration=200)
    bench.reject(inbox.next())
    time.sleep(0.3)
    (letter,) = bench.drain(dead)
    assert ("rejected", "200") == (
        death_of(letter)["reason"],
        death_of(letter)["original-expiration"],
    )


def test_a_delay_queue_hands_on_in_order_and_never_early(
    bench: Bench, connection: Connection, kind: str
) -> None:
    """message_ttl, dead_letter_to and no consumers: this is how retries wait."""
    work = connection.queue(kind)
    delay = connection.queue(kind, dead_letter_to=work, message_ttl=200)
    inbox = connection.consume(work, act=ack)
    sent = {}
    for body in numbered(5):
        sent[body] = time.monotonic()
        connection.put(delay, body)
        time.sleep(0.02)
    for body in numbered(5):
        delivery = inbox.next()
        assert body == delivery.body
        assert time.monotonic() - sent[body] >= 0.2
    assert time.monotonic() - sent[b"4"] < PROMPT


def test_delays_of_different_lengths_do_not_wait_for_each_other(connection: Connection) -> None:
    """A queue for each length; the short one is first, though it was sent last."""
    work = connection.queue()
    long, short = (connection.queue(dead_letter_to=work, message_ttl=t) for t in (1000, 50))
    inbox = connection.consume(work)
    connection.put(long, b"long")
    connection.put(short, b"short")
    assert [b"short", b"long"] == inbox.bodies(2)


# -- the delivery limit ------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "requeue"])
def test_a_quorum_queue_delivers_once_more_than_its_limit(bench: Bench, how: str) -> None:
    """Then the message is a dead letter with the reason delivery_limit."""
    connection = bench.connect()
    dead = connection.queue("quorum")
    queue = connection.queue("quorum", dead_letter_to=dead, delivery_limit=2)
    connection.put(queue, b"poison", headers={"h": 1})
    for number in range(3):
        consumer = bench.connect()
        delivery = consumer.consume(queue, 1).next()
        assert b"poison" == delivery.body
        assert (number > 0, number or None) == (
            delivery.redelivered,
            headers_of(delivery).get("x-delivery-count"),
        )
        if how == "requeue":
            consumer.cancel()
            bench.requeue(delivery)
        consumer.close()
    letter = connection.consume(dead).next()
    assert {
        "count": 1,
        "reason": "delivery_limit",
        "queue": queue,
        "exchange": "",
        "routing-keys": [queue],
    } == death_of(letter)
    assert {"h", "x-death", "x-first-death-queue", "x-first-death-reason"} < set(headers_of(letter))
    assert "x-delivery-count" not in headers_of(letter)
    assert [] == bench.bodies_in(queue)


def test_a_message_over_the_limit_is_gone_where_there_is_no_dead_letter_queue(bench: Bench) -> None:
    """Those behind it are delivered."""
    connection = bench.connect()
    queue = connection.queue("quorum", delivery_limit=1)
    connection.put(queue, b"poison", b"fine")
    inbox = connection.consume(queue, 1)
    for _ in range(2):
        bench.requeue(inbox.next())
    assert b"fine" == inbox.next().body


def test_a_queue_without_a_limit_delivers_as_often_as_it_takes(
    bench: Bench, connection: Connection, kind: str
) -> None:
    """To processes that die as well as to those that give back."""
    queue = connection.queue(kind)
    connection.put(queue, b"often")
    for number in range(5):
        consumer = bench.connect()
        inbox = consumer.consume(queue, 1)
        delivery = inbox.next()
        assert (number > 0) == delivery.redelivered
        bench.requeue(delivery)
        inbox.next()
        consumer.close()
    assert [b"often"] == bench.bodies_in(queue)


# -- reply queues ------------------------------------------------------------------------------


def test_everybody_can_publish_to_a_reply_queue(bench: Bench, connection: Connection) -> None:
    """By the default exchange and its name; only its own connection gets the messages."""
    asker, other = bench.connect(), bench.connect()
    name, inbox = asker.reply_queue()
    _, others = other.reply_queue()
    for each in (connection, asker, other):
        each.publish("", name, b"answer", is_mandatory=True, correlation_id="c1")
    for delivery in inbox.take(3):
        assert (b"answer", "", name, name, False) == (
            delivery.body,
            delivery.exchange,
            delivery.routing_key,
            delivery.queue,
            delivery.redelivered,
        )
        assert "c1" == delivery.properties.correlation_id
    other.round_trip()
    assert others.is_empty


def test_every_reply_queue_has_a_name_of_its_own(bench: Bench) -> None:
    """Also two of one connection, which get only what is theirs."""
    one, other = bench.connect(), bench.connect()
    found = [one.reply_queue(), one.reply_queue(), other.reply_queue()]
    assert 3 == len({name for name, _ in found})
    for number, (name, inbox) in enumerate(found):
        other.publish("", name, b"%d" % number, is_mandatory=True)
        assert b"%d" % number == inbox.next().body


def test_answers_need_no_acknowledgement(bench: Bench, connection: Connection) -> None:
    """Any number of them arrives, in order."""
    name, inbox = bench.connect().reply_queue()
    connection.put(name, *numbered(2000))
    assert numbered(2000) == inbox.bodies(2000)


def test_others_cannot_consume_a_reply_queue(bench: Bench, connection: Connection) -> None:
    """They get a TransportError, and its owner gets its answers."""
    name, inbox = bench.connect().reply_queue()
    connection.may_be_lost = True
    with pytest.raises(exceptions.TransportError):
        connection.consume(name)
    connection.publish("", name, b"answer", is_mandatory=True)
    assert b"answer" == inbox.next().body


def test_a_reply_queue_ends_with_its_connection(bench: Bench, connection: Connection) -> None:
    """What is sent to it then finds nobody."""
    asker = bench.connect()
    name, _ = asker.reply_queue()
    connection.publish("", name, is_mandatory=True)
    asker.close()
    eventually(lambda: is_gone(connection, name), PROMPT)
    connection.publish("", name)


def is_gone(connection: Connection, queue: str) -> bool:
    error = connection.send("", queue, is_mandatory=True).wait()
    return isinstance(error, exceptions.ServiceUnavailable)


# -- cancel and close --------------------------------------------------------------------------


def test_after_cancel_nothing_more_is_delivered(bench: Bench, kind: str) -> None:
    """What was may still be settled; the rest stays in the queue, and so does what comes."""
    connection = bench.connect()
    queue = connection.queue(kind)
    connection.put(queue, *numbered(6))
    consumer = bench.connect()
    inbox = consumer.consume(queue, 3)
    zero, one, two = inbox.take(3)
    consumer.cancel()
    connection.put(queue, b"late")
    assert [True] * 3 == [each.is_live for each in (zero, one, two)]
    bench.ack(zero, two)
    consumer.round_trip()
    assert inbox.is_empty
    consumer.close()
    found = [(delivery.body, delivery.redelivered) for delivery in bench.drain(queue)]
    assert (b"1", True) == found[0]
    assert [(body, False) for body in (b"3", b"4", b"5", b"late")] == found[1:]


def test_after_cancel_answers_go_on_to_arrive(bench: Bench, connection: Connection) -> None:
    """Handlers that still run may wait for them; cancel stops all queues of the connection."""
    consumer = bench.connect()
    queues = [connection.queue() for _ in range(2)]
    inboxes = [consumer.consume(queue) for queue in queues]
    name, answers = consumer.reply_queue()
    consumer.cancel()
    for queue in queues:
        connection.put(queue, b"late")
    connection.publish("", name, b"answer", is_mandatory=True)
    assert b"answer" == answers.next().body
    consumer.publish("", queues[0], b"published")
    assert [True, True] == [inbox.is_empty for inbox in inboxes]


def test_cancel_without_consumers_does_nothing(bench: Bench) -> None:
    """On a connection that consumes nothing, or that is cancelled already."""
    connection = bench.connect()
    connection.cancel()
    connection.consume(connection.queue())
    connection.cancel()
    connection.cancel()


def test_close_sends_acknowledgements_that_were_written_before(bench: Bench, kind: str) -> None:
    """Nothing that was settled comes back."""
    connection = bench.connect()
    queue = connection.queue(kind)
    connection.put(queue, *numbered(200))
    consumer = bench.connect()
    deliveries = consumer.consume(queue).take(200)

    async def ack_and_close() -> None:
        for delivery in deliveries[:199]:
            delivery.ack()
        await consumer.transport.close()

    bench.run(ack_and_close())
    found = bench.drain(queue)
    assert [(b"199", True)] == [(delivery.body, delivery.redelivered) for delivery in found]


def test_a_publication_that_meets_the_close_is_confirmed_or_fails(bench: Bench) -> None:
    """Not both and not neither; what was confirmed is there."""
    connection = bench.connect()
    queue = connection.queue()
    sent = [connection.send("", queue, body) for body in numbered(500)]
    connection.close()
    errors = [outcome.wait() for outcome in sent]
    assert {type(None), exceptions.ConnectionFailed} >= set(map(type, errors))
    confirmed = {body for body, error in zip(numbered(500), errors, strict=True) if error is None}
    assert confirmed <= set(bench.bodies_in(queue))


def test_publishing_after_the_close_is_connection_failed(bench: Bench) -> None:
    """At once, and the message is not sent."""
    connection = bench.connect()
    queue = connection.queue()
    connection.close()
    with pytest.raises(exceptions.ConnectionFailed, match="closed"):
        connection.publish("", queue, b"late")
    assert [] == bench.bodies_in(queue)


def test_after_the_close_no_delivery_arrives(bench: Bench, connection: Connection) -> None:
    """Not even one that was on its way."""
    queue = connection.queue()
    consumer = bench.connect()
    inbox = consumer.consume(queue, 10)
    sent = [connection.send("", queue, body) for body in numbered(100)]
    consumer.close()
    taken = len(inbox.all)
    assert [None] * 100 == [outcome.wait() for outcome in sent]
    connection.round_trip()
    assert taken == len(inbox.all)
    assert numbered(100) == bench.bodies_in(queue)


def test_close_never_raises(bench: Bench) -> None:
    """On a connection that was never opened, that is closed already, or that holds deliveries."""
    bench.connection().close()
    connection = bench.connect()
    queue = connection.queue()
    connection.put(queue, b"held")
    connection.consume(queue).next()
    connection.close()
    connection.close()


def test_closing_one_connection_leaves_others_alone(bench: Bench) -> None:
    """Two connections of one program are two, though they share a loop."""
    one, other = bench.connect(), bench.connect()
    queue = one.queue()
    inbox = other.consume(queue)
    one.close()
    other.put(queue, b"one")
    bench.ack(inbox.next())
    other.close()
    assert [] == bench.bodies_in(queue)


# -- connecting --------------------------------------------------------------------------------


def test_open_where_nothing_is_ends_with_connection_failed(nowhere_url: str) -> None:
    """A sentence; after that it can be closed."""
    with Bench(nowhere_url) as bench:
        connection = bench.connection()
        with pytest.raises(exceptions.ConnectionFailed) as caught:
            connection.open(attempts=2)
        assert len(str(caught.value).split()) > 4
        connection.close()


def test_opening_for_ever_can_be_given_up(nowhere_url: str) -> None:
    """As by an operator who stops a server that waits for its broker."""
    with Bench(nowhere_url) as bench:
        connection = bench.connection()
        opening = bench.loop.start(connection.transport.open(-1))
        bench.run(asyncio.sleep(0.3))
        opening.cancel()
        connection.close()


def test_a_url_that_can_never_work_is_a_config_error(wrong_url: str, place: Any) -> None:
    """Before anything connects; it names the url."""
    with pytest.raises(exceptions.ConfigError, match=re.escape(wrong_url)):
        transport_class(wrong_url).check_url(wrong_url)


def test_the_url_of_a_place_is_in_order(bench: Bench) -> None:
    """Nothing to complain about."""
    bench.transport_class.check_url(bench.url)


# -- several processes -------------------------------------------------------------------------


def test_messages_outlive_all_who_knew_of_them(shared_url: str, kind: str) -> None:
    """Exchanges, queues, bindings and messages: all is there when everybody had gone."""
    with Bench(shared_url) as bench:
        connection = bench.connect()
        exchange, dead = connection.exchange(), connection.queue(kind)
        queue = connection.queue(kind, dead_letter_to=dead)
        connection.declare(Binding(exchange, queue, "a.*"))
        connection.publish(exchange, "a.b", b"one", **PROPERTIES)
        connection.put(queue, *numbered(10))
        connection.put(queue, b"held")
    with Bench(shared_url) as bench:
        connection = bench.connect()
        connection.publish(exchange, "a.c", b"last", is_mandatory=True)
        inbox = connection.consume(queue)
        first = inbox.next()
        assert PROPERTIES == {name: getattr(first.properties, name) for name in PROPERTIES}
        assert [*numbered(10), b"held", b"last"] == inbox.bodies(12)
        bench.reject(first)
        assert b"one" == connection.consume(dead).next().body
        with pytest.raises(exceptions.TopologyConflict):
            connection.declare(Queue(queue, kind))


def test_what_a_killed_process_held_is_delivered_again(bench: Bench, hold: Hold, kind: str) -> None:
    """By kill -9; soon, in order, and marked; what it had not been given is not marked."""
    connection = bench.connect()
    queue = connection.queue(kind)
    connection.put(queue, *numbered(5))
    program = hold("hold", queue, "3")
    for number in range(3):
        program.line(f"holds {number} redelivered=False")
    inbox = connection.consume(queue, 10)
    assert [b"3", b"4"] == inbox.bodies(2)
    began = time.monotonic()
    assert -signal.SIGKILL == program.end(signal.SIGKILL)
    found = [(delivery.body, delivery.redelivered) for delivery in inbox.take(3)]
    assert [(body, True) for body in numbered(3)] == found
    assert time.monotonic() - began < PROMPT


def test_a_message_that_kills_its_process_is_stopped_by_the_delivery_limit(
    bench: Bench, connection: Connection, hold: Hold
) -> None:
    """With limit 1 it kills two."""
    dead = connection.queue("quorum")
    queue = connection.queue("quorum", dead_letter_to=dead, delivery_limit=1)
    letters = connection.consume(dead)
    connection.put(queue, b"poison")
    for is_again in (False, True):
        program = hold("hold", queue, "1")
        program.line(f"holds poison redelivered={is_again}")
        assert letters.is_empty
        program.end(signal.SIGKILL)
    letter = letters.next()
    assert (b"poison", "delivery_limit") == (letter.body, death_of(letter)["reason"])


def test_what_a_killed_publisher_was_told_is_confirmed_is_there(bench: Bench, hold: Hold) -> None:
    """All of it, in order, and each message once."""
    queue = bench.connect().queue()
    program = hold("publish", queue)
    program.line("confirmed 300")
    program.end(signal.SIGKILL)
    confirmed = {int(line.split()[1]) for line in program.output + rest_of(program)}
    found = [int(body) for body in bench.bodies_in(queue)]
    assert list(range(len(found))) == found
    assert confirmed <= set(found)


def rest_of(program: Program) -> list[str]:
    """Return the whole lines that an ended program printed and nobody has read yet."""
    program._reader.join(DEADLINE)
    lines = []
    while (line := program._lines.get()) is not None:
        lines.append(line)
    return [line for line in lines if re.fullmatch(r"confirmed \d+", line)][:-1]


def test_messages_of_another_process_arrive_promptly(bench: Bench, hold: Hold) -> None:
    """There and back again, one at a time, in far less than a second."""
    connection = bench.connect()
    queue = connection.queue()
    name, answers = connection.reply_queue()
    hold("answer", queue).line("ready")
    times = []
    for body in numbered(30):
        began = time.monotonic()
        connection.publish("", queue, body, reply_to=name)
        assert body == answers.next().body
        times.append(time.monotonic() - began)
        # A moment of rest, so that nobody is awake by chance.
        time.sleep(0.02)
    assert statistics.median(times) < 0.25


def test_processes_share_the_messages_of_a_queue(bench: Bench, hold: Hold) -> None:
    """Three processes answer; each message once."""
    connection = bench.connect()
    queue = connection.queue()
    name, answers = connection.reply_queue()
    for program in [hold("answer", queue) for _ in range(2)]:
        program.line("ready")
    connection.put(queue, *numbered(500), reply_to=name)
    assert sorted(numbered(500)) == sorted(answers.bodies(500))
    connection.round_trip()
    assert answers.is_empty


def test_the_reply_queue_of_a_killed_process_goes_with_it(
    connection: Connection, hold: Hold
) -> None:
    """Within seconds, whoever sends an answer is told that nobody is there."""
    program = hold("reply")
    name = program.line("reply queue").split()[-1]
    connection.publish("", name, is_mandatory=True)
    program.end(signal.SIGKILL)
    eventually(lambda: is_gone(connection, name), PROMPT)


def test_a_forked_child_may_have_a_connection_of_its_own(bench: Bench, hold: Hold) -> None:
    """And its parent goes on with the one that it had."""
    queue = bench.connect().queue()
    program = hold("fork", queue)
    program.line("the child ended with 0")
    program.line("the parent is done")
    assert [b"parent", b"child", b"parent again"] == bench.bodies_in(queue)


# -- losing the connection ---------------------------------------------------------------------


def test_after_a_loss_consuming_goes_on(bench: Bench, cut: Callable[[], None], kind: str) -> None:
    """What was not settled comes again; settling it by the old delivery does nothing."""
    connection = bench.connect()
    connection.may_be_lost = True
    queue = connection.queue(kind)
    inbox = connection.consume(queue, 2)
    connection.put(queue, *numbered(3))
    old = inbox.take(2)
    expect_loss(bench)
    cut()
    assert connection.lost.get(timeout=DEADLINE)
    again = inbox.take(2)
    assert [(b"0", True), (b"1", True)] == [(d.body, d.redelivered) for d in again]
    assert [False, False] == [delivery.is_live for delivery in old]
    bench.ack(*old)
    bench.requeue(*old)
    bench.reject(*old)
    connection.round_trip()
    assert inbox.is_empty
    bench.ack(*again)
    assert b"2" == inbox.next().body
    assert connection.lost.empty()


def test_after_a_loss_a_changed_prefetch_holds(bench: Bench, cut: Callable[[], None]) -> None:
    """For the consumer of the next connection, which ``cancel`` ends."""
    connection = bench.connect()
    connection.may_be_lost = True
    queue = connection.queue()
    connection.put(queue, *numbered(10))
    inbox = connection.consume(queue, 5)
    inbox.take(5)
    connection.change_prefetch(queue, 2)
    expect_loss(bench)
    cut()
    assert connection.lost.get(timeout=DEADLINE)
    connection.round_trip()
    inbox.drained()
    bench.ack(*(each for each in inbox.all if each.is_live))
    bench.ack(*inbox.take(2))
    inbox.take(2)
    connection.round_trip()
    assert inbox.is_empty
    connection.cancel()
    state = connection.inspect(queue)
    assert state is not None
    assert 0 == state.consumers


def test_publications_that_meet_a_loss_are_sent_again(
    bench: Bench, cut: Callable[[], None]
) -> None:
    """With the same message id: each is confirmed, and there once or twice."""
    connection = bench.connect()
    queue = connection.queue()
    expect_loss(bench)
    cutting = threading.Thread(target=cut)
    cutting.start()
    sent = []
    identifiers = [new_id() for _ in range(3000)]
    for identifier in identifiers:
        sent.append(connection.send("", queue, message_id=identifier))
        if not cutting.is_alive():
            break
        time.sleep(0.001)
    cutting.join()
    assert {None} == {outcome.wait() for outcome in sent}
    connection.round_trip()
    found = {delivery.properties.message_id for delivery in bench.drain(queue)}
    assert set(identifiers[: len(sent)]) == found


def test_a_reply_queue_does_not_outlive_a_loss(bench: Bench, cut: Callable[[], None]) -> None:
    """Its owner asks for a new one, with a new name."""
    connection = bench.connect()
    name, _ = connection.reply_queue()
    expect_loss(bench)
    cut()
    assert connection.lost.get(timeout=DEADLINE)
    other, inbox = connection.reply_queue()
    assert name != other
    eventually(lambda: is_gone(connection, name), PROMPT)
    connection.publish("", other, b"answer", is_mandatory=True)
    assert b"answer" == inbox.next().body


def test_nothing_can_be_published_without_a_connection(
    bench: Bench, cut: Callable[[], None]
) -> None:
    """A transport says so, from the loss to the next connection."""
    transport, told = bench.connect().transport, SimpleQueue[bool]()
    transport.events = Events(lambda reason: told.put(transport.can_publish), print)
    expect_loss(bench)
    cut()
    assert told.get(timeout=DEADLINE) is False
    eventually(lambda: bench.call(lambda: transport.can_publish))


def test_a_transport_is_ready_between_open_and_close(bench: Bench) -> None:
    """Not before and not after; any thread may ask."""
    connection = bench.connection()
    told = [connection.transport.is_ready]
    connection.open()
    told.append(connection.transport.is_ready)
    connection.close()
    told.append(connection.transport.is_ready)
    assert [False, True, False] == told


def test_a_lost_transport_is_ready_again_when_it_consumes_again(
    bench: Bench, connection: Connection, cut: Callable[[], None]
) -> None:
    """It is not from the loss on; when it is again, its consumer is there."""
    consumer, told = bench.connect(), SimpleQueue[bool]()
    queue = connection.queue()
    consumer.consume(queue)
    transport = consumer.transport
    transport.events = Events(lambda reason: told.put(transport.is_ready), print)
    expect_loss(bench)
    cut()
    assert told.get(timeout=DEADLINE) is False
    assert transport.trouble
    eventually(lambda: transport.is_ready)
    assert "" == transport.trouble
    state = bench.connect().inspect(queue)
    assert state is not None
    assert 1 == state.consumers


def expect_loss(bench: Bench) -> None:
    for connection in bench.connections:
        connection.may_be_lost = True
