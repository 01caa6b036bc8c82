# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Queues that get another type or other arguments while publishers go on, and whatever is killed.

A ledger of what the broker confirmed is compared with what is in the queue in the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest

from tavrida import exceptions, migration
from tavrida.copies import restore
from tavrida.migration import ASIDE, BACK, CREATE, DECLARE, KEEP, MOVE, stand_in
from tavrida.plugins.transports import Publication, QueueState
from tavrida.testing.faults import Faults, lose_connection
from tavrida.topology import Binding, Exchange, Queue, Topology
from tests.processes import Program
from tests.transports.bench import Bench, Connection, numbered
from tests.waiting import eventually

ROOT = Path(__file__).parents[2]
MIGRATOR = Path(__file__).with_name("migrator.py")

#: Seconds; what the tests do on one machine is quicker than what a cluster may do.
SETTLE = 0.1

OTHER = {"classic": "quorum", "quorum": "classic"}


def needed(kind: str) -> Topology:
    """What one service needs: a queue, its dead letters, and one delay of its retries."""
    limits = (20, 1_000_000) if kind == "quorum" else (None, None)
    return Topology(
        (Exchange("shop"), Exchange("news")),
        (
            Queue("shop.dead", kind, delivery_limit=limits[1]),
            Queue("shop", kind, "shop.dead", limits[0]),
            Queue("shop.retry.60000", kind, "shop", message_ttl=60_000),
        ),
        (Binding("news", "shop", "paid.*"), Binding("shop", "shop", "shop.*")),
    )


class Publisher:
    """Publishes about a hundred batches a second; keeps what was confirmed."""

    def __init__(self, bench: Bench, batch: int = 1) -> None:
        self._batch = batch
        self._connection = bench.connect()
        self._is_ending = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.confirmed: list[bytes] = []
        self.failures: list[Exception] = []

    def _run(self) -> None:
        number = 0
        while not self._is_ending.wait(0.01):
            bodies = numbered(self._batch, number)
            number += self._batch
            sent = [
                self._connection.send("shop", "shop.buy", b"live %s" % body, is_mandatory=True)
                for body in bodies
            ]
            for body, outcome in zip(bodies, sent, strict=True):
                error = outcome.wait()
                if error is None:
                    self.confirmed.append(b"live %s" % body)
                else:
                    self.failures.append(error)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._is_ending.set()
        self._thread.join()


@pytest.fixture
def bench(url: str) -> Iterator[Bench]:
    """Connections to the test's place."""
    with Bench(url) as bench:
        yield bench


@pytest.fixture
def connection(bench: Bench) -> Connection:
    """An open connection."""
    return bench.connect()


@pytest.fixture(params=["classic", "quorum"])
def kind(request: pytest.FixtureRequest) -> str:
    """Each type of queue to begin with."""
    return str(request.param)


class Crash(Exception):
    """Raised where a migration dies."""


def declare(connection: Connection, topology: Topology) -> None:
    connection.declare(*topology.exchanges, *topology.queues, *topology.bindings)


def plan(connection: Connection, topology: Topology) -> dict[str, str]:
    """Return the planned action of each queue and exchange, and of its bindings together."""
    items = connection.bench.run(migration.plan(connection.transport, topology))
    return {
        getattr(item.thing, "name", "bindings"): item.action
        for item in items
        if not isinstance(item.thing, Exchange)
    }


def apply(
    bench: Bench, topology: Topology, report: Callable[[str], None] = lambda text: None
) -> list[str]:
    """Apply over a new connection; return what was reported."""
    told: list[str] = []

    def tell(text: str) -> None:
        told.append(text)
        report(text)

    connection = bench.connect()
    try:
        bench.run(migration.apply(connection.transport, topology, tell, settle=SETTLE))
    finally:
        connection.close()
    return told


def check_changed(connection: Connection, topology: Topology) -> None:
    """Everything is as it should be, and nothing is left over."""
    found = plan(connection, topology)
    assert {KEEP, DECLARE} == set(found.values()), found
    for queue in topology.queues:
        assert connection.inspect(stand_in(queue.name)) is None


