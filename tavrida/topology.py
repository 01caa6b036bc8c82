# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Topology as data: which exchanges, queues and bindings a set of services needs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tavrida import exceptions
from tavrida.addresses import AddressBook
from tavrida.dispatcher import Dispatcher
from tavrida.middleware import Middleware, calling, check_outgoing, settling

#: The delivery limit of dead-letter queues: RabbitMQ 4 has one of 20 where none is given, and would
#: drop what operators look at more often than that.
ENDLESS_DELIVERIES = 1_000_000


@dataclass(frozen=True, slots=True)
class Exchange:
    """A durable topic exchange."""

    name: str


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable queue. What it cannot deliver goes to the queue ``dead_letter_to``, if any.

    ``delivery_limit`` is how often a quorum queue hands over a message that nobody settles.
    ``message_ttl`` is in milliseconds: a message that waits for longer expires. A queue without
    consumers that has both a ``message_ttl`` and a ``dead_letter_to`` delays what comes to it.
    """

    name: str
    type: str
    dead_letter_to: str = ""
    delivery_limit: int | None = None
    message_ttl: int | None = None


@dataclass(frozen=True, slots=True, order=True)
class Binding:
    """What comes to the exchange with a matching routing key goes to the queue."""

    exchange: str
    queue: str
    routing_key: str


@dataclass(frozen=True, slots=True)
class Topology:
    """Everything to declare, each thing once. Declaring it again changes nothing."""

    exchanges: tuple[Exchange, ...] = ()
    queues: tuple[Queue, ...] = ()
    bindings: tuple[Binding, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """Where one controller lives: its queue, its exchange, and how it finds other services.

    ``subscriptions`` limits which services it hears; None means all that it has handlers for.

    Raises:
        ConfigError: outgoing middleware is ``async def``.
    """

    dispatcher: Dispatcher
    queue: str
    exchange: str
    addresses: AddressBook
    subscriptions: Sequence[str] | None = None
    incoming: Sequence[Middleware] = ()
    outgoing: Sequence[Middleware] = ()
    #: Those of ``incoming`` that are told before a delivery is settled.
    settling: Sequence[Middleware] = field(init=False)
    #: Those of ``outgoing`` that are told of calls.
    calling: Sequence[Middleware] = field(init=False)

    def __post_init__(self) -> None:
        check_outgoing(self.outgoing)
        object.__setattr__(self, "settling", settling(self.incoming))
        object.__setattr__(self, "calling", calling(self.outgoing))


def dead_letter_queue(queue: str) -> str:
    """Return the name of the queue that keeps what a queue's handlers could not handle."""
    return f"{queue}.dead"


def delay_queue(queue: str, level: int) -> str:
    """Return the name of the queue that gives messages back to ``queue`` after milliseconds."""
    return f"{queue}.retry.{level}"


def topology_of(
    placements: Iterable[Placement],
    queue_type: str,
    delivery_limit: int | None,
    levels: Mapping[str, Sequence[int]] | None = None,
) -> Topology:
    """Return what the services need to be declared.

    ``levels`` has the delays of retries by queue, in milliseconds.

    Raises:
        ConfigError: a subscription's publisher is not known to discovery; names the handler.
    """
    exchanges: set[str] = set()
    queues: set[str] = set()
    bindings: set[Binding] = set()
    faults = []
    for placement in placements:
        service = placement.dispatcher.service
        exchanges.add(placement.exchange)
        queues.add(placement.queue)
        # All methods, known or not: an unknown one shall be answered, not left to time out.
        # The bare name is the address of answers.
        for key in (f"{service}.*", service):
            bindings.add(Binding(placement.exchange, placement.queue, key))
        # Unknown: it publishes nothing, or is told so when it tries.
        with contextlib.suppress(exceptions.ServiceUnknown):
            exchanges.add(placement.addresses.local_publisher(service))
        for mark in placement.dispatcher.subscriptions():
            publisher = mark.entry_point.service
            if placement.subscriptions is not None and publisher not in placement.subscriptions:
                continue
            try:
                exchange = placement.addresses.remote_publisher(publisher)
            except exceptions.ServiceUnknown as error:
                place = placement.dispatcher.handlers[mark].place
                faults.append(f"{place} subscribes to {mark.entry_point}: {error}")
                continue
            exchanges.add(exchange)
            bindings.add(Binding(exchange, placement.queue, str(mark.entry_point)))
    dead = {dead_letter_queue(name): name for name in queues}
    delays = {
        delay_queue(name, level): (name, level)
        for name, each in (levels or {}).items()
        for level in each
    }
    faults += [
        f"queue {name!r} is where the dead letters of queue {dead[name]!r} go: rename it"
        for name in sorted(queues & dead.keys())
    ]
    faults += [
        f"queue {name!r} is where retries of queue {delays[name][0]!r} wait: rename it"
        for name in sorted(queues & delays.keys())
    ]
    faults += [
        f"{name[:40]!r}... is longer than the 255 bytes that AMQP allows for a name"
        for name in sorted(exchanges | dead.keys() | delays.keys())
        if len(name.encode()) > 255
    ]
    if faults:
        raise exceptions.ConfigError(*faults)
    limit, endless = (
        (delivery_limit, ENDLESS_DELIVERIES) if queue_type == "quorum" else (None, None)
    )
    return Topology(
        tuple(Exchange(name) for name in sorted(exchanges)),
        # Where messages go, before where they come from: there is never a time without it. But
        # what waits in a delay queue from a former life may expire at once.
        tuple(
            Queue(dead_letter_queue(name), queue_type, delivery_limit=endless)
            for name in sorted(queues)
        )
        + tuple(Queue(name, queue_type, dead_letter_queue(name), limit) for name in sorted(queues))
        + tuple(
            Queue(name, queue_type, dead_letter_to=queue, message_ttl=level)
            for name, (queue, level) in sorted(delays.items(), key=lambda item: item[1])
        ),
        tuple(sorted(bindings)),
    )
