# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Frames: those of AMQP 0-9-1 that every message needs, written and read beneath pika's API.

pika makes three objects of a message that is published and three of one that arrives, and copies
what it received once a frame. Here a publication becomes bytes at once, and a Reader walks over
what arrives, takes deliveries and confirms out of it, and leaves all the rest to pika. The bytes
and the values are pika's to the last bit: whatever is rare is encoded and decoded by pika. No I/O.

A frame (section 2.3.5) is, with the most significant byte first (4.2.1)::

    octet kind | short channel | long size | size octets | octet 0xCE

and a message (2.3.5.2) a method frame, a content header frame and as many body frames as it needs,
none for an empty body. Frames of other channels may stand between them.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pika
import pika.data
import pika.exceptions
from pika import frame, spec

from tavrida import exceptions
from tavrida.envelope import Properties, ReadProperties
from tavrida.interruptions import is_raised_in
from tavrida.plugins.transports import MAX_PROPERTIES, Publication
from tavrida.plugins.transports.amqp.fields import pika_properties, plain

#: The consumer tag, delivery tag, redelivered, exchange and routing key of a Basic.Deliver, and
#: its content.
Delivered = Callable[[str, int, bool, str, str, ReadProperties, bytes], None]

#: The delivery tag of a Basic.Ack, and whether it stands for all up to it.
Confirmed = Callable[[int, bool], None]

#: What the encoders raise. What a signal handler raises in the midst of them is something else.
UNENCODABLE = (
    exceptions.PublishFailed,
    pika.exceptions.AMQPError,
    struct.error,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)

#: Bytes of a payload that nobody sends. pika agrees to no frame_max above 128 kB, which brokers do
#: not heed where they add to the headers of a message that dies.
_ABSURD = 16 * spec.FRAME_MAX_SIZE

#: Entries of each cache: programs have few names, but strangers may have many.
_CACHE_SIZE = 1024

_METHOD, _HEADER, _BODY, _END = 1, 2, 3, spec.FRAME_END
_BASIC = spec.BasicProperties.INDEX
_DELIVER = struct.pack(">I", spec.Basic.Deliver.INDEX)
_ACK = struct.pack(">I", spec.Basic.Ack.INDEX)

# Parts of frames that are packed and unpacked at once.
_FRAME = struct.Struct(">BHI")  # kind, channel, size
_NEXT = struct.Struct(">BBHI")  # the end of a frame, and the beginning of the next
_CONTENT = struct.Struct(">BHIHxxQH")  # a header (2.3.5.2): frame, class, body size, property flags
_ACK_FRAME = struct.Struct(">BHIIQBB")  # Basic.Ack (1.8.3.13): frame, method, tag, multiple, end
_TAG = struct.Struct(">QB")  # delivery tag, and a bit: redelivered (1.8.3.9) or multiple

# Values of a field table (4.2.5.5, as RabbitMQ has them): their kinds, and kind and value.
_S, _I, _L, _T, _V = b"SIltV"
_STRING, _INT, _LONG = struct.Struct(">BI"), struct.Struct(">Bi"), struct.Struct(">Bq")
_TRUE, _FALSE, _VOID = b"t\x01", b"t\x00", b"V"

_SIZE, _TIMESTAMP = struct.Struct(">I"), struct.Struct(">Q")
_OCTETS = [bytes([each]) for each in range(256)]
_LAST = _OCTETS[_END]

# -- what is sent


@functools.lru_cache(_CACHE_SIZE)
def _publish(channel: int, exchange: str, routing_key: str, is_mandatory: bool) -> bytes:
    """Return a method frame (1.8.3.7): few routes are used, and often."""
    method = spec.Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=is_mandatory)
    marshalled: bytes = frame.Method(channel, method).marshal()
    return marshalled


def _short(text: str) -> bytes:
    """Return a short string (4.2.5.3); IndexError if it is longer than 255 bytes."""
    encoded = text.encode()
    return _OCTETS[len(encoded)] + encoded


#: The same for texts that come again and again.
_known = functools.lru_cache(_CACHE_SIZE)(_short)


def _table(headers: dict[str, Any]) -> bytes:
    """Return a field table."""
    pieces: list[bytes] = []
    for name, value in headers.items():
        kind = type(value)
        if kind is str:
            encoded = value.encode()
            pieces += (_known(name), _STRING.pack(_S, len(encoded)), encoded)
        elif kind is int and -0x80000000 <= value < 0x80000000:
            pieces += (_known(name), _INT.pack(_I, value))
        elif kind is int:
            pieces += (_known(name), _LONG.pack(_L, value))
        elif value is None:
            pieces += (_known(name), _VOID)
        elif kind is bool:
            pieces += (_known(name), _TRUE if value else _FALSE)
        else:
            pieces.append(_known(name))
            pika.data.encode_value(pieces, value)
    table = b"".join(pieces)
    return _SIZE.pack(len(table)) + table


