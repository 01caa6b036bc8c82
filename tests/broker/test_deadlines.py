# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Deadlines travel: the time that a caller has left is all that those behind it have."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from tavrida import discovery, dispatcher, exceptions
from tavrida.config import ConnectionConfig
from tavrida.service import ServiceController
from tests.broker.conftest import EXCHANGE, Connect, Serve, next_of
from tests.waiting import DEADLINE

#: Seconds that the first caller of the chain has, and that nobody needs.
TIME, MORE = 0.3, 10.0


@pytest.mark.parametrize("way", ["plain", "awaiting"])
def test_the_time_of_a_chain_of_four_services_ends_for_all_at_once(
    serve: Serve,
    connect: Connect,
    way: str,
    record_property: Callable[[str, object], None],
) -> None:
    """A calls B, which calls C, which calls D, which sleeps: each has what is left, and no more.

    The caller hears of it in time, whatever time-outs those in between wished for, and what comes
    too late is not run.
    """
    left: SimpleQueue[tuple[str, float | None]] = SimpleQueue()

    def link(name: str, following: str) -> type[ServiceController]:
        @dispatcher.rpc_service(name)
        class Link(ServiceController):
            @dispatcher.rpc_method(service=name, method="plain")
            def plain(self, request: Any, proxy: Any, seconds: float) -> None:
                left.put((name, request.time_left))
                proxy[following].plain(seconds=seconds).wait(timeout=MORE)

            @dispatcher.rpc_method(service=name, method="awaiting")
            async def awaiting(self, request: Any, proxy: Any, seconds: float) -> None:
                left.put((name, request.time_left))
                await proxy[following].awaiting(seconds=seconds)

        Link.set_discovery(known)
        return Link

    @dispatcher.rpc_service("d")
    class Last(ServiceController):
        @dispatcher.rpc_method(service="d", method="plain")
        def plain(self, request: Any, proxy: Any, seconds: float) -> None:
            left.put(("d", request.time_left))
            time.sleep(seconds)

        @dispatcher.rpc_method(service="d", method="awaiting")
        async def awaiting(self, request: Any, proxy: Any, seconds: float) -> None:
            left.put(("d", request.time_left))
            await asyncio.sleep(seconds)

    known = discovery.LocalDiscovery()
    for name in "abcd":
        known.register_remote_service(name, name)
    for name, following in zip("abc", "bcd", strict=True):
        serve(link(name, following), queue=name, exchange=name, graceful_timeout=0.1)
    serve(Last, queue="d", exchange="d", graceful_timeout=0.1)
    client = connect(discovery=known)
    client.a[way](seconds=0.0).call(timeout=DEADLINE)  # makes every connection and reply queue
    left = SimpleQueue()
    began = time.monotonic()
    with pytest.raises(exceptions.CallTimeout):
        client.a[way](seconds=MORE).call(timeout=TIME)
    took = time.monotonic() - began
    record_property("milliseconds", round(1000 * took))
    assert TIME <= took < 2 * TIME
    hops = [left.get(timeout=DEADLINE) for _ in range(left.qsize())]
    # On a busy machine the time may be over before it gets to D, which does not begin then.
    assert list("abcd")[: len(hops)] == [name for name, _ in hops]
    times = [seconds for _, seconds in hops]
    assert all(seconds is not None and 0 < seconds <= TIME for seconds in times)
    assert times == sorted(times, reverse=True)  # type: ignore[type-var]


@dispatcher.rpc_service("late")
class Late(ServiceController):
    """What handlers can do when no time is left."""

    seen: SimpleQueue[Any] = SimpleQueue()

    async def _outlast(self, request: Any) -> None:
        await asyncio.sleep(request.time_left + 0.01)

    @dispatcher.rpc_method(service="late", method="tries")
    async def tries(self, request: Any, proxy: Any, how: str) -> None:
        await self._outlast(request)
        ways: dict[str, Any] = {
            "await": proxy.late.runs,
            "future": lambda: asyncio.wrap_future(proxy.late.runs().future(timeout=MORE)),
            "call": lambda: proxy.late.runs().call(),
            "transfer": lambda: proxy.late.runs().transfer(request),
        }
        try:
            waiting = ways[how]()
            if waiting is not None:
                await waiting
        except exceptions.CallTimeout as error:
            self.seen.put(str(error))

    @dispatcher.rpc_method(service="late", method="casts")
    async def casts(self, request: Any, proxy: Any) -> None:
        await self._outlast(request)
        proxy.late.runs().cast()

    @dispatcher.rpc_method(service="late", method="runs")
    async def runs(self, request: Any, proxy: Any) -> None:
        self.seen.put(request.time_left)

    @dispatcher.rpc_response_method(service="late", method="runs")
    async def ran(self, response: Any, proxy: Any) -> None:
        """Take the answer that `call` needs."""

    @dispatcher.rpc_method(service="late", method="asks")
    async def asks(self, request: Any, proxy: Any, how: str) -> dict[str, Any]:
        call = proxy.late.tells()
        answer = await (call if how == "await" else asyncio.wrap_future(call.future(MORE)))
        return {"mine": request.time_left, "theirs": answer["left"]}

    @dispatcher.rpc_method(service="late", method="hands_on")
    async def hands_on(self, request: Any, proxy: Any) -> None:
        proxy.late.tells().transfer(request)

    @dispatcher.rpc_method(service="late", method="tells")
    async def tells(self, request: Any, proxy: Any) -> dict[str, Any]:
        return {"left": request.time_left}


