# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Publishing what was stored: all of it, nothing else, in order per key."""

from __future__ import annotations

import logging
import random
import signal
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from tavrida import discovery, dispatcher, exceptions
from tavrida.config import ConnectionConfig
from tavrida.outbox import Outbox, table
from tavrida.outbox.relay import Relay
from tavrida.service import ServiceController
from tavrida.transactions import Transaction
from tests.broker.conftest import EXCHANGE, Connect, Serve
from tests.outbox.conftest import ALL_PAIRS, open_database
from tests.processes import Program
from tests.rabbitmq import Node
from tests.waiting import DEADLINE, eventually

LOG = logging.getLogger(__name__)

PROGRAM = Path(__file__).with_name("program.py")


@dispatcher.rpc_service("ledger")
class Ledger(ServiceController):
    """Writes down what arrives: key, number, message id."""

    seen: SimpleQueue[tuple[str, int, str]] = SimpleQueue()

    @dispatcher.rpc_method(service="ledger", method="write")
    def write(self, request: Any, proxy: Any, key: str, n: int) -> None:
        self.seen.put((key, n, request.message_id))

    @dispatcher.subscription_method(service="orders", method="paid")
    def paid(self, event: Any, proxy: Any, key: str, n: int) -> None:
        self.seen.put((key, n, event.message_id))


@pytest.fixture(autouse=True)
def _fresh() -> None:
    Ledger.seen = SimpleQueue()
    known = discovery.LocalDiscovery()
    known.register_remote_publisher("orders", "orders.notifications")
    Ledger.set_discovery(known)


def store(database: Any, key: str, *numbers: int, service: str = "ledger") -> None:
    """Store casts to the ledger in one transaction."""
    for n in numbers:
        proxy = Outbox("orders").on(database, key=key)
        proxy[service].write(key=key, n=n).cast()
    database.commit()


def read(count: int) -> list[tuple[str, int]]:
    """The next entries of the ledger: key and number."""
    return [Ledger.seen.get(timeout=DEADLINE)[:2] for _ in range(count)]


def left(place: str) -> int:
    """How many messages are stored."""
    with closing(open_database(place)) as database:
        cursor = database.cursor()
        cursor.execute("SELECT count(*) FROM tavrida_outbox")
        return int(cursor.fetchone()[0])


def relay_of(place: str, client: Any, **more: Any) -> Relay:
    return Relay(lambda: open_database(place), client, **{"poll": 0.02, "lease": 0.5} | more)


def test_what_is_committed_is_published_in_order_and_forgotten(
    serve: Serve, connect: Connect, place: str, database: Any
) -> None:
    """Casts and notifications; more of them than a batch, of one key and of many."""
    serve(Ledger, concurrency=1, queue_type="quorum")
    known = discovery.LocalDiscovery()
    known.register_remote_service("ledger", EXCHANGE)
    known.register_local_publisher("orders", "orders.notifications")
    box = Outbox("orders.paid")
    store(database, "a", *range(12))
    for n in range(12, 24):
        box.on(database, key="a").publish(key="a", n=n)
    for n in range(20):
        box.on(database, key=n).ledger.write(key=f"k{n}", n=n).cast()
        box.on(database).ledger.write(key="none", n=n).cast()
    database.commit()
    with relay_of(place, connect(discovery=known), batch=10):
        entries = read(64)
        assert [("a", n) for n in range(24)] == [entry for entry in entries if entry[0] == "a"]
        assert {("none", n) for n in range(20)} | {(f"k{n}", n) for n in range(20)} == {
            entry for entry in entries if entry[0] != "a"
        }
        eventually(lambda: left(place) == 0)


def test_the_message_id_is_that_of_the_storing(
    serve: Serve, connect: Connect, place: str, database: Any
) -> None:
    """So that a message which is published twice can be recognized."""
    serve(Ledger)
    store(database, "a", 1)
    (row,) = table.due(Transaction(database), 1.0, 10)
    database.commit()
    with relay_of(place, connect("ledger")):
        assert ("a", 1, row.message_id) == Ledger.seen.get(timeout=DEADLINE)