def check_ledger(bench: Bench, confirmed: list[bytes], *, doubles: int) -> list[bytes]:
    """Nothing that was confirmed is missing; return what is in the queue, in its order."""
    found = bench.bodies_in("shop")
    lost = set(confirmed) - set(found)
    assert set() == lost, f"{len(lost)} of {len(confirmed)} are lost"
    extra = len(found) - len(set(found))
    assert extra <= doubles, f"{extra} of {len(confirmed)} are there twice"
    return found


def test_a_plan_says_what_is_missing_what_is_the_same_and_what_differs(
    connection: Connection, kind: str
) -> None:
    """And which queues move aside because they dead-letter into one that differs."""
    old, new = needed(kind), needed(OTHER[kind])
    assert {CREATE} == set(plan(connection, old).values())
    assert connection.inspect("shop") is None
    declare(connection, old)
    assert {"bindings": DECLARE} | dict.fromkeys(
        ["shop", "shop.dead", "shop.retry.60000"], KEEP
    ) == plan(connection, old)
    assert {MOVE, DECLARE} == set(plan(connection, new).values())
    dead = dataclasses.replace(
        old, queues=(dataclasses.replace(old.queues[0], message_ttl=1000), *old.queues[1:])
    )
    assert {
        "bindings": DECLARE,
        "shop": ASIDE,
        "shop.dead": MOVE,
        "shop.retry.60000": ASIDE,
    } == plan(connection, dead)


def test_nothing_is_lost_while_a_queue_changes_its_type(
    bench: Bench, connection: Connection, kind: str
) -> None:
    """Under load: what waited stays in order, in each of the queues; what comes is there too."""
    old, new = needed(kind), needed(OTHER[kind])
    declare(connection, old)
    connection.put("shop.dead", *numbered(30))
    connection.put("shop.retry.60000", *numbered(30))
    backlog = [b"old %s" % body for body in numbered(1000)]
    connection.put("shop", *backlog)
    with Publisher(bench, 10) as publisher:
        eventually(lambda: len(publisher.confirmed) > 100)
        apply(bench, new)
        count = len(publisher.confirmed)
        eventually(lambda: len(publisher.confirmed) > count + 100)
    assert [] == publisher.failures
    check_changed(connection, new)
    found = check_ledger(bench, [*backlog, *publisher.confirmed], doubles=100)
    assert backlog == [body for body in found if body.startswith(b"old")]
    assert numbered(30) == bench.bodies_in("shop.dead")
    assert QueueState(30, 0) == connection.inspect("shop.retry.60000")
    bench.bodies_in("shop.retry.60000")


def test_a_message_is_what_it_was(bench: Bench, connection: Connection) -> None:
    """Identifiers, properties, headers, and where it was published to; whatever way it came."""
    old, new = needed("classic"), needed("quorum")
    declare(connection, old)
    properties = {
        "content_type": "application/json",
        "correlation_id": "chain",
        "reply_to": "asker",
        "message_id": "id 1",
        "type": "request",
        "app_id": "test.source",
        "timestamp": 1_700_000_000,
    }
    headers = {"destination": "shop.buy", "deadline": 2**40, "own": "ü", "nothing": None}
    connection.publish("shop", "shop.buy", b"1", headers=headers, expiration=60_000, **properties)
    connection.publish("news", "paid.yes", b"2", headers={"retry_routing_key": 5})
    connection.publish("", "shop", b"3")
    retried = {"retry_attempt": 2, "retry_exchange": "else", "retry_routing_key": "shop.other"}
    connection.publish("", "shop", b"4", headers=retried)
    apply(bench, new)
    first, second, third, fourth = bench.drain("shop")
    assert headers == {
        name: value
        for name, value in (first.properties.headers or {}).items()
        if not name.startswith("retry_")
    }
    assert properties == {name: getattr(first.properties, name) for name in properties}
    assert "60000" == getattr(first.properties, "expiration")  # noqa: B009 - not of the protocol
    assert [b"1", b"2", b"3", b"4"] == [first.body, second.body, third.body, fourth.body]
    assert not (third.properties.headers or {})
    for delivery, exchange, key in [
        (first, "shop", "shop.buy"),
        (second, "news", "paid.yes"),
        (third, "", "shop"),
        (fourth, "else", "shop.other"),
    ]:
        attempt = restore(delivery).attempt
        assert (exchange, key) == (delivery.exchange, delivery.routing_key)
        assert attempt == (2 if delivery is fourth else 1)


