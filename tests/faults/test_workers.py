# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Worker processes that are killed at random under load: nothing is lost, and others go on."""

from __future__ import annotations

import itertools
import logging
import os
import random
import signal
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.faults.journal import HANDLED
from tests.faults.laboratory import Laboratory, Process, Verdict
from tests.faults.rows import CLASSIC, EMBEDDED, QUORUM, Bench
from tests.processes import children_of
from tests.rabbitmq import Node
from tests.waiting import eventually

LOG = logging.getLogger(__name__)

WORKERS = 4


@pytest.fixture(scope="module")
def bench(rabbitmq: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Brokers and folders."""
    with Bench(tmp_path_factory.mktemp("workers"), rabbitmq) as bench:
        yield bench


@dataclass(slots=True)
class Killed:
    """What was seen while workers were killed."""

    verdict: Verdict
    #: Handled messages a second: before, and from one second after each kill to the next.
    before: float
    after: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        verdict = self.verdict
        median, longest = verdict.recovery() or (0.0, 0.0)
        return (
            f"{verdict.faults} kills, {verdict.confirmed} confirmed, {verdict.calls} calls, "
            f"{verdict.lost} lost, {verdict.again} again; recovery {median:.2f} / {longest:.2f} s; "
            f"{self.before:.0f} messages a second before, {statistics.median(self.after):.0f} after"
        )


def play(bench: Bench, variant: str, seconds: float, pause: float) -> Killed:
    """Kill a worker at random every ``pause`` seconds or so, for a time."""
    lab = bench.laboratory(
        bench.place(variant), variant, server={"workers": WORKERS}, load={"pause": 0.02}
    )
    with lab:
        lab.begin(servers=1)
        (server,) = lab.servers
        eventually(lambda: server.said(f"All {WORKERS} workers serve."))
        began = time.monotonic()
        eventually(lambda: time.monotonic() > began + 2)
        end = time.monotonic() + seconds
        kills = [end]
        before = _rate(lab, began, time.monotonic())
        while time.monotonic() < end:
            _kill_one(server)
            kills.insert(-1, time.monotonic())
            lab.recover(kills[-2], limit=1.0)
            due = kills[-2] + pause * random.uniform(0.5, 1.5)
            eventually(lambda: time.monotonic() > due)  # noqa: B023 - called in this turn
            eventually(lambda: "Z" not in children_of(server.pid).values(), 1.0)
        eventually(lambda: len(children_of(server.pid)) == WORKERS)
        verdict = lab.finish()
        assert not children_of(server.pid)
        after = [
            _rate(lab, killed + 1, following)
            for killed, following in itertools.pairwise(kills)
            if following - killed > 1.2
        ]
    return Killed(verdict, before, after)


def _kill_one(server: Process) -> None:
    victim = random.choice(eventually(lambda: list(children_of(server.pid))))
    os.kill(victim, signal.SIGKILL)


def _rate(lab: Laboratory, since: float, until: float) -> float:
    lab.read()
    handled = [each for each in lab.records if each.word == HANDLED and since <= each.at < until]
    return len(handled) / (until - since)


@pytest.mark.parametrize("variant", [CLASSIC, EMBEDDED])
def test_workers_that_are_killed_under_load_lose_nothing(bench: Bench, variant: str) -> None:
    """Traffic flows again within a second, and the master leaves no zombie."""
    seen = play(bench, variant, seconds=3, pause=0.4)
    assert [] == seen.verdict.complaints
    assert 5 <= seen.verdict.faults


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("variant", [CLASSIC, QUORUM, EMBEDDED])
def test_workers_that_are_killed_for_a_minute_lose_nothing(bench: Bench, variant: str) -> None:
    """And as much is handled from a second after each kill on as before them."""
    seen = play(bench, variant, seconds=60, pause=1.5)
    LOG.info("%s: %s", variant, seen)
    assert [] == seen.verdict.complaints
    assert 20 <= seen.verdict.faults
    assert statistics.median(seen.after) > 0.8 * seen.before
