# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""What all benchmarks need: processes that are measured, a broker beside them, tables."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import queue
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.rabbitmq import Node, missing

ROOT = Path(__file__).parent.parent

#: Seconds that one step of a measured program may take.
DEADLINE = 60.0


class BenchError(Exception):
    """Raised when a measured program fails, or messages are missing."""


class Program:
    """A measured process, which speaks in lines that are JSON objects; others are not looked at.

    As a context manager it is ended on exit: by the end of its standard input, which it reads
    commands from, or by SIGTERM where ``is_told`` is False; after an error it is killed.
    """

    def __init__(self, name: str, command: Sequence[str | Path], *, is_told: bool = True) -> None:
        self._name = name
        self._is_told = is_told
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in __exit__
        #: When it was started.
        self.began = time.monotonic()
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            now = time.monotonic()
            if line.startswith("{"):
                self._answers.put({"came": now, **json.loads(line)})
        self._answers.put(None)

    @property
    def pid(self) -> int:
        return self._process.pid

    def answer(self, seconds: float = DEADLINE) -> Any:
        """Return the next answer; ``came`` of it is when it came."""
        try:
            answer = self._answers.get(timeout=seconds)
        except queue.Empty:
            raise BenchError(
                f"{self._name} did not answer within {seconds:.0f} s. {self._last_words()}"
            ) from None
        if answer is None:
            raise BenchError(f"{self._name} ended. {self._last_words()}")
        return answer

    def wait_for(self, kind: str) -> Any:
        """Return the next answer of this kind."""
        while True:
            answer = self.answer()
            if answer["kind"] == kind:
                return answer

    def tell(self, command: str) -> None:
        """Give a command; what it answers is not waited for."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()

    def ask(self, command: str) -> Any:
        """Give a command and return its answer."""
        self.tell(command)
        return self.answer()

    def _last_words(self) -> str:
        self._errors.seek(0)
        return self._errors.read().strip().split("\n")[-1]

    def _kill(self) -> None:
        for pid in reversed(tree_of(self.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let it end in good order; after an error, or when it does not, kill it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        if error is not None:
            self._kill()
        elif not self._is_told:
            self._process.terminate()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            # Some frameworks never end by SIGTERM.
            self._process.wait(DEADLINE if self._is_told else 5)
        except subprocess.TimeoutExpired:
            self._kill()
            self._process.wait()
        self._reader.join()
        self._process.stdout.close()
        self._errors.close()


def tree_of(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    found = [pid]
    for each in found:
        for children in Path(f"/proc/{each}/task").glob("*/children"):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                found += map(int, children.read_text().split())
    return found


def cpu_of(pid: int) -> float:
    """Return the CPU seconds of a process and its descendants, user and system."""
    seconds = 0.0
    for each in tree_of(pid):
        with contextlib.suppress(OSError):
            # The clock of another process, as clock_getcpuclockid(3) makes it on Linux.
            seconds += time.clock_gettime((~each << 3) | 2)
    return seconds


def rss_of(pid: int) -> float:
    """Return the resident memory of a process and its descendants in MB."""
    return sum(status_of(each, "VmRSS") for each in tree_of(pid)) / 1024


def status_of(pid: int | str, name: str) -> int:
    """Return a number that /proc tells of a process; ``PID/task/TID`` for one of its threads."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise BenchError(f"/proc/{pid}/status has no {name}")


# -- the broker ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Broker:
    """The broker that a benchmark talks to."""

    url: str
    #: None where it is somebody else's; its CPU is not measured then.
    node: Node | None = None

    @property
    def cpu(self) -> float | None:
        """The CPU seconds that it has used so far."""
        if self.node is None or self.node.pid is None:
            return None
        return cpu_of(self.node.pid)


@contextlib.contextmanager
def broker_at(url: str | None) -> Iterator[Broker]:
    """Give the broker of the url; without one, a private node that ends with the block."""
    reason = missing() if url is None else None
    if reason is not None:
        raise BenchError(f"{reason}; or name a broker with --url")
    # SIGTERM ends the block as Ctrl-C does, so that nothing is left behind.
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if url is not None:
            yield Broker(url)
            return
        say("starting a private RabbitMQ node (about 7 s)")
        with Node() as node:
            yield Broker(node.url(), node)
    finally:
        signal.signal(signal.SIGTERM, previous)


# -- the report ----------------------------------------------------------------------------------


def say(text: str) -> None:
    """Tell how far it is, beside the report."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def facts() -> dict[str, Any]:
    """Return on what is measured."""
    return {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cores": len(os.sched_getaffinity(0)),
    }


def told(about: dict[str, Any]) -> str:
    """Return facts as a line."""
    return ", ".join(f"{name} {value}" for name, value in about.items())


def spread(values: Iterable[float], digits: int) -> str:
    """Return the median, and least and most where there is more than one value."""
    values = sorted(values)
    text = f"{statistics.median(values):,.{digits}f}"
    if len(values) > 1:
        text += f" ({values[0]:,.{digits}f}-{values[-1]:,.{digits}f})"
    return text


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table that reads well as it stands, too: numbers to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return [line(head), line(rule), *map(line, rows)]


def write_json(path: Path | None, result: Any) -> None:
    """Write all figures, where that is asked for."""
    if path is not None:
        path.write_text(json.dumps(result, indent=1) + "\n")


# -- the command ---------------------------------------------------------------------------------


def parser_of(name: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks have which write data files."""
    prog = "./dev bench" if name == "comparison" else f"./dev bench {name}"
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("--quick", action="store_true", help="a tenth of everything, one round")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--show", type=Path, metavar="FILE", help="only show what was written")
    return parser


def add_amounts(parser: argparse.ArgumentParser) -> None:
    """Let it be said how much is measured; ``amounts_of`` returns it."""
    parser.add_argument("--rounds", type=int, help="default: 3, with --quick 1")
    parser.add_argument("--scale", type=float, help="how much of each; default: 1, or 0.1")


def names_of(parser: argparse.ArgumentParser, text: str, known: Collection[str]) -> list[str]:
    """Return the names of a list with commas; end with what there is where one is unknown."""
    names = text.split(",")
    for name in names:
        if name not in known:
            parser.error(f"there is no {name}; there is: {', '.join(known)}")
    return names


def amounts_of(chosen: argparse.Namespace) -> dict[str, Any]:
    """Return the rounds and the scale."""
    return {
        "rounds": chosen.rounds or (1 if chosen.quick else 3),
        "scale": chosen.scale or (0.1 if chosen.quick else 1.0),
    }


def finish(
    chosen: argparse.Namespace,
    measure: Callable[[], Any],
    report: Callable[[Any], list[str]],
    has_failed: Callable[[Any], bool] = lambda result: False,
) -> int:
    """Measure, or read what was measured; print and write it; return the exit code."""
    try:
        result = json.loads(chosen.show.read_text()) if chosen.show else measure()
    except BenchError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    print(*report(result), sep="\n")
    write_json(chosen.json, result)
    return 1 if has_failed(result) else 0