def test_only_the_queues_that_differ_are_touched(bench: Bench, connection: Connection) -> None:
    """Here by a limit and a time to live; each keeps its messages."""
    old = needed("quorum")
    dead, queue, delays = old.queues
    declare(connection, old)
    for each in old.queues:
        connection.put(each.name, *numbered(3))
    changed = (
        dead,
        dataclasses.replace(queue, delivery_limit=21),
        dataclasses.replace(delays, message_ttl=90_000),
    )
    new = dataclasses.replace(old, queues=changed)
    assert {"shop.dead": KEEP, "shop": MOVE, "shop.retry.60000": MOVE, "bindings": DECLARE} == plan(
        connection, new
    )
    told = apply(bench, new)
    assert not [text for text in told if "shop.dead" in text]
    check_changed(connection, new)
    for each in new.queues:
        assert QueueState(3, 0) == connection.inspect(each.name)
        assert numbered(3) == bench.bodies_in(each.name)


def test_dead_letters_keep_why_they_died(bench: Bench, connection: Connection) -> None:
    """Also those that the broker itself moved there."""
    old, new = needed("quorum"), needed("classic")
    declare(connection, old)
    connection.publish("shop", "shop.buy", b"1", headers={"own": 1})
    bench.run(reject_one(connection))
    eventually(lambda: connection.inspect("shop.dead") == QueueState(1, 0))
    apply(bench, new)
    (letter,) = bench.drain("shop.dead")
    headers = dict(letter.properties.headers or {})
    (death,) = headers["x-death"]
    assert ("rejected", "shop", "shop", ["shop.buy"], 1) == (
        death["reason"],
        death["queue"],
        death["exchange"],
        death["routing-keys"],
        headers["own"],
    )
    assert ("", "shop.dead") == (letter.exchange, letter.routing_key)


async def reject_one(connection: Connection) -> None:
    delivery = await connection.transport.get("shop")
    assert delivery is not None
    delivery.reject()


def test_what_expires_meanwhile_is_a_dead_letter(bench: Bench, connection: Connection) -> None:
    """Though the queue of dead letters changes as well."""
    old, new = needed("classic"), needed("quorum")
    declare(connection, old)
    sent = [
        connection.send("shop", "shop.buy", body, expiration=1 + 5 * number, is_mandatory=True)
        for number, body in enumerate(numbered(100))
    ]
    assert {None} == {outcome.wait() for outcome in sent}
    apply(bench, new)
    eventually(lambda: connection.inspect("shop.dead") == QueueState(100, 0))
    assert set(numbered(100)) == set(bench.bodies_in("shop.dead"))


def test_a_quorum_queue_whose_dead_letters_have_no_place_is_not_deleted(
    bench: Bench, connection: Connection
) -> None:
    """RabbitMQ keeps them inside, where no count shows them."""
    declare(connection, needed("quorum"))
    bench.run(connection.transport.delete("shop.dead"))
    with pytest.raises(exceptions.TransportError, match=r"'shop\.dead' is missing.*3 minutes"):
        apply(bench, needed("classic"))
    assert "same" != plan(connection, needed("classic"))["shop"]


