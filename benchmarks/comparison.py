# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""tavrida beside the other frameworks, in one interleaved run: ``./dev bench``.

README.md in this folder says what each figure means, peers/ is what runs.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from benchmarks._measuring import (
    ROOT,
    BenchError,
    Broker,
    Program,
    add_amounts,
    amounts_of,
    broker_at,
    cpu_of,
    facts,
    finish,
    markdown,
    names_of,
    parser_of,
    rss_of,
    say,
    spread,
    told,
)
from benchmarks.peers._roles import Task

#: Whom all others are compared with.
REFERENCE = "pika-select"

#: The Python that has the other frameworks, made by ``./dev peers``.
PEERS_PYTHON = ROOT / ".venv-peers/bin/python"

#: Seconds after its start in which a server becomes quiet, before its memory is measured.
SETTLE = 1.0

#: Seconds within which the acknowledgements of the last events are on their way.
LATE_ACKS = 2.5

#: How often an import is measured.
IMPORTS = 5

#: Bodies of so many bytes halve the counts.
LARGE = 10_000

WORKLOADS = {
    "W1": "W1: one call in flight",
    "W2": "W2: 64 calls in flight, one client process, one server process",
    "W3": "W3: persistent events, each confirmed, each acknowledged after its handler",
}

#: Whose CPU the columns of a table have.
CPU_COLUMNS = (["client"], ["server"], ["broker"], ["client", "server", "broker"])

#: The figures of one peer in one round; or why there are none.
Round = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Peer:
    """A framework, or a way to use it, that is measured."""

    #: The program, below benchmarks/peers.
    program: str
    #: What has to be installed for it.
    package: str
    #: What a service imports.
    imports: str
    variant: str = ""
    #: How many of each workload are measured; fewer for slow ones, so that none takes minutes.
    calls: int = 2000
    parallel_calls: int = 10_000
    events: int = 20_000

    @property
    def python(self) -> str:
        """Its own Python; where there is none, that of the project, which has some of them."""
        if self.package != "tavrida" and PEERS_PYTHON.exists():
            return str(PEERS_PYTHON)
        return sys.executable

    def start(self, role: str, task: Task) -> Program:
        """Start its program in a role."""
        fields = asdict(task)
        del fields["pad"]  # it follows from the size
        module = f"benchmarks.peers.{self.program}"
        command = [self.python, "-W", "ignore", "-m", module, role, json.dumps(fields)]
        return Program(f"{self.program}, role {role},", command, is_told=False)


def _tavrida(variant: str = "") -> Peer:
    return Peer(
        "tavrida", "tavrida", "from tavrida import config, dispatcher, server, service", variant
    )


PEERS = {
    "pika-select": Peer("pika_select", "pika", "import pika"),
    "pika-confirmed": Peer("pika_select", "pika", "import pika", "confirmed"),
    "pika-blocking": Peer("pika_blocking", "pika", "import pika", events=8000),
    "kombu": Peer("kombu", "kombu", "from kombu import Connection, Consumer, Producer"),
    "aio-pika": Peer("aio_pika", "aio-pika", "import aio_pika"),
    "faststream": Peer("faststream", "faststream", "from faststream.rabbit import RabbitBroker"),
    "nameko": Peer(
        "nameko",
        "nameko",
        "from nameko.rpc import rpc; from nameko.runners import ServiceRunner",
        calls=1500,
        parallel_calls=6000,
        events=12_000,
    ),
    "oslo.messaging": Peer(
        "oslo_messaging",
        "oslo-messaging",
        "import oslo_messaging",
        parallel_calls=6000,
        events=15_000,
    ),
    "celery": Peer(
        "celery",
        "celery",
        "from celery import Celery; Celery('x').conf.broker_url",
        calls=1500,
        parallel_calls=6000,
        events=10_000,
    ),
    "tavrida": _tavrida(),
    "tavrida-def": _tavrida("def"),
    "tavrida-futures": _tavrida("futures"),
    "tavrida-msgpack": _tavrida("msgpack"),
    "tavrida-quorum": _tavrida("quorum"),
    "tavrida-embedded": _tavrida("embedded"),
    "tavrida-untyped": _tavrida("untyped"),
    "tavrida-middleware": _tavrida("middleware"),
    "tavrida-dedup": _tavrida("dedup"),
    "tavrida-confirmed": replace(_tavrida("confirmed"), events=5000),
}

