# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The way of one delivery: decode, route, run, answer, settle."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import time
import traceback
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from typing import Any

from tavrida import context, envelope, exceptions, messages, middleware
from tavrida.addresses import Address
from tavrida.calls import Caller, check_time
from tavrida.dispatcher import Handler
from tavrida.entry_point import EntryPoint
from tavrida.envelope import Properties
from tavrida.loop import LoopThread
from tavrida.messages import (
    Error,
    IncomingMessage,
    IncomingRequest,
    IncomingResponse,
    Message,
    Notification,
    Request,
)
from tavrida.plugins.serializers import Serializer, Serializers
from tavrida.plugins.transports import Delivery, Done, Publication
from tavrida.proxies import Origin, RPCProxy
from tavrida.publishing import Publisher
from tavrida.results import response_of
from tavrida.router import Router
from tavrida.standstill import Standstill
from tavrida.topology import Placement, dead_letter_queue
from tavrida.workers import Workers

LOG = logging.getLogger(__name__)

#: Lines of a traceback that go with a dead letter: its end, where the reason is.
TRACEBACK_LINES = 20


class Processor:
    """Handles the deliveries of a server's queues, ``concurrency`` at a time.

    All methods are called on the loop. A delivery is acknowledged when its handler has ended,
    everything that the handler sent is confirmed, and so is the answer.
    """

    def __init__(
        self,
        loop: LoopThread,
        publisher: Publisher,
        caller: Caller,
        serializers: Serializers,
        concurrency: int,
        redeclare: Callable[[], Coroutine[Any, Any, None]],
        error_of: Callable[[BaseException], Error] = Error.from_exception,
    ) -> None:
        self.loop = loop
        self.publisher = publisher
        self.caller = caller
        self.serializers = serializers
        #: Declares the topology again, when something of it was deleted.
        self.redeclare = redeclare
        #: Makes the answer that tells of an exception.
        self.error_of = error_of
        self._workers = Workers(concurrency, "tavrida-worker")
        self._concurrency = concurrency
        self._running = 0
        self._waiting: deque[Handling] = deque()
        self.standstill = Standstill(loop, concurrency, self._waiting)
        self._open: set[Handling] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_draining = False
        self._all_settled = asyncio.Event()

    def receive(
        self, delivery: Delivery, router: Router, placements: Mapping[str, Placement]
    ) -> None:
        """Take a delivery of a queue that these controllers share."""
        try:
            self._receive(delivery, router, placements)
        except Exception:
            LOG.exception("A message of queue %s cannot be taken.", delivery.queue)
            delivery.reject()
            self._open = {each for each in self._open if each.delivery is not delivery}

    def _receive(
        self, delivery: Delivery, router: Router, placements: Mapping[str, Placement]
    ) -> None:
        if self._is_draining:
            delivery.requeue()
            return
        try:
            message = envelope.decode(
                delivery.properties,
                delivery.body,
                delivery.routing_key,
                self.serializers.by_content_type,
                default=self.serializers.default,
                redelivered=delivery.redelivered,
            )
        except exceptions.MalformedMessage as error:
            message = _unreadable(delivery)
            self._open_handling(delivery, message, None, None, router).fail(error)
            return
        try:
            handler = router.route(message)
        except exceptions.HandlerNotFound as error:
            if router.has_counterpart(message):
                LOG.info("Dropped the %s of %s: %s", message.message_type, message.source, error)
                delivery.ack()
                return
            placement = next(iter(placements.values()))
            self._open_handling(delivery, message, None, placement, router).fail(error)
            return
        handling = self._open_handling(
            delivery, message, handler, placements[handler.service], router
        )
        if self._running < self._concurrency:
            self._start(handling)
        else:
            self._waiting.append(handling)
            self.standstill.check()

    def _open_handling(
        self,
        delivery: Delivery,
        message: IncomingMessage,
        handler: Handler | None,
        placement: Placement | None,
        router: Router,
    ) -> Handling:
        handling = Handling(self, delivery, message, handler, placement, router)
        self._open.add(handling)
        return handling

    def _start(self, handling: Handling) -> None:
        message = handling.message
        if not handling.delivery.is_live:
            # Its connection went while it waited here; the broker delivers it again.
            self.settled(handling)
            return
        if message.deadline is not None and message.deadline <= time.time():
            LOG.info("Dropped an expired request to %s: its caller gave up.", message.destination)
            handling.settle()
            return
        self._running += 1
        assert handling.handler is not None
        if handling.handler.is_async:
            self.start_task(handling.run_async())
        else:
            self._workers.run(handling.run)

    def start_task(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine on the loop, and keep hold of it until it ends."""
        # In nobody's context: not in that of the handler whose end let this one begin.
        task = self.loop.loop.create_task(coroutine, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def ended(self) -> None:
        """Called when a handler ended: the next one may start."""
        self._running -= 1
        while self._waiting and self._running < self._concurrency:
            self._start(self._waiting.popleft())

    def settled(self, handling: Handling) -> None:
        """Called when a delivery was settled, in whichever way."""
        self._open.discard(handling)
        if self._is_draining and not self._open:
            self._all_settled.set()

    def awaiting(self, request: Request) -> contextlib.AbstractContextManager[None]:
        """Return a block in which this handler only waits for the answer. Thread-safe."""
        if self.loop.is_current:
            is_of_handler = asyncio.current_task() in self._tasks
        else:
            is_of_handler = self._workers.is_current
        # In a thread or task of the handler's own, the handler itself may go on and end.
        return self.standstill.awaiting(request) if is_of_handler else contextlib.nullcontext()

    async def drain(self, timeout: float) -> int:
        """Give back what has not started, wait for the rest; return how many did not end."""
        self._is_draining = True
        while self._waiting:
            handling = self._waiting.popleft()
            handling.delivery.requeue()
            self.settled(handling)
        if self._open:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_settled.wait(), timeout)
        self._workers.stop()
        return len(self._open)


class Handling:
    """One delivery while it is handled, and the Sender of the proxy that its handler gets.

    What the handler sends may come from its thread; everything else happens on the loop.
    """

    __slots__ = (
        "_answer",
        "_error",
        "_has_ended",
        "_is_answered_plainly",
        "_is_finished",
        "_is_redeclared",
        "_outstanding",
        "_placement",
        "_processor",
        "_router",
        "_unconfirmed",
        "_untaken",
        "delivery",
        "handler",
        "message",
    )

    def __init__(
        self,
        processor: Processor,
        delivery: Delivery,
        message: IncomingMessage,
        handler: Handler | None,
        placement: Placement | None,
        router: Router,
    ) -> None:
        self._processor = processor
        self.delivery = delivery
        self.message = message
        self.handler = handler
        self._placement = placement
        self._router = router
        # Messages that the handler sent and the broker has not confirmed. Adding and discarding
        # are atomic, so that the handler's thread and the loop need no lock.
        self._outstanding: set[str] = set()
        self._answer: Message | None = None
        self._error: BaseException | None = None
        self._unconfirmed: Exception | None = None
        self._untaken = ""
        self._has_ended = False
        self._is_finished = False
        self._is_answered_plainly = False
        self._is_redeclared = False

    # -- running

    def run(self) -> None:
        """Run a plain handler, in a worker thread and a context of its own."""
        here = contextvars.copy_context()
        try:
            result, error = here.run(self._run)
            self._processor.loop.submit(here.run, self._ended, result, error)
        except exceptions.ConnectionFailed:
            pass  # The server stopped without waiting for us; the broker delivers it again.

    def _run(self) -> tuple[object, BaseException | None]:
        context.handled.set(self)
        result, error = None, None
        try:
            call = self._prepare(middleware.run(self._before(), self._wait_on_loop))
            if isinstance(call, Message):
                result = call
            else:
                result = self.handler.function(call[0], call[1], **call[2])  # type: ignore[union-attr]
        except BaseException as raised:  # also SystemExit: a handler does not stop the server
            error = raised
        middleware.run(self._after(error), self._wait_on_loop)
        return result, error

    def _wait_on_loop(self, pending: Coroutine[Any, Any, Any]) -> Any:
        return self._processor.loop.start(pending).result()

    async def run_async(self) -> None:
        """Run an ``async def`` handler, on the loop, as a task of its own."""
        context.handled.set(self)
        result, error = None, None
        try:
            call = self._prepare(await middleware.run_async(self._before()))
            if isinstance(call, Message):
                result = call
            else:
                result = await self.handler.function(call[0], call[1], **call[2])  # type: ignore[union-attr]
        except GeneratorExit:
            raise  # The loop is gone and did not wait for the handler.
        except BaseException as raised:
            if self._processor.loop.is_stopping:
                return  # The broker delivers it again.
            error = raised  # also a CancelledError, of what it awaited or of its own making
        try:
            await middleware.run_async(self._after(error))
        except GeneratorExit:
            raise
        except BaseException:
            if self._processor.loop.is_stopping:
                return
            LOG.exception("A middleware was cancelled after the handler had ended.")
        self._ended(result, error)

    def _before(self) -> middleware.Steps[Message]:
        message = self.message
        if (
            not message.is_enveloped
            and message.deadline is None
            and isinstance(message, IncomingRequest)
            and message.expects_answer
        ):
            # A foreign caller waits and does not say for how long.
            message.deadline = time.time() + self._processor.caller.default_timeout
        assert self._placement is not None
        return middleware.before(self._placement.incoming, message)

    def _after(self, error: BaseException | None) -> middleware.Steps[None]:
        assert self._placement is not None
        return middleware.after(self._placement.incoming, self.message, error)

    def _prepare(
        self, message: Message
    ) -> Message | tuple[IncomingMessage, RPCProxy, dict[str, Any]]:
        """Return what to call the handler with; or the answer, if incoming middleware gave it."""
        handler = self.handler
        assert handler is not None
        if not isinstance(message, IncomingMessage):
            return message
        self.message = message
        arguments = handler.arguments(message.payload)
        # What a handler sends goes out in the name of the entry point that it handles.
        if handler.mark.kind == messages.REQUEST:
            source = handler.mark.entry_point
        else:
            source = EntryPoint(handler.service, handler.mark.entry_point.method)
        carried = {**message.context, **message.payload}
        return message, RPCProxy(Origin(self, source, message.correlation_id, carried)), arguments

    # -- what the handler sends: the Sender of its proxy

    def send(self, message: Request | Notification) -> None:
        """Send a cast, a transfer or a notification as part of this delivery."""
        confirm = self._confirm_of(message)

        def confirmed(error: Exception | None) -> None:
            if error is not None and isinstance(message, Request) and message.reply_to:
                # Nobody took the request over: it is ours to answer again. Not at once: the
                # handler's thread may still be about to let go of it.
                self._untaken = message.reply_to
            confirm(error)

        self._send(message, self._address_of(message), confirmed)

    def call(self, request: Request, timeout: float | None) -> None:
        """Send a request whose answer comes to another handler of this controller."""
        assert self._placement is not None and self.handler is not None
        destination = str(request.destination)
        if timeout is not None:
            raise exceptions.CallError(
                f"call(timeout=) to {destination} cannot wait inside a handler: use "
                ".wait(timeout=) there, or await the call in an async def handler"
            )
        if not request.reply_to:
            asker = self.handler.service
            if not any(
                self._router.find(kind, destination, asker)
                for kind in (messages.RESPONSE, messages.ERROR)
            ):
                service, _, method = destination.partition(".")
                raise exceptions.HandlerNotFound(
                    f"the answer of {destination} would be lost, since {asker!r} has no handler "
                    f'for it: mark a method with rpc_response_method(service="{service}", '
                    f'method="{method}"), or use .wait() or .cast()'
                )
            request.reply_to = self._placement.queue
        request.deadline = self.message.deadline
        check_time(request)
        self._send(request, self._address_of(request), self._confirm_of(request))

    def wait(self, request: Request, timeout: float | None) -> IncomingResponse:
        """Send a request and wait for its answer in this worker thread."""
        if self._processor.loop.is_current:
            raise exceptions.CallError(
                f".wait() on {request.destination} would block the event loop and everything on "
                "it: write 'await proxy.service.method(...)' in an async def handler"
            )
        answer = self.ask(request, timeout)
        with self._processor.awaiting(request):
            return answer.result()

    async def wait_async(self, request: Request) -> IncomingResponse:
        """Send a request and return its answer, without blocking the loop."""
        answer = asyncio.wrap_future(self.ask(request, None))
        with self._processor.awaiting(request):
            return await answer

    def ask(self, request: Request, timeout: float | None) -> Future[IncomingResponse]:
        """Send a request whose answer ends the future."""

        def send(message: Request, done: Done) -> None:
            self._send(message, self._address_of(message), done)

        return self._processor.caller.ask(request, timeout, self.message.deadline, send)

    def _address_of(self, message: Request | Notification) -> Address:
        assert self._placement is not None
        book = self._placement.addresses
        if isinstance(message, Request):
            assert message.destination is not None
            return book.of_request(message.destination)
        assert message.source is not None
        return book.of_notification(message.source)

    def _send(self, message: Message, address: Address, done: Done) -> None:
        assert self._placement is not None
        key = message.message_id
        self._outstanding.add(key)

        def confirmed(error: Exception | None) -> None:
            done(error)
            self._outstanding.discard(key)
            self._finish_if_done()

        try:
            self._processor.publisher.send(
                message,
                address,
                self._processor.serializers.default,
                confirmed,
                chain=self._placement.outgoing,
            )
        except BaseException:
            self._outstanding.discard(key)
            # The handler may have ended meanwhile: this was sent by a thread of its own.
            self._processor.loop.submit(self._finish_if_done)
            raise

    def _finish_if_done(self) -> None:
        if self._has_ended and not self._outstanding and not self._is_finished:
            self._finish()

    def _confirm_of(self, message: Request | Notification) -> Done:
        """What to do when the broker has taken a message that belongs to this delivery, or not."""

        def confirmed(error: Exception | None) -> None:
            if error is None:
                return
            if isinstance(error, exceptions.ServiceUnavailable) and self._tell_asker(
                message, error
            ):
                return
            if self._is_finished:
                LOG.error("A message that was sent after its handler ended was lost: %s", error)
            if isinstance(error, exceptions.PublishTimeout | exceptions.ConnectionFailed):
                self._unconfirmed = error
            self._error = self._error or error

        return confirmed

    def _tell_asker(self, request: Message, error: Exception) -> bool:
        """Let ``rpc_error_method`` know that nobody serves what the handler called."""
        assert self.handler is not None and self._placement is not None
        asker = self.handler.service
        destination = str(request.destination)
        if request.reply_to != self._placement.queue or not self._router.find(
            messages.ERROR, destination, asker
        ):
            return False
        answer = self._processor.error_of(error)
        _address_answer(answer, request)
        address = Address("", request.reply_to, is_mandatory=True)
        self._send(answer, address, self._fail_with)
        return True

    def _fail_with(self, error: Exception | None) -> None:
        self._error = self._error or error

    # -- the end

    def _ended(self, result: object, error: BaseException | None) -> None:
        self._processor.ended()
        self._has_ended = True
        if error is not None:
            self._error = error
            self._log(error)
        elif isinstance(self.message, IncomingRequest) and self.message.expects_answer:
            try:
                self._answer = self.handler.answer(result) if self.handler else response_of(result)
            except exceptions.UnknownResult as unknown:
                place = self.handler.place if self.handler else "middleware"
                self._error = exceptions.UnknownResult(f"{place} {unknown}")
                self._log(self._error)
            except BaseException as failure:  # of the user's class: it is hostile, or broken
                self._error = failure
                self._log(failure)
        self._finish_if_done()

    def fail(self, error: Exception) -> None:
        """End a delivery that cannot be handled at all."""
        self._has_ended = True
        self._error = error
        self._log(error)
        self._finish()

    def _log(self, error: BaseException) -> None:
        # A caller who sent the wrong thing is told so; its log entry needs no traceback.
        trace = None if isinstance(error, exceptions.MessageError) else error
        token = context.handled.set(self)  # the broker may have told of it much later
        with contextlib.suppress(BaseException):  # a name or text that cannot be made
            LOG.error(
                "Handling the %s %s from %s (correlation id %s) failed: %s: %s",
                self.message.message_type,
                self.message.destination or "",
                self.message.source or "an unknown source",
                self.message.correlation_id or "none",
                type(error).__name__,
                exceptions.text_of(error),
                exc_info=trace,
            )
        context.handled.reset(token)

    def _finish(self) -> None:
        """Answer, or dead-letter, or simply acknowledge; whatever happens, it ends."""
        self._is_finished = True
        try:
            self._conclude()
        except BaseException:
            LOG.exception("A delivery of queue %s cannot be concluded.", self.delivery.queue)
            self._error = exceptions.TavridaError("it failed in a way that cannot be told")
            message = self.message
            if isinstance(message, IncomingRequest) and message.expects_answer:
                self._send_plain_error(message, self._error)
            else:
                self._dead_letter(self._error)

    def _conclude(self) -> None:
        message = self.message
        if self._untaken:
            message.reply_to = self._untaken
        if isinstance(message, IncomingRequest) and message.expects_answer:
            answer = self._answer
            if self._error is not None or answer is None:
                answer = self._processor.error_of(
                    self._error or exceptions.TavridaError("no answer")
                )
            self._send_answer(message, answer)
        elif self._unconfirmed is not None:
            self._give_back(self._unconfirmed)
        elif self._error is not None:
            self._dead_letter(self._error)
        else:
            self.settle()

    def _send_answer(self, request: IncomingRequest, answer: Message) -> None:
        processor, placement = self._processor, self._placement
        _address_answer(answer, request)
        try:
            address = (
                placement.addresses.of_answer(request.reply_to)
                if placement
                else Address("", request.reply_to, is_mandatory=True)
            )
            processor.publisher.send(
                answer,
                address,
                self._codec_of(request),
                self._answered,
                chain=placement.outgoing if placement else (),
                enveloped=request.is_enveloped,
            )
        except BaseException as error:  # also a SystemExit of middleware
            self._log(error)
            self._send_plain_error(request, error)

    def _send_plain_error(self, request: IncomingRequest, error: BaseException) -> None:
        """Answer when the real answer cannot be sent: past middleware and discovery."""
        self._is_answered_plainly = True
        answer = self._processor.error_of(error)
        _address_answer(answer, request)
        answer.context = {}
        address = Address("", request.reply_to, is_mandatory=True)
        try:
            self._processor.publisher.send(
                answer,
                address,
                self._codec_of(request),
                self._answered,
                enveloped=request.is_enveloped,
            )
        except exceptions.MessageError as reason:
            LOG.exception("The error answer to %s cannot be sent.", request.reply_to)
            self._dead_letter(reason)

    def _codec_of(self, request: IncomingRequest) -> Serializer:
        serializers = self._processor.serializers
        return serializers.by_content_type.get(request.content_type, serializers.default)

    def _answered(self, error: Exception | None) -> None:
        if isinstance(error, exceptions.ServiceUnavailable):
            LOG.debug("The caller of %s is gone: %s", self.message.destination, error)
            self.settle()
        elif isinstance(error, exceptions.PublishTimeout | exceptions.ConnectionFailed):
            self._give_back(error)
        elif error is None:
            self.settle()
        elif self._is_answered_plainly or not isinstance(self.message, IncomingRequest):
            self._dead_letter(error)
        else:  # The broker refused this answer, and would refuse it again.
            self._log(error)
            self._send_plain_error(self.message, error)

    def _dead_letter(self, reason: BaseException) -> None:
        """Move the message to the dead-letter queue, with why; acknowledge when it is there."""
        self._error = reason
        delivery = self.delivery
        lines = _trace_of(reason).splitlines()[-TRACEBACK_LINES:]
        original = delivery.properties
        properties = Properties(
            original.content_type or "",
            {
                **(original.headers or {}),
                "dead_reason": f"{type(reason).__name__}: {exceptions.text_of(reason)}"[:1000],
                "dead_traceback": "\n".join(lines)[-8000:],
                "dead_queue": delivery.queue,
                "dead_exchange": delivery.exchange,
                "dead_routing_key": delivery.routing_key,
                "dead_at": int(time.time()),
            },
            original.correlation_id or "",
            original.reply_to or "",
            original.message_id or envelope.new_id(),
            original.type or "",
            original.app_id or "",
            int(time.time()),
        )
        queue = dead_letter_queue(delivery.queue)
        self._processor.publisher.send_raw(
            Publication("", queue, delivery.body, properties, is_mandatory=True), self._buried
        )

    def _buried(self, error: Exception | None) -> None:
        if error is None:
            self.settle()
        elif isinstance(error, exceptions.PublishTimeout | exceptions.ConnectionFailed):
            self._give_back(error)
        elif isinstance(error, exceptions.ServiceUnavailable):
            self._processor.start_task(self._restore_dead_letter_queue(error))
        else:
            # The copy with the reason cannot be written; the broker can still move the original.
            LOG.error("A dead letter goes to its queue without the reason: %s", error)
            self.delivery.reject()
            self._processor.settled(self)

    async def _restore_dead_letter_queue(self, error: Exception) -> None:
        """Somebody deleted the dead-letter queue: without it the message would be lost."""
        if self._is_redeclared:
            self._give_back(error)
            return
        self._is_redeclared = True
        LOG.warning("The dead-letter queue of %s is gone; declaring it again.", self.delivery.queue)
        try:
            await self._processor.redeclare()
        except exceptions.TransportError as reason:
            self._give_back(reason)
        else:
            assert self._error is not None
            self._dead_letter(self._error)

    def settle(self) -> None:
        """Acknowledge the delivery: all is done."""
        self.delivery.ack()
        self._processor.settled(self)

    def _give_back(self, error: Exception) -> None:
        LOG.warning("Gave a message back to queue %s: %s", self.delivery.queue, error)
        self.delivery.requeue()
        self._processor.settled(self)


def _trace_of(error: BaseException) -> str:
    """Return the traceback as text, also of an exception whose own attributes stand against it."""
    try:
        return "".join(traceback.format_exception(error))
    except BaseException:
        return f"(the traceback of {type(error)!r} cannot be made)"


def _address_answer(answer: Message, request: Message) -> None:
    """Fill in what makes a message the answer to that request."""
    answer.correlation_id = request.correlation_id
    answer.request_id = request.request_id
    answer.message_id = envelope.new_id()
    answer.source = request.destination
    answer.destination = request.source
    answer.context = {**request.context, **answer.context, **answer.payload}


def _unreadable(delivery: Delivery) -> IncomingMessage:
    """What can be said of a message that cannot be decoded: whom to answer, if anybody."""
    properties = delivery.properties
    told = (properties.headers or {}).get("request_id")
    request_id = told if isinstance(told, str) else ""
    is_request = (properties.type or messages.REQUEST) not in messages.KINDS[1:]
    correlation_id = properties.correlation_id or ""
    return IncomingRequest(
        correlation_id=correlation_id,
        request_id=request_id or correlation_id,
        reply_to=properties.reply_to or "" if is_request else "",
        is_enveloped=bool(request_id),
    )
