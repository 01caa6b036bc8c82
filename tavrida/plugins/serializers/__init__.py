# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Serializers: how bodies are written and read. Plugins of the namespace tavrida.serializers."""

from __future__ import annotations

import abc
from collections.abc import Iterable
from typing import Any, ClassVar

from tavrida import exceptions, plugins


class Serializer(abc.ABC):
    """Base of all serializers; one object serves all threads."""

    #: What the ``content_type`` of a message says, such as "application/json".
    content_type: ClassVar[str]

    @abc.abstractmethod
    def encode(self, data: Any) -> bytes:
        """Return the bytes of the data, or raise TypeError or ValueError."""

    @abc.abstractmethod
    def decode(self, body: bytes) -> Any:
        """Return the data of the bytes, or raise ValueError."""


class Serializers:
    """The serializer that writes, and those that read, by content type.

    Raises:
        PluginError: a name is no usable serializer plugin.
        ConfigError: two of them have the same content type.
    """

    def __init__(self, writes: str, reads: Iterable[str]) -> None:
        self.default = load(writes)
        self.by_content_type = {self.default.content_type: self.default}
        seen = {writes}
        for name in reads:
            if name in seen:
                continue
            seen.add(name)
            serializer = load(name)
            other = self.by_content_type.setdefault(serializer.content_type, serializer)
            if other is not serializer:
                raise exceptions.ConfigError(
                    f"serializers {type(other).__name__} and {type(serializer).__name__} both "
                    f"read {serializer.content_type!r}: accept one of them"
                )


def load(name: str) -> Serializer:
    """Return the serializer of that name, or raise PluginError."""
    return plugins.make(plugins.SERIALIZERS, name, Serializer)  # type: ignore[type-abstract]
