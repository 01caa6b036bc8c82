# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Keys: by what two messages are known to be the same."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from tavrida import context, exceptions
from tavrida.dispatcher import is_reserved
from tavrida.messages import IncomingMessage

Function = TypeVar("Function", bound=Callable[..., Any])

#: The key where nobody says anything, and the one that is none.
MESSAGE_ID, OFF = "message_id", "off"

_MARK = "__tavrida_known_by__"


def known_by(key: str) -> Callable[[Function], Function]:
    """Mark a handler whose messages are the same where that key is.

    ``message_id``, ``payload.NAME`` (or ``payload.NAME.NAME``), ``headers.NAME``, or ``off`` for
    a handler that may see a message several times. It stands beside the handler's other
    decorators.

    Raises:
        ConfigError: the key is none of these.
    """
    path_of(key)

    def mark(function: Function) -> Function:
        setattr(function, _MARK, key)
        return function

    return mark


@functools.lru_cache(maxsize=256)
def path_of(key: str) -> tuple[str, ...]:
    """Return the steps to the value of a key: first the attribute of the message.

    Raises:
        ConfigError: it is no key.
    """
    if key == MESSAGE_ID:
        return ("message_id",)
    if key == OFF:
        return ()
    part, *names = key.split(".")
    if part == "payload" and names and all(names):
        return part, *names
    if part == "headers" and names and all(names):
        return "extra_headers", ".".join(names)
    raise exceptions.ConfigError(
        f"{key!r} is no key by which a message can be known: use {MESSAGE_ID}, payload.NAME, "
        f"headers.NAME or {OFF}"
    )


def digest_of(message: IncomingMessage, default: str = MESSAGE_ID) -> bytes | None:
    """Return 16 bytes that stand for the message and for who handles it.

    The key is what ``known_by`` says of the handler, else the default; where the message has no
    such value, it is ``message_id``. None for a message without one, and where the key is off.
    """
    handled = context.handled.get()
    handler = handled.handler if handled else None
    place = ""
    key = default
    if handler is not None:
        if is_reserved(handler.mark.entry_point.method):
            return None
        # Two services hear of one event, each with a handler of its own.
        place = f"{handler.service} {handler.mark.kind} {handler.mark.entry_point}"
        key = getattr(handler.function, _MARK, default)
    if key == OFF:
        return None
    value = _value_of(message, path_of(key))
    if value is None:
        key, value = MESSAGE_ID, message.message_id
    if value == "":
        return None
    try:
        data = msgspec.msgpack.encode((place, key, value))
    except (TypeError, ValueError, OverflowError, RecursionError):
        data = repr((place, key, value)).encode()  # an integer of more than 64 bits
    return hashlib.blake2b(data, digest_size=16).digest()


def _value_of(message: IncomingMessage, path: tuple[str, ...]) -> Any:
    value = getattr(message, path[0])
    for name in path[1:]:
        value = value.get(name) if isinstance(value, dict) else None
    return value
