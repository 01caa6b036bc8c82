# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Migration: brings what a broker has to what the services need, without losing a message.

No broker changes the type or the arguments of a queue. So its messages move aside, into a queue
``QUEUE.moving`` that has its bindings meanwhile; it is deleted and made anew; and they move back.
Queues that dead-letter into it move aside with it: what they pass on while it is away is lost.

All that is known of a migration is in the broker: ``apply`` looks what is there and goes on from
that, however the one before has ended. Every step leaves each message in at least one queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tavrida import exceptions
from tavrida.envelope import Properties
from tavrida.plugins.transports import (
    Delivery,
    Differences,
    Publication,
    QueueState,
    Transport,
    conflict,
)
from tavrida.topology import ENDLESS_DELIVERIES, Binding, Exchange, Queue, Topology

#: What apply does about a thing.
KEEP, CREATE, MOVE, ASIDE, BACK, DECLARE, STUCK = (
    "keep",
    "create",
    "move",
    "move aside",
    "move back",
    "declare",
    "none possible",
)

#: Actions that leave the broker as it is. (Brokers do not tell which bindings they have.)
IDLE = frozenset({KEEP, DECLARE})

#: Actions that move messages.
MOVING = frozenset({MOVE, ASIDE, BACK})

#: Messages on their way from one queue to the other at a time, for each pair of them; after a crash
#: so many may be in both.
WINDOW = 200

#: Messages that are remembered in order to find doubles.
REMEMBERED = 100_000

#: Seconds without any message after which nothing is on its way to an unbound queue any more.
SETTLE = 1.0

#: Seconds for consumers to go: those of stopped processes, or of a migration that was killed.
PATIENCE = 5.0

#: Seconds for an unbound queue to come to rest.
REST_TIMEOUT = 60.0

_PAUSE = 0.05

#: Headers of brokers: about the deaths of a message, and about its deliveries.
_DEATHS = ("x-death", "x-first-death-", "x-last-death-")
_COUNTS = ("x-delivery-count", "x-acquired-count")

#: Called with a sentence before each step, and now and then while messages move.
Report = Callable[[str], None]


def stand_in(queue: str) -> str:
    """Return the name of the queue that keeps the messages of another one while it is changed."""
    return f"{queue}.moving"


@dataclass(frozen=True, slots=True)
class Item:
    """What is to be done about one thing, and why."""

    thing: Exchange | Queue | Binding
    action: str
    differences: Differences = field(default_factory=dict)
    #: Of a queue: what is in it and in its temporary queue, and who consumes it; None: not there.
    state: QueueState | None = None


async def plan(transport: Transport, topology: Topology) -> tuple[Item, ...]:
    """Return what ``apply`` would do about each thing; nothing is changed.

    Raises:
        ConnectionFailed: the connection was lost meanwhile.
        TransportError: the broker does not let us look.
    """
    exchanges = {each: await transport.compare(each) for each in topology.exchanges}
    queues = {each: await transport.compare(each) for each in topology.queues}
    affected = _affected(queues)
    items = [Item(each, _action_of(found), found or {}) for each, found in exchanges.items()]
    for queue, found in queues.items():
        state = await transport.inspect(queue.name)
        waiting = await _inspect_stand_in(transport, queue)
        if found:
            action = MOVE
        elif queue in affected:
            action = ASIDE
        elif waiting is not None:
            action = BACK
        else:
            action = CREATE if found is None else KEEP
        items.append(Item(queue, action, found or {}, _sum(state, waiting)))
    missing = {each.name for each, found in exchanges.items() if found is None}
    missing |= {each.name for each, found in queues.items() if found is None}
    for binding in topology.bindings:
        is_new = binding.exchange in missing or binding.queue in missing
        items.append(Item(binding, CREATE if is_new else DECLARE))
    return tuple(items)


async def _inspect_stand_in(transport: Transport, queue: Queue) -> QueueState | None:
    name = stand_in(queue.name)
    return await transport.inspect(name) if len(name.encode()) <= 255 else None


def _action_of(differences: Differences | None) -> str:
    if differences is None:
        return CREATE
    return STUCK if differences else KEEP


