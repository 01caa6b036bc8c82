# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Transports: what carries messages. Plugins of the namespace tavrida.transports.

The scheme of ``[connection] url`` is the name of the plugin.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Protocol

import msgspec

from tavrida import exceptions
from tavrida.config import ConnectionConfig
from tavrida.envelope import Properties, ReadProperties
from tavrida.loop import LoopThread
from tavrida.topology import Binding, Exchange, Queue, Topology
from tavrida.waiting import Waiting

#: Bytes of all properties and headers together: RabbitMQ's frames have 128 kB by default.
MAX_PROPERTIES = 120_000

#: Called with None when the broker has the message, or with why it has not.
Done = Callable[[Exception | None], None]


class Delivery(Protocol):
    """A message that was handed to a consumer. Settle it once, on the loop.

    Settling after the connection was lost does nothing: the broker delivers it again.
    """

    body: bytes
    properties: ReadProperties
    exchange: str
    routing_key: str
    redelivered: bool
    queue: str

    @property
    def is_live(self) -> bool:
        """False when it was settled, or when its connection is gone."""

    def ack(self) -> None:
        """Tell the broker to forget the message."""

    def requeue(self) -> None:
        """Give the message back untouched; it is delivered again, here or elsewhere."""

    def reject(self) -> None:
        """Have the broker move the message to the dead-letter queue of its queue."""


OnDelivery = Callable[[Delivery], None]


class Publication(msgspec.Struct, eq=False, gc=False):
    """A message on its way to an exchange; the default exchange is ""."""

    exchange: str
    routing_key: str
    body: bytes
    properties: Properties
    #: True: it is an error when no queue takes the message.
    is_mandatory: bool


@dataclass(frozen=True, slots=True)
class QueueState:
    """What can be said of a queue at one moment."""

    #: Messages that wait in it; those that were handed over and are not settled do not count.
    messages: int
    consumers: int
    #: Those that were handed over and are not settled; None where the transport does not tell.
    unacknowledged: int | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class ConnectionState:
    """What can be said of a connection to the broker, of whatever program, at one moment."""

    #: What it calls itself: those of tavrida their services or command, host and process.
    name: str
    user: str
    #: The address that it comes from; "" where it is on this machine.
    peer: str
    since: datetime | None
    state: str
    #: The queues that it reads.
    queues: tuple[str, ...]
    unacknowledged: int | None


#: What is different about a queue or exchange: by the name that AMQP has for it, what it is and
#: what it should be, None where it is not set.
Differences = Mapping[str, tuple[object, object]]


@dataclass(frozen=True, slots=True)
class Events:
    """What a transport tells its owner, on the loop."""

    #: The connection was lost; the transport goes on to make a new one.
    lost: Callable[[str], None]
    #: No connection could be made any more; the transport gave up.
    failed: Callable[[Exception], None]


