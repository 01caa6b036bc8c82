# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The programs that are measured, written as a user of tavrida would.

``python -m benchmarks._programs ROLE URL QUEUE`` speaks with whoever started it in lines: a
command comes on standard input, its answer, a JSON object, goes to standard output.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from tavrida import discovery, dispatcher, envelope, plugins
from tavrida.client import RPCClient
from tavrida.config import ConnectionConfig
from tavrida.loop import LoopThread
from tavrida.plugins.transports import Delivery, Events, Publication, Transport
from tavrida.publishing import Publisher
from tavrida.server import Server
from tavrida.service import ServiceController
from tavrida.topology import Queue, Topology

#: About what an event of a small service carries: 100 bytes of JSON with its names.
TEXT = "x" * 60

#: Deliveries that the plain transport's consumer holds at a time; a server's default is less.
RAW_PREFETCH = 100


class Seen:
    """What a consumer has handled since it was asked last. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._handled = 0
        self._last = 0.0
        self._latencies: list[float] = []

    def add(self, sent: float) -> None:
        """Count a message; its clock is the same in all processes of a machine."""
        now = time.monotonic()
        with self._lock:
            self._handled += 1
            self._last = now
            self._latencies.append(now - sent)

    def take(self) -> dict[str, Any]:
        """Return the counts, and begin anew."""
        with self._lock:
            taken = {"handled": self._handled, "last": self._last, "latencies": self._latencies}
            self._handled, self._latencies = 0, []
        return taken


SEEN = Seen()


@dispatcher.rpc_service("bench")
class Bench(ServiceController):
    """The service that is measured."""

    @dispatcher.rpc_method(service="bench", method="take")
    def take(self, request: Any, proxy: Any, sent: float, text: str) -> None:
        """Take a message."""
        SEEN.add(sent)

    @dispatcher.rpc_method(service="bench", method="echo")
    def echo(self, request: Any, proxy: Any, param: int) -> dict[str, Any]:
        """Answer a request."""
        return {"param": param}


def _config(url: str) -> ConnectionConfig:
    return ConnectionConfig(url=(url,), async_engine=True)


def _client(url: str, exchange: str) -> RPCClient:
    known = discovery.LocalDiscovery()
    known.register_remote_service("bench", exchange)
    return RPCClient(_config(url), service="bench", discovery=known, source="producer")


def _answer(**facts: Any) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _serve(url: str, queue: str) -> None:
    """Serve until standard input ends; each line asks what was handled."""
    with Server(_config(url), queue, queue, [Bench]):
        _tell_what_was_seen()


def _tell_what_was_seen() -> None:
    _answer(pid=os.getpid())
    for _ in sys.stdin:
        _answer(**SEEN.take(), cpu=_cpu())


def _produce(url: str, queue: str) -> None:
    """Send as each line says: ``WAY COUNT``; answer when all is confirmed."""
    ways: dict[str, Callable[[RPCClient, int], Any]] = {
        "pipeline": _pipeline,
        "one": _one_at_a_time,
        "paced": _paced,
        "call": _call,
    }
    with _client(url, queue) as client:
        client.echo(param=0).call(timeout=30)
        _answer(pid=os.getpid())
        for line in sys.stdin:
            way, count = line.split()
            cpu, first = _cpu(), time.monotonic()
            result = ways[way](client, int(count))
            _answer(first=first, confirmed=time.monotonic(), cpu=_cpu() - cpu, result=result)


def _pipeline(client: RPCClient, count: int) -> None:
    with client.pipeline():
        for _ in range(count):
            client.take(sent=time.monotonic(), text=TEXT).cast()


def _one_at_a_time(client: RPCClient, count: int) -> None:
    for _ in range(count):
        client.take(sent=time.monotonic(), text=TEXT).cast()


def _paced(client: RPCClient, count: int) -> None:
    """Send 100 a second."""
    start = time.monotonic()
    for index in range(count):
        time.sleep(max(0.0, start + index / 100 - time.monotonic()))
        client.take(sent=time.monotonic(), text=TEXT).cast()


def _call(client: RPCClient, count: int) -> list[float]:
    """Return the seconds that each call took."""
    took = []
    for index in range(count):
        began = time.perf_counter()
        client.echo(param=index).call(timeout=30)
        took.append(time.perf_counter() - began)
    return took


# -- the transport without the framework: what the rest can reach at best -------------------------


class _Raw:
    """A transport of its own, with the loop that it needs."""

    def __init__(self, url: str, queue: str) -> None:
        config = _config(url)
        self.queue = queue
        self.loop = LoopThread("bench")
        cls = plugins.load(plugins.TRANSPORTS, config.scheme, Transport)  # type: ignore[type-abstract]
        events = Events(lambda reason: None, lambda error: None)
        self.transport = cls(config, self.loop, "bench", events)
        self.loop.run(self._open())

    async def _open(self) -> None:
        await self.transport.open(1)
        await self.transport.declare(Topology(queues=(Queue(self.queue, "quorum"),)))

    def close(self) -> None:
        self.loop.run(self.transport.close())
        self.loop.stop()


def _consume_raw(url: str, queue: str) -> None:
    raw = _Raw(url, queue)

    def take(delivery: Delivery) -> None:
        SEEN.add(json.loads(delivery.body)["sent"])
        delivery.ack()

    raw.loop.run(raw.transport.consume(queue, RAW_PREFETCH, take))
    _tell_what_was_seen()
    raw.loop.run(raw.transport.cancel())
    raw.close()


def _publish_raw(url: str, queue: str) -> None:
    raw = _Raw(url, queue)
    publisher = Publisher(raw.loop, raw.transport)
    _answer(pid=os.getpid())
    for line in sys.stdin:
        count = int(line.split()[1])
        cpu, first = _cpu(), time.monotonic()
        _publish_all(publisher, queue, count)
        _answer(first=first, confirmed=time.monotonic(), cpu=_cpu() - cpu, result=None)
    raw.close()


def _publish_all(publisher: Publisher, queue: str, count: int) -> None:
    left = threading.Semaphore(0)
    errors: list[Exception] = []

    def done(error: Exception | None) -> None:
        if error is not None:
            errors.append(error)
        left.release()

    for _ in range(count):
        body = json.dumps({"sent": time.monotonic(), "text": TEXT}).encode()
        properties = envelope.Properties("application/json", message_id=envelope.new_id())
        publisher.send_raw(Publication("", queue, body, properties, is_mandatory=True), done)
    for _ in range(count):
        left.acquire()
    if errors:
        raise errors[0]


ROLES: dict[str, Callable[[str, str], None]] = {
    "serve": _serve,
    "produce": _produce,
    "consume_raw": _consume_raw,
    "publish_raw": _publish_raw,
}

if __name__ == "__main__":
    ROLES[sys.argv[1]](*sys.argv[2:])
