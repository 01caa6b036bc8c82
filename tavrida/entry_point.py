# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""EntryPoint: the name "service.method" that addresses a handler, also the routing key."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field

from tavrida import exceptions

_NAME = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)

#: AMQP's short strings, routing keys among them, hold 255 bytes.
MAX_LENGTH = 255


@dataclass(frozen=True, slots=True, order=True)
class EntryPoint:
    """A service and one of its methods; without a method it names the service only.

    Names are ASCII letters, digits, ``_`` and ``-``; "." , "*" and "#" have a meaning in topic
    routing keys (AMQP 0-9-1, section 3.1.3.3).
    """

    service: str
    method: str = ""
    #: "service.method", or "service", as messages carry it.
    text: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in (self.service,) if self.method == "" else (self.service, self.method):
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise exceptions.WrongEntryPoint(
                    f"{name!r} is no name of a service or method: "
                    "use letters, digits, '_' and '-' as in 'test_hello.hello'"
                )
        text = f"{self.service}.{self.method}" if self.method else self.service
        if len(text) > MAX_LENGTH:
            raise exceptions.WrongEntryPoint(
                f"{text[:40]!r}... is longer than {MAX_LENGTH} characters"
            )
        object.__setattr__(self, "text", text)

    def __str__(self) -> str:
        return self.text

    @classmethod
    def of(cls, service: str, method: str) -> EntryPoint:
        """Return the entry point of these names, the same for the same ones as a rule.

        Raises:
            WrongEntryPoint: one is no name.
        """
        if isinstance(service, str) and isinstance(method, str):
            return _of(service, method)
        return cls(service, method)

    @classmethod
    def parse(cls, text: str | EntryPoint) -> EntryPoint:
        """Return the entry point that "service.method" names.

        Raises:
            WrongEntryPoint: the text is anything else.
        """
        if isinstance(text, EntryPoint):
            return text
        point = _parse_text(text)
        if not point.method:
            raise exceptions.WrongEntryPoint(
                f"{text!r} names no method: write it as 'service.method'"
            )
        return point

    @classmethod
    def parse_source(cls, text: str | EntryPoint) -> EntryPoint:
        """Return the entry point of "service.method" or, for mere clients, of "name"."""
        return text if isinstance(text, EntryPoint) else _parse_text(text)


def _parse_text(text: object) -> EntryPoint:
    if not isinstance(text, str):  # also what cannot be hashed
        raise exceptions.WrongEntryPoint(
            f"{text!r} is no entry point: write it as 'service.method'"
        )
    return _parse(text)


# A process sees the same few names again and again; the bound keeps made-up ones from piling up.
@functools.lru_cache(maxsize=4096)
def _of(service: str, method: str) -> EntryPoint:
    return EntryPoint(service, method)


@functools.lru_cache(maxsize=4096)
def _parse(text: str) -> EntryPoint:
    if text.count(".") > 1 or text.endswith("."):
        raise exceptions.WrongEntryPoint(
            f"{text!r} is no entry point: write it as 'service.method'"
        )
    return EntryPoint(*text.split("."))
