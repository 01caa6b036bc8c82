# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Worker threads for plain handlers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from tavrida.workers import Workers
from tests.waiting import DEADLINE, eventually

NAME = "test-worker"


def alive() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(NAME)]


@pytest.fixture
def make() -> Iterator[Callable[[int], Workers]]:
    """Makes workers that are gone after the test."""
    made: list[Workers] = []

    def make_them(limit: int) -> Workers:
        made.append(Workers(limit, NAME))
        return made[-1]

    yield make_them
    for workers in made:
        workers.stop()
    eventually(lambda: not alive())


def test_no_thread_is_started_before_there_is_a_job(make: Callable[[int], Workers]) -> None:
    """Idle servers have none."""
    make(5)
    assert [] == alive()


def test_up_to_limit_jobs_run_side_by_side_and_no_more(make: Callable[[int], Workers]) -> None:
    """The next one waits for a free thread."""
    workers = make(3)
    go_on, running, peak = threading.Event(), [0], [0]
    lock, done = threading.Lock(), threading.Semaphore(0)

    def job() -> None:
        with lock:
            running[0] += 1
            peak[0] = max(peak[0], running[0])
        go_on.wait(DEADLINE)
        with lock:
            running[0] -= 1
        done.release()

    for _ in range(10):
        workers.run(job)
    eventually(lambda: running[0] == 3)
    assert 3 == len(alive())
    go_on.set()
    for _ in range(10):
        assert done.acquire(timeout=DEADLINE)
    assert 3 == peak[0]


def test_all_jobs_run_and_one_thread_takes_them_in_order(make: Callable[[int], Workers]) -> None:
    """With a limit of one there is an order."""
    workers = make(1)
    ran: list[int] = []
    for number in range(1_000):
        workers.run(lambda number=number: ran.append(number))  # type: ignore[misc]
    eventually(lambda: len(ran) == 1_000)
    assert list(range(1_000)) == ran
    assert 1 == len(alive())


def test_idle_thread_is_used_again(make: Callable[[int], Workers]) -> None:
    """One job after the other needs one thread."""
    workers = make(10)
    for _ in range(20):
        done = threading.Event()
        workers.run(done.set)
        assert done.wait(DEADLINE)
        eventually(lambda: workers._idle._value == 1)
    assert 1 == len(alive())


def test_job_that_blocks_does_not_hold_up_the_next(make: Callable[[int], Workers]) -> None:
    """Whatever came before: a free place is a thread that starts now."""
    workers = make(4)
    go_on = threading.Event()

    def blocked() -> None:
        go_on.wait(DEADLINE)

    for _ in range(3):
        for _ in range(30):
            done = threading.Event()
            workers.run(done.set)
            assert done.wait(DEADLINE)
        workers.run(blocked)
    done = threading.Event()
    workers.run(done.set)
    assert done.wait(DEADLINE)
    go_on.set()


def test_a_job_is_told_from_the_threads_that_it_starts(make: Callable[[int], Workers]) -> None:
    """What waits in a job keeps a worker; what waits elsewhere keeps none."""
    workers = make(1)
    found: list[bool] = []
    done = threading.Event()

    def job() -> None:
        found.append(workers.is_current)
        thread = threading.Thread(target=lambda: found.append(workers.is_current))
        thread.start()
        thread.join(DEADLINE)
        done.set()

    workers.run(job)
    assert done.wait(DEADLINE)
    assert [True, False] == found
    assert not workers.is_current


def test_threads_are_daemons_with_names(make: Callable[[int], Workers]) -> None:
    """A handler that never returns does not keep a stopped server alive."""
    workers = make(2)
    go_on = threading.Event()

    def blocked() -> None:
        go_on.wait(DEADLINE)

    for _ in range(2):
        workers.run(blocked)
    assert [f"{NAME}-1", f"{NAME}-2"] == sorted(thread.name for thread in alive())
    assert all(thread.daemon for thread in alive())
    go_on.set()


def test_stop_lets_what_was_taken_on_finish_and_does_not_wait(
    make: Callable[[int], Workers],
) -> None:
    """Then the threads end."""
    workers = make(2)
    go_on, ran = threading.Event(), []

    def job() -> None:
        go_on.wait(DEADLINE)
        ran.append(1)

    for _ in range(4):
        workers.run(job)
    workers.stop()
    assert [] == ran
    go_on.set()
    eventually(lambda: not alive())
    assert 4 == len(ran)