@functools.lru_cache(_CACHE_SIZE)
def _opening(content_type: str, is_persistent: bool) -> tuple[int, bytes]:
    """Return the flags and bytes of what stands before the identifiers, without headers."""
    mode = b"\x02" if is_persistent else b"\x01"
    if content_type:
        return 0x9000, _short(content_type) + mode
    return 0x1000, mode


@functools.lru_cache(_CACHE_SIZE, typed=True)  # AMQP has no place for 5.0, which is equal to 5
def _closing(timestamp: int, kind: str, app_id: str) -> tuple[int, bytes]:
    """Return the flags and bytes of what stands behind the identifiers.

    They are the same for what a program sends within a second.
    """
    flags, encoded = 0, b""
    if timestamp:
        flags, encoded = 0x0040, _TIMESTAMP.pack(timestamp)
    if kind:
        flags, encoded = flags | 0x0020, encoded + _short(kind)
    if app_id:
        flags, encoded = flags | 0x0008, encoded + _short(app_id)
    return flags, encoded


def _content(properties: Properties) -> tuple[int, bytes]:
    """Return the flags of the properties that are there, and these in their order.

    Raises anything for what pika refuses too; it has the better words.
    """
    flags, first = _opening(properties.content_type, properties.is_persistent)
    more, last = _closing(properties.timestamp, properties.type, properties.app_id)
    message_id = _short(properties.message_id)
    flags |= more | 0x0080
    if not (
        properties.headers
        or properties.correlation_id
        or properties.reply_to
        or properties.expiration is not None
    ):
        return flags, first + message_id + last
    pieces = [first]
    if properties.headers:
        flags |= 0x2000
        pieces = [first[:-1], _table(properties.headers), first[-1:]]
    if properties.correlation_id:
        flags |= 0x0400
        pieces.append(_short(properties.correlation_id))
    if properties.reply_to:
        flags |= 0x0200
        pieces.append(_known(properties.reply_to))
    if properties.expiration is not None:
        flags |= 0x0100
        pieces.append(_short(str(properties.expiration)))
    pieces += (message_id, last)
    return flags, b"".join(pieces)


def publish_frames(channel: int, publication: Publication, body_max: int) -> bytes:
    """Return a publication as it goes over a channel, its body in frames of ``body_max`` bytes.

    Raises:
        PublishFailed: the headers are larger than a frame. AMQP has no way to split them, and
            RabbitMQ closes the connection.
        Exception: the same that pika raises for what AMQP cannot express.
    """
    method = _publish(
        channel, publication.exchange, publication.routing_key, publication.is_mandatory
    )
    body = publication.body
    try:
        flags, properties = _content(publication.properties)
    except UNENCODABLE:  # pika says what is wrong, or can do it after all
        pieces = pika_properties(publication.properties).encode()
        flags, properties = int.from_bytes(pieces[0]), b"".join(pieces[1:])
    size = len(properties) + 2
    if size > MAX_PROPERTIES:
        raise exceptions.PublishFailed(
            f"the headers have {size} bytes, more than the {MAX_PROPERTIES} that fit into a frame"
        )
    length = len(body)
    header = _CONTENT.pack(_HEADER, channel, size + 12, _BASIC, length, flags)
    if 0 < length <= body_max:
        between = _NEXT.pack(_END, _BODY, channel, length)
        return b"".join((method, header, properties, between, body, _LAST))
    frames = [method, header, properties]
    for start in range(0, length, body_max):
        piece = body[start : start + body_max]
        frames += (_NEXT.pack(_END, _BODY, channel, len(piece)), piece)
    frames.append(_LAST)
    return b"".join(frames)


def ack_frame(channel: int, tag: int, multiple: bool) -> bytes:
    """Return a Basic.Ack for a delivery, or for all up to it."""
    return _ACK_FRAME.pack(_METHOD, channel, 13, spec.Basic.Ack.INDEX, tag, multiple, _END)


#: Bytes of a confirm, which is a Basic.Ack too.
CONFIRM_SIZE = _ACK_FRAME.size

# -- what is received

