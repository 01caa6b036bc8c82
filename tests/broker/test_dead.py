# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""``tavrida dead`` on queues of every transport and type: what it shows, and what stays."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from pika.adapters.blocking_connection import BlockingChannel

from tavrida import discovery, dispatcher, exceptions, plugins, recovery
from tavrida.cli import application
from tavrida.config import ConnectionConfig
from tavrida.copies import NEW
from tavrida.dead_letters import dead_letter
from tavrida.letters import Letter
from tavrida.plugins.transports import Delivery
from tavrida.service import ServiceController
from tavrida.testing.faults import Faults, lose_connection
from tavrida.topology import Binding, Exchange, Queue
from tests import commands
from tests.broker.conftest import EXCHANGE, QUEUE, Connect, Serve
from tests.commands import Ended
from tests.processes import Program
from tests.transports.bench import Bench, Connection
from tests.waiting import DEADLINE, eventually

Tavrida = Callable[..., Ended]


@pytest.fixture
def bench(url: str) -> Iterator[Bench]:
    """Connections beside those of the command."""
    with Bench(url) as bench:
        yield bench


@pytest.fixture
def connection(bench: Bench) -> Connection:
    """An open connection."""
    return bench.connect()


@pytest.fixture(params=["classic", "quorum"])
def kind(request: pytest.FixtureRequest) -> str:
    """Each type of queue."""
    return str(request.param)


@pytest.fixture
def tavrida(url: str, capfd: pytest.CaptureFixture[str]) -> Tavrida:
    """Run ``tavrida`` in this process, at the test's place."""

    def run(*arguments: str | Path, url: str = url) -> Ended:
        capfd.readouterr()
        code = application.run([*map(str, arguments), "--url", url], plugins.version())
        return Ended(code, *capfd.readouterr())

    return run


class Graves:
    """A queue and its dead-letter queue, bound to an exchange with the key shop.buy."""

    def __init__(self, connection: Connection, kind: str = "classic", name: str = QUEUE) -> None:
        self.connection = connection
        self.queue, self.dead = name, f"{name}.dead"
        limit = 1_000_000 if kind == "quorum" else None
        connection.declare(
            Exchange(EXCHANGE),
            Queue(self.dead, kind, delivery_limit=limit),
            Queue(name, kind, self.dead, limit),
            Binding(EXCHANGE, name, "shop.buy"),
        )

    def add(self, *bodies: bytes, error: BaseException | None = None, **properties: Any) -> None:
        """Have messages die in the queue, as a server would have them die."""
        for body in bodies:
            self.connection.publish(EXCHANGE, "shop.buy", body, is_mandatory=True, **properties)
        for _ in bodies:
            delivery = self.connection.get(self.queue)
            assert delivery is not None
            letter = dead_letter(delivery, NEW, error or ValueError("on purpose"))
            self.connection.bench.run(_publish(self.connection, letter))
            self.connection.bench.ack(delivery)

    def letters(self) -> list[Delivery]:
        """Take all that is in the dead-letter queue."""
        return self.connection.bench.drain(self.dead)

    def returned(self) -> list[Delivery]:
        """Take all that is in the queue."""
        return self.connection.bench.drain(self.queue)


async def _publish(connection: Connection, publication: Any) -> None:
    confirmed: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
    connection.transport.publish(publication, confirmed.set_result)
    assert await confirmed is None


def _count(connection: Connection, queue: str = f"{QUEUE}.dead") -> int:
    """Return how many messages wait in a queue; none where there is no queue yet."""
    state = connection.inspect(queue)
    return 0 if state is None else state.messages


def _rows(ended: Ended) -> list[dict[str, Any]]:
    """Return what ``list -f json`` printed."""
    assert ended.code == 0, ended
    rows: list[dict[str, Any]] = json.loads(ended.stdout)
    return rows


# -- with real services ----------------------------------------------------------------------------


