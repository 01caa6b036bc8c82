# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""A transport on the bench: used from a test's thread, where every step waits with a deadline."""

from __future__ import annotations

import asyncio
import queue
import secrets
import threading
from collections.abc import Callable, Collection, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

from tavrida import envelope, plugins
from tavrida.config import ConnectionConfig
from tavrida.envelope import Properties
from tavrida.loop import LoopThread
from tavrida.plugins.transports import (
    ConnectionState,
    Delivery,
    Differences,
    Events,
    Publication,
    QueueState,
    Transport,
)
from tavrida.topology import Binding, Exchange, Queue, Topology
from tests.waiting import DEADLINE

Result = TypeVar("Result")


def transport_class(url: str) -> type[Transport]:
    """Return the transport that serves a url."""
    return plugins.load(
        plugins.TRANSPORTS,
        urlsplit(url).scheme,
        Transport,  # type: ignore[type-abstract]
    )


def new_name(what: str) -> str:
    """Return a name that no other test uses: a place may serve all tests."""
    return f"{what}.{secrets.token_hex(4)}"


class Outcome:
    """What became of a publication; the transport calls it as ``done``."""

    def __init__(self, place_of_call: Callable[[], bool]) -> None:
        self.calls: list[Exception | None] = []
        self.came_on_loop = True
        self._is_on_loop = place_of_call
        self._ended = threading.Event()

    def __call__(self, error: Exception | None) -> None:
        self.calls.append(error)
        self.came_on_loop &= self._is_on_loop()
        self._ended.set()

    @property
    def is_known(self) -> bool:
        return self._ended.is_set()

    def wait(self) -> Exception | None:
        """Return why it failed, None when it is confirmed."""
        assert self._ended.wait(DEADLINE), f"no confirm within {DEADLINE} s"
        return self.calls[0]


class Inbox:
    """Collects deliveries; the transport calls it as ``on_delivery``."""

    def __init__(self, act: Callable[[Delivery], object] = lambda delivery: None) -> None:
        self._arrived: queue.SimpleQueue[Delivery] = queue.SimpleQueue()
        self._act = act
        #: Every delivery since the beginning.
        self.all: list[Delivery] = []

    def __call__(self, delivery: Delivery) -> None:
        self.all.append(delivery)
        self._arrived.put(delivery)
        self._act(delivery)

    def next(self) -> Delivery:
        """Return the next delivery; fail when none comes."""
        try:
            return self._arrived.get(timeout=DEADLINE)
        except queue.Empty:
            raise AssertionError(f"no delivery within {DEADLINE} s") from None

    def take(self, count: int) -> list[Delivery]:
        """Return so many deliveries."""
        return [self.next() for _ in range(count)]

    def bodies(self, count: int) -> list[bytes]:
        """Return the bodies of so many deliveries."""
        return [delivery.body for delivery in self.take(count)]

    def drained(self) -> list[Delivery]:
        """Return what has arrived by now and was not asked for."""
        found = []
        while not self.is_empty:
            found.append(self.next())
        return found

    @property
    def is_empty(self) -> bool:
        return self._arrived.empty()


