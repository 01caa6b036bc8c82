# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Dedup: a message that arrives several times is handled once."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from tavrida import discovery, dispatcher, exceptions
from tavrida.client import RPCClient
from tavrida.messages import Message, Request, Response
from tavrida.middleware import Middleware
from tavrida.plugins.discovery.convention import ConventionDiscovery
from tavrida.plugins.middleware.dedup import Dedup
from tavrida.plugins.middleware.keys import known_by
from tavrida.plugins.middleware.sqlite_store import SQLiteStore
from tavrida.plugins.middleware.stores import Done, Known, MemoryStore, Store
from tavrida.proxies import notification
from tavrida.retries import Retry
from tavrida.service import ServiceController
from tests.broker.conftest import EXCHANGE, Connect, Serve
from tests.commands import serve as start_server
from tests.processes import Program
from tests.waiting import DEADLINE, eventually

PROGRAM = Path(__file__).with_name("dedup_program.py")


@dispatcher.rpc_service("svc")
class Service(ServiceController):
    """Says what it handles."""

    dedup: Dedup
    seen: SimpleQueue[Any]
    gate: threading.Event
    failures: int

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.add_incoming_middleware(self.dedup)

    @dispatcher.rpc_method(service="svc", method="plain")
    def plain(self, request: Any, proxy: Any, n: int) -> Any:
        self.seen.put(n)
        return Response({"n": n + 1}, extra_headers={"by": "plain"})

    @dispatcher.rpc_method(service="svc", method="quick")
    async def quick(self, request: Any, proxy: Any, n: int) -> Any:
        self.seen.put(n)
        await asyncio.sleep(0)
        return Response({"n": n + 1}, extra_headers={"by": "quick"})

    @dispatcher.rpc_method(service="svc", method="gated")
    def gated(self, request: Any, proxy: Any, n: int) -> dict[str, Any]:
        self.seen.put(n)
        assert self.gate.wait(DEADLINE)
        return self._maybe(n)

    @dispatcher.rpc_method(service="svc", method="gated_quick")
    async def gated_quick(self, request: Any, proxy: Any, n: int) -> dict[str, Any]:
        self.seen.put(n)
        await asyncio.to_thread(self.gate.wait, DEADLINE)
        return self._maybe(n)

    @dispatcher.rpc_method(service="svc", method="hangs")
    async def hangs(self, request: Any, proxy: Any, n: int) -> None:
        self.seen.put(n)
        if not self.gate.is_set():
            await asyncio.sleep(DEADLINE)

    def _maybe(self, n: int) -> dict[str, Any]:
        if Service.failures:
            Service.failures -= 1
            raise ZeroDivisionError("on purpose")
        return {"n": n}

    @dispatcher.rpc_method(service="svc", method="order")
    @known_by("payload.order.id")
    def order(self, request: Any, proxy: Any, order: dict[str, Any], n: int) -> None:
        self.seen.put(n)

    @dispatcher.rpc_method(service="svc", method="often")
    @known_by("off")
    def often(self, request: Any, proxy: Any, n: int) -> None:
        self.seen.put(n)

    @dispatcher.rpc_method(service="svc", method="sends")
    def sends(self, request: Any, proxy: Any, n: int, to: str) -> None:
        self.seen.put(n)
        proxy[to].plain(n=n + 1).cast()

    @dispatcher.rpc_method(service="svc", method="cannot_send")
    def cannot_send(self, request: Any, proxy: Any, n: int) -> None:
        with pytest.raises(exceptions.MessageError):
            proxy.svc.plain(n=object()).cast()
        self.seen.put(n)

    @dispatcher.rpc_method(service="svc", method="passes_on")
    def passes_on(self, request: Any, proxy: Any, n: int) -> None:
        self.seen.put(n)
        proxy.svc.plain(n=n).transfer(request)

    @dispatcher.rpc_method(service="svc", method="sends_apart")
    def sends_apart(self, request: Any, proxy: Any, n: int) -> dict[str, Any]:
        def send() -> None:
            for _ in range(50):
                proxy.svc.often(n=n).cast()

        self.seen.put(n)
        sending = threading.Thread(target=send)
        sending.start()
        sending.join()
        return {"n": n}

    @dispatcher.rpc_method(
        service="svc", method="nonsense", retry=Retry(2, 0.01, on=("UnknownResult",))
    )
    def nonsense(self, request: Any, proxy: Any, n: int) -> Any:
        self.seen.put(n)
        if Service.failures:
            Service.failures -= 1
            return 5
        return {"n": n}

    @dispatcher.subscription_method(service="news", method="told")
    def told(self, event: Any, proxy: Any, n: int) -> None:
        self.seen.put(n)


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Each of the stores in turn."""
    return MemoryStore() if request.param == "memory" else SQLiteStore(str(tmp_path / "dedup.db"))


@pytest.fixture(autouse=True)
def _fresh(store: Store) -> None:
    Service.dedup = Dedup(store)
    Service.seen = SimpleQueue()
    Service.gate = threading.Event()
    Service.failures = 0
    known = discovery.LocalDiscovery()
    known.register_remote_service("nobody", EXCHANGE)
    known.register_remote_publisher("news", "news")
    Service.set_discovery(known)


def request_of(client: RPCClient, method: str, message_id: str, **payload: Any) -> Request:
    """A request with that message id."""
    request: Request = client.svc[method](**payload)._request()
    request.message_id = message_id
    return request


def cast(client: RPCClient, method: str, message_id: str, **payload: Any) -> None:
    client._sender.send(request_of(client, method, message_id, **payload))


def call(client: RPCClient, method: str, message_id: str, **payload: Any) -> Any:
    return client._sender.ask(request_of(client, method, message_id, **payload), DEADLINE)


def next_of() -> Any:
    return Service.seen.get(timeout=DEADLINE)


@pytest.mark.parametrize("method", ["plain", "quick"])
def test_a_cast_that_arrives_again_is_not_handled_again(
    serve: Serve, connect: Connect, method: str
) -> None:
    """The next one of another id is."""
    serve(Service, concurrency=1)
    client = connect("svc")
    for _ in range(3):
        cast(client, method, "m1", n=1)
    cast(client, method, "m2", n=2)
    assert [1, 2] == [next_of(), next_of()]
    assert Service.seen.empty()


def test_an_event_that_arrives_again_is_not_handled_again(serve: Serve, connect: Connect) -> None:
    """Notifications have no answer that could stand for the handler; they are just over."""
    serve(Service, concurrency=1)
    known = discovery.LocalDiscovery()
    known.register_local_publisher("news", "news")
    client = connect(discovery=known, source="news.told")
    event = notification(client._origin, {"n": 1})
    for _ in range(2):
        client._sender.send(event)
    client.publish(n=2)
    assert [1, 2] == [next_of(), next_of()]
    assert Service.seen.empty()


@pytest.mark.parametrize("method", ["plain", "quick"])
def test_a_request_that_arrives_again_gets_the_answer_of_the_first(
    serve: Serve, connect: Connect, method: str
) -> None:
    """Payload, context and headers of it; the handler runs once."""
    serve(Service)
    client = connect("svc")
    answers = [call(client, method, "m1", n=1).result(DEADLINE) for _ in range(2)]
    for answer in answers:
        assert ({"n": 2}, {"n": 2}, {"by": method}) == (
            answer.payload,
            answer.context,
            answer.extra_headers,
        )
    assert 1 == next_of()
    assert Service.seen.empty()


def test_a_request_that_was_handled_as_a_cast_has_no_answer_and_says_so(
    serve: Serve, connect: Connect
) -> None:
    """An error, not a second run, and not an empty answer that nobody gave."""
    serve(Service)
    client = connect("svc")
    cast(client, "plain", "m1", n=1)
    with pytest.raises(exceptions.RemoteError, match=r"AnswerNotKept.*m1 to svc\.plain") as caught:
        call(client, "plain", "m1", n=1).result(DEADLINE)
    assert 1050 < caught.value.code


def test_an_answer_over_the_limit_is_not_kept(serve: Serve, connect: Connect, store: Store) -> None:
    """The first caller gets it, a duplicate hears why not."""
    Service.dedup = Dedup(store, max_answer=10)
    serve(Service)
    client = connect("svc")
    assert {"n": 2} == call(client, "plain", "m1", n=1).result(DEADLINE).payload
    with pytest.raises(exceptions.RemoteError, match="its answer was not kept: it was over"):
        call(client, "plain", "m1", n=1).result(DEADLINE)


def test_a_transferred_request_that_arrives_again_is_answered_by_the_other_service_only(
    serve: Serve, connect: Connect
) -> None:
    """Its caller gets one answer, and that is no error."""
    serve(Service)
    client = connect("svc")
    assert {"n": 2} == call(client, "passes_on", "m1", n=1).result(DEADLINE).payload
    assert [1, 1] == [next_of(), next_of()]
    eventually(lambda: isinstance(_known(Service.dedup, "passes_on"), Done))
    with pytest.raises(exceptions.CallTimeout):
        client._sender.ask(request_of(client, "passes_on", "m1", n=1), 0.3).result(DEADLINE)
    assert Service.seen.empty()


def _known(dedup: Dedup, method: str) -> Known:
    """What the store knows of the only message that this handler had."""
    store = dedup.store
    if isinstance(store, SQLiteStore):
        with store._using() as connection:
            rows = connection.execute("SELECT answer FROM records WHERE owner = 0").fetchall()
        return Done(rows[0][0]) if len(rows) == 2 else None
    assert isinstance(store, MemoryStore)
    return Done(b"") if len(store._finished) == 2 else None


@pytest.mark.parametrize("method", ["gated", "gated_quick"])
def test_a_duplicate_waits_for_the_one_that_runs(
    serve: Serve, connect: Connect, method: str
) -> None:
    """Both callers get the same answer."""
    serve(Service)
    client = connect("svc")
    first = call(client, method, "m1", n=1)
    assert 1 == next_of()
    second = call(client, method, "m1", n=1)
    Service.gate.set()
    assert [{"n": 1}] * 2 == [each.result(DEADLINE).payload for each in (first, second)]
    assert Service.seen.empty()


@pytest.mark.parametrize("method", ["gated", "gated_quick"])
def test_a_duplicate_of_one_that_fails_is_handled(
    serve: Serve, connect: Connect, method: str
) -> None:
    """It waits, and is not lost with the first."""
    Service.failures = 1
    serve(Service)
    client = connect("svc")
    first = call(client, method, "m1", n=1)
    assert 1 == next_of()
    second = call(client, method, "m1", n=1)
    Service.gate.set()
    with pytest.raises(exceptions.RemoteError, match="on purpose"):
        first.result(DEADLINE)
    assert 1 == next_of()
    assert {"n": 1} == second.result(DEADLINE).payload


@pytest.mark.parametrize("method", ["gated", "gated_quick"])
def test_a_duplicate_does_not_wait_for_ever(
    serve: Serve, connect: Connect, store: Store, method: str
) -> None:
    """After ``wait`` seconds it fails, and says why."""
    Service.dedup = Dedup(store, wait=0.1)
    serve(Service)
    client = connect("svc")
    first = call(client, method, "m1", n=1)
    assert 1 == next_of()
    with pytest.raises(exceptions.RemoteError, match=r"DuplicateRunning: m1 to svc\.gated"):
        call(client, method, "m1", n=1).result(DEADLINE)
    Service.gate.set()
    assert {"n": 1} == first.result(DEADLINE).payload


def test_what_a_handler_sent_has_to_be_confirmed_before_it_is_done(
    serve: Serve, connect: Connect
) -> None:
    """A cast that found nobody failed the message: when it comes again, it is handled again."""
    serve(Service, concurrency=1, retry=False)
    client = connect("svc")
    cast(client, "sends", "m1", n=1, to="nobody")
    cast(client, "sends", "m1", n=1, to="nobody")
    assert [1, 1] == [next_of(), next_of()]
    cast(client, "sends", "m2", n=2, to="svc")
    cast(client, "sends", "m2", n=2, to="svc")
    assert [2, 3] == [next_of(), next_of()]
    cast(client, "plain", "m3", n=9)
    assert 9 == next_of()


def test_what_could_not_be_written_is_not_waited_for(serve: Serve, connect: Connect) -> None:
    """The handler heard of it and went on."""
    serve(Service, concurrency=1)
    client = connect("svc")
    for _ in range(2):
        cast(client, "cannot_send", "m1", n=1)
    cast(client, "plain", "m2", n=2)
    assert [1, 2] == [next_of(), next_of()]
    assert Service.seen.empty()


def test_the_second_attempt_of_a_message_is_no_duplicate(serve: Serve, connect: Connect) -> None:
    """It has the same id; what failed is not done."""
    Service.failures = 1
    Service.gate.set()
    serve(Service, retry=3)
    cast(connect("svc"), "gated", "m1", n=1)
    assert [1, 1] == [next_of(), next_of()]


def test_a_call_that_is_tried_again_does_not_wait_for_itself(
    serve: Serve, connect: Connect
) -> None:
    """Also where its handler ended well, with what is no answer."""
    Service.failures = 1
    serve(Service)
    assert {"n": 1} == call(connect("svc"), "nonsense", "m1", n=1).result(DEADLINE).payload
    assert [1, 1] == [next_of(), next_of()]


def test_the_answer_of_a_handler_is_kept_though_it_did_not_get_out(
    serve: Serve, connect: Connect
) -> None:
    """Outgoing middleware failed: the handler is not run again, and nobody waits for it."""

    class Signs(Middleware):
        is_away = True

        def process(self, message: Message) -> Message:
            if self.is_away:
                raise OSError("the key server is away")
            message.extra_headers["signed"] = message.extra_headers.get("signed", 0) + 1
            return message

    class Signing(Service):
        signs = Signs()

        def __init__(self, options: Any = None) -> None:
            super().__init__(options)
            self.add_outgoing_middleware(self.signs)

    serve(Signing)
    client = connect("svc")
    with pytest.raises(exceptions.RemoteError, match="the key server is away"):
        call(client, "plain", "m1", n=1).result(DEADLINE)
    Signs.is_away = False
    for _ in range(2):
        answer = call(client, "plain", "m1", n=1).result(DEADLINE)
        assert {"n": 2} == answer.payload
        assert {"by": "plain", "signed": 1} == answer.extra_headers
    assert 1 == next_of()
    assert Service.seen.empty()


def test_the_answer_is_kept_where_another_thread_sent_for_the_handler(
    serve: Serve, connect: Connect, store: Store
) -> None:
    """The last confirm ends the message then, in a context that is nobody's."""
    Service.dedup = Dedup(store, wait=0.5)
    serve(Service, prefetch=100)
    client = connect("svc")
    for _ in range(2):
        assert {"n": -1} == call(client, "sends_apart", "m1", n=-1).result(DEADLINE).payload
    cast(client, "plain", "m2", n=2)
    seen = [next_of()]
    while seen[-1] != 2 or len(seen) < 52:
        seen.append(next_of())
    assert 52 == len(seen)


