# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Overload: handlers with a limit of their own, and queues that are paused when they only fail."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from queue import SimpleQueue
from typing import Any, ClassVar

import pytest

from tavrida import dispatcher, exceptions
from tavrida.server import Server
from tavrida.service import ServiceController
from tests.broker.conftest import QUEUE, Connect, Serve
from tests.waiting import DEADLINE, eventually

PAUSED = f"Paused queue {QUEUE}"


@dispatcher.rpc_service("mill")
class Mill(ServiceController):
    """Grinds slowly."""

    gate = threading.Event()
    running: ClassVar[Counter[str]] = Counter()
    most: ClassVar[Counter[str]] = Counter()
    seen: SimpleQueue[Any] = SimpleQueue()
    lock = threading.Lock()
    is_broken = False

    def _run(self, name: str) -> None:
        with self.lock:
            self.running[name] += 1
            self.most[name] = max(self.most[name], self.running[name])
        assert self.gate.wait(DEADLINE)
        with self.lock:
            self.running[name] -= 1

    @dispatcher.rpc_method(service="mill", method="narrow", concurrency=2)
    def narrow(self, request: Any, proxy: Any, n: int) -> dict[str, Any]:
        self._run("narrow")
        return {"n": n}

    @dispatcher.rpc_method(service="mill", method="wide")
    def wide(self, request: Any, proxy: Any, n: int) -> dict[str, Any]:
        return {"n": n}

    @dispatcher.rpc_method(service="mill", method="task", concurrency=3)
    async def task(self, request: Any, proxy: Any, n: int) -> dict[str, Any]:
        self._run("task")
        return {"n": n}

    @dispatcher.rpc_method(service="mill", method="breaks", retry=False)
    def breaks(self, request: Any, proxy: Any, n: int) -> None:
        self.seen.put(n)
        if self.is_broken:
            raise OSError("the wheel is broken")

    @dispatcher.rpc_method(service="mill", method="refuses", retry=False)
    def refuses(self, request: Any, proxy: Any, n: int) -> None:
        self.seen.put(n)
        raise exceptions.InvalidPayload("this is no grain")


@dispatcher.rpc_service("lathe")
class Lathe(ServiceController):
    """Has limits for all it does."""

    gate = threading.Event()
    seen: SimpleQueue[Any] = SimpleQueue()

    @dispatcher.rpc_method(service="lathe", method="turn", concurrency=2)
    def turn(self, request: Any, proxy: Any, n: int) -> None:
        self.seen.put(n)
        assert self.gate.wait(DEADLINE)


@pytest.fixture(autouse=True)
def _fresh() -> Any:
    Mill.gate, Lathe.gate = threading.Event(), threading.Event()
    Mill.running, Mill.most = Counter(), Counter()
    Mill.seen, Lathe.seen = SimpleQueue(), SimpleQueue()
    Mill.is_broken = True
    yield
    Mill.gate.set()
    Lathe.gate.set()


def messages_in(server: Server, queue: str) -> int:
    """How many messages wait in the broker."""
    assert server._loop is not None
    state = server._loop.run(server._consuming.inspect(queue))
    assert state is not None
    return state.messages


# -- limits


def test_a_handler_has_a_limit_of_its_own(serve: Serve, connect: Connect) -> None:
    """As many run as its decorator says; those of others pass by those that wait."""
    serve(Mill, concurrency=10)
    mill = connect("mill").mill
    narrow = [mill.narrow(n=n).future(timeout=DEADLINE) for n in range(6)]
    wide = [mill.wide(n=n).future(timeout=DEADLINE) for n in range(6)]
    assert list(range(6)) == [each.result(DEADLINE)["n"] for each in wide]
    eventually(lambda: Mill.running["narrow"] == 2)
    Mill.gate.set()
    assert list(range(6)) == [each.result(DEADLINE)["n"] for each in narrow]
    assert 2 == Mill.most["narrow"]


def test_the_operator_has_the_last_word(serve: Serve, connect: Connect) -> None:
    """Over the decorator, and where there is none."""
    serve(Mill, concurrency=10, handler_concurrency=("mill.narrow:1",))
    mill = connect("mill").mill
    narrow = [mill.narrow(n=n).future(timeout=DEADLINE) for n in range(4)]
    assert 7 == mill.wide(n=7).call(timeout=DEADLINE)["n"]
    Mill.gate.set()
    assert list(range(4)) == [each.result(DEADLINE)["n"] for each in narrow]
    assert 1 == Mill.most["narrow"]


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ("mill.narow:1", r"mill\.narow.*did you mean 'mill\.narrow'"),
        ("mill.narrow", r"'mill\.narrow'.*SERVICE\.METHOD:NUMBER"),
        ("mill.narrow:0", r"'mill\.narrow:0'.*SERVICE\.METHOD:NUMBER"),
        ("mill.narrow:x", r"'mill\.narrow:x'.*SERVICE\.METHOD:NUMBER"),
    ],
)
def test_a_wrong_limit_is_told_before_anything_connects(serve: Serve, said: str, text: str) -> None:
    """With the nearest handler, or how to write it."""
    with pytest.raises(exceptions.ConfigError, match=text):
        serve(Mill, handler_concurrency=(said,))


