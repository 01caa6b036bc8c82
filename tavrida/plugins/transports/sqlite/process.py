# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""What this process has open: its stores, and its buses in memory; and what a fork does to them.

The one place that has to know: transports of one event loop share a store, all loops share what
is in memory, and a fork copies everything.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from tavrida.loop import LoopThread
from tavrida.plugins.transports.sqlite.database import Database
from tavrida.plugins.transports.sqlite.doorbell import MemoryBell
from tavrida.plugins.transports.sqlite.place import Place


class OpenStore(Protocol):
    """What a fork needs of a store."""

    def hold(self) -> None:
        """Be idle from now on, and use no file."""

    def go_on(self) -> None:
        """Go on after ``hold``."""

    def abandon(self) -> None:
        """Close what a child inherited."""


@dataclass(slots=True)
class _Memory:
    database: Database
    bells: dict[str, MemoryBell] = field(default_factory=dict)


#: Every store is here from its opening to its closing.
stores: dict[tuple[Place, LoopThread], OpenStore] = {}

_memories: dict[str, _Memory] = {}

#: Held while something of this begins or ends, and during a fork.
changing = threading.RLock()

#: Databases whose log could not be brought to the disk: see syncer.py.
distrusted: set[str] = set()


def join(
    place: Place, loop: LoopThread, on_ring: Callable[[], None]
) -> tuple[Database, MemoryBell]:
    """Return the database of a bus in memory, made now if nobody has it open, and a bell there."""
    with changing:
        memory = _memories.get(place.memory)
        if memory is None:
            database = Database(place)
            database.open()
            memory = _memories[place.memory] = _Memory(database)
        return memory.database, MemoryBell(memory.bells, loop, on_ring)


def leave(place: Place, bell: MemoryBell) -> None:
    """Take a bell down; with the last one the bus and all that is in it is gone."""
    with changing:
        memory = _memories[place.memory]
        bell.close()
        if not memory.bells:
            del _memories[place.memory]
            memory.database.close()


_held: list[OpenStore] = []


def _before_fork() -> None:
    changing.acquire()
    _held.extend(stores.values())
    for store in _held:
        store.hold()


def _after_fork() -> None:
    try:
        for store in _held:
            store.go_on()
    finally:
        _held.clear()
        changing.release()


def _after_fork_in_child() -> None:
    for store in _held:
        with contextlib.suppress(OSError):
            store.abandon()
    stores.clear()
    _memories.clear()
    _after_fork()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork,
    after_in_child=_after_fork_in_child,
)
