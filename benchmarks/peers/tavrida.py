# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""tavrida, written as its users do. Everything that a user need not set has its default, but:

``concurrency`` is 100, as the prefetch of the others, and the queues are classic, as theirs are;
and servers have the garbage collector look as seldom as ``tavrida-server`` does.

| variant | what is different |
|---|---|
| def | handlers are plain functions in threads; 64 threads call with ``RPCClient`` |
| futures | calls with ``.future()`` of ``RPCClient``, from one thread |
| msgpack | bodies are MessagePack |
| quorum | queues are quorum queues, tavrida's default |
| untyped | handlers without annotations: payloads are not checked |
| middleware | one that does nothing sees what comes in, another what goes out |
| dedup | the middleware of that name, with its store in memory |
| confirmed | each event is confirmed before the next one is published |
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
from collections.abc import Mapping
from typing import Any

from benchmarks.peers._roles import (
    FIRST,
    PREFETCH,
    TIMEOUT,
    Seen,
    Tally,
    Task,
    async_tasks,
    clean_with_pika,
    in_threads,
    in_window,
    one_by_one,
    play,
    ready,
)
from tavrida.client import AsyncRPCClient, RPCClient
from tavrida.config import ConnectionConfig
from tavrida.discovery import LocalDiscovery
from tavrida.dispatcher import rpc_method, rpc_service, subscription_method
from tavrida.middleware import Middleware
from tavrida.server import Server
from tavrida.service import ServiceController


@rpc_service("echo")
class Echo(ServiceController):
    """Answers calls."""

    @rpc_method(service="echo", method="number")
    async def number(self, request: Any, proxy: Any, param: int) -> dict[str, Any]:
        """Return the number."""
        return {"param": param}

    @rpc_method(service="echo", method="text")
    async def text(self, request: Any, proxy: Any, param: str) -> dict[str, Any]:
        """Return the text."""
        return {"param": param}


@rpc_service("echo")
class PlainEcho(ServiceController):
    """Answers calls, with plain functions."""

    @rpc_method(service="echo", method="number")
    def number(self, request: Any, proxy: Any, param: int) -> dict[str, Any]:
        """Return the number."""
        return {"param": param}

    @rpc_method(service="echo", method="text")
    def text(self, request: Any, proxy: Any, param: str) -> dict[str, Any]:
        """Return the text."""
        return {"param": param}


@rpc_service("echo")
class UntypedEcho(ServiceController):
    """Answers calls, whatever they carry."""

    @rpc_method(service="echo", method="number")
    async def number(self, request, proxy, param):  # type: ignore[no-untyped-def]
        """Return the number."""
        return {"param": param}


@rpc_service("echo")
class WatchedEcho(Echo):
    """Answers calls, with middleware on both sides."""

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(options)
        self.add_incoming_middleware(Middleware())
        self.add_outgoing_middleware(Middleware())


#: What the handlers of events tell; they have no other way to find it.
seen: Seen


@rpc_service("ledger")
class Ledger(ServiceController):
    """Hears of orders."""

    @subscription_method(service="order", method="created")
    async def created(self, notification: Any, proxy: Any, seq: int, name: str, pad: str) -> None:
        """Count an order."""
        seen.handle({"seq": seq, "name": name, "pad": pad})


@rpc_service("ledger")
class PlainLedger(ServiceController):
    """Hears of orders, with a plain function."""

    @subscription_method(service="order", method="created")
    def created(self, notification: Any, proxy: Any, seq: int, name: str, pad: str) -> None:
        """Count an order."""
        seen.handle({"seq": seq, "name": name, "pad": pad})


@rpc_service("ledger")
class UntypedLedger(ServiceController):
    """Hears of orders, whatever they carry."""

    @subscription_method(service="order", method="created")
    async def created(self, notification, proxy, seq, name, pad):  # type: ignore[no-untyped-def]
        """Count an order."""
        seen.handle({"seq": seq, "name": name, "pad": pad})


@rpc_service("ledger")
class WatchedLedger(Ledger):
    """Hears of orders, with middleware."""

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(options)
        self.add_incoming_middleware(Middleware())


#: By variant: who answers calls, and who hears of orders.
CONTROLLERS: dict[str, tuple[type[ServiceController], type[ServiceController]]] = {
    "def": (PlainEcho, PlainLedger),
    "untyped": (UntypedEcho, UntypedLedger),
    "middleware": (WatchedEcho, WatchedLedger),
}

