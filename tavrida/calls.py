# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Calls that wait for their answer: the reply queue of a process, and who waits for what."""

from __future__ import annotations

import asyncio
import functools
import heapq
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from typing import Protocol

from tavrida import envelope, exceptions, messages
from tavrida.loop import LoopThread
from tavrida.messages import IncomingError, IncomingResponse, Message, Request
from tavrida.plugins.serializers import Serializers
from tavrida.plugins.transports import Delivery, Done, Transport
from tavrida.waiting import Waiting

LOG = logging.getLogger(__name__)


class Answer(Protocol):
    """What waits for the end of a call: a future, told on the loop of the connection."""

    def set_result(self, result: IncomingResponse, /) -> None:
        """End with the response; raises InvalidStateError where it has ended."""

    def set_exception(self, exception: BaseException, /) -> None:
        """End with why there is no response; raises InvalidStateError where it has ended."""

    def cancelled(self) -> bool:
        """Tell whether nobody waits any more."""


#: Seconds. An expiration in RabbitMQ is at most 2^32 - 1 milliseconds.
MAX_TIMEOUT = 4_294_967

#: Calls that have ended and are kept among the deadlines, beside as many as are under way.
ENDED = 1000

#: Seconds. Whoever handles a call counts its time a little shorter: the wire has milliseconds,
#: and clocks differ. A CallTimeout from there that comes so near to our own deadline is ours.
MARGIN = 0.02


@dataclass(slots=True, eq=False)
class _Waiter:
    request: Request
    answer: Answer


