# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The syncer: a thread that does what the event loop shall not wait for, since disks are slow.

It brings what was committed to the disk, for many messages at once. SQLite itself could do it with
every commit (``synchronous = FULL``), but then inside of the lock that keeps other writers out.
Here a commit takes microseconds; one fdatasync of the write-ahead log then covers all that was
committed before it, by whichever process, and confirms wait for no other.

And it takes the log over into the database when it has grown (a checkpoint). SQLite's own way waits
for a moment without writers, which may never come: with 16 busy processes the log had 460 MB after
200,000 messages. A FULL checkpoint keeps writers out for some milliseconds instead.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

Synced = Callable[[OSError | None], None]

#: Bytes of the log from which on it is taken over into the database.
MAX_LOG = 8_000_000

#: Seconds that a checkpoint waits for others before it leaves it to the next one.
CHECKPOINT_TIMEOUT = 0.5


class Syncer:
    """Looks after one write-ahead log. Thread-safe."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._log = f"{path}-wal"
        #: Held while syncing, so that nobody forks meanwhile.
        self.lock = threading.Lock()
        self._changed = threading.Condition()
        self._waiting: list[Synced] = []
        self._is_large = False
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="tavrida-syncer", daemon=True)
        self._thread.start()

    def add(self, synced: Synced) -> None:
        """Call back, in the syncer's thread, when all that is committed now is on the disk."""
        with self._changed:
            self._waiting.append(synced)
            self._changed.notify()

    def look(self) -> None:
        """See to it that the log does not grow for ever; costs the caller next to nothing."""
        if size_of(self._log) > MAX_LOG:
            with self._changed:
                self._is_large = True
                self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._is_large):
                    if self._is_closed:
                        return
                    self._changed.wait()
                waiting, self._waiting = self._waiting, []
                self._is_large = False
            if waiting:
                self._sync(waiting)
            if size_of(self._log) > MAX_LOG:
                with self.lock:
                    checkpoint(self._path)

    def _sync(self, waiting: list[Synced]) -> None:
        error = None
        with self.lock:
            try:
                sync(self._log)
            except OSError as reason:
                error = reason
        for synced in waiting:
            synced(error)

    def close(self) -> None:
        """Finish what is waited for, then end the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()


def size_of(path: str) -> int:
    """Return the size of a file in bytes; 0 where there is none."""
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0


def checkpoint(path: str) -> None:
    """Take all of the log over into the database, so that the next commit begins a new one.

    Somebody else may be at it, or a reader may need the old log: then the next one does it.
    """
    with (
        contextlib.suppress(sqlite3.Error),
        contextlib.closing(
            sqlite3.connect(path, timeout=CHECKPOINT_TIMEOUT, isolation_level=None)
        ) as connection,
    ):
        connection.execute("PRAGMA wal_checkpoint(FULL)").fetchone()


def sync(path: str) -> None:
    """Return when the content of a file is on the disk; raises OSError when it could not get there.

    A file that is gone is no failure: SQLite deletes the log when all of it is in the database,
    and on the disk there.
    """
    try:
        file = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return
    try:
        os.fdatasync(file)
    finally:
        os.close(file)
