# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Recording: what was sent, what was handled, and what is still on its way.

Nothing here waits for time to pass: every change wakes those who wait, and what happened before
the waiting began counts as well.
"""

from __future__ import annotations

import copy
import functools
import reprlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from tavrida import copies, envelope, exceptions, messages
from tavrida.dispatcher import Dispatcher, Handler
from tavrida.messages import IncomingMessage, Message
from tavrida.middleware import Middleware
from tavrida.plugins.serializers import Serializers
from tavrida.plugins.transports.sqlite.topics import matches
from tavrida.testing import faults
from tavrida.testing.faults import Fault, Operation
from tavrida.topology import Placement, Topology

#: Seconds that waiting takes at most where the test says nothing. Only a failing test needs them.
TIMEOUT = 5.0

#: Lines of the story that a failure tells; the end is what matters.
STORY_LINES = 40

Found = TypeVar("Found")

_repr = reprlib.Repr()
_repr.maxdict = 10
_repr.maxstring = _repr.maxother = 100


class WaitFailed(AssertionError):
    """Raised when what a test waited for did not happen in time; says what did."""


@dataclass(frozen=True, slots=True, eq=False)
class Handled:
    """A message that a handler was run for, or refused before its handler could run."""

    #: "request", "response", "error" or "notification".
    kind: str
    #: What the decorator of the handler says, such as "test_hello.hello".
    entry_point: str
    #: The service whose controller it is.
    service: str
    #: The message as its handler got it.
    message: Message
    #: A copy of the payload from before the handler ran.
    payload: dict[str, Any]
    #: What the handler returned; None if it raised.
    result: Any
    #: What the handler raised, or why it was not run (InvalidPayload, a middleware's exception).
    error: BaseException | None
    #: Where an answer had to go when it began; "" for what nobody awaits.
    reply_to: str

    def __str__(self) -> str:
        ended = f"-> {_repr.repr(self.result)}"
        if self.error is not None:
            ended = f"raised {type(self.error).__name__}: {exceptions.text_of(self.error)}"
        return f"{self.service} handled {_described(self)} {ended}"


@dataclass(frozen=True, slots=True, eq=False)
class Sent:
    """A message that the app or its client sent, as those who receive it will see it."""

    kind: str
    #: Whom a request is for, who answers, or the topic of a notification.
    entry_point: str
    message: IncomingMessage

    @property
    def payload(self) -> dict[str, Any]:
        """The values of the message."""
        return self.message.payload

    def __str__(self) -> str:
        return f"{self.message.source or 'somebody'} sent {_described(self)}"


@dataclass(frozen=True, slots=True, eq=False)
class DeadLetter:
    """A message that could not be handled, and was moved to the dead-letter queue."""

    kind: str
    entry_point: str
    #: The queue that it was delivered from, not the one where it is now.
    queue: str
    #: "ValueError: no", as the header ``dead_reason`` says.
    reason: str
    #: The last lines of the traceback.
    traceback: str
    message_id: str
    body: bytes

    def __str__(self) -> str:
        return f"{self.kind} {self.entry_point} became a dead letter: {self.reason}"


def _described(what: Handled | Sent) -> str:
    return f"{what.kind} {what.entry_point} {_repr.repr(what.payload)}"


@dataclass(slots=True, eq=False)
class _Run:
    """A message that is being handled now."""

    service: str
    message: Message
    payload: dict[str, Any]
    reply_to: str
    handler: Handler | None = None
    result: Any = None


#: What the handler of this thread or task is about.
_run: ContextVar[_Run | None] = ContextVar("tavrida_run", default=None)


class Recording:
    """What happens in one app. Thread-safe.

    It hears of the operations of the transports from ``Faults.watch``, and of the handlers from
    ``observe``.
    """

    def __init__(self, serializers: Serializers) -> None:
        self._serializers = serializers
        self._topology = Topology()
        self._queues: set[str] = set()
        self._services: set[str] = set()
        self._changed = threading.Condition()
        self.handled: list[Handled] = []
        self.sent: list[Sent] = []
        self.dead_letters: list[DeadLetter] = []
        self.running: list[_Run] = []
        self._seen: set[Handled | DeadLetter] = set()
        self._story: list[str] = []
        self._known: set[tuple[str, str, str]] = set()
        #: Messages that were sent once more to be handled again, with the number of that attempt.
        self._tried_again: set[tuple[str, int]] = set()
        #: Publications that the broker has and has not confirmed or refused.
        self._unconfirmed = 0
        #: How many copies of a message are in the queues of the app, also while being handled. It
        #: may be below 0 for a moment: a message can be settled before it is confirmed.
        self._copies: Counter[str] = Counter()

    def know(self, topology: Topology, placements: Sequence[Placement]) -> None:
        """Take what the app declares, and where its controllers are."""
        self._topology = topology
        self._queues = {each.queue for each in placements}
        self._services = {each.dispatcher.service for each in placements}

    # -- what the transports do

    def note(self, operation: Operation, fault: Fault | None) -> None:
        """Take note of an operation, and of the fault that strikes at it."""
        with self._changed:
            if operation.name == faults.PUBLISH:
                self._published(operation)
            if fault is not None:
                self._story.append(f"fault: {fault} at the {operation}")
            self._count(operation, fault.name if fault else "")
            self._changed.notify_all()

    def _published(self, operation: Operation) -> None:
        message = operation.message
        headers = message.properties.headers
        if copies.MARK in headers:
            attempt = headers["retry_attempt"]
            self._tried_again.add((message.properties.message_id, attempt))
            self._story.append(f"again: {operation.kind} {operation.entry_point}, {attempt=}")
            return
        key = (message.properties.message_id, message.exchange, message.routing_key)
        if key in self._known:
            self._story.append(f"sent again: {operation.kind} {operation.entry_point}")
            return
        self._known.add(key)
        if "dead_reason" in headers:
            self._dead(operation)
            return
        decoded = envelope.decode(
            message.properties,
            message.body,
            message.routing_key,
            self._serializers.by_content_type,
            default=self._serializers.default,
        )
        sent = Sent(operation.kind, operation.entry_point, decoded)
        self.sent.append(sent)
        self._story.append(str(sent))

    def _dead(self, operation: Operation) -> None:
        headers = operation.message.properties.headers
        letter = DeadLetter(
            operation.kind,
            operation.entry_point,
            headers["dead_queue"],
            headers["dead_reason"],
            headers["dead_traceback"],
            operation.message.properties.message_id,
            operation.message.body,
        )
        self.dead_letters.append(letter)
        self._story.append(str(letter))

    def _count(self, operation: Operation, fault: str) -> None:
        """Keep the account of what is on its way."""
        message_id = operation.message.properties.message_id or ""
        match operation.name:
            case faults.PUBLISH if fault not in ("lose_connection", "full_disk"):
                self._unconfirmed += 1
            case faults.CONFIRM:
                self._unconfirmed -= 1
                self._copies[message_id] += len(self._queues_of(operation))
            case faults.REFUSE:
                self._unconfirmed -= 1
                self._story.append(
                    f"refused: {operation.kind} {operation.entry_point}: {operation.error}"
                )
            case faults.DELIVER if fault == "lose_message" and operation.queue in self._queues:
                self._copies[message_id] -= 1
            case faults.ACK | faults.REJECT if not fault:
                self._copies[message_id] -= 1

    def _queues_of(self, operation: Operation) -> set[str]:
        """The queues of the app that take a message, one way or the other."""
        message = operation.message
        reached = {
            each.queue
            for each in self._topology.bindings
            if each.exchange == message.exchange and matches(each.routing_key, message.routing_key)
        }
        if not message.exchange:
            reached = {message.routing_key}
        # A queue that delays messages hands them on to another one.
        onward = {q.name: q.dead_letter_to for q in self._topology.queues if q.message_ttl}
        return {onward.get(queue, queue) for queue in reached} & self._queues

    # -- what the handlers do

    def observe(self, dispatcher: Dispatcher) -> Middleware:
        """Have the handlers tell what they return; return the middleware that hears the rest."""
        for mark, handler in dispatcher.handlers.items():
            dispatcher.handlers[mark] = replace(handler, function=_telling(handler))
        return _Witness(self, dispatcher.service)

    def began(self, run: _Run) -> None:
        """Take note that a message is about to be handled."""
        with self._changed:
            self.running.append(run)

    def ended(self, run: _Run, error: BaseException | None) -> None:
        """Take note of how it ended."""
        message = run.message
        with self._changed:
            self.running.remove(run)
            if run.handler is None and error is None:
                self._story.append(f"a middleware answered {_whom(run)}")
            else:
                handled = Handled(
                    message.message_type,
                    _entry_point_of(message),
                    run.service,
                    message,
                    run.payload,
                    None if error is not None else run.result,
                    error,
                    run.reply_to,
                )
                self.handled.append(handled)
                self._story.append(str(handled))
            self._changed.notify_all()

    # -- what went wrong

    def look_at(self, *failures: Handled | DeadLetter) -> None:
        """Take note that the test knows of these."""
        with self._changed:
            self._seen.update(failures)

    def unseen(self) -> list[Handled | DeadLetter]:
        """Return what failed, was told to nobody and the test does not know of.

        An answer tells of a failure, if it goes to a caller that waits or to an error handler. One
        after which the message is handled again is none yet.
        """
        with self._changed:
            heard = {run.message.request_id for run in self.handled if run.kind == messages.ERROR}
            known = {each.message.message_id for each in self.handled if each in self._seen}
            known |= {each.message_id for each in self.dead_letters if each in self._seen}
            failed: list[Handled | DeadLetter] = []
            for run in self.handled:
                own = {*self._queues, *self._services}
                is_told = run.message.request_id in heard if run.reply_to in own else run.reply_to
                again = (run.message.message_id, getattr(run.message, "attempt", 0) + 1)
                if run.error is not None and not is_told and again not in self._tried_again:
                    failed.append(run)
            told = {run.message.message_id for run in self.handled if run.error is not None}
            failed += [each for each in self.dead_letters if each.message_id not in told]
            return [each for each in failed if _message_id_of(each) not in known]

    # -- waiting

    def wait(self, probe: Callable[[], Found | None], timeout: float) -> Found | None:
        """Return the first result of the probe that is not None, None after ``timeout`` seconds.

        The probe is called first at once, then after each change.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                found = probe()
                left = deadline - time.monotonic()
                if found is not None or left <= 0:
                    return found
                self._changed.wait(left)

    def unsettled(self) -> list[str]:
        """Return a line for everything that is still on its way. For a probe, or a failure."""
        lines = [f"still running: {_whom(run)}" for run in self.running]
        if self._unconfirmed > 0:
            lines.append(f"not confirmed by the broker: {self._unconfirmed} messages")
        running = {run.message.message_id for run in self.running}
        left = {key for key, copies in self._copies.items() if copies > 0} - running
        for sent in self.sent:
            if sent.message.message_id in left:
                lines.append(f"in its queue, or being settled: {_described(sent)}")
                left.discard(sent.message.message_id)
        return lines + [f"in its queue: message {each}" for each in sorted(left)]

    def story(self) -> str:
        """Return what happened so far, a line for each step, the last ones."""
        with self._changed:
            lines = [*self._story, *self.unsettled()]
        skipped = len(lines) - STORY_LINES
        if skipped > 0:
            lines = [f"... {skipped} more before", *lines[-STORY_LINES:]]
        return "\n".join(f"  {line}" for line in lines or ["nothing"])


