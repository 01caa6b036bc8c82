# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The wire format: (properties, headers, body) <-> message. docs/wire-format.md defines it.

AMQP properties carry what AMQP has a property for, the headers table the rest, and the body is
``{"context": {...}, "payload": {...}}`` in the serializer that ``content_type`` names. The reader
is tolerant where clients without tavrida differ (no ``type`` is a request, no destination is the
routing key, a body without the envelope is the payload) and strict in everything else.
"""

from __future__ import annotations

import functools
import itertools
import operator
import os
import secrets
import time
from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from tavrida import exceptions, messages
from tavrida.entry_point import MAX_LENGTH, EntryPoint
from tavrida.messages import IncomingMessage, Message, Request

#: Header names that users cannot add: tavrida fills most of them in.
RESERVED = frozenset(
    {
        "correlation_id",
        "request_id",
        "message_id",
        "message_type",
        "reply_to",
        "source",
        "destination",
        "deadline",
        # Of copies that are tried again.
        "retry_attempt",
        "retry_exchange",
        "retry_routing_key",
        "retry_since",
        "retry_error",
        "retry_crashes",
        # RabbitMQ sends a copy to whatever routing keys these two name.
        "CC",
        "BCC",
    }
)

_ENVELOPE = {"context", "payload"}
_INT64 = 2**63

#: Milliseconds. RabbitMQ refuses more, and a deadline may be anybody's.
MAX_EXPIRATION = 2**32 - 1

#: Other names of content types: MessagePack has long had none of its own.
_ALIASES = {
    "application/x-msgpack": "application/msgpack",
    "application/vnd.msgpack": "application/msgpack",
}

#: Bytes of a text in a user's header, far below a frame's 128 kB, which all headers share.
MAX_HEADER = 16_384


#: The properties that are texts of anybody's making.
_TEXTS = ("correlation_id", "reply_to", "message_id", "app_id")
_texts = operator.attrgetter(*_TEXTS)


class Codec(Protocol):
    """What the envelope needs of a serializer."""

    @property
    def content_type(self) -> str: ...

    def encode(self, data: Any) -> bytes: ...

    def decode(self, body: bytes) -> Any: ...


class ReadProperties(Protocol):
    """The properties of a delivery, named as AMQP 0-9-1 names them; None where absent."""

    content_type: str | None
    headers: Mapping[str, Any] | None
    correlation_id: str | None
    reply_to: str | None
    message_id: str | None
    type: str | None
    app_id: str | None


class Properties(msgspec.Struct, gc=False):
    """The properties of a message that is sent. ``expiration`` is in milliseconds."""

    content_type: str = ""
    headers: dict[str, Any] = msgspec.field(default_factory=dict)
    correlation_id: str = ""
    reply_to: str = ""
    message_id: str = ""
    type: str = ""
    app_id: str = ""
    timestamp: int = 0
    expiration: int | None = None
    #: False where it is of no use after a restart of the broker.
    is_persistent: bool = True


class _Identifiers:
    """64 random bits a process and a count: a tenth of the price of a random number each."""

    def __init__(self) -> None:
        self.renew()
        # A forked child would go on with its parent's identifiers.
        os.register_at_fork(after_in_child=self.renew)

    def renew(self) -> None:
        self._prefix = secrets.token_hex(8)
        self._next = itertools.count(1).__next__

    def __call__(self) -> str:
        return f"{self._prefix}{self._next():x}"


#: Returns an identifier that no other process, thread or call gets.
new_id = _Identifiers()


def _fits(text: object, most: int) -> bool:
    """Tell whether this is a text of at most so many bytes; a lone surrogate has none at all."""
    try:
        return (
            isinstance(text, str)
            and len(text) <= most
            and (text.isascii() or len(text.encode()) <= most)
        )
    except UnicodeEncodeError:
        return False


def check_headers(headers: Mapping[str, Any]) -> None:
    """Check that users may add these headers.

    Raises:
        MessageError: a name is tavrida's own or too long, or a value is none that all AMQP
            clients can read.
    """
    for name, value in headers.items():
        if not name or not _fits(name, 128) or name in RESERVED:
            raise exceptions.MessageError(
                f"header {name!r} cannot be set: use a string of 1 to 128 bytes other than "
                f"{', '.join(sorted(RESERVED))}"
            )
        is_number = isinstance(value, int) and -_INT64 <= value < _INT64
        if not (value is None or is_number or _fits(value, MAX_HEADER)):
            raise exceptions.MessageError(
                f"header {name!r} cannot be {value!r:.40}: use a string, an integer of 64 "
                "bits, a bool or None"
            )


def encode(
    message: Message, codec: Codec, *, enveloped: bool = True, routing_key: str = ""
) -> tuple[Properties, bytes]:
    """Return what goes on the wire for a message whose identifiers are all filled in.

    ``routing_key`` is the one that it goes with, where that is known.

    Raises:
        MessageError: the payload or context cannot be written by the serializer, or a text is
            longer than AMQP allows. Names the key.
    """
    headers = dict(message.extra_headers)
    if headers:
        check_headers(headers)
    # Not what the reader assumes anyway: brokers look into every header of every message.
    correlation_id = message.correlation_id
    if message.request_id != correlation_id:
        headers["request_id"] = message.request_id
    is_awaited = isinstance(message, Request) and message.is_awaited
    if message.destination is not None:
        destination = str(message.destination)
        # What nobody waits for may lie in a queue, and who moves it to another one by other means
        # than ours, such as a shovel, gives it another routing key.
        if not is_awaited or destination != routing_key:
            headers["destination"] = destination
    if message.deadline is not None:
        # Milliseconds: pika cannot write the floats of AMQP's field tables. No expiration: the
        # broker would move what expired to the dead letters, where nobody needs it.
        headers["deadline"] = int(1000 * message.deadline)
    # Calls have it in any case: whoever answers without tavrida copies it.
    if correlation_id == message.message_id and not message.reply_to:
        correlation_id = ""
    properties = Properties(
        codec.content_type,
        headers,
        correlation_id,
        message.reply_to,
        message.message_id,
        message.message_type,
        str(message.source or ""),
        int(time.time()),
        None,
        # Who waits is told at once when the connection goes (CallInterrupted).
        not is_awaited,
    )
    _check_texts(properties)
    body: dict[str, Any] = message.payload
    if enveloped:
        body = {"context": _beside(message.context, body), "payload": body}
    try:
        return properties, codec.encode(body)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise _unwritable(message, codec, error) from None


def _beside(context: dict[str, Any], payload: dict[str, Any]) -> dict[str, Any]:
    """Return what of a context the payload does not say: a body would be twice as long."""
    return {k: v for k, v in context.items() if k not in payload or payload[k] is not v}


def _check_texts(properties: Properties) -> None:
    texts = _texts(properties)
    try:
        together = "".join(texts)
        if len(together) <= MAX_LENGTH and together.isascii():
            return  # which is mostly so
    except TypeError:
        pass
    for name, text in zip(_TEXTS, texts, strict=True):
        if not _fits(text, MAX_LENGTH):
            raise exceptions.MessageError(
                f"{name} {str(text)[:40]!r} is no text of at most {MAX_LENGTH} bytes, as AMQP "
                "wants it"
            )


def _unwritable(message: Message, codec: Codec, error: Exception) -> exceptions.MessageError:
    """Find the value that cannot be written; only failures pay for the search."""
    for part in ("payload", "context"):
        for key, value in getattr(message, part).items():
            try:
                codec.encode({key: value})
            except (TypeError, ValueError, OverflowError, RecursionError) as reason:
                return exceptions.MessageError(
                    f"{part} key {key!r} of the {message.message_type} cannot be written as "
                    f"{codec.content_type}: {reason}"
                )
    return exceptions.MessageError(f"the {message.message_type} cannot be written: {error}")


def decode(
    properties: ReadProperties,
    body: bytes,
    routing_key: str,
    codecs: Mapping[str, Codec],
    *,
    default: Codec,
    untyped: str = messages.REQUEST,
    redelivered: bool = False,
) -> IncomingMessage:
    """Return the message that arrived.

    ``codecs`` are by content type; ``default`` reads what names none. ``untyped`` is the kind of
    a message without a ``type``.

    Raises:
        MalformedMessage: anything in it is not as the wire format says; names what and why.
    """
    headers = dict(properties.headers) if properties.headers else {}
    kind = properties.type or untyped
    cls = messages.INCOMING.get(kind)
    if cls is None:
        raise exceptions.MalformedMessage(
            f"type {kind[:40]!r} is none of {', '.join(messages.KINDS)}"
        )
    codec = codecs.get(properties.content_type) if properties.content_type else default
    if codec is None:
        # As some clients write it: "Application/JSON; charset=utf-8".
        name = str(properties.content_type).partition(";")[0].strip().lower()
        codec = codecs.get(_ALIASES.get(name, name))
    if codec is None:
        raise exceptions.MalformedMessage(
            f"content type {str(properties.content_type)[:40]!r} is not accepted here; "
            f"accepted: {', '.join(sorted(codecs))}"
        )
    context, payload, is_enveloped = _split(_read(body, codec))
    destination = request_id = ""
    deadline = None
    if headers:
        destination = _text(headers, "destination")
        request_id = _text(headers, "request_id")
        deadline = _deadline(headers)
    if not destination and kind == messages.REQUEST:
        destination = routing_key
    source = _source(properties.app_id or "")
    if source is None and kind == messages.NOTIFICATION:
        source = _source(routing_key)
    correlation_id = properties.correlation_id or own_chain(properties)
    # Without names, which would take as long again.
    return cls(
        payload,
        context,
        headers,
        correlation_id,
        # Whoever answers without tavrida copies the correlation id only.
        request_id or correlation_id,
        properties.message_id or "",
        source,
        _point(destination, "destination", complete=kind == messages.REQUEST),
        properties.reply_to or "",
        deadline,
        redelivered,
        codec.content_type,
        is_enveloped,
    )


def own_chain(properties: ReadProperties) -> str:
    """Return what names the chain of a message without a correlation id: it began it.

    Nothing where an answer is expected, which has the correlation id of its request, or none.
    """
    return "" if properties.reply_to else properties.message_id or ""


def _read(body: bytes, codec: Codec) -> Any:
    if not body:
        return {}
    try:
        return codec.decode(body)
    except (ValueError, RecursionError) as error:
        raise exceptions.MalformedMessage(
            f"the body cannot be read as {codec.content_type}: {error}"
        ) from None


def _split(data: Any) -> tuple[dict[str, Any], dict[str, Any], bool]:
    """Return context, payload and whether the body had the envelope."""
    if isinstance(data, dict) and data.keys() == _ENVELOPE:
        context, payload = data["context"], data["payload"]
        if not _is_object(context):
            raise _no_object("'context' in the body", context)
        if not _is_object(payload):
            raise _no_object("'payload' in the body", payload)
        return {**payload, **context}, payload, True
    if not _is_object(data):
        raise _no_object("the body", data)
    return {}, data, False


def _no_object(what: str, data: object) -> exceptions.MalformedMessage:
    return exceptions.MalformedMessage(
        f"{what} should be an object with names, not {type(data).__name__}"
    )


def _is_object(data: object) -> bool:
    """Tell whether this is an object with names; JSON has no others, MessagePack has."""
    if not isinstance(data, dict):
        return False
    if not data:
        return True
    try:
        "".join(data)  # which looks at each key in C
    except TypeError:
        return False
    return True


def _text(headers: dict[str, Any], name: str) -> str:
    value = headers.pop(name, "")
    if not isinstance(value, str):
        raise exceptions.MalformedMessage(f"header {name!r} is {value!r}, not a string")
    return value


def _deadline(headers: dict[str, Any]) -> float | None:
    deadline = headers.pop("deadline", None)
    if deadline is None:
        return None
    if not isinstance(deadline, int) or isinstance(deadline, bool):
        raise exceptions.MalformedMessage(
            f"header 'deadline' is {deadline!r}, not a number of milliseconds"
        )
    return deadline / 1000


# One look-up for most messages; also for those of a program whose app_id is no entry point.
@functools.lru_cache(maxsize=4096)
def _source(text: str) -> EntryPoint | None:
    """AMQP's app_id is free text; what is no entry point there is a program without a name."""
    try:
        return EntryPoint.parse_source(text) if text else None
    except exceptions.WrongEntryPoint:
        return None


def _point(text: str, name: str, *, complete: bool) -> EntryPoint | None:
    if not text and not complete:
        return None
    try:
        return EntryPoint.parse(text) if complete else EntryPoint.parse_source(text)
    except exceptions.WrongEntryPoint as error:
        raise exceptions.MalformedMessage(f"{name}: {error}") from None
