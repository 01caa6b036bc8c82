# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""What the embedded transport does beyond the contract: the disk, locks, forks, files that go."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from tavrida import exceptions
from tavrida.plugins.transports.sqlite import bus, process, store, syncer
from tavrida.plugins.transports.sqlite.bus import Bus
from tavrida.plugins.transports.sqlite.transport import CLOSE_TIMEOUT
from tavrida.topology import Binding, Exchange, Queue
from tests.transports.bench import Bench, Connection, numbered, publication
from tests.waiting import DEADLINE, eventually


class Disk:
    """The syncs of the log: counts them, and holds them up or lets them fail."""

    def __init__(self) -> None:
        self.count = 0
        self.lets_through = threading.Event()
        self.lets_through.set()
        self.failures: list[OSError] = []

    def sync(self, file: int) -> None:
        assert self.lets_through.wait(DEADLINE)
        self.count += 1
        if self.failures:
            raise self.failures.pop()
        os.fdatasync(file)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(syncer, "sync", disk.sync)
    return disk


@pytest.fixture
def intruder(path: Path) -> Iterator[sqlite3.Connection]:
    """Another program that has the database open."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=DEADLINE)) as connection:
        yield connection


def store_of(connection: Connection) -> store.Store:
    return connection.transport._connection.store  # type: ignore[attr-defined, no-any-return]


# -- confirms and the disk


def test_a_confirm_waits_for_the_disk_and_the_consumer_does_not(bench: Bench, disk: Disk) -> None:
    """A power failure may take back what was delivered, never what was confirmed."""
    connection = bench.connect()
    queue = connection.queue()
    inbox = connection.consume(queue)
    disk.lets_through.clear()
    outcome = connection.send("", queue, b"hello")
    assert b"hello" == inbox.next().body
    connection.round_trip()
    assert not outcome.is_known
    disk.lets_through.set()
    assert outcome.wait() is None


def test_many_confirms_share_one_sync(bench: Bench, disk: Disk) -> None:
    """What was committed while the disk was busy needs one more sync, not one each."""
    connection = bench.connect()
    queue = connection.queue()
    disk.lets_through.clear()
    outcomes = [connection.send("", queue, body) for body in numbered(200)]
    connection.round_trip()
    disk.lets_through.set()
    assert [None] * 200 == [outcome.wait() for outcome in outcomes]
    assert disk.count <= 2


def test_synchronous_normal_confirms_without_the_disk(path: Path, disk: Disk) -> None:
    """For those who would rather lose a second of messages in a power failure."""
    disk.lets_through.clear()
    with Bench(f"sqlite://{path}?synchronous=normal") as bench:
        connection = bench.connect()
        connection.put(connection.queue(), b"hello")


def test_an_answer_to_a_waiting_caller_needs_no_disk(bench: Bench, disk: Disk) -> None:
    """Its queue is gone after a power failure anyway."""
    connection = bench.connect()
    name, inbox = connection.reply_queue()
    disk.lets_through.clear()
    connection.publish("", name, b"answer", is_mandatory=True)
    assert b"answer" == inbox.next().body
    disk.lets_through.set()


def test_a_sync_that_fails_makes_a_new_connection_and_sends_again(bench: Bench, disk: Disk) -> None:
    """Nobody knows what of the log is on the disk then, and a confirm must not be guessed."""
    connection = bench.connect()
    connection.may_be_lost = True
    queue = connection.queue()
    disk.failures.append(OSError(5, "Input/output error"))
    connection.publish("", queue, b"hello")
    assert "Input/output error" in connection.lost.get(timeout=DEADLINE)
    assert {b"hello"} == set(bench.bodies_in(queue))


def test_after_a_failed_sync_only_a_checkpoint_confirms(
    bench: Bench, disk: Disk, path: Path
) -> None:
    """The kernel forgets what it could not write; what is in the database itself is safe."""
    connection = bench.connect()
    connection.may_be_lost = True
    queue = connection.queue()
    connection.put(queue, b"before")
    count = disk.count
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM entries").fetchone()
        disk.failures.append(OSError(5, "Input/output error"))
        outcome = connection.send("", queue, b"after")
        assert "Input/output error" in connection.lost.get(timeout=DEADLINE)
        assert str(path) in process.distrusted
        assert not outcome.is_known
        reader.execute("COMMIT")
    assert outcome.wait() is None
    assert not process.distrusted
    assert disk.count == count + 1  # the log alone was not asked again
    only = path.with_name("only.db")
    only.write_bytes(path.read_bytes())  # without the log
    with contextlib.closing(sqlite3.connect(only)) as survived:
        bodies = {body for (body,) in survived.execute("SELECT body FROM contents")}
    assert {b"before", b"after"} <= bodies


def test_a_log_that_was_removed_confirms_nothing(bench: Bench, path: Path) -> None:
    """What is in it is taken over into the database first, and nothing is lost."""
    connection = bench.connect()
    connection.may_be_lost = True
    queue = connection.queue()
    connection.put(queue, b"before")
    path.with_name("bus.db-wal").unlink()
    connection.publish("", queue, b"after")
    assert "No such file" in connection.lost.get(timeout=DEADLINE)
    assert {b"before", b"after"} == set(bench.bodies_in(queue))


def test_what_a_refused_sender_does_at_once_is_not_forgotten(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It publishes another message and settles a delivery while it is told of the full disk."""
    monkeypatch.setattr(store, "RETRY", 0.05)
    connection = bench.connect()
    queue, other = connection.queue(), connection.queue()
    connection.put(queue, b"first")
    delivery = connection.consume(queue).next()
    database = store_of(connection)._database.connection
    (pages,) = database.execute("PRAGMA page_count").fetchone()
    database.execute(f"PRAGMA max_page_count = {pages}")
    second = connection._outcome()

    def refused(error: Exception | None) -> None:
        assert isinstance(error, exceptions.PublishFailed)
        database.execute("PRAGMA max_page_count = 1000000")
        delivery.ack()
        connection.transport.publish(publication("", other, b"second"), second)

    bench.call(connection.transport.publish, publication("", other, b"x" * 1_000_000), refused)
    assert second.wait() is None
    connection.close()
    assert [b"second"] == bench.bodies_in(other)
    assert [] == bench.bodies_in(queue)


