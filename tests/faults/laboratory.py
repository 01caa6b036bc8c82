# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The laboratory: servers and load as processes of their own, and what their journals tell."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import sysconfig
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tavrida.client import RPCClient
from tavrida.config import ConnectionConfig
from tests.faults.journal import (
    ANSWERED,
    BEGAN,
    CALLED,
    CONFIRMED,
    DEAD,
    FAILED,
    HANDLED,
    NOTIFICATION,
    REFUSED,
    UNEXPECTED,
    Reader,
    Record,
    new_key,
)
from tests.faults.load import BEGINS, Job
from tests.faults.services import FOLDER
from tests.transports.stress import left_in, opened
from tests.waiting import eventually

ROOT = Path(__file__).parent.parent.parent

#: Seconds by which a call may end after its deadline.
GRACE = 1.0

#: Seconds without a newly handled message after which the rest is lost.
STALLED = 20.0

#: Seconds for a server or load to end after SIGTERM.
STOP_TIMEOUT = 40.0

#: Seconds within which traffic has to flow again after a fault; most rows ask for less.
RECOVERY_TIMEOUT = 60.0

#: Options of [connection] for everything in the laboratory.
CONNECTION = {
    "socket_timeout": 2.0,
    "publish_timeout": 30.0,
}


class Process:
    """A program of the laboratory, whose output goes to a file."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        self.log = Path(environment[FOLDER]) / f"{name}.log"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | environment,
                stdin=subprocess.PIPE,  # closed when the laboratory ends, in whichever way
                stdout=log,
                stderr=log,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """End it with SIGKILL; it is gone afterwards."""
        self._process.kill()
        self.wait()

    def stop(self) -> int:
        """End it with SIGTERM and return its exit code."""
        self._process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        with self._process:  # closes the pipe to it
            return self._process.wait(STOP_TIMEOUT)

    def said(self, text: str) -> int:
        """How often its log has a text."""
        return self.log.read_text(errors="replace").count(text)


@dataclass(slots=True)
class Verdict:
    """What one play of a row came to; it was good when there are no complaints."""

    confirmed: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    dead: int = 0
    again: int = 0
    redelivered: int = 0
    calls: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    faults: int = 0
    #: Seconds from the end of each fault to the first message handled that was sent after it.
    recoveries: list[float] = field(default_factory=list)
    seconds: float = 0.0
    complaints: list[str] = field(default_factory=list)

    def recovery(self) -> tuple[float, float] | None:
        """The median and the longest recovery; None where there was nothing to recover from."""
        if not self.recoveries:
            return None
        return statistics.median(self.recoveries), max(self.recoveries)


def judge(
    records: Iterable[Record],
    *,
    may_repeat: bool = True,
    killed: Container[int] = (),
    doomed: Collection[str] = (),
    deleted_at: float = 0.0,
    repaired_at: float = 0.0,
) -> Verdict:
    """Compare what was confirmed with what was handled, and see that every call ended.

    Nobody waits for the calls of processes that were ``killed``. The messages that are ``doomed``
    have to be in the dead-letter queue in the end, and no other. Messages that were sent before
    ``deleted_at`` may be lost: somebody deleted the queue with them in it. So may notifications
    that were sent before ``repaired_at``: nobody was subscribed.
    """
    by_word: defaultdict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_word[record.word].append(record)
    confirmed = {record.key: record for record in by_word[CONFIRMED]}
    handled = Counter(record.key for record in by_word[HANDLED])
    dead = {record.key for record in by_word[DEAD]}
    lost = {
        key
        for key in confirmed.keys() - handled.keys() - dead
        if not _is_excused(confirmed[key], deleted_at, repaired_at)
    }
    verdict = Verdict(
        confirmed=len(confirmed),
        refused=Counter(record.detail for record in by_word[REFUSED]),
        lost=len(lost),
        dead=len(dead),
        again=sum(count - 1 for count in handled.values()),
        redelivered=sum(record.detail == "True" for record in by_word[HANDLED]),
        calls=len(by_word[ANSWERED]) + len(by_word[FAILED]),
        failed=Counter(record.detail for record in by_word[FAILED]),
    )
    complain = verdict.complaints.append
    if lost:
        complain(f"lost: {len(lost)} of {len(confirmed)} confirmed messages, such as {min(lost)}")
    if dead != set(doomed):
        wrong = dead.symmetric_difference(doomed)
        complain(f"{len(dead)} dead letters, not {len(doomed)}: {min(wrong)} should be elsewhere")
    if verdict.again and not may_repeat:
        twice = [key for key, count in handled.items() if count > 1]
        complain(f"{len(twice)} messages were handled again: {twice[:3]}")
    verdict.complaints += _faults_of_calls(by_word, killed)
    verdict.complaints += [f"pid {each.pid}: {each.detail}" for each in by_word[UNEXPECTED]]
    return verdict


def _faults_of_calls(
    by_word: Mapping[str, Sequence[Record]], killed: Container[int]
) -> Iterator[str]:
    """Say which calls did not end, or too late."""
    ended = {record.key: record for word in (ANSWERED, FAILED) for record in by_word[word]}
    for begun in by_word[CALLED]:
        end = ended.get(begun.key)
        if end is None:
            if begun.pid not in killed:
                yield f"a call never ended: {begun.key}"
            continue
        late = end.at - begun.at - float(begun.detail)
        if late > GRACE:
            yield f"a call ended {late:.1f} s after its deadline, by {end.word} {end.detail}"


def _is_excused(confirmed: Record, deleted_at: float, repaired_at: float) -> bool:
    is_notification = confirmed.detail == NOTIFICATION
    return confirmed.sent_at <= (repaired_at if is_notification else deleted_at)


class Laboratory:
    """One play of a row: a context manager that leaves no process behind.

    ``url`` is where load and servers connect to; ``broker`` is the same place past any proxy.
    """

    def __init__(
        self,
        folder: Path,
        url: str,
        *,
        broker: str = "",
        queue_type: str = "quorum",
        connection: dict[str, Any] | None = None,
        server: dict[str, Any] | None = None,
        load: dict[str, Any] | None = None,
        retry: dict[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.url = url
        self.broker = broker or url
        self._connection = CONNECTION | (connection or {})
        self._server = {"services": "lab", "queue_type": queue_type} | (server or {})
        self._load = load or {}
        self._retry = retry or {}
        self.servers: list[Process] = []
        self.loads: list[Process] = []
        self.records: list[Record] = []
        self._reader = Reader(folder)
        self._handled: set[str] = set()
        self._confirmed: dict[str, Record] = {}
        self._progressed_at = time.monotonic()
        self._recoveries: list[float] = []
        self._complaints: list[str] = []
        self._killed: set[int] = set()
        self.doomed: set[str] = set()
        self._deleted_at = self._repaired_at = 0.0
        self.faults = 0
        self.began = time.monotonic()
        self._number = 0
        self._environment = {
            FOLDER: str(folder),
            # Where the entry point is, and what it names.
            "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
        }

    def __enter__(self) -> Self:
        info = self.folder / "tavrida_laboratory-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: tavrida-laboratory\nVersion: 1.0\n"
        )
        (info / "entry_points.txt").write_text(
            "[tavrida.controllers]\nlab = tests.faults.services:Lab\n"
        )
        sections = {
            "connection": {"url": self.url.replace("$", "$$"), **self._connection},
            "server": self._server,
            "retry": self._retry,
        }
        lines = []
        for name, options in sections.items():
            lines += [f"[{name}]", *(f"{key} = {value}" for key, value in options.items())]
        (self.folder / "lab.conf").write_text("\n".join(lines) + "\n")
        return self

    def __exit__(self, *exc_info: object) -> None:
        for process in [*self.loads, *self.servers]:
            if process.is_running:
                process.kill()

    # -- processes

    def start_server(self) -> Process:
        """Start one more server, and return it at once; it will serve soon."""
        self._number += 1
        command = [f"{sysconfig.get_path('scripts')}/tavrida-server", "--config-file"]
        server = Process(
            f"server-{self._number}", [*command, str(self.folder / "lab.conf")], self._environment
        )
        self.servers.append(server)
        return server

    def serve(self) -> Process:
        """Start one more server, and return it when it serves."""
        server = self.start_server()
        eventually(lambda: server.said("is serving") or not server.is_running, RECOVERY_TIMEOUT)
        assert server.is_running, server.log.read_text()
        return server

    def start_load(self) -> Process:
        """Start one more process that sends."""
        self._number += 1
        job = Job(str(self.folder), self.url, self._connection, **self._load)
        command = [sys.executable, "-m", "tests.faults.load", job.to_argument()]
        load = Process(f"load-{self._number}", command, self._environment)
        self.loads.append(load)
        return load

    def begin(self, servers: int = 2, loads: int = 1) -> None:
        """Start servers, then load, and return when messages flow."""
        for _ in range(servers):
            self.start_server()
        for server in self.servers:
            eventually(lambda s=server: s.said("is serving"), RECOVERY_TIMEOUT)  # type: ignore[misc]
        for _ in range(loads):
            self.start_load()
        self.wait_until_handled(time.monotonic())

    def kill(self, process: Process) -> None:
        """End a server or load with SIGKILL."""
        process.kill()
        self._killed.add(process.pid)
        (self.servers if process in self.servers else self.loads).remove(process)

    def terminate(self, server: Process) -> None:
        """Stop a server in good order; any exit code but 0 is a complaint."""
        code = server.stop()
        self.servers.remove(server)
        if code != 0:
            self.complain(f"a server ended with exit code {code} after SIGTERM")

    # -- the ledger

    def read(self) -> None:
        """Take up what the journals have got since the last time."""
        for record in self._reader.new():
            self.records.append(record)
            if record.word == HANDLED:
                self._handled.add(record.key)
                self._progressed_at = time.monotonic()
            elif record.word == CONFIRMED:
                self._confirmed[record.key] = record

    def count(self, word: str) -> int:
        """How many records have a word."""
        self.read()
        return sum(record.word == word for record in self.records)

    def wait_until_handled(self, since: float, timeout: float = RECOVERY_TIMEOUT) -> float:
        """Wait for the first handled message that was sent after a moment; return when that was."""
        first: list[float] = []
        position = len(self.records)

        def is_handled() -> bool:
            nonlocal position
            self.read()
            first.extend(
                record.at
                for record in self.records[position:]
                if record.word == HANDLED and record.sent_at >= since
            )
            position = len(self.records)
            return bool(first)

        eventually(is_handled, timeout)
        return min(first)

    def recover(self, since: float, limit: float = RECOVERY_TIMEOUT) -> None:
        """Note a fault whose cause ended then, and wait until messages flow again."""
        self.faults += 1
        took = self.wait_until_handled(since) - since
        self._recoveries.append(took)
        if took > limit:
            self.complain(f"traffic flowed again after {took:.1f} s, not within {limit} s")

    def count_dead_letters(self) -> int:
        """How many dead letters there are now."""
        with opened(self.broker.partition(",")[0]) as (loop, transport):
            state = loop.run(transport.inspect("lab.dead"))
        return state.messages if state else 0

    def _dead_letters(self) -> list[Record]:
        """What is in the dead-letter queue, which is empty afterwards."""
        bodies = left_in(self.broker.partition(",")[0], "lab.dead")
        keys = [json.loads(body)["payload"]["key"] for body in bodies]
        return [Record(DEAD, key, time.monotonic(), os.getpid(), "") for key in keys]

    def doom(self, method: str, count: int) -> None:
        """Cast messages to a handler that cannot end well."""
        config = ConnectionConfig(url=(self.broker,))
        with RPCClient(config, source="lab_events.happened") as client, client.pipeline():
            for _ in range(count):
                key = new_key()
                client.lab[method](key=key).cast()
                self.doomed.add(key)

    def attempts(self) -> Counter[str]:
        """How often the handler of each doomed message began."""
        self.read()
        return Counter(record.key for record in self.records if record.word == BEGAN)

    def catch_up(self) -> None:
        """Wait until all that is confirmed now is handled; what is lost is a complaint."""
        self.read()
        self._progressed_at = time.monotonic()
        awaited = {
            key
            for key, record in self._confirmed.items()
            if not _is_excused(record, self._deleted_at, self._repaired_at)
        }
        while awaited - self._handled:
            if time.monotonic() - self._progressed_at > STALLED:
                self.complain(f"{len(awaited - self._handled)} confirmed messages are not handled")
                return
            time.sleep(0.05)
            self.read()

    def excuse(self, deleted_at: float, repaired_at: float) -> None:
        """Let what was in a deleted queue be lost, and notifications until it was back."""
        self._deleted_at, self._repaired_at = deleted_at, repaired_at

    def complain(self, text: str) -> None:
        """Note what did not hold."""
        self._complaints.append(text)

    def finish(self, *, may_repeat: bool = True) -> Verdict:
        """Stop the load, wait until all is handled, stop the servers, and judge."""
        for load in self.loads:
            if load.is_running:
                eventually(lambda load=load: load.said(BEGINS))  # type: ignore[misc]
                code = load.stop()
                if code != 0:
                    self.complain(f"a load ended with exit code {code}: see {load.log}")
        self.catch_up()
        for server in list(self.servers):
            if server.is_running:
                self.terminate(server)
            else:
                self.complain(f"a server ended by itself: see {server.log}")
        self.read()
        self.records += self._dead_letters()
        verdict = judge(
            self.records,
            may_repeat=may_repeat,
            killed=self._killed,
            doomed=self.doomed,
            deleted_at=self._deleted_at,
            repaired_at=self._repaired_at,
        )
        verdict.faults = self.faults
        verdict.recoveries = self._recoveries
        verdict.seconds = time.monotonic() - self.began
        verdict.complaints += self._complaints
        return verdict
