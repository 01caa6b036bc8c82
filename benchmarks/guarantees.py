# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""What each guarantee of tavrida costs, and how soon it is back: ``./dev bench guarantees``.

README.md in this folder says what each figure means.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import comparison
from benchmarks._measuring import (
    BenchError,
    add_amounts,
    amounts_of,
    broker_at,
    facts,
    finish,
    markdown,
    names_of,
    parser_of,
    say,
    spread,
)
from benchmarks.comparison import PEERS, Bench
from benchmarks.peers import tavrida as peer
from benchmarks.peers._roles import Task
from tavrida import exceptions
from tests.rabbitmq import Node

#: What is compared: async def handlers, annotated, on classic queues, with JSON.
REFERENCE = "tavrida"

NAMES = (
    REFERENCE,
    "tavrida-quorum",
    "tavrida-def",
    "tavrida-untyped",
    "tavrida-middleware",
    "tavrida-dedup",
    "tavrida-msgpack",
    "tavrida-confirmed",
)

#: Seconds that one call of a client may take while the broker comes back.
PATIENCE = 0.5

#: Seconds until a service has to be at work again.
TOO_LATE = 60.0


def recovery(node: Node, times: int) -> list[float]:
    """Return how many seconds after each restart of the broker a call was answered again.

    From when the broker accepts connections; the client calls again and again all the time.
    """
    task = Task(node.url(), "bench.recovery")
    took = []
    with (
        PEERS[REFERENCE].start("serve", task) as server,
        peer.client_of(task) as client,
    ):
        server.wait_for("ready")
        client.number(param=0).call(timeout=TOO_LATE)
        for number in range(times):
            node.restart()
            began = time.monotonic()
            _call_until_answered(client)
            took.append(time.monotonic() - began)
            say(f"restart {number + 1} of {times}: answered after {took[-1]:.2f} s")
    return took


def _call_until_answered(client: Any) -> None:
    end = time.monotonic() + TOO_LATE
    for number in itertools.count(1):
        with contextlib.suppress(exceptions.TavridaError):
            client.number(param=number).call(timeout=PATIENCE)
            return
        if time.monotonic() > end:
            raise BenchError(f"no call was answered within {TOO_LATE:.0f} s of a restart")
        time.sleep(0.01)


def report(result: dict[str, Any]) -> list[str]:
    """Return what people read, in Markdown."""
    lines = comparison.report(result, REFERENCE)
    if result["recovery"]:
        took = result["recovery"]
        head = ["", "seconds: median (least-most)", "restarts"]
        row = ["broker accepts connections to first answer", spread(took, 2), str(len(took))]
        lines += ["", "**Recovery**", "", *markdown(head, [row])]
    return lines


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Measure on a private node, which is restarted."""
    amounts, restarts = amounts_of(chosen), chosen.restarts
    if restarts is None:
        restarts = 1 if chosen.quick else 10
    with broker_at(None) as broker:
        assert broker.node is not None
        bench = Bench(broker, tuple(comparison.WORKLOADS), amounts["scale"], 0)
        peers = comparison.measure(chosen.peers, bench, amounts["rounds"])
        took = recovery(broker.node, restarts)
    return {"about": {**facts(), **amounts}, "peers": peers, "recovery": took}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = parser_of(
        "guarantees", "Measure tavrida with and without each of its guarantees, and its recovery."
    )
    add_amounts(parser)
    parser.add_argument("--peers", default=",".join(NAMES), help=f"of: {', '.join(PEERS)}")
    parser.add_argument("--restarts", type=int, help="default: 10, with --quick 1")
    chosen = parser.parse_args(arguments)
    chosen.peers = names_of(parser, chosen.peers, PEERS)
    return finish(chosen, lambda: run(chosen), report)


if __name__ == "__main__":
    sys.exit(main())