class Transport(abc.ABC):
    """One connection to a broker, which repairs itself.

    All methods but ``submit`` are called on the loop. What was declared and consumed is declared
    and consumed again after each reconnect, before publications go on.
    """

    #: True where the broker takes back what a consumer has not settled for long.
    has_consumer_timeout: ClassVar[bool] = False

    def __init__(
        self, config: ConnectionConfig, loop: LoopThread, name: str, events: Events
    ) -> None:
        self.config = config
        self.loop = loop
        #: What an operator sees in the broker's list of connections.
        self.name = name
        self.events = events
        #: Why there is no connection, "" where there is one or nothing was tried yet. Any thread.
        self.trouble = ""

    @classmethod
    def check(cls, config: ConnectionConfig) -> None:
        """Raise ConfigError for settings that can never work. Called before anything connects."""
        for url in config.urls:
            cls.check_url(url)

    @classmethod  # noqa: B027 - a transport may take any url
    def check_url(cls, url: str) -> None:
        """Raise ConfigError for a url that can never work; ``check`` calls it for each."""

    @classmethod
    def is_shared(cls, config: ConnectionConfig) -> bool:
        """Tell whether other processes reach the same place; False where it is in this one only."""
        return True

    @property
    @abc.abstractmethod
    def is_ready(self) -> bool:
        """True while it is connected, and the broker has confirmed all that is consumed.

        May be asked from any thread, before ``open`` and after ``close`` too.
        """

    @property
    @abc.abstractmethod
    def can_publish(self) -> bool:
        """False while nothing can be published: no connection, or the broker blocks publishers.

        True is no promise: a broker may tell only of a publication that it does not take.
        """

    @abc.abstractmethod
    async def open(self, attempts: int) -> None:
        """Connect. ``attempts`` rounds over all nodes at most, -1 for ever.

        Raises:
            ConnectionFailed: no node could be reached, or the broker refuses these credentials
                or this virtual host.
        """

    @abc.abstractmethod
    async def declare(self, topology: Topology) -> None:
        """Declare exchanges, queues and bindings; those that exist already are left as they are.

        Raises:
            TopologyConflict: one exists with other properties; names both.
        """

    @abc.abstractmethod
    async def compare(self, thing: Queue | Exchange) -> Differences | None:
        """Return how one that exists differs from this; None where there is none of that name.

        Raises:
            ConnectionFailed: the connection was lost meanwhile.
            TransportError: the broker does not let us look.
        """

    @abc.abstractmethod
    async def rebind(self, old: Collection[Binding], new: Collection[Binding]) -> None:
        """Make the new bindings, then remove the old ones; those that are not there are no error.

        Never is there a time without either. What is published between the two may go both ways.

        Raises:
            ConnectionFailed: the connection was lost meanwhile; any part of it may be done.
            TransportError: a queue or an exchange does not exist, or the broker refuses.
        """

    @abc.abstractmethod
    async def delete(self, queue: str) -> None:
        """Delete a queue that is empty and has no consumers; none of that name is no error.

        RabbitMQ cannot make sure of it for a quorum queue: what is published to it just between
        the last look and the deletion goes with it.

        Raises:
            ConnectionFailed: the connection was lost meanwhile; it may be done.
            TransportError: it has messages or consumers, or the broker does not let us.
        """

    @abc.abstractmethod
    async def consume(self, queue: str, prefetch: int, on_delivery: OnDelivery) -> None:
        """Have at most ``prefetch`` unsettled deliveries of the queue handed over at a time."""

    @abc.abstractmethod
    async def change_prefetch(self, queue: str, prefetch: int) -> None:
        """Have from now on at most ``prefetch`` deliveries of a queue handed over at a time.

        The connection stays, and so does what was handed over; that may or may not count. What a
        broker had on its way may be delivered again by it. Not to be called beside ``cancel``.
        """

    @abc.abstractmethod
    async def inspect(self, queue: str) -> QueueState | None:
        """Return what a queue holds and how many consume it; None where there is no such queue.

        Raises:
            ConnectionFailed: the connection was lost meanwhile.
            TransportError: the broker does not let us look.
        """

    async def connections(self) -> list[ConnectionState] | None:
        """Return who uses the same place, this connection too; None where that is not told.

        Raises:
            ConnectionFailed: the connection was lost meanwhile.
        """
        return None

    @abc.abstractmethod
    async def get(self, queue: str) -> Delivery | None:
        """Take the next message of a queue without consuming it; None when none waits.

        It is held until it is settled, beyond any prefetch; also by the end of the connection.

        Raises:
            ConnectionFailed: the connection was lost meanwhile.
            TransportError: there is no such queue, or the broker does not let us have it.
        """

    @abc.abstractmethod
    async def reply_queue(self, on_delivery: OnDelivery) -> str:
        """Return the name of a queue of this connection only, whose deliveries need no ack.

        It dies with the connection; ask again after ``Events.lost``.

        Raises:
            ConnectionFailed: the connection was lost meanwhile, or the broker refuses the queue.
        """

    @abc.abstractmethod
    async def cancel(self) -> None:
        """Stop all consuming for good. What was delivered may still be settled."""

    @abc.abstractmethod
    def publish(self, publication: Publication, done: Done) -> None:
        """Send a message; ``done`` is called exactly once, within ``publish_timeout``.

        ``done`` gets None when the broker confirmed it, ServiceUnavailable when it is mandatory
        and no queue takes it or the exchange does not exist, PublishFailed when the broker can
        never take it, PublishTimeout when there was no confirm in time. A message without a
        confirm is sent again, with the same ``message_id``, on the next connection; one that the
        broker refused for now, soon.
        """

    def submit(self, publication: Publication, done: Done) -> None:
        """As ``publish``, from any other thread than the loop's. ``done`` is called on the loop.

        Raises:
            ConnectionFailed: the loop was stopped.
        """
        self.loop.submit(self.publish, publication, done)

    def read_confirm(  # noqa: B027 - it may not pay
        self, end: Waiting[None], seconds: float, is_alone: Callable[[], bool]
    ) -> None:
        """Read in this thread, which waits for a confirm, instead of on the loop; return any time.

        A transport may save its loop waking this thread so, while ``is_alone()``: while nothing
        else of this connection is awaited, until ``end`` has ended, and for no longer than
        ``seconds``.
        """

    def read_answer(  # noqa: B027 - it may not pay
        self, end: Waiting[Any], seconds: float, is_alone: Callable[[], bool]
    ) -> None:
        """Read in this thread, which waits for an answer; as ``read_confirm``."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Send what is written already, settlements among it, then close. Never raises."""


