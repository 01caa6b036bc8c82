# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The event-loop thread."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tavrida.exceptions import CallError, ConnectionFailed
from tavrida.loop import LoopThread, Mailbox
from tests.waiting import DEADLINE, eventually


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    """A running loop."""
    thread = LoopThread("test-loop")
    yield thread
    thread.stop()


def settle(loop: LoopThread) -> None:
    """Return when everything that was submitted has run."""
    done = threading.Event()
    loop.submit(done.set)
    assert done.wait(DEADLINE)


async def nothing() -> None:
    """Do nothing."""


def test_callbacks_run_in_the_order_of_submission(loop: LoopThread) -> None:
    """With their arguments."""
    ran: list[int] = []
    for number in range(5_000):
        loop.submit(ran.append, number)
    settle(loop)
    assert list(range(5_000)) == ran


def test_callbacks_of_many_threads_all_run_each_threads_in_its_order(loop: LoopThread) -> None:
    """None is forgotten between two wake-ups."""
    ran: list[tuple[int, int]] = []
    start = threading.Barrier(8)

    def submit(thread: int) -> None:
        start.wait()
        for number in range(2_000):
            loop.submit(ran.append, (thread, number))

    threads = [threading.Thread(target=submit, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    settle(loop)
    assert 16_000 == len(ran)
    for n in range(8):
        assert list(range(2_000)) == [number for thread, number in ran if thread == n]


def test_many_submissions_share_one_wake_up(loop: LoopThread) -> None:
    """While the loop is busy, a hundred cost one turn of it."""
    busy, go_on = threading.Event(), threading.Event()
    turns: list[float] = []
    ticks = [0]

    def tick() -> None:
        ticks[0] += 1
        loop.loop.call_soon(tick)

    def block() -> None:
        busy.set()
        go_on.wait(DEADLINE)
        loop.loop.call_soon(tick)

    loop.submit(block)
    assert busy.wait(DEADLINE)
    for _ in range(100):
        loop.submit(lambda: turns.append(ticks[0]))
    go_on.set()
    settle(loop)
    assert 100 == len(turns)
    assert 1 == len(set(turns))


def test_callback_may_submit_another(loop: LoopThread) -> None:
    """It runs after those that were there, without a deadlock."""
    ran: list[str] = []
    done = threading.Event()

    def second() -> None:
        ran.append("second")
        done.set()

    def first() -> None:
        loop.submit(second)
        ran.append("first")

    loop.submit(first)
    assert done.wait(DEADLINE)
    assert ["first", "second"] == ran


def test_failing_callback_is_logged_and_stops_no_other(
    loop: LoopThread, caplog: pytest.LogCaptureFixture
) -> None:
    """With its traceback, and without what it was called with, which may be a secret."""

    def fails(secret: str) -> None:
        raise ValueError("wrong")

    ran: list[int] = []
    with caplog.at_level(logging.ERROR):
        loop.submit(fails, "letmein")
        loop.submit(ran.append, 1)
        settle(loop)
    assert [1] == ran
    (record,) = caplog.records
    assert "A callback failed" in record.message
    assert "fails" in record.message
    assert "letmein" not in record.message
    assert record.exc_info is not None


def test_a_wake_up_that_is_interrupted_is_made_up_for(
    loop: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python may raise KeyboardInterrupt anywhere; later submissions run all the same."""

    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    ran: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(loop.loop, "call_soon_threadsafe", interrupted)
        with pytest.raises(KeyboardInterrupt):
            loop.submit(ran.append, 1)
    settle(loop)
    assert [1] == ran


def test_coroutine_runs_on_the_loop_and_its_result_comes_back(loop: LoopThread) -> None:
    """So does its exception."""

    async def where() -> tuple[bool, str]:
        return loop.is_current, threading.current_thread().name

    async def fails() -> None:
        raise ValueError("wrong")

    assert (True, "test-loop") == loop.run(where())
    assert not loop.is_current
    with pytest.raises(ValueError, match="wrong"):
        loop.run(fails())


def test_stopping_cancels_what_runs_and_waits_for_it(loop: LoopThread) -> None:
    """Coroutines may clean up."""
    cleaned: list[bool] = []
    started = threading.Event()

    async def forever() -> None:
        try:
            started.set()
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    future = loop.start(forever())
    assert started.wait(DEADLINE)
    loop.stop()
    assert [True] == cleaned
    assert future.cancelled()
    assert "test-loop" not in [thread.name for thread in threading.enumerate()]


def test_stopping_twice_or_from_several_threads_is_fine(loop: LoopThread) -> None:
    """Idempotent and thread-safe."""
    threads = [threading.Thread(target=loop.stop) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    loop.stop()
    assert loop.loop.is_closed()


def test_loop_may_stop_itself(loop: LoopThread) -> None:
    """It does not wait for its own end."""
    loop.submit(loop.stop)
    eventually(loop.loop.is_closed)


def test_what_was_submitted_before_the_stop_still_runs(loop: LoopThread) -> None:
    """A settlement that was handed over is not lost."""
    ran: list[int] = []
    for number in range(100):
        loop.submit(ran.append, number)
    loop.stop()
    assert list(range(100)) == ran


def test_stopped_loop_refuses_every_submission(loop: LoopThread) -> None:
    """Each time, and not only the first: what is accepted has to run."""
    loop.stop()
    for _ in range(3):
        with pytest.raises(ConnectionFailed, match="closed by this program"):
            loop.submit(print)


def test_stopped_loop_refuses_coroutines(loop: LoopThread) -> None:
    """And leaves none of them un-awaited."""
    loop.stop()
    for method in (loop.start, loop.run):
        with pytest.raises(ConnectionFailed, match="closed by this program"):
            method(nothing())


def test_coroutine_started_while_the_loop_stops_ends_too() -> None:
    """Accepted or refused, whoever waits for it is not left hanging."""
    for _ in range(50):
        loop = LoopThread("test-stopping")
        futures = []
        stopping = threading.Thread(target=loop.stop)
        stopping.start()
        while stopping.is_alive():
            try:
                futures.append(loop.start(nothing()))
            except ConnectionFailed:
                break
        stopping.join()
        assert all(future.done() for future in futures)


def ended(loop: LoopThread, work: Callable[[list[str]], object]) -> list[str]:
    """Return what some work on the loop, and the ends that it asks for, noted in their order."""
    noted: list[str] = []
    loop.run(_call(work, noted))
    settle(loop)
    return noted


async def _call(work: Callable[[list[str]], object], noted: list[str]) -> None:
    work(noted)
    noted.append("returned")


def test_what_waits_for_the_end_of_a_turn_is_called_once_the_turn_is_over(
    loop: LoopThread,
) -> None:
    """Before whatever comes after it; an end may ask for another end."""

    def turn(noted: list[str]) -> None:
        def end() -> None:
            noted.append("end")
            loop.at_end(lambda: noted.append("second end"))

        loop.at_end(end)
        noted.append("worked")

    noted = ended(loop, lambda noted: loop.turn(lambda: turn(noted)))
    assert ["worked", "end", "second end", "returned"] == noted


def test_outside_of_a_turn_the_end_comes_soon(loop: LoopThread) -> None:
    """After what runs now, so that all of it shares the end; or at once when somebody says so."""

    def work(noted: list[str]) -> None:
        loop.at_end(lambda: noted.append("end"))
        noted.append("worked")

    assert ["worked", "returned", "end"] == ended(loop, work)

    def hurry(noted: list[str]) -> None:
        work(noted)
        loop.end_turn()

    assert ["worked", "end", "returned"] == ended(loop, hurry)


def test_the_last_of_what_is_ready_is_a_turn_of_its_own(loop: LoopThread) -> None:
    """What is not the last leaves the end to the others."""

    def work(noted: list[str]) -> None:
        loop.at_end(lambda: noted.append("end"))

    assert ["end", "returned"] == ended(loop, lambda noted: loop.last(lambda: work(noted)))

    def two(noted: list[str]) -> None:
        loop.loop.call_soon(lambda: noted.append("the other"))
        loop.last(lambda: work(noted))

    assert ["returned", "the other", "end"] == ended(loop, two)


def test_an_end_that_fails_is_logged_and_the_others_are_called(
    loop: LoopThread, caplog: pytest.LogCaptureFixture
) -> None:
    """What one connection cannot send is not the other's fault."""

    def work(noted: list[str]) -> None:
        loop.at_end(lambda: 1 / 0)
        loop.at_end(lambda: noted.append("end"))

    assert ["end", "returned"] == ended(loop, lambda noted: loop.turn(lambda: work(noted)))
    assert "ZeroDivisionError" in caplog.text


def test_an_end_that_wants_to_end_the_program_keeps_nothing_from_the_others(
    loop: LoopThread,
) -> None:
    """Such as what somebody has called when an answer comes: the connection still sends."""
    noted: list[str] = []
    done = threading.Event()

    def work() -> None:
        loop.at_end(noted.append, "before")
        loop.at_end(sys.exit)
        loop.at_end(noted.append, "behind")
        loop.at_end(done.set)

    loop.submit(work)
    assert done.wait(DEADLINE)
    assert ["before", "behind"] == noted


def test_a_mailbox_of_a_closed_loop_takes_and_forgets() -> None:
    """Whoever waited there is gone."""
    loop = asyncio.new_event_loop()
    mailbox = Mailbox(loop)
    ran: list[int] = []
    mailbox.put(functools.partial(ran.append, 1))
    mailbox.put(functools.partial(ran.append, 2))
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    mailbox.put(functools.partial(ran.append, 3))
    assert [1, 2] == ran


def test_what_is_left_to_be_done_last_is_done_in_a_row(loop: LoopThread) -> None:
    """After all that is ready, each in its own context; and what it leaves for the end, after."""
    noted: list[str] = []
    name = contextvars.ContextVar("name", default="none")
    done = threading.Event()

    def last() -> None:
        loop.at_end(lambda: noted.append(f"end of {me}"))
        me = name.get()
        noted.append(f"last of {me}")

    def begin(me: str) -> None:
        name.set(me)
        noted.append(f"begin of {me}")
        loop.last(last)

    def begin_both() -> None:
        for me in ("first", "second"):
            loop.loop.call_soon(begin, me, context=contextvars.Context())
        loop.loop.call_soon(loop.loop.call_soon, done.set)

    loop.submit(begin_both)
    assert done.wait(DEADLINE)
    order = [f"{when} of {me}" for when in ("begin", "last") for me in ("first", "second")]
    assert order == noted[:4]
    assert ["end of first", "end of second"] == noted[4:]


def test_what_a_turn_begins_has_its_end_in_the_next_turn_of_the_loop(loop: LoopThread) -> None:
    """Not in the one after that: each costs system calls, and all that waits for it time."""
    noted: list[str] = []
    done = threading.Event()

    def handler() -> None:
        loop.loop.call_soon(noted.append, "the turn after that")
        loop.loop.call_soon(done.set)
        loop.last(last)

    def last() -> None:
        loop.at_end(noted.append, "sent")

    loop.submit(loop.loop.call_soon, handler)
    assert done.wait(DEADLINE)
    assert ["sent", "the turn after that"] == noted


# -- what another thread does while the loop sleeps


def do_now(loop: LoopThread, work: Callable[..., bool], *args: Any) -> None:
    """Have it done in this thread, once the loop sleeps."""
    eventually(lambda: loop.do_now(work, *args))


def test_a_sleeping_loop_has_work_done_by_who_asks(loop: LoopThread) -> None:
    """In that thread, and the loop goes on after it."""
    threads: list[threading.Thread] = []

    def work(kind: str) -> bool:
        threads.append(threading.current_thread())
        return kind == "done"

    do_now(loop, work, "done")
    assert [threading.current_thread()] == threads
    assert not loop.do_now(work, "not done")
    settle(loop)


def test_work_is_not_done_now_while_the_loop_does_something(loop: LoopThread) -> None:
    """Nor before what was submitted earlier, nor where the loop has stopped."""
    busy, go_on = threading.Event(), threading.Event()

    def block() -> None:
        busy.set()
        go_on.wait(DEADLINE)

    loop.submit(block)
    assert busy.wait(DEADLINE)
    try:
        assert not loop.do_now(pytest.fail, "while the loop is busy")
    finally:
        go_on.set()
    loop.stop()
    assert not loop.do_now(pytest.fail, "after its end")


def test_the_loop_sleeps_while_another_thread_works_for_it(loop: LoopThread) -> None:
    """What is submitted meanwhile runs after it: never two threads at a time."""
    order: list[str] = []
    working, go_on = threading.Event(), threading.Event()

    def work() -> bool:
        working.set()
        go_on.wait(DEADLINE)
        order.append("work")
        return True

    thread = threading.Thread(target=do_now, args=(loop, work))
    thread.start()
    assert working.wait(DEADLINE)
    loop.submit(order.append, "submitted")
    assert not loop.do_now(pytest.fail, "while another thread works")
    go_on.set()
    thread.join(DEADLINE)
    settle(loop)
    assert ["work", "submitted"] == order


def test_a_sleeping_loop_hears_of_what_another_thread_began_on_it(loop: LoopThread) -> None:
    """In a turn there, where nothing else would wake it."""
    begun = threading.Event()

    def work() -> bool:
        loop.turn_here(loop.loop.call_soon, begun.set)
        return True

    eventually(lambda: loop.do_now(work))
    assert begun.wait(DEADLINE)


def test_a_child_process_does_no_work_for_the_loop(loop: LoopThread) -> None:
    """Which shares the sockets with its parent, and would take what comes for that."""
    eventually(lambda: loop.do_now(lambda: True))
    child = os.fork()
    if not child:
        os._exit(loop.do_now(lambda: True))
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("error", [ValueError("wrong"), KeyboardInterrupt()])
def test_work_that_is_broken_off_leaves_the_loop_alone(
    loop: LoopThread, error: BaseException
) -> None:
    """By its own failure, or by a signal handler that raises; who asked is told."""

    def work() -> bool:
        raise error

    with pytest.raises(type(error)):
        do_now(loop, work)
    settle(loop)
    assert not loop.is_busy_here


@pytest.mark.parametrize("is_taken", [True, False])
def test_a_signal_handler_may_raise_around_taking_the_turn(
    loop: LoopThread, is_taken: bool
) -> None:
    """Before it or right behind it; either way the loop goes on."""

    class Turn:
        """The turn of the loop, and a signal that comes with its acquire."""

        def __init__(self, turn: Any) -> None:
            self.release, self._acquire = turn.release, turn.acquire

        def acquire(self, blocking: bool) -> bool:
            if is_taken:
                eventually(lambda: self._acquire(blocking))
            raise KeyboardInterrupt

    settle(loop)
    turn = loop._turn
    loop._turn = Turn(turn)  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        loop.do_now(pytest.fail, "the signal came first")
    loop._turn = turn
    settle(loop)


def test_a_signal_handler_knows_that_it_interrupts_work(loop: LoopThread) -> None:
    """There it must not wait for the loop, and its own work is not done now."""
    told: list[bool] = []

    def work() -> bool:
        told.append(loop.is_busy_here)
        told.append(loop.do_now(pytest.fail, "inside of other work"))
        return True

    do_now(loop, work)
    assert [True, False] == told
    assert not loop.is_busy_here
    assert not loop.run(asyncio.sleep(0, result=loop.is_busy_here))


def test_a_thread_with_the_number_of_a_loop_that_ended_is_no_signal_handler(
    loop: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system gives the numbers of threads that ended to others, also in a forked child."""
    monkeypatch.setattr(loop, "_has_turn", lambda: True)
    assert loop.is_busy_here
    monkeypatch.undo()
    loop.stop()
    monkeypatch.setattr(loop, "_has_turn", lambda: True)
    assert not loop.is_busy_here


def test_who_interrupts_work_does_not_wait_for_the_loop(loop: LoopThread) -> None:
    """It is told so, or the loop ends behind it."""
    settle(loop)

    def work() -> bool:
        with pytest.raises(CallError, match="this is a signal handler"):
            loop.run(nothing())
        loop.stop()
        with pytest.raises(ConnectionFailed):
            loop.submit(pytest.fail, "after its end")
        return True

    do_now(loop, work)
    loop._thread.join(DEADLINE)
    assert not loop._thread.is_alive()


def test_what_wants_to_end_the_program_holds_up_nothing(
    loop: LoopThread, caplog: pytest.LogCaptureFixture
) -> None:
    """What was submitted with it runs all the same, without more coming."""
    done, go_on = threading.Event(), threading.Event()
    loop.submit(go_on.wait, DEADLINE)
    loop.submit(sys.exit)
    loop.submit(done.set)
    go_on.set()
    assert done.wait(DEADLINE)
    assert "wanted to end the program" in caplog.text