@pytest.mark.parametrize("method", ["gated", "hangs"])
def test_a_server_that_does_not_wait_for_a_handler_holds_no_claim(
    serve: Serve, connect: Connect, method: str
) -> None:
    """The broker delivers the message again; another server of this process handles it."""
    server = serve(Service, graceful_timeout=0.1)
    cast(connect("svc"), method, "m1", n=1)
    assert 1 == next_of()
    server.stop()
    Service.gate.set()
    serve(Service)
    assert 1 == next_of()


def test_a_handler_may_name_another_key(serve: Serve, connect: Connect) -> None:
    """Messages of one order are the same, whatever their ids."""
    serve(Service, concurrency=1)
    client = connect("svc")
    cast(client, "order", "m1", order={"id": 7}, n=1)
    cast(client, "order", "m2", order={"id": 7}, n=2)
    cast(client, "order", "m3", order={"id": "7"}, n=3)
    cast(client, "often", "m4", n=4)
    cast(client, "often", "m4", n=5)
    assert [1, 3, 4, 5] == [next_of() for _ in range(4)]


class _Full(MemoryStore):
    """A store whose disk is full, for a while."""

    is_full = True

    def claim(self, key: bytes) -> Known:
        if self.is_full:
            raise exceptions.StoreFailed("dedup cannot use its database: disk full. Make room")
        return super().claim(key)


