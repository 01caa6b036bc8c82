# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Handlers that wait for what cannot begin before they end: told at once where that is certain."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

import pytest

from tavrida import dispatcher, exceptions, standstill
from tavrida.plugins.transports import QueueState
from tavrida.service import ServiceController
from tests.broker.conftest import QUEUE, Connect, Serve
from tests.transports.bench import Bench
from tests.waiting import DEADLINE, eventually

#: Seconds; far less than the time-out of the calls here.
AT_ONCE = 5.0


async def _awaited(call: Any) -> Any:
    return await call


@dispatcher.rpc_service("ring")
class Ring(ServiceController):
    """Calls itself."""

    together = threading.Barrier(1)
    gate = threading.Event()
    seen: SimpleQueue[Any] = SimpleQueue()

    @dispatcher.rpc_method(service="ring", method="inner")
    def inner(self, request: Any, proxy: Any, n: int = 0) -> dict[str, Any]:
        self.seen.put("inner")
        return {"n": n}

    @dispatcher.rpc_method(service="ring", method="gated")
    def gated(self, request: Any, proxy: Any) -> None:
        self.seen.put("gated")
        assert self.gate.wait(DEADLINE)

    @dispatcher.rpc_method(service="ring", method="outer")
    def outer(self, request: Any, proxy: Any, n: int = 0) -> dict[str, Any]:
        self.together.wait(DEADLINE)
        return {"n": proxy.ring.inner(n=n).wait(timeout=DEADLINE)["n"]}

    @dispatcher.rpc_method(service="ring", method="bold")
    def bold(self, request: Any, proxy: Any, n: int) -> None:
        """Goes on without the answer."""
        self.seen.put(n)
        with contextlib.suppress(exceptions.CallError):
            proxy.ring.gated().wait(timeout=DEADLINE)

    @dispatcher.rpc_method(service="ring", method="noted")
    def noted(self, request: Any, proxy: Any, n: int) -> None:
        self.seen.put(n)

    @dispatcher.rpc_method(service="ring", method="task")
    async def task(self, request: Any, proxy: Any, n: int = 0) -> dict[str, Any]:
        """Awaits what it calls."""
        return {"n": (await proxy.ring.inner(n=n))["n"]}

    @dispatcher.rpc_method(service="ring", method="either")
    async def either(self, request: Any, proxy: Any) -> dict[str, Any]:
        """Awaits what it calls for a while only, beside something else."""
        call = asyncio.ensure_future(_awaited(proxy.ring.inner(n=1)))
        done, _ = await asyncio.wait([call], timeout=0.5)
        call.cancel()
        return {"n": len(done)}

    @dispatcher.rpc_method(service="ring", method="thread")
    def thread(self, request: Any, proxy: Any) -> dict[str, Any]:
        """Ends before the thread that it starts has its answer."""
        answer: Future[Any] = Future()

        def ask() -> None:
            try:
                answer.set_result(proxy.ring.inner(n=5).wait(timeout=DEADLINE)["n"])
            except exceptions.CallError as error:
                answer.set_exception(error)
            self.seen.put(answer)

        threading.Thread(target=ask).start()
        assert self.gate.wait(DEADLINE)
        return {}


@pytest.fixture(autouse=True)
def _fresh() -> None:
    Ring.together = threading.Barrier(1)
    Ring.gate = threading.Event()
    Ring.seen = SimpleQueue()


def _in_line(server: Any) -> int:
    """How many requests were delivered to a server and have not begun."""
    return len(server._processor._turns.hall.waiting)


