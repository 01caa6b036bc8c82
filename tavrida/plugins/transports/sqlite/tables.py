# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Headers, as AMQP's field tables hold them: what RabbitMQ would refuse is refused here too."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec

from tavrida.entry_point import MAX_LENGTH

_INT64 = 2**63
_DECIMAL = 1


def writable(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return headers with every value as it is kept.

    Raises:
        ValueError: a field table of AMQP 0-9-1 (section 4.2.5) as pika writes it has no place for
            a name or value; names it.
    """
    return {_name(name): _value(name, value) for name, value in table.items()}


def _name(name: object) -> str:
    if not isinstance(name, str) or len(name.encode()) > MAX_LENGTH:
        raise ValueError(f"header {name!r:.40} is no text of at most {MAX_LENGTH} bytes")
    return name


def _value(name: str, value: Any) -> Any:
    if isinstance(value, str):
        value.encode()  # a lone surrogate has no bytes
        return value
    if value is None or isinstance(value, bool | bytes):
        return value
    if isinstance(value, int) and -_INT64 <= value < _INT64:
        return value
    if isinstance(value, Decimal):
        return msgspec.msgpack.Ext(_DECIMAL, str(value).encode())
    if isinstance(value, datetime):
        # Whole seconds, and UTC where it does not say, as pika writes them.
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).replace(microsecond=0)
    if isinstance(value, dict):
        return writable(value)
    if isinstance(value, list):
        return [_value(name, each) for each in value]
    raise ValueError(f"header {name!r:.40} cannot be {value!r:.40}")


def read_extension(code: int, data: memoryview) -> Any:
    """Return a value that msgpack has no type for; the decoder's ``ext_hook``."""
    if code == _DECIMAL:
        return Decimal(bytes(data).decode())
    raise NotImplementedError(f"no value is kept as extension {code}")