def _affected(queues: Mapping[Queue, Differences | None]) -> set[Queue]:
    """Return the queues that differ, and those that exist and dead-letter into such, and so on."""
    names = {queue.name for queue, differences in queues.items() if differences}
    existing = [queue for queue, differences in queues.items() if differences is not None]
    while more := {q.name for q in existing if q.dead_letter_to in names} - names:
        names |= more
    return {queue for queue in existing if queue.name in names}


def _sum(one: QueueState | None, other: QueueState | None) -> QueueState | None:
    if one is None or other is None:
        return one or other
    return QueueState(one.messages + other.messages, one.consumers + other.consumers)


async def apply(
    transport: Transport, topology: Topology, report: Report, *, settle: float = SETTLE
) -> None:
    """Make what is missing and change what differs; done when all is as the topology says.

    Raises:
        TopologyConflict: an exchange differs, which cannot be changed; nothing was done.
        ConnectionFailed: the connection was lost; call it again.
        TransportError: queues have consumers, or the broker refuses; call it again when that is
            put right.
    """
    items = await plan(transport, topology)
    for item in items:
        if item.action == STUCK and isinstance(item.thing, Exchange):
            raise conflict("exchange", item.thing.name, item.differences)
    _check_targets(items)
    away = _in_order(_queues(items, MOVE, ASIDE))
    moving = [*away, *_queues(items, BACK)]
    _check_names(moving)
    # Services may take part again as soon as their queue is as it should be.
    names = [each.name for each in away] + [stand_in(each.name) for each in moving]
    await _until_unused(transport, names)
    for item in items:
        if item.action == CREATE:
            report(f"make {describe(item.thing)}")
    changed = _queues(items, MOVE)
    same = tuple(queue for queue in topology.queues if queue not in changed)
    await transport.declare(Topology(topology.exchanges, same))
    if away:
        await _move_aside(transport, topology, away, report, settle)
        for queue in away:
            if queue in changed:
                report(f"delete queue {queue.name} and make it anew")
                await transport.delete(queue.name)
        await transport.declare(Topology(queues=topology.queues))
    await _move_back(transport, topology, report, settle)
    await transport.declare(topology)


def _queues(items: Iterable[Item], *actions: str) -> list[Queue]:
    return [i.thing for i in items if isinstance(i.thing, Queue) and i.action in actions]


def describe(thing: Exchange | Queue | Binding) -> str:
    """Return kind and name of a thing, for people."""
    if isinstance(thing, Binding):
        return f"binding {thing.exchange} -> {thing.queue} ({thing.routing_key})"
    return f"{type(thing).__name__.lower()} {thing.name}"


def _check_targets(items: Sequence[Item]) -> None:
    """Refuse to delete a quorum queue that may hold what its missing target could not take.

    RabbitMQ counts such messages nowhere that we can look, and keeps them for minutes after the
    target is there again.
    """
    missing = {each.name for each in _queues(items, CREATE)}
    for item in items:
        queue = item.thing
        if not isinstance(queue, Queue) or item.action != MOVE:
            continue
        old_type = item.differences.get("x-queue-type", (queue.type,))[0]
        if old_type == "quorum" and queue.dead_letter_to in missing:
            raise exceptions.TransportError(
                f"queue {queue.dead_letter_to!r} is missing, and quorum queue {queue.name!r} may "
                "hold messages for it that no count shows. Start the services once with the old "
                "configuration, which declares it, wait for 3 minutes, stop them, and run this "
                "again"
            )


def _check_names(queues: Iterable[Queue]) -> None:
    for queue in queues:
        if len(stand_in(queue.name).encode()) > 255:
            raise exceptions.TransportError(
                f"queue {queue.name[:40]!r}... cannot be changed: the name of its temporary queue, "
                "with '.moving' at its end, would be longer than the 255 bytes that AMQP allows"
            )


async def _until_unused(transport: Transport, names: Sequence[str]) -> None:
    """Wait a little until nobody consumes the queues; raise TransportError if somebody goes on."""
    deadline = time.monotonic() + PATIENCE
    while True:
        found = {name: await transport.inspect(name) for name in names}
        used = [f"{n!r} has {s.consumers}" for n, s in found.items() if s and s.consumers]
        if not used:
            return
        if time.monotonic() > deadline:
            raise exceptions.TransportError(
                f"queues that have to move are consumed: {', '.join(used)}. Stop all processes "
                "that serve them, then run this again; publishers may go on"
            )
        await asyncio.sleep(_PAUSE)