@dispatcher.rpc_service("shop")
class Shop(ServiceController):
    """Refuses everything while it is closed, in a way that is not tried again."""

    is_open = False
    seen: SimpleQueue[Any] = SimpleQueue()

    @dispatcher.rpc_method(service="shop", method="buy")
    def buy(self, request: Any, proxy: Any, n: int) -> None:
        if not self.is_open:
            raise exceptions.MessageError("the shop is closed")
        self.seen.put((request.payload, dict(request.headers), request.attempt))

    @dispatcher.subscription_method(service="world", method="event")
    def event(self, notification: Any, proxy: Any, n: int) -> None:
        if not self.is_open:
            raise exceptions.MessageError("the shop is closed")
        self.seen.put(("shop", n))


@dispatcher.rpc_service("bar")
class Bar(ServiceController):
    """Hears the same events, and is never closed."""

    @dispatcher.subscription_method(service="world", method="event")
    def event(self, notification: Any, proxy: Any, n: int) -> None:
        Shop.seen.put(("bar", n))


@pytest.fixture(autouse=True)
def _closed() -> None:
    Shop.is_open = False
    Shop.seen = SimpleQueue()
    known = discovery.LocalDiscovery()
    known.register_remote_publisher("world", "world_news")
    for each in (Shop, Bar):
        each.set_discovery(known)


def test_a_letter_is_listed_shown_and_sent_back_to_be_handled(
    serve: Serve, connect: Connect, connection: Connection, tavrida: Tavrida
) -> None:
    """Its next life begins anew: no trace of the first one, and its message id is the same."""
    serve(Shop)
    connect("shop", headers={"colour": "red"}).shop.buy(n=7).cast()
    eventually(lambda: _count(connection) == 1)
    (row,) = _rows(tavrida("dead", "list", "--queue", f"{QUEUE}.dead", "-f", "json"))
    assert (f"{QUEUE}.dead", "shop.buy", "request", 1) == (
        row["Queue"],
        row["Entry point"],
        row["Kind"],
        row["Attempts"],
    )
    assert "MessageError: the shop is closed" == row["Reason"]
    assert 0 <= row["Age"] < DEADLINE
    ended = tavrida("dead", "show", row["Id"][:-1], "--queue", f"{QUEUE}.dead", "-f", "json")
    shown = json.loads(ended.stdout)
    assert {"n": 7} == shown["payload"] == shown["context"]
    assert (QUEUE, EXCHANGE, "shop.buy") == (
        shown["died_in"],
        shown["exchange"],
        shown["routing_key"],
    )
    assert "in buy" in shown["traceback"]
    assert "red" == shown["headers"]["colour"]
    Shop.is_open = True
    ended = tavrida("dead", "requeue", "--all", "--queue", f"{QUEUE}.dead")
    assert Ended(0, "1 of 1 dead letters sent back\n", "") == ended
    payload, headers, attempt = Shop.seen.get(timeout=DEADLINE)
    assert ({"n": 7}, 1) == (payload, attempt)
    assert row["Id"] == headers["message_id"]
    assert "red" == headers["colour"]
    assert not [name for name in headers if name.startswith(("dead_", "retry_", "x-"))]
    assert 0 == _count(connection)


def test_a_letter_that_dies_again_says_where_it_was_published_at_first(
    serve: Serve, connect: Connect, connection: Connection, tavrida: Tavrida
) -> None:
    """However often it came back over the default exchange. It is not sent back twice at once."""
    serve(Shop)
    connect("shop").shop.buy(n=7).cast()
    for _ in range(3):
        eventually(lambda: _count(connection) == 1)
        ended = tavrida("dead", "requeue", "--all", "--queue", f"{QUEUE}.dead")
        assert Ended(0, "1 of 1 dead letters sent back\n", "") == ended
    eventually(lambda: _count(connection) == 1)
    (row,) = _rows(tavrida("dead", "list", "--queue", f"{QUEUE}.dead", "-f", "json"))
    ended = tavrida("dead", "show", row["Id"], "--queue", f"{QUEUE}.dead", "-f", "json")
    shown = json.loads(ended.stdout)
    assert (EXCHANGE, "shop.buy", 1) == (
        shown["exchange"],
        shown["routing_key"],
        shown["attempts"],
    )