class _Witness(Middleware):
    """Stands before all other middleware of a controller and sees each handling begin and end."""

    def __init__(self, recording: Recording, service: str) -> None:
        self._recording = recording
        self._service = service

    def before_handle(self, message: Message) -> None:
        self._begin(message)

    def _begin(self, message: Message) -> _Run:
        run = _Run(self._service, message, copy.deepcopy(message.payload), message.reply_to)
        _run.set(run)
        self._recording.began(run)
        return run

    def after_handle(self, message: Message, error: BaseException | None) -> None:
        # None: a middleware of the whole server failed before we saw the message.
        run = _run.get() or self._begin(message)
        _run.set(None)
        run.message = message
        self._recording.ended(run, error)


def _telling(handler: Handler) -> Callable[..., Any]:
    """Return the function of a handler, which then leaves its result where the witness looks."""
    function = handler.function
    if handler.is_async:

        @functools.wraps(function)
        async def run_async(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            run = _run.get()
            assert run is not None
            run.handler = handler
            run.result = await function(*args, **kwargs)
            return run.result

        return run_async

    @functools.wraps(function)
    def run_plain(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        run = _run.get()
        assert run is not None
        run.handler = handler
        run.result = function(*args, **kwargs)
        return run.result

    return run_plain


def _message_id_of(failure: Handled | DeadLetter) -> str:
    return failure.message.message_id if isinstance(failure, Handled) else failure.message_id


def _entry_point_of(message: Message) -> str:
    """Return what the handler's decorator names."""
    point = message.destination if message.message_type == messages.REQUEST else message.source
    return str(point or "")


def _whom(run: _Run) -> str:
    message = run.message
    return f"{message.message_type} {_entry_point_of(message)} {_repr.repr(run.payload)}"