def test_a_message_that_nobody_takes_holds_back_its_key_only(
    serve: Serve,
    connect: Connect,
    place: str,
    database: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It stays, is told of once, and goes first when somebody takes it."""
    serve(Ledger, concurrency=1)
    store(database, "stuck", 1, service="later")
    store(database, "stuck", 2, 3)
    store(database, "free", 4, 5)
    with relay_of(place, connect("ledger", "later"), max_pause=0.1):
        assert [("free", 4), ("free", 5)] == read(2)

        def attempts() -> int:
            with closing(open_database(place)) as own:
                (row,) = table.due(Transaction(own), 1e12, 1)
            return row.attempts

        eventually(lambda: attempts() >= 3)
        assert Ledger.seen.empty()
        told = [each.message for each in caplog.records if each.levelno == logging.ERROR]
        assert 1 == len(told)
        assert "later.write, key 'stuck') cannot be published: ServiceUnavailable" in told[0]

        @dispatcher.rpc_service("later")
        class Later(ServiceController):
            @dispatcher.rpc_method(service="later", method="write")
            def write(self, request: Any, proxy: Any, key: str, n: int) -> None:
                Ledger.seen.put((key, n, request.message_id))

        serve(Later, queue="later_queue")
        # Published one after the other; but two services handle them, each when it comes to it.
        came = read(3)
        came.remove(("stuck", 1))
        assert [("stuck", 2), ("stuck", 3)] == came
        eventually(lambda: left(place) == 0)


def test_a_row_that_holds_no_message_stays_and_holds_back_its_key_only(
    serve: Serve, connect: Connect, place: str, database: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever wrote it: the relay goes on."""
    serve(Ledger)
    store(database, "broken", 1)
    database.cursor().execute("UPDATE tavrida_outbox SET source = 'a.b.c'")
    store(database, "a", 2)
    with relay_of(place, connect("ledger")):
        assert [("a", 2)] == read(1)
        eventually(lambda: "MalformedMessage: the row holds no message" in caplog.text)
    assert 1 == left(place)


def test_a_program_that_has_just_committed_may_wake_the_relay(
    serve: Serve, connect: Connect, place: str, database: Any
) -> None:
    """It does not wait for the next look then."""
    serve(Ledger)
    with relay_of(place, connect("ledger"), poll=1000.0) as relay:
        store(database, "a", 1)
        relay.wake()
        assert [("a", 1)] == read(1)
        eventually(lambda: left(place) == 0)
        store(database, "a", 2)
        relay.wake()
        assert [("a", 2)] == read(1)


def test_two_relays_take_turns(serve: Serve, connect: Connect, place: str, database: Any) -> None:
    """What is published is published once; when one stops, the other takes over."""
    serve(Ledger, concurrency=1)
    client = connect("ledger")
    with ExitStack() as second, relay_of(place, client, lease=60.0):
        store(database, "a", 0)
        assert [("a", 0)] == read(1)
        second.enter_context(relay_of(place, client, lease=60.0))
        store(database, "a", *range(1, 100))
        assert [("a", n) for n in range(1, 100)] == read(99)
        eventually(lambda: left(place) == 0)
        second_stack = second.pop_all()
    with second_stack:
        store(database, "a", 100)
        assert [("a", 100)] == read(1)
    assert Ledger.seen.empty()


def test_a_database_without_the_tables_is_told_at_once(connect: Connect, tmp_path: Path) -> None:
    """With what makes them."""
    relay = relay_of(str(tmp_path / "empty.db"), connect("ledger"))
    with pytest.raises(exceptions.ConfigError, match=r"has no tables of an outbox.*create_tables"):
        relay.run()


def test_a_handler_stores_with_the_chain_of_its_message(
    serve: Serve, connect: Connect, place: str
) -> None:
    """Correlation id, context and source are as with the handler's own proxy."""
    seen: SimpleQueue[Any] = SimpleQueue()

    @dispatcher.rpc_service("shop")
    class Shop(ServiceController):
        @dispatcher.rpc_method(service="shop", method="buy")
        def buy(self, request: Any, proxy: Any, order: int) -> None:
            with closing(open_database(place)) as database:
                Outbox().on(database, key=order).shop.ship(address="here").cast()
                database.commit()

        @dispatcher.rpc_method(service="shop", method="ship")
        def ship(self, request: Any, proxy: Any, address: str) -> None:
            seen.put(request)

    serve(Shop)
    client = connect("shop")
    client.shop.buy(order=7).cast(correlation_id="chain", context={"user": 1})
    with relay_of(place, client):
        request = seen.get(timeout=DEADLINE)
    assert ("chain", "shop.buy") == (request.correlation_id, str(request.source))
    assert {"user": 1, "order": 7, "address": "here"} == request.context


def test_a_database_that_breaks_the_connection_is_connected_to_again(
    serve: Serve,
    connect: Connect,
    place: str,
    database: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nothing is lost; the loss and the return are told once."""
    serve(Ledger, concurrency=1)
    caplog.set_level(logging.INFO)
    broken = threading.Event()

    def open_one() -> Any:
        opened.put(None)
        if broken.is_set():
            raise OSError("no database today")
        return open_database(place)

    opened: SimpleQueue[None] = SimpleQueue()
    with Relay(open_one, connect("ledger"), poll=0.02, lease=0.5, max_pause=0.05):
        store(database, "a", 1)
        assert [("a", 1)] == read(1)
        broken.set()
        store(database, "a", 2)
        _break(place, database)
        for _ in range(3):
            opened.get(timeout=DEADLINE)
        broken.clear()
        _mend(place, database)
        read_now = read(1)
        # The one whose deletion was not committed may come once more.
        while read_now[-1] != ("a", 2):
            read_now += read(1)
        eventually(lambda: left(place) == 0)
        eventually(lambda: "The database of the outbox is back." in caplog.text)
    told = [r.message for r in caplog.records if "cannot be used, waiting for it" in r.message]
    assert 1 == len(told)


def _break(place: str, database: Any) -> None:
    cursor = database.cursor()
    if place.startswith("postgresql:"):
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    else:
        cursor.execute("ALTER TABLE tavrida_outbox RENAME TO gone")
    database.commit()


def _mend(place: str, database: Any) -> None:
    if not place.startswith("postgresql:"):
        database.execute("ALTER TABLE gone RENAME TO tavrida_outbox")
        database.commit()


def _write(place: str, name: str, seconds: float, committed: dict[str, int]) -> None:
    """Commit and roll back transactions of some messages each, of one key; count the committed."""
    chance = random.Random(name)
    box = Outbox("orders")
    end = time.monotonic() + seconds
    number = 0
    with closing(open_database(place)) as database:
        while time.monotonic() < end:
            some = range(number, number + chance.randint(1, 4))
            is_wanted = chance.random() < 0.8
            for n in some:
                value = n if is_wanted else -1
                box.on(database, key=name).ledger.write(key=name, n=value).cast()
            if is_wanted:
                database.cursor().execute("INSERT INTO orders VALUES ('paid')")
                database.commit()
                number = committed[name] = some.stop
            else:
                database.rollback()
            time.sleep(0.02)


def check_ledger(entries: list[tuple[str, int, str]], committed: dict[str, int]) -> int:
    """Compare what arrived with what was committed; return how many came more than once."""
    by_id: dict[str, tuple[str, int]] = {}
    order: dict[str, list[int]] = defaultdict(list)
    for key, n, message_id in entries:
        assert (key, n) == by_id.setdefault(message_id, (key, n))
        if n not in order[key]:
            order[key].append(n)
    assert {key: list(range(count)) for key, count in committed.items()} == dict(order)
    assert len(by_id) == sum(committed.values())
    return len(entries) - len(by_id)


def _kill_relays(
    serve: Serve, place: str, url: str, *, kills: int, pause: Callable[[], float]
) -> None:
    serve(Ledger, concurrency=1)
    committed: dict[str, int] = {}
    seconds = kills * 0.8 + 0.5
    writers = [
        threading.Thread(target=_write, args=(place, f"w{n}", seconds, committed)) for n in range(4)
    ]
    for writer in writers:
        writer.start()
    entries: list[tuple[str, int, str]] = []
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    for number in range(kills + 1):
        with Program([PROGRAM, place, url], environment=environment) as relay:
            relay.line("relay begins")
            entries.append(Ledger.seen.get(timeout=DEADLINE))  # it has begun to publish
            if number < kills:
                time.sleep(pause())  # anywhere in the work
                assert -signal.SIGKILL == relay.end(signal.SIGKILL)
                continue
            for writer in writers:
                writer.join()
            # One key goes as fast as the disk of the bus takes one message after the other.
            eventually(lambda: left(place) == 0, 6 * DEADLINE)
    while not Ledger.seen.empty():
        entries.append(Ledger.seen.get())
    wanted = sum(committed.values())
    while len({message_id for _, _, message_id in entries}) < wanted:
        entries.append(Ledger.seen.get(timeout=DEADLINE))
    twice = check_ledger(entries, committed)
    LOG.info("%d messages, %d kills, %d published more than once", wanted, kills, twice)


def test_kill_9_of_the_relay_under_load_loses_nothing(serve: Serve, place: str, url: str) -> None:
    """All that was committed arrives, nothing else, in order per key but for duplicates."""
    _kill_relays(serve, place, url, kills=2, pause=lambda: random.uniform(0.05, 0.3))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("url", "place"), ALL_PAIRS, indirect=True)
def test_kill_9_of_the_relay_20_times_under_load_loses_nothing(
    serve: Serve, place: str, url: str
) -> None:
    """The same, for longer."""
    _kill_relays(serve, place, url, kills=20, pause=lambda: random.uniform(0.0, 0.6))


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_broker_that_is_killed_is_waited_for(
    node: Callable[[], Node], connect: Connect, serve: Serve, tmp_path: Path
) -> None:
    """What is stored meanwhile goes when it is back, in order."""
    broker = node()
    config = ConnectionConfig(url=(broker.url(),), async_engine=True, retry_delay=0.1)
    hasty = replace(config, publish_timeout=2.0)
    path = str(tmp_path / "orders.db")
    with closing(sqlite3.connect(path, check_same_thread=False)) as database:
        table.create(Transaction(database))
        database.commit()
        server = serve(Ledger, config=config, concurrency=1)
        with relay_of(path, connect("ledger", config=hasty)):
            store(database, "a", *range(10))
            assert [("a", n) for n in range(10)] == read(10)
            server.stop()
            broker.kill()
            store(database, "a", *range(10, 20))
            broker.start()
            serve(Ledger, config=config, concurrency=1)
            numbers: list[int] = []
            while len(numbers) < 10:
                ((_, n),) = read(1)
                if n >= 10 and n not in numbers:
                    numbers.append(n)
            assert list(range(10, 20)) == numbers
            eventually(lambda: left(path) == 0)