def test_a_limit_that_is_no_number_is_told_where_it_is_written() -> None:
    """When the class is made."""
    with pytest.raises(exceptions.ConfigError, match=r"mill\.odd.*concurrency=0"):
        dispatcher.rpc_method(service="mill", method="odd", concurrency=0)


def test_the_prefetch_follows_the_limits(serve: Serve, connect: Connect) -> None:
    """What nobody here can begin stays in the broker, where others may take it."""
    server = serve(Lathe, concurrency=10)
    lathe = connect("lathe").lathe
    for n in range(8):
        lathe.turn(n=n).cast()
    assert {0, 1} == {Lathe.seen.get(timeout=DEADLINE) for _ in range(2)}
    eventually(lambda: messages_in(server, QUEUE) == 6)
    Lathe.gate.set()
    assert set(range(2, 8)) == {Lathe.seen.get(timeout=DEADLINE) for _ in range(6)}


# -- the kill switch


def test_a_queue_is_paused_when_too_many_of_its_messages_fail(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """It tries one after the pause; when that fails too, it pauses again, else all goes on."""
    server = serve(Mill, concurrency=1, failure_threshold=0.5, failure_window=4, failure_pause=0.5)
    mill = connect("mill").mill
    with caplog.at_level(logging.WARNING, "tavrida"):
        for n in range(10):
            mill.breaks(n=n).cast()
        assert [0, 1] == [Mill.seen.get(timeout=DEADLINE) for _ in range(2)]
        eventually(lambda: caplog.text.count(PAUSED) == 1)
        assert Mill.seen.empty()
        assert 2 == Mill.seen.get(timeout=DEADLINE)  # the trial
        eventually(lambda: caplog.text.count(PAUSED) == 2)
        Mill.is_broken = False
        assert list(range(3, 10)) == [Mill.seen.get(timeout=DEADLINE) for _ in range(7)]
        eventually(lambda: "is handled again" in caplog.text)
    eventually(lambda: messages_in(server, f"{QUEUE}.dead") == 3)


def test_a_long_handler_from_before_the_pause_does_not_prolong_it(
    serve: Serve, connect: Connect
) -> None:
    """The trial begins beside it."""
    serve(Mill, concurrency=3, failure_threshold=0.5, failure_window=2, failure_pause=0.2)
    mill = connect("mill").mill
    mill.narrow(n=0).cast()
    eventually(lambda: Mill.running["narrow"] == 1)
    mill.breaks(n=1).cast()
    assert 1 == Mill.seen.get(timeout=DEADLINE)
    Mill.is_broken = False
    for n in range(2, 6):
        mill.breaks(n=n).cast()
    assert set(range(2, 6)) == {Mill.seen.get(timeout=DEADLINE) for _ in range(4)}


def test_messages_that_are_their_own_fault_pause_nothing(serve: Serve, connect: Connect) -> None:
    """Nor do calls, whose callers are told."""
    serve(Mill, concurrency=1, failure_threshold=0.5, failure_window=2, failure_pause=DEADLINE)
    mill = connect("mill").mill
    for n in range(6):
        mill.refuses(n=n).cast()
    for n in range(6, 12):
        with pytest.raises(exceptions.RemoteError, match="the wheel is broken"):
            mill.breaks(n=n).call(timeout=DEADLINE)
    assert list(range(12)) == [Mill.seen.get(timeout=DEADLINE) for _ in range(12)]


def test_other_queues_go_on_while_one_is_paused(serve: Serve, connect: Connect) -> None:
    """What was taken of the paused one goes back when the server stops."""
    config = {"failure_threshold": 0.5, "failure_window": 2, "failure_pause": DEADLINE}
    server = serve(Mill, concurrency=2, prefetch=10, **config)
    mill = connect("mill").mill
    for n in range(8):
        mill.breaks(n=n).cast()
    Mill.seen.get(timeout=DEADLINE)
    eventually(lambda: server._processor.switches[QUEUE].is_paused)
    serve(Lathe, queue="lathe_queue", exchange="test_exchange")
    Lathe.gate.set()
    connect("lathe").lathe.turn(n=1).cast()
    assert 1 == Lathe.seen.get(timeout=DEADLINE)
    Mill.is_broken = False
    server.stop()
    left = 8 - 1 - Mill.seen.qsize()
    serve(Mill, concurrency=1)
    for _ in range(left):
        Mill.seen.get(timeout=DEADLINE)
