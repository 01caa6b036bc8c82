# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Outgoing middleware of both clients: what it hears of each message, and that it hears its end."""

from __future__ import annotations

import asyncio
import contextvars
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from tavrida import assembly, discovery, dispatcher, exceptions
from tavrida.client import AsyncRPCClient, RPCClient
from tavrida.config import ConnectionConfig, HealthSettings
from tavrida.messages import IncomingResponse, Message, Request
from tavrida.middleware import Middleware, Vitals
from tavrida.plugins.middleware.opentelemetry import OpenTelemetry
from tavrida.plugins.middleware.prometheus import Prometheus
from tavrida.service import ServiceController
from tavrida.testing.faults import Faults, delay
from tests import commands
from tests.broker.conftest import EXCHANGE, Serve
from tests.packages import Packages
from tests.rabbitmq import free_port
from tests.scrapes import Scrape
from tests.waiting import DEADLINE, eventually

#: What the program is doing, in each of its contexts.
doing: contextvars.ContextVar[str] = contextvars.ContextVar("doing", default="")


@dispatcher.rpc_service("shop")
class Shop(ServiceController):
    watching: Middleware = Middleware()
    gate = threading.Event()

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.add_incoming_middleware(self.watching)
        self.add_outgoing_middleware(self.watching)

    @dispatcher.rpc_method(service="shop", method="buy")
    async def buy(self, request: Any, proxy: Any, n: int = 0) -> dict[str, Any]:
        return {"n": (await proxy.shop.pay(n=n))["n"]}

    @dispatcher.rpc_method(service="shop", method="pay")
    def pay(self, request: Any, proxy: Any, n: int = 0) -> dict[str, Any]:
        return {"n": n, "traceparent": request.headers.get("traceparent")}

    @dispatcher.rpc_method(service="shop", method="note")
    async def note(self, request: Any, proxy: Any, n: str) -> dict[str, Any]:
        return {"n": n}

    @dispatcher.rpc_method(service="shop", method="fails")
    async def fails(self, request: Any, proxy: Any) -> None:
        raise LookupError("nothing there")

    @dispatcher.rpc_method(service="shop", method="waits")
    async def waits(self, request: Any, proxy: Any) -> None:
        await asyncio.to_thread(self.gate.wait, DEADLINE)

    @dispatcher.subscription_method(service="press", method="news")
    async def news(self, event: Any, proxy: Any, n: int) -> None: ...


