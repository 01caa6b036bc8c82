# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Results, exceptions and cancellations that stand against their own report: each call ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tavrida import dispatcher, exceptions, messages, service
from tavrida.client import AsyncRPCClient
from tavrida.config import ConnectionConfig
from tavrida.middleware import Middleware
from tavrida.testing.app import App


class OwnResponse(messages.Response):
    def __init__(self, x: int) -> None:
        super().__init__({"x": x})


class BadDict(dict[str, Any]):
    def __iter__(self) -> Any:
        raise RuntimeError


class ExitInText(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


class Nameless(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise RuntimeError


class NoName(Exception, metaclass=Nameless):
    pass


RESULTS: dict[str, Callable[[], Any]] = {
    "no context": lambda: messages.Response({"a": 1}, None),  # type: ignore[arg-type]
    "no headers": lambda: messages.Response({"a": 1}, extra_headers=None),  # type: ignore[arg-type]
    "own class": lambda: OwnResponse(1),
    "bad dict": lambda: BadDict(a=1),
}

ODD_PLACE: Any = ("f.py", 3, "notint", "text")

FAILURES: dict[str, BaseException] = {
    "exit in text": ExitInText(),
    "no name": NoName("x"),
    "odd syntax error": SyntaxError("m", ODD_PLACE),
}


@dispatcher.rpc_service("odd")
class Odd(service.ServiceController):
    @dispatcher.rpc_method(service="odd", method="result")
    def result(self, request: Any, proxy: Any, which: str) -> Any:
        return RESULTS[which]()

    @dispatcher.rpc_method(service="odd", method="fail")
    def fail(self, request: Any, proxy: Any, which: str) -> Any:
        raise FAILURES[which]

    @dispatcher.rpc_method(service="odd", method="cancel")
    async def cancel(self, request: Any, proxy: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    @dispatcher.rpc_method(service="odd", method="good")
    async def good(self, request: Any, proxy: Any) -> dict[str, Any]:
        return {"good": True}


class Cancelling(Middleware):
    async def after_handle(self, message: Any, error: Any) -> None:
        child = asyncio.ensure_future(asyncio.sleep(60))
        child.cancel()
        await child


class Interrupted(Odd):
    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.add_incoming_middleware(Cancelling())


class Refusing(Middleware):
    """Lets no request of a handler out."""

    failure: type[BaseException]

    def before_publish(self, message: messages.Message) -> None:
        if isinstance(message, messages.Request):
            raise self.failure("quota")


class Asking(Odd):
    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.add_outgoing_middleware(Refusing())

    @dispatcher.rpc_method(service="odd", method="ask")
    def ask(self, request: Any, proxy: Any) -> None:
        proxy.odd.good().wait(timeout=3)


@pytest.mark.parametrize("which", RESULTS)
def test_an_odd_result_is_an_answer_or_an_error(which: str) -> None:
    """Never a call that waits for its deadline."""
    with App(Odd) as app:
        if which == "bad dict":
            with pytest.raises(exceptions.RemoteError):
                app.client.odd.result(which=which).call(timeout=3)
        else:
            assert app.client.odd.result(which=which).call(timeout=3).payload
        app.wait_settled()
        app.failures()


@pytest.mark.parametrize("which", FAILURES)
def test_an_exception_that_cannot_be_told_is_an_error_all_the_same(which: str) -> None:
    """Called or cast, its delivery is settled."""
    with App(Odd) as app:
        with pytest.raises(exceptions.RemoteError):
            app.client.odd.fail(which=which).call(timeout=3)
        app.client.odd.fail(which=which).cast()
        assert app.client.odd.good().call(timeout=3)["good"]
        assert 0 == _left_by(app)


def _left_by(app: App) -> int:
    """Stop the server and return how many deliveries it could not settle."""
    processor = app.server._processor
    app.server.stop()
    app.failures()
    return len(processor._open)


def test_a_handler_that_cancels_its_own_task_keeps_no_slot() -> None:
    """Each call ends with an error, and the next handler runs."""
    with App(Odd, concurrency=1) as app:
        for _ in range(3):
            with pytest.raises(exceptions.RemoteError):
                app.client.odd.cancel().call(timeout=3)
        assert app.client.odd.good().call(timeout=3)["good"]
        app.failures()


def test_a_middleware_that_is_cancelled_afterwards_takes_no_answer_along() -> None:
    """A child task that it cancelled and awaited, for example."""
    with App(Interrupted, concurrency=1) as app:
        for _ in range(3):
            assert app.client.odd.good().call(timeout=3)["good"]
        app.failures()


def test_local_classes_that_are_none_leave_the_remote_error() -> None:
    """Whatever stands in for the exception has to be one."""

    class Exits(Exception):
        def __init__(self, text: str) -> None:
            raise SystemExit(3)

    class Other(Exception):
        def __new__(cls, text: str) -> Any:
            return {"not": "an exception"}

    with App(Odd) as app:
        for cls in (Exits, Other):
            call = app.client.odd.fail(which="odd syntax error").raises(SyntaxError=cls)
            with pytest.raises(exceptions.RemoteError):
                call.call(timeout=3)
        app.failures()


async def _outlive(url: str) -> None:
    config = ConnectionConfig(url=(url,))
    async with AsyncRPCClient(config) as client:
        go = asyncio.Event()

        async def later() -> None:
            await go.wait()
            await client.nobody.x().cast()

        async with client.pipeline():
            task = asyncio.create_task(later())
        go.set()
        with pytest.raises(exceptions.ServiceUnavailable):
            await task


def test_a_task_that_outlives_a_pipeline_hears_of_its_own_failures() -> None:
    """The pipeline is over, and nobody looks into it any more."""
    asyncio.run(_outlive("sqlite://?memory=outlived"))


@pytest.mark.parametrize("failure", [SystemExit, KeyboardInterrupt, TimeoutError])
def test_whatever_a_middleware_raises_at_a_handlers_first_call_ends_that_call(
    failure: type[BaseException],
) -> None:
    """With what it raised, as at each later one; the worker goes on."""
    Refusing.failure = failure
    with App(Asking, concurrency=1) as app:
        for _ in range(2):
            with pytest.raises(exceptions.RemoteError) as caught:
                app.client.odd.ask().call(timeout=3)
            assert (failure.__name__, "quota") == (caught.value.error_class, caught.value.message)
        assert app.client.odd.good().call(timeout=3)["good"]
        app.failures()
