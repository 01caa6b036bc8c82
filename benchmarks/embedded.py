# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""How fast the embedded transport is, against the disk beneath it: ``./dev bench embedded``.

README.md in this folder says what each figure means.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import shutil
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks._measuring import (
    DEADLINE,
    BenchError,
    Program,
    cpu_of,
    facts,
    rss_of,
    spread,
    status_of,
    told,
    write_json,
)
from tavrida.config import redact

#: Seconds after its start in which a server becomes quiet, before it is measured as idle.
SETTLE = 1.0

#: Bytes of a frame in SQLite's WAL: a header and a page.
FRAME = 24 + 4096

#: Frames after which SQLite begins its WAL anew.
FRAMES = 1000

#: Messages that are sent before anything is measured.
WARM_UP = 20


@dataclass(frozen=True, slots=True)
class Size:
    """How much of each is measured in a round."""

    pipeline: int
    one: int
    paced: int
    call: int
    sync_seconds: float


FULL = Size(20_000, 1000, 500, 1000, 1.0)
QUICK = Size(1000, 50, 50, 50, 0.2)

#: The results of one round: by part, by figure.
Round = dict[str, dict[str, float]]


# -- the parts -----------------------------------------------------------------------------------


def program_of(role: str, url: str, queue: str) -> Program:
    """Start a program of _programs.py."""
    return Program(role, [sys.executable, "-m", "benchmarks._programs", role, url, queue])


def syncs_per_second(folder: Path, seconds: float) -> float:
    """Return how often a second the disk takes a frame for good, in a file as SQLite's WAL is.

    The file has its size already: SQLite, too, writes over its WAL again and again.
    """
    frame = os.urandom(FRAME)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        handle = file.fileno()
        for index in range(FRAMES):
            os.pwrite(handle, frame, index * FRAME)
        os.fsync(handle)
        count, began = 0, time.perf_counter()
        while (took := time.perf_counter() - began) < seconds:
            os.pwrite(handle, frame, count % FRAMES * FRAME)
            os.fdatasync(handle)
            count += 1
    return count / took


class Stage:
    """Producers and consumers that run, ready to be told what to send."""

    def __init__(self, consumers: Sequence[Program], producers: Sequence[Program]) -> None:
        self._consumers = consumers
        self.producers = producers

    def run(self, way: str, total: int) -> tuple[dict[str, float], list[float]]:
        """Send about so many messages; return the figures, and each message's latency."""
        share = total // len(self.producers)
        total = share * len(self.producers)
        before = sum(each.ask("seen")["cpu"] for each in self._consumers)
        for producer in self.producers:
            producer.tell(f"{way} {share}")
        sent = [producer.answer() for producer in self.producers]
        seen = self._until_handled(total)
        first = min(each["first"] for each in sent)
        cpu = sum(each["cpu"] for each in sent) + seen["cpu"] - before
        figures = {
            "confirmed": total / (max(each["confirmed"] for each in sent) - first),
            "handled": total / (seen["last"] - first),
            "cpu_ms": 1000 * cpu / total,
        }
        return figures, seen["latencies"]

    def _until_handled(self, total: int) -> dict[str, Any]:
        """Wait until all is handled; more than all means that an acknowledgement was lost."""
        handled, last, latencies = 0, 0.0, list[float]()
        end = time.monotonic() + DEADLINE
        while True:
            answers = [each.ask("seen") for each in self._consumers]
            handled += sum(each["handled"] for each in answers)
            last = max(last, *(each["last"] for each in answers))
            latencies += [latency for each in answers for latency in each["latencies"]]
            if handled == total:
                cpu = sum(each["cpu"] for each in answers)
                return {"last": last, "latencies": latencies, "cpu": cpu}
            if handled > total or time.monotonic() > end:
                raise BenchError(f"{handled} messages were handled, and {total} were sent")
            time.sleep(0.02)


class Bench:
    """All measurements on one url."""

    def __init__(self, url: str, folder: Path, size: Size) -> None:
        self._url = url
        self._folder = folder
        self._size = size
        # Names that no other run on the same broker has.
        self._queue = f"bench.{secrets.token_hex(4)}"

    @contextlib.contextmanager
    def _stage(
        self, pairs: int, consumer: str = "serve", producer: str = "produce", more: str = ""
    ) -> Iterator[Stage]:
        with ExitStack() as running:

            def start(role: str) -> list[Program]:
                programs = [
                    running.enter_context(program_of(role, self._url, self._queue + more))
                    for _ in range(pairs)
                ]
                for program in programs:
                    program.answer()
                return programs

            # Left in the other order, so that servers end last.
            yield Stage(start(consumer), start(producer))

    def round(self) -> Round:
        """Measure everything but idleness once."""
        size, figures = self._size, Round()
        if urlsplit(self._url).scheme == "sqlite":
            figures["disk"] = {"syncs": syncs_per_second(self._folder, size.sync_seconds)}
        with self._stage(1) as stage:
            stage.run("one", WARM_UP)
            figures["one at a time, 1 + 1"], _ = stage.run("one", size.one)
            figures["pipeline, 1 + 1"], _ = stage.run("pipeline", size.pipeline)
            _, latencies = stage.run("paced", size.paced)
            figures["publish to handler"] = percentiles(latencies)
            called = stage.producers[0].ask(f"call {size.call}")["result"]
            figures["call and answer"] = percentiles(called)
        with self._stage(4) as stage:
            stage.run("one", WARM_UP)
            figures["one at a time, 4 + 4"], _ = stage.run("one", size.one)
            figures["pipeline, 4 + 4"], _ = stage.run("pipeline", size.pipeline)
        with self._stage(1, "consume_raw", "publish_raw", ".raw") as stage:
            stage.run("pipeline", WARM_UP)
            figures["plain transport, 1 + 1"], _ = stage.run("pipeline", size.pipeline)
        if "disk" in figures:
            again = syncs_per_second(self._folder, size.sync_seconds)
            figures["disk"]["syncs"] = (figures["disk"]["syncs"] + again) / 2
        return figures

    def idle(self, seconds: float) -> Round:
        """Measure what servers cost that have nothing to do."""
        with ExitStack() as running:

            def start(role: str) -> int:
                program = running.enter_context(program_of(role, self._url, self._queue))
                program.answer()
                return program.pid

            servers = [start("serve")]
            one = idleness(servers, seconds)
            servers.append(start("serve"))
            all_three = idleness([*servers, start("produce")], seconds)
        return {"one server": one, "two servers and a client": all_three}


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Return the 50th and the 99th in milliseconds."""
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {"p50": 1000 * cuts[49], "p99": 1000 * cuts[98]}


def idleness(pids: Sequence[int], seconds: float) -> dict[str, float]:
    """Return what these processes use together while nothing happens."""
    time.sleep(SETTLE)
    cpu, wakeups = sum(map(cpu_of, pids)), sum(map(wakeups_of, pids))
    time.sleep(seconds)
    return {
        "cpu_s": sum(map(cpu_of, pids)) - cpu,
        "wakeups": (sum(map(wakeups_of, pids)) - wakeups) / seconds,
        "rss_mb": sum(rss_of(pid) for pid in pids) / len(pids),
    }


def wakeups_of(pid: int) -> int:
    """Return how often the threads of a process went to wait for something."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(
        status_of(f"{pid}/task/{thread.name}", "voluntary_ctxt_switches") for thread in threads
    )


