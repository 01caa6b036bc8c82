# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Databases: opens the file of a bus, or says in one sentence why it cannot be one."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tavrida import exceptions
from tavrida.plugins.transports.sqlite import bus
from tavrida.plugins.transports.sqlite.place import Place

#: File systems that cannot share memory between machines, which SQLite's WAL needs.
NETWORK_FILE_SYSTEMS = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "9p", "davfs", "fuse.davfs2"),
        *("ceph", "glusterfs", "lustre", "gpfs", "beegfs", "pvfs2", "ocfs2", "gfs2"),
        *("fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.s3fs", "fuse.rclone"),
    }
)

#: What the operating system says where this user may make no file.
_MAY_NOT = (errno.EACCES, errno.EPERM, errno.ENOENT)

#: How often, and with which pauses in seconds, to try for a lock before the event loop goes on.
_TRIES, _PAUSE = 15, 0.0002


class Busy(Exception):
    """Raised when another process holds the database at the moment."""


class Database:
    """The connection to one database. Whoever uses it holds ``lock`` meanwhile."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._inode: tuple[int, int] | None = None

    def open(self) -> None:
        """Open the file, and make the tables where there are none.

        Raises:
            ConnectionFailed: it cannot be used; says why and what to do.
            Busy: another process holds it for itself.
        """
        path = self.place.path
        with self.lock, _explained(self.place):
            if path:
                _check_path(Path(path))
            self._connection = _connect(self.place)
            self._inode = _inode(path)

    @property
    def connection(self) -> sqlite3.Connection:
        """The open connection."""
        if self._connection is None:  # closed for a fork
            self.open()
        assert self._connection is not None
        return self._connection

    @property
    def is_in_place(self) -> bool:
        """False when the file was removed, or another one stands at its path."""
        return not self.place.path or self._inode == _inode(self.place.path)

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Let a block read what is committed."""
        with self.lock:
            yield self.connection

    @contextlib.contextmanager
    def writing(self, *, may_wait: bool) -> Iterator[sqlite3.Connection]:
        """Run a block as one transaction; others may be waited for, some milliseconds at most.

        Raises:
            Busy: another process is writing; nothing was done.
            sqlite3.Error: the block or the commit failed; nothing was done.
        """
        with self.lock:
            connection = self.connection
            _begin(connection, _TRIES if may_wait else 1)
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close the connection; the next use opens it again."""
        with self.lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                with contextlib.suppress(sqlite3.Error):
                    # The last one takes the log over: with care, for those who asked for it.
                    connection.execute("PRAGMA synchronous = NORMAL")
                with contextlib.suppress(sqlite3.Error):
                    connection.close()


def _begin(connection: sqlite3.Connection, tries: int) -> None:
    for number in range(tries):
        if number:
            time.sleep(_PAUSE)  # others hold it for about that long
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if not is_busy(error):
                raise
        else:
            return
    raise Busy


def is_busy(error: sqlite3.Error) -> bool:
    """Tell whether another process's lock is all that is wrong."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
    )


def _connect(place: Place) -> sqlite3.Connection:
    if place.path:
        # SQLite itself would not let the group write, whatever the umask says.
        os.close(os.open(place.path, os.O_RDWR | os.O_CREAT, 0o666))
    connection = sqlite3.connect(
        place.path or ":memory:", timeout=0, isolation_level=None, check_same_thread=False
    )
    try:
        if place.path:
            _check_content(connection, place)
            connection.execute("PRAGMA journal_mode = WAL")
            # The syncer sees to the rest, outside of the lock: see store.py.
            level = "OFF" if place.synchronous == "off" else "NORMAL"
            connection.execute(f"PRAGMA synchronous = {level}")
            connection.execute("PRAGMA wal_autocheckpoint = 0")
            # Debian builds SQLite so that it overwrites what is deleted, for half of the speed.
            connection.execute("PRAGMA secure_delete = OFF")
            connection.execute("PRAGMA journal_size_limit = 0")
        _make_tables(connection)
        if place.path:
            _sync(Path(place.path).parent)
    except BaseException:
        connection.close()
        raise
    return connection


