# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""What a broker does, in a hundred lines without time: the reference for every transport.

Each queue has at most one consumer that takes messages, which makes every delivery certain.
"""

from __future__ import annotations

import bisect
import itertools
from dataclasses import dataclass, field

from tavrida.topology import Queue, Topology


def matches(pattern: str, key: str) -> bool:
    """Tell whether a binding's pattern takes a routing key."""
    return _match(pattern.split(".") if pattern else [], key.split(".") if key else [])


def _match(pattern: list[str], words: list[str]) -> bool:
    if not pattern:
        return not words
    if pattern[0] == "#":
        return any(_match(pattern[1:], words[skipped:]) for skipped in range(len(words) + 1))
    return bool(words) and pattern[0] in ("*", words[0]) and _match(pattern[1:], words[1:])


@dataclass(frozen=True)
class Seen:
    """What a consumer sees of a delivery. ``deaths`` are (queue, reason, count), the last first."""

    body: bytes
    redelivered: bool = False
    delivery_count: int | None = None
    deaths: tuple[tuple[str, str, int], ...] = ()


@dataclass(eq=False)
class Message:
    """One copy of a message, in one queue."""

    body: bytes
    place: int
    deaths: tuple[tuple[str, str, int], ...] = ()
    #: How often it was handed over and not settled.
    returns: int = 0


@dataclass(eq=False)
class Consumer:
    """Who takes messages of a queue, and what it has not settled, in the order of delivery."""

    queue: ModelQueue
    prefetch: int
    unsettled: list[Message] = field(default_factory=list)


@dataclass(eq=False)
class ModelQueue:
    """A queue: what was given back first, then what has waited since it came."""

    queue: Queue
    returned: list[Message] = field(default_factory=list)
    waiting: list[Message] = field(default_factory=list)
    consumer: Consumer | None = None

    @property
    def limit(self) -> int | None:
        return self.queue.delivery_limit

    def take_back(self, message: Message, *, by_crash: bool) -> None:
        """Put a message back where the type of the queue has it."""
        if self.queue.type == "classic":
            bisect.insort(self.waiting, message, key=lambda each: each.place)
        elif by_crash or self.limit is not None:
            self.returned.append(message)
        else:
            self.waiting.append(message)

    def seen(self, message: Message) -> Seen:
        is_counted = self.queue.type == "quorum" and message.returns > 0
        count = message.returns if is_counted else None
        return Seen(message.body, message.returns > 0, count, message.deaths)


class Model:
    """A broker. Every method returns the deliveries that it causes."""

    def __init__(self, topology: Topology) -> None:
        self.queues = {queue.name: ModelQueue(queue) for queue in topology.queues}
        self.bindings = topology.bindings
        self._places = itertools.count()

    def takers(self, exchange: str, key: str) -> set[str]:
        """Return the queues that a message goes to."""
        if not exchange:
            return {key} & self.queues.keys()
        return {
            binding.queue
            for binding in self.bindings
            if binding.exchange == exchange and matches(binding.routing_key, key)
        }

    def publish(self, exchange: str, key: str, body: bytes) -> list[tuple[Consumer, Seen]]:
        return self._add(self.takers(exchange, key), body, ())

    def _add(
        self, names: set[str], body: bytes, deaths: tuple[tuple[str, str, int], ...]
    ) -> list[tuple[Consumer, Seen]]:
        for name in names:
            self.queues[name].waiting.append(Message(body, next(self._places), deaths))
        return [each for name in names for each in self._deliver(self.queues[name])]

    def _deliver(self, queue: ModelQueue) -> list[tuple[Consumer, Seen]]:
        found = []
        consumer = queue.consumer
        while consumer and len(consumer.unsettled) < consumer.prefetch:
            if not queue.returned and not queue.waiting:
                break
            message = (queue.returned or queue.waiting).pop(0)
            consumer.unsettled.append(message)
            found.append((consumer, queue.seen(message)))
        return found

    def consume(self, name: str, prefetch: int) -> tuple[Consumer, list[tuple[Consumer, Seen]]]:
        queue = self.queues[name]
        queue.consumer = Consumer(queue, prefetch)
        return queue.consumer, self._deliver(queue)

    def settle(self, consumer: Consumer, number: int, how: str) -> list[tuple[Consumer, Seen]]:
        message = consumer.unsettled.pop(number)
        caused = []
        if how == "requeue":
            caused = self._give_back(consumer.queue, message, by_crash=False)
        elif how == "reject":
            caused = self._bury(consumer.queue, message, "rejected")
        return caused + self._deliver(consumer.queue)

    def cancel(self, consumer: Consumer) -> None:
        if consumer.queue.consumer is consumer:
            consumer.queue.consumer = None

    def crash(self, consumer: Consumer) -> list[tuple[Consumer, Seen]]:
        """End a consumer; what it has not settled comes back."""
        self.cancel(consumer)
        caused = []
        for message in consumer.unsettled:
            caused += self._give_back(consumer.queue, message, by_crash=True)
        consumer.unsettled = []
        return caused + self._deliver(consumer.queue)

    def _give_back(
        self, queue: ModelQueue, message: Message, *, by_crash: bool
    ) -> list[tuple[Consumer, Seen]]:
        message.returns += 1
        if queue.limit is not None and message.returns > queue.limit:
            return self._bury(queue, message, "delivery_limit")
        queue.take_back(message, by_crash=by_crash)
        return []

    def _bury(
        self, queue: ModelQueue, message: Message, reason: str
    ) -> list[tuple[Consumer, Seen]]:
        place = queue.queue.name, reason
        count = 1 + sum(death[2] for death in message.deaths if death[:2] == place)
        others = [death for death in message.deaths if death[:2] != place]
        dead = {queue.queue.dead_letter_to} & self.queues.keys()
        return self._add(dead, message.body, ((*place, count), *others))

    def content(self, name: str) -> list[Seen]:
        """Return what waits in a queue."""
        queue = self.queues[name]
        return [queue.seen(message) for message in (*queue.returned, *queue.waiting)]