#: By variant: other arguments of Server.
SETTINGS: dict[str, dict[str, Any]] = {
    "quorum": {"queue_type": "quorum"},
    "msgpack": {"serializer": "msgpack"},
    "dedup": {"incoming_middleware": ("dedup",)},
}


def controllers_of(task: Task) -> tuple[type[ServiceController], type[ServiceController]]:
    return CONTROLLERS.get(task.variant, (Echo, Ledger))


def discovery_of(task: Task) -> LocalDiscovery:
    """Return where the services of this run are."""
    discovery = LocalDiscovery()
    discovery.register_remote_service("echo", task.name)
    discovery.register_local_publisher("order", task.exchange)
    discovery.register_remote_publisher("order", task.exchange)
    return discovery


def serializer_of(task: Task) -> str:
    return "msgpack" if task.variant == "msgpack" else "json"


def server_of(task: Task, queue: str, controller: type[ServiceController]) -> Server:
    controller.set_discovery(discovery_of(task))
    defaults: dict[str, Any] = {"queue_type": "classic", "concurrency": PREFETCH}
    settings = defaults | SETTINGS.get(task.variant, {})
    config = ConnectionConfig(url=(task.url,), async_engine=True)
    return Server(config, queue, task.name, [controller], **settings)


def run(server: Server) -> None:
    """Serve until SIGTERM."""
    gc.set_threshold(10_000)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    with server:
        ready()
        signal.sigwait([signal.SIGTERM])


def serve(task: Task) -> None:
    run(server_of(task, task.name, controllers_of(task)[0]))


def consume(task: Task) -> None:
    global seen  # noqa: PLW0603 - the only way to hand something to a controller
    seen = Seen(task)
    run(server_of(task, task.queue, controllers_of(task)[1]))


def client_of(task: Task) -> RPCClient:
    return RPCClient(
        ConnectionConfig(url=(task.url,)),
        service="echo",
        discovery=discovery_of(task),
        source="order.created",
        serializer=serializer_of(task),
    )


def call(task: Task) -> None:
    with client_of(task) as client:
        echo = client.text if task.size else client.number
        one_by_one(task, lambda param: echo(param=param).call(timeout=TIMEOUT).payload)


def calls(task: Task) -> None:
    if task.variant == "def":
        calls_in_threads(task)
    elif task.variant == "futures":
        calls_with_futures(task)
    else:
        asyncio.run(calls_in_tasks(task))


async def calls_in_tasks(task: Task) -> None:
    async with AsyncRPCClient(
        ConnectionConfig(url=(task.url,)),
        service="echo",
        discovery=discovery_of(task),
        serializer=serializer_of(task),
    ) as client:
        echo = client.text if task.size else client.number

        async def one(param: Any) -> Any:
            return (await echo(param=param).call(timeout=TIMEOUT)).payload

        await async_tasks(task, one)


def calls_in_threads(task: Task) -> None:
    with client_of(task) as client:
        echo = client.text if task.size else client.number
        in_threads(task, lambda param: echo(param=param).call(timeout=TIMEOUT).payload)


def calls_with_futures(task: Task) -> None:
    with client_of(task) as client:
        echo = client.text if task.size else client.number
        in_window(
            task,
            lambda param: echo(param=param).future(timeout=TIMEOUT),
            lambda future: future.result().payload,
        )


def publish(task: Task) -> None:
    with client_of(task) as client:
        tally = Tally(task)
        client.publish(**task.event(FIRST))
        tally.begin()
        is_alone = task.variant == "confirmed"
        with contextlib.nullcontext() if is_alone else client.pipeline():
            for number in range(task.count):
                client.publish(**task.event(number))
        tally.end()


def clean(task: Task) -> dict[str, int]:
    """Delete all that the servers declare; the file of an embedded bus goes with its folder."""
    if not task.url.startswith("amqp"):
        return {}
    echo, ledger = controllers_of(task)
    servers = [server_of(task, task.name, echo), server_of(task, task.queue, ledger)]
    queues = [queue.name for server in servers for queue in server.topology.queues]
    exchanges = [each.name for server in servers for each in server.topology.exchanges]
    return clean_with_pika(task, queues, exchanges)


if __name__ == "__main__":
    play(clean, serve=serve, call=call, calls=calls, consume=consume, publish=publish)