class Caller:
    """Sends requests whose answers come to this process. ``ask`` and ``forget`` are thread-safe.

    Every answer ends: with the response, or with RemoteError, CallTimeout, CallInterrupted,
    ServiceUnavailable, or why the request could not be sent. Who waits no more has it forgotten;
    its request may still be handled.
    """

    def __init__(
        self,
        loop: LoopThread,
        transport: Transport,
        serializers: Serializers,
        opened: Future[None] | None = None,
    ) -> None:
        self._loop = loop
        #: Ends when the transport is open for the first time; None where it is.
        self._opened = opened
        self._transport = transport
        self._serializers = serializers
        # Its entries are put in and forgotten by who asks, in any thread, and ended on the loop.
        self._waiters: dict[str, _Waiter] = {}
        # A heap of (deadline in the loop's time, request id), also of calls that have ended: a
        # timer of the loop for each would cost more than all the rest of waiting. What is new comes
        # in by a deque, which takes no lock: a signal handler may call in the midst of a call.
        self._deadlines: list[tuple[float, str]] = []
        self._new: deque[tuple[float, str]] = deque()
        self._next_look = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._queue = ""
        self._losses = 0
        self._opening = asyncio.Lock()
        #: Seconds that a call has where nobody said how many.
        self.default_timeout = transport.config.call_timeout
        #: Answers that nobody waited for any more.
        self.late_answers = 0

    def ask(
        self,
        request: Request,
        timeout: float | None,
        inherited: float | None,
        send: Callable[[Request, Done], None],
        answer: Answer,
    ) -> None:
        """Send a request by ``send``; ``answer`` is told how it ends.

        ``timeout`` is in seconds, None for the default; ``inherited`` is the deadline of what is
        being handled, and the call does not outlive it: once that has passed, nothing is sent
        and it ends with CallTimeout.
        """
        if timeout is None:
            timeout = self.default_timeout
        if not 0 < timeout <= MAX_TIMEOUT:
            raise ValueError(
                f"timeout={timeout!r} should be above 0, and at most {MAX_TIMEOUT} seconds"
            )
        own = time.time() + timeout
        request.deadline = own if inherited is None else min(own, inherited)
        try:
            check_time(request)
        except exceptions.CallTimeout as error:
            answer.set_exception(error)
            return
        if self._queue:
            self._send(request, answer, send, self._queue)
        else:
            self._loop.start(self._open_and_send(request, answer, send))

    async def _open_and_send(
        self, request: Request, answer: Answer, send: Callable[[Request, Done], None]
    ) -> None:
        try:
            async with asyncio.timeout(request.time_left):
                if self._opened is not None:
                    await watched(self._opened)
                async with self._opening:
                    if not self._queue:
                        losses = self._losses
                        queue = await self._transport.reply_queue(self._on_answer)
                        if losses != self._losses:  # it went before we heard of it
                            _end(answer, _interrupted(request))
                            return
                        self._queue = queue
        except TimeoutError:
            _end(answer, self._unsent(request))
            return
        except asyncio.CancelledError:  # the loop stops
            _end(answer, _closed_before(request))
            raise
        except Exception as error:
            _end(answer, error)
            return
        try:
            if not answer.cancelled():
                self._send(request, answer, send, self._queue)
        except BaseException as error:  # also SystemExit of middleware: who waits has to hear of it
            _end(answer, error)

    def _send(
        self, request: Request, answer: Answer, send: Callable[[Request, Done], None], queue: str
    ) -> None:
        request.reply_to = queue
        request.is_awaited = True
        try:
            if self._wait_for(request, answer):
                send(request, functools.partial(self._sent, request.request_id))
        except BaseException:
            self.forget(request)
            raise

    def _sent(self, request_id: str, error: Exception | None) -> None:
        if error is not None:
            self._finish(request_id, error)

    def forget(self, request: Request) -> None:
        """Stop waiting: nobody wants the answer any more."""
        self._waiters.pop(request.request_id, None)

    def has_only(self, message: Message) -> bool:
        """Tell whether no answer is awaited, but maybe that to this message. Thread-safe."""
        count = len(self._waiters)
        return count == 0 or (count == 1 and message.request_id in self._waiters)

    def _wait_for(self, request: Request, answer: Answer) -> bool:
        """Note who waits; False where the reply queue went meanwhile, and the answer ended."""
        request_id = request.request_id
        deadline = self._loop.loop.time() + (request.time_left or 0)
        self._waiters[request_id] = _Waiter(request, answer)
        # After that, and `interrupt` has it the other way round: one of the two sees the other.
        if request.reply_to != self._queue:
            self._waiters.pop(request_id, None)
            _end(answer, _interrupted(request))
            return False
        self._new.append((deadline, request_id))
        if deadline < self._next_look or len(self._new) > ENDED:
            self._loop.submit(self._look)
        return True

    def _look(self) -> None:
        """End what is over its deadline, and see to it that the loop looks again."""
        # Before what is new is taken: what comes in after that has the loop look once more.
        self._next_look = math.inf
        waiters, deadlines = self._waiters, self._deadlines
        while self._new:
            new = self._new.popleft()
            if new[1] in waiters:
                heapq.heappush(deadlines, new)
        if len(deadlines) > 2 * len(waiters) + ENDED:
            deadlines[:] = [each for each in deadlines if each[1] in waiters]
            heapq.heapify(deadlines)
        now = self._loop.loop.time()
        while deadlines and deadlines[0][0] <= now:
            _, request_id = heapq.heappop(deadlines)
            waiter = waiters.get(request_id)
            if waiter is not None:
                self._finish(request_id, self._timed_out(waiter.request))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if deadlines:
            self._next_look = deadlines[0][0]
            self._timer = self._loop.loop.call_at(self._next_look, self._look)

    def _unsent(self, request: Request) -> Exception:
        if self._opened is not None and not self._opened.done():
            return exceptions.not_connected("the time of the call", self._transport.trouble)
        return exceptions.CallTimeout(
            f"no answer from {request.destination} in time; nothing was sent, for there was no "
            "queue for answers"
        )

    def _timed_out(self, request: Request) -> exceptions.CallTimeout:
        return exceptions.CallTimeout(
            f"no answer from {request.destination} in time; the request may still be handled"
        )

    def _finish(self, request_id: str, outcome: IncomingResponse | Exception | None) -> None:
        waiter = self._waiters.pop(request_id, None)
        if waiter is not None and outcome is not None:
            _end(waiter.answer, outcome)

    def _on_answer(self, delivery: Delivery) -> None:
        try:
            message = envelope.decode(
                delivery.properties,
                delivery.body,
                delivery.routing_key,
                self._serializers.by_content_type,
                default=self._serializers.default,
                untyped=messages.RESPONSE,
            )
        except exceptions.MalformedMessage as error:
            # Tell the one who waits, if the message says who that is.
            key = (delivery.properties.headers or {}).get("request_id")
            self._finish(str(key or delivery.properties.correlation_id), error)
            return
        # A foreign service copies the correlation id only, which stands for both then.
        waiter = self._waiters.get(message.request_id)
        if waiter is None:
            self.late_answers += 1
            LOG.debug("Dropped a late answer from %s.", message.source)
        elif isinstance(message, IncomingError):
            self._finish(message.request_id, self._error_of(waiter.request, message))
        elif isinstance(message, IncomingResponse):
            self._finish(message.request_id, message)
        else:
            self._finish(
                message.request_id,
                exceptions.MalformedMessage(f"the answer is a {message.message_type}"),
            )

    def _error_of(self, request: Request, answer: IncomingError) -> Exception:
        error = exceptions.RemoteError(answer.payload)
        left = request.time_left
        if error.code == exceptions.CallTimeout.code and left is not None and left < MARGIN:
            return self._timed_out(request)
        return exceptions.local_error(error, request.raises)

    def interrupt(self) -> None:
        """End all waiting: the reply queue is gone with its connection. Called on the loop."""
        self._queue = ""
        self._losses += 1
        waiters, self._waiters = self._waiters, {}
        while waiters:  # one more may come in meanwhile
            _, waiter = waiters.popitem()
            _end(waiter.answer, _interrupted())


