# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Which exchanges, queues and bindings services need, as data."""

from __future__ import annotations

from typing import Any

import pytest

from tavrida import dispatcher
from tavrida.addresses import AddressBook
from tavrida.discovery import LocalDiscovery
from tavrida.dispatcher import Dispatcher
from tavrida.exceptions import ConfigError
from tavrida.plugins.discovery.convention import ConventionDiscovery
from tavrida.service import ServiceController
from tavrida.topology import (
    ENDLESS_DELIVERIES,
    Binding,
    Exchange,
    Placement,
    Queue,
    Topology,
    dead_letter_queue,
    topology_of,
)


@dispatcher.rpc_service("shop")
class Shop(ServiceController):
    @dispatcher.rpc_method("shop", "sell")
    def sell(self, request: Any, proxy: Any) -> None: ...

    @dispatcher.subscription_method("stock", "empty")
    def empty(self, notification: Any, proxy: Any) -> None: ...

    @dispatcher.subscription_method("bank", "paid")
    def paid(self, notification: Any, proxy: Any) -> None: ...


@dispatcher.rpc_service("stock")
class Stock(ServiceController):
    @dispatcher.rpc_method("stock", "take")
    def take(self, request: Any, proxy: Any) -> None: ...


def place(
    cls: type[ServiceController],
    queue: str = "queue",
    exchange: str = "exchange",
    subscriptions: tuple[str, ...] | None = None,
    addresses: AddressBook | None = None,
) -> Placement:
    book = addresses or AddressBook(ConventionDiscovery())
    return Placement(Dispatcher(cls()), queue, exchange, book, subscriptions)


def keys(topology: Topology, exchange: str) -> list[str]:
    return [each.routing_key for each in topology.bindings if each.exchange == exchange]


def test_service_gets_all_its_methods_and_answers() -> None:
    """Unknown methods too, so that somebody answers; answers come by the bare name."""
    topology = topology_of(
        [place(Stock, "q", "e", addresses=AddressBook(LocalDiscovery()))], "quorum", 5
    )
    assert (
        Topology(
            (Exchange("e"),),
            (
                Queue("q.dead", "quorum", delivery_limit=ENDLESS_DELIVERIES),
                Queue("q", "quorum", "q.dead", 5),
            ),
            (Binding("e", "q", "stock"), Binding("e", "q", "stock.*")),
        )
        == topology
    )


def test_subscriptions_are_bound_by_their_topics_only() -> None:
    """And their exchanges declared: the publisher may start later."""
    topology = topology_of([place(Shop)], "quorum", 5)
    assert ["stock.empty"] == keys(topology, "stock.notifications")
    assert ["bank.paid"] == keys(topology, "bank.notifications")
    names = {exchange.name for exchange in topology.exchanges}
    assert {
        "exchange",
        "shop.notifications",
        "stock.notifications",
        "bank.notifications",
    } == names


def test_subscriptions_can_be_limited() -> None:
    """None means all; an empty list means none."""
    some = topology_of([place(Shop, subscriptions=("bank",))], "quorum", 5)
    assert [] == keys(some, "stock.notifications")
    assert ["bank.paid"] == keys(some, "bank.notifications")
    none = topology_of([place(Shop, subscriptions=())], "quorum", 5)
    assert {"exchange"} == {binding.exchange for binding in none.bindings}


def test_services_that_share_a_queue_share_its_declaration() -> None:
    """Each thing is there once."""
    topology = topology_of([place(Shop), place(Stock)], "quorum", 5)
    assert ["queue.dead", "queue"] == [queue.name for queue in topology.queues]
    for things in (topology.exchanges, topology.queues, topology.bindings):
        assert len(things) == len(set(things))
    assert {"shop", "shop.*", "stock", "stock.*"} == set(keys(topology, "exchange"))


def test_dead_letter_queues_come_first() -> None:
    """There is never a time without them."""
    topology = topology_of([place(Shop, "b"), place(Stock, "a")], "classic", 5)
    assert ["a.dead", "b.dead", "a", "b"] == [queue.name for queue in topology.queues]


