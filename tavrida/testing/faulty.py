# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The ``faulty`` transport: stands before any other one and lets things go wrong on the way.

It keeps the contract of all transports whatever strikes. A connection that a fault takes away is
closed at the real broker too, and a new one is made: so what was not settled is delivered again
by the broker itself, and what was not confirmed is sent again by this transport.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from tavrida import exceptions
from tavrida.config import ConnectionConfig
from tavrida.envelope import ReadProperties
from tavrida.loop import LoopThread
from tavrida.plugins.transports import (
    ConnectionState,
    Delivery,
    Differences,
    Done,
    Events,
    OnDelivery,
    Publication,
    QueueState,
    Transport,
    undeclared,
)
from tavrida.testing import faults
from tavrida.testing.faults import Operation
from tavrida.topology import Binding, Exchange, Queue, Topology

LOG = logging.getLogger(__name__)

#: Seconds that the broker gets to confirm what was written to a connection that is to be lost.
#: Without it, whether the message arrives twice would be a matter of luck.
DRAIN_TIMEOUT = 1.0

Result = TypeVar("Result")
Step = Callable[[], None]


class _Link:
    """One connection of the real transport, until it is lost."""

    def __init__(self) -> None:
        self.inner: Transport
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        #: Publications that the real transport has and has not told the end of.
        self.writing = 0
        self.drained = asyncio.Event()
        self.drained.set()

    @property
    def is_up(self) -> bool:
        return not self.lost.done()

    async def until_lost(
        self, action: Coroutine[Any, Any, Result] | asyncio.Task[Result]
    ) -> Result:
        """Return what the action returns, or raise ConnectionFailed at the loss."""
        task = asyncio.ensure_future(action)
        either: set[asyncio.Future[Any]] = {task, self.lost}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
        finally:
            task.cancel()
        raise exceptions.ConnectionFailed(f"the connection was lost: {self.lost.result()}")


def _give_back(getting: asyncio.Task[Delivery | None]) -> None:
    if not getting.cancelled() and not getting.exception() and (got := getting.result()):
        got.requeue()


@dataclass(slots=True, eq=False)
class _Sending:
    """A publication that its sender has not heard the end of."""

    publication: Publication
    done: Done
    timer: asyncio.TimerHandle | None = None


@dataclass(frozen=True, slots=True)
class _Consumer:
    queue: str
    prefetch: int
    on_delivery: OnDelivery


@dataclass(slots=True, eq=False)
class FaultyDelivery:
    """A delivery of the real transport; settling it may meet a fault."""

    body: bytes
    properties: ReadProperties
    exchange: str
    routing_key: str
    redelivered: bool
    queue: str
    transport: FaultyTransport
    link: _Link
    inner: Delivery
    #: What acknowledging does instead, if it is to be delivered once more first.
    instead: OnDelivery | None = None
    is_settled: bool = field(default=False)

    @classmethod
    def of(cls, transport: FaultyTransport, link: _Link, inner: Delivery) -> FaultyDelivery:
        """Return the wrapped delivery."""
        return cls(
            inner.body,
            inner.properties,
            inner.exchange,
            inner.routing_key,
            inner.redelivered,
            inner.queue,
            transport,
            link,
            inner,
        )

    @property
    def is_live(self) -> bool:
        """True while settling it means something."""
        return not self.is_settled and self.link.is_up and self.inner.is_live

    def ack(self) -> None:
        """Tell the broker to forget the message."""
        if self.instead is None or not self.is_live:
            self._settle(faults.ACK)
            return
        # The broker is told only after the second time, so that it does not hand over another
        # message meanwhile: the prefetch holds for duplicates too.
        self.is_settled = True
        self.instead(replace(self, redelivered=True, instead=None, is_settled=False))

    def requeue(self) -> None:
        """Give the message back untouched."""
        self._settle(faults.REQUEUE)

    def reject(self) -> None:
        """Have the broker move the message to the dead-letter queue of its queue."""
        self._settle(faults.REJECT)

    def _settle(self, how: str) -> None:
        if self.is_live and not self.transport.loses(how, self.link, self):
            self.is_settled = True
            {
                faults.ACK: self.inner.ack,
                faults.REQUEUE: self.inner.requeue,
                faults.REJECT: self.inner.reject,
            }[how]()