class Witness(Middleware):
    """Notes each hook: its name, what of, how that ended, and what the program was doing."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str, str, str]] = []
        self.observed: list[tuple[int, Vitals]] = []

    def observe(self, vitals: Vitals) -> None:
        self.observed.append((os.getpid(), vitals))

    def note(self, hook: str, message: Message, error: BaseException | None = None) -> None:
        goal = message.destination if isinstance(message, Request) else message.source
        how = "" if error is None else type(error).__name__
        self.heard.append((hook, str(goal), how, doing.get()))

    def process(self, message: Message) -> Message:
        self.note("process", message)
        return message

    def before_publish(self, message: Message) -> None:
        self.note("before_publish", message)

    def after_publish(self, message: Message, error: BaseException | None) -> None:
        self.note("after_publish", message, error)

    def before_call(self, message: Request) -> None:
        self.note("before_call", message)

    def after_call(
        self, message: Request, answer: IncomingResponse | None, error: BaseException | None
    ) -> None:
        assert (answer is None) is (error is not None)
        self.note("after_call", message, error)

    def ends(self, hook: str, number: int = 1) -> list[str]:
        """Return how each of so many messages ended; more would be an error."""
        eventually(lambda: len(self._of(hook)) >= number)
        return self._of(hook)

    def _of(self, hook: str) -> list[str]:
        return [how for name, _, how, _ in self.heard if name == hook]


def known() -> discovery.LocalDiscovery:
    found = discovery.LocalDiscovery()
    found.register_remote_service("shop", EXCHANGE)
    found.register_remote_service("nobody", "nobody")
    found.register_local_publisher("press", "press")
    found.register_remote_publisher("press", "press")
    return found


Shop.set_discovery(known())


@pytest.fixture
def start(serve: Serve) -> Iterator[Serve]:
    """As ``serve``; opens the gate before the server stops, for ``shop.waits``."""
    Shop.watching, Shop.gate = Middleware(), threading.Event()
    yield serve
    Shop.gate.set()


@pytest.fixture
def witness() -> Witness:
    """Hears what the client of the test sends."""
    return Witness()


@pytest.fixture
def client(config: ConnectionConfig, witness: Witness) -> Iterator[RPCClient]:
    """A client with the witness."""
    with RPCClient(
        config, discovery=known(), source="press.news", outgoing_middleware=[witness]
    ) as client:
        yield client


@pytest.fixture
def served(start: Serve) -> None:
    """The shop."""
    start(Shop)


def run_async(config: ConnectionConfig, witness: Middleware, play: Callable[[Any], Any]) -> Any:
    """Run ``await play(client)`` with an AsyncRPCClient that has the witness."""

    async def main() -> Any:
        async with AsyncRPCClient(
            config, discovery=known(), source="press.news", outgoing_middleware=[witness]
        ) as client:
            return await play(client)

    return asyncio.run(main())


# -- wrong middleware


@pytest.mark.parametrize("cls", [RPCClient, AsyncRPCClient])
@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        (
            ["promotheus"],
            "no plugin 'promotheus' in tavrida.middleware (did you mean 'prometheus'?)",
        ),
        ("prometheus", "outgoing_middleware='prometheus' should be a list"),
        (7, "outgoing_middleware=7 should be a list"),
        ([Prometheus], "is neither the name of a plugin nor an object of a class that derives"),
        ([None], "outgoing_middleware: None is neither the name of a plugin nor an object"),
    ],
)
def test_wrong_middleware_is_told_in_one_sentence(cls: Any, wanted: Any, told: str) -> None:
    """Before anything connects, with the name and the remedy."""
    with pytest.raises(exceptions.ConfigError) as raised:
        cls(ConnectionConfig(url=("sqlite:///nowhere",)), outgoing_middleware=wanted)
    assert told in str(raised.value)
    assert 1 == len(raised.value.faults)


def test_all_faults_of_the_middleware_are_told(config: ConnectionConfig) -> None:
    """Also a hook that nobody would await."""

    class Late(Middleware):
        async def before_publish(self, message: Message) -> None:  # type: ignore[override]
            """Never runs."""

    with pytest.raises(exceptions.ConfigError) as raised:
        RPCClient(config, outgoing_middleware=["nothing", Late()])
    assert 2 == len(raised.value.faults)
    assert "Late.before_publish is async def" in str(raised.value)


def test_a_process_that_returns_no_message_fails_what_is_sent(
    served: None, config: ConnectionConfig
) -> None:
    """Calls and casts alike, in one sentence; the next middleware hears nothing."""

    class Loses(Middleware):
        def process(self, message: Message) -> Message:
            return None  # type: ignore[return-value]

    witness = Witness()
    with RPCClient(config, discovery=known(), outgoing_middleware=[Loses(), witness]) as client:
        for _ in range(2):  # also while it connects
            with pytest.raises(exceptions.UnknownResult, match=r"Loses\.process\(\) returned a No"):
                client.shop.pay().call(timeout=DEADLINE)
        with pytest.raises(exceptions.UnknownResult):
            client.shop.pay().cast()
    assert ["UnknownResult"] * 2 == witness.ends("after_call", 2)
    assert {"before_call", "after_call"} == {hook for hook, *_ in witness.heard}


# -- each message has one end


CALL = ["before_call", "process", "before_publish", "after_publish", "after_call"]


def test_calls_casts_and_publications_pass_the_hooks(
    served: None, client: RPCClient, witness: Witness
) -> None:
    """Each once, in this order, but that the confirm may come after the answer."""
    client.shop.pay().call(timeout=DEADLINE)
    assert [""] == witness.ends("after_publish")
    assert sorted(CALL) == sorted(hook for hook, *_ in witness.heard)
    assert CALL[:3] == [hook for hook, *_ in witness.heard[:3]]
    witness.heard.clear()
    client.shop.pay().cast()
    client.publish(n=1)
    sent = CALL[1:4]
    assert [(hook, "shop.pay") for hook in sent] + [(hook, "press.news") for hook in sent] == [
        (hook, goal) for hook, goal, *_ in witness.heard
    ]


def interrupted(client: RPCClient, future: Future[Any]) -> None:
    client.close()
    future.result()


def given_up(client: RPCClient, future: Future[Any]) -> None:
    assert future.cancel()
    assert not future.cancel() or future.cancelled()
    future.result()


#: How a call ends: the error, and what is done.
ENDINGS: dict[str, Callable[[RPCClient], object]] = {
    "": lambda client: client.shop.pay().call(timeout=DEADLINE),
    "RemoteError": lambda client: client.shop.fails().call(timeout=DEADLINE),
    "CallTimeout": lambda client: client.shop.waits().call(timeout=0.1),
    "ServiceUnavailable": lambda client: client.nobody.there().call(timeout=DEADLINE),
    "ServiceUnknown": lambda client: client.stranger.there().call(timeout=DEADLINE),
    "MessageTooLarge": lambda client: client.shop.pay(n="x" * 20_000_000).call(timeout=DEADLINE),
    "ValueError": lambda client: client.shop.pay().call(timeout=-1),
    "CallInterrupted": lambda client: interrupted(client, client.shop.waits().future(DEADLINE)),
    "CancelledError": lambda client: given_up(client, client.shop.waits().future(DEADLINE)),
}


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("how", ENDINGS)
def test_a_call_ends_once(
    served: None, client: RPCClient, witness: Witness, how: str, is_first: bool
) -> None:
    """However it ends, and also where it is the first message of its client."""
    if not is_first:
        client.shop.pay().call(timeout=DEADLINE)
        witness.ends("after_publish")
        witness.heard.clear()
    if how == "CallInterrupted" and is_first:
        how = "ConnectionFailed"  # where it was not sent yet
        with pytest.raises((exceptions.ConnectionFailed, exceptions.CallInterrupted)):
            ENDINGS["CallInterrupted"](client)
        assert witness.ends("after_call")[0] in (how, "CallInterrupted")
    elif how:
        with pytest.raises(BaseException) as raised:  # noqa: PT011 - which one is told below
            ENDINGS[how](client)
        assert how == type(raised.value).__name__
    else:
        ENDINGS[how](client)
    Shop.gate.set()
    client.close()
    assert 1 == len(witness.ends("after_call"))
    if how != "ConnectionFailed":
        assert [how] == witness.ends("after_call")
    assert ["before_call"] == [hook for hook, *_ in witness.heard if hook == "before_call"]
    begun = [hook for hook, *_ in witness.heard if hook == "before_publish"]
    assert len(begun) == len(witness.ends("after_publish", len(begun)))


@pytest.mark.parametrize("how", ["", "RemoteError", "CallTimeout", "CancelledError"])
def test_a_call_of_an_async_client_ends_once(
    served: None, config: ConnectionConfig, witness: Witness, how: str
) -> None:
    """Also where its task is cancelled, whose error the middleware gets."""

    async def play(client: Any) -> None:
        if how == "CancelledError":
            task = asyncio.ensure_future(client.shop.waits().call(timeout=DEADLINE))
            await asyncio.to_thread(witness.ends, "before_publish")
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            return
        method, timeout = {"": "pay", "RemoteError": "fails", "CallTimeout": "waits"}[how], 5.0
        with suppress(exceptions.RemoteError, exceptions.CallTimeout):
            await client.shop[method]().call(timeout=0.2 if how == "CallTimeout" else timeout)

    run_async(config, witness, play)
    assert [how] == witness.ends("after_call")
    assert 1 == len(witness.ends("after_publish"))


def test_a_closed_client_is_heard_of(config: ConnectionConfig, witness: Witness) -> None:
    """Its calls and casts fail, and metrics count them."""
    client = RPCClient(config, discovery=known(), outgoing_middleware=[witness])
    client.close()
    for send in (client.shop.pay().call, client.shop.pay().cast):
        with pytest.raises(exceptions.ConnectionFailed):
            send()
    assert ["ConnectionFailed"] == witness.ends("after_call") == witness.ends("after_publish")

    async def play(client: Any) -> None:
        await client.close()
        for send in (client.shop.pay().call, client.shop.pay().cast):
            with pytest.raises(exceptions.ConnectionFailed):
                await send()

    other = Witness()
    run_async(config, other, play)
    assert ["ConnectionFailed"] == other.ends("after_call") == other.ends("after_publish")


def test_a_broker_that_is_not_there_is_heard_of(witness: Witness) -> None:
    """Once for each message, with what its sender gets."""
    config = ConnectionConfig(
        url=(f"amqp://guest:guest@127.0.0.1:{free_port()}",),
        connection_attempts=1,
        retry_delay=0.01,
    )
    with RPCClient(config, discovery=known(), outgoing_middleware=[witness]) as client:
        for send in (client.shop.pay().call, client.shop.pay().cast):
            with pytest.raises(exceptions.ConnectionFailed):
                send()
        with pytest.raises(exceptions.ConnectionFailed), client.pipeline():
            client.shop.pay().cast()
    assert ["ConnectionFailed"] == witness.ends("after_call")
    assert ["ConnectionFailed"] * 2 == witness.ends("after_publish", 2)


def test_casts_of_a_pipeline_end_once_each(
    served: None, client: RPCClient, config: ConnectionConfig, witness: Witness
) -> None:
    """Those that fail too, before the block is left."""
    failed = 0
    try:
        with client.pipeline():
            for n in range(20):
                client.shop.pay(n=n).cast()
            client.nobody.there().cast()
            client.shop.pay(n="x" * 20_000_000).cast()
    except exceptions.PipelineFailed as error:
        failed = len(error.failures)
    ends = sorted(each for _, _, each, _ in witness.heard if each)
    assert (2, ["MessageTooLarge", "ServiceUnavailable"]) == (failed, ends)
    assert 22 == len(witness.ends("after_publish"))

    async def play(client: Any) -> int:
        try:
            async with client.pipeline():
                for n in range(20):
                    await client.shop.pay(n=n).cast()
                await client.nobody.there().cast()
        except exceptions.PipelineFailed as error:
            return len(error.failures)
        return 0

    other = Witness()
    assert 1 == run_async(config, other, play)
    assert [""] * 20 + ["ServiceUnavailable"] == sorted(other.ends("after_publish"))


def test_a_cast_that_is_taken_back_did_not_go(
    served: None, config: ConnectionConfig, witness: Witness
) -> None:
    """An async pipeline is full, and the task gives up: its message ends as cancelled."""

    async def play(client: Any) -> None:
        await client.shop.pay().call(timeout=DEADLINE)
        await asyncio.to_thread(witness.ends, "after_publish")
        witness.heard.clear()
        async with client.pipeline():
            tasks = [asyncio.ensure_future(client.shop.pay(n=n).cast()) for n in range(50)]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    run_async(replace(config, max_unconfirmed=1), witness, play)
    ends = witness.ends(
        "after_publish", len([h for h, *_ in witness.heard if h == "before_publish"])
    )
    assert "CancelledError" in ends
    assert {"", "CancelledError"} >= set(ends)


def test_a_call_whose_time_is_over_before_there_is_room_did_not_go(
    served: None, config: ConnectionConfig, witness: Witness
) -> None:
    """It ends by its own time-out, and its message counts among those that failed."""
    slow = Faults(config.urls[0])
    slow.add(delay(0.5, "confirm", entry_point="shop.pay", times=1))

    async def play(client: Any) -> None:
        cast = asyncio.ensure_future(client.shop.pay().cast())
        await asyncio.to_thread(witness.ends, "before_publish")
        with pytest.raises(exceptions.CallTimeout):
            await client.shop.fails().call(timeout=0.1)
        await cast

    run_async(replace(config, url=(slow.url,), max_unconfirmed=1), witness, play)
    assert ["CallTimeout"] == witness.ends("after_call")
    assert ["", "CallTimeout"] == sorted(witness.ends("after_publish", 2))


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Have SIGINT raise KeyboardInterrupt; what a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_ends_a_message_once(
    served: None, config: ConnectionConfig, witness: Witness
) -> None:
    """A cast that is interrupted ends so, and not once more when its confirm comes."""
    slow = Faults(config.urls[0])
    late = delay(0.3, "confirm", entry_point="shop.pay", times=1)
    slow.add(late)

    def interrupt(probe: Callable[[], object]) -> None:
        eventually(probe)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    faulty = replace(config, url=(slow.url,))
    with RPCClient(faulty, discovery=known(), outgoing_middleware=[witness]) as client:
        when = threading.Thread(target=interrupt, args=[lambda: slow.struck(late)])
        when.start()
        with pytest.raises(KeyboardInterrupt):
            client.shop.pay().cast()
        link = client._sender.link
        assert link is not None
        eventually(lambda: link.publisher.unconfirmed == 0)
        assert ["KeyboardInterrupt"] == witness.ends("after_publish")
        when = threading.Thread(target=interrupt, args=[lambda: witness.ends("after_publish", 2)])
        when.start()
        with pytest.raises(KeyboardInterrupt):
            client.shop.waits().call(timeout=DEADLINE)
        Shop.gate.set()
        # By whether it struck while the request was sent, or while the answer was awaited.
        assert witness.ends("after_call") in ([""], ["KeyboardInterrupt"])
    assert 2 == len(witness.ends("after_publish", 2))


def test_many_threads_share_the_middleware(
    served: None, client: RPCClient, witness: Witness
) -> None:
    """Each message has its one end, and the middleware observes once."""

    def work(n: int) -> None:
        doing.set(f"request {n}")
        for _ in range(20):
            client.shop.pay(n=n).call(timeout=DEADLINE)
            client.shop.pay(n=n).cast()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: contextvars.Context().run(work, n), range(8)))
    assert [""] * 160 == witness.ends("after_call", 160)
    assert [""] * 320 == witness.ends("after_publish", 320)
    assert 1 == len(witness.observed)
    # Five hooks of a call and three of a cast, each in the context of who sent the message.
    heard = [what for *_, what in witness.heard]
    assert {f"request {n}": 20 * (5 + 3) for n in range(8)} == {
        what: heard.count(what) for what in heard
    }


def test_the_context_is_that_of_who_sends(
    served: None, config: ConnectionConfig, client: RPCClient, witness: Witness
) -> None:
    """Also for a first message, which waits for the connection, and in asyncio."""
    doing.set("page 1")
    client.shop.pay().call(timeout=DEADLINE)

    async def play(client: Any) -> None:
        async def page(n: int) -> None:
            doing.set(f"page {n}")
            await client.shop.pay().call(timeout=DEADLINE)
            await client.shop.pay().cast()

        await asyncio.gather(page(2), page(3))

    run_async(config, witness, play)
    witness.ends("after_publish", 5)
    heard = [what for *_, what in witness.heard]
    assert {"page 1": 5, "page 2": 8, "page 3": 8} == {what: heard.count(what) for what in heard}


# -- what the middleware knows of the client


def test_middleware_observes_the_client(served: None, client: RPCClient, witness: Witness) -> None:
    """Before the first message, which is before it is connected."""
    assert [] == witness.observed
    client.shop.pay().call(timeout=DEADLINE)
    ((_, vitals),) = witness.observed
    assert (False, True, 0) == (vitals.is_server, vitals.is_ready, vitals.late_answers)
    assert vitals.scheme in ("amqp", "sqlite")
    with pytest.raises(exceptions.CallTimeout):
        client.shop.waits().call(timeout=0.1)
    Shop.gate.set()
    eventually(lambda: vitals.late_answers == 1)
    client.close()
    assert not vitals.is_ready


def test_a_middleware_that_cannot_observe_is_logged_and_nothing_else(
    served: None, config: ConnectionConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """Once."""

    class Blind(Middleware):
        def observe(self, vitals: Vitals) -> None:
            raise OSError("no room")

    with RPCClient(config, discovery=known(), outgoing_middleware=[Blind()]) as client:
        for n in range(2):
            assert n == client.shop.pay(n=n).call(timeout=DEADLINE)["n"]
    assert 1 == caplog.text.count("Blind.observe failed.")


def test_a_forked_child_has_the_middleware_too(
    served: None, client: RPCClient, witness: Witness
) -> None:
    """It observes once more there, for the threads of exporters are the parent's."""
    client.shop.pay().call(timeout=DEADLINE)
    fork = multiprocessing.get_context("fork")
    told = fork.SimpleQueue()

    def child() -> None:
        witness.heard.clear()
        client.shop.pay().call(timeout=DEADLINE)
        told.put((len(witness.observed), witness.observed[-1][0] == os.getpid()))
        told.put(witness.ends("after_call") + witness.ends("after_publish"))

    process = fork.Process(target=child, daemon=True)
    process.start()
    process.join(DEADLINE)
    assert 0 == process.exitcode
    assert [(2, True), ["", ""]] == [told.get(), told.get()]


