# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Transports: what carries messages. Plugins of the namespace tavrida.transports.

The scheme of ``[connection] url`` is the name of the plugin.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tavrida import exceptions
from tavrida.config import ConnectionConfig
from tavrida.envelope import Properties, ReadProperties
from tavrida.loop import LoopThread
from tavrida.topology import Topology

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


@dataclass(slots=True, eq=False)
class Publication:
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


@dataclass(frozen=True, slots=True)
class Events:
    """What a transport tells its owner, on the loop."""

    #: The connection was lost; the transport goes on to make a new one.
    lost: Callable[[str], None]
    #: No connection could be made any more; the transport gave up.
    failed: Callable[[Exception], None]


class Transport(abc.ABC):
    """One connection to a broker, which repairs itself.

    All methods are called on the loop. What was declared and consumed is declared and consumed
    again after each reconnect, before publications go on.
    """

    def __init__(
        self, config: ConnectionConfig, loop: LoopThread, name: str, events: Events
    ) -> None:
        self.config = config
        self.loop = loop
        #: What an operator sees in the broker's list of connections.
        self.name = name
        self.events = events
        #: Why there is no connection, "" where there is one or nothing was tried yet.
        self.trouble = ""

    @classmethod  # noqa: B027 - a transport may take any url
    def check_url(cls, url: str) -> None:
        """Raise ConfigError for a url that can never work. Called before anything connects."""

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
    async def consume(self, queue: str, prefetch: int, on_delivery: OnDelivery) -> None:
        """Have at most ``prefetch`` unsettled deliveries of the queue handed over at a time."""

    @abc.abstractmethod
    async def inspect(self, queue: str) -> QueueState | None:
        """Return what a queue holds and how many consume it; None where there is no such queue.

        Raises:
            ConnectionFailed: the connection was lost meanwhile.
            TransportError: the broker does not let us look.
        """

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
        and no queue takes it or the exchange does not exist, PublishFailed when the broker
        refused it, PublishTimeout when there was no confirm in time. A message without a confirm
        is sent again, with the same ``message_id``, on the next connection.
        """

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
