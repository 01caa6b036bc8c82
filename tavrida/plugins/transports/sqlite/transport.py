# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The transport: what a server or client sees of the bus."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
from collections.abc import Collection
from dataclasses import dataclass, replace
from operator import methodcaller

import msgspec

from tavrida import exceptions
from tavrida.config import ConnectionConfig
from tavrida.entry_point import MAX_LENGTH
from tavrida.envelope import MAX_EXPIRATION, ReadProperties
from tavrida.loop import LoopThread
from tavrida.plugins.transports import (
    MAX_PROPERTIES,
    ConnectionState,
    Differences,
    Done,
    Events,
    OnDelivery,
    Publication,
    QueueState,
    undeclared,
)
from tavrida.plugins.transports.reconnecting import ReconnectingTransport, closed
from tavrida.plugins.transports.sqlite.bus import Bus, Taken, encode
from tavrida.plugins.transports.sqlite.database import Busy
from tavrida.plugins.transports.sqlite.place import Place
from tavrida.plugins.transports.sqlite.store import BUSY_PAUSE, Consumer, Sending, Store
from tavrida.topology import Binding, Exchange, Queue, Topology

LOG = logging.getLogger(__name__)

#: Seconds to wait at the end for what is under way.
CLOSE_TIMEOUT = 5.0

#: Bytes that SQLite keeps in one place at most, as it is built by default, and some reserve.
MAX_BODY = 999_000_000


#: Properties that are short strings in AMQP.
_TEXTS = ("content_type", "type", "app_id", "correlation_id", "reply_to", "message_id")


@dataclass(slots=True, eq=False)
class SQLiteDelivery:
    """A delivery; it belongs to the connection that it came over."""

    body: bytes
    properties: ReadProperties
    exchange: str
    routing_key: str
    redelivered: bool
    queue: str
    connection: _Connection
    consumer: Consumer
    entry: int
    is_settled: bool = False

    @property
    def is_live(self) -> bool:
        """True while settling it means something."""
        return not self.is_settled and self.connection.is_open and self.consumer.needs_ack

    def ack(self) -> None:
        """Tell the bus to forget the message."""
        if self.is_live:
            self.is_settled = True
            self.connection.store.acknowledge(self.consumer, self.entry)

    def requeue(self) -> None:
        """Give the message back untouched."""
        if self.is_live:
            self.is_settled = True
            self.connection.store.settle(self.consumer, self.entry, Bus.give_back)

    def reject(self) -> None:
        """Have the bus move the message to the dead-letter queue of its queue."""
        if self.is_live:
            self.is_settled = True
            self.connection.store.settle(self.consumer, self.entry, Bus.reject)


@dataclass(slots=True, eq=False)
class _Connection:
    """A session in a store, between two losses."""

    store: Store
    session: int
    is_open: bool = True


@dataclass(frozen=True, slots=True)
class _Consumption:
    queue: str
    prefetch: int
    on_delivery: OnDelivery


