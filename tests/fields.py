# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Properties of AMQP 0-9-1 in bytes: also those that no client library writes.

Section 4.2.5 of the specification, with the kinds of values as RabbitMQ has them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from pika import BasicProperties

#: The bit of each property, in the order in which they are written.
BITS = {
    "content_type": 15,
    "content_encoding": 14,
    "headers": 13,
    "delivery_mode": 12,
    "priority": 11,
    "correlation_id": 10,
    "reply_to": 9,
    "expiration": 8,
    "message_id": 7,
    "timestamp": 6,
    "type": 5,
    "app_id": 3,
    "cluster_id": 2,
}


def short(text: bytes) -> bytes:
    """A short string."""
    return struct.pack(">B", len(text)) + text


def long(content: bytes) -> bytes:
    """A long string; also what tables and lists look like from outside."""
    return struct.pack(">I", len(content)) + content


def table(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A field table of names and values, each value with its kind before it."""
    return long(b"".join(short(name) + value for name, value in fields))


class RawProperties(BasicProperties):
    """Properties whose values are bytes already; pika writes them as they are."""

    def __init__(self, **values: bytes) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._flags = sum(1 << BITS[name] for name in values)
        self._values = [values[name] for name in BITS if name in values]

    def encode(self) -> list[bytes]:
        return [struct.pack(">H", self._flags), *self._values]
