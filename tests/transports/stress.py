# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: T201 - a program, which prints what it found
"""Publishers and consumers of one url, killed with SIGKILL at random moments and started again.

``python -m tests.transports.stress`` runs the full size on a fresh SQLite file; ``--help`` lists
the rest. Every publisher notes each message that was confirmed, every consumer each that it
handled (before the acknowledgement) and each that it settled. From these notes is told at the end:

- every confirmed message was handled;
- what was handled twice was held by a consumer when it was killed, was marked as redelivered, and
  came after the kill; or its publisher was killed before it noted the confirm, and sent it again;
- a killed consumer left at most ``window`` deliveries behind that are handled again;
- the queue and its dead-letter queue are empty, and a database is whole.

Which processes are killed, and after how much progress, comes from ``--seed``; what they are
doing at that moment is up to the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import itertools
import json
import os
import random
import secrets
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from tavrida import plugins
from tavrida.config import redact
from tavrida.envelope import Properties
from tavrida.loop import LoopThread
from tavrida.plugins.transports import Delivery, Events, Publication, Transport
from tavrida.topology import dead_letter_queue
from tests.transports.stress_worker import Job, Journal, config_of, server_of

ROOT = Path(__file__).parent.parent.parent

PUBLISHER, CONSUMER = "publisher", "consumer"

#: The word of what the supervisor itself took at last.
LEFT = "left"

#: Seconds between two looks at the journals: short against the life of a process.
LOOK = 0.01

#: Seconds without a single confirmed or handled message after which a run has failed.
STALLED = 30.0

#: Seconds that a consumer gets to stop at the end.
STOP_TIMEOUT = 30.0

#: Bytes. A process takes the log over when it has 8 MB; a few times that is its normal size with
#: many processes, and a file that only grows is not.
MAX_WAL = 64_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What to run, and against what."""

    url: str
    folder: Path
    seed: int
    publishers: int = 8
    consumers: int = 8
    messages: int = 100_000
    kills: int = 80
    #: Messages that a publisher has on their way, deliveries that a consumer holds, at a time.
    window: int = 20
    queue_type: str = "quorum"
    #: Seconds for everything.
    deadline: float = 900.0


@dataclass(frozen=True, slots=True)
class Record:
    """A line of a journal."""

    word: str
    name: str
    life: int
    is_redelivered: bool
    pid: int
    at: float

    @classmethod
    def parse(cls, line: str) -> Self:
        word, name, life, redelivered, pid, at = line.split()
        return cls(word, name, int(life), redelivered == "1", int(pid), float(at))


@dataclass(frozen=True, slots=True)
class Kill:
    """A process that was killed; ``at`` is a moment before the signal."""

    role: str
    number: int
    pid: int
    at: float


@dataclass(slots=True)
class Verdict:
    """What the journals say; the run was good when there are no faults."""

    figures: dict[str, int | float | str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


class Tail:
    """Reads what processes append to a file, whole lines only."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def records(self) -> list[Record]:
        """Return what was added since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        data = data[: data.rfind(b"\n") + 1]
        self._offset += len(data)
        return [Record.parse(line) for line in data.decode().splitlines()]


class Worker:
    """A publisher or consumer, in one of its lives."""

    def __init__(self, job: Job, errors: Path) -> None:
        self.job = job
        with errors.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.transports.stress_worker", job.to_argument()],
                cwd=ROOT,
                stdin=subprocess.PIPE,  # closed when the supervisor ends, in whichever way
                stdout=log,
                stderr=log,
            )
        self.pid = self._process.pid

    def kill(self) -> None:
        """End it with SIGKILL; it is gone afterwards."""
        self._process.kill()
        self.wait()

    def stop(self) -> None:
        """Ask it to end in good order."""
        self._process.terminate()

    def ended(self) -> int | None:
        """Return its exit code, None while it runs."""
        return self._process.poll()

    def wait(self) -> int:
        """Return its exit code when it has ended, by STOP_TIMEOUT."""
        with self._process:  # closes the pipe
            return self._process.wait(STOP_TIMEOUT)

    def __str__(self) -> str:
        return f"{self.job.role} {self.job.number} (life {self.job.life}, pid {self.pid})"