#: Flags of properties that are left to pika: content encoding, priority, expiration, user id,
#: cluster id; and the bits that no property has.
_RARE = 0x4000 | 0x0800 | 0x0100 | 0x0010 | 0x0004 | 0x0003


def _read_table(encoded: bytes, offset: int) -> tuple[dict[str, Any], int]:
    """Return a table and where it ends; raises for what only pika can read."""
    headers: dict[str, Any] = {}
    limit = offset + 4 + _SIZE.unpack_from(encoded, offset)[0]
    offset += 4
    while offset < limit:
        at = offset + 1 + encoded[offset]
        name = encoded[offset + 1 : at].decode()
        kind = encoded[at]
        if kind == _S:
            offset = at + 5 + _SIZE.unpack_from(encoded, at + 1)[0]
            headers[name] = encoded[at + 5 : offset].decode()
        elif kind == _L:
            headers[name] = _LONG.unpack_from(encoded, at)[1]
            offset = at + 9
        elif kind == _I:
            headers[name] = _INT.unpack_from(encoded, at)[1]
            offset = at + 5
        elif kind == _T:
            headers[name] = encoded[at + 1] != 0
            offset = at + 2
        elif kind == _V:
            headers[name] = None
            offset = at + 1
        else:
            raise ValueError("a table, a list, a number that is rare")
    return headers, offset


class DeliveredProperties(msgspec.Struct, gc=False):
    """The properties of a delivery, by the names of AMQP and pika; None where absent.

    The values are what fields.py has pika make of them, with plain integers. They are in the order
    of their flags, from the highest bit down (1.8.1).
    """

    content_type: str | None = None
    content_encoding: str | None = None
    headers: Mapping[str, Any] | None = None
    delivery_mode: int | None = None
    priority: int | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    expiration: str | None = None
    message_id: str | None = None
    timestamp: int | None = None
    type: str | None = None
    user_id: str | None = None
    app_id: str | None = None
    cluster_id: str | None = None


@functools.lru_cache(_CACHE_SIZE)
def _read_opening(encoded: bytes) -> tuple[int, str | None]:
    """Return the flags of properties, and the content type that stands behind them, if it does."""
    flags = int.from_bytes(encoded[:2])
    if flags & _RARE:
        raise ValueError("properties that few messages have, or flags that AMQP does not have")
    return flags, encoded[3:].decode() if flags & 0x8000 else None


@functools.lru_cache(_CACHE_SIZE)
def _read_closing(flags: int, encoded: bytes) -> tuple[str | None, str | None]:
    """Return the type and the app_id, with which properties end, as far as the flags name them."""
    kind = app_id = None
    end = 0
    if flags & 0x0020:
        end = 1 + encoded[0]
        kind = encoded[1:end].decode()
    if flags & 0x0008:
        end = (at := end + 1) + encoded[end]
        app_id = encoded[at:end].decode()
    if end != len(encoded):
        raise IndexError("a length that lies")
    return kind, app_id


def read_properties(encoded: bytes, start: int, end: int) -> DeliveredProperties:
    """Decode what stands between ``start``, where the flags are, and ``end``."""
    try:
        return _read_properties(encoded, start, end)
    except (ValueError, IndexError, struct.error) as error:
        if not is_raised_in(error, __name__):
            raise
    # Something rare, or a length that lies and led into the frames that follow; pika keeps within.
    found = spec.BasicProperties().decode(encoded[start:end])
    names = DeliveredProperties.__struct_fields__
    return DeliveredProperties(*(plain(getattr(found, name)) for name in names))


def _read_properties(encoded: bytes, start: int, end: int) -> DeliveredProperties:
    # Written out: a loop over names and types takes twice as long. What it begins and ends with is
    # the same for many messages.
    offset = start + 2
    if encoded[start] & 0x80:  # there is a content type
        offset += 1 + encoded[offset]
    flags, content_type = _read_opening(encoded[start:offset])
    headers = mode = correlation_id = reply_to = message_id = timestamp = None
    if flags & 0x2000:
        headers, offset = _read_table(encoded, offset)
    if flags & 0x1000:
        mode = encoded[offset]
        offset += 1
    if flags & 0x0400:
        offset = (at := offset + 1) + encoded[offset]
        correlation_id = encoded[at:offset].decode()
    if flags & 0x0200:
        offset = (at := offset + 1) + encoded[offset]
        reply_to = encoded[at:offset].decode()
    if flags & 0x0080:
        offset = (at := offset + 1) + encoded[offset]
        message_id = encoded[at:offset].decode()
    if flags & 0x0040:
        (timestamp,) = _TIMESTAMP.unpack_from(encoded, offset)
        offset += 8
    if offset > end:
        raise IndexError("a length that lies")
    kind, app_id = _read_closing(flags & 0x0028, encoded[offset:end])
    # Without names, which would take as long again.
    return DeliveredProperties(
        content_type,
        None,
        headers,
        mode,
        None,
        correlation_id,
        reply_to,
        None,
        message_id,
        timestamp,
        kind,
        None,
        app_id,
    )


