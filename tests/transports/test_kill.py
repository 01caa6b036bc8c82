# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Kill -9 of publishers and consumers loses nothing; and what tells so is itself to be trusted."""

from __future__ import annotations

import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from tavrida.envelope import Properties
from tavrida.plugins.transports import Publication
from tavrida.topology import Queue, Topology
from tests.transports.stress import (
    CONSUMER,
    LEFT,
    PUBLISHER,
    ROOT,
    Kill,
    Record,
    Settings,
    judge,
    left_in,
    opened,
    stress,
)
from tests.waiting import eventually


@pytest.fixture(params=["amqp", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place that several processes can share, by each transport that has one."""
    if request.param == "sqlite":
        return f"sqlite://{tmp_path}/bus.db"
    return str(request.getfixturevalue("amqp_url"))


@pytest.mark.slow
@pytest.mark.timeout(120)  # a busy machine is slow in starting a dozen processes
def test_kill_9_loses_no_confirmed_message(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And gives nothing twice but what a killed process had in hand."""
    settings = Settings(
        url=url,
        folder=tmp_path,
        publishers=3,
        consumers=3,
        messages=3_000,
        kills=6,
        seed=secrets.randbelow(1_000_000),
        deadline=80,
    )
    verdict = stress(settings)
    assert [] == verdict.faults, capsys.readouterr().out
    assert verdict.figures["publishers killed"] and verdict.figures["consumers killed"]


@pytest.mark.slow
def test_no_process_outlives_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    """Not even when kill -9 hits the supervisor itself."""
    command = [sys.executable, "-m", "tests.transports.stress", "--messages", "1000000"]
    supervisor = subprocess.Popen(
        [*command, "--url", f"sqlite://{tmp_path}/bus.db", "--folder", str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    try:
        eventually(lambda: _children(tmp_path))
    finally:
        supervisor.kill()
        supervisor.wait()
    eventually(lambda: not _children(tmp_path))


def _children(folder: Path) -> list[int]:
    """The processes that were started with a journal in that folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
        except OSError:  # gone meanwhile
            continue
        if f'"{folder}/'.encode() in command:
            found.append(int(entry.name))
    return found


def test_what_is_left_in_a_queue_is_found(url: str) -> None:
    """In its order, and with it the queue is empty."""
    queue = Topology(queues=(Queue("left", "classic"),))
    with opened(url) as (loop, transport):
        loop.run(transport.declare(queue))
    assert [] == left_in(url, "left")
    with opened(url) as (loop, transport):
        done: list[Exception | None] = []
        for body in (b"1", b"2"):
            publication = Publication("", "left", body, Properties(message_id="x"), True)
            loop.submit(transport.publish, publication, done.append)
        eventually(lambda: len(done) == 2)
    assert [b"1", b"2"] == left_in(url, "left")
    assert [] == left_in(url, "left")


# -- the judge: what a run of two messages, in which consumer 100 was killed at 5, should tell

SETTINGS = Settings(url="", folder=Path(), messages=2, seed=0, window=2)
KILLS = [Kill(CONSUMER, 0, 100, 5.0)]
CONFIRMED = [Record("confirmed", name, 0, False, 1, 1.0) for name in "ab"]


def handled(name: str, pid: int, at: float, *, redelivered: bool = False, life: int = 0) -> Record:
    return Record("handled", name, life, redelivered, pid, at)


GOOD = [*CONFIRMED, handled("a", 100, 2.0), handled("b", 200, 3.0)]


def test_a_run_without_loss_and_repetition_is_good() -> None:
    verdict = judge(SETTINGS, GOOD, KILLS)
    assert [] == verdict.faults
    assert (2, 2) == (verdict.figures["confirmed"], verdict.figures["handled"])


def test_a_repetition_after_kill_9_of_the_holder_is_good() -> None:
    """Counted by whether the first had acknowledged it already."""
    again = handled("a", 200, 6.0, redelivered=True)
    verdict = judge(SETTINGS, [*GOOD, again], KILLS)
    assert [] == verdict.faults
    assert 1 == verdict.figures["again: consumer killed before ack()"]
    acked = Record("acked", "a", 0, False, 100, 4.0)
    verdict = judge(SETTINGS, [*GOOD, again, acked], KILLS)
    assert [] == verdict.faults
    assert 1 == verdict.figures["again: consumer killed after ack(), before it counted"]


def test_a_message_sent_again_by_a_restarted_publisher_is_good() -> None:
    """It is another publication, even with the same message id."""
    records = [*GOOD, handled("a", 200, 6.0, life=1)]
    verdict = judge(SETTINGS, records, [*KILLS, Kill(PUBLISHER, 0, 1, 1.5)])
    assert [] == verdict.faults
    assert 1 == verdict.figures["again: sent again after kill -9 of its publisher"]


def test_a_rest_that_a_kill_explains_is_good() -> None:
    """What a killed publisher sent twice, and what a killed consumer held, until all had ended."""
    sent_twice = Record(LEFT, "a", 1, False, 1, 6.0)
    verdict = judge(SETTINGS, [*GOOD, sent_twice], [*KILLS, Kill(PUBLISHER, 0, 1, 1.5)])
    assert [] == verdict.faults
    assert 1 == verdict.figures["taken by the supervisor at last"]
    held = Record(LEFT, "a", 0, True, 1, 6.0)
    assert [] == judge(SETTINGS, [*GOOD, held], KILLS).faults


@pytest.mark.parametrize(
    ("records", "fault"),
    [
        ([*CONFIRMED, handled("a", 200, 2.0)], "lost: 1 confirmed messages, such as [('b', 0)]"),
        (
            # The copy that was sent before the kill arrived, the confirmed one did not.
            [*GOOD, Record("confirmed", "b", 1, False, 2, 3.0)],
            "lost: 1 confirmed messages, such as [('b', 1)]",
        ),
        ([*GOOD, handled("b", 100, 4.0, redelivered=True)], "by pid 200, which was never killed"),
        ([*GOOD, handled("a", 200, 4.0, redelivered=True)], "while pid 100, killed later, held it"),
        ([*GOOD, handled("a", 200, 6.0)], "which was not told that it is redelivered"),
        ([*GOOD, handled("a", 200, 6.0, life=1)], "1 messages sent again, and 0 are explained"),
        (
            [*CONFIRMED, *(handled(n, 200, 2.0, redelivered=True) for n in "abc")],
            "3 messages marked as redelivered, and 2 are explained",
        ),
        (
            [handled(n, p, 2.0 * p, redelivered=p > 100) for n in "abc" for p in (100, 200)],
            "3 messages given away again by pid 100, and 2 are explained",
        ),
        (
            [*GOOD, Record(LEFT, "b", 0, True, 1, 6.0)],
            "b (life 0) was handled twice: by pid 200, which was never killed",
        ),
        ([*GOOD, Record(LEFT, "b", 1, False, 1, 6.0)], "1 messages sent again, and 0"),
        ([*GOOD, Record("rejected", "a", 0, False, 100, 3.0)], "a (life 0) was rejected by pid"),
        ([handled("a", 200, 2.0)], "1 of 2 messages were handled"),
    ],
)
def test_whatever_has_no_reason_is_a_fault(records: list[Record], fault: str) -> None:
    """The journals of a transport that loses, repeats or mixes up."""
    assert fault in "\n".join(judge(SETTINGS, records, KILLS).faults)
