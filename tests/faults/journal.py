# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Journals: what each process of the laboratory did, on files that outlive kill -9."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

#: Words of a journal. The publisher's, after each confirm; or the error that it got instead.
CONFIRMED, REFUSED = "confirmed", "refused"
#: The detail of a confirmed notification, which need not have a subscriber.
NOTIFICATION = "notification"
#: The caller's: before and after each call.
CALLED, ANSWERED, FAILED = "called", "answered", "failed"
#: The handler's: as the last thing that it does, and when it begins.
HANDLED, BEGAN = "handled", "began"
#: The laboratory's, of what it finds in the dead-letter queue.
DEAD = "dead"
#: Anything that must not happen.
UNEXPECTED = "unexpected"


@dataclass(frozen=True, slots=True)
class Record:
    """A line of a journal. ``at`` is in seconds of the clock that all processes share."""

    word: str
    key: str
    at: float
    pid: int
    detail: str

    @classmethod
    def parse(cls, line: str) -> Self:
        word, key, at, pid, detail = line.split(" ", 4)
        return cls(word, key, float(at), int(pid), detail)

    @property
    def sent_at(self) -> float:
        """When its message was sent first."""
        return float(self.key.rpartition("@")[2])


def new_key() -> str:
    """Return the key of a new message; it tells when it was sent."""
    return f"{secrets.token_hex(6)}@{time.monotonic():.6f}"


class Journal:
    """A file in the folder; each line is with the kernel when ``write`` returns. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        path = folder / f"{os.getpid()}.journal"
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, word: str, key: str, detail: object = "") -> None:
        """Add a line."""
        text = str(detail).replace("\n", " ")
        line = f"{word} {key} {time.monotonic():.6f} {os.getpid()} {text}\n"
        os.write(self._file, line.encode())


class Reader:
    """Reads what all processes write into a folder, whole lines only."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._offsets: dict[Path, int] = {}

    def new(self) -> Iterator[Record]:
        """Give what was added since the last time."""
        for path in self._folder.glob("*.journal"):
            with path.open("rb") as file:
                offset = self._offsets.get(path, 0)
                file.seek(offset)
                data = file.read()
            data = data[: data.rfind(b"\n") + 1]
            self._offsets[path] = offset + len(data)
            for line in data.decode().splitlines():
                yield Record.parse(line)


def end_with_the_laboratory() -> None:
    """End this process when its standard input is closed. Runs in a thread."""
    os.read(0, 1)  # not sys.stdin, whose lock Python wants back when it ends
    os._exit(3)
