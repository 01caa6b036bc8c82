# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""A store of ``dedup`` in an SQLite file, for all processes of one machine."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import sqlite3
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tavrida import exceptions, state
from tavrida.plugins.middleware.stores import Done, Known, Running, Store

#: Seconds to wait for the lock of another process. One holds it for some 20 microseconds.
BUSY_TIMEOUT = 5.0

#: How many records are written between two prunings, and how many expired ones each removes.
PRUNE_EVERY, PRUNE_AT_ONCE = 256, 1024

# ``owner`` is 0 in what was finished; else a number of the process that handles it.
_TABLES = (
    """CREATE TABLE IF NOT EXISTS records (
        key BLOB PRIMARY KEY, owner INTEGER NOT NULL, until REAL NOT NULL, answer BLOB NOT NULL
    ) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS records_until ON records (until)",
)

_CLAIM = "INSERT INTO records VALUES (?, ?, ?, x'') ON CONFLICT DO NOTHING"
_TAKE_OVER = "UPDATE records SET owner = ?, until = ? WHERE key = ? AND owner = ? AND until = ?"
_FINISH = "INSERT OR REPLACE INTO records VALUES (?, 0, ?, ?)"
_RELEASE = "DELETE FROM records WHERE key = ? AND owner = ?"
# Not what is being handled, for however long that may be.
_PRUNE = """DELETE FROM records WHERE key IN
    (SELECT key FROM records WHERE owner = 0 AND until < ? LIMIT ?)"""

# struct flock: type, whence, start, length, process.
_FLOCK = "hhqqi4x"


class SQLiteStore(Store):
    """Remembers in a file; ``place`` is its path, by default in the user's state folder.

    A process that is gone holds no claim: what it was handling can be handled at once. After a
    power failure the last records may be missing.

    Raises:
        ConfigError: the file has no folder to be in.
    """

    def __init__(self, place: str = "", keep: float = 86_400.0, lease: float = 3600.0) -> None:
        super().__init__(place or str(_default()), keep, lease)
        if place and not Path(place).parent.is_dir():
            raise exceptions.ConfigError(
                f"there is no folder {Path(place).parent} for the database {place}: make it, or "
                "change place"
            )
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._process = 0
        self._writes = 0
        # Claims of this process that it could not remove.
        self._given_up: set[bytes] = set()

    def claim(self, key: bytes) -> Known:
        with self._using() as connection:
            while True:
                now = time.time()
                until = now + self.lease
                if connection.execute(_CLAIM, (key, self._owner, until)).rowcount:
                    return None
                found = connection.execute(
                    "SELECT owner, until, answer FROM records WHERE key = ?", (key,)
                ).fetchone()
                if found is None:  # released just now
                    continue
                owner, old_until, answer = found
                if owner and self._is_held(owner, key):
                    return Running()  # for however long: its process is there
                if old_until > now and not owner:
                    return Done(answer)
                values = (self._owner, until, key, owner, old_until)
                if connection.execute(_TAKE_OVER, values).rowcount:
                    self._given_up.discard(key)
                    return None

    def finish(self, key: bytes, answer: bytes) -> None:
        with self._using() as connection:
            now = time.time()
            connection.execute(_FINISH, (key, now + self.keep, answer))
            self._writes += 1
            if self._writes % PRUNE_EVERY == 0:
                connection.execute(_PRUNE, (now, PRUNE_AT_ONCE))

    def release(self, key: bytes) -> None:
        with self._using() as connection:
            self._given_up.add(key)  # also where the database cannot be told
            connection.execute(_RELEASE, (key, self._owner))
            self._given_up.discard(key)

    def close(self) -> None:
        with self._lock:
            self._close()

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
            os.close(self._owners)

    @contextlib.contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                if self._process != os.getpid():
                    # After a fork the parent's connection is left alone, and the child is not
                    # the one that holds the parent's claims.
                    self._connection = None
                if self._connection is None:
                    self._open()
                assert self._connection is not None
                yield self._connection
            except (sqlite3.Error, OSError) as error:
                raise exceptions.StoreFailed(
                    f"dedup cannot use its database {self.place}: {error}. Make room on its disk "
                    "or change its permissions; place in [middleware:dedup] names another one"
                ) from error

    def _open(self) -> None:
        path = Path(self.place)
        if path == _default():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        connection = sqlite3.connect(
            path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            for statement in _TABLES:
                connection.execute(statement)
            self._owner = secrets.randbits(48) + 1
            self._owners = os.open(f"{path}-owners", os.O_RDWR | os.O_CREAT, 0o666)
            # The kernel lets go of the lock when this process ends, however it does.
            fcntl.fcntl(self._owners, fcntl.F_OFD_SETLK, _lock_of(self._owner))
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self._process = os.getpid()

    def _is_held(self, owner: int, key: bytes) -> bool:
        """Tell whether a claim's process still runs: it holds the lock of its byte."""
        if owner == self._owner:
            return key not in self._given_up
        answer = fcntl.fcntl(self._owners, fcntl.F_OFD_GETLK, _lock_of(owner))
        return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)


def _default() -> Path:
    try:
        return state.folder() / "dedup.db"
    except exceptions.ConfigError:
        raise exceptions.ConfigError(
            "place is not set, and this user has no home folder for the default: set place"
        ) from None


def _lock_of(owner: int) -> bytes:
    return struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, owner, 1, 0)
