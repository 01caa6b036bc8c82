# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""What is being handled: in handlers of both kinds, middleware, tasks, threads and log records."""

from __future__ import annotations

import asyncio
import contextvars
import io
import logging
import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import pytest

from tavrida import context, dispatcher, exceptions, messages, middleware
from tavrida.client import RPCClient
from tavrida.config import ConnectionConfig
from tavrida.context import Context
from tavrida.entry_point import EntryPoint
from tavrida.messages import Message
from tavrida.server import Server
from tavrida.service import ServiceController
from tavrida.testing.app import App
from tavrida.testing.handlers import call_handler
from tests.waiting import DEADLINE

LOG = logging.getLogger("shop")

#: A variable of a user's.
mood: contextvars.ContextVar[str] = contextvars.ContextVar("mood", default="none")


class Notes(middleware.Middleware):
    """Keeps what each hook sees."""

    def __init__(self, seen: SimpleQueue[Any]) -> None:
        self.seen = seen

    def note(self, what: str) -> None:
        self.seen.put((what, context.current()))

    def process(self, message: Message) -> Message:
        self.note(f"process {message.message_type}")
        return message

    def before_handle(self, message: Message) -> None:
        self.note("before_handle")

    def after_handle(self, message: Message, error: BaseException | None) -> None:
        self.note("after_handle")


class AsyncNotes(Notes):
    """The same, each of them async def."""

    async def process(self, message: Message) -> Message:  # type: ignore[override]
        await asyncio.sleep(0)
        self.note(f"process {message.message_type}")
        return message

    async def before_handle(self, message: Message) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        self.note("before_handle")

    async def after_handle(  # type: ignore[override]
        self, message: Message, error: BaseException | None
    ) -> None:
        await asyncio.sleep(0)
        self.note("after_handle")


@dispatcher.rpc_service("shop")
class Shop(ServiceController):
    """One method a behaviour."""

    seen: SimpleQueue[Any] = SimpleQueue()

    @dispatcher.rpc_method(service="shop", method="plain")
    def plain(self, request: Any, proxy: Any) -> dict[str, Any]:
        return self.show()

    @dispatcher.rpc_method(service="shop", method="awaiting")
    async def awaiting(self, request: Any, proxy: Any) -> dict[str, Any]:
        await asyncio.sleep(0)
        return self.show()

    @dispatcher.rpc_method(service="shop", method="task")
    async def task(self, request: Any, proxy: Any) -> dict[str, Any]:
        async def show() -> dict[str, Any]:
            return self.show()

        return await asyncio.create_task(show())

    @dispatcher.rpc_method(service="shop", method="thread")
    def thread(self, request: Any, proxy: Any) -> dict[str, Any]:
        found: SimpleQueue[dict[str, Any]] = SimpleQueue()
        here = contextvars.copy_context()
        thread = threading.Thread(target=lambda: here.run(lambda: found.put(self.show())))
        thread.start()
        thread.join()
        return found.get()

    @dispatcher.rpc_method(service="shop", method="plain_mood")
    def plain_mood(self, request: Any, proxy: Any) -> dict[str, Any]:
        before = mood.get()
        mood.set("good")
        return {"mood": before}

    @dispatcher.rpc_method(service="shop", method="async_mood")
    async def async_mood(self, request: Any, proxy: Any) -> dict[str, Any]:
        before = mood.get()
        mood.set("good")
        await asyncio.sleep(0.01)
        return {"mood": before}

    @dispatcher.rpc_method(service="shop", method="logs")
    def logs(self, request: Any, proxy: Any) -> None:
        LOG.warning("in a handler")

    @dispatcher.rpc_method(service="shop", method="fails")
    def fails(self, request: Any, proxy: Any) -> None:
        raise ValueError("on purpose")

    @staticmethod
    def show() -> dict[str, Any]:
        now = context.current()
        assert now is not None
        return {
            "ids": [now.correlation_id, now.request_id, now.message_id],
            "place": [now.service, str(now.entry_point)],
            "times": [now.deadline, now.time_left],
        }


def shop_with(*chain: middleware.Middleware) -> type[Shop]:
    """The shop with incoming middleware."""

    class Seen(Shop):
        def __init__(self, options: Any = None) -> None:
            super().__init__(options)
            for each in chain:
                self.add_incoming_middleware(each)

    return Seen