# -- traces


class Traces:
    """A program that makes spans of its own; what it and tavrida exported."""

    def __init__(self) -> None:
        self.memory = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.memory))
        self.tracer = self.provider.get_tracer("program")

    def middleware(self) -> OpenTelemetry:
        return OpenTelemetry(tracer_provider=self.provider)

    def get(self, kind: SpanKind, name: str) -> ReadableSpan:
        """Return the one span of that kind and name, as soon as it has ended."""

        def found() -> list[ReadableSpan]:
            spans = self.memory.get_finished_spans()
            return [span for span in spans if (span.kind, span.name) == (kind, name)]

        eventually(found)
        (span,) = found()
        return span


def ids(span: ReadableSpan) -> tuple[int, int]:
    assert span.context is not None
    return span.context.trace_id, span.context.span_id


def parent(span: ReadableSpan) -> tuple[int, int] | None:
    return None if span.parent is None else (span.parent.trace_id, span.parent.span_id)


@pytest.fixture
def traces(start: Serve) -> Traces:
    """The shop, which is traced."""
    traces = Traces()
    Shop.watching = traces.middleware()
    start(Shop)
    return traces


@pytest.mark.parametrize("way", ["call", "future", "async"])
def test_one_trace_goes_from_the_program_into_the_services(
    traces: Traces, config: ConnectionConfig, way: str
) -> None:
    """The program's span, the client's, that of its service, and those of what that one calls."""
    with traces.tracer.start_as_current_span("GET /"):
        if way == "async":

            async def play(client: Any) -> None:
                await client.shop.buy(n=1).call(timeout=DEADLINE)
                await client.publish(n=1)

            run_async(config, traces.middleware(), play)
        else:
            with RPCClient(
                config,
                discovery=known(),
                source="press.news",
                outgoing_middleware=[traces.middleware()],
            ) as client:
                call = client.shop.buy(n=1)
                call.call(timeout=DEADLINE) if way == "call" else call.future().result(DEADLINE)
                client.publish(n=1)
    chain = [
        traces.get(SpanKind.INTERNAL, "GET /"),
        traces.get(SpanKind.CLIENT, "call shop.buy"),
        traces.get(SpanKind.SERVER, "process shop.buy"),
        traces.get(SpanKind.CLIENT, "call shop.pay"),
        traces.get(SpanKind.SERVER, "process shop.pay"),
    ]
    assert [None, *map(ids, chain[:-1])] == [parent(span) for span in chain]
    event = [
        chain[0],
        traces.get(SpanKind.PRODUCER, "send press.news"),
        traces.get(SpanKind.CONSUMER, "process shop.press.news"),
    ]
    assert [None, *map(ids, event[:-1])] == [parent(span) for span in event]
    called = dict(chain[1].attributes or {})
    is_amqp = config.scheme == "amqp"
    assert ("rabbitmq" if is_amqp else "sqlite", "shop", "buy", "press.news") == (
        called["messaging.system"],
        called["rpc.service"],
        called["rpc.method"],
        called["tavrida.source"],
    )
    assert {StatusCode.UNSET} == {span.status.status_code for span in (*chain, *event)}


