# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""A server that reloads again and again under load: nothing is lost, nothing is handled twice."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.faults.laboratory import Verdict
from tests.faults.rows import CLASSIC, EMBEDDED, QUORUM, Bench
from tests.rabbitmq import Node
from tests.waiting import eventually

LOG = logging.getLogger(__name__)

#: What the files say in turn: fewer and more handlers, prefetch of its own, limits, retries. Never
#: fewer than 3 at a time: two calls of the load wait in their handlers for a third one.
TURNS = (
    "concurrency = 3\nprefetch = 0",
    "concurrency = 12\nprefetch = 40\nhandler_concurrency = lab.take:2",
    "concurrency = 4\nprefetch = 6\nfailure_threshold = 0.9",
    "concurrency = 20\nprefetch = 0\n[retry:lab]\nfirst_delay = 0.5",
)


@pytest.fixture(scope="module")
def bench(rabbitmq: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Brokers and folders."""
    with Bench(tmp_path_factory.mktemp("reload"), rabbitmq) as bench:
        yield bench


def play(bench: Bench, variant: str, workers: int, count: int) -> Verdict:
    """Reload so often, each time as soon as messages flow by the settings before."""
    lab = bench.laboratory(
        bench.place(variant),
        variant,
        server={"workers": workers, "consumer_timeout": 0},
        load={"pause": 0.02},
    )
    with lab:
        path = lab.folder / "lab.conf"
        text = path.read_text()
        lab.begin(servers=1)
        (server,) = lab.servers
        for number in range(count):
            path.write_text(text.replace("consumer_timeout = 0", TURNS[number % len(TURNS)]))
            said = server.said("Reloaded: [server] concurrency:")
            os.kill(server.pid, signal.SIGHUP)
            eventually(lambda: server.said("Reloaded: [server] concurrency:") > said)  # noqa: B023
            lab.wait_until_handled(time.monotonic())
        verdict = lab.finish(may_repeat=False)
        if server.said("lost its connection"):
            verdict.complaints.append("a connection was lost")
    return verdict


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("variant", [CLASSIC, QUORUM, EMBEDDED])
def test_reloads_under_load_lose_and_repeat_nothing(
    bench: Bench, variant: str, workers: int
) -> None:
    """Over the connections that were there before."""
    verdict = play(bench, variant, workers, count=12)
    assert [] == verdict.complaints
    assert 0 == verdict.again


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("variant", [CLASSIC, QUORUM, EMBEDDED])
def test_a_hundred_reloads_under_load_lose_and_repeat_nothing(
    bench: Bench, variant: str, workers: int
) -> None:
    """Over the connections that were there before."""
    verdict = play(bench, variant, workers, count=100)
    LOG.info(
        "%s, %d workers: %d confirmed, %d calls, %d lost, %d again, %d redelivered, %.0f s",
        *(variant, workers, verdict.confirmed, verdict.calls, verdict.lost, verdict.again),
        *(verdict.redelivered, verdict.seconds),
    )
    assert [] == verdict.complaints
    assert 0 == verdict.again
    assert verdict.confirmed > 500