@pytest.mark.parametrize("method", ["plain", "awaiting", "task", "thread"])
def test_code_in_a_handler_knows_what_is_being_handled(method: str) -> None:
    """Its identifiers, its entry point and its deadline; also in tasks and copied contexts."""
    with App(Shop) as app:
        answer = app.client.shop[method]().call(correlation_id="chain", timeout=5)
    correlation_id, request_id, message_id = answer["ids"]
    assert ("chain", answer.request_id) == (correlation_id, request_id)
    assert message_id
    assert ["shop", f"shop.{method}"] == answer["place"]
    deadline, left = answer["times"]
    assert time.time() < deadline < time.time() + 5
    assert 0 < left < 5


def test_outside_of_handlers_there_is_no_context() -> None:
    """Nor after one ended in this thread."""
    assert context.current() is None
    call_handler(Shop, "shop.plain")
    assert context.current() is None


def test_a_context_without_a_deadline_has_no_time_left_to_tell() -> None:
    """And one whose deadline has passed has none."""
    assert Context("c", "r", "m", "shop", EntryPoint("shop", "x"), None).time_left is None
    assert Context("c", "r", "m", "shop", None, time.time() - 1).time_left == 0


@pytest.mark.parametrize("method", ["plain", "awaiting"])
@pytest.mark.parametrize("cls", [Notes, AsyncNotes])
def test_incoming_middleware_sees_the_context(cls: type[Notes], method: str) -> None:
    """Both kinds of it around both kinds of handlers, in order and before the answer goes."""
    seen: SimpleQueue[Any] = SimpleQueue()
    with App(shop_with(cls(seen))) as app:
        app.client.shop[method]().call(correlation_id="chain", timeout=5)
    found = [seen.get_nowait() for _ in range(seen.qsize())]
    assert ["before_handle", "process request", "after_handle"] == [what for what, _ in found]
    assert {"chain"} == {now.correlation_id for _, now in found}


def test_outgoing_middleware_sees_the_context() -> None:
    """For the answer of a plain handler, too."""
    seen: SimpleQueue[Any] = SimpleQueue()

    class Seen(Shop):
        def __init__(self, options: Any = None) -> None:
            super().__init__(options)
            self.add_outgoing_middleware(Notes(seen))

    with App(Seen) as app:
        for method in ("plain", "awaiting"):
            app.client.shop[method]().call(correlation_id=method, timeout=5)
            what, now = seen.get_nowait()
            assert ("process response", method) == (what, now.correlation_id)


@pytest.mark.parametrize("method", ["plain", "awaiting"])
def test_async_middleware_answers_and_fails_as_plain_one_does(method: str) -> None:
    """Its answer goes to the caller, its exception as well; the handler is not run."""

    class Guard(middleware.Middleware):
        async def process(self, message: Message) -> Message:
            await asyncio.sleep(0)
            if message.payload.get("fail"):
                raise PermissionError("not you")
            return messages.Response({"guarded": True})

    with App(shop_with(Guard())) as app:
        shop = app.client.shop
        assert {"guarded": True} == shop[method]().call(timeout=5).payload
        with pytest.raises(exceptions.RemoteError, match="PermissionError: not you"):
            shop[method](fail=True).call(timeout=5)


@pytest.mark.parametrize("method", ["shop.plain", "shop.awaiting"])
def test_call_handler_runs_async_middleware(method: str) -> None:
    """Without a server, around both kinds of handlers."""
    seen: SimpleQueue[Any] = SimpleQueue()
    call_handler(shop_with(AsyncNotes(seen)), method)
    assert 3 == seen.qsize()


@pytest.mark.parametrize("method", ["plain", "awaiting"])
def test_an_async_after_handle_that_fails_is_logged(
    caplog: pytest.LogCaptureFixture, method: str
) -> None:
    """The message was handled all the same."""

    class Fails(middleware.Middleware):
        async def after_handle(self, message: Message, error: BaseException | None) -> None:
            raise ValueError("on purpose")

    with App(shop_with(Fails())) as app:
        assert app.client.shop[method]().call(timeout=5)["place"]
    assert "Fails.after_handle failed." in caplog.text


@pytest.mark.parametrize("name", ["process", "before_publish", "after_publish"])
def test_outgoing_middleware_that_is_async_is_refused_at_the_start(name: str) -> None:
    """Nothing could wait for it; the error names the method and says what to do."""

    async def method(self: Any, *arguments: Any) -> Any: ...

    cls = type("Slow", (middleware.Middleware,), {name: method})

    class Wrong(Shop):
        def __init__(self, options: Any = None) -> None:
            super().__init__(options)
            self.add_outgoing_middleware(cls())

    with pytest.raises(exceptions.ConfigError, match=rf"Slow\.{name} is async def"):
        App(Wrong)