class FaultyTransport(Transport):
    """A transport to the broker of a ``Faults`` object, which strike at what it does.

    The url is ``faulty://NAME``, the ``Faults.url`` of an object of this process.
    """

    def __init__(
        self, config: ConnectionConfig, loop: LoopThread, name: str, events: Events
    ) -> None:
        super().__init__(config, loop, name, events)
        self._faults = faults.named(config.urls[0])
        self._inner_config = replace(config, url=self._faults.broker)
        self._link: _Link
        # Set while there is a connection on which all is declared and consumed.
        self._ready = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._is_closing = False
        self._topologies: dict[Topology, None] = {}
        self._consumers: list[_Consumer] = []
        # In the order of their sending, which is kept when they are sent again.
        self._unconfirmed: dict[_Sending, None] = {}

    @classmethod
    def check_url(cls, url: str) -> None:
        faults.named(url)

    @classmethod
    def is_shared(cls, config: ConnectionConfig) -> bool:
        return False

    @property
    def is_ready(self) -> bool:
        return self._ready.is_set() and not self._is_closing and self._link.inner.is_ready

    @property
    def can_publish(self) -> bool:
        return self._ready.is_set() and self._link.inner.can_publish

    # -- connecting

    async def open(self, attempts: int) -> None:
        self._link = self._new_link()
        await self._link.inner.open(attempts)
        self._ready.set()
        self._keeper = asyncio.create_task(self._keep_connected())

    def _new_link(self) -> _Link:
        link = _Link()
        # What the real transport loses and repairs itself is none of our business.
        events = Events(self.events.lost, self._failed)
        link.inner = self._faults.transport(self._inner_config, self.loop, self.name, events)
        return link

    def _failed(self, error: Exception) -> None:
        self._fail_all(error)
        self.events.failed(error)

    def _lose(self, link: _Link, operation: Operation) -> None:
        if link.is_up:
            self._ready.clear()
            link.lost.set_result(f"a fault of the test, at the {operation}")

    async def _keep_connected(self) -> None:
        while True:
            reason = await self._link.lost
            LOG.info("%s lost its connection: %s.", self.name, reason)
            self.events.lost(reason)
            try:
                await self._renew(self._link)
            except exceptions.TransportError as error:
                self._failed(error)
                return

    async def _renew(self, old: _Link) -> None:
        """Close the lost connection for good, and put everything in place on a new one."""
        # On its way whatever happens to us: else the broker would keep what was not settled.
        self._closing = asyncio.create_task(_close(old))
        await asyncio.shield(self._closing)
        link = self._link = self._new_link()
        await link.inner.open(self.config.reconnect_attempts)
        for topology in list(self._topologies):
            await link.inner.declare(topology)
        for consumer in list(self._consumers):
            await self._start(link, consumer)
        if link.is_up:  # its first delivery may have met a fault
            self._ready.set()
            for sending in list(self._unconfirmed):
                self._send(sending)

    # -- declaring and consuming

    async def declare(self, topology: Topology) -> None:
        await self._ready.wait()
        link = self._link
        self._topologies[topology] = None
        try:
            await link.until_lost(link.inner.declare(topology))
        except exceptions.TransportError:
            if link.is_up:
                del self._topologies[topology]
                raise
            await self._ready.wait()  # the next connection has declared it

    async def compare(self, thing: Queue | Exchange) -> Differences | None:
        await self._ready.wait()
        return await self._link.until_lost(self._link.inner.compare(thing))

    async def rebind(self, old: Collection[Binding], new: Collection[Binding]) -> None:
        await self._ready.wait()
        await self._link.until_lost(self._link.inner.rebind(old, new))
        self._topologies = undeclared(self._topologies, bindings=old)
        self._topologies[Topology(bindings=tuple(new))] = None

    async def delete(self, queue: str) -> None:
        await self._ready.wait()
        await self._link.until_lost(self._link.inner.delete(queue))
        self._topologies = undeclared(self._topologies, queue)

    async def consume(self, queue: str, prefetch: int, on_delivery: OnDelivery) -> None:
        await self._ready.wait()
        link = self._link
        consumer = _Consumer(queue, prefetch, on_delivery)
        self._consumers.append(consumer)
        try:
            await link.until_lost(self._start(link, consumer))
        except exceptions.TransportError:
            if link.is_up:
                self._consumers.remove(consumer)
                raise
            await self._ready.wait()

    async def change_prefetch(self, queue: str, prefetch: int) -> None:
        await self._ready.wait()
        self._consumers = [
            replace(each, prefetch=prefetch) if each.queue == queue else each
            for each in self._consumers
        ]
        link = self._link
        try:
            await link.until_lost(link.inner.change_prefetch(queue, prefetch))
        except exceptions.TransportError:
            if link.is_up:
                raise
            await self._ready.wait()  # the next connection has it from the start

    async def _start(self, link: _Link, consumer: _Consumer) -> None:
        receive = functools.partial(self._receive, link, consumer.on_delivery)
        await link.inner.consume(consumer.queue, consumer.prefetch, receive)

    async def inspect(self, queue: str) -> QueueState | None:
        await self._ready.wait()
        return await self._link.until_lost(self._link.inner.inspect(queue))

    async def connections(self) -> list[ConnectionState] | None:
        await self._ready.wait()
        return await self._link.until_lost(self._link.inner.connections())

    async def get(self, queue: str) -> Delivery | None:
        await self._ready.wait()
        link = self._link
        getting = asyncio.create_task(link.inner.get(queue))
        try:
            inner = await link.until_lost(getting)
        except asyncio.CancelledError:  # it may have come in the same turn
            getting.add_done_callback(_give_back)
            raise
        return None if inner is None else FaultyDelivery.of(self, link, inner)

    async def reply_queue(self, on_delivery: OnDelivery) -> str:
        await self._ready.wait()
        link = self._link
        receive = functools.partial(self._receive_answer, link, on_delivery)
        return await link.until_lost(link.inner.reply_queue(receive))

    async def cancel(self) -> None:
        self._consumers = []
        await self._link.inner.cancel()

    def _receive(self, link: _Link, on_delivery: OnDelivery, inner: Delivery) -> None:
        delivery = FaultyDelivery.of(self, link, inner)

        def hand_over() -> None:
            on_delivery(delivery)

        def hand_over_twice() -> None:
            delivery.instead = on_delivery
            on_delivery(delivery)

        self._arrive(link, delivery, inner.ack, hand_over, hand_over_twice)

    def _receive_answer(self, link: _Link, on_delivery: OnDelivery, inner: Delivery) -> None:
        """Take a delivery that needs no acknowledgement."""

        def drop() -> None:
            pass

        def hand_over() -> None:
            on_delivery(inner)

        def hand_over_twice() -> None:
            on_delivery(inner)
            on_delivery(inner)

        self._arrive(link, inner, drop, hand_over, hand_over_twice)

    def _arrive(
        self, link: _Link, delivery: Delivery, drop: Step, hand_over: Step, hand_over_twice: Step
    ) -> None:
        if not link.is_up:
            return  # not settled, so it comes again on the next connection
        operation = Operation(faults.DELIVER, self.name, delivery, delivery.queue)
        fault = self._faults.strike(operation)
        match fault.name if fault else "":
            case "lose_connection":
                self._lose(link, operation)
            case "lose_message":
                drop()
            case "delay":
                assert fault is not None
                self.loop.loop.call_later(fault.seconds, self._arrive_late, link, hand_over)
            case "deliver_twice":
                hand_over_twice()
            case _:
                hand_over()

    def _arrive_late(self, link: _Link, hand_over: Step) -> None:
        if link.is_up and not self._is_closing:
            hand_over()

    def loses(self, how: str, link: _Link, delivery: FaultyDelivery) -> bool:
        """Tell whether the connection is lost instead of settling a delivery."""
        operation = Operation(how, self.name, delivery, delivery.queue)
        if self._faults.strike(operation) is None:
            return False
        self._lose(link, operation)
        return True

    # -- publishing

    def publish(self, publication: Publication, done: Done) -> None:
        if self._is_closing:
            done(_closed())
            return
        sending = _Sending(publication, done)
        timeout = self.config.publish_timeout
        sending.timer = self.loop.loop.call_later(timeout, self._expire, sending)
        self._unconfirmed[sending] = None
        if self._ready.is_set():
            self._send(sending)

    def _send(self, sending: _Sending) -> None:
        link = self._link
        if not link.is_up:
            return
        operation = Operation(faults.PUBLISH, self.name, sending.publication)
        fault = self._faults.strike(operation)
        match fault.name if fault else "":
            case "lose_connection":
                self._lose(link, operation)
            case "full_disk":
                error = exceptions.PublishFailed("the broker's disk is full (a fault of the test)")
                # Not at once: no broker answers before the sender has gone on.
                self.loop.loop.call_soon(self._end, sending, error)
            case _:
                link.writing += 1
                link.drained.clear()
                heard = functools.partial(self._heard, link, sending)
                link.inner.publish(sending.publication, heard)

    def _heard(self, link: _Link, sending: _Sending, error: Exception | None) -> None:
        """Take the broker's word on a publication."""
        link.writing -= 1
        if not link.writing:
            link.drained.set()
        if error is not None:
            self._faults.note(Operation(faults.REFUSE, self.name, sending.publication, error=error))
            if link.is_up:  # else it is sent again
                self._end(sending, error)
            return
        operation = Operation(faults.CONFIRM, self.name, sending.publication)
        if not link.is_up:
            self._faults.note(operation)
            return
        fault = self._faults.strike(operation)
        match fault.name if fault else "":
            case "lose_connection":
                self._lose(link, operation)
            case "lose_confirm":
                pass  # it stays unconfirmed, until its time is over or on the next connection
            case "delay":
                assert fault is not None
                self.loop.loop.call_later(fault.seconds, self._end_late, link, sending)
            case _:
                self._end(sending, None)

    def _end_late(self, link: _Link, sending: _Sending) -> None:
        if link.is_up:
            self._end(sending, None)

    def _expire(self, sending: _Sending) -> None:
        timeout = self.config.publish_timeout
        self._end(
            sending,
            exceptions.PublishTimeout(f"the broker did not confirm a message within {timeout} s"),
        )

    def _end(self, sending: _Sending, error: Exception | None) -> None:
        """Tell the sender, once."""
        if sending not in self._unconfirmed:
            return
        del self._unconfirmed[sending]
        assert sending.timer is not None
        sending.timer.cancel()
        try:
            sending.done(error)
        except Exception:
            LOG.exception("A callback of a confirm failed.")

    def _fail_all(self, error: Exception) -> None:
        for sending in list(self._unconfirmed):
            self._end(sending, error)

    # -- closing

    async def close(self) -> None:
        self._is_closing = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        if self._closing is not None:
            await asyncio.wait([self._closing])
        if hasattr(self, "_link"):  # else it was never opened
            await self._link.inner.close()
        self._fail_all(_closed())


async def _close(link: _Link) -> None:
    try:
        async with asyncio.timeout(DRAIN_TIMEOUT):
            await link.drained.wait()
    except TimeoutError:
        LOG.info("The broker did not confirm all that was written to a lost connection.")
    await link.inner.close()


def _closed() -> exceptions.ConnectionFailed:
    return exceptions.ConnectionFailed("the connection was closed by this program")
