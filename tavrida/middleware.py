# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Middleware: what sees every message on its way in or out."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import inspect
import logging
import threading
from collections.abc import (
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterator,
    Mapping,
    Sequence,
)
from types import CoroutineType, TracebackType
from typing import Any, Protocol, Self, TypeVar

from tavrida import exceptions, messages
from tavrida.messages import Error, IncomingMessage, IncomingResponse, Message, Request, Response

LOG = logging.getLogger(__name__)

Result = TypeVar("Result")

#: Some work that yields the coroutines it needs run, is sent what each returned, and has a result.
Steps = Generator[Coroutine[Any, Any, Any], Any, Result]


#: What answers at a path of the health server: from the request's Accept, a content type and body.
Page = Callable[[str], tuple[str, bytes]]


class Vitals(Protocol):
    """What a server or client tells of itself; from any thread, and without waiting."""

    #: What answers at further paths of the health server: "/metrics", for instance.
    pages: dict[str, Page]
    #: Called several times a second by the health server, from its thread; none may block.
    looks: list[Callable[[], None]]
    #: With what the url of the broker begins: "amqp", "sqlite".
    scheme: str
    #: False in a client: it has no health server, so that nobody asks for its pages and looks.
    is_server: bool

    @property
    def is_ready(self) -> bool:
        """True while it is connected and the broker has confirmed every consumer, if any."""

    @property
    def late_answers(self) -> int:
        """Answers that nobody waited for any more."""


#: As in ``tavrida.plugins.transports``, which is above this.
_Done = Callable[[Exception | None], None]

#: What waits for an answer: in a thread, or on an event loop.
Answer = concurrent.futures.Future[IncomingResponse] | asyncio.Future[IncomingResponse]


class Skipped(Response):
    """What ``process`` returns on the way in for a message that needs no handler.

    Of whichever kind it is, it is acknowledged; a request that expects an answer gets this one.
    """

    __slots__ = ()