@pytest.mark.parametrize("method", ["plain_mood", "async_mood"])
def test_what_a_handler_sets_is_gone_with_its_message(method: str) -> None:
    """Context variables of users do not get from one message to the next."""
    with App(Shop, concurrency=1) as app:
        futures = [app.client.shop[method]().future(5) for _ in range(10)]
        assert ["none"] * 10 == [future.result()["mood"] for future in futures]


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """The log as a program writes it that asks for the identifiers in its format."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(logging.Formatter("%(correlation_id)s %(entry_point)s %(message)s"))
    handler.addFilter(context.LogFilter())
    logging.getLogger().addHandler(handler)
    yield text
    logging.getLogger().removeHandler(handler)


def test_log_records_of_handlers_carry_the_correlation_id(log: io.StringIO) -> None:
    """So does tavrida's own about a handler that failed; those outside of handlers do not."""
    LOG.warning("outside")
    with App(Shop) as app:
        app.client.shop.logs().call(correlation_id="chain-1", timeout=5)
        with pytest.raises(exceptions.RemoteError):
            app.client.shop.fails().call(correlation_id="chain-2", timeout=5)
    lines = log.getvalue().splitlines()
    assert "- - outside" in lines
    assert "chain-1 shop.logs in a handler" in lines
    assert any(line.startswith("chain-2 shop.fails Handling the request") for line in lines)


def test_attributes_that_a_program_gives_its_records_are_kept(log: io.StringIO) -> None:
    """``extra`` of the same names goes first."""
    LOG.warning("mine", extra={"correlation_id": "own", "entry_point": "here"})
    assert "own here mine\n" == log.getvalue()


class Outgoing(Notes):
    """Keeps what each hook of outgoing messages sees, beside the message."""

    def note_with(self, message: Message, hook: str) -> None:
        now = context.current()
        known = now.correlation_id if now else "nothing"
        self.seen.put((hook, message.message_type, message.correlation_id, known))

    def process(self, message: Message) -> Message:
        self.note_with(message, "process")
        return message

    def before_publish(self, message: Message) -> None:
        self.note_with(message, "before")

    def after_publish(self, message: Message, error: BaseException | None) -> None:
        self.note_with(message, "after")


@dispatcher.rpc_service("caster")
class Caster(ServiceController):
    """Hands something on; its answer follows the confirm of that."""

    seen: SimpleQueue[Any] = SimpleQueue()

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.add_outgoing_middleware(Outgoing(self.seen))

    @dispatcher.rpc_method(service="caster", method="plain")
    def plain(self, request: Any, proxy: Any) -> None:
        proxy.caster.sink().cast()

    @dispatcher.rpc_method(service="caster", method="awaiting")
    async def awaiting(self, request: Any, proxy: Any) -> None:
        proxy.caster.sink().cast()

    @dispatcher.rpc_method(service="caster", method="sink")
    def sink(self, request: Any, proxy: Any) -> None: ...


#: By name: where brokers are.
PLACES: dict[str, Callable[[pytest.FixtureRequest], str]] = {
    "rabbitmq": lambda request: str(request.getfixturevalue("amqp_url")),
    "file": lambda request: f"sqlite://{request.getfixturevalue('tmp_path')}/bus.db",
    "memory": lambda request: f"sqlite://?memory={request.node.name}",
}


@pytest.mark.parametrize("place", PLACES)
def test_outgoing_middleware_sees_the_context_of_the_message_that_it_is_about(
    place: str, request: pytest.FixtureRequest
) -> None:
    """Of no other one, whoever confirms what and when."""
    config = ConnectionConfig(url=(PLACES[place](request),), async_engine=True)
    with (
        Server(config, "caster", "caster", [Caster], queue_type="classic", concurrency=8),
        RPCClient(config) as client,
    ):
        methods = (client.caster.plain(), client.caster.awaiting())
        answers = [each.future(timeout=DEADLINE) for each in methods * 20]
        chains = {answer.result(DEADLINE).correlation_id for answer in answers}
        wanted = {
            (hook, kind, chain, chain)
            for hook in ("process", "before", "after")
            for kind in ("request", "response")
            for chain in chains
        }
        assert wanted == {Caster.seen.get(timeout=DEADLINE) for _ in wanted}