class Run:
    """The supervisor: starts, kills and restarts the processes, and reads what they note."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.kills: list[Kill] = []
        self.records: list[Record] = []
        self._queue = f"stress.{secrets.token_hex(4)}"
        self._random = random.Random(settings.seed)
        self._workers: dict[str, list[Worker]] = {PUBLISHER: [], CONSUMER: []}
        self._tails: list[Tail] = []
        self._seen: dict[str, set[str]] = {"confirmed": set(), "handled": set()}
        self._began = self._progressed_at = time.monotonic()
        self._database = database_of(settings.url)
        self._wal_peak = 0
        self._due = {
            PUBLISHER: self._moments(settings.kills // 2),
            CONSUMER: self._moments(settings.kills - settings.kills // 2),
        }

    def _moments(self, count: int) -> list[int]:
        """After how many confirmed (or handled) messages to kill; the next one last."""
        last = max(1, int(self.settings.messages * 0.95))
        return sorted((self._random.randrange(last) for _ in range(count)), reverse=True)

    def play(self) -> Verdict:
        """Run it all and judge it; no process is left, however this ends."""
        with opened(self.settings.url) as (loop, transport):
            journal = Journal(os.devnull)
            loop.run(transport.declare(server_of(self._job(CONSUMER, 0, 0), journal).topology))
        faults: list[str] = []
        try:
            self._start()
            while not faults and not self._is_complete():
                time.sleep(LOOK)
                faults += self._look()
            took = time.monotonic() - self._began
            if not faults:
                faults += self._stop()
        finally:
            for worker in self._alive():
                worker.kill()
        self._read()
        if not faults:
            self._take_the_rest()
        verdict = judge(self.settings, self.records, self.kills)
        verdict.faults[:0] = faults
        logged = [path.read_text() for path in self.settings.folder.glob("*.err")]
        verdict.figures["lines logged by the processes"] = sum(t.count("\n") for t in logged)
        verdict.figures["seconds"] = f"{took:.1f}"
        verdict.figures["messages a second"] = f"{self.settings.messages / took:.0f}"
        if not faults:
            self._look_into_dead_letters(verdict)
        if self._database is not None:
            verdict.figures["WAL at most"] = f"{self._wal_peak / 1e6:.1f} MB"
            look_into_database(self._database, self._wal_peak, verdict)
        return verdict

    # -- processes

    def _job(self, role: str, number: int, life: int) -> Job:
        settings = self.settings
        messages, more = divmod(settings.messages, settings.publishers)
        return Job(
            role,
            number,
            life,
            settings.url,
            self._queue,
            settings.queue_type,
            str(settings.folder / f"{role}-{number}.journal"),
            messages + (number < more),
            settings.window,
        )

    def _launch(self, role: str, number: int, life: int) -> None:
        job = self._job(role, number, life)
        self._workers[role].append(Worker(job, self.settings.folder / f"{role}-{number}.err"))

    def _start(self) -> None:
        self._began = self._progressed_at = time.monotonic()
        for role, count in (
            (CONSUMER, self.settings.consumers),
            (PUBLISHER, self.settings.publishers),
        ):
            for number in range(count):
                self._launch(role, number, 0)
                self._tails.append(Tail(self.settings.folder / f"{role}-{number}.journal"))

    def _alive(self) -> list[Worker]:
        return [worker for workers in self._workers.values() for worker in workers]

    def _kill_one(self, role: str) -> None:
        if not self._workers[role]:
            return  # all publishers have just ended
        worker = self._random.choice(self._workers[role])
        self.kills.append(Kill(role, worker.job.number, worker.pid, time.monotonic()))
        worker.kill()
        self._workers[role].remove(worker)
        self._launch(role, worker.job.number, worker.job.life + 1)

    def _stop(self) -> list[str]:
        """Stop the consumers in good order; return what went wrong."""
        for worker in self._workers[CONSUMER]:
            worker.stop()
        faults = []
        for worker in self._workers[CONSUMER]:
            try:
                code = worker.wait()
            except subprocess.TimeoutExpired:
                faults.append(f"{worker} did not stop within {STOP_TIMEOUT:.0f} s")
            else:
                # A consumer that was restarted a moment ago may not listen to SIGTERM yet.
                if code not in {0, -signal.SIGTERM}:
                    faults.append(f"{worker} stopped with exit code {code}")
        return faults

    # -- progress

    def _read(self) -> None:
        for tail in self._tails:
            for record in tail.records():
                self.records.append(record)
                if record.word in self._seen:
                    self._seen[record.word].add(record.name)
                    self._progressed_at = time.monotonic()

    def _is_complete(self) -> bool:
        return not self._workers[PUBLISHER] and self._seen["handled"] >= self._seen["confirmed"]

    def _look(self) -> list[str]:
        """See how far it is, kill who is due; return what went wrong."""
        self._read()
        faults = [fault for worker in self._alive() if (fault := self._retire(worker))]
        for role, word in ((PUBLISHER, "confirmed"), (CONSUMER, "handled")):
            due = self._due[role]
            while due and due[-1] <= len(self._seen[word]):
                due.pop()
                self._kill_one(role)
        if self._database is not None:
            wal = size_of(Path(f"{self._database}-wal"))
            self._wal_peak = max(self._wal_peak, wal)
        return faults or self._lateness()

    def _retire(self, worker: Worker) -> str:
        """Take a publisher off that is done; anybody else who ended is a fault."""
        code = worker.ended()
        if code is None:
            return ""
        worker.wait()
        self._workers[worker.job.role].remove(worker)
        if worker.job.role == PUBLISHER and code == 0:
            return ""
        return f"{worker} ended by itself with exit code {code}"

    def _lateness(self) -> list[str]:
        now = time.monotonic()
        if now > self._began + self.settings.deadline:
            why = f"not done after {self.settings.deadline:.0f} s"
        elif now > self._progressed_at + STALLED:
            why = f"nothing was confirmed or handled for {STALLED:.0f} s"
        else:
            return []
        confirmed, handled = (len(self._seen[word]) for word in ("confirmed", "handled"))
        running = ", ".join(map(str, self._alive()))
        return [f"{why}: {confirmed} confirmed, {handled} handled; running: {running}"]

    def _take_the_rest(self) -> None:
        """Take what is left as one more consumer would; it is judged by the same rules.

        All names were handled, but a publisher that was killed may have sent some twice, and a
        consumer that was killed have held the others.
        """
        for delivery in _drained(self.settings.url, self._queue):
            name, life = json.loads(delivery.body).values()
            record = (name, life, delivery.redelivered, os.getpid(), time.monotonic())
            self.records.append(Record(LEFT, *record))

    def _look_into_dead_letters(self, verdict: Verdict) -> None:
        queue = dead_letter_queue(self._queue)
        left = left_in(self.settings.url, queue)
        if left:
            verdict.faults.append(f"{len(left)} left in {queue}, such as {left[0]!r}")


# -- judging -----------------------------------------------------------------------------------


def judge(settings: Settings, records: Iterable[Record], kills: Sequence[Kill]) -> Verdict:
    """Tell from the journals whether anything was lost, or given twice without a reason."""
    records = list(records)
    confirmed = {(r.name, r.life) for r in records if r.word == "confirmed"}
    handlings: dict[tuple[str, int], list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record.at):
        if record.word in {"handled", LEFT}:
            handlings[record.name, record.life].append(record)
    verdict = Verdict()
    deaths = Counter(kill.role for kill in kills)
    names = {name for name, _ in handlings}
    resent = len(handlings) - len(names)
    verdict.figures |= {
        "confirmed": len({name for name, _ in confirmed}),
        "handled": len(names),
        "confirmed, never handled": _lost(confirmed, handlings, verdict),
        **_repeated(settings, handlings, records, kills, verdict),
        "again: sent again after kill -9 of its publisher": resent,
        "taken by the supervisor at last": sum(record.word == LEFT for record in records),
        "publishers killed": deaths[PUBLISHER],
        "consumers killed": deaths[CONSUMER],
        "longest time without a handled message": f"{_longest_pause(handlings.values()):.2f} s",
    }
    _check_bound("sent again", resent, deaths[PUBLISHER] * settings.window, verdict)
    marked = sum(record.is_redelivered for record in records if record.word == "handled")
    _check_bound("marked as redelivered", marked, deaths[CONSUMER] * settings.window, verdict)
    if len(names) != settings.messages:
        verdict.faults.append(f"{len(names)} of {settings.messages} messages were handled")
    verdict.faults += [
        f"{record.name} (life {record.life}) was {record.word} by pid {record.pid}"
        for record in records
        if record.word in {"rejected", "outlived"}
    ][:10]
    return verdict


def _lost(
    confirmed: set[tuple[str, int]], handlings: dict[tuple[str, int], Any], verdict: Verdict
) -> int:
    # With its life: what a former life sent without a confirm may have been handled as well.
    lost = sorted(confirmed - handlings.keys())
    if lost:
        verdict.faults.append(f"lost: {len(lost)} confirmed messages, such as {lost[:10]}")
    return len(lost)


def _repeated(
    settings: Settings,
    handlings: dict[tuple[str, int], list[Record]],
    records: Iterable[Record],
    kills: Iterable[Kill],
    verdict: Verdict,
) -> dict[str, int | str]:
    """Find the reason of each second handling of one publication, and count by reason."""
    acked = {(r.name, r.life, r.pid) for r in records if r.word == "acked"}
    killed_at = {kill.pid: kill.at for kill in kills}
    causes = {False: 0, True: 0}
    of_process: Counter[int] = Counter()
    longest = 0.0
    faults = []
    for publication in handlings.values():
        for first, second in itertools.pairwise(publication):
            why = _without_reason(first, second, killed_at.get(first.pid))
            if why:
                faults.append(f"{first.name} (life {first.life}) was handled twice: {why}")
            causes[(first.name, first.life, first.pid) in acked] += 1
            of_process[first.pid] += 1
            longest = max(longest, second.at - killed_at.get(first.pid, second.at))
    verdict.faults += faults[:10]
    if len(faults) > 10:
        verdict.faults.append(f"... and {len(faults) - 10} more that were handled twice")
    for pid, count in of_process.items():
        _check_bound(f"given away again by pid {pid}", count, settings.window, verdict)
    return {
        "again: consumer killed before ack()": causes[False],
        "again: consumer killed after ack(), before it counted": causes[True],
        "longest time from a kill to the second handling": f"{longest:.2f} s",
    }


def _longest_pause(handlings: Iterable[list[Record]]) -> float:
    records = itertools.chain.from_iterable(handlings)
    times = sorted(record.at for record in records if record.word == "handled")
    return max((after - before for before, after in itertools.pairwise(times)), default=0.0)


def _without_reason(first: Record, second: Record, killed_at: float | None) -> str:
    """Return why a second handling is wrong, or nothing."""
    if killed_at is None:
        return f"by pid {first.pid}, which was never killed, and by pid {second.pid}"
    if second.at < killed_at:
        return f"by pid {second.pid} while pid {first.pid}, killed later, held it"
    if not second.is_redelivered:
        return f"by pid {second.pid}, which was not told that it is redelivered"
    return ""


def _check_bound(what: str, count: int, most: int, verdict: Verdict) -> None:
    if count > most:
        verdict.faults.append(f"{count} messages {what}, and {most} are explained by kills")


# -- looking into the broker ---------------------------------------------------------------------


@contextlib.contextmanager
def opened(url: str) -> Iterator[tuple[LoopThread, Transport]]:
    """A plain connection."""
    config = config_of(url)
    cls = plugins.load(plugins.TRANSPORTS, config.scheme, Transport)  # type: ignore[type-abstract]
    loop = LoopThread("stress")
    events = Events(lambda reason: None, lambda error: None)
    transport = cls(config, loop, "stress", events)
    try:
        loop.run(transport.open(3))
        yield loop, transport
    finally:
        loop.run(transport.close())
        loop.stop()


def left_in(url: str, queue: str) -> list[bytes]:
    """Empty a queue and return the bodies."""
    return [delivery.body for delivery in _drained(url, queue)]


def _drained(url: str, queue: str) -> list[Delivery]:
    # No transport can count. So one more message is sent; what comes before it was left.
    with opened(url) as (loop, transport):
        return loop.run(asyncio.wait_for(_until_sentinel(transport, queue), STALLED))


async def _until_sentinel(transport: Transport, queue: str) -> list[Delivery]:
    sentinel = secrets.token_bytes(16)
    came: asyncio.Queue[Delivery] = asyncio.Queue()
    sent: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
    properties = Properties("application/octet-stream", message_id="sentinel")
    transport.publish(Publication("", queue, sentinel, properties, True), sent.set_result)
    error = await sent
    if error is not None:
        raise error
    # One at a time: then they come in order.
    await transport.consume(queue, 1, came.put_nowait)
    left: list[Delivery] = []
    while True:
        delivery = await came.get()
        delivery.ack()
        if delivery.body == sentinel:
            return left
        left.append(delivery)


def database_of(url: str) -> Path | None:
    """Return the file of an sqlite url."""
    parts = urlsplit(url)
    return Path(parts.path) if parts.scheme == "sqlite" and parts.path else None


def size_of(path: Path) -> int:
    """Return the bytes of a file, 0 where there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def look_into_database(path: Path, wal_peak: int, verdict: Verdict) -> None:
    """Check that a database is whole, and tell what is in it."""
    if wal_peak > MAX_WAL:
        verdict.faults.append(f"the WAL grew to {wal_peak} bytes, more than {MAX_WAL}")
    with contextlib.closing(sqlite3.connect(path)) as database:
        (answer,) = database.execute("PRAGMA integrity_check").fetchone()
        if answer != "ok":
            verdict.faults.append(f"PRAGMA integrity_check: {answer}")
        names = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        rows = {
            name: database.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0]  # noqa: S608
            for (name,) in names
        }
    verdict.figures["integrity_check"] = answer
    beside = [str(each.relative_to(path.parent)) for each in path.parent.glob(f"{path.name}?*/*")]
    verdict.figures["left beside it by the dead"] = " ".join(beside) or "nothing"
    verdict.figures["database at the end"] = f"{size_of(path) / 1e6:.1f} MB"
    verdict.figures["rows at the end"] = ", ".join(f"{name} {n}" for name, n in rows.items())


