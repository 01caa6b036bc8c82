# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Standstill: all handlers that may run at a time wait for requests that wait for one of them."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from tavrida import exceptions
from tavrida.loop import LoopThread
from tavrida.messages import IncomingMessage, Request
from tavrida.plugins.transports import Delivery, OnDelivery, Transport
from tavrida.turns import Guest, Turns

LOG = logging.getLogger(__name__)

#: Seconds that requests get to arrive until it is looked where they are; the pauses between
#: further looks double up to the second one.
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0

#: Messages that may be taken in, beyond the prefetch, to find a request that its own asker holds
#: up. They are kept in memory; a request that comes after so many ends by its deadline.
MAX_TAKEN_IN = 1000


class InLine(Guest, Protocol):
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
    prefetch: int
    receive: OnDelivery


class Standstill(Generic[Waiting]):
    """Ends a standstill by refusing one request: its asker ends, and the next one begins.

    Only where nobody else can: all handlers that may run at a time do run, and wait for nothing
    but the answers of requests in queues that this process alone consumes; each of these was
    delivered here, to nobody before, and has not begun. To have them delivered, it takes in more
    of the queues than the prefetch. ``awaiting`` is thread-safe; the rest is called on the loop.
    """

    def __init__(self, loop: LoopThread, concurrency: int, turns: Turns[Waiting]) -> None:
        self._loop = loop
        self._concurrency = concurrency
        self._turns = turns
        # By request id: those whose answers handlers wait for, and do nothing else.
        self._awaited: dict[str, Request] = {}
        self._queues: dict[str, _Queue] = {}
        self._looking: asyncio.Task[None] | None = None

    def watch(
        self, service: str, transport: Transport, queue: str, prefetch: int, receive: OnDelivery
    ) -> None:
        """Look into the queue when all handlers wait for the service; ``receive`` what it has."""
        self._queues[service] = _Queue(transport, queue, prefetch, receive)

    def change(self, concurrency: int) -> None:
        """Look for a standstill of so many handlers from now on."""
        self._concurrency = concurrency
        self.check()

    def stop(self) -> None:
        """Take in nothing any more: what came now would only be given back, again and again."""
        self._queues.clear()

    @contextlib.contextmanager
    def awaiting(self, request: Request) -> Iterator[None]:
        """Note that a handler waits for this answer, and for nothing else, inside the block."""
        self._awaited[request.request_id] = request
        try:
            if len(self._awaited) == self._concurrency:
                self._loop.submit(self.check)
            yield
        finally:
            self._awaited.pop(request.request_id, None)

    def check(self) -> None:
        """Look for a standstill: called whenever there may be one."""
        if self._looking is None and self._queues_of_awaited():
            # In nobody's context: not in that of a handler.
            looking = self._loop.loop.create_task(self._look(), context=contextvars.Context())
            looking.add_done_callback(self._looked)
            self._looking = looking

    def _queues_of_awaited(self) -> set[_Queue]:
        """Return the queues that all handlers wait for; none while one does not."""
        if len(self._awaited) < self._concurrency:
            return set()
        asked = self._awaited.copy().values()
        services = {each.destination.service for each in asked if each.destination}
        if not self._queues.keys() >= services:
            return set()
        return {self._queues[service] for service in services}

    async def _look(self) -> None:
        """End the standstill, for as long as there is one."""
        pause, seen = FIRST_PAUSE, self._awaited.keys() | ()
        while queues := self._queues_of_awaited():
            await asyncio.sleep(pause)
            with contextlib.suppress(exceptions.TransportError):
                await self._end(queues)
            before, seen = seen, self._awaited.keys() | ()
            pause = min(2 * pause, LONGEST_PAUSE) if seen == before else FIRST_PAUSE

    def _looked(self, looking: asyncio.Task[None]) -> None:
        self._looking = None
        if not looking.cancelled() and (error := looking.exception()) is not None:
            LOG.error("Cannot look for requests that are held up here.", exc_info=error)

    async def _end(self, queues: set[_Queue]) -> None:
        """Refuse a request, if all that is awaited can be found; take in what waits until then."""
        line = self._turns.hall.waiting
        room = MAX_TAKEN_IN + sum(queue.prefetch for queue in queues)
        states = {queue: await queue.transport.inspect(queue.name) for queue in queues}
        if any(state is None or state.consumers != 1 for state in states.values()):
            return
        for queue, state in states.items():
            left = state.messages if state else 0
            while left and len(line) < room and not self._stuck():
                if self._queues_of_awaited() != queues:
                    return
                left -= 1
                delivery = await queue.transport.get(queue.name)
                if delivery is None:
                    break
                queue.receive(delivery)
        if (stuck := self._stuck()) and self._queues_of_awaited() == queues:
            self._refuse(stuck[-1])

    def _stuck(self) -> list[Waiting]:
        """Return the awaited requests in line, if all are; else none."""
        stuck = [
            each
            for each in self._turns.hall.waiting
            if each.message.request_id in self._awaited and not each.message.redelivered
        ]
        return stuck if len(stuck) >= self._concurrency else []

    def _refuse(self, waiting: Waiting) -> None:
        # Its asker is about to go on: what is taken in from now on would race the consumer.
        self._awaited.pop(waiting.message.request_id, None)
        self._turns.withdraw(waiting)
        waiting.fail(
            exceptions.CallError(
                f"{waiting.message.destination} cannot begin: all {self._concurrency} handlers "
                "that this server runs at a time (concurrency) wait for requests that wait here "
                f"for them, in queue {waiting.delivery.queue!r}. Raise concurrency; or do not "
                "wait: use cast(), or call() with a method marked rpc_response_method; or serve "
                "what is called from a server of its own"
            )
        )