def forget_cancelled(answer: Future[IncomingResponse], caller: Caller, request: Request) -> None:
    """Have a call forgotten when its future is cancelled."""
    answer.add_done_callback(lambda ended: caller.forget(request) if ended.cancelled() else None)


def watched(opened: Future[None]) -> asyncio.Future[None]:
    """Return what ends as ``opened`` does, and whose cancellation leaves that alone."""
    inner = asyncio.wrap_future(opened)
    # Seen, also where whoever waits has gone: else asyncio complains of it.
    inner.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    return asyncio.shield(inner)


def check_time(request: Request) -> None:
    """Raise CallTimeout for a request whose deadline has passed before it is sent."""
    if request.time_left == 0:
        raise exceptions.CallTimeout(
            f"no time is left to call {request.destination}: the deadline of what is being "
            "handled has passed; nothing was sent"
        )


def _interrupted(request: Request | None = None) -> exceptions.CallInterrupted:
    what = f" of {request.destination}" if request else ""
    return exceptions.CallInterrupted(
        f"the connection was lost while the answer{what} was awaited; the request may or may not "
        "have been handled"
    )


def _closed_before(request: Request) -> exceptions.ConnectionFailed:
    return exceptions.ConnectionFailed(
        f"the connection was closed by this program before the request to {request.destination} "
        "was sent"
    )


def _end(answer: Answer, outcome: IncomingResponse | BaseException) -> None:
    try:
        if isinstance(outcome, BaseException):
            answer.set_exception(outcome)
        else:
            answer.set_result(outcome)
    except (InvalidStateError, asyncio.InvalidStateError):
        pass  # it was cancelled
    except BaseException:  # a SystemExit of what somebody added to a future: others go on waiting
        if isinstance(answer, Waiting):
            raise  # a signal handler's, in the thread that waits
        LOG.exception("A callback of a future wanted to end the program.")
