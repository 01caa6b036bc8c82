# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""AsyncRPCClient, the client of asyncio programs."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

import pytest

from tavrida import discovery, dispatcher, exceptions, messages
from tavrida.client import AsyncRPCClient
from tavrida.config import ConnectionConfig
from tavrida.service import ServiceController
from tests.broker.conftest import EXCHANGE, Connect, Serve
from tests.waiting import DEADLINE, eventually

NewClient = Callable[..., AsyncRPCClient]


class NotFound(Exception):
    code = 4711


@dispatcher.rpc_service("shop")
class Shop(ServiceController):
    """One method a behaviour."""

    seen: SimpleQueue[Any] = SimpleQueue()

    @dispatcher.rpc_method(service="shop", method="echo")
    async def echo(self, request: Any, proxy: Any, **values: Any) -> dict[str, Any]:
        return values

    @dispatcher.rpc_method(service="shop", method="note")
    async def note(self, request: Any, proxy: Any, n: int) -> None:
        self.seen.put(n)

    @dispatcher.rpc_method(service="shop", method="slow")
    async def slow(self, request: Any, proxy: Any, seconds: float) -> dict[str, Any]:
        await asyncio.sleep(seconds)
        return {"slept": seconds}

    @dispatcher.rpc_method(service="shop", method="fails")
    async def fails(self, request: Any, proxy: Any) -> None:
        raise NotFound("no such thing")

    @dispatcher.subscription_method(service="press", method="news")
    async def news(self, event: Any, proxy: Any, text: str) -> None:
        self.seen.put(text)


PRESS = discovery.LocalDiscovery()
PRESS.register_remote_publisher("press", "press")
Shop.set_discovery(PRESS)


@pytest.fixture
def new_client(config: ConnectionConfig) -> NewClient:
    """Make a client that knows where `Shop` is."""

    def make(config: ConnectionConfig = config, **more: Any) -> AsyncRPCClient:
        known = discovery.LocalDiscovery()
        known.register_remote_service("shop", EXCHANGE)
        known.register_local_publisher("press", "press")
        return AsyncRPCClient(config, discovery=known, **more)

    return make


@pytest.fixture
def served(serve: Serve) -> None:
    """`Shop` is there, with nothing seen."""
    Shop.seen = SimpleQueue()
    serve(Shop, concurrency=500, graceful_timeout=0.1)


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """Run a program, which has no business to take long."""
    return asyncio.run(asyncio.wait_for(main, 2 * DEADLINE))


def waiters(client: AsyncRPCClient) -> dict[str, Any]:
    """Who waits for answers."""
    link = client._sender._link
    assert link is not None
    return link.caller._waiters


def test_an_asyncio_program_calls_casts_and_publishes(served: None, new_client: NewClient) -> None:
    """All of it is awaited; the request itself may be, too."""

    async def main() -> None:
        async with new_client(source="press.news") as client:
            answer = await client.shop.echo(a=1).call(timeout=DEADLINE)
            assert isinstance(answer, messages.IncomingResponse)
            assert {"a": 1} == answer.payload
            assert 2 == (await client.shop.echo(a=2))["a"]
            assert 3 == (await client["shop"]["echo"](a=3))["a"]
            await client.shop.note(n=4).cast(correlation_id="c")
            await client.publish(text="news")

    run(main())
    assert {4, "news"} == {Shop.seen.get(timeout=DEADLINE) for _ in range(2)}


def test_with_a_service_its_attributes_are_methods(served: None, new_client: NewClient) -> None:
    """As those of RPCClient."""

    async def main() -> Any:
        async with new_client(service="shop") as client:
            return (await client.echo(a=1))["a"]

    assert 1 == run(main())


def test_errors_are_those_of_the_other_client(served: None, new_client: NewClient) -> None:
    """Remote, local by raises(), no answer in time, nobody there, not known."""

    async def main() -> None:
        async with new_client() as client:
            with pytest.raises(exceptions.RemoteError, match="no such thing") as caught:
                await client.shop.fails().call(timeout=DEADLINE)
            assert ("NotFound", 4711) == (caught.value.error_class, caught.value.code)
            with pytest.raises(NotFound, match="no such thing"):
                await client.shop.fails().raises(NotFound)
            with pytest.raises(exceptions.CallTimeout, match=r"shop\.slow"):
                await client.shop.slow(seconds=30.0).call(timeout=0.05)
            with pytest.raises(exceptions.ServiceUnknown):
                await client.nobody.x().cast()
            with pytest.raises(exceptions.MessageError):
                await client.shop.echo(a=object()).cast()
            with pytest.raises(exceptions.MessageError):
                await client.shop.echo(a=object()).call()
            with pytest.raises(ValueError, match="timeout=0 should be above 0"):
                await client.shop.echo().call(timeout=0)
            with pytest.raises(exceptions.WrongEntryPoint):
                await client.publish(a=1)
            assert {} == waiters(client)

    run(main())


