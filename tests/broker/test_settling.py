# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""before_settle: middleware hears once how each delivery ended, before that is carried out."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import pytest

from tavrida import context, discovery, dispatcher, exceptions, middleware
from tavrida.loop import is_on_a_loop
from tavrida.messages import Error, IncomingMessage, Message
from tavrida.middleware import Middleware, Skipped
from tavrida.retries import Retry
from tavrida.service import ServiceController
from tests.broker.conftest import EXCHANGE, Connect, Serve
from tests.waiting import DEADLINE, eventually

#: What a hook was told of a delivery: whose it was, the payload of its answer, why it failed.
Told = tuple[str, dict[str, Any] | None, str | None]


class Hears(Middleware):
    """Tells what it is told, and waits for a gate where the payload says so."""

    def __init__(self, told: SimpleQueue[Told], gate: threading.Event) -> None:
        self.told = told
        self.gate = gate

    def process(self, message: Message) -> Message:
        return Skipped() if message.payload.get("skip") else message

    def before_settle(
        self, message: IncomingMessage, answer: Message | None, error: BaseException | None
    ) -> None:
        assert not is_on_a_loop()
        now = context.current()
        assert now is not None
        assert now.message_id == message.message_id
        name = type(error).__name__ if error else None
        self.told.put((message.payload["name"], answer.payload if answer else None, name))
        if message.payload.get("hold"):
            assert self.gate.wait(DEADLINE)


class HearsOnLoop(Hears):
    """The same, as a coroutine."""

    async def before_settle(  # type: ignore[override]
        self, message: IncomingMessage, answer: Message | None, error: BaseException | None
    ) -> None:
        assert is_on_a_loop()
        await asyncio.to_thread(super().before_settle, message, answer, error)


class Signs(Middleware):
    """Lets no answer out that says so."""

    def process(self, message: Message) -> Message:
        if message.payload.get("unsigned"):
            raise OSError("no key")
        return message


def _raise(error: BaseException) -> None:
    raise error


def _end(name: str, proxy: Any, request: Any) -> Any:
    """What the handlers do, by the name in the payload."""
    ends: dict[str, Callable[[], Any]] = {
        "answers": lambda: {"n": 1},
        "error": lambda: Error({"class": "X", "name": "x", "message": "no"}),
        "unsigned": lambda: {"unsigned": True},
        "nonsense": lambda: 5,
        "unwritable": lambda: {"n": object()},
        "raises": lambda: 1 // 0,
        "leaves": lambda: _raise(SystemExit(1)),
        "interrupts": lambda: _raise(KeyboardInterrupt()),
        "sends": lambda: proxy.nobody.x().cast(),
        "transfers": lambda: proxy.svc.other(name="answers").transfer(request),
        "lost": lambda: proxy.nobody.x().transfer(request),
    }
    return ends[name]()


@dispatcher.rpc_service("svc")
class Service(ServiceController):
    told: SimpleQueue[Told]
    gate: threading.Event
    hook: type[Hears]

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.add_incoming_middleware(self.hook(self.told, self.gate))
        self.add_outgoing_middleware(Signs())

    @dispatcher.rpc_method(service="svc", method="plain")
    def plain(self, request: Any, proxy: Any, name: str, **more: Any) -> Any:
        return _end(name, proxy, request)

    @dispatcher.rpc_method(service="svc", method="quick")
    async def quick(self, request: Any, proxy: Any, name: str, **more: Any) -> Any:
        await asyncio.sleep(0)
        return _end(name, proxy, request)

    @dispatcher.rpc_method(service="svc", method="other")
    def other(self, request: Any, proxy: Any, name: str) -> Any:
        return _end(name, proxy, request)

    @dispatcher.rpc_method(service="svc", method="long")
    def long(self, request: Any, proxy: Any, name: str) -> None:
        self.told.put(("began", None, None))
        self.gate.wait(DEADLINE)

    @dispatcher.rpc_method(service="svc", method="long_quick")
    async def long_quick(self, request: Any, proxy: Any, name: str) -> None:
        self.told.put(("began", None, None))
        await asyncio.sleep(DEADLINE)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    Service.told = SimpleQueue()
    Service.gate = threading.Event()
    Service.hook = Hears
    known = discovery.LocalDiscovery()
    known.register_remote_service("nobody", EXCHANGE)
    Service.set_discovery(known)


def told() -> Told:
    return Service.told.get(timeout=DEADLINE)