def test_a_queue_that_is_consumed_is_not_touched(
    bench: Bench, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names it and says what to do; a consumer that goes in time is waited for."""
    old, new = needed("classic"), needed("quorum")
    declare(connection, old)
    consumer = bench.connect()
    consumer.consume("shop")
    monkeypatch.setattr(migration, "PATIENCE", 0.1)
    with pytest.raises(exceptions.TransportError, match=r"'shop' has 1.*Stop all processes"):
        apply(bench, new)
    assert {} == connection.compare(old.queues[1])
    assert connection.inspect(stand_in("shop")) is None
    monkeypatch.undo()
    timer = threading.Timer(0.3, consumer.close)
    timer.start()
    apply(bench, new)
    timer.join()
    check_changed(connection, new)


def test_an_exchange_that_differs_is_one_error_and_nothing_is_done(amqp_url: str) -> None:
    """No broker changes it, and deleting it would lose messages."""
    import pika

    plain = pika.BlockingConnection(pika.URLParameters(amqp_url))
    plain.channel().exchange_declare("news", "direct", durable=True)
    plain.close()
    with Bench(amqp_url) as bench:
        connection = bench.connect()
        with pytest.raises(exceptions.TopologyConflict, match=r"'news'.*'direct'.*'topic'"):
            apply(bench, needed("classic"))
        assert connection.inspect("shop") is None


def test_the_same_message_id_alone_makes_no_double(bench: Bench, connection: Connection) -> None:
    """A foreign program may write whatever it likes there."""
    declare(connection, needed("classic"))
    connection.put("shop", *numbered(5), message_id="constant")
    connection.put("shop", b"same", b"same", message_id="")
    apply(bench, needed("quorum"))
    assert [*numbered(5), b"same", b"same"] == bench.bodies_in("shop")


#: The beginnings of what a migration reports just before it does it, and which of these it is.
STEPS = [
    ("make queue shop.dead.moving", 1),
    ("make queue shop.moving", 1),
    ("move the messages of queue shop to shop.moving", 1),
    ("switch", 1),
    ("delete queue shop and make", 1),
    ("delete queue shop.dead and make", 1),
    ("move the messages of queue shop.moving to shop", 1),
    ("switch", 2),
    ("delete queue shop.retry.60000.moving", 1),
    ("delete queue shop.dead.moving", 1),
]


def test_a_migration_that_dies_at_any_step_goes_on_where_it_was(bench: Bench) -> None:
    """Each step in turn, under load; nothing is lost."""
    connection = bench.connect()
    kind = "classic"
    declare(connection, needed(kind))
    for text, count in STEPS:
        kind = OTHER[kind]
        left = [count]

        def die(told: str, text: str = text, left: list[int] = left) -> None:
            left[0] -= told.startswith(text)
            if not left[0]:
                raise Crash(told)

        with Publisher(bench) as publisher:
            eventually(lambda: publisher.confirmed)
            with pytest.raises(Crash):
                apply(bench, needed(kind), die)
            apply(bench, needed(kind))
        assert [] == publisher.failures
        check_changed(connection, needed(kind))
        check_ledger(bench, publisher.confirmed, doubles=2 * migration.WINDOW)


def test_connections_that_are_lost_meanwhile_lose_no_message(
    bench: Bench, connection: Connection, url: str
) -> None:
    """Ten of them, at any operation; apply goes on by itself, or when it is called again."""
    declare(connection, needed("classic"))
    backlog = numbered(300)
    connection.put("shop", *backlog)
    faults = Faults(url, lose_connection(chance=0.01, times=10), seed=5)
    with Bench(faults.url) as faulty:
        for _ in range(20):
            mover = faulty.connect()
            mover.may_be_lost = True
            moving = migration.apply(mover.transport, needed("quorum"), _ignore, settle=SETTLE)
            try:
                faulty.run(moving)
                break
            except exceptions.ConnectionFailed:
                mover.close()
        assert not mover.lost.empty()
    check_changed(connection, needed("quorum"))
    found = check_ledger(bench, backlog, doubles=2 * migration.WINDOW)
    assert {*backlog} == {*found}


def _ignore(text: str) -> None:
    pass


class Bare:
    """Properties of which next to none are set."""

    content_type = headers = correlation_id = reply_to = expiration = None
    type = app_id = timestamp = None
    message_id = "one"


@dataclass
class Twin:
    """A delivery of one and the same message."""

    is_acked: bool = False
    properties: Any = Bare
    body: bytes = b"x"
    exchange: str = "e"
    routing_key: str = "k"
    redelivered: bool = False
    queue: str = "q"
    is_live: bool = True

    def ack(self) -> None:
        self.is_acked = True

    def requeue(self) -> None: ...

    def reject(self) -> None: ...


class Sent:
    """A transport that confirms when it is told to."""

    def __init__(self) -> None:
        self.ends: list[Callable[[Exception | None], None]] = []

    def publish(self, publication: Publication, done: Callable[[Exception | None], None]) -> None:
        self.ends.append(done)


@pytest.mark.parametrize("error", [None, exceptions.PublishTimeout("too late")])
def test_a_double_is_acknowledged_only_when_its_twin_has_arrived(error: Exception | None) -> None:
    """It may be the same message, delivered again after its connection was lost."""
    transport: Any = Sent()
    twins = [Twin(), Twin(), Twin()]
    queue = Queue("q", "classic")

    async def move() -> None:
        mover = migration._Mover(transport)
        mover.move(queue, twins[0])
        mover.move(queue, twins[1])
        assert not twins[0].is_acked
        assert not twins[1].is_acked
        (end,) = transport.ends
        end(error)
        mover.move(queue, twins[2])

    asyncio.run(move())
    assert [error is None] * 3 == [twin.is_acked for twin in twins]


def test_a_migration_that_is_killed_at_any_time_goes_on_where_it_was(
    bench: Bench, url: str
) -> None:
    """By kill -9 of its process, three times; then it is run to its end."""
    kill_at_random(bench, url, 3)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_migration_that_is_killed_again_and_again_loses_nothing(bench: Bench, url: str) -> None:
    """Forty times at random."""
    kill_at_random(bench, url, 40)


def kill_at_random(bench: Bench, url: str, times: int) -> None:
    connection = bench.connect()
    kind = "classic"
    declare(connection, needed(kind))
    backlog = [b"old %s" % body for body in numbered(500)]
    connection.put("shop", *backlog)
    chance = random.Random(times)
    last: Counter[str] = Counter()
    with Publisher(bench) as publisher:
        for _ in range(times):
            kind = OTHER[kind] if connection.inspect(stand_in("shop")) is None else kind
            with Program(
                [MIGRATOR, url, kind, str(SETTLE)], environment={"PYTHONPATH": str(ROOT)}
            ) as program:
                program.line("begins")
                time.sleep(chance.uniform(0, 2))
                program.end(signal.SIGKILL)
                with contextlib.suppress(AssertionError):  # that there are no more
                    while True:
                        program.line("")
                last[" ".join(program.output[-1].split()[:2])] += 1
        apply(bench, needed(kind))
    assert [] == publisher.failures
    check_changed(connection, needed(kind))
    confirmed = [*backlog, *publisher.confirmed]
    found = check_ledger(bench, confirmed, doubles=times * 2 * migration.WINDOW)
    twice = len(found) - len(set(found))
    sys.stdout.write(f"{times} kills, {len(confirmed)} confirmed, 0 lost, {twice} twice\n")
    sys.stdout.write(f"the last that they said: {dict(last)}\n")


def test_what_is_left_of_a_migration_is_planned_as_such(bench: Bench) -> None:
    """So that an operator sees that one was interrupted."""
    connection = bench.connect()
    declare(connection, needed("quorum"))
    connection.put("shop", *numbered(3))

    def die(text: str) -> None:
        if text == "delete queue shop.moving":
            raise Crash(text)

    with pytest.raises(Crash):
        apply(bench, needed("classic"), die)
    assert plan(connection, needed("classic"))["shop"] == BACK
    apply(bench, needed("classic"))
    check_changed(connection, needed("classic"))
    assert numbered(3) == bench.bodies_in("shop")


def test_a_delivery_without_properties_moves_too() -> None:
    """As other programs publish them."""
    found = migration.moved(Twin(), Queue("q", "classic"))
    assert {"retry_exchange": "e", "retry_routing_key": "k"} == found.properties.headers
    assert (b"x", "", "q", True) == (
        found.body,
        found.exchange,
        found.routing_key,
        found.is_mandatory,
    )
