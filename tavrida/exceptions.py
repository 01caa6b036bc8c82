# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Every error of tavrida, in one tree::

    TavridaError                     1000
    |- ConfigError                   1101  the set-up is wrong; lists every fault found
    |  |- PluginError                1102  a plugin is missing, broken or of the wrong class
    |  |- HandlerConflict            1024  two controllers or handlers for one message
    |  '- InvalidHandler             1028  a handler's signature or mark cannot work
    |- WrongEntryPoint               1006  a name is no "service.method"
    |- ServiceUnknown                1007  discovery was not told about a service
    |- MessageError                  1001  a message that cannot be handled or sent
    |  |- MalformedMessage           1002  bytes or headers that are not our wire format
    |  |- HandlerNotFound            1004  nobody here handles that entry point
    |  |- InvalidPayload             1003  the payload does not fit the handler's parameters
    |  |- UnknownResult              1009  a handler returned something that is no answer
    |  |- MessageTooLarge            1010  the body is over the configured size
    |  '- DeliveredTooOften          1011  a message that nobody ever settles
    |- CallError                     1030  a call that ended without a usable answer
    |  |- RemoteError                1031  the other side answered with an error
    |  |- CallTimeout                1032  no answer in time
    |  |- CallInterrupted            1033  the connection that awaited the answer was lost
    |  '- ServiceUnavailable         1034  no queue takes requests for that service
    |- DuplicateRunning              1050  a duplicate waited too long for the first one to end
    |- AnswerNotKept                 1051  a request was handled before, its answer is not there
    |- StoreFailed                   1052  dedup cannot tell whether a message was handled
    '- TransportError                1040  the broker
       |- ConnectionFailed           1041  could not connect, or the broker refused us
       |- TopologyConflict           1042  a queue or exchange exists with other arguments
       |- PublishFailed              1043  the broker did not take a message
       |- PublishTimeout             1044  the broker did not confirm a message in time
       '- PipelineFailed             1045  some messages of a pipeline were not confirmed

The codes travel in the payload of error answers (``code``) and are unique; those of 1.0 that
still mean the same kept their number. An exception of the user's own may have an integer
attribute ``code`` too; without one its answer says 1000. So it may have a dict ``details``, which
its answer carries where it can be written as JSON.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return " (did you mean 'x'?)" for the known word nearest to ``word``, or nothing."""
    by_small = {each.lower(): each for each in known}
    near = difflib.get_close_matches(word.lower(), list(by_small), 1, cutoff)
    return f" (did you mean {by_small[near[0]]!r}?)" if near else ""


def text_of(error: BaseException) -> str:
    """Return the text of an exception, also of one of a user's whose ``str`` fails."""
    try:
        return str(error)
    except BaseException as reason:
        return f"(its text cannot be made: {type(reason).__name__})"


def printable(text: str, keep: str = "") -> str:
    """Return a stranger's text without what a terminal or a log would take for its own.

    Control characters are written as escapes, but for those to ``keep``.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in keep else each.encode("unicode_escape").decode()
        for each in text
    )


class TavridaError(Exception):
    """Root of all errors that tavrida raises."""

    code = 1000


class ConfigError(TavridaError):
    """Raised when the set-up cannot work, before anything connects.

    ``faults`` lists every fault that was found, one sentence each.
    """

    code = 1101

    def __init__(self, *faults: str) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


class Faults:
    """Collects ConfigErrors, so that a user hears of all faults at once and not of the first."""

    def __init__(self) -> None:
        self._errors: list[ConfigError] = []

    def __bool__(self) -> bool:
        return bool(self._errors)

    def add(self, fault: str) -> None:
        """Add one fault."""
        self._errors.append(ConfigError(fault))

    @contextlib.contextmanager
    def collected(self, where: str = "") -> Iterator[None]:
        """Keep the ConfigError that the block raises, with ``where`` before each of its faults."""
        try:
            yield
        except ConfigError as error:
            if where:
                error = ConfigError(*(f"{where}{fault}" for fault in error.faults))
            self._errors.append(error)

    def check(self) -> None:
        """Raise what was collected: one error as it is, several as one ConfigError."""
        if len(self._errors) == 1:
            raise self._errors[0]
        if self._errors:
            # Two readers of one thing stumble over the same fault.
            faults = dict.fromkeys(fault for error in self._errors for fault in error.faults)
            raise ConfigError(*faults)


class PluginError(ConfigError):
    """Raised when a plugin is not installed, cannot be imported or is of the wrong class."""

    code = 1102


class HandlerConflict(ConfigError):
    """Raised when two controllers or handlers claim the same message; names both places."""

    code = 1024


class InvalidHandler(ConfigError):
    """Raised when a decorated method can never be called as its decorator promises."""

    code = 1028


class WrongEntryPoint(TavridaError, ValueError):
    """Raised when a name is not of the form "service.method"."""

    code = 1006


class ServiceUnknown(TavridaError):
    """Raised when discovery was not told where a service or its notifications are."""

    code = 1007


class MessageError(TavridaError):
    """Raised when a message cannot be handled or sent, whatever the broker does."""

    code = 1001


class MalformedMessage(MessageError):
    """Raised when bytes or headers from the wire are not tavrida's format."""

    code = 1002


class HandlerNotFound(MessageError):
    """Raised when no handler here takes a message."""

    code = 1004