def _in_order(things: Iterable[Queue]) -> list[Queue]:
    """Return the queues such that each comes before the one that it dead-letters into."""
    left = {queue.name: queue for queue in things}
    ordered: list[Queue] = []
    while left:
        targets = {queue.dead_letter_to for queue in left.values()}
        free = [queue for name, queue in left.items() if name not in targets]
        ordered += free or left.values()
        left = {queue.name: queue for queue in left.values() if queue not in ordered}
    return ordered


async def _move_aside(
    transport: Transport,
    topology: Topology,
    queues: Sequence[Queue],
    report: Report,
    settle: float,
) -> None:
    names = {queue.name for queue in queues}
    pairs = [(queue, _as_stand_in(queue, names)) for queue in queues]
    for _, target in reversed(pairs):  # where messages expire to, before where they come from
        if await transport.inspect(target.name) is None:
            report(f"make queue {target.name}")
            await transport.declare(Topology(queues=(target,)))
    await _move(transport, topology, pairs, report, settle)


def _as_stand_in(queue: Queue, moving: Collection[str]) -> Queue:
    """Return the queue that stands in: as lasting as the other one, but nothing times out in it."""
    target = queue.dead_letter_to
    return Queue(
        stand_in(queue.name),
        queue.type,
        stand_in(target) if target in moving else target,
        ENDLESS_DELIVERIES if queue.type == "quorum" else None,
    )


async def _move_back(
    transport: Transport, topology: Topology, report: Report, settle: float
) -> None:
    pairs = [
        (_as_stand_in(queue, ()), queue)
        for queue in _in_order(topology.queues)
        if await _inspect_stand_in(transport, queue) is not None
    ]
    if pairs:
        await _move(transport, topology, pairs, report, settle)
    for source, _ in pairs:
        report(f"delete queue {source.name}")
        await transport.delete(source.name)


async def _move(
    transport: Transport,
    topology: Topology,
    pairs: Sequence[tuple[Queue, Queue]],
    report: Report,
    settle: float,
) -> None:
    """Move bindings and messages from queue to queue.

    First most of the messages, then the bindings, then the messages that came meanwhile: so they
    keep their order, but for those that are published while the bindings change.
    """
    sources = [source.name for source, _ in pairs]
    mover = _Mover(transport)
    for source, target in pairs:
        report(f"move the messages of queue {source.name} to {target.name}")
        await transport.consume(source.name, WINDOW, functools.partial(mover.move, target))
    await mover.until_caught_up(sources, report)
    old, new = (_bindings(topology, [pair[side] for pair in pairs]) for side in (0, 1))
    report(f"switch {len(new)} bindings, and wait until nothing comes for {settle} s")
    await transport.rebind(old, new)
    await mover.until_at_rest(sources, settle)
    await transport.cancel()
    await mover.until_idle()
    for name, count in mover.moved.items():
        report(f"moved {count} messages to queue {name}")
    if mover.doubles:
        report(f"left out {mover.doubles} messages that were there twice")


def _bindings(topology: Topology, queues: Sequence[Queue]) -> list[Binding]:
    """Return the bindings of queues, or of those that they stand in for."""
    return [
        Binding(each.exchange, queue.name, each.routing_key)
        for queue in queues
        for each in topology.bindings
        if queue.name in (each.queue, stand_in(each.queue))
    ]