def test_a_service_that_nobody_runs_is_told_at_once(new_client: NewClient) -> None:
    """By a call and by a cast."""

    async def main() -> None:
        async with new_client() as client:
            for send in (client.shop.echo().cast, client.shop.echo().call):
                with pytest.raises(exceptions.ServiceUnavailable, match=r"shop\.echo"):
                    await send()

    began = time.monotonic()
    run(main())
    assert time.monotonic() - began < DEADLINE


@pytest.mark.parametrize("count", [500, pytest.param(5000, marks=pytest.mark.slow)])
def test_many_calls_are_in_flight_by_gather(
    served: None, new_client: NewClient, count: int
) -> None:
    """500 handlers of 50 ms side by side; each task has its own answer, and nothing stays."""

    async def main() -> float:
        async with new_client() as client:
            await client.shop.echo()
            began = time.monotonic()
            calls = [client.shop.slow(seconds=0.05 + n / 1e6).call() for n in range(count)]
            answers = await asyncio.gather(*calls)
            assert [0.05 + n / 1e6 for n in range(count)] == [each["slept"] for each in answers]
            assert {} == waiters(client)
            return time.monotonic() - began

    assert run(main()) < count * 0.025  # half of what one after the other would take


def test_more_messages_than_may_be_unconfirmed_wait_for_their_turn(
    served: None, new_client: NewClient, config: ConnectionConfig
) -> None:
    """They are kept and sent as confirms come; none is lost or refused."""

    async def main() -> list[Any]:
        async with new_client(replace(config, max_unconfirmed=5)) as client:
            answers = await asyncio.gather(*(client.shop.echo(n=n).call() for n in range(100)))
            await asyncio.gather(*(client.shop.note(n=n).cast() for n in range(100)))
            return [each["n"] for each in answers]

    assert list(range(100)) == run(main())
    assert set(range(100)) == {Shop.seen.get(timeout=DEADLINE) for _ in range(100)}


def test_a_pipeline_confirms_at_its_end(
    served: None, new_client: NewClient, config: ConnectionConfig
) -> None:
    """Casts inside of it, also by tasks, go on at once; failures are told together."""

    async def main() -> None:
        async with new_client(replace(config, max_unconfirmed=20)) as client:
            async with client.pipeline():
                for n in range(50):
                    await client.shop.note(n=n).cast()
                await asyncio.gather(*(client.shop.note(n=n).cast() for n in range(50, 100)))

            async def fail() -> None:
                async with client.pipeline():
                    await client.shop.note(n=100).cast()
                    await client.shop.note(n=object()).cast()

            with pytest.raises(exceptions.PipelineFailed) as caught:
                await fail()
            assert 1 == len(caught.value.failures)

    run(main())
    assert set(range(101)) == {Shop.seen.get(timeout=DEADLINE) for _ in range(101)}


@pytest.mark.parametrize("how", ["cancel", "timeout", "wait_for"])
def test_a_cancelled_call_is_forgotten_at_once(
    served: None, new_client: NewClient, how: str
) -> None:
    """By cancellation of the task and by asyncio's own time-outs; its answer is a late one."""

    async def main() -> None:
        async with new_client() as client:
            await client.shop.echo()
            call = client.shop.slow(seconds=0.5).call(timeout=60)
            if how == "cancel":
                task = asyncio.create_task(call)
                await asyncio.to_thread(eventually, lambda: waiters(client))
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            elif how == "wait_for":
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(call, 0.1)
            else:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await call
            await asyncio.to_thread(eventually, lambda: not waiters(client))
            link = client._sender._link
            assert link is not None
            caller = link.caller
            await asyncio.to_thread(eventually, lambda: caller.late_answers)

    run(main())


def test_cancelling_the_first_call_leaves_nothing(served: None, new_client: NewClient) -> None:
    """While it is still connecting; others that wait for the same connection get it."""

    async def main() -> None:
        async with new_client() as client:
            first = asyncio.create_task(client.shop.echo(a=1).call())
            second = asyncio.create_task(client.shop.echo(a=2).call())
            await asyncio.sleep(0)
            first.cancel()
            assert 2 == (await second)["a"]
            assert first.cancelled()
            assert {} == waiters(client)

    run(main())


def test_the_future_of_the_plain_client_can_be_cancelled(served: None, connect: Connect) -> None:
    """It has no waiter any more then."""
    client = connect("shop")
    client.shop.echo().call()
    future = client.shop.slow(seconds=30.0).future(timeout=60)
    link = client._sender._link
    assert link is not None
    assert future.cancel()
    eventually(lambda: not link.caller._waiters)
    assert {} == client.shop.echo().call().payload


