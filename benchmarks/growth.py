# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Whether memory grows with the number of messages: ``./dev bench growth``.

README.md in this folder says what each figure means.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from benchmarks._measuring import (
    Broker,
    broker_at,
    facts,
    finish,
    markdown,
    parser_of,
    rss_of,
    say,
    told,
)
from benchmarks.peers._roles import WINDOW
from benchmarks.scale import program_of

#: Messages in all; half of them are calls, half casts.
MESSAGES = 1_000_000
QUICK = 100_000

#: How often memory is looked at.
STEPS = 20

#: Seconds that one step may take.
PATIENCE = 600.0


def run(broker: Broker, messages: int) -> list[dict[str, float]]:
    """Return the memory of a server and of its client after each step."""
    name = f"bench.{os.getpid()}.growth"
    share = messages // STEPS // 2
    seen = []
    with ExitStack() as running:
        server = running.enter_context(program_of(broker, "methods", name, 1))
        server.answer()
        client = running.enter_context(program_of(broker, "clients", name, 1))
        client.answer()

        def look(count: int) -> None:
            seen.append(
                {"messages": count, "server": rss_of(server.pid), "client": rss_of(client.pid)}
            )

        look(0)
        for step in range(1, STEPS + 1):
            began = time.monotonic()
            for command in (f"cast {share} 1 1", f"call {share} {WINDOW} 1"):
                client.tell(command)
                client.answer(PATIENCE)
            look(2 * share * step)
            rate = 2 * share / (time.monotonic() - began)
            say(f"{2 * share * step:,} messages, {rate:,.0f} a second")
    return seen


def report(result: dict[str, Any]) -> list[str]:
    """Return what people read, in Markdown."""
    steps = result["steps"]
    shown = [steps[0], steps[1], *steps[len(steps) // 4 :: len(steps) // 4]]
    rows = [
        [f"{each['messages']:,}", f"{each['server']:.1f}", f"{each['client']:.1f}"]
        for each in shown
    ]
    grown = [f"{steps[-1][who] - steps[1][who]:+.1f}" for who in ("server", "client")]
    rows.append(["last less second", *grown])
    return [told(result["about"]), "", *markdown(["messages", "server MB", "client MB"], rows)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = parser_of("growth", "Measure memory over many messages.")
    parser.add_argument("--messages", type=int, help=f"default: {MESSAGES}, with --quick {QUICK}")
    parser.add_argument("--url", help="a broker that runs; default: a private RabbitMQ node")
    chosen = parser.parse_args(arguments)
    messages = chosen.messages or (QUICK if chosen.quick else MESSAGES)

    def measure() -> dict[str, Any]:
        with broker_at(chosen.url) as broker:
            return {"about": {**facts(), "messages": messages}, "steps": run(broker, messages)}

    return finish(chosen, measure, report)


if __name__ == "__main__":
    sys.exit(main())