def test_only_quorum_queues_have_a_delivery_limit() -> None:
    """Classic ones refuse the argument; dead letters may be looked at for ever."""
    assert [None, None] == [
        queue.delivery_limit for queue in topology_of([place(Stock)], "classic", 5).queues
    ]
    assert [ENDLESS_DELIVERIES, 5] == [
        queue.delivery_limit for queue in topology_of([place(Stock)], "quorum", 5).queues
    ]


def test_order_of_the_services_changes_nothing() -> None:
    """The same set-up declares the same, whoever writes it down."""
    one = topology_of([place(Shop, "a"), place(Stock, "b")], "quorum", 5)
    assert one == topology_of([place(Stock, "b"), place(Shop, "a")], "quorum", 5)


def test_unknown_publishers_are_all_told_with_their_handlers() -> None:
    """Before anything connects: handler with its place, topic, and remedy."""
    with pytest.raises(ConfigError) as caught:
        topology_of([place(Shop, addresses=AddressBook(LocalDiscovery()))], "quorum", 5)
    assert 2 == len(caught.value.faults)
    first = caught.value.faults[0]
    assert "Shop.empty (" in first
    assert "subscribes to stock.empty: discovery does not know service 'stock'" in first
    assert "register_remote_publisher('stock', EXCHANGE)" in first


def test_publisher_that_nobody_asked_for_need_not_be_known() -> None:
    """A limited subscription looks up nothing else."""
    book = AddressBook(LocalDiscovery(), publishers={"bank": "money"})
    topology = topology_of([place(Shop, subscriptions=("bank",), addresses=book)], "quorum", 5)
    assert ["bank.paid"] == keys(topology, "money")


def test_service_that_cannot_publish_is_served_nevertheless() -> None:
    """The tutorial's first story: a controller without discovery."""
    topology = topology_of([place(Stock, addresses=AddressBook(LocalDiscovery()))], "quorum", 5)
    assert (Exchange("exchange"),) == topology.exchanges


def test_no_services_need_nothing() -> None:
    """The empty set."""
    assert Topology() == topology_of([], "quorum", 5)


def test_queue_named_like_anothers_dead_letters_is_refused() -> None:
    """It would be declared twice with different arguments, which the broker refuses."""
    dead = dead_letter_queue("queue")
    with pytest.raises(ConfigError, match=dead):
        topology_of([place(Shop, "queue"), place(Stock, dead)], "quorum", 5)


@pytest.mark.parametrize("kind", ["quorum", "classic"])
def test_each_delay_of_a_queue_is_a_queue_that_gives_back(kind: str) -> None:
    """Nobody consumes it: what is in it expires after that time, and goes where it came from."""
    topology = topology_of([place(Shop, "a"), place(Stock, "b")], kind, 5, {"b": (100, 4000)})
    assert (
        Queue("b.retry.100", kind, "b", message_ttl=100),
        Queue("b.retry.4000", kind, "b", message_ttl=4000),
    ) == topology.queues[-2:]
    assert 6 == len(topology.queues)


def test_queue_named_like_anothers_delays_is_refused() -> None:
    """Its messages would go to the other one."""
    with pytest.raises(ConfigError, match=r"'a.retry.100' is where retries of queue 'a' wait"):
        topology_of([place(Shop, "a"), place(Stock, "a.retry.100")], "quorum", 5, {"a": (100,)})


@pytest.mark.parametrize(
    ("queue", "exchange"), [("q" * 251, "e"), ("ü" * 126, "e"), ("q", "e" * 256)]
)
def test_name_that_amqp_cannot_hold_is_refused(queue: str, exchange: str) -> None:
    """255 bytes, the dead-letter queue's suffix among them; told before anything connects."""
    with pytest.raises(ConfigError, match="255"):
        topology_of([place(Stock, queue, exchange)], "quorum", 5)