class _Mover:
    """Publishes what it is given to other queues; acknowledges it when that is confirmed."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._last = time.monotonic()
        self._failure: Exception | None = None
        # By message: the deliveries of it that wait for the confirm of the first one; None when
        # that is there. Oldest first; a double is near its twin, since both came while bindings
        # were changed, or were on their way when a connection or a process ended.
        self._seen: dict[bytes, list[Delivery] | None] = {}
        self.moved: Counter[str] = Counter()
        self.doubles = 0

    def move(self, target: Queue, delivery: Delivery) -> None:
        """Move a delivery."""
        self._last = time.monotonic()
        if self._failure is not None:
            return  # it goes back when the connection is closed
        publication = moved(delivery, target)
        key = _key_of(publication)
        if key in self._seen:
            self.doubles += 1
            self._leave_out(delivery, self._seen[key])
            return
        waiting = [delivery]
        if key:
            self._remember(key, waiting)

        def done(error: Exception | None) -> None:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()
            self._last = time.monotonic()
            if error is not None:
                self._failure = self._failure or error
                return
            self.moved[target.name] += 1
            if key in self._seen:
                self._seen[key] = None
            for each in waiting:
                each.ack()

        self._under_way += 1
        self._idle.clear()
        self._transport.publish(publication, done)

    @staticmethod
    def _leave_out(delivery: Delivery, waiting: list[Delivery] | None) -> None:
        if waiting is None:
            delivery.ack()
        else:  # its twin is on its way, and may not arrive
            waiting.append(delivery)

    def _remember(self, key: bytes, waiting: list[Delivery]) -> None:
        self._seen[key] = waiting
        if len(self._seen) > REMEMBERED:
            del self._seen[next(iter(self._seen))]

    async def until_caught_up(self, sources: Sequence[str], report: Report) -> None:
        """Wait until next to nothing is left, or as much comes as goes."""
        least: int | None = None
        reported = since = time.monotonic()
        while (left := await self._left_in(sources)) > WINDOW:
            now = time.monotonic()
            if least is None or left < least:
                least, since = left, now
            elif now - since > PATIENCE:
                return
            if now - reported > 1:
                reported = now
                report(f"moved {self.moved.total()} messages, {left} are left")
            await asyncio.sleep(_PAUSE)

    async def until_at_rest(self, sources: Sequence[str], settle: float) -> None:
        """Wait until the sources are empty and have been for ``settle`` seconds."""
        deadline = time.monotonic() + REST_TIMEOUT
        while True:
            left = await self._left_in(sources)
            now = time.monotonic()
            if not left and not self._under_way and now - self._last > settle:
                return
            if left > WINDOW:
                deadline = now + REST_TIMEOUT
            elif now > deadline:
                raise exceptions.TransportError(
                    f"messages still come to {', '.join(sources)} {REST_TIMEOUT:.0f} s after the "
                    "bindings were removed: some program publishes to a queue by its name. Stop "
                    "it, then run this again"
                )
            await asyncio.sleep(_PAUSE)

    async def until_idle(self) -> None:
        """Wait until whatever was begun is done."""
        await self._idle.wait()
        self._check()

    async def _left_in(self, sources: Sequence[str]) -> int:
        states = [await self._transport.inspect(source) for source in sources]
        self._check()
        return sum(state.messages for state in states if state is not None)

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure


def _key_of(publication: Publication) -> bytes:
    """Return what two copies of a message have in common; nothing for one without identifier."""
    properties = publication.properties
    if not properties.message_id:
        return b""
    # Not the identifier alone: a program without tavrida may write there whatever it likes.
    headers = sorted(properties.headers.items(), key=str)
    told = repr((publication.routing_key, properties.message_id, headers))
    return hashlib.blake2b(told.encode() + publication.body, digest_size=16).digest()


def moved(delivery: Delivery, target: Queue) -> Publication:
    """Return a delivery as it goes to another queue: as it was, and with where it came from.

    Its headers say so in the way of a message that is retried (docs/wire-format.md). What expires
    begins its time anew.
    """
    original: Any = delivery.properties  # both transports have more than readers need
    # Where a message may die again, its earlier deaths would confuse the broker, which drops what
    # seems to go round in circles. Where it is dead, they say why.
    drops = (*_COUNTS, *_DEATHS) if target.dead_letter_to else _COUNTS
    headers = {n: value for n, value in (original.headers or {}).items() if not n.startswith(drops)}
    exchange = _text(headers.pop("retry_exchange", None), delivery.exchange)
    routing_key = _text(headers.pop("retry_routing_key", None), delivery.routing_key)
    if (exchange, routing_key) != ("", target.name):
        headers |= {"retry_exchange": exchange, "retry_routing_key": routing_key}
    properties = Properties(
        original.content_type or "",
        headers,
        original.correlation_id or "",
        original.reply_to or "",
        original.message_id or "",
        original.type or "",
        original.app_id or "",
        original.timestamp or 0,
        _number(original.expiration),
    )
    return Publication("", target.name, delivery.body, properties, is_mandatory=True)


def _text(value: object, default: str) -> str:
    return value if isinstance(value, str) else default


def _number(text: str | None) -> int | None:
    with contextlib.suppress(TypeError, ValueError):
        return int(text or "")
    return None