def test_an_event_comes_back_only_to_the_queue_in_which_it_died(
    serve: Serve, connect: Connect, connection: Connection, tavrida: Tavrida
) -> None:
    """The other subscriber has handled it; only --to-exchange sends it to all of them again."""
    serve(Shop)
    serve(Bar, queue="bar", exchange="bar")
    known = discovery.LocalDiscovery()
    known.register_local_publisher("world", "world_news")
    connect(source="world.event", discovery=known).publish(n=1)
    assert ("bar", 1) == Shop.seen.get(timeout=DEADLINE)
    eventually(lambda: _count(connection) == 1)
    place = ("--queue", f"{QUEUE}.dead")
    (row,) = _rows(tavrida("dead", "list", *place, "-f", "json"))
    assert ("world.event", "notification") == (row["Entry point"], row["Kind"])
    assert 0 == tavrida("dead", "requeue", "--all", *place).code
    eventually(lambda: _count(connection) == 1)
    assert Shop.seen.empty()
    Shop.is_open = True
    assert 0 == tavrida("dead", "requeue", "--all", "--to-exchange", *place).code
    assert {("bar", 1), ("shop", 1)} == {Shop.seen.get(timeout=DEADLINE) for _ in range(2)}


# -- queues of all kinds ---------------------------------------------------------------------------


def test_a_look_changes_nothing(connection: Connection, tavrida: Tavrida, kind: str) -> None:
    """All letters are where they were, in their order, and with all that is in them."""
    graves = Graves(connection, kind)
    graves.add(*(b'{"n": %d}' % n for n in range(8)), headers={"colour": "red"})
    for _ in range(3):
        rows = _rows(tavrida("dead", "list", "--queue", graves.dead, "-f", "json"))
    ended = tavrida("dead", "show", rows[4]["Id"], "--queue", graves.dead, "-f", "json")
    assert {"n": 4} == json.loads(ended.stdout)["payload"]
    found = graves.letters()
    assert [b'{"n": %d}' % n for n in range(8)] == [each.body for each in found]
    assert {"red"} == {(each.properties.headers or {})["colour"] for each in found}


