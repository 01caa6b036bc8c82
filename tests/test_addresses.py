# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""To which exchange, and with which routing key, a message goes."""

from __future__ import annotations

import pytest

from tavrida.addresses import Address, AddressBook
from tavrida.discovery import LocalDiscovery
from tavrida.entry_point import EntryPoint
from tavrida.exceptions import ServiceUnknown
from tavrida.plugins.discovery.convention import ConventionDiscovery

SELL = EntryPoint("shop", "sell")


def test_request_goes_where_discovery_says() -> None:
    """With the entry point as its routing key; nobody there is an error."""
    discovery = LocalDiscovery()
    discovery.register_remote_service("shop", "shop_exchange")
    assert Address("shop_exchange", "shop.sell", True) == AddressBook(discovery).of_request(SELL)


def test_services_of_the_process_itself_need_no_discovery() -> None:
    """What a server knows of its own wins."""
    discovery = LocalDiscovery()
    discovery.register_remote_service("shop", "elsewhere")
    discovery.register_local_publisher("shop", "elsewhere")
    book = AddressBook(discovery, {"shop": "here"}, {"shop": "events"})
    assert Address("here", "shop.sell", True) == book.of_request(SELL)
    assert Address("events", "shop.sell", False) == book.of_notification(SELL)
    assert "events" == book.remote_publisher("shop")


def test_notification_that_nobody_hears_is_no_error() -> None:
    """It goes to the publisher's exchange, by its topic."""
    address = AddressBook(ConventionDiscovery()).of_notification(SELL)
    assert Address("shop.notifications", "shop.sell", False) == address


def test_registers_of_publishers_are_looked_up_apart() -> None:
    """Who publishes and who listens may have been told different exchanges."""
    discovery = LocalDiscovery()
    discovery.register_local_publisher("shop", "out")
    discovery.register_remote_publisher("shop", "in")
    book = AddressBook(discovery)
    assert ("out", "in") == (book.local_publisher("shop"), book.remote_publisher("shop"))


def test_answer_goes_to_a_registered_service_by_its_bare_name() -> None:
    """Any instance of it takes the answer."""
    discovery = LocalDiscovery()
    discovery.register_remote_service("shop", "e")
    book = AddressBook(discovery, {"stock": "own"})
    assert Address("e", "shop", True) == book.of_answer("shop")
    assert Address("own", "stock", True) == book.of_answer("stock")


@pytest.mark.parametrize("queue", ["amq.gen-JzTY20BRgKO", "my reply queue", "größe", "shop.x"])
def test_answer_goes_to_a_queue_otherwise(queue: str) -> None:
    """By the default exchange; a convention that knows every name does not count."""
    for discovery in (LocalDiscovery(), ConventionDiscovery()):
        assert Address("", queue, True) == AddressBook(discovery).of_answer(queue)


def test_what_nobody_knows_is_said() -> None:
    """All but answers, whose address may be any queue."""
    book = AddressBook(LocalDiscovery())
    for look_up in (book.of_request, book.of_notification):
        with pytest.raises(ServiceUnknown, match="'shop'"):
            look_up(SELL)
    for name_of in (book.local_publisher, book.remote_publisher):
        with pytest.raises(ServiceUnknown, match="'shop'"):
            name_of("shop")