def test_a_store_that_fails_fails_the_message_and_does_not_lose_it(
    serve: Serve, connect: Connect
) -> None:
    """The handler is not run; the caller hears why; the message is retried."""
    full = _Full()
    Service.dedup = Dedup(full)
    serve(Service, retry=5)
    client = connect("svc")
    with pytest.raises(exceptions.RemoteError, match="StoreFailed: dedup cannot use its database"):
        call(client, "plain", "m1", n=1).result(DEADLINE)
    cast(client, "plain", "m2", n=2)
    full.is_full = False
    assert 2 == next_of()


def test_a_record_that_cannot_be_written_is_told_and_the_message_is_acknowledged(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """It was handled: that a duplicate would be handled again is the smaller evil."""

    class Forgets(MemoryStore):
        def finish(self, key: bytes, answer: bytes) -> None:
            raise exceptions.StoreFailed("disk full")

    Service.dedup = Dedup(Forgets())
    serve(Service)
    client = connect("svc")
    assert {"n": 2} == call(client, "plain", "m1", n=1).result(DEADLINE).payload
    cast(client, "plain", "m1", n=1)
    assert [1, 1] == [next_of(), next_of()]
    eventually(lambda: caplog.text.count("a duplicate would be handled again: disk full") == 2)
    assert not [each for each in caplog.records if each.exc_info]


def test_after_kill_9_before_the_acknowledgement_what_was_recorded_is_not_handled_again(
    connect: Connect, url: str, tmp_path: Path
) -> None:
    """The broker delivers it again; it is acknowledged without its handler."""
    store = str(tmp_path / "shared.db")
    client = connect("svc")
    with Program([PROGRAM, url, store, "after"]) as first:
        first.line("is serving")
        cast(client, "ok", "m1", n=1)
        first.line("handles 1")
        first.line("recorded")
        assert -signal.SIGKILL == first.end(signal.SIGKILL)
    with Program([PROGRAM, url, store, "nowhere"]) as second:
        second.line("is serving")
        cast(client, "ok", "m2", n=2)
        second.line("handles 2")
        assert "handles 1" not in second.output


def test_after_kill_9_in_the_handler_it_is_handled_again_at_once(
    connect: Connect, url: str, tmp_path: Path
) -> None:
    """The claim of a process that is gone holds nobody up: its lease is an hour."""
    store = str(tmp_path / "shared.db")
    with Program([PROGRAM, url, store, "inside"]) as first:
        first.line("is serving")
        cast(connect("svc"), "ok", "m1", n=1)
        first.line("handles 1")
        assert -signal.SIGKILL == first.end(signal.SIGKILL)
    with Program([PROGRAM, url, store, "nowhere"]) as second:
        second.line("handles 1")


def test_an_ini_is_all_that_it_needs(connect: Connect, url: str, tmp_path: Path) -> None:
    """One dedup for all services; it sees what their handlers send and answer as well."""
    ini = tmp_path / "hello.conf"
    ini.write_text(
        f"[connection]\nurl = {url}\n[server]\nservices = test_hello, test_world\n"
        "incoming_middleware = dedup\n"
        f"[middleware:dedup]\nplace = {tmp_path}/dedup.db\nwait = 5\n"
    )
    with start_server(f"--config-file={ini}") as server:
        client = connect(discovery=ConventionDiscovery())
        answers = []
        for _ in range(2):
            request = client.test_hello.hello(param="you")._request()
            request.message_id = "m1"
            answers.append(client._sender.ask(request, DEADLINE).result(DEADLINE).payload)
        assert [{"greeting": "Hello, you!"}] * 2 == answers
        server.line("Dropped a duplicate: message m1 to test_hello.hello was handled before.")
        assert 1 == server.output.count("---- request to hello ----")


def test_dropped_duplicates_are_logged(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """One line at INFO, with id and entry point."""
    caplog.set_level(logging.INFO)
    serve(Service)
    client = connect("svc")
    cast(client, "plain", "m1", n=1)
    next_of()
    cast(client, "plain", "m1", n=1)
    text = "Dropped a duplicate: message m1 to svc.plain was handled before."
    eventually(lambda: text in caplog.text)