def test_the_only_worker_waits_for_itself(serve: Serve, connect: Connect) -> None:
    """The error names what cannot begin, the queue and the remedies; the server goes on."""
    serve(Ring, concurrency=1, prefetch=2)
    ring = connect("ring").ring
    began = time.monotonic()
    with pytest.raises(exceptions.RemoteError) as caught:
        ring.outer().call(timeout=DEADLINE)
    assert time.monotonic() - began < AT_ONCE
    for part in ("ring.inner cannot begin", "all 1 handlers", "'test_service'", "concurrency"):
        assert part in caught.value.message
    assert {"n": 1} == ring.inner(n=1).call(timeout=DEADLINE).payload
    assert "inner" == Ring.seen.get_nowait()
    assert Ring.seen.empty()


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_the_only_worker_of_the_only_process_waits_for_itself(
    serve: Serve, connect: Connect, queue_type: str
) -> None:
    """Also where its prefetch is used up, and behind what came before."""
    Ring.together = threading.Barrier(2)
    serve(Ring, concurrency=1, queue_type=queue_type)
    ring = connect("ring").ring
    first = ring.outer().future(timeout=DEADLINE)
    others = [ring.inner(n=n).future(timeout=DEADLINE) for n in range(20)]
    ring.inner().cast()  # confirmed after those before it
    began = time.monotonic()
    Ring.together.wait(DEADLINE)
    with pytest.raises(exceptions.RemoteError, match=r"ring\.inner cannot begin"):
        first.result(DEADLINE)
    assert time.monotonic() - began < AT_ONCE
    assert list(range(20)) == [each.result(DEADLINE)["n"] for each in others]


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_standstills_end_one_after_the_other(
    serve: Serve, connect: Connect, queue_type: str
) -> None:
    """Also while messages are held that were taken in to end the one before."""
    serve(Ring, concurrency=2, queue_type=queue_type)
    ring = connect("ring").ring
    began = time.monotonic()
    answers = [ring.outer(n=n).future(timeout=DEADLINE) for n in range(8)]
    errors = [answer.exception(DEADLINE) for answer in answers]
    assert time.monotonic() - began < AT_ONCE
    assert any(errors)
    for error in filter(None, errors):
        assert "ring.inner cannot begin" in str(error)
    assert {"n": 1} == ring.inner(n=1).call(timeout=DEADLINE).payload


def test_a_handler_that_awaits_what_cannot_begin_is_told(serve: Serve, connect: Connect) -> None:
    """As one that waits with ``wait``."""
    serve(Ring, concurrency=1)
    ring = connect("ring").ring
    began = time.monotonic()
    with pytest.raises(exceptions.RemoteError, match=r"ring\.inner cannot begin"):
        ring.task().call(timeout=DEADLINE)
    assert time.monotonic() - began < AT_ONCE
    assert {"n": 1} == ring.inner(n=1).call(timeout=DEADLINE).payload


def test_a_handler_that_may_go_on_without_the_answer_is_not_told(
    serve: Serve, connect: Connect
) -> None:
    """It awaits a task of its own, for a time of its own."""
    serve(Ring, concurrency=1, prefetch=5)
    ring = connect("ring").ring
    assert {"n": 0} == ring.either().call(timeout=DEADLINE).payload


def test_all_workers_wait_for_each_other(serve: Serve, connect: Connect) -> None:
    """One is told; the place that it leaves is enough for the others."""
    Ring.together = threading.Barrier(3)
    serve(Ring, concurrency=3, prefetch=20)
    ring = connect("ring").ring
    began = time.monotonic()
    answers = [ring.outer(n=n).future(timeout=DEADLINE) for n in range(3)]
    errors = [answer.exception(DEADLINE) for answer in answers]
    assert time.monotonic() - began < AT_ONCE
    (told,) = filter(None, errors)
    assert "ring.inner cannot begin" in str(told)
    assert sorted(answer.result()["n"] for answer in answers if not answer.exception()) == [
        n for n in range(3) if errors[n] is None
    ]


def test_none_is_told_while_another_handler_runs_that_may_end(
    serve: Serve, connect: Connect
) -> None:
    """It may take long, but it is no deadlock."""
    server = serve(Ring, concurrency=2, prefetch=20)
    ring = connect("ring").ring
    busy = ring.gated().future(timeout=DEADLINE)
    assert "gated" == Ring.seen.get(timeout=DEADLINE)
    answer = ring.outer(n=7).future(timeout=DEADLINE)
    eventually(lambda: _in_line(server) == 1 and server._processor.standstill._awaited)
    Ring.gate.set()
    assert 7 == answer.result(DEADLINE)["n"]
    assert {} == busy.result(DEADLINE).payload


