# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The messages that handlers and middleware see: four kinds, each with its incoming twin."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tavrida import exceptions
from tavrida.entry_point import EntryPoint

#: The kinds, as the AMQP property ``type`` has them.
REQUEST, RESPONSE, ERROR, NOTIFICATION = KINDS = ("request", "response", "error", "notification")


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


class Request(Message):
    """An outgoing request; it expects an answer where ``reply_to`` is set."""

    __slots__ = ()
    message_type = REQUEST


class Response(Message):
    """An answer. Return one to set headers: ``Response({"a": 1}, extra_headers={"b": 2})``."""

    __slots__ = ()
    message_type = RESPONSE


class Error(Message):
    """An error answer: its payload has the keys ``class``, ``message`` and ``code``."""

    __slots__ = ()
    message_type = ERROR

    @classmethod
    def from_exception(cls, exception: BaseException) -> Error:
        """Return the error that tells of an exception; an answer carries no traceback."""
        code = getattr(exception, "code", None)
        return cls(
            {
                "class": type(exception).__name__,
                "message": exceptions.text_of(exception),
                "code": code if type(code) is int else exceptions.TavridaError.code,
            }
        )


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


class IncomingNotification(IncomingMessage):
    """An event that this service subscribed to."""

    __slots__ = ()
    message_type = NOTIFICATION


#: Which class an incoming message of each kind gets.
INCOMING: dict[str, type[IncomingMessage]] = {
    cls.message_type: cls
    for cls in (IncomingRequest, IncomingResponse, IncomingError, IncomingNotification)
}
