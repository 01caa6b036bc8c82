# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""One handler, called in the thread of the test: no broker, no server, no event loop to wait for.

It is handled as a server handles a delivery, by the same code: arguments, middleware, results,
the rules of what a handler may send, and whether all of it can be written. Only the broker and
the other services are missing, and ``Peers`` stands for those.
"""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from tavrida import exceptions, messages
from tavrida.addresses import AddressBook
from tavrida.calls import Answer as CallAnswer
from tavrida.calls import Caller
from tavrida.config import ConnectionConfig
from tavrida.dispatcher import Dispatcher, Handler
from tavrida.entry_point import EntryPoint
from tavrida.envelope import Properties, new_id
from tavrida.handling import Handling
from tavrida.loop import LoopThread
from tavrida.messages import (
    INCOMING,
    Error,
    IncomingMessage,
    IncomingRequest,
    IncomingResponse,
    Message,
    Notification,
    Request,
    Response,
)
from tavrida.middleware import Middleware
from tavrida.plugins.discovery.convention import ConventionDiscovery
from tavrida.plugins.serializers import Serializers
from tavrida.plugins.transports import Done, Events, OnDelivery, Publication, Transport
from tavrida.processing import Processor
from tavrida.publishing import Publisher
from tavrida.router import Router
from tavrida.service import ServiceController
from tavrida.testing import controllers
from tavrida.topology import Placement, Topology

#: How a handler sent something.
CAST, CALL, WAIT, TRANSFER, PUBLISH = "cast", "call", "wait", "transfer", "publish"

#: Where answers go that a handler waits for; no queue has such a name.
_REPLY_QUEUE = "(the handler waits)"

Answer = Mapping[str, Any] | Response | Error | BaseException
Answering = Answer | Callable[[Request], Answer]


class UnexpectedCall(AssertionError):
    """Raised in a handler that waits for an answer which the test did not program."""


@dataclass(frozen=True, slots=True, eq=False)
class Received:
    """What the other services got from a handler."""

    #: "cast", "call" (for an answer to another handler), "wait" (also ``await`` and ``future``),
    #: "transfer" or "publish".
    how: str
    #: Whom it is for, or the topic of a notification.
    entry_point: str
    message: Request | Notification

    @property
    def payload(self) -> dict[str, Any]:
        """The values of the message."""
        return self.message.payload


class Peers:
    """All other services, as one handler meets them. Thread-safe."""

    def __init__(self) -> None:
        #: What handlers sent, in order.
        self.received: list[Received] = []
        self._answers: defaultdict[str, list[Answering]] = defaultdict(list)

    def answers(self, entry_point: str, *answers: Answering) -> None:
        """Let a method answer handlers that wait: one answer a call, the last one for all others.

        An answer is a payload, a ``Response``, an ``Error``, or a function that makes one of the
        request. An exception is what the remote handler raises, so that the waiting one gets
        RemoteError; only a CallError, such as CallTimeout or ServiceUnavailable, is raised as it
        is.

        Raises:
            ConfigError: no answer is given.
        """
        EntryPoint.parse(entry_point)
        if not answers:
            raise exceptions.ConfigError(f"answers({entry_point!r}) needs at least one answer")
        self._answers[entry_point] = list(answers)

    def answer_to(self, request: Request) -> IncomingResponse:
        """Return the answer to a request, or raise what it stands for."""
        entry_point = str(request.destination)
        programmed = self._answers[entry_point]
        if not programmed:
            raise UnexpectedCall(
                f"{request.source} waits for an answer of {entry_point} to {request.payload!r}, "
                f"and none is programmed: peers.answers({entry_point!r}, {{...}})"
            )
        answer = programmed.pop(0) if len(programmed) > 1 else programmed[0]
        if callable(answer):
            answer = answer(request)
        if isinstance(answer, exceptions.CallError):
            raise answer
        if isinstance(answer, BaseException):
            answer = Error.from_exception(answer)
        if isinstance(answer, Error):
            raise exceptions.RemoteError(answer.payload)
        response = answer if isinstance(answer, Response) else Response(dict(answer))
        return IncomingResponse(
            dict(response.payload),
            {**request.context, **response.context, **response.payload},
            dict(response.extra_headers),
            correlation_id=request.correlation_id,
            request_id=request.request_id,
            message_id=new_id(),
            source=request.destination,
            destination=request.source,
        )


def call_handler(
    controller: type[ServiceController] | ServiceController,
    entry_point: str,
    payload: Mapping[str, Any] | BaseException | None = None,
    *,
    kind: str | None = None,
    peers: Peers | None = None,
    options: Mapping[str, Any] | None = None,
    context: Mapping[str, Any] | None = None,
    headers: Mapping[str, Any] | None = None,
    source: str = "test",
    reply_to: str = "test",
    redelivered: bool = False,
    attempt: int = 1,
) -> Message | None:
    """Run the handler of a message as a server does; return the answer that its caller would get.

    ``controller`` is a class, made with ``options``, or an object of one. ``entry_point`` is what
    the decorator of the handler says; ``kind`` tells handlers of the same one apart. An exception
    as the payload stands for the error answer that tells of it. A request with ``reply_to=""`` is
    a cast. What the handler sends goes to ``peers``.

    It blocks until the handler has ended; an ``async def`` one runs on an event loop of its own,
    so that only plain test functions may call it.

    Returns:
        The Response or Error; None where nobody gets one: casts, transferred requests, responses,
        errors and notifications.

    Raises:
        Exception: what the handler or a middleware raised, as it is.
        InvalidPayload: the payload does not fit; the handler was not run.
        UnknownResult, MessageError: what it returned is no answer, or cannot be written.
        UnexpectedCall: it waits for an answer that ``peers`` does not have.
        ConfigError: the controller, its options or the arguments here cannot work.
    """
    __tracebackhide__ = True
    if isinstance(controller, ServiceController):
        if options is not None:
            raise exceptions.ConfigError(
                "options are for a controller class: this is an object, which has its own"
            )
        made = controller
    else:
        made = controllers.make(controller, options)
    if isinstance(payload, BaseException):
        kind, payload = kind or messages.ERROR, Error.from_exception(payload).payload
    _check_no_loop()
    dispatcher = Dispatcher(made)
    handler = _handler_of(dispatcher, entry_point, kind)
    message = _message_for(handler, dict(payload or {}), source)
    message.context = {**(context or {}), **message.payload}
    message.extra_headers = dict(headers or {})
    message.redelivered = redelivered
    message.attempt = attempt
    if isinstance(message, IncomingRequest):
        message.reply_to = reply_to
    call = _Call(dispatcher, handler, message, peers or Peers())
    if handler.is_async:
        asyncio.run(call.run_async())
    else:
        call.run()
    if call.failure is not None:
        raise call.failure
    return call.witness.answer


def _check_no_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise exceptions.ConfigError(
        "call_handler() blocks, and so would this event loop: call it in a plain test function, or "
        "by asyncio.to_thread()"
    )


def _handler_of(dispatcher: Dispatcher, entry_point: str, kind: str | None) -> Handler:
    """Return the one handler that is meant."""
    if kind is not None and kind not in messages.KINDS:
        raise exceptions.ConfigError(
            f"kind={kind!r} should be one of {', '.join(messages.KINDS)}"
            f"{exceptions.did_you_mean(str(kind), messages.KINDS)}"
        )
    name = type(dispatcher.controller).__name__
    known = [(str(mark.entry_point), mark.kind) for mark in dispatcher.handlers]
    found = [
        handler
        for mark, handler in dispatcher.handlers.items()
        if str(mark.entry_point) == entry_point and kind in (None, mark.kind)
    ]
    if not found:
        handled = ", ".join(f"{kind} {point}" for point, kind in sorted(known))
        points = {point for point, _ in known}
        near = "" if entry_point in points else exceptions.did_you_mean(entry_point, points)
        raise exceptions.ConfigError(
            f"{name} has no handler for the {kind or 'messages'} of {entry_point}{near}. "
            f"It handles: {handled}."
        )
    if len(found) > 1:
        kinds = " and ".join(f"kind={handler.mark.kind!r}" for handler in found)
        raise exceptions.ConfigError(
            f"{name} has several handlers for {entry_point}: say which one, {kinds}"
        )
    return found[0]


def _message_for(handler: Handler, payload: dict[str, Any], source: str) -> IncomingMessage:
    """Return what a server would have made of the message."""
    message = INCOMING[handler.mark.kind](payload)
    message.correlation_id = message.request_id = new_id()
    message.message_id = new_id()
    if handler.mark.kind == messages.REQUEST:
        message.source = EntryPoint.parse_source(source)
        message.destination = handler.mark.entry_point
    else:
        message.source = handler.mark.entry_point
        message.destination = EntryPoint(handler.service)
    return message


class _Call(Handling):
    """The handling of one message, which keeps why it failed."""

    __slots__ = ("failure", "witness")

    def __init__(
        self, dispatcher: Dispatcher, handler: Handler, message: IncomingMessage, peers: Peers
    ) -> None:
        service = dispatcher.service
        controller = dispatcher.controller
        self.failure: BaseException | None = None
        self.witness = _Witness(message, peers)
        loop = _NoLoop(is_current=handler.is_async)
        broker = _NoBroker(ConnectionConfig(), loop, service, Events(_ignore, _ignore))
        serializers = Serializers("json", ("json", "msgpack"))
        processor = _Processor(
            loop,
            Publisher(loop, broker),
            _Answerer(loop, broker, serializers, peers),
            serializers,
            1,
            lambda: broker.declare(Topology()),
        )
        placement = Placement(
            dispatcher,
            service,
            service,
            AddressBook(controller.get_discovery() or ConventionDiscovery(), {service: service}),
            None,
            tuple(controller.incoming_middleware),
            (*controller.outgoing_middleware, self.witness),
        )
        delivery = _Delivery(Properties(), service)
        super().__init__(processor, delivery, message, handler, placement, Router([dispatcher]))

    def _log(self, error: BaseException) -> None:
        # Every failure comes by here: of the handler, of its result, of sending the answer. The
        # first one is the reason for those that follow.
        self.failure = self.failure or error


class _Processor(Processor):
    """Waits for what runs beside the handler."""

    def task_ended(self, handling: Handling) -> None:
        pass

    def run_in_thread(self, job: Callable[[], None]) -> None:
        thread = threading.Thread(target=job)
        thread.start()
        thread.join()


class _Witness(Middleware):
    """Sees what goes out, at the end of all middleware."""

    def __init__(self, message: IncomingMessage, peers: Peers) -> None:
        self.answer: Message | None = None
        self._request_id = message.request_id
        self._peers = peers

    def after_publish(self, message: Message, error: BaseException | None) -> None:
        if isinstance(error, exceptions.MessageError):
            return  # it could not be written, so that nobody received it
        if isinstance(message, Request | Notification):
            received = Received(self._how(message), _entry_point_of(message), message)
            self._peers.received.append(received)
        else:
            self.answer = message

    def _how(self, message: Request | Notification) -> str:
        if isinstance(message, Notification):
            return PUBLISH
        if message.request_id == self._request_id:
            return TRANSFER
        if message.reply_to == _REPLY_QUEUE:
            return WAIT
        return CALL if message.reply_to else CAST


def _entry_point_of(message: Request | Notification) -> str:
    return str(message.destination if isinstance(message, Request) else message.source)


class _Answerer(Caller):
    """Lets the peers answer at once."""

    def __init__(
        self, loop: LoopThread, transport: Transport, serializers: Serializers, peers: Peers
    ) -> None:
        super().__init__(loop, transport, serializers)
        self._peers = peers

    def ask(
        self,
        request: Request,
        timeout: float | None,
        inherited: float | None,
        send: Callable[[Request, Done], None],
        answer: CallAnswer,
    ) -> None:
        request.reply_to = _REPLY_QUEUE
        send(request, _ignore)
        try:
            answer.set_result(self._peers.answer_to(request))
        except BaseException as error:
            answer.set_exception(error)


class _NoLoop(LoopThread):
    """Runs what is submitted at once, in the thread of the test."""

    def __init__(self, *, is_current: bool) -> None:  # the base class would start a thread
        self._is_current = is_current
        self._is_stopped = False

    @property
    def is_current(self) -> bool:
        return self._is_current

    def last(self, work: Callable[..., object], *args: Any) -> None:
        work(*args)

    def submit(self, callback: Callable[..., object], *args: Any) -> None:
        callback(*args)

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(asyncio.run(coroutine))
        return future


class _NoBroker(Transport):
    """Confirms whatever it is given."""

    is_ready = True
    can_publish = True

    async def open(self, attempts: int) -> None: ...

    async def declare(self, topology: Topology) -> None: ...

    async def compare(self, thing: object) -> None: ...

    async def rebind(self, old: object, new: object) -> None: ...

    async def delete(self, queue: str) -> None: ...

    async def consume(self, queue: str, prefetch: int, on_delivery: OnDelivery) -> None: ...

    async def change_prefetch(self, queue: str, prefetch: int) -> None: ...

    async def inspect(self, queue: str) -> None: ...

    async def get(self, queue: str) -> None: ...

    async def reply_queue(self, on_delivery: OnDelivery) -> str:
        return _REPLY_QUEUE

    async def cancel(self) -> None: ...

    async def close(self) -> None: ...

    def publish(self, publication: Publication, done: Done) -> None:
        done(None)


@dataclass(slots=True)
class _Delivery:
    """A delivery of nobody's, which need not be settled."""

    properties: Any
    queue: str
    body: bytes = b""
    exchange: str = ""
    routing_key: str = ""
    redelivered: bool = False
    is_live: bool = True

    def ack(self) -> None: ...

    def requeue(self) -> None: ...

    def reject(self) -> None: ...


def _ignore(*args: object) -> None:
    pass