#: Those that run when none is named.
DEFAULT = tuple(name for name in PEERS if not name.startswith("tavrida-"))


def versions_of(python: str) -> dict[str, str]:
    """Return what is installed for a Python, by name."""
    code = (
        "import importlib.metadata as m, json; "
        "print(json.dumps({d.name.lower().replace('_', '-').replace('.', '-'): d.version "
        "for d in m.distributions()}))"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


# -- measuring -----------------------------------------------------------------------------------


class Bench:
    """Measures peers on one broker."""

    def __init__(self, broker: Broker, workloads: Sequence[str], scale: float, size: int) -> None:
        self._broker = broker
        self._workloads = workloads
        self._scale = scale / (1 + size / LARGE)
        self._size = size

    def round(self, name: str, number: int) -> Round:
        """Measure all workloads of a peer once."""
        peer, figures = PEERS[name], Round(machine=_loop_seconds(), failures=[])
        with self._task_of(peer, f"bench.{os.getpid()}.{name}.{number}") as task:
            for step, workloads in ((self._calls, {"W1", "W2"}), (self._events, {"W3"})):
                if workloads.isdisjoint(self._workloads):
                    continue
                try:
                    step(peer, task, figures)
                except BenchError as error:
                    figures["failures"].append(str(error))
                finally:
                    left = self._clean(peer, task)
                if left:
                    figures["failures"].append(f"not acknowledged at the end: {left}")
        return figures

    @contextlib.contextmanager
    def _task_of(self, peer: Peer, name: str) -> Iterator[Task]:
        if peer.variant != "embedded":
            yield Task(self._broker.url, name, size=self._size, variant=peer.variant)
            return
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            yield Task(f"sqlite://{folder}/bus.db", name, size=self._size, variant=peer.variant)

    def _calls(self, peer: Peer, task: Task, figures: Round) -> None:
        with peer.start("serve", task) as server:
            figures["ready"] = server.wait_for("ready")["came"] - server.began
            time.sleep(SETTLE)
            figures["rss"] = rss_of(server.pid)
            if "W1" in self._workloads:
                figures["W1"] = self._client("call", peer.calls, peer, task, server, figures)
            if "W2" in self._workloads:
                count = peer.parallel_calls
                figures["W2"] = self._client("calls", count, peer, task, server, figures)

    def _client(
        self, role: str, count: int, peer: Peer, task: Task, server: Program, figures: Round
    ) -> dict[str, Any]:
        with peer.start(role, self._with_count(task, count)) as client:
            first = client.wait_for("first")["came"] - client.began
            figures.setdefault("first", first)
            client.wait_for("begin")
            server_cpu, broker_cpu = cpu_of(server.pid), self._broker.cpu
            end = client.wait_for("end")
            result = {
                "count": end["count"],
                "seconds": end["seconds"],
                "client_cpu": end["cpu"],
                "server_cpu": cpu_of(server.pid) - server_cpu,
                "broker_cpu": self._broker_cpu_since(broker_cpu, task),
            }
        if end["wrong"]:
            raise BenchError(f"{end['wrong']} of {end['count']} answers were wrong")
        return result | {name: end[name] for name in ("p50", "p99") if name in end}

    def _events(self, peer: Peer, task: Task, figures: Round) -> None:
        task = self._with_count(task, peer.events)
        with peer.start("consume", task) as subscriber:
            subscriber.wait_for("ready")
            with peer.start("publish", task) as publisher:
                begin = publisher.wait_for("begin")
                server_cpu, broker_cpu = cpu_of(subscriber.pid), self._broker.cpu
                end = publisher.wait_for("end")
                handled = subscriber.wait_for("handled")
                figures["W3"] = {
                    "count": handled["count"],
                    "seconds": handled["at"] - begin["at"],
                    "client_cpu": end["cpu"],
                    "server_cpu": cpu_of(subscriber.pid) - server_cpu,
                    "broker_cpu": self._broker_cpu_since(broker_cpu, task),
                }
                if handled["wrong"] or end["wrong"]:
                    raise BenchError(
                        f"{handled['wrong']} events came twice or changed, "
                        f"{end['wrong']} were refused"
                    )
            time.sleep(LATE_ACKS)

    def _with_count(self, task: Task, count: int) -> Task:
        count = max(20, int(count * self._scale))
        return Task(task.url, task.name, count, task.size, task.variant)

    def _broker_cpu_since(self, before: float | None, task: Task) -> float | None:
        if task.url != self._broker.url:  # the embedded bus has no broker
            return 0.0
        now = self._broker.cpu
        return None if now is None or before is None else now - before

    def _clean(self, peer: Peer, task: Task) -> dict[str, int]:
        """Delete what the peer declared; return what was left in its queues."""
        with peer.start("clean", task) as cleaner:
            left: dict[str, int] = cleaner.wait_for("clean")["left"]
        return {queue: count for queue, count in left.items() if count}


def _loop_seconds() -> float:
    """Return how long the same bit of Python takes, which tells how busy the machine is."""
    began = time.perf_counter()
    for _ in range(2_000_000):
        pass
    return time.perf_counter() - began


def import_seconds(peer: Peer) -> float:
    """Return how much longer Python takes to start with what a service imports."""

    def run(code: str) -> float:
        began = time.perf_counter()
        subprocess.run([peer.python, "-W", "ignore", "-c", code], check=True, capture_output=True)
        return time.perf_counter() - began

    run(peer.imports)  # compiles
    return statistics.median(run(peer.imports) - run("pass") for _ in range(IMPORTS))


def measure(names: Sequence[str], bench: Bench, rounds: int) -> dict[str, Any]:
    """Measure all peers in turn, in each round in an order that is drawn.

    In a fixed order each would have to bear what the same one before it leaves of the machine.
    """
    results: dict[str, Any] = {name: {"rounds": []} for name in names}
    for number in range(rounds):
        for name in random.sample(names, len(names)):
            figures = bench.round(name, number)
            results[name]["rounds"].append(figures)
            rates = [f"{w} {rate_of(figures[w]):,.0f}/s" for w in WORKLOADS if w in figures]
            say(f"round {number + 1}, {name}: {', '.join([*rates, *figures['failures']])}")
    for name in names:
        results[name]["import"] = import_seconds(PEERS[name])
    return results


# -- the report ----------------------------------------------------------------------------------


def rate_of(figures: dict[str, Any]) -> float:
    """Return how many messages a second."""
    return float(figures["count"] / figures["seconds"])


def per_1000(figures: dict[str, Any], who: Sequence[str]) -> float | None:
    """Return the CPU seconds of 1,000 messages; None where the broker's are not known."""
    used = [figures[f"{each}_cpu"] for each in who]
    return None if None in used else float(1000 * sum(used) / figures["count"])


def report(result: dict[str, Any], reference: str = REFERENCE) -> list[str]:
    """Return what people read, in Markdown."""
    lines = [told(result["about"]), ""]
    peers = result["peers"]
    for workload, title in WORKLOADS.items():
        if any(workload in each for result in peers.values() for each in result["rounds"]):
            lines += [f"**{title}**", "", *_workload(peers, workload, reference), ""]
    if any("ready" in each for result in peers.values() for each in result["rounds"]):
        lines += ["**Footprint**", "", *_footprint(peers), ""]
    return lines + _failures(peers)


def _values(
    result: dict[str, Any], workload: str, figure: Callable[[dict[str, Any]], float | None]
) -> list[float]:
    found = [figure(each[workload]) for each in result["rounds"] if workload in each]
    return [value for value in found if value is not None]


def _workload(peers: dict[str, Any], workload: str, reference: str) -> list[str]:
    is_timed = workload == "W1"  # else it is a rate
    name = {"W1": "p50 µs", "W2": "calls/s", "W3": "events/s"}[workload]

    def figure(each: dict[str, Any]) -> float:
        return 1e6 * float(each["p50"]) if is_timed else rate_of(each)

    compared = peers.get(reference, {"rounds": []})
    head = ["", name, f"{'÷' if is_timed else 'of'} {reference}"]
    if is_timed:
        head.append("p99 µs")
    sides = ("client", "server") if workload != "W3" else ("publisher", "subscriber")
    head += [f"CPU s/1000: {sides[0]}", sides[1], "broker", "sum", f"÷ {reference}"]
    rows = []
    for peer, result in peers.items():
        values = _values(result, workload, figure)
        if not values:
            continue
        row = [peer, spread(values, 0), _ratio(result, compared, workload, figure)]
        if is_timed:
            p99 = _values(result, workload, lambda each: 1e6 * float(each["p99"]))
            row.append(f"{statistics.median(p99):,.0f}")
        row += [_cpu(result, workload, who) for who in CPU_COLUMNS]
        used = functools.partial(per_1000, who=CPU_COLUMNS[-1])
        rows.append([*row, _ratio(result, compared, workload, used)])
    return markdown(head, rows)


def _footprint(peers: dict[str, Any]) -> list[str]:
    head = [
        "",
        "import s",
        "RSS of an idle server MB",
        "server start to consuming s",
        "client start to first answer s",
    ]
    rows = []
    for peer, result in peers.items():
        rounds = [each for each in result["rounds"] if "first" in each]
        if rounds:
            rows.append(
                [
                    peer,
                    f"{result['import']:.2f}",
                    f"{statistics.median(each['rss'] for each in rounds):.0f}",
                    f"{statistics.median(each['ready'] for each in rounds):.2f}",
                    f"{statistics.median(each['first'] for each in rounds):.2f}",
                ]
            )
    return markdown(head, rows)


def _failures(peers: dict[str, Any]) -> list[str]:
    found = [
        f"- {peer}, round {number + 1}: {failure}"
        for peer, result in peers.items()
        for number, each in enumerate(result["rounds"])
        for failure in each["failures"]
    ]
    machine = [1000 * each["machine"] for result in peers.values() for each in result["rounds"]]
    return [
        *(["Failures:", "", *found] if found else ["Every answer was right, every event handled."]),
        "",
        f"The same bit of Python took {spread(machine, 0)} ms during the run.",
    ]


def _cpu(result: dict[str, Any], workload: str, who: Sequence[str]) -> str:
    values = _values(result, workload, lambda each: per_1000(each, who))
    return f"{statistics.median(values):.3f}" if values else "-"


def _ratio(
    result: dict[str, Any],
    reference: dict[str, Any],
    workload: str,
    figure: Callable[[dict[str, Any]], float | None],
) -> str:
    # Round by round: a machine that is slower for a while is so for both.
    rounds = [
        (figure(each[workload]), figure(other[workload]))
        for each, other in zip(result["rounds"], reference["rounds"], strict=False)
        if workload in each and workload in other
    ]
    ratios = [value / other for value, other in rounds if value is not None and other]
    return f"{statistics.median(ratios):.2f}" if ratios else "-"


# -- the command ---------------------------------------------------------------------------------


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = parser_of(
        "comparison",
        "Measure tavrida beside other frameworks. './dev bench list' names the other benchmarks, "
        "'./dev peers' installs the other frameworks.",
    )
    add_amounts(parser)
    parser.add_argument("--peers", default=",".join(DEFAULT), help=f"of: {', '.join(PEERS)}")
    parser.add_argument("--only", default=",".join(WORKLOADS), help="of: W1,W2,W3")
    parser.add_argument("--body", type=int, default=0, metavar="BYTES", help="in each message")
    parser.add_argument("--url", help="a broker that runs; default: a private RabbitMQ node")
    chosen = parser.parse_args(arguments)
    chosen.peers = names_of(parser, chosen.peers, PEERS)
    chosen.only = names_of(parser, chosen.only, WORKLOADS)
    return chosen


def _installed(names: Sequence[str]) -> dict[str, str]:
    """Return the peers that are installed, with their versions; name the others."""
    found = {python: versions_of(python) for python in {PEERS[name].python for name in names}}
    installed = {}
    for name in names:
        peer = PEERS[name]
        if peer.package in found[peer.python]:
            installed[name] = found[peer.python][peer.package]
        else:
            say(f"{name} is not installed and left out: './dev peers' installs it")
    return installed


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Measure the peers that are installed."""
    installed, amounts = _installed(chosen.peers), amounts_of(chosen)
    versions = {PEERS[name].package: version for name, version in installed.items()}
    about = {**facts(), **versions, **amounts}
    if chosen.body:
        about["body"] = chosen.body
    with broker_at(chosen.url) as broker:
        bench = Bench(broker, chosen.only, amounts["scale"], chosen.body)
        return {"about": about, "peers": measure(list(installed), bench, amounts["rounds"])}


def _has_failed(result: dict[str, Any]) -> bool:
    """Tell whether tavrida failed; what others lose is theirs."""
    ours = [peer for name, peer in result["peers"].items() if name.startswith("tavrida")]
    return any(each["failures"] for peer in ours for each in peer["rounds"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    chosen = _arguments(arguments)
    return finish(chosen, lambda: run(chosen), report, _has_failed)


if __name__ == "__main__":
    sys.exit(main())
