# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The folder in which the workers of one master add up their metrics, where nobody names one.

prometheus_client decides when it is imported whether it counts for one process or for several, by
an environment variable: so the folder has to be there before any plugin is loaded.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tavrida import exceptions
from tavrida.plugins.middleware.prometheus import ENVIRONMENT, UNNAMED

#: How the names of such folders begin.
PREFIX = "tavrida-metrics-"


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Have the processes that are forked in this block count together.

    Their folder goes with the block. Those that other masters of this user left behind when they
    were killed go at its beginning, if nothing of them runs any more.

    Raises:
        ConfigError: there is no place for it.
    """
    try:
        place = Path(tempfile.gettempdir())
        _sweep(place)
        folder, lock = _make(place)
    except OSError as error:
        raise exceptions.ConfigError(
            f"the workers cannot add up their metrics, for there is no temporary folder: {error}; "
            "set [middleware:prometheus] multiprocess_dir, or TMPDIR, to one that can be written"
        ) from None
    os.environ[ENVIRONMENT] = str(folder)
    try:
        yield
    finally:
        del os.environ[ENVIRONMENT]
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _make(place: Path) -> tuple[Path, int]:
    """Make a folder; the lock on it is held until its last process is gone, however it ends."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
        lock = _lock(folder)
        if lock is not None and folder.is_dir():  # else it was swept away before it was locked
            return folder, lock


def _lock(folder: Path) -> int | None:
    """Lock a folder of this user's; return None where somebody has locked it, or it is another's.

    Those who are forked inherit the lock, and programs that they start do not.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        if os.fstat(descriptor).st_uid != os.geteuid():
            raise PermissionError
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _sweep(place: Path) -> None:
    for folder in place.glob(f"{PREFIX}*"):
        lock = _lock(folder)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def forget(folder: Path, pid: int) -> None:
    """Take note that a process has ended: what it counted stays, and what it had in hand does not.

    This is what mark_process_dead() of prometheus_client does, without importing it in a process
    that counts nothing. The room that was set aside for the process is given back too.
    """
    for path in folder.glob(f"*_{pid}.*"):
        with contextlib.suppress(OSError, struct.error):
            # An empty one was just begun, and no page could be made with it.
            is_begun = path.suffix == UNNAMED or not path.stat().st_size
            if is_begun or path.name.startswith("gauge_live"):
                path.unlink()
            else:
                _shorten(path)


def _shorten(path: Path) -> None:
    """Cut a file of prometheus_client's off where its numbers end."""
    with path.open("r+b") as file:
        # A 4-byte integer says how much is in use, with those 4 and 4 more.
        (used,) = struct.unpack("i", file.read(4))
        if used < file.seek(0, os.SEEK_END):
            file.truncate(max(used, 8))