@functools.lru_cache(_CACHE_SIZE)
def _text(encoded: bytes) -> str:
    return encoded.decode("utf-8", "replace")


@functools.lru_cache(_CACHE_SIZE)
def _route(encoded: bytes) -> tuple[str, str]:
    """Return the exchange and the routing key with which a Basic.Deliver (1.8.3.9) ends."""
    at = 1 + encoded[0]
    if at + 1 + encoded[at] != len(encoded):
        raise IndexError("a length that lies")  # pika may make something of it
    return _text(encoded[1:at]), _text(encoded[at + 1 :])


#: Consumer tag, delivery tag, redelivered, exchange, routing key.
_Method = tuple[str, int, bool, str, str]


@dataclass(slots=True, eq=False)
class _Content:
    """A delivery of which not everything is there yet; ``missing`` are bytes of its body."""

    method: _Method
    properties: DeliveredProperties | None = None
    missing: int = 0
    pieces: list[bytes] = field(default_factory=list)


class Reader:
    """Splits what a broker sends: deliveries and confirms of watched channels, and all the rest.

    Everything is handed on in its order, the rest to ``cold``, a whole frame at a time. A callback
    may watch and forget channels, and may raise: its frames count as read. It must not call feed.
    """

    def __init__(self, cold: Callable[[bytes], None]) -> None:
        self._cold = cold
        self._delivered: dict[int, Delivered] = {}
        self._confirmed: dict[int, Confirmed] = {}
        self._contents: dict[int, _Content] = {}
        # The beginning of a frame, as it came, and how many bytes are to come at least.
        self._pieces: list[bytes] = []
        self._missing = 0
        self._offset = 0

    def watch(
        self,
        channel: int,
        delivered: Delivered | None = None,
        confirmed: Confirmed | None = None,
    ) -> None:
        """Hand over what is delivered and confirmed on a channel from the next frame on."""
        self.forget(channel)
        if delivered is not None:
            self._delivered[channel] = delivered
        if confirmed is not None:
            self._confirmed[channel] = confirmed

    def forget(self, channel: int) -> None:
        """Leave a channel to pika. A delivery of which half is there is dropped with its rest."""
        self._delivered.pop(channel, None)
        self._confirmed.pop(channel, None)

    def give_back(self, frame: bytes) -> None:
        """Have the frame that is just handed on handed on again, by the next ``feed``."""
        self._offset -= len(frame)

    def feed(self, data: bytes) -> None:
        """Read on, in a piece of any size.

        Raises:
            ProtocolSyntaxError: of pika; the stream is broken.
            Exception: what a callback raised. What follows is read when there is more.
        """
        if self._pieces:
            self._pieces.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return
            data = b"".join(self._pieces)
            self._pieces = []
        self._offset = self._missing = 0
        try:
            self._walk(data)
        finally:
            if self._offset < len(data):
                self._pieces = [data[self._offset :]]

    def _walk(self, data: bytes) -> None:
        length = len(data)
        while (offset := self._offset) + 8 <= length:
            kind, channel, size = _FRAME.unpack_from(data, offset)
            end = offset + size + 8
            if end > length:
                if size <= _ABSURD:
                    self._missing = end - length
                    return
                if not data.startswith(b"AMQP", offset):
                    raise pika.exceptions.InvalidFrameError(f"a frame of {size} bytes")
                end = offset + 8  # another protocol's header (4.2.2), before the broker closes
            self._offset = end
            if data[end - 1] != _END:
                self._cold(data[offset:end])  # pika raises
            elif kind == _METHOD:
                self._take_method(data, offset, end, channel)
            elif channel in self._contents and kind in {_HEADER, _BODY}:
                self._take_content(data, offset, end, channel)
            else:
                self._cold(data[offset:end])
        self._missing = offset + 8 - length

    def _take_method(self, data: bytes, offset: int, end: int, channel: int) -> None:
        if self._contents:
            # A method ends the content before it, complete or not (4.2.6).
            self._contents.pop(channel, None)
        method = data[offset + 7 : offset + 11]
        if method == _DELIVER and channel in self._delivered:
            self._take_delivery(data, offset, end, channel)
        elif method == _ACK and end - offset == _ACK_FRAME.size and channel in self._confirmed:
            tag, bits = _TAG.unpack_from(data, offset + 11)
            self._confirmed[channel](tag, bits & 1 == 1)
        else:
            self._cold(data[offset:end])

    def _take_delivery(self, data: bytes, offset: int, end: int, channel: int) -> None:
        """Deliver at once what is there completely, in one body frame or none."""
        at = offset + 12 + data[offset + 11]
        try:
            tag, bits = _TAG.unpack_from(data, at)
            exchange, routing_key = _route(data[at + 9 : end - 1])
        except (IndexError, struct.error) as error:
            if not is_raised_in(error, __name__):
                raise
            self._cold(data[offset:end])
            return
        consumer_tag, is_redelivered = _text(data[offset + 12 : at]), bits & 1 == 1
        if end + _CONTENT.size <= len(data):
            kind, its_channel, size, its_class, body_size, _ = _CONTENT.unpack_from(data, end)
            body = end + size + 15
            last = body + body_size if body_size else body - 8
            if (
                last < len(data)
                and kind == _HEADER
                and its_channel == channel
                and its_class == _BASIC
                and data[last] == _END
                and (
                    not body_size
                    or _NEXT.unpack_from(data, body - 8) == (_END, _BODY, channel, body_size)
                )
            ):
                self._offset = last + 1
                self._delivered[channel](
                    consumer_tag,
                    tag,
                    is_redelivered,
                    exchange,
                    routing_key,
                    read_properties(data, end + 19, body - 8),
                    data[body:last],
                )
                return
        method = (consumer_tag, tag, is_redelivered, exchange, routing_key)
        self._contents[channel] = _Content(method)

    def _take_content(self, data: bytes, offset: int, end: int, channel: int) -> None:
        """Take the header or a body frame of a delivery that comes in pieces."""
        content = self._contents[channel]
        is_header = data[offset] == _HEADER
        if is_header != (content.properties is None):
            raise pika.exceptions.InvalidFrameError(f"frame {data[offset]} out of its order")
        if is_header:
            *_, its_class, content.missing, _ = _CONTENT.unpack_from(data, offset)
            if its_class != _BASIC:
                raise pika.exceptions.InvalidFrameError(f"a content header of class {its_class}")
            content.properties = read_properties(data, offset + 19, end - 1)
        else:
            content.missing -= end - offset - 8
            content.pieces.append(data[offset + 7 : end - 1])
        if content.missing > 0:
            return
        del self._contents[channel]
        if content.missing < 0:
            raise pika.exceptions.InvalidFrameError("more body than the content header says")
        delivered = self._delivered.get(channel)
        if delivered is not None and content.properties is not None:
            delivered(*content.method, content.properties, b"".join(content.pieces))