@pytest.mark.parametrize("hook", [Hears, HearsOnLoop])
@pytest.mark.parametrize("method", ["plain", "quick"])
def test_of_each_call_middleware_hears_once_how_it_ended(
    serve: Serve, connect: Connect, method: str, hook: type[Hears]
) -> None:
    """With the answer, or with why it failed; what becomes of the answer comes later."""
    Service.hook = hook
    serve(Service, concurrency=1)
    client = connect("svc")
    ends: list[Told] = [
        ("answers", {"n": 1}, None),
        ("error", {"class": "X", "name": "x", "message": "no"}, None),
        ("unsigned", {"unsigned": True}, None),
        ("nonsense", None, "UnknownResult"),
        ("raises", None, "ZeroDivisionError"),
        ("leaves", None, "SystemExit"),
        ("interrupts", None, "KeyboardInterrupt"),
        ("sends", None, "ServiceUnavailable"),
        ("lost", None, "ServiceUnavailable"),
    ]
    for end in ends:
        answer = client.svc[method](name=end[0]).future(timeout=DEADLINE)
        assert end == told()
        if end[0] == "answers":
            assert {"n": 1} == answer.result(DEADLINE).payload
        else:
            with pytest.raises(exceptions.RemoteError):
                answer.result(DEADLINE)
    with pytest.raises(exceptions.RemoteError):
        client.svc[method](name="unwritable").call(timeout=DEADLINE)
    assert ("unwritable", None) == told()[::2]
    assert {} == client.svc[method](name="skipped", skip=True).call(timeout=DEADLINE).payload
    assert ("skipped", {}, None) == told()
    assert {"n": 1} == client.svc[method](name="transfers").call(timeout=DEADLINE).payload
    assert [("answers", {"n": 1}, None), ("transfers", None, None)] == sorted([told(), told()])
    assert Service.told.empty()


@pytest.mark.parametrize("method", ["plain", "quick"])
def test_of_each_attempt_of_a_cast_middleware_hears_how_it_ended(
    serve: Serve, connect: Connect, method: str
) -> None:
    """Those that are tried again, and the last, which is dead-lettered."""
    serve(Service, concurrency=1, retry=Retry(attempts=2, first_delay=0.01))
    svc = connect("svc").svc
    svc[method](name="raises").cast()
    assert [("raises", None, "ZeroDivisionError")] * 2 == [told(), told()]
    svc[method](name="answers").cast()
    assert ("answers", None, None) == told()
    svc[method](name="skipped", skip=True).cast()
    assert ("skipped", None, None) == told()
    assert Service.told.empty()


@pytest.mark.parametrize("hook", [Hears, HearsOnLoop])
def test_nothing_is_answered_before_middleware_knows_and_nobody_else_waits_for_it(
    serve: Serve, connect: Connect, hook: type[Hears]
) -> None:
    """A hook may take its time: neither the loop nor the only worker is held up."""
    Service.hook = hook
    serve(Service, concurrency=1, prefetch=10)
    client = connect("svc")
    held = client.svc.plain(name="answers", hold=True).future(timeout=DEADLINE)
    assert ("answers", {"n": 1}, None) == told()
    client.svc.long(name="long").cast()
    assert ("began", None, None) == told()
    assert not held.done()
    Service.gate.set()
    assert {"n": 1} == held.result(DEADLINE).payload


def test_a_server_that_stops_waits_for_middleware(serve: Serve, connect: Connect) -> None:
    """It is part of the handling: the message is not handled again by the next server."""
    server = serve(Service, concurrency=1)
    connect("svc").svc.plain(name="answers", hold=True).cast()
    assert ("answers", None, None) == told()
    stopping = threading.Thread(target=server.stop)
    stopping.start()
    Service.gate.set()
    stopping.join(DEADLINE)
    serve(Service, concurrency=1)
    connect("svc").svc.plain(name="raises").cast()
    assert ("raises", None, "ZeroDivisionError") == told()


@pytest.mark.parametrize("method", ["long", "long_quick"])
def test_a_server_that_does_not_wait_for_a_handler_tells_middleware(
    serve: Serve, connect: Connect, method: str
) -> None:
    """Its message was not handled: it is delivered again. A def handler has to end first."""
    server = serve(Service, graceful_timeout=0.1)
    connect("svc").svc[method](name=method).cast()
    assert "began" == told()[0]
    server.stop()
    if method == "long":
        assert Service.told.empty()
    Service.gate.set()
    assert (method, None, "ConnectionFailed") == told()
    assert Service.told.empty()


def test_what_a_handler_sent_is_confirmed_when_middleware_hears(
    serve: Serve, connect: Connect
) -> None:
    """A transfer that found nobody: the one that let go of the request answers it after all."""
    serve(Service)
    with pytest.raises(exceptions.RemoteError, match="nobody"):
        connect("svc").svc.plain(name="lost").call(timeout=DEADLINE)
    assert ("lost", None, "ServiceUnavailable") == told()
    assert eventually(Service.told.empty)


def test_middleware_without_the_hook_is_not_asked() -> None:
    """That is known before the first message."""
    hears = Hears(SimpleQueue(), threading.Event())
    assert (hears,) == middleware.settling([Middleware(), hears, Signs()])
