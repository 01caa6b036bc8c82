# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Stores: where ``dedup`` remembers what was handled. Plugins of tavrida.dedup_stores."""

from __future__ import annotations

import abc
import math
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

from tavrida import exceptions


@dataclass(frozen=True, slots=True)
class Running:
    """Somebody handles a message of that key right now."""


@dataclass(frozen=True, slots=True)
class Done:
    """A message of that key was handled, and this was kept of its answer."""

    answer: bytes


def check_seconds(name: str, value: float) -> float:
    """Return the value of a setting; raise ConfigError where it is below 0, or not finite."""
    if math.isfinite(value) and value >= 0:
        return value
    raise exceptions.ConfigError(
        f"{name} = {value} is no number of seconds: it has to be 0 or more, and finite"
    )


#: What is known of a key; None: nothing, and now it is claimed.
Known = Running | Done | None


class Store(abc.ABC):
    """Base of all stores; one object serves all threads.

    A key is claimed before its message is handled, and finished or released after. ``place`` says
    where the store is, in a way of its own: a path, a url. ``keep`` is how long, in seconds, a
    finished key is remembered; ``lease``, how long a claim holds whose process is never heard of
    again, where the store cannot know that it is gone.

    All methods raise StoreFailed, with one sentence that names the place and the remedy.

    Raises:
        ConfigError: the settings cannot work.
    """

    #: Whether the methods may wait for a disk or a network: not on an event loop then.
    may_block: ClassVar[bool] = True

    def __init__(self, place: str = "", keep: float = 86_400.0, lease: float = 3600.0) -> None:
        self.place = place
        self.keep = check_seconds("keep", keep)
        self.lease = check_seconds("lease", lease)

    @abc.abstractmethod
    def claim(self, key: bytes) -> Known:
        """Claim a key, in one step for all processes; or tell what is known of it."""

    @abc.abstractmethod
    def finish(self, key: bytes, answer: bytes) -> None:
        """Remember that the message of a claimed key was handled."""

    @abc.abstractmethod
    def release(self, key: bytes) -> None:
        """Give up a claim: the message was not handled."""

    def close(self) -> None:  # noqa: B027 - there may be nothing to close
        """Let go of files and connections. The next use opens them again."""


class MemoryStore(Store):
    """Remembers in this process, which forgets when it ends. It takes no ``place``.

    At most ``MAX_RECORDS`` keys and ``MAX_BYTES`` of answers; the oldest go first.
    """

    may_block = False
    MAX_RECORDS = 100_000
    MAX_BYTES = 64 * 1024 * 1024

    def __init__(self, place: str = "", keep: float = 86_400.0, lease: float = 3600.0) -> None:
        super().__init__(place, keep, lease)
        self._lock = threading.Lock()
        # By key: until when it holds. What was finished is in the order of its end.
        self._claims: dict[bytes, float] = {}
        self._finished: OrderedDict[bytes, tuple[float, bytes]] = OrderedDict()
        self._size = 0

    def claim(self, key: bytes) -> Known:
        now = time.monotonic()
        with self._lock:
            self._prune(now)
            if key in self._finished:
                return Done(self._finished[key][1])
            if self._claims.get(key, 0.0) > now:
                return Running()
            self._claims[key] = now + self.lease
            return None

    def finish(self, key: bytes, answer: bytes) -> None:
        now = time.monotonic()
        with self._lock:
            self._claims.pop(key, None)
            if key in self._finished:
                self._size -= len(self._finished.pop(key)[1])
            self._finished[key] = (now + self.keep, answer)
            self._size += len(answer)
            self._prune(now)

    def release(self, key: bytes) -> None:
        with self._lock:
            self._claims.pop(key, None)

    def _prune(self, now: float) -> None:
        finished = self._finished
        while finished:
            until, answer = next(iter(finished.values()))
            is_full = len(finished) > self.MAX_RECORDS or self._size > self.MAX_BYTES
            if until > now and not is_full:
                break
            finished.popitem(last=False)
            self._size -= len(answer)
