# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Python programs as real processes: started, read line by line with a deadline, ended."""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from tests.waiting import DEADLINE


class Program:
    """A running Python program; as a context manager it is killed on exit if it still runs."""

    def __init__(
        self, arguments: Sequence[str | Path], *, environment: dict[str, str] | None = None
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-u", *arguments],
            env=os.environ | (environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._begin_reading()

    def _begin_reading(self) -> None:
        self.output: list[str] = []
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def line(self, containing: str) -> str:
        """Return the next line with that text; fail when none comes in time."""
        while True:
            try:
                line = self._lines.get(timeout=DEADLINE)
            except queue.Empty:
                line = None
            if line is None:
                raise AssertionError(f"no {containing!r} in:\n" + "\n".join(self.output))
            self.output.append(line)
            if containing in line:
                return line

    def rest(self) -> list[str]:
        """Return all lines of a program that has ended, or does so in time."""
        self.process.wait(DEADLINE)
        self._reader.join(DEADLINE)
        while (line := self._lines.get(timeout=DEADLINE)) is not None:
            self.output.append(line)
        return self.output

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(DEADLINE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


class TerminalProgram(Program):
    """A program on a terminal of its own, where keys can be pressed."""

    def __init__(
        self, arguments: Sequence[str | Path], *, environment: dict[str, str] | None = None
    ) -> None:
        self._keyboard, screen = os.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-u", *arguments],
            env=os.environ | (environment or {}),
            stdin=screen,
            stdout=screen,
            stderr=screen,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - no threads
        )
        os.close(screen)
        self._begin_reading()

    def _read(self) -> None:
        # At the end, a terminal gives an error and not an empty line.
        with contextlib.suppress(OSError), open(self._keyboard, closefd=False) as output:
            for line in output:
                self._lines.put(line.rstrip("\r\n"))
        self._lines.put(None)

    def press(self, keys: bytes) -> None:
        r"""Press keys; \x03 is Ctrl-C, which goes to all processes of the terminal."""
        os.write(self._keyboard, keys)

    def __exit__(self, *exc_info: object) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        os.close(self._keyboard)


def children_of(pid: int) -> dict[int, str]:
    """Return the state of each child of a process, by its id; Z is that of a zombie."""
    found = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name before it may have anything in it, spaces and brackets too.
            state, parent = status.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == pid:
            found[int(status.parent.name)] = state
    return found


def is_alive(pid: int) -> bool:
    """Tell whether there is such a process, zombies left out."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
