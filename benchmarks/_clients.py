# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The programs of scale.py and growth.py: services of any size, and clients in any number.

``python -m benchmarks._clients ROLE URL NAME COUNT`` tells JSON lines; clients take commands on
standard input.
"""

from __future__ import annotations

import asyncio
import itertools
import resource
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

from benchmarks.peers._roles import PREFETCH, TIMEOUT, WINDOW, cpu, tell
from tavrida.addresses import AddressBook
from tavrida.client import AsyncRPCClient
from tavrida.config import ConnectionConfig, ServerSettings
from tavrida.discovery import LocalDiscovery
from tavrida.dispatcher import Dispatcher, rpc_method, rpc_service
from tavrida.server import Server
from tavrida.service import ServiceController
from tavrida.topology import Placement

#: What a cast carries: an event of about 100 bytes of JSON.
TEXT = "x" * 60


def _config(url: str) -> ConnectionConfig:
    return ConnectionConfig(url=(url,), async_engine=True)


def _controller(service: str, methods: int) -> type[ServiceController]:
    """Return a controller with as many methods, which all answer what they get."""

    async def echo(self: Any, request: Any, proxy: Any, param: int) -> dict[str, Any]:
        return {"param": param}

    async def take(self: Any, request: Any, proxy: Any, param: int, text: str) -> None:
        return None

    def method(number: int) -> Any:
        async def numbered(self: Any, request: Any, proxy: Any, param: int) -> dict[str, Any]:
            return {"param": param}

        return rpc_method(service=service, method=f"echo{number}")(numbered)

    body: dict[str, Any] = {f"echo{number}": method(number) for number in range(1, methods)}
    body["echo0"] = rpc_method(service=service, method="echo0")(echo)
    body["take"] = rpc_method(service=service, method="take")(take)
    return rpc_service(service)(type("Echo", (ServiceController,), body))


def _serve(server: Server) -> None:
    with server:
        tell("ready")
        for _ in sys.stdin:  # until the end
            tell("cpu", cpu=cpu())


def serve_methods(url: str, name: str, count: int) -> None:
    """Serve one service with ``count`` methods, until standard input ends."""
    controller = _controller("echo0", count)
    _serve(
        Server(_config(url), name, name, [controller], queue_type="classic", concurrency=PREFETCH)
    )


def serve_services(url: str, name: str, count: int) -> None:
    """Serve ``count`` services, each with a queue of its own, as an ini with as many does."""
    addresses = AddressBook(LocalDiscovery())
    placements = []
    for number in range(count):
        dispatcher = Dispatcher(_controller(f"echo{number}", 1)())
        placements.append(Placement(dispatcher, f"{name}.{number}", name, addresses))
    settings = ServerSettings(queue_type="classic", concurrency=PREFETCH)
    _serve(Server.from_placements(_config(url), placements, settings))


# -- clients -------------------------------------------------------------------------------------


async def _in_tasks(
    count: int, tasks: int, work: Callable[[int], Coroutine[Any, Any, Any]]
) -> None:
    numbers = iter(range(count))

    async def run() -> None:
        for number in numbers:
            await work(number)

    await asyncio.gather(*(run() for _ in range(tasks)))


async def clients(url: str, name: str, count: int) -> None:
    """Open ``count`` clients, then do what each line says: ``WHAT COUNT TASKS SPREAD``.

    WHAT is ``call`` or ``cast``; SPREAD is how many methods (below 0: services) are called in turn.
    The clients take turns, too.
    """
    discovery = LocalDiscovery()
    for number in range(10_000):
        discovery.register_remote_service(f"echo{number}", name)
    began = time.perf_counter()
    opened = [AsyncRPCClient(_config(url), discovery=discovery) for _ in range(count)]
    await _in_tasks(count, WINDOW, lambda number: _call(opened[number], 0, 1))
    tell("ready", seconds=time.perf_counter() - began)
    loop = asyncio.get_running_loop()
    turns = itertools.cycle(opened)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        what, *numbers = line.split()
        messages, tasks, spread = map(int, numbers)
        used, began = cpu(), time.perf_counter()
        if what == "call":
            await _in_tasks(messages, tasks, lambda n, s=spread: _call(next(turns), n, s))  # type: ignore[misc]
        else:
            async with opened[0].pipeline():
                for number in range(messages):
                    await opened[0].echo0.take(param=number, text=TEXT).cast()
        tell("done", seconds=time.perf_counter() - began, cpu=cpu() - used)
    await asyncio.gather(*(client.close() for client in opened))


async def _call(client: AsyncRPCClient, number: int, spread: int) -> None:
    service, turn = (0, number % spread) if spread > 0 else (number % -spread, 0)
    method = client[f"echo{service}"][f"echo{turn}"]
    answer = await method(param=number).call(timeout=TIMEOUT)
    assert answer.payload == {"param": number}, answer.payload


def main() -> None:
    """Play the role of the command line."""
    # A thousand connections are more files than a process may have open by default.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    role, url, name, count = sys.argv[1:]
    if role == "clients":
        asyncio.run(clients(url, name, int(count)))
    else:
        {"methods": serve_methods, "services": serve_services}[role](url, name, int(count))


if __name__ == "__main__":
    main()
