# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Addresses: to which exchange, and with which routing key, a message goes."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

from tavrida.discovery import Discovery
from tavrida.entry_point import EntryPoint


@dataclass(frozen=True, slots=True)
class Address:
    """Where a message goes. Mandatory: it is an error when no queue takes it."""

    exchange: str
    routing_key: str
    is_mandatory: bool


# Programs have few of them and ask for one with each message.
_address = functools.lru_cache(maxsize=4096)(Address)


@dataclass(frozen=True, slots=True)
class AddressBook:
    """What discovery says, and before it what a server knows of its own services.

    All methods raise ServiceUnknown for what neither knows.
    """

    discovery: Discovery
    exchanges: Mapping[str, str] = field(default_factory=dict)
    publishers: Mapping[str, str] = field(default_factory=dict)

    def of_request(self, destination: EntryPoint) -> Address:
        """Return where requests to the entry point go."""
        service = destination.service
        exchange = self.exchanges.get(service) or self.discovery.get_remote(service)
        return _address(exchange, destination.text, True)

    def of_notification(self, source: EntryPoint) -> Address:
        """Return where notifications of the entry point go; nobody has to listen."""
        return _address(self.local_publisher(source.service), source.text, False)

    def of_answer(self, reply_to: str) -> Address:
        """Return where answers go: to a service that was registered, or else to a queue."""
        exchange = self.exchanges.get(reply_to, "")
        if not exchange and self.discovery.is_registered(reply_to):
            exchange = self.discovery.get_remote(reply_to)
        return _address(exchange, reply_to, True)

    def local_publisher(self, service: str) -> str:
        """Return the exchange that a service of this process publishes to."""
        return self.publishers.get(service) or self.discovery.get_local_publisher(service)

    def remote_publisher(self, service: str) -> str:
        """Return the exchange to bind to in order to hear a service."""
        return self.publishers.get(service) or self.discovery.get_remote_publisher(service)