class Connection:
    """One transport, with methods that wait for what they ask."""

    def __init__(self, bench: Bench, config: ConnectionConfig, name: str) -> None:
        self.bench = bench
        self.lost: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.failed: queue.SimpleQueue[Exception] = queue.SimpleQueue()
        #: Set it where a test breaks the connection on purpose.
        self.may_be_lost = False
        self.outcomes: list[Outcome] = []
        self.transport = bench.transport_class(
            config, bench.loop, name, Events(self.lost.put, self.failed.put)
        )
        self._echo: tuple[str, Inbox] | None = None

    def open(self, attempts: int = 3) -> Self:
        self.bench.run(self.transport.open(attempts))
        return self

    # -- declaring

    def declare(self, *things: Exchange | Queue | Binding) -> None:
        self.bench.run(
            self.transport.declare(
                Topology(
                    tuple(each for each in things if isinstance(each, Exchange)),
                    tuple(each for each in things if isinstance(each, Queue)),
                    tuple(each for each in things if isinstance(each, Binding)),
                )
            )
        )

    def queue(self, kind: str = "classic", **settings: Any) -> str:
        """Declare a new queue and return its name."""
        name = new_name("queue")
        self.declare(Queue(name, kind, **settings))
        return name

    def exchange(self) -> str:
        """Declare a new exchange and return its name."""
        name = new_name("exchange")
        self.declare(Exchange(name))
        return name

    def bound(self, exchange: str, *patterns: str, kind: str = "classic") -> str:
        """Declare a new queue that is bound to an exchange and return its name."""
        name = new_name("queue")
        bindings = [Binding(exchange, name, pattern) for pattern in patterns]
        self.declare(Queue(name, kind), *bindings)
        return name

    # -- publishing

    def send(
        self,
        exchange: str,
        routing_key: str,
        body: bytes = b"",
        *,
        is_mandatory: bool = False,
        **properties: Any,
    ) -> Outcome:
        """Publish and do not wait; every publication of a test ends exactly once."""
        outcome = self._outcome()
        self.bench.loop.submit(
            self.transport.publish,
            publication(exchange, routing_key, body, is_mandatory=is_mandatory, **properties),
            outcome,
        )
        return outcome

    def submit(self, queue: str, body: bytes) -> Outcome:
        """Publish to a queue from this thread, as programs do, and do not wait."""
        outcome = self._outcome()
        self.transport.submit(publication("", queue, body), outcome)
        return outcome

    def _outcome(self) -> Outcome:
        outcome = Outcome(lambda: self.bench.loop.is_current)
        self.outcomes.append(outcome)
        return outcome

    def publish(self, exchange: str, routing_key: str, body: bytes = b"", **more: Any) -> None:
        """Publish; raise what it ends with."""
        error = self.send(exchange, routing_key, body, **more).wait()
        if error is not None:
            raise error

    def put(self, queue: str, *bodies: bytes, **properties: Any) -> None:
        """Publish these to a queue, in this order, and wait for all their confirms."""
        sent = [self.send("", queue, body, is_mandatory=True, **properties) for body in bodies]
        assert [None] * len(bodies) == [outcome.wait() for outcome in sent]

    # -- consuming

    def consume(
        self,
        queue: str,
        prefetch: int = 1000,
        act: Callable[[Delivery], object] = lambda delivery: None,
    ) -> Inbox:
        """Consume a queue; ``act`` is called on the loop with each delivery."""
        inbox = Inbox(act)
        self.bench.run(self.transport.consume(queue, prefetch, inbox))
        return inbox

    def change_prefetch(self, queue: str, prefetch: int) -> None:
        self.bench.run(self.transport.change_prefetch(queue, prefetch))

    def reply_queue(self) -> tuple[str, Inbox]:
        inbox = Inbox()
        return self.bench.run(self.transport.reply_queue(inbox)), inbox

    def compare(self, thing: Queue | Exchange) -> Differences | None:
        return self.bench.run(self.transport.compare(thing))

    def rebind(self, old: Collection[Binding], new: Collection[Binding]) -> None:
        self.bench.run(self.transport.rebind(old, new))

    def delete(self, queue: str) -> None:
        self.bench.run(self.transport.delete(queue))

    def inspect(self, queue: str) -> QueueState | None:
        return self.bench.run(self.transport.inspect(queue))

    def connections(self) -> list[ConnectionState] | None:
        return self.bench.run(self.transport.connections())

    def get(self, queue: str) -> Delivery | None:
        return self.bench.run(self.transport.get(queue))

    def round_trip(self) -> None:
        """Wait until whatever was on its way to this connection should have arrived."""
        if self._echo is None:
            self._echo = self.reply_queue()
        name, inbox = self._echo
        self.publish("", name, b"echo", is_mandatory=True)
        assert b"echo" == inbox.next().body

    def cancel(self) -> None:
        self.bench.run(self.transport.cancel())

    # -- the end

    def close(self) -> None:
        self.bench.run(self.transport.close())

    def check(self) -> None:
        """What holds for every transport that was closed, in whichever test."""
        for outcome in self.outcomes:
            assert 1 == len(outcome.calls), f"done was called with {outcome.calls}"
            assert outcome.came_on_loop
        if not self.may_be_lost:
            assert self.lost.empty(), self.lost.get()
            assert self.failed.empty(), self.failed.get()


class Bench:
    """Connections to one place, all on one event loop; leaving it closes and checks them."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.transport_class = transport_class(url)
        self.loop = LoopThread("bench")
        self.connections: list[Connection] = []

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine on the loop, within the deadline."""
        return self.loop.run(asyncio.wait_for(coroutine, DEADLINE))

    def call(self, function: Callable[..., Result], *args: Any) -> Result:
        """Call a function on the loop and return what it returns."""

        async def call() -> Result:
            return function(*args)

        return self.run(call())

    def connection(self, **settings: Any) -> Connection:
        """Make a connection that is not open yet; ``settings`` go into its configuration."""
        config = ConnectionConfig(**{"url": (self.url,), "retry_delay": 0.1, **settings})
        name = f"bench {len(self.connections)}"
        connection = Connection(self, config, name)
        self.connections.append(connection)
        return connection

    def connect(self, **settings: Any) -> Connection:
        """Make a connection and open it."""
        return self.connection(**settings).open()

    def drain(self, queue: str) -> list[Delivery]:
        """Take all that waits in a queue, over a connection of its own; acknowledge it."""
        connection = self.connect()
        connection.put(queue, b"the end")
        inbox = connection.consume(queue, act=lambda delivery: delivery.ack())
        found = []
        while (delivery := inbox.next()).body != b"the end":
            found.append(delivery)
        connection.close()
        return found

    def bodies_in(self, queue: str) -> list[bytes]:
        """Take all that waits in a queue and return the bodies."""
        return [delivery.body for delivery in self.drain(queue)]

    def ack(self, *deliveries: Delivery) -> None:
        self._settle("ack", deliveries)

    def requeue(self, *deliveries: Delivery) -> None:
        self._settle("requeue", deliveries)

    def reject(self, *deliveries: Delivery) -> None:
        self._settle("reject", deliveries)

    def _settle(self, how: str, deliveries: tuple[Delivery, ...]) -> None:
        def settle() -> None:
            for delivery in deliveries:
                getattr(delivery, how)()

        self.call(settle)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            for connection in self.connections:
                connection.close()
        finally:
            self.loop.stop()
        if error is None:
            for connection in self.connections:
                connection.check()


def publication(
    exchange: str,
    routing_key: str,
    body: bytes = b"",
    *,
    is_mandatory: bool = False,
    **properties: Any,
) -> Publication:
    """Return a publication with an identifier, as every message of tavrida has one."""
    properties.setdefault("message_id", envelope.new_id())
    return Publication(exchange, routing_key, body, Properties(**properties), is_mandatory)


def numbered(count: int, first: int = 0) -> list[bytes]:
    """Return the bodies b"0", b"1", ..."""
    return [b"%d" % number for number in range(first, first + count)]
