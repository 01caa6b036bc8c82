# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""How tavrida does with more of everything: ``./dev bench scale``.

README.md in this folder says what each figure means.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from benchmarks import comparison
from benchmarks._measuring import (
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
from benchmarks.comparison import REFERENCE, Bench, Round
from benchmarks.peers._roles import WINDOW

#: Calls of one measurement.
CALLS = 10_000

#: Processes that the clients are in, at most.
PROCESSES = 4

#: Bytes of a body.
SIZES = (100, 1000, 10_000, 100_000, 1_000_000)


@dataclass(frozen=True, slots=True)
class Setting:
    """How many of each there are; WINDOW calls are in flight all together."""

    servers: int = 1
    clients: int = 1
    methods: int = 1
    #: Services in the process, each with a queue of its own; 0 for one service.
    services: int = 0


#: By part: how many, and what that means.
PARTS: dict[str, dict[int, Setting]] = {
    "server processes": {n: Setting(servers=n, clients=2) for n in (1, 2, 4)},
    "clients": {n: Setting(clients=n) for n in (1, 10, 100, 1000)},
    "methods": {n: Setting(methods=n) for n in (1, 100, 10_000)},
    "services in one process": {n: Setting(services=n) for n in (1, 100, 1000)},
}


def program_of(broker: Broker, role: str, name: str, count: int) -> Program:
    """Start a program of _clients.py."""
    command = [sys.executable, "-m", "benchmarks._clients", role, broker.url, name, str(count)]
    return Program(f"{role} of {name}", command)


def measure(broker: Broker, setting: Setting, calls: int, name: str) -> dict[str, float]:
    """Return how fast calls are answered, what they cost, and what being there costs."""
    with ExitStack() as running:

        def start(role: str, count: int) -> Program:
            return running.enter_context(program_of(broker, role, name, count))

        role, count = "methods", setting.methods
        if setting.services:
            role, count = "services", setting.services
        servers = [start(role, count) for _ in range(setting.servers)]
        ready = max(each.answer(300)["came"] - each.began for each in servers)
        processes = min(PROCESSES, setting.clients)
        shares = [len(range(n, setting.clients, processes)) for n in range(processes)]
        clients = [start("clients", share) for share in shares]
        opened = max(each.answer(300)["seconds"] for each in clients)
        server_cpu, broker_cpu = sum(cpu_of(each.pid) for each in servers), broker.cpu
        turns = -setting.services or setting.methods
        for client in clients:
            client.tell(f"call {calls // processes} {WINDOW // processes} {turns}")
        done = [each.answer() for each in clients]
        total = calls // processes * processes
        figures = {
            "rate": total / max(each["seconds"] for each in done),
            "client_cpu": 1000 * sum(each["cpu"] for each in done) / total,
            "server_cpu": 1000 * (sum(cpu_of(each.pid) for each in servers) - server_cpu) / total,
            "server_start": ready,
            "clients_start": opened,
            "server_rss": sum(rss_of(each.pid) for each in servers) / setting.servers,
            "client_rss": sum(rss_of(each.pid) for each in clients),
        }
        if broker_cpu is not None and broker.cpu is not None:
            figures["broker_cpu"] = 1000 * (broker.cpu - broker_cpu) / total
    return figures


def measure_sizes(broker: Broker, scale: float, number: int) -> dict[str, dict[str, Round]]:
    """Return what bodies of each size do to tavrida and to what it is compared with."""
    found: dict[str, dict[str, Round]] = {}
    for size in SIZES:
        bench = Bench(broker, ("W2", "W3"), scale, size)
        for name in (REFERENCE, "tavrida"):
            figures = bench.round(name, number)
            if figures["failures"]:
                raise BenchError(f"{name} with {size} bytes: {figures['failures']}")
            found.setdefault(str(size), {})[name] = figures
        say(f"bodies of {size} bytes are done")
    return found


def one_round(broker: Broker, parts: Sequence[str], scale: float, number: int) -> dict[str, Any]:
    """Measure each part once."""
    found: dict[str, Any] = {}
    for part, settings in PARTS.items():
        if part not in parts:
            continue
        found[part] = {}
        for count, setting in settings.items():
            name = f"bench.{os.getpid()}.{number}.{part.replace(' ', '-')}.{count}"
            figures = measure(broker, setting, int(CALLS * scale), name)
            found[part][str(count)] = figures
            say(f"{part}, {count}: {figures['rate']:,.0f} calls/s")
    if "sizes" in parts:
        found["sizes"] = measure_sizes(broker, scale, number)
    return found


# -- the report ----------------------------------------------------------------------------------

#: Column, figure, digits.
COLUMNS = (
    ("calls/s", "rate", 0),
    ("CPU s/1000: clients", "client_cpu", 3),
    ("servers", "server_cpu", 3),
    ("broker", "broker_cpu", 3),
    ("start of a server s", "server_start", 2),
    ("of all clients s", "clients_start", 2),
    ("RSS of a server MB", "server_rss", 0),
    ("of all clients MB", "client_rss", 0),
)


def report(result: dict[str, Any]) -> list[str]:
    """Return what people read, in Markdown."""
    lines = [told(result["about"]), ""]
    rounds = result["rounds"]
    for part in PARTS:
        if part in rounds[0]:
            rows = [
                [count, *(_cell([each[part][count] for each in rounds], *c[1:]) for c in COLUMNS)]
                for count in rounds[0][part]
            ]
            lines += [*markdown([part, *(column[0] for column in COLUMNS)], rows), ""]
    if "sizes" in rounds[0]:
        lines += [*_sizes([each["sizes"] for each in rounds]), ""]
    return lines[:-1]


def _cell(rounds: Sequence[dict[str, float]], figure: str, digits: int) -> str:
    values = [each[figure] for each in rounds if figure in each]
    if not values:
        return "-"
    return spread(values, 0) if figure == "rate" else f"{statistics.median(values):,.{digits}f}"


def rates_of(rounds: Sequence[Any], size: str, peer: str, workload: str) -> list[float]:
    """Return the messages a second of one peer with bodies of a size, of all rounds."""
    return [comparison.rate_of(each[size][peer][workload]) for each in rounds]


def _sizes(rounds: Sequence[Any]) -> list[str]:
    columns: list[tuple[str, Callable[[str], list[float]]]] = [
        (f"{peer} {unit}", lambda size, p=peer, w=workload: rates_of(rounds, size, p, w))  # type: ignore[misc]
        for workload, unit in (("W2", "calls/s"), ("W3", "events/s"))
        for peer in (REFERENCE, "tavrida")
    ]
    rows = [
        [f"{int(size):,}", *(spread(values(size), 0) for _, values in columns)]
        for size in rounds[0]
    ]
    return markdown(["bytes of a body", *(name for name, _ in columns)], rows)


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Measure all rounds."""
    amounts = amounts_of(chosen)
    with broker_at(chosen.url) as broker:
        rounds = [
            one_round(broker, chosen.only, amounts["scale"], number)
            for number in range(amounts["rounds"])
        ]
    return {"about": {**facts(), **amounts}, "rounds": rounds}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    everything = [*PARTS, "sizes"]
    parser = parser_of("scale", "Measure tavrida with more of everything.")
    add_amounts(parser)
    parser.add_argument("--only", default=",".join(everything), help=f"of: {', '.join(everything)}")
    parser.add_argument("--url", help="a broker that runs; default: a private RabbitMQ node")
    chosen = parser.parse_args(arguments)
    chosen.only = names_of(parser, chosen.only, everything)
    return finish(chosen, lambda: run(chosen), report)


if __name__ == "__main__":
    sys.exit(main())