def test_a_full_disk_fails_what_is_published_and_keeps_what_is_settled(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite's own limit stands for the disk's here; it is the same error."""
    monkeypatch.setattr(store, "RETRY", 0.05)
    connection = bench.connect()
    queue, other = connection.queue(), connection.queue()
    connection.put(queue, b"first")
    delivery = connection.consume(queue).next()
    database = store_of(connection)._database.connection
    (pages,) = database.execute("PRAGMA page_count").fetchone()
    database.execute(f"PRAGMA max_page_count = {pages}")
    outcomes = [connection.send("", other, b"x" * 10_000) for _ in range(100)]
    error = [outcome.wait() for outcome in outcomes][-1]
    assert isinstance(error, exceptions.PublishFailed)
    assert f"the disk of {store_of(connection).place} is full: make room on it" == str(error)
    # Together in one turn: the one fails, and the other must not go with it.
    outcome = connection._outcome()

    def publish_and_ack() -> None:
        delivery.ack()
        connection.transport.publish(publication("", other, b"x" * 10_000), outcome)

    bench.call(publish_and_ack)
    assert isinstance(outcome.wait(), exceptions.PublishFailed)
    with pytest.raises(exceptions.ConnectionFailed, match="is full: make room"):
        connection.declare(*many_bindings(other))
    database.execute("PRAGMA max_page_count = 1000000")
    connection.publish("", other, b"there is room again")
    connection.close()
    assert [] == bench.bodies_in(queue)


def test_a_fault_of_our_own_is_a_lost_connection_and_not_a_hang(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for something is told, and all goes on with a new connection."""
    connection = bench.connect(retry_delay=0.01)
    connection.may_be_lost = True
    queue = connection.queue()
    broken = iter([RuntimeError("a bug")])

    def route(*args: object) -> object:
        for error in broken:
            raise error
        return whole(*args)  # type: ignore[arg-type]

    whole = Bus.route
    monkeypatch.setattr(Bus, "route", route)
    connection.publish("", queue, b"hello", is_mandatory=True)
    assert "RuntimeError: a bug" == connection.lost.get(timeout=DEADLINE)
    assert [b"hello"] == bench.bodies_in(queue)


def test_a_connection_that_begins_while_the_last_one_ends_keeps_the_store(bench: Bench) -> None:
    """They share one, and the one that goes must not take it along."""
    one, two = bench.connect(), bench.connection()

    async def both() -> None:
        await asyncio.gather(one.transport.close(), two.transport.open(1))

    for _ in range(20):
        bench.run(both())
        two.round_trip()
        one, two = two, bench.connection()


def many_bindings(queue: str) -> list[Binding | Exchange | Queue]:
    """Return more than fits into a page."""
    names = ["x" * 200 + str(number) for number in range(100)]
    return [Exchange("many"), Queue(queue, "classic"), *(Binding("many", queue, n) for n in names)]


def test_the_log_does_not_grow_for_ever(
    bench: Bench, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many writers leave no moment for SQLite's own checkpoint; so the syncer makes one."""
    monkeypatch.setattr(syncer, "MAX_LOG", 1_000_000)
    connection = bench.connect()
    queue = connection.queue()
    log = path.with_name("bus.db-wal")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM entries").fetchone()
        connection.put(queue, *[b"x" * 10_000] * 300)
        assert log.stat().st_size > 3_000_000  # the reader still needs it
        reader.execute("COMMIT")

    def is_small_again() -> bool:
        connection.put(queue, b"x" * 10_000)
        return log.stat().st_size < 1_000_000

    eventually(is_small_again)


def test_the_log_of_one_who_only_consumes_does_not_grow_for_ever(
    bench: Bench, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing waits for the disk then, so the sweeps see to it."""
    connection = bench.connect()
    queue = connection.queue()
    connection.put(queue, *[b"x" * 10_000] * 300)
    connection.close()
    monkeypatch.setattr(syncer, "MAX_LOG", 100_000)
    monkeypatch.setattr(store, "SWEEP", 0.02)
    consumer = bench.connect()
    inbox = consumer.consume(queue, 5, act=lambda delivery: delivery.ack())
    inbox.take(300)
    log = path.with_name("bus.db-wal")

    def is_small_again() -> bool:
        consumer.round_trip()
        return log.stat().st_size < 200_000

    eventually(is_small_again)


def test_connections_that_end_one_after_the_other_all_end_at_once(bench: Bench) -> None:
    """The last one closes the store, and not one that is merely ahead of it."""
    for _ in range(20):
        connections = [bench.connect() for _ in range(3)]

        async def close_all(connections: list[Connection] = connections) -> None:
            closing = []
            for connection in connections:
                closing.append(asyncio.ensure_future(connection.transport.close()))
                await asyncio.sleep(0)
            await asyncio.wait_for(asyncio.gather(*closing), CLOSE_TIMEOUT / 2)

        bench.run(close_all())


# -- locks


def test_a_locked_database_holds_messages_up_and_loses_none(
    bench: Bench, intruder: sqlite3.Connection
) -> None:
    """The lock of a backup, for example."""
    connection = bench.connect()
    queue = connection.queue()
    intruder.execute("BEGIN IMMEDIATE")
    outcome = connection.send("", queue, b"hello")
    eventually(lambda: store_of(connection)._busy_since)
    assert not outcome.is_known
    intruder.execute("COMMIT")
    assert outcome.wait() is None


def test_a_publication_does_not_wait_for_a_lock_for_ever(
    path: Path, intruder: sqlite3.Connection
) -> None:
    """It ends within publish_timeout, and the sender hears of the lock."""
    with Bench(f"sqlite://{path}?lock_timeout=0.2") as bench:
        connection = bench.connect(publish_timeout=0.6)
        queue = connection.queue()
        intruder.execute("BEGIN IMMEDIATE")
        with pytest.raises(exceptions.PublishTimeout) as caught:
            connection.publish("", queue, b"hello")
        intruder.execute("COMMIT")
        assert f"another process has locked {path} for over 0.2 s" in str(caught.value)
        connection.round_trip()
        assert [] == bench.bodies_in(queue)


def test_whoever_asks_something_of_a_locked_bus_is_told_in_time(
    path: Path, intruder: sqlite3.Connection
) -> None:
    """Opening, declaring and consuming end, and so does closing."""
    with Bench(f"sqlite://{path}?lock_timeout=0.2") as bench:
        connection, other = bench.connect(), bench.connection()
        queue = connection.queue()
        intruder.execute("BEGIN IMMEDIATE")
        for ask in (connection.queue, lambda: connection.consume(queue), connection.reply_queue):
            with pytest.raises(exceptions.ConnectionFailed, match=r"over 0\.2 s \(lock_timeout\)"):
                ask()
        with pytest.raises(exceptions.ConnectionFailed, match="lock_timeout"):
            other.open(attempts=1)
        connection.close()
        intruder.execute("COMMIT")


def test_a_database_that_stays_locked_cannot_be_opened(
    path: Path, intruder: sqlite3.Connection
) -> None:
    """Its lock_timeout says when that is so."""
    intruder.execute("PRAGMA journal_mode = DELETE")
    intruder.execute("BEGIN EXCLUSIVE")
    with Bench(f"sqlite://{path}?lock_timeout=0.2") as bench:
        with pytest.raises(exceptions.ConnectionFailed) as caught:
            bench.connection().open(attempts=1)
        intruder.execute("ROLLBACK")
    assert f"another process has locked {path} for over 0.2 s (lock_timeout)" in str(caught.value)


def test_many_processes_may_begin_at_the_same_time(path: Path) -> None:
    """The tables are made once."""
    with Bench(f"sqlite://{path}") as one, Bench(f"sqlite://{path}") as two:
        opening = [bench.connection() for bench in (one, two) * 5]
        threads = [threading.Thread(target=connection.open) for connection in opening]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for connection in opening:
            connection.round_trip()


# -- files that go


def test_a_removed_database_is_a_lost_connection(
    bench: Bench, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was in it is gone; what is declared and consumed works on in a new one."""
    monkeypatch.setattr(store, "SWEEP", 0.05)
    connection = bench.connect()
    connection.may_be_lost = True
    queue = connection.queue()
    inbox = connection.consume(queue)
    for each in path.parent.glob("bus.db*"):
        if each.is_file():
            each.unlink()
    assert f"{path} was removed or replaced" == connection.lost.get(timeout=DEADLINE)
    connection.publish("", queue, b"hello", is_mandatory=True)
    assert b"hello" == inbox.next().body


def test_who_is_taken_for_dead_comes_back(
    bench: Bench, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody cleaned up and removed its bell: others gave its messages to others."""
    monkeypatch.setattr(store, "SWEEP", 0.05)
    connection = bench.connect()
    connection.may_be_lost = True
    queue = connection.queue()
    connection.put(queue, b"hello")
    inbox = connection.consume(queue)
    first = inbox.next()
    for bell in path.with_name("bus.db-wake").iterdir():
        bell.unlink()
    with Bench(f"sqlite://{path}") as other:
        other.connect()
        assert "took this one for dead" in connection.lost.get(timeout=DEADLINE)
    assert not first.is_live
    again = inbox.next()
    assert (b"hello", True) == (again.body, again.redelivered)
    bench.ack(first, again)


def test_nothing_but_the_database_is_left_at_the_end(path: Path) -> None:
    """No log, no bells."""
    with Bench(f"sqlite://{path}") as bench:
        bench.connect().queue()
    assert ["bus.db", "bus.db-wake"] == sorted(each.name for each in path.parent.iterdir())
    assert [] == list(path.with_name("bus.db-wake").iterdir())


def test_the_bell_of_one_who_died_before_anybody_knew_it_is_cleared_away(
    bench: Bench, path: Path
) -> None:
    """No session names it; so who begins next looks for such bells."""
    folder = path.with_name("bus.db-wake")
    folder.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead:
        dead.bind(str(folder / "1-dead"))
    bench.connect()
    assert 1 == len(list(folder.iterdir()))
    assert not (folder / "1-dead").exists()


def test_a_moment_without_descriptors_does_not_end_the_sweeps(
    bench: Bench, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they look for is found as soon as there are some again."""
    monkeypatch.setattr(store, "SWEEP", 0.02)
    connection = bench.connect()
    connection.may_be_lost = True
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open("/dev/null", os.O_RDONLY)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        for _ in range(3):
            bench.run(asyncio.sleep(0.03))  # some sweeps
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        os.close(lowest)
    for each in path.parent.glob("bus.db*"):
        if each.is_file():
            each.unlink()
    assert "was removed or replaced" in connection.lost.get(timeout=DEADLINE)


def test_what_a_session_held_comes_back_although_its_end_did_not_work(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its disk was full, for example; others of the same process go on using the store."""
    monkeypatch.setattr(store, "SWEEP", 0.02)
    staying, going = bench.connect(), bench.connect()
    queue = staying.queue()
    staying.put(queue, b"hello")
    going.consume(queue).next()
    with monkeypatch.context() as patch:
        patch.setattr(Bus, "end_session", _cannot)
        going.close()
    delivery = staying.consume(queue).next()
    assert (b"hello", True) == (delivery.body, delivery.redelivered)


def _cannot(*args: object) -> None:
    raise exceptions.ConnectionFailed("the disk is full")


# -- hostile messages


@pytest.mark.parametrize(
    "told", ["abc", [1], [{"a": 1}], [{"queue": "q", "reason": "rejected"}], {}, 5]
)
def test_a_made_up_death_in_a_header_harms_nobody(bench: Bench, told: object) -> None:
    """RabbitMQ's own header, written by a publisher: it is replaced when the message dies."""
    connection = bench.connect()
    dead = connection.queue()
    queue = connection.queue(dead_letter_to=dead)
    connection.put(queue, b"hello", headers={"x-death": told}, expiration=0)
    letter = connection.consume(dead).next()
    assert letter.properties.headers is not None
    assert ["expired"] == [death["reason"] for death in letter.properties.headers["x-death"]]


@pytest.mark.parametrize(
    "properties",
    [
        {"timestamp": 1.5},
        {"timestamp": 2**70},
        {"expiration": 2**63},
        {"expiration": -1},
        {"headers": {"time": datetime.max.replace(tzinfo=timezone(timedelta(hours=-12)))}},
    ],
    ids=repr,
)
def test_properties_that_nobody_could_read_are_refused(
    bench: Bench, properties: dict[str, object]
) -> None:
    """By their sender, and not by every consumer for ever."""
    connection = bench.connect()
    queue = connection.queue()
    with pytest.raises(exceptions.PublishFailed):
        connection.publish("", queue, b"bad", **properties)
    connection.put(queue, b"good")
    assert [b"good"] == bench.bodies_in(queue)


def test_a_name_without_bytes_cannot_be_declared(bench: Bench) -> None:
    """A lone surrogate."""
    with pytest.raises(exceptions.TransportError, match="is no name"):
        bench.connect().declare(Queue("q\ud800", "classic"))


def test_a_storm_of_expired_messages_is_taken_in_portions(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other writers get their turn between them, and what is fresh arrives all the same."""
    monkeypatch.setattr(bus, "BATCH", 10)
    connection = bench.connect()
    queue = connection.queue()
    for body in numbered(205):
        connection.send("", queue, body, expiration=1)
    connection.put(queue, b"fresh")
    published = time.time()
    eventually(lambda: time.time() > published + 0.01)  # all this may be quicker than they expire
    assert b"fresh" == connection.consume(queue, 1).next().body


# -- memory


def test_a_bus_in_memory_lasts_as_long_as_somebody_uses_it() -> None:
    """Others of the process find it by its name."""
    with Bench("sqlite://?memory=shared") as one:
        queue = one.connect().queue()
        with Bench("sqlite://?memory=shared") as two, Bench("sqlite://?memory=other") as three:
            two.connect().put(queue, b"hello")
            with pytest.raises(exceptions.ServiceUnavailable):
                three.connect().publish("", queue, is_mandatory=True)
        assert [b"hello"] == one.bodies_in(queue)
    with Bench("sqlite://?memory=shared") as later, pytest.raises(exceptions.ServiceUnavailable):
        later.connect().publish("", queue, is_mandatory=True)


# -- forks

PARENT = """
import multiprocessing, sys, time
from tests.transports.bench import Bench

bench = Bench(sys.argv[1])
connection = bench.connect()
connection.consume(sys.argv[2]).next()
child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,), daemon=False)
child.start()
print(child.pid, flush=True)
time.sleep(600)
"""


def test_a_forked_child_does_not_keep_its_parent_alive(bench: Bench, path: Path) -> None:
    """It inherits the parent's bell, and has to let go of it: else the dead would hold messages."""
    connection = bench.connect()
    queue = connection.queue()
    connection.put(queue, b"hello")
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", PARENT, f"sqlite://{path}", queue],
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            parent.kill()
            delivery = connection.consume(queue).next()
            assert (b"hello", True) == (delivery.body, delivery.redelivered)
            os.kill(child, 0)  # it lives
        finally:
            os.kill(child, signal.SIGKILL)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_the_parent_goes_on_after_a_fork(bench: Bench) -> None:
    """Its connection to the file was closed for a moment; nobody notices."""
    connection = bench.connect()
    queue = connection.queue()
    inbox = connection.consume(queue)
    outcomes = []
    for body in numbered(20):
        outcomes += [connection.send("", queue, body) for _ in range(20)]
        child = os.fork()
        if child == 0:
            os._exit(0)
        assert (child, 0) == os.waitpid(child, 0)
    assert [None] * 400 == [outcome.wait() for outcome in outcomes]
    assert 400 == len(inbox.bodies(400))