class Middleware:
    """Base of all middleware; every method may be left as it is.

    One object serves all threads of a server. Around a ``def`` handler the methods run in its
    worker thread and may block; around an ``async def`` handler they run on the event loop and
    must not.

    On the way in, all methods may be ``async def``. They run on the event loop then, also for a
    ``def`` handler, whose worker thread waits for them. On the way out all methods are plain.
    ``before_settle`` runs in a thread of its own, whatever the handler is, and may block.

    A client has the methods of the way out only: ``process``, ``before_publish`` and
    ``after_publish``, ``before_call`` and ``after_call``. They run in the ``contextvars`` context
    of who calls, casts or publishes. Those that begin something run in its thread, or in its task
    of an ``AsyncRPCClient``; but for a call that has to wait for the connection, ``process`` and
    ``before_publish`` run on the client's own event loop. Those that end it run where its end is
    known. None may block.
    """

    @classmethod
    def list_opts(cls) -> list[Any]:
        """Return the oslo.config options that it takes in its [middleware:NAME]."""
        return []

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Return the middleware made from the values of its options.

        Raises:
            ConfigError: the values cannot work; names the place and the remedy.
        """
        return cls()

    def observe(self, vitals: Vitals) -> None:
        """Called before a server that uses it connects; also for several of its services, once.

        By a client before its first message, and once more in a forked child. A server does not
        start where it fails; a client logs that and goes on.
        """

    def process(self, message: Message) -> Message | Awaitable[Message]:
        """Return the message, changed or not, or another of its kind.

        On the way in, returning a Response or an Error answers the request at once: neither the
        handler nor later middleware sees it. ``Skipped()`` ends a message of any kind so. An
        exception fails the message like one of the handler's own.
        """
        return message

    def before_handle(self, message: Message) -> Awaitable[None] | None:
        """Called before a handler runs."""

    def after_handle(self, message: Message, error: BaseException | None) -> Awaitable[None] | None:
        """Called after a handler ended, with its exception if it raised one."""

    def before_settle(
        self, message: IncomingMessage, answer: Message | None, error: BaseException | None
    ) -> Awaitable[None] | None:
        """Called when it is certain how an incoming message ended, just before that is carried out.

        Once for each delivery that reached ``before_handle``: its handler is over, and the broker
        has all that it sent, or will not have it. ``error`` is why it failed; the message is then
        tried again, given back, dead-lettered or answered with an error. None: it did well, and
        is acknowledged. ``answer`` is then what it is answered with, before outgoing middleware;
        None for what expects no answer, and for what was transferred.

        What it raises is logged and changes nothing. Where the server stopped without waiting for
        the handler, ``error`` is ConnectionFailed, and an ``async def`` one is not run any more.
        """

    def before_retry(
        self, message: IncomingMessage, error: BaseException
    ) -> Mapping[str, Any] | None:
        """Called on the event loop before a message that failed is put off, to come again later.

        Returns headers that its next delivery shall have besides its own, if any.
        """

    def before_dead_letter(self, message: IncomingMessage, error: BaseException) -> None:
        """Called on the event loop before a message goes to its dead-letter queue.

        Of one that cannot be read or has no handler, ``context.handled`` has no handler either.
        What quorum queues dead-letter themselves (``delivery_limit``) is not told.
        """

    def before_publish(self, message: Message) -> None:
        """Called before a message is encoded."""

    def after_publish(self, message: Message, error: BaseException | None) -> None:
        """Called on the event loop when the broker confirmed a message, or with why it did not.

        Also where the message could not be written or had no room; in the sending thread then.
        """

    def before_call(self, message: Request) -> None:
        """Called before a request whose answer is waited for; ``before_publish`` follows.

        Not for ``call()`` in a handler, whose answer comes to a handler of its own.
        """

    def after_call(
        self, message: Request, answer: IncomingResponse | None, error: BaseException | None
    ) -> None:
        """Called when that wait ended, with the answer or with why there is none; never blocks."""


#: The methods that messages pass on their way out.
_OUTGOING = ("process", "before_publish", "after_publish", "before_call", "after_call")


def check_outgoing(chain: Sequence[Middleware]) -> None:
    """Raise ConfigError for outgoing middleware that is ``async def``, naming the method."""
    for middleware in chain:
        for name in _OUTGOING:
            if inspect.iscoroutinefunction(getattr(middleware, name, None)):
                raise exceptions.ConfigError(
                    f"{type(middleware).__name__}.{name} is async def, but nothing waits for "
                    "outgoing middleware: make it a plain def that does not block, or use it for "
                    "incoming messages only"
                )


def before(chain: Sequence[Middleware], message: Message) -> Steps[Message]:
    """Call ``before_handle`` of all; give what ``process`` of the chain makes of a message.

    That is one to handle, or the answer to give.

    Raises:
        UnknownResult: a middleware returned something else.
    """
    for middleware in chain:
        pending = middleware.before_handle(message)
        if type(pending) is CoroutineType:
            yield pending
    return (yield from _process(chain, message))


def after(
    chain: Sequence[Middleware], message: Message, error: BaseException | None
) -> Steps[None]:
    """Call ``after_handle`` of all; what one raises is logged."""
    for middleware in chain:
        try:
            pending = middleware.after_handle(message, error)
            if type(pending) is CoroutineType:
                yield pending
        except (GeneratorExit, asyncio.CancelledError):
            raise  # The loop is going down.
        except BaseException:  # also SystemExit: the worker and its call shall not end so
            LOG.exception("%s.after_handle failed.", type(middleware).__name__)


def settling(chain: Sequence[Middleware]) -> tuple[Middleware, ...]:
    """Return those of the chain that have a ``before_settle`` of their own."""
    return _having(chain, "before_settle")


def calling(chain: Sequence[Middleware]) -> tuple[Middleware, ...]:
    """Return those of the chain that have a ``before_call`` or ``after_call`` of their own."""
    return _having(chain, "before_call", "after_call")


def _having(chain: Sequence[Middleware], *names: str) -> tuple[Middleware, ...]:
    def has_own(each: Middleware, name: str) -> bool:
        base = getattr(Middleware, name)
        return getattr(type(each), name, base) is not base

    return tuple(each for each in chain if any(has_own(each, name) for name in names))


def before_settle(
    chain: Sequence[Middleware],
    message: IncomingMessage,
    answer: Message | None,
    error: BaseException | None,
) -> Steps[None]:
    """Call ``before_settle`` of all; what one raises is logged."""
    for middleware in chain:
        try:
            pending = middleware.before_settle(message, answer, error)
            if type(pending) is CoroutineType:
                yield pending
        except BaseException:  # also SystemExit: the delivery has to be settled
            LOG.exception("%s.before_settle failed.", type(middleware).__name__)


def before_retry(
    chain: Sequence[Middleware], message: IncomingMessage, error: BaseException
) -> dict[str, Any]:
    """Call ``before_retry`` of all; return the headers of all. What one raises is logged."""
    headers: dict[str, Any] = {}
    for middleware in chain:
        try:
            headers.update(middleware.before_retry(message, error) or {})
        except BaseException:  # also SystemExit: the message has to come again
            LOG.exception("%s.before_retry failed.", type(middleware).__name__)
    return headers


def before_dead_letter(
    chain: Sequence[Middleware], message: IncomingMessage, error: BaseException
) -> None:
    """Call ``before_dead_letter`` of all; what one raises is logged."""
    for middleware in chain:
        try:
            middleware.before_dead_letter(message, error)
        except BaseException:  # also SystemExit: the message has to go there
            LOG.exception("%s.before_dead_letter failed.", type(middleware).__name__)


@contextlib.contextmanager
def called(chain: Sequence[Middleware], message: Request, answer: Answer) -> Iterator[None]:
    """Tell the chain of a request whose answer is waited for, before the block sends it and after.

    Once, in the context of now: when ``answer`` has ended, or the block raised.
    """
    for middleware in chain:
        _tell(middleware, "before_call", message)
    here = contextvars.copy_context()
    try:
        yield
    except BaseException as error:
        for middleware in chain:
            _tell(middleware, "after_call", message, None, error)
        raise

    def ended(answer: Any) -> None:
        try:
            error = answer.exception()
        except (asyncio.CancelledError, concurrent.futures.CancelledError) as cancelled:
            error = cancelled
        for middleware in chain:
            result = None if error is not None else answer.result()
            here.run(_tell, middleware, "after_call", message, result, error)

    answer.add_done_callback(ended)


def _tell(middleware: Middleware, name: str, *args: object) -> None:
    try:
        getattr(middleware, name)(*args)
    except BaseException:  # also SystemExit: whoever waits has to get the answer
        LOG.exception("%s.%s failed.", type(middleware).__name__, name)


def incoming(chain: Sequence[Middleware], message: Message) -> Message:
    """Return what a chain of plain middleware makes of a message: as ``before``, without hooks."""
    return run(_process(chain, message), _refuse)


def _process(chain: Sequence[Middleware], message: Message) -> Steps[Message]:
    kind = type(message)
    for middleware in chain:
        result: Any = middleware.process(message)
        if type(result) is CoroutineType:
            result = yield result
        if isinstance(result, Response | Error) and (
            kind is messages.IncomingRequest or isinstance(result, Skipped)
        ):
            return result
        if not isinstance(result, IncomingMessage) or type(result) is not kind:
            answers = ", Response or Error" if kind is messages.IncomingRequest else ""
            raise _wrong(middleware, result, kind.__name__ + answers)
        message = result
    return message


def run(steps: Steps[Result], wait: Callable[[Coroutine[Any, Any, Any]], Any]) -> Result:
    """Return the result of some steps; ``wait`` returns what a coroutine does, elsewhere."""
    try:
        pending = next(steps)
        while True:
            try:
                result = wait(pending)
            except BaseException as error:
                pending = steps.throw(error)
            else:
                pending = steps.send(result)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


async def run_async(steps: Steps[Result]) -> Result:
    """Return the result of some steps, on this event loop."""
    try:
        pending = next(steps)
        while True:
            try:
                result = await pending
            except BaseException as error:
                pending = steps.throw(error)
            else:
                pending = steps.send(result)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


def _refuse(pending: Coroutine[Any, Any, Any]) -> Any:
    pending.close()
    raise exceptions.ConfigError(f"{pending!r} is of an async def: nothing waits for it here")


def outgoing(chain: Sequence[Middleware], message: Message) -> Message:
    """Return what the chain makes of a message that is about to be sent.

    Raises:
        UnknownResult: a middleware returned something that is no message of the same kind.
    """
    # A middleware may turn an answer into an error; nothing else changes its kind.
    kinds = (Response, Error) if isinstance(message, Response | Error) else (type(message),)
    for middleware in chain:
        result: Any = middleware.process(message)
        if type(result) not in kinds:
            raise _wrong(middleware, result, " or ".join(k.__name__ for k in kinds))
        message = result
    return message


class Publishing:
    """The block that sends a message; ``message`` is what the chain made of it.

    The chain is told once how it ended: by a ``done`` of ``telling``, or by what the block raises.
    A class, because a generator would take twice as long.

    Raises:
        UnknownResult: as ``outgoing``.
    """

    __slots__ = ("_chain", "_here", "_once", "message")

    def __init__(self, chain: Sequence[Middleware], message: Message) -> None:
        self._chain = chain
        self.message = outgoing(chain, message)
        self._here = contextvars.copy_context()
        # A Ctrl-C may end the block after the message went, and then that ends too.
        self._once = threading.Lock()

    def __enter__(self) -> Self:
        try:
            for each in self._chain:
                each.before_publish(self.message)
        except BaseException as error:
            self._tell(error)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._tell(error)

    def telling(self, done: _Done) -> _Done:
        """Return what tells the chain first."""

        def finished(error: Exception | None) -> None:
            self._tell(error)
            done(error)

        return finished

    def _tell(self, error: BaseException | None) -> None:
        if not self._once.acquire(blocking=False):
            return
        for each in self._chain:
            try:
                self._here.run(each.after_publish, self.message, error)
            except BaseException:  # also SystemExit: ``done`` has to be called
                LOG.exception("%s.after_publish failed.", type(each).__name__)


def _wrong(middleware: Middleware, result: object, expected: str) -> exceptions.UnknownResult:
    return exceptions.UnknownResult(
        f"{type(middleware).__name__}.process() returned a {type(result).__name__}, "
        f"which should be {expected}"
    )