def test_spans_of_a_client_end_once_with_how_it_ended(
    traces: Traces, config: ConnectionConfig
) -> None:
    """An error status has the class of the error; nothing is kept of what has ended."""
    middleware = traces.middleware()
    with RPCClient(config, discovery=known(), outgoing_middleware=[middleware]) as client:
        for how in ("RemoteError", "CallTimeout", "ServiceUnavailable", "CancelledError"):
            with suppress(exceptions.TavridaError, CancelledError):
                ENDINGS[how](client)
        with pytest.raises(exceptions.ServiceUnavailable):
            client.nobody.hears().cast()
        Shop.gate.set()
        eventually(lambda: not (middleware._called or middleware._sent))
    spans = [s for s in traces.memory.get_finished_spans() if parent(s) is None]
    assert [
        ("call nobody.there", "ServiceUnavailable"),
        ("call shop.fails", "RemoteError"),
        ("call shop.waits", "CallTimeout"),
        ("call shop.waits", "CancelledError"),
        ("send nobody.hears", "ServiceUnavailable"),
    ] == sorted((s.name, str((s.attributes or {})["error.type"])) for s in spans)
    assert {StatusCode.ERROR} == {span.status.status_code for span in spans}


def test_without_a_span_of_its_own_a_program_may_give_the_headers(
    traces: Traces, config: ConnectionConfig
) -> None:
    """The client's span goes on with their trace."""
    trace, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with RPCClient(
        config,
        discovery=known(),
        headers={"traceparent": f"00-{trace}-{span}-01", "n": 1},
        outgoing_middleware=[traces.middleware()],
    ) as client:
        answer = client.shop.pay().call(timeout=DEADLINE)
    called = traces.get(SpanKind.CLIENT, "call shop.pay")
    assert (int(trace, 16), int(span, 16)) == parent(called)
    assert f"00-{trace}-{ids(called)[1]:016x}-01" == answer["traceparent"]


