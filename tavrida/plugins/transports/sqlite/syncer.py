# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The syncer: a thread that does what the event loop should not wait for, since disks are slow.

It brings what was committed to the disk, for many messages at once. SQLite itself could do it with
every commit (``synchronous = FULL``), but then inside of the lock that keeps other writers out.
Here a commit takes microseconds; one fdatasync of the write-ahead log then covers all that was
committed before it, by whichever process, and confirms wait for no other. (One sync is left to the
event loop: SQLite's own, of the header, with each new log.)

A sync that fails once must not be tried again: the kernel has forgotten what it could not write,
and says yes the next time. No confirm is given then until all of the log is in the database itself.

And it takes the log over into the database when it has grown (a checkpoint). SQLite's own way waits
for a moment without writers, which may never come: with 16 busy processes the log had 460 MB after
200,000 messages. A FULL checkpoint keeps writers out for some milliseconds; it is not tried again
soon where somebody reads the old log for longer, such as a backup.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tavrida.plugins.transports.sqlite import process

Synced = Callable[[OSError | None], None]

#: Bytes of the log from which on it is taken over into the database.
MAX_LOG = 8_000_000

#: Seconds that a checkpoint waits for others, who wait for it meanwhile.
CHECKPOINT_TIMEOUT = 0.02

#: The same, where messages wait for nothing else.
REPAIR_TIMEOUT = 2.0

#: Seconds from a checkpoint that did not get through to the next one.
CHECKPOINT_PAUSE = 2.0


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
        self._may_be_gone = False
        self._file: int | None = None
        self._next_checkpoint = 0.0
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
            self._shrink()

    def _sync(self, waiting: list[Synced]) -> None:
        error = None
        with self.lock:
            try:
                self._bring_to_disk()
            except OSError as reason:
                error = reason
        for synced in waiting:
            synced(error)

    def _bring_to_disk(self) -> None:
        if self._path in process.distrusted:
            if not checkpoint(self._path, "TRUNCATE", REPAIR_TIMEOUT):
                raise OSError(errno.EIO, "an earlier write failed, and is not made up for yet")
            process.distrusted.discard(self._path)
            return
        try:
            sync(self._opened())
        except FileNotFoundError:
            # Taken over and deleted when this process let go of it for a fork; else an accident.
            if not self._may_be_gone:
                process.distrusted.add(self._path)
                raise
        except OSError:
            process.distrusted.add(self._path)
            raise
        else:
            self._may_be_gone = False

    def _opened(self) -> int:
        """Return the log's descriptor; kept open, it hears of every write that fails from then on.

        Opened anew, it would not hear of those that another process was told of.
        """
        there = Path(self._log).stat()
        if self._file is not None:
            ours = os.fstat(self._file)
            if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
                return self._file
            self.abandon()
        self._file = os.open(self._log, os.O_RDWR)
        return self._file

    def abandon(self) -> None:
        """Close the descriptor, which a forked child has inherited."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def _shrink(self) -> None:
        if size_of(self._log) <= MAX_LOG or time.monotonic() < self._next_checkpoint:
            return
        with self.lock:
            # The first keeps nobody out, and leaves little for the second.
            checkpoint(self._path, "PASSIVE", 0)
            if not checkpoint(self._path, "FULL", CHECKPOINT_TIMEOUT):
                self._next_checkpoint = time.monotonic() + CHECKPOINT_PAUSE

    def expect_no_log(self) -> None:
        """Take it that SQLite may have deleted the log: the database was closed meanwhile."""
        self._may_be_gone = True

    def close(self) -> None:
        """Finish what is waited for, then end the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()
        self.abandon()


def size_of(path: str) -> int:
    """Return the size of a file in bytes; 0 where there is none."""
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0


def checkpoint(path: str, mode: str, timeout: float) -> bool:
    """Take the log over into the database, and to the disk; tell whether all of it is there.

    Somebody else may be at it, or a reader may need the old log.
    """
    try:
        with contextlib.closing(
            sqlite3.connect(path, timeout=timeout, isolation_level=None)
        ) as connection:
            is_busy, in_log, taken = connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
    except sqlite3.Error:
        return False
    return not is_busy and bool(in_log == taken)


def sync(file: int) -> None:
    """Return when the content of a file is on the disk; raises OSError when it cannot get there."""
    os.fdatasync(file)