# -- whether all this holds


@functools.cache
def is_usable() -> bool:
    """Tell whether the pika that is installed can be used with this module.

    It has to be of the versions that were tested, 1.4, and to write and read a message as we do.
    Where it is False, pika's own API does everything.
    """
    if not pika.__version__.startswith("1.4."):
        return False
    headers = {"text": "\u00e9", "int": -1, "long": 1 << 40, "true": True, "none": None}
    common = Properties("a/b", headers, "c", "r", "m", "request", "app", 1 << 31)
    rare = msgspec.structs.replace(common, headers={**headers, "list": [1]}, expiration=5)
    return (
        ack_frame(7, 9, multiple=True) == frame.Method(7, spec.Basic.Ack(9, True)).marshal()
        and _is_as_with_pika(common)
        and _is_as_with_pika(rare)
    )


def _is_as_with_pika(sample: Properties) -> bool:
    publication = Publication("exchange", "key", b"body", sample, is_mandatory=True)
    properties = pika_properties(sample)
    method = spec.Basic.Publish(exchange="exchange", routing_key="key", mandatory=True)
    wanted = (frame.Method(7, method), frame.Header(7, 4, properties), frame.Body(7, b"body"))
    encoded = b"".join(properties.encode())
    found = read_properties(encoded, 0, len(encoded))
    is_written_so = publish_frames(7, publication, 8) == b"".join(each.marshal() for each in wanted)
    return is_written_so and all(
        getattr(found, name) == value for name, value in vars(properties).items()
    )