# -- metrics


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program's registry is the test's own, so that no other test sees its numbers."""
    own = prometheus_client.CollectorRegistry(auto_describe=True)
    monkeypatch.setattr(prometheus_client, "REGISTRY", own)


def counted(name: str, **labels: str) -> float:
    """Return a value of the program's own registry."""
    return prometheus_client.REGISTRY.get_sample_value(name, labels) or 0.0


def test_clients_count_in_the_registry_of_the_program(
    served: None, config: ConnectionConfig
) -> None:
    """Several by name: all in one set of metrics, by how each call and cast ended."""
    for _ in range(2):
        with RPCClient(config, discovery=known(), outgoing_middleware=["prometheus"]) as client:
            for how in ("", "RemoteError", "CallTimeout", "CancelledError"):
                with suppress(exceptions.TavridaError, CancelledError):
                    ENDINGS[how](client)
            client.shop.pay().cast()
            with pytest.raises(exceptions.ServiceUnavailable):
                client.nobody.there().cast()
    called = "tavrida_call_seconds_count"
    ends = {("pay", "ok"), ("fails", "error"), ("waits", "timeout"), ("waits", "cancelled")}
    for method, outcome in ends:
        assert 2 == counted(called, service="shop", method=method, outcome=outcome)
    sent = "tavrida_published_messages_total"
    pay = {"service": "shop", "method": "pay", "kind": "request"}
    there = {"service": "nobody", "method": "there", "kind": "request"}
    eventually(lambda: counted(sent, **pay, outcome="confirmed") == 4)
    assert 2 == counted(sent, **there, outcome="failed")