# -- the program ---------------------------------------------------------------------------------


def stress(settings: Settings) -> Verdict:
    """Run a size and print what came of it."""
    print(
        f"stress: {settings.publishers} publishers, {settings.consumers} consumers, "
        f"{settings.messages} messages, {settings.kills} kills, window {settings.window}, "
        f"seed {settings.seed}, {redact(settings.url)}",
        flush=True,
    )
    verdict = Run(settings).play()
    width = max(map(len, verdict.figures))
    for name, value in verdict.figures.items():
        print(f"  {name:<{width}}  {value}")
    for fault in verdict.faults:
        print(f"  FAULT: {fault}")
    for path in sorted(settings.folder.glob("*.err")) if verdict.faults else ():
        last = path.read_text(errors="replace").splitlines()[-5:]
        for line in last:
            print(f"  {path.stem}: {line}")
    print("  FAILED" if verdict.faults else "  ok", flush=True)
    return verdict


def _settings_of(arguments: Sequence[str]) -> Settings:
    parser = argparse.ArgumentParser(
        prog="python -m tests.transports.stress",
        description="Publish and consume through one url with processes that are killed.",
    )
    parser.add_argument("--url", help="default: a new SQLite file in the folder")
    parser.add_argument("--folder", type=Path, help="for the journals; default: a new one")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    for each in dataclasses.fields(Settings):
        if each.default is dataclasses.MISSING:
            continue  # the three above
        parser.add_argument(
            f"--{each.name.replace('_', '-')}",
            type=type(each.default),
            default=each.default,
            help="default: %(default)s",
        )
    chosen = vars(parser.parse_args(arguments))
    if chosen["folder"] is None:
        chosen["folder"] = Path(tempfile.mkdtemp(prefix="tavrida-stress-"))
    chosen["folder"].mkdir(parents=True, exist_ok=True)
    chosen["url"] = chosen["url"] or f"sqlite://{chosen['folder'].absolute()}/bus.db"
    return Settings(**chosen)


def main() -> int:
    """Run the command line; the journals stay where they were asked for, or when it failed."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    settings = _settings_of(sys.argv[1:])
    if stress(settings).faults:
        print(f"  the journals are in {settings.folder}")
        return 1
    if "--folder" not in sys.argv:
        shutil.rmtree(settings.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
