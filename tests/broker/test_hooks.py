# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The hooks that tell middleware of retries, dead letters, and calls whose answer is awaited."""

from __future__ import annotations

from collections.abc import Mapping
from queue import SimpleQueue
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from tavrida import context, dispatcher, exceptions
from tavrida.messages import IncomingMessage, IncomingResponse, Request
from tavrida.middleware import Middleware
from tavrida.retries import Retry
from tavrida.service import ServiceController
from tests.broker.conftest import EXCHANGE, Connect, Serve
from tests.waiting import DEADLINE

SOON = Retry(attempts=3, first_delay=0.05, factor=1, jitter=0.0)


class Hears(Middleware):
    """Notes what it is told."""

    def __init__(self, told: SimpleQueue[Any]) -> None:
        self.told = told

    def before_retry(
        self, message: IncomingMessage, error: BaseException
    ) -> Mapping[str, Any] | None:
        assert context.current() is not None
        self.told.put(("retry", message.attempt, str(error)))
        return {"failed_before": message.attempt}

    def before_dead_letter(self, message: IncomingMessage, error: BaseException) -> None:
        handled = context.handled.get()
        assert handled is not None
        method = handled.handler.mark.entry_point.method if handled.handler else ""
        self.told.put(("dead", method, type(error).__name__))

    def before_call(self, message: Request) -> None:
        self.told.put(("before_call", str(message.destination)))

    def after_call(
        self, message: Request, answer: IncomingResponse | None, error: BaseException | None
    ) -> None:
        result = answer.payload if answer is not None else type(error).__name__
        self.told.put(("after_call", str(message.destination), result))


class Breaks(Middleware):
    """Leaves in every hook that may not change anything."""

    def before_retry(self, message: IncomingMessage, error: BaseException) -> None:
        raise SystemExit

    def before_dead_letter(self, message: IncomingMessage, error: BaseException) -> None:
        raise SystemExit

    def before_call(self, message: Request) -> None:
        raise SystemExit

    def after_call(
        self, message: Request, answer: IncomingResponse | None, error: BaseException | None
    ) -> None:
        raise SystemExit


@dispatcher.rpc_service("svc")
class Service(ServiceController):
    told: SimpleQueue[Any]

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        for each in (Breaks(), Hears(self.told)):
            self.add_incoming_middleware(each)
            self.add_outgoing_middleware(each)

    @dispatcher.rpc_method(service="svc", method="fail")
    def fail(self, request: Any, proxy: Any) -> None:
        self.told.put(("headers", request.headers.get("failed_before")))
        raise OSError(f"failure {request.attempt}")

    @dispatcher.rpc_method(service="svc", method="one")
    def one(self, request: Any, proxy: Any) -> dict[str, int]:
        return {"n": 1}

    @dispatcher.rpc_method(service="svc", method="refuse")
    def refuse(self, request: Any, proxy: Any) -> None:
        raise ValueError

    @dispatcher.rpc_method(service="svc", method="wait")
    def wait(self, request: Any, proxy: Any, method: str) -> Any:
        return proxy.svc[method]().wait(timeout=DEADLINE).payload

    @dispatcher.rpc_method(service="svc", method="await_")
    async def await_(self, request: Any, proxy: Any, method: str) -> Any:
        return (await proxy.svc[method]()).payload

    @dispatcher.rpc_method(service="svc", method="future")
    def future(self, request: Any, proxy: Any, method: str) -> Any:
        return proxy.svc[method]().future(timeout=DEADLINE).result(DEADLINE).payload

    @dispatcher.rpc_method(service="svc", method="unsent")
    def unsent(self, request: Any, proxy: Any) -> None:
        proxy.svc.one(n=object()).wait()


@pytest.fixture(autouse=True)
def told() -> SimpleQueue[Any]:
    """What the hooks were told, in order."""
    Service.told = SimpleQueue()
    return Service.told


def test_retries_and_the_dead_letter_are_told(
    serve: Serve, connect: Connect, told: SimpleQueue[Any]
) -> None:
    """A retry has the headers that the hook gave it, and those of the last one win."""
    serve(Service, retry=SOON)
    connect("svc").svc.fail().cast()
    assert [
        ("headers", None),
        ("retry", 1, "failure 1"),
        ("headers", 1),
        ("retry", 2, "failure 2"),
        ("headers", 2),
        ("dead", "fail", "OSError"),
    ] == [told.get(timeout=DEADLINE) for _ in range(6)]


def test_what_cannot_be_read_is_told_as_a_dead_letter(
    serve: Serve, channel: BlockingChannel, told: SimpleQueue[Any]
) -> None:
    """It belongs to no controller, so that all are told; and so is what has no handler."""
    serve(Service)
    properties = pika.BasicProperties(content_type="application/json")
    channel.basic_publish(EXCHANGE, "svc.one", b"{", properties)
    assert ("dead", "", "MalformedMessage") == told.get(timeout=DEADLINE)
    channel.basic_publish(EXCHANGE, "svc.nothing", b"{}", properties)
    assert ("dead", "", "HandlerNotFound") == told.get(timeout=DEADLINE)
    assert told.empty()


@pytest.mark.parametrize("way", ["wait", "await_", "future"])
def test_calls_whose_answer_is_awaited_are_told(
    serve: Serve, connect: Connect, told: SimpleQueue[Any], way: str
) -> None:
    """Before they are sent, and with the answer or the error; however a handler waits."""
    serve(Service)
    svc = connect("svc").svc
    assert {"n": 1} == svc[way](method="one").call(timeout=DEADLINE).payload
    assert ("before_call", "svc.one") == told.get(timeout=DEADLINE)
    assert ("after_call", "svc.one", {"n": 1}) == told.get(timeout=DEADLINE)
    with pytest.raises(exceptions.RemoteError):
        svc[way](method="refuse").call(timeout=DEADLINE)
    assert ("before_call", "svc.refuse") == told.get(timeout=DEADLINE)
    assert ("after_call", "svc.refuse", "RemoteError") == told.get(timeout=DEADLINE)


def test_a_call_that_cannot_be_sent_is_told(
    serve: Serve, connect: Connect, told: SimpleQueue[Any]
) -> None:
    """Each before_call has its after_call."""
    serve(Service)
    with pytest.raises(exceptions.RemoteError):
        connect("svc").svc.unsent().call(timeout=DEADLINE)
    assert ("before_call", "svc.one") == told.get(timeout=DEADLINE)
    kind, _, why = told.get(timeout=DEADLINE)
    assert "after_call" == kind
    assert isinstance(why, str)
    assert told.empty()
