# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Standstill: all handlers that may run at a time wait for requests that wait for one of them."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from tavrida import exceptions
from tavrida.loop import LoopThread
from tavrida.messages import IncomingMessage, Request
from tavrida.plugins.transports import Delivery, OnDelivery, Transport

LOG = logging.getLogger(__name__)

#: Seconds that requests get to arrive until it is looked where they are; the pauses between
#: further looks double up to the second one.
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0

#: Messages that may be taken in, beyond the prefetch, to find a request that its own asker holds
#: up. They are kept in memory; a request that comes after so many ends by its deadline.
MAX_TAKEN_IN = 1000


class InLine(Protocol):
    """A delivery that has not begun to be handled."""

    message: IncomingMessage
    delivery: Delivery

    def fail(self, error: Exception) -> None:
        """Answer it with an error."""


Waiting = TypeVar("Waiting", bound=InLine)


@dataclass(frozen=True, slots=True)
class _Queue:
    transport: Transport
    name: str
    receive: OnDelivery


class Standstill(Generic[Waiting]):
    """Ends a standstill by refusing one request: its asker ends, and the next one begins.

    Only where it is certain: all handlers that may run at a time do run, and wait for nothing
    but the answers of requests that were delivered to this process, to nobody before, and have
    not begun. Nothing that happens elsewhere can end that. While all handlers wait for services
    of this process, it takes in more of their queues than the prefetch, but only where nobody
    else consumes them, who might handle the requests. ``awaiting`` is thread-safe; the rest is
    called on the loop.
    """

    def __init__(self, loop: LoopThread, concurrency: int, line: deque[Waiting]) -> None:
        self._loop = loop
        self._concurrency = concurrency
        self._line = line
        # By request id: those whose answers handlers wait for, and do nothing else.
        self._awaited: dict[str, Request] = {}
        self._queues: dict[str, _Queue] = {}
        self._looking: asyncio.Task[None] | None = None

    def watch(self, service: str, transport: Transport, queue: str, receive: OnDelivery) -> None:
        """Look into the queue when all handlers wait for the service; ``receive`` what it has."""
        self._queues[service] = _Queue(transport, queue, receive)

    @contextlib.contextmanager
    def awaiting(self, request: Request) -> Iterator[None]:
        """Note that a handler waits for this answer, and for nothing else, inside the block."""
        self._awaited[request.request_id] = request
        try:
            if len(self._awaited) == self._concurrency:
                self._loop.submit(self.check)
            yield
        finally:
            del self._awaited[request.request_id]

    def check(self) -> None:
        """End a standstill, if there is one: called whenever there may be one."""
        if len(self._awaited) < self._concurrency:
            return
        stuck = [
            each
            for each in self._line
            if each.message.request_id in self._awaited and not each.message.redelivered
        ]
        if len(stuck) >= self._concurrency:
            self._refuse(stuck[-1])
        elif self._looking is None and self._queues_of_awaited():
            # In nobody's context: not in that of a handler.
            looking = self._loop.loop.create_task(self._look(), context=contextvars.Context())
            looking.add_done_callback(self._looked)
            self._looking = looking

    def _refuse(self, waiting: Waiting) -> None:
        self._line.remove(waiting)
        waiting.fail(
            exceptions.CallError(
                f"{waiting.message.destination} cannot begin: all {self._concurrency} handlers "
                "that this server runs at a time (concurrency) wait for requests that wait here "
                f"for them, in queue {waiting.delivery.queue!r}. Raise concurrency; or do not "
                "wait: use cast(), or call() with a method marked rpc_response_method; or serve "
                "what is called from a server of its own"
            )
        )

    async def _look(self) -> None:
        """Take in what all handlers wait for, for as long as they do."""
        pause, seen = FIRST_PAUSE, self._awaited.keys() | ()
        while queues := self._queues_of_awaited():
            await asyncio.sleep(pause)
            for queue in queues:
                with contextlib.suppress(exceptions.TransportError):
                    await self._take_in(queue)
            before, seen = seen, self._awaited.keys() | ()
            pause = min(2 * pause, LONGEST_PAUSE) if seen == before else FIRST_PAUSE

    def _looked(self, looking: asyncio.Task[None]) -> None:
        self._looking = None
        if not looking.cancelled() and (error := looking.exception()) is not None:
            LOG.error("Cannot look for requests that are held up here.", exc_info=error)

    def _queues_of_awaited(self) -> set[_Queue]:
        """Return the queues that all handlers wait for; none while one does not."""
        services = [
            each.destination.service for each in self._awaited.copy().values() if each.destination
        ]
        if len(services) < self._concurrency or not self._queues.keys() >= set(services):
            return set()
        return {self._queues[service] for service in services}

    async def _take_in(self, queue: _Queue) -> None:
        """Take in what waits in a queue, in its order, until the standstill is at its end."""
        state = await queue.transport.inspect(queue.name)
        if state is None or state.consumers != 1:
            return
        for _ in range(state.messages):
            if len(self._line) >= MAX_TAKEN_IN or queue not in self._queues_of_awaited():
                return
            delivery = await queue.transport.get(queue.name)
            if delivery is None:
                return
            queue.receive(delivery)