def _check_content(connection: sqlite3.Connection, place: Place) -> None:
    """Refuse the file of another program or of another version before anything is changed."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (schema,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables and application != bus.APPLICATION:
        raise _final(
            f"{place} is a database of another program, not a bus of tavrida: give the url of a "
            "file that does not exist yet"
        )
    if tables and schema != bus.SCHEMA:
        raise _final(
            f"{place} has tables of version {schema}, and this tavrida works with version "
            f"{bus.SCHEMA}: use the tavrida that made it, or another file"
        )


def _make_tables(connection: sqlite3.Connection) -> None:
    if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        return
    _begin(connection, _TRIES)
    try:
        # Another process may have made them while we waited.
        if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            for statement in _statements(bus.TABLES):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {bus.APPLICATION}")
            connection.execute(f"PRAGMA user_version = {bus.SCHEMA}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _statements(script: str) -> Iterator[str]:
    """Split a script; sqlite3's own executescript would commit first."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _check_path(path: Path) -> None:
    folder = path.parent
    if not folder.is_dir():
        raise _final(f"there is no folder {folder} for the database: make it, or change the url")
    mounts = os.fsdecode(Path("/proc/self/mountinfo").read_bytes())
    if path.exists():
        if not path.is_file():
            raise _final(f"{path} is no file: change the url")
        if path.stat().st_nlink > 1 or any(str(path) == root for root, _ in _mounted(mounts)):
            raise _final(
                f"{path} has a second path (a hard link, or a mount of the file alone), where "
                "others would use it without meeting us: link or mount its folder instead"
            )
    kind = file_system_of(folder, mounts)
    if kind in NETWORK_FILE_SYSTEMS:
        raise _final(
            f"{folder} is on a network file system ({kind}), where SQLite cannot keep several "
            "processes apart: use a folder on a disk of this machine, or RabbitMQ"
        )


def file_system_of(folder: Path, mounts: str) -> str:
    """Return the type of the file system of a folder; ``mounts`` is as in /proc/self/mountinfo."""
    best, kind = "", ""
    place = str(folder.resolve())
    for root, mounted in _mounted(mounts):
        inside = place == root or place.startswith(root.rstrip("/") + "/")
        if inside and len(root) >= len(best):  # the later of two at one place covers the other
            best, kind = root, mounted
    return kind


def _mounted(mounts: str) -> Iterator[tuple[str, str]]:
    """Yield where something is mounted, and the type of its file system."""
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        # Octal escapes stand for blanks, tabs, line ends and backslashes.
        root = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), left.split(" ")[4])
        yield root, right.split(" ")[0]


def _sync(folder: Path) -> None:
    """Bring the names of new files to the disk; their content is the syncer's."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _inode(path: str) -> tuple[int, int] | None:
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


@contextlib.contextmanager
def _explained(place: Place) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        if is_busy(error):
            raise Busy from error
        raise explain(error, place) from error
    except OSError as error:
        raise explain(error, place) from error


def explain(error: Exception, place: Place) -> exceptions.ConnectionFailed:
    """Return one sentence for what SQLite or the operating system says of the file."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    number = getattr(error, "errno", 0)
    if code == sqlite3.SQLITE_NOTADB:
        return _final(f"{place} is no SQLite database: give the url of another file")
    if code == sqlite3.SQLITE_CORRUPT:
        return _final(
            f"{place} is damaged ({error}): stop all that use it, move it away, and try what "
            "'sqlite3 FILE .recover' saves"
        )
    if code == sqlite3.SQLITE_FULL or number in (errno.ENOSPC, errno.EDQUOT):
        return exceptions.ConnectionFailed(f"the disk of {place} is full: make room on it")
    if code == sqlite3.SQLITE_READONLY or number == errno.EROFS:
        return _final(
            f"{place} is read-only for this user or on this disk: change its permissions, or the "
            "url"
        )
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM) or number in _MAY_NOT:
        why = getattr(error, "strerror", None) or error  # which repeats the path
        return _final(
            f"{place} cannot be opened or made ({why}): this user has to be allowed to read and "
            "write it, and to write to its folder"
        )
    return exceptions.ConnectionFailed(f"{place} cannot be used: {error}")


def _final(text: str) -> exceptions.ConnectionFailed:
    return exceptions.ConnectionFailed(text, is_final=True)