def test_a_server_and_a_client_in_one_process_are_added_up(
    start: Serve, config: ConnectionConfig
) -> None:
    """The page of the server has each metric once."""
    port = free_port()
    Shop.watching = Prometheus()
    start(Shop, health=HealthSettings(port=port))
    labels = {"service": "shop", "method": "pay", "outcome": "ok"}
    with RPCClient(config, discovery=known(), outgoing_middleware=["prometheus"]) as client:
        client.shop.pay().call(timeout=DEADLINE)
        client.shop.buy().call(timeout=DEADLINE)
    name = "tavrida_call_seconds_count"
    eventually(lambda: Scrape(port).value(name, **labels) == 2)
    assert 1 == Scrape(port).text.count("# TYPE tavrida_call_seconds histogram")
    assert 2 == Scrape(port).value("tavrida_call_seconds_bucket", **labels, le="60.0")


FORKS = """
import os, sys
from prometheus_client import CollectorRegistry, multiprocess
from tavrida.client import RPCClient
from tavrida.config import ConnectionConfig
from tavrida.discovery import LocalDiscovery

known = LocalDiscovery()
known.register_remote_service("shop", sys.argv[2])
client = RPCClient(
    ConnectionConfig(url=sys.argv[1]), discovery=known, outgoing_middleware=["prometheus"]
)
client.shop.pay().call()
child = os.fork()
client.shop.pay().call()
client.close()
if child:
    assert os.waitpid(child, 0)[1] == 0
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)
    labels = {"service": "shop", "method": "pay", "outcome": "ok"}
    print(registry.get_sample_value("tavrida_call_seconds_count", labels))
"""