def test_the_event_loop_is_never_blocked(
    served: None, new_client: NewClient, config: ConnectionConfig
) -> None:
    """Not while it connects to what is not there, nor at its first message, nor by closing."""
    nowhere = "amqp://guest:guest@127.0.0.1:1/"

    async def ticks(stop: asyncio.Event) -> float:
        longest, last = 0.0, time.monotonic()
        while not stop.is_set():
            await asyncio.sleep(0.005)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        return longest

    async def main() -> float:
        stop = asyncio.Event()
        clock = asyncio.create_task(ticks(stop))
        hopeless = replace(config, url=(nowhere,), connection_attempts=3, retry_delay=0.5)
        async with new_client(hopeless) as client:
            with pytest.raises(exceptions.ConnectionFailed):
                await client.shop.echo()
        async with new_client() as client:
            await client.shop.echo()
        stop.set()
        return await clock

    assert run(main()) < 0.8


def test_a_closed_client_says_so(served: None, new_client: NewClient) -> None:
    """Calls that wait end with CallInterrupted, later ones with ConnectionFailed."""

    async def main() -> None:
        client = new_client()
        await client.shop.echo()
        waiting = asyncio.create_task(client.shop.slow(seconds=30.0).call())
        await asyncio.to_thread(eventually, lambda: waiters(client))
        await client.close()
        await client.close()
        with pytest.raises(exceptions.CallInterrupted):
            await waiting
        for send in (client.shop.echo().call, client.shop.echo().cast):
            with pytest.raises(exceptions.ConnectionFailed, match="closed"):
                await send()

    run(main())


def test_a_client_belongs_to_no_event_loop(served: None, new_client: NewClient) -> None:
    """One after the other and side by side, each in its thread."""
    client = new_client()

    async def main(n: int) -> Any:
        return (await client.shop.echo(n=n))["n"]

    assert [0, 1] == [run(main(n)) for n in range(2)]
    found: SimpleQueue[int] = SimpleQueue()
    threads = [threading.Thread(target=lambda n=n: found.put(run(main(n)))) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert set(range(4)) == {found.get(timeout=DEADLINE) for _ in range(4)}
    run(client.close())


def test_a_client_that_is_forgotten_does_no_harm(served: None, new_client: NewClient) -> None:
    """Its connection closes when nobody has it any more."""

    async def main() -> Any:
        client = new_client()
        await client.shop.echo()
        link = client._sender._link
        assert link is not None
        return link

    link = run(main())
    gc.collect()
    eventually(lambda: not link.loop._thread.is_alive())


def test_a_finalizer_may_run_on_the_thread_that_it_ends(
    served: None, new_client: NewClient
) -> None:
    """The garbage collector runs it wherever it happens to work."""

    async def main() -> Any:
        client = new_client()
        await client.shop.echo()
        link = client._sender._link
        assert link is not None
        link.loop.submit(link.close)
        return client, link

    _client, link = run(main())  # kept, so that it does not end the thread itself
    eventually(lambda: not link.loop._thread.is_alive())
    assert link.transport._is_closing


def test_a_forked_child_connects_once_more(served: None, new_client: NewClient) -> None:
    """The connection is the parent's, which goes on with it."""
    client = new_client()

    async def echo(n: int) -> Any:
        return (await client.shop.echo(n=n).call(timeout=DEADLINE))["n"]

    assert 1 == run(echo(1))
    fork = multiprocessing.get_context("fork")
    numbers = fork.SimpleQueue()
    child = fork.Process(target=lambda: numbers.put(run(echo(2))), daemon=True)
    child.start()
    child.join(DEADLINE)
    assert (0, 2) == (child.exitcode, numbers.get())
    assert 3 == run(echo(3))
    run(client.close())


def test_a_plain_client_in_an_async_handler_is_told_not_to_block(
    serve: Serve, connect: Connect, new_client: NewClient
) -> None:
    """It would stand still with the whole server; the async client works there."""
    plain, other = connect("shop"), new_client(service="shop")

    @dispatcher.rpc_service("desk")
    class Desk(ServiceController):
        @dispatcher.rpc_method(service="desk", method="plain")
        async def plain(self, request: Any, proxy: Any, how: str) -> None:
            getattr(plain.shop.echo(), how)()

        @dispatcher.rpc_method(service="desk", method="fitting")
        async def fitting(self, request: Any, proxy: Any) -> Any:
            return {"n": (await other.echo(n=1).call(timeout=DEADLINE))["n"]}

    serve(Desk, queue="desk")
    serve(Shop, queue="shop")
    desk = connect("desk").desk
    for how in ("call", "wait", "cast"):
        with pytest.raises(exceptions.RemoteError, match="AsyncRPCClient"):
            desk.plain(how=how).call(timeout=DEADLINE)
    assert 1 == desk.fitting().call(timeout=DEADLINE)["n"]
    run(other.close())
