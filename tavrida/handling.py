# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""One delivery while it is handled: run its handler, send for it, answer, settle."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from tavrida import context, copies, envelope, exceptions, messages, middleware
from tavrida.addresses import Address
from tavrida.calls import Answer, Caller, check_time, forget_cancelled
from tavrida.copies import NEW, History
from tavrida.dead_letters import dead_letter
from tavrida.dispatcher import Handler
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
from tavrida.middleware import Middleware
from tavrida.plugins.serializers import Serializer, Serializers
from tavrida.plugins.transports import Delivery, Done, Publication
from tavrida.proxies import Origin, RPCProxy
from tavrida.publishing import Publisher
from tavrida.results import response_of
from tavrida.retries import Policy
from tavrida.router import Router
from tavrida.topology import Placement
from tavrida.turns import Gate
from tavrida.waiting import Waiting

LOG = logging.getLogger(__name__)


class Processing(Protocol):
    """What a delivery needs of the processor that handles it."""

    loop: LoopThread
    publisher: Publisher
    caller: Caller
    serializers: Serializers
    #: Declares the topology again, when something of it was deleted.
    redeclare: Callable[[], Coroutine[Any, Any, None]]
    #: Makes the answer that tells of an exception.
    error_of: Callable[[BaseException], Error]
    #: Which handlers are run again when they fail, and when; no others are.
    policies: Mapping[Handler, Policy]
    #: All incoming middleware, for what belongs to no controller.
    observers: Sequence[Middleware]

    def start_task(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine on the loop, and keep hold of it until it ends."""

    def task_ended(self, handling: Handling) -> None:
        """Called as the last thing that the task of an ``async def`` handler does."""

    def run_in_thread(self, job: Callable[[], None]) -> None:
        """Run a job that may block, in a thread that is none of the handlers'."""

    def awaiting(
        self, handling: Handling, request: Request
    ) -> contextlib.AbstractContextManager[None]:
        """Return a block in which this handler only waits for the answer. Thread-safe."""

    def ended(self, handling: Handling, error: BaseException | None) -> None:
        """Called when a handler ended, with why it failed: the next one may start."""

    def settled(self, handling: Handling) -> None:
        """Called when a delivery was settled, in whichever way."""

    def keep(
        self, handling: Handling, go_on: Callable[[], None], give_up: Callable[[], None]
    ) -> None:
        """Call ``go_on`` once something can be published, ``give_up`` where that is no use."""


class Handling:
    """One delivery while it is handled, and the Sender of the proxy that its handler gets.

    What the handler sends may come from its thread; everything else happens on the loop.
    """

    __slots__ = (
        "__weakref__",
        "_answer",
        "_error",
        "_has_ended",
        "_is_answered_plainly",
        "_is_finished",
        "_is_redeclared",
        "_may_retry",
        "_outstanding",
        "_placement",
        "_processor",
        "_router",
        "_unconfirmed",
        "_untaken",
        "delivery",
        "gates",
        "handler",
        "history",
        "message",
        "passed",
    )

    def __init__(
        self,
        processor: Processing,
        delivery: Delivery,
        message: IncomingMessage,
        handler: Handler | None,
        placement: Placement | None,
        router: Router,
        history: History = NEW,
    ) -> None:
        self._processor = processor
        self.delivery = delivery
        self.message = message
        self.handler = handler
        self._placement = placement
        self._router = router
        #: What became of the message before.
        self.history = history
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
        self._may_retry = True
        #: What it has to go through before it begins, and how much of that it has behind it.
        self.gates: tuple[Gate[Any], ...] = ()
        self.passed = 0

    # -- running

    @property
    def is_running(self) -> bool:
        """True while its handler runs. May be asked from any thread."""
        return bool(self.gates) and self.passed == len(self.gates)

    def run(self) -> None:
        """Run a plain handler, in a worker thread and a context of its own."""
        here = contextvars.copy_context()
        try:
            result, error = here.run(self._run)
            self._processor.loop.submit(here.run, self._ended, result, error)
        except exceptions.ConnectionFailed as stopped:
            # The server stopped without waiting for us; the broker delivers it again.
            self._tell_middleware(stopped)

    def _run(self) -> tuple[object, BaseException | None]:
        context.handled.set(self)
        assert self._placement is not None
        chain = self._placement.incoming
        result, error = None, None
        try:
            message: Message = self._begin()
            if chain:
                message = middleware.run(middleware.before(chain, message), self._wait_on_loop)
            call = self._prepare(message)
            if isinstance(call, Message):
                result = call
            else:
                result = self.handler.function(call[0], call[1], **call[2])  # type: ignore[union-attr]
        except BaseException as raised:  # also SystemExit: a handler does not stop the server
            error = raised
        try:
            if chain:
                middleware.run(middleware.after(chain, self.message, error), self._wait_on_loop)
        except asyncio.CancelledError:  # of a plain middleware's own making
            LOG.exception("A middleware was cancelled after the handler had ended.")
        return result, error

    def _wait_on_loop(self, pending: Coroutine[Any, Any, Any]) -> Any:
        return self._processor.loop.start(pending).result()

    async def run_async(self) -> None:
        """Run an ``async def`` handler, on the loop, as a task of its own."""
        context.handled.set(self)
        processor, placement = self._processor, self._placement
        assert placement is not None
        chain = placement.incoming
        result, error, has_ended = None, None, False
        try:
            try:
                message: Message = self._begin()
                if chain:
                    message = await middleware.run_async(middleware.before(chain, message))
                call = self._prepare(message)
                if isinstance(call, Message):
                    result = call
                else:
                    result = await self.handler.function(call[0], call[1], **call[2])  # type: ignore[union-attr]
            except GeneratorExit:
                raise  # The loop is gone and did not wait for the handler.
            except BaseException as raised:
                if processor.loop.is_stopping:
                    return
                error = raised  # also a CancelledError, of what it awaited or of its own making
            has_ended = not chain or await self._run_after(chain, error)
        finally:
            if not has_ended and placement.settling:
                processor.run_in_thread(self._abandon)
        if has_ended:  # else the loop is going down
            try:
                processor.loop.last(self._ended, result, error)
            finally:
                processor.task_ended(self)

    async def _run_after(self, chain: Sequence[Middleware], error: BaseException | None) -> bool:
        """Tell middleware how the handler ended; return False where the loop is going down."""
        try:
            await middleware.run_async(middleware.after(chain, self.message, error))
        except GeneratorExit:
            raise
        except BaseException:
            if self._processor.loop.is_stopping:
                return False
            LOG.exception("A middleware was cancelled after the handler had ended.")
        return True

    def _begin(self) -> IncomingMessage:
        """Return the message, with a deadline if somebody waits."""
        message = self.message
        if (
            not message.is_enveloped
            and message.deadline is None
            and isinstance(message, IncomingRequest)
            and message.expects_answer
        ):
            # A foreign caller waits and does not say for how long.
            message.deadline = time.time() + self._processor.caller.default_timeout
        return message

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
        carried = {**message.context, **message.payload}
        origin = Origin(self, handler.source, message.correlation_id, carried)
        return message, RPCProxy(origin), arguments

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
        assert self._placement is not None
        answer: Waiting[IncomingResponse] | Future[IncomingResponse]
        answer = Future() if self._placement.calling else Waiting()
        self._ask(request, timeout, answer)
        with self._processor.awaiting(self, request):
            return answer.result()

    async def wait_async(self, request: Request) -> IncomingResponse:
        """Send a request and return its answer, without blocking the loop."""
        if not self._processor.loop.is_current:  # a loop of the handler's own, in another thread
            return await asyncio.wrap_future(self.ask(request, None))
        answer: asyncio.Future[IncomingResponse] = asyncio.get_running_loop().create_future()
        self._ask(request, None, answer)
        try:
            with self._processor.awaiting(self, request):
                return await answer
        finally:
            if answer.cancelled():
                self._processor.caller.forget(request)

    def ask(self, request: Request, timeout: float | None) -> Future[IncomingResponse]:
        """Send a request whose answer ends the future."""
        answer: Future[IncomingResponse] = Future()
        self._ask(request, timeout, answer)
        forget_cancelled(answer, self._processor.caller, request)
        return answer

    def _ask(self, request: Request, timeout: float | None, answer: Answer) -> None:
        def send(message: Request, done: Done) -> None:
            self._send(message, self._address_of(message), done)

        def ask() -> None:
            self._processor.caller.ask(request, timeout, self.message.deadline, send, answer)

        assert self._placement is not None
        if self._placement.calling:
            assert isinstance(answer, Future | asyncio.Future)
            with middleware.called(self._placement.calling, request, answer):
                ask()
        else:
            ask()

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
        if not self._has_ended or self._outstanding or self._is_finished:
            return
        self._is_finished = True
        if self._placement is not None and self._placement.settling:
            self._processor.run_in_thread(self._finish_in_thread)
        else:
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
                return
            if isinstance(error, exceptions.PublishTimeout | exceptions.ConnectionFailed):
                self._unconfirmed = error
            elif self._error is None:
                self._log(error)
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
        if not self._is_finished:
            self._error = self._error or error

    # -- the end

    def _ended(self, result: object, error: BaseException | None) -> None:
        self._processor.ended(self, error)
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
        self._may_retry = False
        self._error = error
        self._log(error)
        self._finish()

    def recount(self, limit: int) -> None:
        """Write down that the message was delivered again; dead-letter it after so often.

        For queues that do not count themselves: a message that kills its process would come back
        for ever. The count goes with a copy, so that it outlives the process, and only that copy
        is handled.
        """
        self._may_retry = False
        if self.history.crashes >= limit:
            self._error = exceptions.DeliveredTooOften(
                f"delivered {limit + 1} times (delivery_limit {limit}) and never settled: its "
                "handler kills the process, or runs for longer than connections last"
            )
            self._log(self._error)
            self._dead_letter(self._error)
            return
        self._move(copies.recounted(self.delivery, self.history), self._dead_letter)

    def _log(self, error: BaseException) -> None:
        # A caller who sent the wrong thing is told so; its log entry needs no traceback.
        trace = None if isinstance(error, exceptions.MessageError) else error
        level, attempts = logging.ERROR, ""
        token = context.handled.set(self)  # the broker may have told of it much later
        with contextlib.suppress(BaseException):  # a name or text that cannot be made
            policy = self._policy_for(error)
            if policy is not None:
                attempt = self.history.attempt
                pause = policy.delays[attempt - 1] / 1000
                level, trace = logging.WARNING, None
                attempts = f"; attempt {attempt} of {policy.attempts}, the next within {pause:g} s"
            elif self.history.attempt > 1:
                attempts = f"; attempt {self.history.attempt}, the last"
            LOG.log(
                level,
                "Handling the %s %s from %s (correlation id %s) failed: %s: %s%s",
                self.message.message_type,
                self.message.destination or "",
                self.message.source or "an unknown source",
                exceptions.printable(self.message.correlation_id or "none"),
                type(error).__name__,
                exceptions.printable(exceptions.text_of(error), keep="\n"),
                attempts,
                exc_info=trace,
                extra={
                    "kind": self.message.message_type,
                    "source": str(self.message.source or ""),
                    "error": type(error).__name__,
                    "attempt": self.history.attempt,
                },
            )
        context.handled.reset(token)

    def _finish_in_thread(self) -> None:
        """Finish when middleware knows how it ended, which may block."""
        self._tell_middleware(self._error)
        with contextlib.suppress(exceptions.ConnectionFailed):  # the broker delivers it again
            self._processor.loop.submit(self._finish)

    def _abandon(self) -> None:
        self._tell_middleware(exceptions.ConnectionFailed("the server stopped without waiting"))

    def _tell_middleware(self, error: BaseException | None) -> None:
        """Call ``before_settle`` of incoming middleware, in this thread."""
        assert self._placement is not None
        answer = self._answer if error is None else None
        steps = middleware.before_settle(self._placement.settling, self.message, answer, error)
        here = contextvars.Context()
        here.run(context.handled.set, self)
        here.run(middleware.run, steps, self._wait_on_loop)

    def _finish(self) -> None:
        """Answer, or dead-letter, or simply acknowledge; whatever happens, it ends."""
        self._is_finished = True
        token = context.handled.set(self)  # a confirm may have ended it, in any context
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
        finally:
            context.handled.reset(token)

    def _conclude(self) -> None:
        message, error = self.message, self._error
        if self._untaken:
            message.reply_to = self._untaken
        policy = None if error is None else self._policy_for(error)
        self._may_retry = False  # what fails from now on is no failure of the handler
        call = message if isinstance(message, IncomingRequest) and message.expects_answer else None
        if self._unconfirmed is not None and call is None:
            self._give_back(self._unconfirmed)
        elif error is not None and policy is not None:
            self._try_again(error, policy)
        elif call is not None:
            answer = self._answer
            if error is not None or answer is None:
                answer = self._processor.error_of(error or exceptions.TavridaError("no answer"))
            self._send_answer(call, answer)
        elif error is not None:
            self._dead_letter(error)
        else:
            self.settle()

    def is_failure(self, error: BaseException | None) -> bool:
        """Tell whether the handler failed for a reason that may pass, and no caller is told."""
        policy = self._processor.policies.get(self.handler) if self.handler else None
        if error is None or policy is None or not policy.takes(error):
            return False
        return not self._is_call or (policy.has_calls and policy.attempts > 1)

    @property
    def _is_call(self) -> bool:
        # Not whether it still expects an answer: who transferred a call has let go of it.
        return isinstance(self.message, IncomingRequest) and bool(self.delivery.properties.reply_to)

    def _policy_for(self, error: BaseException) -> Policy | None:
        """Return the policy by which the message is tried again after that; None if it is not."""
        if not self._may_retry or self.handler is None:
            return None
        policy = self._processor.policies.get(self.handler)
        attempt = self.history.attempt
        if policy is None or attempt >= policy.attempts or not policy.takes(error):
            return None
        if self._is_call and not policy.has_calls:
            return None
        deadline = self.message.deadline
        if deadline is not None and deadline <= time.time() + policy.delays[attempt - 1] / 1000:
            return None  # nobody would wait for the next attempt any more
        return policy

    def _try_again(self, error: BaseException, policy: Policy) -> None:
        """Have the message come again later; acknowledge it when its copy is in a delay queue."""
        assert self._placement is not None
        level = policy.delays[self.history.attempt - 1]
        more = middleware.before_retry(self._placement.incoming, self.message, error)
        copy = copies.delayed(
            self.delivery,
            self.history,
            error,
            level=level,
            delay=policy.jittered(level),
            deadline=self.message.deadline,
            more=more,
        )
        self._move(copy, lambda refusal: self._dead_letter(error))

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
                keep=self._keep,
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
                keep=self._keep,
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
        chain = self._placement.incoming if self._placement else self._processor.observers
        middleware.before_dead_letter(chain, self.message, reason)
        self._move(dead_letter(self.delivery, self.history, reason), self._reject)

    def _reject(self, error: Exception) -> None:
        # The copy with the reason cannot be written; the broker can still move the original.
        LOG.error("A dead letter goes to its queue without the reason: %s", error)
        self.delivery.reject()
        self._processor.settled(self)

    def _move(self, copy: Publication, refused: Callable[[Exception], None]) -> None:
        """Publish a copy to the queue where the message goes; acknowledge when it is there.

        ``refused`` is called with why the broker would never take it.
        """

        def moved(error: Exception | None) -> None:
            if error is None:
                self.settle()
            elif isinstance(error, exceptions.PublishTimeout | exceptions.ConnectionFailed):
                self._give_back(error)
            elif not isinstance(error, exceptions.ServiceUnavailable):
                refused(error)
            elif self._is_redeclared:
                self._give_back(error)
            else:
                self._processor.start_task(self._restore_queue(copy, refused))

        self._processor.publisher.send_raw(copy, moved, keep=self._keep)

    async def _restore_queue(self, copy: Publication, refused: Callable[[Exception], None]) -> None:
        """Somebody deleted the queue where a copy goes: without it the message would be lost."""
        self._is_redeclared = True
        LOG.warning("Queue %s is gone; declaring it again.", copy.routing_key)
        try:
            await self._processor.redeclare()
        except exceptions.TransportError as reason:
            self._give_back(reason)
        else:
            self._move(copy, refused)

    def settle(self) -> None:
        """Acknowledge the delivery: all is done."""
        self.delivery.ack()
        self._processor.settled(self)

    def _give_back(self, error: Exception) -> None:
        """Have the message handled again; not before something can be published.

        It comes back at once, its handler would be run in vain, and queues count that: a broker
        that takes no messages for long would make all that it delivers dead letters.
        """

        def requeue() -> None:
            LOG.warning("Gave a message back to queue %s: %s", self.delivery.queue, error)
            self.delivery.requeue()
            self._processor.settled(self)

        if isinstance(error, exceptions.PublishTimeout):
            self._keep(requeue, requeue)
        else:
            requeue()

    def _keep(self, go_on: Callable[[], None], give_up: Callable[[], None]) -> None:
        self._processor.keep(self, go_on, give_up)


def _address_answer(answer: Message, request: Message) -> None:
    """Fill in what makes a message the answer to that request."""
    answer.correlation_id = request.correlation_id
    answer.request_id = request.request_id
    answer.message_id = envelope.new_id()
    answer.source = request.destination
    answer.destination = request.source
    answer.context = {**request.context, **answer.context, **answer.payload}