class SQLiteTransport(ReconnectingTransport):
    """A connection to a bus in a file or in memory."""

    def __init__(
        self, config: ConnectionConfig, loop: LoopThread, name: str, events: Events
    ) -> None:
        super().__init__(config, loop, name, events)
        self._place = Place.parse(config.urls[0])
        self._connection: _Connection | None = None
        self._topologies: dict[Topology, None] = {}
        self._consumptions: list[_Consumption] = []
        #: Those of the consumptions, in their order.
        self._consumers: list[Consumer] = []
        # In the order of their deadlines; a dict for its order and its quick removal.
        self._unconfirmed: dict[Sending, None] = {}
        self._all_confirmed = asyncio.Event()
        self._sweeper: asyncio.TimerHandle | None = None

    @classmethod
    def check(cls, config: ConnectionConfig) -> None:
        super().check(config)
        if len(config.urls) != 1:
            raise exceptions.ConfigError(
                "[connection] url names several databases, and a bus is one file: leave one"
            )

    @classmethod
    def check_url(cls, url: str) -> None:
        Place.parse(url)

    @classmethod
    def is_shared(cls, config: ConnectionConfig) -> bool:
        return bool(Place.parse(config.urls[0]).path)

    # -- connecting

    async def _connect_to(self, url: str) -> None:
        store = await self._open_store()
        self._lost = asyncio.get_running_loop().create_future()
        connection = _Connection(store, 0)

        def lost(reason: str) -> None:
            connection.is_open = False
            self._ready.clear()
            if self._lost is not None and not self._lost.done():
                self._lost.set_result(reason)

        connection.session = await store.open_session(self.name, lost)
        try:
            await self._restore(connection)
        except BaseException:
            connection.is_open = False
            await _end(connection)
            raise
        self._connection = connection
        self._ready.set()
        for sending in self._unconfirmed:
            store.publish(sending)

    async def _restore(self, connection: _Connection) -> None:
        """Put everything in place over a new connection."""
        self._consumers = []
        for topology in list(self._topologies):
            await connection.store.declare(topology)
        for consumption in self._consumptions:
            await self._start(connection, consumption)
        if not connection.is_open:
            raise exceptions.ConnectionFailed(f"the connection to {self._place} was lost at once")

    async def _open_store(self) -> Store:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._place.lock_timeout
        while True:
            try:
                return Store.open(self._place, self.loop)
            except Busy:
                if loop.time() > deadline:
                    raise exceptions.ConnectionFailed(
                        f"another process has locked {self._place} for over "
                        f"{self._place.lock_timeout} s (lock_timeout): end what uses it for itself"
                    ) from None
            await asyncio.sleep(BUSY_PAUSE)

    # -- declaring

    async def declare(self, topology: Topology) -> None:
        self._topologies[topology] = None
        connection = await self._connected()
        try:
            await connection.store.declare(topology)
        except exceptions.TransportError:
            if connection.is_open:
                del self._topologies[topology]
                raise
            await self._ready.wait()  # where it was declared again

    async def compare(self, thing: Queue | Exchange) -> Differences | None:
        connection = await self._connected()
        return await connection.store.ask(lambda bus: bus.compare(thing))

    async def rebind(self, old: Collection[Binding], new: Collection[Binding]) -> None:
        connection = await self._connected()
        await connection.store.ask(lambda bus: bus.rebind(old, new))
        self._topologies = undeclared(self._topologies, bindings=old)
        self._topologies[Topology(bindings=tuple(new))] = None

    async def delete(self, queue: str) -> None:
        connection = await self._connected()
        await connection.store.ask(lambda bus: bus.delete(queue))
        self._topologies = undeclared(self._topologies, queue)

    async def _connected(self) -> _Connection:
        await self._ready.wait()
        assert self._connection is not None
        return self._connection

    # -- looking into queues

    async def inspect(self, queue: str) -> QueueState | None:
        connection = await self._connected()
        return await connection.store.ask(lambda bus: bus.inspect(queue, connection.session))

    async def connections(self) -> list[ConnectionState]:
        connection = await self._connected()
        return await connection.store.ask(methodcaller("connections"))

    async def get(self, queue: str) -> SQLiteDelivery | None:
        connection = await self._connected()
        found = await connection.store.get(connection.session, queue)
        return None if found is None else _delivery(connection, found[0], queue, found[1])

    # -- consuming

    async def consume(self, queue: str, prefetch: int, on_delivery: OnDelivery) -> None:
        consumption = _Consumption(queue, prefetch, on_delivery)
        connection = await self._connected()
        self._consumptions.append(consumption)
        try:
            await self._start(connection, consumption)
        except exceptions.TransportError:
            if connection.is_open:
                self._consumptions.remove(consumption)
                raise
            await self._ready.wait()  # where it was started again

    async def change_prefetch(self, queue: str, prefetch: int) -> None:
        connection = await self._connected()
        for number, consumption in enumerate(self._consumptions):
            if consumption.queue == queue:
                self._consumptions[number] = replace(consumption, prefetch=prefetch)
                connection.store.change_prefetch(self._consumers[number], prefetch)

    async def _start(self, connection: _Connection, consumption: _Consumption) -> None:
        queue, on_delivery = consumption.queue, consumption.on_delivery

        def hand_over(consumer: Consumer, taken: Taken) -> None:
            _deliver(connection, consumer, queue, taken, on_delivery)

        self._consumers.append(
            await connection.store.consume(
                connection.session, queue, consumption.prefetch, hand_over
            )
        )

    async def reply_queue(self, on_delivery: OnDelivery) -> str:
        connection = await self._connected()
        name = f"tavrida.reply.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(6)}"

        def hand_over(consumer: Consumer, taken: Taken) -> None:
            _deliver(connection, consumer, name, taken, on_delivery)

        await connection.store.consume_exclusively(connection.session, name, hand_over)
        return name

    async def cancel(self) -> None:
        consumers, self._consumers = self._consumers, []
        self._consumptions = []
        connection = self._connection
        if connection is None or not connection.is_open:
            return
        with contextlib.suppress(exceptions.TransportError, TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await connection.store.stop_consuming(consumers)

    # -- publishing

    def publish(self, publication: Publication, done: Done) -> None:
        if self._is_closing:
            done(closed())
            return
        try:
            properties = _checked(publication)
        except exceptions.PublishFailed as error:
            done(error)
            return
        deadline = self.loop.loop.time() + self.config.publish_timeout

        def ended(error: Exception | None) -> None:
            del self._unconfirmed[sending]
            if not self._unconfirmed:
                self._all_confirmed.set()
            done(error)

        sending = Sending(publication, properties, ended, deadline)
        self._unconfirmed[sending] = None
        self._all_confirmed.clear()
        if self._ready.is_set() and self._connection is not None:
            self._connection.store.publish(sending)
        if self._sweeper is None:
            self._sweep()

    def _sweep(self) -> None:
        """End publications that are over their deadline; runs while there are any."""
        self._sweeper = None
        now = self.loop.loop.time()
        trouble = self._connection.store.trouble if self._connection else ""
        for sending in list(self._unconfirmed):
            if sending.deadline > now:
                break
            sending.end(
                exceptions.PublishTimeout(
                    f"{self._place} did not take a message within {self.config.publish_timeout} "
                    f"s: {trouble or 'there is no connection to it'}"
                )
            )
        if self._unconfirmed:
            pause = min(1.0, self.config.publish_timeout / 4)
            self._sweeper = self.loop.loop.call_later(pause, self._sweep)

    def _fail_all(self, error: Exception) -> None:
        for sending in list(self._unconfirmed):
            sending.end(error)

    # -- closing

    async def close(self) -> None:
        self._is_closing = True
        await self._stop_keeping()
        connection = self._connection
        if connection is not None and connection.is_open:
            with contextlib.suppress(exceptions.TransportError, TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    if self._unconfirmed:
                        await self._all_confirmed.wait()
            await _end(connection)
            connection.is_open = False
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._fail_all(closed())


async def _end(connection: _Connection) -> None:
    """End a session; where that takes too long, others do it when this process has gone."""
    with contextlib.suppress(exceptions.TransportError, TimeoutError):
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await connection.store.end_session(connection.session)


def _deliver(
    connection: _Connection,
    consumer: Consumer,
    queue: str,
    taken: Taken,
    on_delivery: OnDelivery,
) -> None:
    try:
        on_delivery(_delivery(connection, consumer, queue, taken))
    except Exception:
        LOG.exception("A consumer of queue %s failed.", queue)


def _delivery(
    connection: _Connection, consumer: Consumer, queue: str, taken: Taken
) -> SQLiteDelivery:
    return SQLiteDelivery(
        taken.body,
        taken.properties,
        taken.exchange,
        taken.routing_key,
        taken.redelivered,
        queue,
        connection,
        consumer,
        taken.id,
    )


def _checked(publication: Publication) -> bytes:
    """Return the properties as they are kept.

    Raises:
        PublishFailed: RabbitMQ would not take them, or SQLite not the body.
    """
    texts = {"exchange": publication.exchange, "routing key": publication.routing_key}
    texts |= {name: getattr(publication.properties, name) for name in _TEXTS}
    for name, text in texts.items():
        try:
            length = len(text.encode())
        except (AttributeError, UnicodeEncodeError) as error:
            raise exceptions.PublishFailed(f"the {name} is no text: {error}") from None
        if length > MAX_LENGTH:
            raise exceptions.PublishFailed(
                f"the {name} has {length} bytes, more than the {MAX_LENGTH} that are allowed"
            )
    try:
        properties = encode(publication.properties)
    except (ValueError, TypeError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise exceptions.PublishFailed(f"the message cannot be encoded: {error}") from None
    expiration = publication.properties.expiration
    if expiration is not None and not 0 <= expiration <= MAX_EXPIRATION:
        raise exceptions.PublishFailed(
            f"expiration {expiration} is not from 0 to {MAX_EXPIRATION} milliseconds"
        )
    if len(properties) > MAX_PROPERTIES:
        raise exceptions.PublishFailed(
            f"the headers have {len(properties)} bytes, more than the {MAX_PROPERTIES} that fit "
            "into a frame of RabbitMQ"
        )
    if len(publication.body) > MAX_BODY:
        raise exceptions.PublishFailed(
            f"the body has {len(publication.body)} bytes, more than the {MAX_BODY} that SQLite "
            "takes"
        )
    return properties