def test_processes_add_up_in_a_folder(served: None, url: str, tmp_path: Path) -> None:
    """As prometheus_client has it; a forked child counts on beside its parent."""
    folder = tmp_path / "metrics"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", FORKS, url, EXCHANGE],
        env=os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert (0, "3.0\n") == (done.returncode, done.stdout), done.stderr


# -- named in an ini

STRANGER = """
    from oslo_config import cfg
    from tavrida.middleware import Middleware

    class Stamps(Middleware):
        def __init__(self, word="made by name"):
            self.word = word

        @classmethod
        def list_opts(cls):
            return [cfg.StrOpt("word", required=True)]

        @classmethod
        def from_options(cls, options):
            return cls(options["word"])

        def process(self, message):
            message.payload["n"] = self.word
            return message

    class Needy(Middleware):
        def __init__(self, address):
            self.address = address
"""


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An installed package with the middleware ``stamps``; for other processes, the environment."""
    folder = tmp_path / "site"
    folder.mkdir()
    packages = Packages(folder)
    points = {"stamps": "acme_s:Stamps", "needy": "acme_s:Needy"}
    packages.add("acme", {"tavrida.middleware": points}, acme_s=STRANGER)
    yield {"PYTHONPATH": str(folder)}
    packages.remove()


def ini(folder: Path, url: str, *more: str) -> Path:
    path = folder / "web.conf"
    path.write_text(
        f"[connection]\nurl = {url}\n[service:shop]\nexchange = {EXCHANGE}\n"
        "[client]\n" + "\n".join(more)
    )
    return path


def test_a_program_makes_its_client_of_an_ini(
    served: None, stranger: Any, url: str, tmp_path: Path
) -> None:
    """With the middleware that [client] names, its options, and what the program adds before it."""
    path = ini(
        tmp_path, url, "outgoing_middleware = stamps", "[middleware:stamps]", "word = by option"
    )
    witness = Witness()
    added: dict[str, Any] = {"source": "web", "outgoing_middleware": [witness]}
    with assembly.new_client(RPCClient, [path], **added) as client:
        assert "by option" == client.shop.note(n="own").call(timeout=DEADLINE)["n"]

    async def main() -> Any:
        async with assembly.new_client(AsyncRPCClient, [path], service="shop", **added) as client:
            return (await client.note(n="own").call(timeout=DEADLINE))["n"]

    assert "by option" == asyncio.run(main())
    assert ["", ""] == witness.ends("after_call", 2)


def test_a_stranger_is_named_in_code_too(
    served: None, stranger: Any, config: ConnectionConfig
) -> None:
    """Like any other plugin."""
    with RPCClient(config, discovery=known(), outgoing_middleware=["stamps"]) as client:
        assert "made by name" == client.shop.note(n="own").call(timeout=DEADLINE)["n"]


def test_a_stranger_that_cannot_be_made_by_name_is_told(stranger: Any) -> None:
    """In one sentence."""
    with pytest.raises(exceptions.ConfigError) as raised:
        RPCClient(ConnectionConfig(), outgoing_middleware=["needy"])
    assert "outgoing_middleware: Needy of plugin 'needy' cannot be made: TypeErr" in str(
        raised.value
    )


def test_what_is_wrong_in_the_ini_is_told(stranger: Any, tmp_path: Path) -> None:
    """All of it, before anything connects."""
    with pytest.raises(exceptions.ConfigError) as raised:
        assembly.new_client(
            RPCClient,
            [ini(tmp_path, "amqp://x", "outgoing_middleware = stamp, stamps", "middleware = 1")],
        )
    told = sorted(raised.value.faults)
    assert 3 == len(told)
    assert "[client] middleware is unknown (did you mean 'outgoing_middleware'?)" in told[0]
    assert "[middleware:stamp] no plugin 'stamp' in tavrida.middleware (did you mean" in told[1]
    assert "[middleware:stamps] word is missing: give it a value" in told[2]


def test_a_server_is_told_what_is_wrong_with_its_clients(tmp_path: Path) -> None:
    """The same ini is for both, and --check finds every fault."""
    path = ini(tmp_path, "sqlite://:memory:", "outgoing_middleware = prometeus")
    path.write_text(path.read_text() + "\n[server]\nservices = test_hello\n")
    ended = commands.run("tavrida-server", "--config-file", path, "--check")
    assert 1 == ended.code
    assert "[middleware:prometeus] no plugin 'prometeus'" in ended.stderr
    assert "did you mean 'prometheus'?" in ended.stderr


def test_the_commands_have_the_middleware_of_the_ini(
    served: None, stranger: dict[str, str], url: str, tmp_path: Path
) -> None:
    """``tavrida call`` exports its span, in which the service's is; a wrong name is one line."""
    lines = ["outgoing_middleware = opentelemetry", "[middleware:opentelemetry]"]
    path = ini(tmp_path, url, *lines, "exporter = console")
    asked = ("call", "shop.pay", "n=1", "--config-file", path)
    ended = commands.run("tavrida", *asked)
    assert 0 == ended.code, ended.stderr
    assert '"name": "call shop.pay"' in ended.stdout
    assert '"kind": "SpanKind.CLIENT"' in ended.stdout
    (trace,) = set(re.findall(r'"trace_id": "0x([0-9a-f]{32})"', ended.stdout))
    assert f"00-{trace}-" in ended.stdout.replace("\n", "")
    ini(tmp_path, url, "outgoing_middleware = opentelemetr")
    ended = commands.run("tavrida", *asked)
    assert (1, 1) == (ended.code, ended.stderr.count("\n"))
    assert "[middleware:opentelemetr] no plugin 'opentelemetr'" in ended.stderr
