# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Signal handlers that come at any moment of what a client sends in the main thread."""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import random
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from queue import SimpleQueue

import pytest

from tavrida import exceptions
from tavrida.client import RPCClient, _open_pipeline
from tavrida.config import ConnectionConfig
from tests.broker.conftest import Connect, Serve
from tests.broker.echoing import Service
from tests.broker.interruptions import interrupt, is_kept_by_asyncio
from tests.waiting import DEADLINE, eventually

pytestmark = pytest.mark.usefixtures("amqp_url")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Service, "seen", SimpleQueue())


@pytest.fixture
def client(serve: Serve, connect: Connect, config: ConnectionConfig) -> RPCClient:
    """One that has made its first call, and connects anew without a pause."""
    serve(Service)
    client = connect("svc", config=replace(config, retry_delay=0.01, max_retry_delay=0.01))
    assert 0 == echo(client, 0)
    return client


def echo(client: RPCClient, n: int) -> int:
    """Call, and again where what was broken off before broke its connection."""
    while True:
        with contextlib.suppress(exceptions.CallInterrupted):
            return int(client.svc.echo(n=n).call(timeout=DEADLINE)["n"])


def pipeline(client: RPCClient) -> None:
    with client.pipeline():
        client.svc.note(n=-1).cast()
        client.svc.note(n=-1).cast()


WORK: dict[str, Callable[[RPCClient], object]] = {
    "call": lambda client: client.svc.echo(n=-1).call(timeout=DEADLINE),
    "cast": lambda client: client.svc.note(n=-1).cast(),
    "future": lambda client: client.svc.echo(n=-1).future(timeout=DEADLINE),
    "pipeline": pipeline,
}


class Alarm(Exception):
    """What a handler raises."""


def is_settled(client: RPCClient) -> bool:
    """Tell whether nothing is on its way, and nobody taken for waiting."""
    link = client._sender._link
    assert link is not None
    return not (link.publisher.unconfirmed or link.caller._waiters)


@pytest.mark.parametrize(
    ("kind", "error"), [*((kind, Alarm) for kind in WORK), ("call", BlockingIOError)]
)
def test_what_a_signal_breaks_off_harms_nothing_else(
    client: RPCClient, kind: str, error: type[Exception]
) -> None:
    """Whenever it comes: what follows gets its own answers and confirms, and nothing is left."""

    def alarm() -> None:
        raise Alarm if is_kept_by_asyncio() else error(errno.EAGAIN, "which a socket has as well")

    numbers = []
    for moment in itertools.count():
        try:
            if not interrupt(lambda: WORK[kind](client), moment, alarm):
                break
        except (Alarm, error):
            pass
        else:
            pytest.fail(f"what was raised at moment {moment} was kept from who sends")
        assert _open_pipeline() is None
        assert moment == echo(client, moment)
        client.svc.note(n=moment).cast()
        numbers.append(moment)
        # What a call was answered with after it was broken off may still be on its way.
        eventually(lambda: is_settled(client))
    assert len(numbers) > 100
    seen: set[int] = set()
    while not seen.issuperset(numbers):
        seen.add(Service.seen.get(timeout=DEADLINE))


@pytest.mark.parametrize("kind", WORK)
def test_a_signal_handler_may_send_and_wait(client: RPCClient, kind: str) -> None:
    """Whenever it comes, but for the moments of which it is told that it cannot wait there."""
    told, answered = [], []

    def handle() -> None:
        try:
            for each in (WORK["call"], WORK["cast"], WORK["pipeline"]):
                each(client)
        except exceptions.CallError as error:
            told.append(str(error))
        else:
            answered.append(moment)

    for moment in itertools.count():
        if not interrupt(lambda: WORK[kind](client), moment, handle):
            break
    eventually(lambda: is_settled(client))
    assert all("this is a signal handler" in text for text in told)
    assert len(told) < len(answered)


@pytest.fixture
def alarms() -> Iterator[Callable[[Callable[[], object]], bool]]:
    """Call it with some work, which SIGALRM breaks off soon; False where it was done before."""
    is_armed = False

    def alarm(*_: object) -> None:
        if is_armed:
            raise Alarm

    def work_until(work: Callable[[], object]) -> bool:
        nonlocal is_armed
        try:
            try:
                is_armed = True
                signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 2e-3))
                work()
            finally:
                is_armed = False
        except Alarm:
            return True
        except exceptions.CallInterrupted:  # the one before broke its connection
            return False
        finally:
            is_armed = False
        return False

    before = signal.signal(signal.SIGALRM, alarm)
    gc.disable()  # what is raised in a finalizer goes no further
    yield work_until
    gc.enable()
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")  # it was broken off there
def test_signals_at_random_while_other_threads_call(
    client: RPCClient, alarms: Callable[[Callable[[], object]], bool]
) -> None:
    """These get their own answers, and what the main thread sends in between arrives."""
    is_over = threading.Event()
    wrong: list[object] = []

    def call(thread: int) -> None:
        for n in itertools.count(1_000_000 * thread):
            if is_over.is_set():
                return
            answer = echo(client, n)
            if answer != n:
                wrong.append((n, answer))

    threads = [threading.Thread(target=call, args=(n,)) for n in (1, 2)]
    for thread in threads:
        thread.start()
    try:
        broken = 0
        for n in range(200):
            broken += alarms(lambda: WORK[random.choice(["call", "cast", "pipeline"])](client))
            if not n % 10:
                client.svc.note(n=n).cast()
                assert n == echo(client, n)
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    assert broken
    assert [] == wrong
    eventually(lambda: is_settled(client))
    seen: set[int] = set()
    while not seen.issuperset(range(0, 200, 10)):
        seen.add(Service.seen.get(timeout=DEADLINE))
