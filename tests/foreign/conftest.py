# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""A real service of tavrida on RabbitMQ, and the foreign clients."""

from __future__ import annotations

from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from tavrida import discovery, dispatcher
from tavrida.config import ConnectionConfig
from tavrida.server import Server
from tavrida.service import ServiceController
from tests.foreign import aio_pika_peer, amqplib_peer, kombu_peer
from tests.foreign.peer import Peer

#: Exchange and queue of the service of tavrida.
EXCHANGE, QUEUE = "shop_exchange", "shop_service"

PEERS: dict[str, Peer] = {
    "kombu": kombu_peer,
    "aio-pika": aio_pika_peer,
    "amqplib": amqplib_peer,
}


class NotFound(Exception):
    code = 4711


@dispatcher.rpc_service("shop")
class Shop(ServiceController):
    """What the foreign clients call."""

    seen: SimpleQueue[Any] = SimpleQueue()

    @dispatcher.rpc_method(service="shop", method="add")
    def add(self, request: Any, proxy: Any, a: int, b: int) -> dict[str, Any]:
        return {"sum": a + b}

    @dispatcher.rpc_method(service="shop", method="ping")
    async def ping(self, request: Any, proxy: Any) -> dict[str, Any]:
        return {"text": "größe"}

    @dispatcher.rpc_method(service="shop", method="fails")
    def fails(self, request: Any, proxy: Any) -> None:
        raise NotFound("no such article")

    @dispatcher.rpc_method(service="shop", method="note")
    def note(self, request: Any, proxy: Any, text: str) -> None:
        self.seen.put((text, request.extra_headers))

    @dispatcher.subscription_method(service="news", method="printed")
    def printed(self, notification: Any, proxy: Any, title: str) -> None:
        self.seen.put(title)


@pytest.fixture
def config(amqp_url: str) -> ConnectionConfig:
    """A connection to the test's virtual host."""
    return ConnectionConfig(url=(amqp_url,), async_engine=True, retry_delay=0.1)


@pytest.fixture
def channel(amqp_url: str) -> Iterator[BlockingChannel]:
    """A plain channel, for what an operator would do."""
    with pika.BlockingConnection(pika.URLParameters(amqp_url)) as connection:
        yield connection.channel()


@pytest.fixture
def shop(config: ConnectionConfig) -> Iterator[type[Shop]]:
    """The service, serving."""
    Shop.seen = SimpleQueue()
    known = discovery.LocalDiscovery()
    known.register_remote_publisher("news", "news_exchange")
    Shop.set_discovery(known)
    with Server(config, QUEUE, EXCHANGE, [Shop], queue_type="classic"):
        yield Shop


@pytest.fixture(scope="session")
def _amqplib() -> None:
    reason = amqplib_peer.missing()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(params=PEERS)
def peer(request: pytest.FixtureRequest) -> Peer:
    """Each of the foreign clients in turn; Node's where there is Node and its registry."""
    if request.param == "amqplib":
        request.getfixturevalue("_amqplib")
    return PEERS[request.param]
