# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The messages that handlers and middleware see: four kinds, each with its incoming twin."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import msgspec

from tavrida import exceptions
from tavrida.entry_point import EntryPoint

#: The kinds, as the AMQP property ``type`` has them.
REQUEST, RESPONSE, ERROR, NOTIFICATION = KINDS = ("request", "response", "error", "notification")

#: Bytes of the details of an error, and characters of a traceback in them, at most.
MAX_DETAILS = 16_384


@dataclass(slots=True, eq=False)
class Message:
    """What all messages have. Not thread-safe: a message belongs to the handler that has it.

    ``correlation_id`` names the chain of messages that one first message set off, ``request_id``
    the pair of a request and its answer, ``message_id`` this one message. ``context`` carries the
    payload values of the chain, later ones winning. ``deadline`` is in seconds since the epoch.
    What is left empty is filled in when the message is sent.
    """

    message_type: ClassVar[str]

    payload: dict[str, Any] = field(default_factory=dict)
    context: dict[str, Any] = field(default_factory=dict)
    #: The headers that users added; ``headers`` shows them together with the built-in ones.
    extra_headers: dict[str, Any] = field(default_factory=dict)
    correlation_id: str = ""
    request_id: str = ""
    message_id: str = ""
    source: EntryPoint | None = None
    destination: EntryPoint | None = None
    reply_to: str = ""
    deadline: float | None = None

    @property
    def headers(self) -> dict[str, Any]:
        """A new dict of everything about the message that is not its body."""
        return {
            **self.extra_headers,
            "correlation_id": self.correlation_id,
            "request_id": self.request_id,
            "message_id": self.message_id,
            "message_type": self.message_type,
            "reply_to": self.reply_to,
            "source": str(self.source or ""),
            "destination": str(self.destination or ""),
        }

    @property
    def time_left(self) -> float | None:
        """Seconds until the deadline, never below 0; None where there is no deadline."""
        return None if self.deadline is None else max(0.0, self.deadline - time.time())

    def __getitem__(self, key: str) -> Any:
        return self.payload[key]

    def __contains__(self, key: object) -> bool:
        return key in self.payload


@dataclass(slots=True, eq=False)
class Request(Message):
    """An outgoing request; it expects an answer where ``reply_to`` is set."""

    message_type = REQUEST

    #: The local classes that error answers are raised as, by remote name; stays in this process.
    raises: Mapping[str, type[Exception]] = field(default_factory=dict)
    #: True when somebody in this process waits for the answer.
    is_awaited: bool = False


class Response(Message):
    """An answer. Return one to set headers: ``Response({"a": 1}, extra_headers={"b": 2})``."""

    __slots__ = ()
    message_type = RESPONSE


class Error(Message):
    """An error answer: its payload has ``class``, ``message``, ``code`` and maybe ``details``."""

    __slots__ = ()
    message_type = ERROR

    @classmethod
    def from_exception(cls, exception: BaseException) -> Error:
        """Return the error that tells of an exception; it carries no traceback.

        ``code`` and ``details`` are the exception's own where they are an integer and a dict
        that can be written.
        """
        code = _attribute(exception, "code")
        payload = {
            "class": type(exception).__name__,
            "message": exceptions.text_of(exception),
            "code": code if type(code) is int else exceptions.TavridaError.code,
        }
        details = _writable(_attribute(exception, "details"))
        return cls(payload | ({"details": details} if details else {}))

    @classmethod
    def with_traceback(cls, exception: BaseException) -> Error:
        """Return the same with the end of the traceback as ``details["traceback"]``."""
        error = cls.from_exception(exception)
        lines = "".join(traceback.format_exception(exception))[-MAX_DETAILS:]
        error.payload["details"] = {**error.payload.get("details", {}), "traceback": lines}
        return error


def _attribute(exception: BaseException, name: str) -> Any:
    try:
        return getattr(exception, name, None)
    except BaseException:  # a property of a user's
        return None


def _writable(details: Any) -> dict[str, Any]:
    """Return details as plain JSON data; nothing where they are none, or too many."""
    if not isinstance(details, dict):
        return {}
    try:
        text = msgspec.json.encode(details)
        plain: dict[str, Any] = msgspec.json.decode(text)
        msgspec.msgpack.encode(plain)  # which has no integers beyond 64 bits
    except Exception:
        return {}
    return plain if len(text) <= MAX_DETAILS else {}


class Notification(Message):
    """An event for whoever subscribed; its topic is ``source``."""

    __slots__ = ()
    message_type = NOTIFICATION


@dataclass(slots=True, eq=False)
class IncomingMessage(Message):
    """What arrived. ``redelivered`` says that some process may have had it before."""

    redelivered: bool = False
    #: The serializer's content type that the sender used; an answer uses it too.
    content_type: str = ""
    #: False where the body was the bare payload, as clients without tavrida send it.
    is_enveloped: bool = True
    #: The number of this attempt to handle it, from 1; failures count, lost connections do not.
    attempt: int = 1


class IncomingRequest(IncomingMessage):
    """A request to handle."""

    __slots__ = ()
    message_type = REQUEST

    @property
    def expects_answer(self) -> bool:
        """True for a call, False for a cast."""
        return bool(self.reply_to)

    def make_response(self, /, **payload: Any) -> Response:
        """Return the answer with that payload, for a handler or a middleware to return."""
        return Response(payload)

    def make_error(self, exception: BaseException) -> Error:
        """Return the error answer that tells of the exception."""
        return Error.from_exception(exception)


class IncomingResponse(IncomingMessage):
    """The answer to a request; ``response["key"]`` reads its payload."""

    __slots__ = ()
    message_type = RESPONSE


class IncomingError(IncomingMessage):
    """The error that answers a request."""

    __slots__ = ()
    message_type = ERROR

    def to_exception(self, /, *classes: type[Exception], **named: type[Exception]) -> Exception:
        """Return what a call with ``raises`` of the same classes would raise."""
        error = exceptions.RemoteError(self.payload)
        return exceptions.local_error(error, exceptions.raises_of(classes, named))


class IncomingNotification(IncomingMessage):
    """An event that this service subscribed to."""

    __slots__ = ()
    message_type = NOTIFICATION


#: Which class an incoming message of each kind gets.
INCOMING: dict[str, type[IncomingMessage]] = {
    cls.message_type: cls
    for cls in (IncomingRequest, IncomingResponse, IncomingError, IncomingNotification)
}
