# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Fields: properties and headers, read without harm and written within their limits."""

from __future__ import annotations

import struct
from typing import Any

import pika.compat
import pika.data
from pika.spec import BasicProperties

from tavrida import exceptions
from tavrida.envelope import Properties
from tavrida.plugins.transports import MAX_PROPERTIES

_decode_value = pika.data.decode_value

#: Bytes of the values of fixed size that pika may fail to decode, with the byte of their kind.
_FIXED_SIZES = {b"T": 9, b"d": 9, b"f": 5}


def _decode_any_value(encoded: bytes, offset: int) -> tuple[Any, int]:
    """Decode a value of a field table; None for one that Python has no value for.

    Such are timestamps beyond the year 9999, NaN, infinity, and tables in tables without end.
    """
    try:
        return _decode_value(encoded, offset)
    except (ValueError, OverflowError, OSError, RecursionError):
        size = _FIXED_SIZES.get(encoded[offset : offset + 1])
        if size is None:  # a table or a list, which say their size
            size = 5 + struct.unpack_from(">I", encoded, offset + 1)[0]
        return None, offset + size


def _decode_any_text(encoded: bytes, offset: int) -> tuple[str, int]:
    """Decode a short string; what is no UTF-8 becomes U+FFFD, where pika gives bytes."""
    start = offset + 1
    end = start + encoded[offset]
    return str(encoded[start:end], "utf-8", "replace"), end


# A broker checks none of this and hands it on. pika raises at it, or what gets bytes for a text
# does; either loses the connection, the broker delivers the message again, and so on for ever: one
# message would take a service down. pika looks both up in its module whenever it decodes.
pika.data.decode_value = _decode_any_value
pika.data.decode_short_string = _decode_any_text


def plain(value: Any) -> Any:
    """Return a header's value with plain integers, also in lists and tables like x-death's."""
    if type(value) is pika.compat.long:  # an int that msgspec refuses
        return int(value)
    if type(value) is list:
        return [plain(each) for each in value]
    if type(value) is dict:
        return {name: plain(each) for name, each in value.items()}
    return value


def pika_properties(properties: Properties) -> BasicProperties:
    """Return the same as pika has them."""
    return BasicProperties(
        content_type=properties.content_type or None,
        headers=properties.headers or None,
        delivery_mode=2 if properties.is_persistent else 1,
        correlation_id=properties.correlation_id or None,
        reply_to=properties.reply_to or None,
        expiration=None if properties.expiration is None else str(properties.expiration),
        message_id=properties.message_id,
        timestamp=properties.timestamp or None,
        type=properties.type or None,
        app_id=properties.app_id or None,
    )


def check_size(properties: BasicProperties) -> None:
    """Raise PublishFailed for headers that are larger than a frame.

    AMQP 0-9-1 (section 2.3.5.2) has no way to split them, and RabbitMQ closes the connection.
    """
    headers = properties.headers or {}
    size = 0
    for value in headers.values():
        size += len(value) if isinstance(value, str) else 16
        if isinstance(value, dict | list | bytes):  # rare, and of any depth
            size += MAX_PROPERTIES
    if size > MAX_PROPERTIES // 4:  # a character has up to four bytes
        size = sum(map(len, properties.encode()))
    if size > MAX_PROPERTIES:
        raise exceptions.PublishFailed(
            f"the headers have {size} bytes, more than the {MAX_PROPERTIES} that fit into a frame"
        )