# -- the report ----------------------------------------------------------------------------------


def file_system_of(folder: Path) -> str:
    """Return the type of the file system that a folder is on, such as ext4."""
    found, where = "unknown", ""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        point = before.split()[4]
        if folder.resolve().is_relative_to(point) and len(point) >= len(where):
            found, where = after.split()[0], point
    return found


def table(rounds: Sequence[Round], idle: Round, seconds: float) -> list[str]:
    """Return the lines that people read."""

    def cell(part: str, figure: str, digits: int) -> str:
        return spread((each[part][figure] for each in rounds), digits)

    lines = []
    syncs = [each["disk"]["syncs"] for each in rounds if "disk" in each]
    if syncs:
        lines += [f"the disk: {spread(syncs, 0)} times a second 4 kB + fdatasync", ""]
    head = ("messages a second", "confirmed", "handled", "per fsync", "CPU ms each")
    lines.append(_row(*head))
    for part in rounds[0]:
        if "confirmed" in rounds[0][part]:
            ratio = "-"
            if syncs:
                ratio = spread((e[part]["confirmed"] / e["disk"]["syncs"] for e in rounds), 2)
            lines.append(
                _row(
                    part,
                    cell(part, "confirmed", 0),
                    cell(part, "handled", 0),
                    ratio,
                    cell(part, "cpu_ms", 2),
                )
            )
    lines += ["", _row("milliseconds", "p50", "p99")]
    for part in rounds[0]:
        if "p50" in rounds[0][part]:
            lines.append(_row(part, cell(part, "p50", 2), cell(part, "p99", 2)))
    lines += ["", _row(f"idle for {seconds:g} s", "CPU s", "wake-ups/s", "MB a process")]
    for part, figures in idle.items():
        lines.append(
            _row(
                part,
                f"{figures['cpu_s']:.3f}",
                f"{figures['wakeups']:.1f}",
                f"{figures['rss_mb']:.1f}",
            )
        )
    return lines


def _row(name: str, *cells: str) -> str:
    return f"{name:<26}" + "".join(f"{cell:>24}" for cell in cells)


def facts_of(url: str, folder: Path) -> dict[str, Any]:
    """Return where and on what this was measured."""
    return {
        "url": redact(url),
        "file_system": file_system_of(folder),
        "sqlite": sqlite3.sqlite_version,
        **facts(),
    }


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="./dev bench embedded",
        description="Measure messages a second, latency and idleness of a transport.",
    )
    parser.add_argument("--dir", type=Path, help="where the file goes; default: the state folder")
    parser.add_argument("--url", help="another place to measure, such as amqp://...")
    parser.add_argument("--rounds", type=int, help="default: 3, with --quick 1")
    parser.add_argument("--idle", type=float, metavar="SECONDS", help="default: 30, with --quick 5")
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rounds there")
    return parser.parse_args(arguments)


def _state_folder() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "tavrida"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    chosen = _arguments(arguments)
    parent = chosen.dir or _state_folder()
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=parent))
    try:
        measure(chosen, folder)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder)
    return 0


def measure(chosen: argparse.Namespace, folder: Path) -> None:
    """Measure, print and save."""
    url = chosen.url or f"sqlite://{folder}/bus.db"
    count = chosen.rounds or (1 if chosen.quick else 3)
    seconds = chosen.idle or (5.0 if chosen.quick else 30.0)
    about = facts_of(url, folder)
    print(told(about))
    if about["file_system"] in {"tmpfs", "ramfs"}:
        print(
            "NOTE: this folder is in memory, so that fdatasync costs nothing. Name one with --dir."
        )
    bench = Bench(url, folder, QUICK if chosen.quick else FULL)
    rounds = []
    for number in range(count):
        rounds.append(bench.round())
        print(f"round {number + 1} of {count} is done", file=sys.stderr)
    idle = bench.idle(seconds)
    print("", *table(rounds, idle, seconds), sep="\n")
    result = {"about": about, "rounds": rounds, "idle": idle, "idle_seconds": seconds}
    write_json(chosen.json, result)


if __name__ == "__main__":
    sys.exit(main())