def unroutable(publication: Publication) -> exceptions.ServiceUnavailable:
    """Return the error of a mandatory message that no queue takes."""
    service = publication.routing_key.partition(".")[0]
    if not publication.exchange:
        return exceptions.ServiceUnavailable(f"there is no queue {publication.routing_key!r}")
    return exceptions.ServiceUnavailable(
        f"nobody serves {service!r}: exchange {publication.exchange!r} has no queue for routing "
        f"key {publication.routing_key!r}. Was the service ever started?"
    )


def no_exchange(publication: Publication) -> exceptions.ServiceUnavailable:
    """Return the error of a message to an exchange that does not exist."""
    return exceptions.ServiceUnavailable(
        f"nobody serves {publication.routing_key.partition('.')[0]!r}: exchange "
        f"{publication.exchange!r} (routing key {publication.routing_key!r}) does not exist. "
        "Was the service ever started, and is this the exchange that it uses?"
    )


#: What to do about a conflict.
_REMEDIES = {
    "queue": "Set it in the configuration as it is; or stop the services of this queue and have it "
    "changed, with the messages in it, by 'tavrida topology apply' ('tavrida topology plan' says "
    "what that would do).",
    "exchange": "Use another name; or delete the exchange when nobody uses it, and start again.",
}


def conflict(kind: str, name: str, differences: Differences) -> exceptions.TopologyConflict:
    """Return the error of a queue or exchange (``kind``) that exists and differs."""
    told = ", ".join(
        f"{what} is {old!r}, wanted is {new!r}" for what, (old, new) in differences.items()
    )
    return exceptions.TopologyConflict(
        f"{kind} {name!r} exists already with other properties: {told}. {_REMEDIES[kind]}"
    )


def in_use(queue: str, state: QueueState) -> exceptions.TransportError:
    """Return the error of a queue that should be deleted and is still needed."""
    return exceptions.TransportError(
        f"queue {queue!r} is not deleted: it has {state.messages} messages and {state.consumers} "
        "consumers"
    )


def undeclared(
    topologies: Iterable[Topology], queue: str = "", bindings: Collection[Binding] = ()
) -> dict[Topology, None]:
    """Return what is to be declared again after a loss, without what was removed meanwhile."""
    return {
        Topology(
            each.exchanges,
            tuple(q for q in each.queues if q.name != queue),
            tuple(b for b in each.bindings if b.queue != queue and b not in bindings),
        ): None
        for each in topologies
    }