class InvalidPayload(MessageError):
    """Raised when a payload does not fit a handler; the handler was not run.

    ``details`` tells where: ``{"path": "$.items[3].price", "expected": "int >= 0"}``.
    """

    code = 1003

    def __init__(self, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.details = dict(details or {})


class UnknownResult(MessageError):
    """Raised when a handler returned something that cannot be an answer."""

    code = 1009


class MessageTooLarge(MessageError):
    """Raised when a body is over the configured size; nothing was sent."""

    code = 1010


class DeliveredTooOften(MessageError):
    """Raised when a message was delivered again and again and no process survived to settle it."""

    code = 1011


class CallError(TavridaError):
    """Raised when a call ended without a usable answer."""

    code = 1030


class RemoteError(CallError):
    """Raised when the other side answered with an error.

    ``error_class``, ``message``, ``code`` and ``details`` (a dict, often empty) are those of the
    remote exception; ``payload`` is the whole of what the answer carried.
    """

    code = 1031

    def __init__(self, payload: Mapping[str, Any]) -> None:
        self.payload = dict(payload)
        self.error_class = str(payload.get("class", "Exception"))
        self.message = str(payload.get("message", ""))
        code = payload.get("code")
        self.code = code if type(code) is int else TavridaError.code
        details = payload.get("details")
        self.details: dict[str, Any] = details if isinstance(details, dict) else {}
        super().__init__(f"{self.error_class}: {self.message} (code {self.code})")


def raises_of(
    classes: Iterable[type[Exception]], named: Mapping[str, type[Exception]]
) -> dict[str, type[Exception]]:
    """Return the local classes of remote errors by the name that each has on the wire.

    Raises:
        TypeError: one is no class of exceptions that an answer may raise.
    """
    found = {getattr(cls, "__name__", ""): cls for cls in classes} | dict(named)
    for cls in found.values():
        # A future and a coroutine cannot raise StopIteration: who awaits would wait for ever. And
        # asyncio makes its own CancelledError of the other one, which is no error to a TaskGroup.
        if not (isinstance(cls, type) and issubclass(cls, Exception)) or issubclass(
            cls, StopIteration | StopAsyncIteration | concurrent.futures.CancelledError
        ):
            raise TypeError(f"raises({cls!r}) should name classes of exceptions")
    return found


def local_error(error: RemoteError, raises: Mapping[str, type[Exception]]) -> Exception:
    """Return the exception of the local class that stands for a remote one, made from its message.

    The RemoteError is its ``__cause__``. Without such a class, or where it cannot be made from a
    message alone, the RemoteError itself is returned; a note of it tells why.
    """
    cls = raises.get(error.error_class)
    if cls is None:
        return error
    try:
        local: object = cls(error.message)
        # A future takes a false exception (of an empty __len__) for none at all.
        if isinstance(local, Exception) and not isinstance(local, StopIteration) and bool(local):
            local.__cause__ = error
            return local
        error.add_note(f"{cls.__name__}({error.message!r}) is a {type(local).__name__}, or false")
    except BaseException as reason:
        error.add_note(
            f"{cls.__name__}({error.message!r}) could not be made: {type(reason).__name__}: "
            f"{text_of(reason)}"
        )
    return error


class CallTimeout(CallError, TimeoutError):
    """Raised when no answer came in time. Whether the handler ran is not known."""

    code = 1032


class CallInterrupted(CallError):
    """Raised when the connection that awaited the answer was lost or closed.

    Whether the handler ran is not known.
    """

    code = 1033


class ServiceUnavailable(CallError):
    """Raised when the broker has no queue for a request: nobody ever ran that service."""

    code = 1034


class DuplicateRunning(TavridaError):
    """Raised for a duplicate while another process or thread still handles the message."""

    code = 1050


class AnswerNotKept(TavridaError):
    """Raised for a duplicate of a request that was handled, whose answer is not there any more."""

    code = 1051


class StoreFailed(TavridaError):
    """Raised when a store cannot tell whether a message was handled; it is not handled then."""

    code = 1052


class TransportError(TavridaError):
    """Raised when the broker does not do what it was asked to.

    ``is_denied`` says that it does not let this user do so, whose rights have to be changed.
    """

    code = 1040

    def __init__(self, message: str = "", *, is_denied: bool = False) -> None:
        super().__init__(message)
        self.is_denied = is_denied


class ConnectionFailed(TransportError):
    """Raised when no connection could be made, or the broker refused it.

    ``is_final`` says that trying again is useless until somebody changes something, such as
    the password or the name of the virtual host.
    """

    code = 1041

    def __init__(self, message: str, *, is_final: bool = False, is_denied: bool = False) -> None:
        super().__init__(message, is_denied=is_denied)
        self.is_final = is_final


def not_connected(limit: str, trouble: str) -> ConnectionFailed:
    """Return the error of what was not sent, since no connection was made within the limit."""
    why = f": {trouble}" if trouble else ""
    return ConnectionFailed(
        f"there was no connection to the broker within {limit}, so nothing was sent{why}"
    )


class TopologyConflict(TransportError):
    """Raised when a queue or exchange exists already with other arguments."""

    code = 1042


class PublishFailed(TransportError):
    """Raised when the broker did not take a message.

    ``is_passing`` says that it may take the same message later: its disk is full, for example.
    """

    code = 1043

    def __init__(self, message: str, *, is_passing: bool = False, is_denied: bool = False) -> None:
        super().__init__(message, is_denied=is_denied)
        self.is_passing = is_passing


class PublishTimeout(TransportError, TimeoutError):
    """Raised when the broker did not confirm a message in time. It may still arrive."""

    code = 1044


class PipelineFailed(TransportError):
    """Raised when a pipeline ends and the broker has not confirmed all of its messages.

    ``failures`` has each message that failed with its reason, in the order of failing.
    """

    code = 1045

    def __init__(self, failures: Sequence[tuple[Any, Exception]]) -> None:
        self.failures = tuple(failures)
        first = "; ".join(text_of(error) for _, error in failures[:3])
        more = f"; and {len(failures) - 3} more" if len(failures) > 3 else ""
        super().__init__(f"{len(failures)} messages of the pipeline failed: {first}{more}")