def test_none_is_told_where_another_process_of_the_service_may_take_it(
    serve: Serve, connect: Connect
) -> None:
    """It was not delivered here, and so it is not known that nobody takes it."""
    serve(Ring, concurrency=1)
    ring = connect("ring").ring
    serve(Ring, concurrency=1)
    gated = ring.gated().future(timeout=DEADLINE)
    assert "gated" == Ring.seen.get(timeout=DEADLINE)
    answer = ring.outer(n=8).future(timeout=DEADLINE)
    with pytest.raises(TimeoutError):
        answer.result(0.5)
    Ring.gate.set()
    assert {} == gated.result(DEADLINE).payload
    assert 8 == answer.result(DEADLINE)["n"]


def test_none_is_told_when_a_thread_waits_that_its_handler_does_not_wait_for(
    serve: Serve, connect: Connect
) -> None:
    """The handler may end, and does."""
    server = serve(Ring, concurrency=1, prefetch=5)
    asked = connect("ring").ring.thread().future(timeout=DEADLINE)
    eventually(lambda: _in_line(server) == 1)
    Ring.gate.set()
    assert {} == asked.result(DEADLINE).payload
    assert "inner" == Ring.seen.get(timeout=DEADLINE)
    assert 5 == Ring.seen.get(timeout=DEADLINE).result(DEADLINE)


def test_a_server_that_stops_takes_nothing_in_any_more(
    serve: Serve, connect: Connect, url: str
) -> None:
    """It would only be given back, again and again, until the queue takes it for deadly."""
    Ring.together = threading.Barrier(2)
    server = serve(Ring, concurrency=1, queue_type="quorum", graceful_timeout=0.5)
    client = connect("ring")
    client.ring.outer().cast()
    with client.pipeline():
        for n in range(400):
            client.ring.inner(n=n).cast()
    Ring.together.wait(DEADLINE)
    eventually(lambda: _in_line(server) > 20)
    server.stop()
    with Bench(url) as bench:
        looking = bench.connect()
        # All of them, and what waited for the last one.
        eventually(lambda: looking.inspect(QUEUE) == QueueState(402, 0))
        headers = [each.properties.headers or {} for each in bench.drain(QUEUE)]
        assert QueueState(0, 0) == looking.inspect(f"{QUEUE}.dead")
    assert max(each.get("x-delivery-count", 0) for each in headers) <= 2


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_one_handler_at_a_time_keeps_the_order_over_standstills(
    serve: Serve, connect: Connect, queue_type: str
) -> None:
    """What is taken in to end one does not overtake what the queue delivers meanwhile."""
    serve(Ring, concurrency=1, prefetch=2, queue_type=queue_type)
    client = connect("ring")
    with client.pipeline():
        for n in range(200):
            (client.ring.noted if n % 10 else client.ring.bold)(n=n).cast()
    assert list(range(200)) == [Ring.seen.get(timeout=DEADLINE) for _ in range(200)]


def test_none_is_told_in_line_while_another_process_may_take_requests(
    serve: Serve, connect: Connect, amqp_url: str
) -> None:
    """Also where it was delivered here: this process may end, and the other one is idle."""
    Ring.together = threading.Barrier(2)
    servers = [serve(Ring, concurrency=1, prefetch=5) for _ in range(2)]
    ring = connect("ring").ring
    answer = ring.outer().future(timeout=1.0)
    assert 1 == ring.inner(n=1).call(timeout=DEADLINE)["n"]  # the turn of the other one
    Ring.together.wait(DEADLINE)
    eventually(lambda: sum(map(_in_line, servers)) == 1)
    with pytest.raises(exceptions.CallTimeout):
        answer.result(DEADLINE)


def test_what_was_delivered_anyway_is_no_part_of_what_is_taken_in(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prefetch beyond the limit leaves room to find the request."""
    monkeypatch.setattr(standstill, "MAX_TAKEN_IN", 5)
    Ring.together = threading.Barrier(2)
    server = serve(Ring, concurrency=1, prefetch=20)
    client = connect("ring")
    answer = client.ring.outer().future(timeout=DEADLINE)
    eventually(lambda: Ring.together.n_waiting == 1)
    with client.pipeline():
        for n in range(22):
            client.ring.inner(n=n).cast()
    eventually(lambda: _in_line(server) == 19)
    began = time.monotonic()
    Ring.together.wait(DEADLINE)
    with pytest.raises(exceptions.RemoteError, match=r"ring\.inner cannot begin"):
        answer.result(DEADLINE)
    assert time.monotonic() - began < AT_ONCE