@pytest.mark.parametrize("how", ["await", "future", "call", "transfer"])
def test_a_call_without_time_ends_at_once_and_sends_nothing(
    serve: Serve, connect: Connect, how: str
) -> None:
    """The CallTimeout says that nothing was sent."""
    Late.seen = SimpleQueue()
    Late.set_discovery(_known())
    serve(Late)
    client = connect("late")
    with pytest.raises(exceptions.CallTimeout):
        client.late.tries(how=how).call(timeout=0.1)
    assert "nothing was sent" in Late.seen.get(timeout=DEADLINE)
    client.late.tells().call(timeout=DEADLINE)
    assert Late.seen.empty()


def test_a_cast_has_no_deadline(serve: Serve, connect: Connect) -> None:
    """Nobody waits for it: it is done also when its sender's caller has given up."""
    Late.seen = SimpleQueue()
    Late.set_discovery(_known())
    serve(Late)
    with pytest.raises(exceptions.CallTimeout):
        connect("late").late.casts().call(timeout=0.1)
    assert Late.seen.get(timeout=DEADLINE) is None


@pytest.mark.parametrize("how", ["await", "future"])
def test_calls_of_a_handler_inherit_what_is_left(serve: Serve, connect: Connect, how: str) -> None:
    """What is left wins over a time-out that is longer."""
    Late.set_discovery(_known())
    serve(Late)
    answer = connect("late").late.asks(how=how).call(timeout=5)
    assert 0 < answer["mine"] <= answer["theirs"] <= 5


def test_a_transferred_request_keeps_its_deadline(serve: Serve, connect: Connect) -> None:
    """Its caller is the same."""
    Late.set_discovery(_known())
    serve(Late)
    assert 0 < connect("late").late.hands_on().call(timeout=5)["left"] <= 5


def test_an_await_that_is_given_up_in_a_handler_leaves_no_waiter(
    serve: Serve, connect: Connect
) -> None:
    """asyncio.timeout around it is enough."""

    @dispatcher.rpc_service("hasty")
    class Hasty(ServiceController):
        @dispatcher.rpc_method(service="hasty", method="asks")
        async def asks(self, request: Any, proxy: Any) -> None:
            async with asyncio.timeout(0.05):
                await proxy.hasty.sleeps()

        @dispatcher.rpc_method(service="hasty", method="sleeps")
        async def sleeps(self, request: Any, proxy: Any) -> None:
            await asyncio.sleep(MORE)

    Hasty.set_discovery(_known("hasty"))
    server = serve(Hasty, graceful_timeout=0.1)
    with pytest.raises(exceptions.RemoteError, match="TimeoutError"):
        connect("hasty").hasty.asks().call(timeout=DEADLINE)
    assert {} == server._caller._waiters


def test_a_foreign_caller_that_names_no_deadline_has_the_default(
    serve: Serve, channel: BlockingChannel
) -> None:
    """It waits, and does not say for how long; what its handler calls shall end, too."""
    Late.set_discovery(_known())
    serve(Late)
    reply = channel.queue_declare("", exclusive=True).method.queue
    properties = pika.BasicProperties(reply_to=reply, correlation_id="c")
    channel.basic_publish(EXCHANGE, "late.tells", b"{}", properties)
    _, _, body = next_of(channel, reply)
    left = json.loads(body)["left"]
    assert 0 < left <= ConnectionConfig().call_timeout


def test_a_continuation_without_a_deadline_stays_so(serve: Serve, connect: Connect) -> None:
    """Nobody waits for its answer in a process: it may take its time, as a cast may."""
    seen: SimpleQueue[Any] = SimpleQueue()

    @dispatcher.rpc_service("long")
    class Long(ServiceController):
        @dispatcher.rpc_method(service="long", method="begins")
        def begins(self, request: Any, proxy: Any) -> None:
            proxy.long.works().call()

        @dispatcher.rpc_method(service="long", method="works")
        def works(self, request: Any, proxy: Any) -> None:
            seen.put((request.expects_answer, request.time_left))

        @dispatcher.rpc_response_method(service="long", method="works")
        def done(self, response: Any, proxy: Any) -> None:
            seen.put(response.time_left)

    Long.set_discovery(_known("long"))
    serve(Long)
    connect("long").long.begins().cast()
    assert (True, None) == seen.get(timeout=DEADLINE)
    assert seen.get(timeout=DEADLINE) is None


def _known(service: str = "late") -> discovery.LocalDiscovery:
    known = discovery.LocalDiscovery()
    known.register_remote_service(service, EXCHANGE)
    return known