def test_only_what_is_selected_goes_back_and_the_rest_keeps_its_place(
    connection: Connection, tavrida: Tavrida, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when there is more than one connection holds."""
    monkeypatch.setattr(recovery, "FIRST_WINDOW", 3)
    monkeypatch.setattr(recovery, "MAX_WINDOW", 5)
    graves = Graves(connection, kind)
    for n in range(24):
        graves.add(b"%d" % n, error=KeyError("x") if n % 3 else ValueError("y"))
    place = ("--queue", graves.dead)
    rows = _rows(tavrida("dead", "list", *place, "--reason", "ValueError", "-f", "json"))
    assert 8 == len(rows)
    ended = tavrida("dead", "requeue", "--reason", "ValueError", *place)
    assert Ended(0, "8 of 24 dead letters sent back\n", "") == ended
    assert [b"%d" % n for n in range(0, 24, 3)] == [each.body for each in graves.returned()]
    assert [b"%d" % n for n in range(24) if n % 3] == [each.body for each in graves.letters()]


def test_only_what_is_selected_is_deleted(
    connection: Connection, tavrida: Tavrida, kind: str
) -> None:
    """By the beginning of an id, and no more than --limit says."""
    graves = Graves(connection, kind)
    for name in ("aa1", "aa12", "bb1", "cc1", "cc2"):
        graves.add(name.encode(), message_id=name)
    place = ("--queue", graves.dead)
    # One of them is the beginning of another one's, and meant all the same.
    ended = tavrida("dead", "purge", "aa1", "b", "--yes", *place)
    assert Ended(0, "2 of 5 dead letters deleted\n", "") == ended
    ended = tavrida("dead", "purge", "--all", "--limit", "1", "--yes", *place)
    assert Ended(0, "1 of 3 dead letters deleted\n", "") == ended
    assert [b"cc1", b"cc2"] == [each.body for each in graves.letters()]


def test_a_letter_stays_when_its_queue_is_gone(connection: Connection, tavrida: Tavrida) -> None:
    """One sentence says so. Two with the same message id are two all the same."""
    graves = Graves(connection)
    graves.add(b"1", b"2", message_id="same")
    connection.declare(Queue("elsewhere.dead", "classic"))
    for letter in graves.letters():
        headers = {**(letter.properties.headers or {}), "dead_queue": "gone"}
        connection.publish("", "elsewhere.dead", letter.body, message_id="same", headers=headers)
    ended = tavrida("dead", "requeue", "--all", "--queue", "elsewhere.dead")
    assert (1, "0 of 2 dead letters sent back\n") == (ended.code, ended.stdout)
    assert "tavrida: 2 stay: there is no queue 'gone'\n" == ended.stderr
    assert [b"1", b"2"] == connection.bench.bodies_in("elsewhere.dead")


def test_a_letter_whose_exchange_is_gone_stays_too(
    connection: Connection, tavrida: Tavrida
) -> None:
    """With --to-exchange; and so does one that the exchange has no queue for."""
    graves = Graves(connection)
    graves.add(b"1")
    (letter,) = graves.letters()
    for exchange in ("no_such", EXCHANGE):
        headers = {
            **(letter.properties.headers or {}),
            "dead_exchange": exchange,
            "dead_routing_key": "x.y",
        }
        connection.publish("", graves.dead, b"1", headers=headers)
    ended = tavrida("dead", "requeue", "--all", "--to-exchange", "--queue", graves.dead)
    assert (1, "0 of 2 dead letters sent back\n") == (ended.code, ended.stdout)
    first, second = sorted(ended.stderr.splitlines())
    assert "1 stay: nobody serves 'x': exchange 'no_such'" in first
    assert "1 stay: nobody serves 'x': exchange 'test_exchange'" in second
    assert [b"1", b"1"] == connection.bench.bodies_in(graves.dead)


def test_what_the_broker_moved_itself_is_a_letter_too(
    connection: Connection, tavrida: Tavrida, kind: str
) -> None:
    """Foreign messages that expired or were rejected: x-death tells where they came from."""
    graves = Graves(connection, kind)
    connection.publish(EXCHANGE, "shop.buy", b'{"n": 1}', expiration=1, message_id="m1")
    eventually(lambda: _count(connection) == 1)
    connection.publish(EXCHANGE, "shop.buy", b"\xff\x00", message_id="")
    rejected = connection.get(graves.queue)
    assert rejected is not None
    connection.bench.reject(rejected)
    eventually(lambda: _count(connection) == 2)
    place = ("--queue", graves.dead)
    first, second = _rows(tavrida("dead", "list", *place, "-f", "json"))
    assert ("m1", "shop.buy", "expired") == (first["Id"], first["Entry point"], first["Reason"])
    assert ("shop.buy", "rejected") == (second["Entry point"], second["Reason"])
    assert second["Id"].startswith("body-")
    assert max(first["Age"], second["Age"]) < DEADLINE
    ended = tavrida("dead", "show", second["Id"], *place, "-f", "json")
    shown = json.loads(ended.stdout)
    assert ("ff00", EXCHANGE, "shop.buy", graves.queue) == (
        shown["payload"],
        shown["exchange"],
        shown["routing_key"],
        shown["died_in"],
    )
    assert "cannot be read as application/json" in shown["undecodable"]
    assert 0 == tavrida("dead", "requeue", "--reason", "expired", *place).code
    assert 0 == tavrida("dead", "requeue", second["Id"], *place).code
    one, two = graves.returned()
    assert (b'{"n": 1}', "m1", None) == (
        one.body,
        one.properties.message_id,
        getattr(one.properties, "expiration", None),
    )
    headers = dict(one.properties.headers or {})
    headers.pop("x-delivery-count", None)
    assert {"retry_exchange": EXCHANGE, "retry_routing_key": "shop.buy"} == headers
    assert b"\xff\x00" == two.body
    assert two.properties.message_id


def test_what_the_broker_moved_between_two_attempts_knows_where_it_was_published_at_first(
    connection: Connection, tavrida: Tavrida
) -> None:
    """Not x-death, which tells of its copy, but the headers of retries do."""
    graves = Graves(connection)
    headers = {
        "retry_attempt": 3,
        "retry_exchange": "news",
        "retry_routing_key": "world.event",
        "retry_since": 1_700_000_000,
    }
    connection.publish("", graves.queue, b"{}", headers=headers, message_id="m1")
    copy = connection.get(graves.queue)
    assert copy is not None
    connection.bench.reject(copy)
    eventually(lambda: _count(connection) == 1)
    ended = tavrida("dead", "show", "m1", "--queue", graves.dead, "-f", "json")
    shown = json.loads(ended.stdout)
    assert ("news", "world.event", 3, "2023-11-14T22:13:20+00:00") == (
        shown["exchange"],
        shown["routing_key"],
        shown["attempts"],
        shown["first_failed"],
    )
    assert 0 == tavrida("dead", "requeue", "m1", "--queue", graves.dead).code
    (back,) = graves.returned()
    assert {"retry_exchange": "news", "retry_routing_key": "world.event"} == back.properties.headers


def test_a_message_that_somebody_put_there_goes_to_the_queue_that_it_belongs_to(
    connection: Connection, tavrida: Tavrida
) -> None:
    """Nothing in it tells more. Where no queue can be told, it stays."""
    graves = Graves(connection)
    connection.declare(Queue("other", "classic"))
    connection.publish("", graves.dead, b"{}", headers={"x-death": "nonsense", "dead_at": "x"})
    connection.publish("", "other", b"{}")
    (row,) = _rows(tavrida("dead", "list", "--queue", graves.dead, "-f", "json"))
    assert (None, "") == (row["Age"], row["Reason"])
    assert 0 == tavrida("dead", "requeue", "--all", "--queue", graves.dead).code
    assert [b"{}"] == [each.body for each in graves.returned()]
    ended = tavrida("dead", "requeue", "--all", "--queue", "other")
    assert (1, "0 of 1 dead letters sent back\n") == (ended.code, ended.stdout)
    assert "1 stay: it does not say in which queue it died" in ended.stderr


def test_a_call_that_nobody_waits_for_stays_or_becomes_a_cast(
    connection: Connection, tavrida: Tavrida
) -> None:
    """It would not be run; and answered to nobody if it failed again, so that it were lost."""
    graves = Graves(connection)
    graves.add(b"{}", headers={"deadline": 1_000}, reply_to="gone")
    graves.add(b"{}", headers={"deadline": 99_999_999_999_999}, reply_to="here")
    place = ("--queue", graves.dead)
    ended = tavrida("dead", "requeue", "--all", *place)
    assert (1, "1 of 2 dead letters sent back\n") == (ended.code, ended.stdout)
    assert "1 stay: the deadline has passed" in ended.stderr
    (call,) = graves.returned()
    assert "here" == call.properties.reply_to
    assert 99_999_999_999_999 == (call.properties.headers or {})["deadline"]
    assert 0 == tavrida("dead", "requeue", "--all", "--force", *place).code
    (cast,) = graves.returned()
    assert not cast.properties.reply_to
    assert "deadline" not in (cast.properties.headers or {})


def test_what_goes_back_may_get_a_new_message_id(connection: Connection, tavrida: Tavrida) -> None:
    """For a service that would take it for a duplicate of what it has done."""
    graves = Graves(connection)
    graves.add(b"1", b"2", message_id="same")
    assert 0 == tavrida("dead", "requeue", "--all", "--new-id", "--queue", graves.dead).code
    ids = {each.properties.message_id for each in graves.returned()}
    assert 2 == len(ids)
    assert "same" not in ids


def test_with_a_new_message_id_it_stays_in_its_chain(
    connection: Connection, tavrida: Tavrida
) -> None:
    """Which the old one named, where there is no correlation id and nobody to answer."""
    graves = Graves(connection)
    graves.add(b"1", message_id="first")
    graves.add(b"2", message_id="second", correlation_id="chain")
    graves.add(b"3", message_id="third", reply_to="here")
    assert 0 == tavrida("dead", "requeue", "--all", "--new-id", "--queue", graves.dead).code
    chains = {each.body: each.properties.correlation_id or "" for each in graves.returned()}
    assert {b"1": "first", b"2": "chain", b"3": ""} == chains


def test_what_another_operator_looks_at_is_not_seen(
    bench: Bench, connection: Connection, tavrida: Tavrida, kind: str
) -> None:
    """Only as long as he does; that he does is told."""
    graves = Graves(connection, kind)
    graves.add(b"1", b"2", b"3")
    other = bench.connect()
    other.consume(graves.dead, 2).take(2)
    ended = tavrida("dead", "list", "--queue", graves.dead, "-f", "json")
    assert 1 == len(_rows(ended))
    assert f"somebody else looks into {graves.dead} just now: what they hold is not" in ended.stderr
    other.close()
    ended = tavrida("dead", "requeue", "--all", "--queue", graves.dead)
    assert Ended(0, "3 of 3 dead letters sent back\n", "") == ended


def test_what_others_take_during_a_look_is_not_waited_for(
    url: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look ends when nothing is left."""
    monkeypatch.setattr(recovery, "MAX_WINDOW", 1)
    graves = Graves(connection)
    graves.add(b"1", b"2", b"3")
    seen = []

    def see(letter: Letter, delivery: Delivery) -> bool:
        seen.append(delivery.body)
        return connection.get(graves.dead) is not None and connection.get(graves.dead) is not None

    with recovery.Recovery(ConnectionConfig(url=(url,))) as opened:
        opened.look(graves.dead, see)
    assert [b"1"] == seen


def test_a_queue_that_hands_nothing_over_is_told(
    channel: BlockingChannel, tavrida: Tavrida, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One with a single active consumer, which is not us."""
    monkeypatch.setenv("OS_CONNECTION__PUBLISH_TIMEOUT", "0.6")
    alone = {"x-single-active-consumer": True}
    channel.queue_declare("single", durable=True, arguments=alone)
    channel.basic_qos(prefetch_count=1)
    channel.basic_consume("single", lambda *delivery: None)
    for _ in range(3):
        channel.basic_publish("", "single", b"")
    channel.connection.process_data_events(0.1)
    eventually(lambda: channel.queue_declare("single", passive=True).method.message_count == 2)
    ended = tavrida("dead", "list", "--queue", "single")
    assert (1, "") == (ended.code, ended.stdout)
    assert "queue 'single' holds 2 messages and hands none over" in ended.stderr


def test_a_lost_connection_ends_the_command_and_nothing_is_lost(
    url: str, connection: Connection, tavrida: Tavrida
) -> None:
    """Exit code 3; it can simply be run again."""
    graves = Graves(connection)
    graves.add(*(b"%d" % n for n in range(10)))
    faults = Faults(url, lose_connection("deliver", at=4))
    ended = tavrida("dead", "requeue", "--all", "--queue", graves.dead, url=faults.url)
    assert (3, "") == (ended.code, ended.stdout)
    assert "the connection was lost: " in ended.stderr
    assert "letters had left the queue; the others are in it: run it again" in ended.stderr
    eventually(
        lambda: (
            {b"%d" % n for n in range(10)}
            == {each.body for each in [*graves.letters(), *graves.returned()]}
        )
    )


@pytest.mark.parametrize("kind", ["quorum", pytest.param("classic", marks=pytest.mark.slow)])
def test_kill_9_at_any_time_loses_nothing(
    url: str, bench: Bench, connection: Connection, kind: str
) -> None:
    """Each letter is in one of the two queues; at worst, those on their way are in both."""
    graves = Graves(connection, kind)
    count = 2500
    headers = {"dead_queue": graves.queue, "dead_exchange": EXCHANGE, "dead_routing_key": "shop.x"}
    connection.put(graves.dead, *(b"%d" % n for n in range(count)), headers=headers)
    for number in (1, 900):
        arguments = ("dead", "requeue", "--all", "--url", url, "--queue", graves.dead)
        with Program([commands.SCRIPTS / "tavrida", *arguments]) as program:
            eventually(lambda n=number: _count(connection, graves.queue) >= n)  # type: ignore[misc]
            assert -signal.SIGKILL == program.end(signal.SIGKILL)
    eventually(lambda: not _is_held(connection, graves))
    returned = graves.returned()
    back = {each.body for each in returned}
    left = {each.body for each in graves.letters()}
    assert 900 <= len(returned)
    assert {b"%d" % n for n in range(count)} == back | left
    assert len(back & left) <= 2 * recovery.FIRST_WINDOW


def _is_held(connection: Connection, graves: Graves) -> bool:
    """Tell whether the broker still counts a consumer: one of the killed process."""
    state = connection.inspect(graves.dead)
    assert state is not None
    return state.consumers > 0
