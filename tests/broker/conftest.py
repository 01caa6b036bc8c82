# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Servers and clients at a place of the test's own, on every transport; stopped when it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from tavrida import discovery
from tavrida.client import RPCClient
from tavrida.config import ConnectionConfig
from tavrida.server import Server
from tavrida.service import ServiceController
from tests.waiting import DEADLINE

Serve = Callable[..., Server]
Connect = Callable[..., RPCClient]

#: Exchange and queue of everything that `serve` runs, unless the test says otherwise.
EXCHANGE, QUEUE = "test_exchange", "test_service"


#: By name: the urls that a test runs at, one after the other.
TRANSPORTS: dict[str, Callable[[pytest.FixtureRequest], str]] = {
    "rabbitmq": lambda request: str(request.getfixturevalue("amqp_url")),
    "sqlite": lambda request: f"sqlite://{request.getfixturevalue('tmp_path')}/bus.db",
}

#: A test that asks for one of these is about AMQP, or about RabbitMQ itself.
AMQP_ONLY = {"amqp_url", "vhost", "rabbitmq", "node"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "url" in metafunc.fixturenames:
        is_amqp = AMQP_ONLY.intersection(metafunc.fixturenames)
        metafunc.parametrize("url", ["rabbitmq"] if is_amqp else list(TRANSPORTS), indirect=True)


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    """Where the servers and clients of this test meet: on every transport in turn."""
    return TRANSPORTS[request.param](request)


@pytest.fixture
def config(url: str) -> ConnectionConfig:
    """A connection to the test's place that lets handlers run side by side."""
    return ConnectionConfig(url=(url,), async_engine=True, retry_delay=0.1)


@pytest.fixture
def serve(config: ConnectionConfig) -> Iterator[Serve]:
    """Call it with controllers and settings to start a server of them."""
    with ExitStack() as servers:

        def start(
            *controllers: type[ServiceController],
            config: ConnectionConfig = config,
            queue: str = QUEUE,
            exchange: str = EXCHANGE,
            **settings: Any,
        ) -> Server:
            settings.setdefault("queue_type", "classic")
            settings.setdefault("retry", False)
            return servers.enter_context(Server(config, queue, exchange, controllers, **settings))

        yield start


@pytest.fixture
def connect(config: ConnectionConfig) -> Iterator[Connect]:
    """Call it with names of services to make a client that knows them to be at EXCHANGE."""
    with ExitStack() as clients:

        def make(
            *services: str, config: ConnectionConfig = config, source: str = "test", **more: Any
        ) -> RPCClient:
            known = discovery.LocalDiscovery()
            for service in services:
                known.register_remote_service(service, EXCHANGE)
            more.setdefault("discovery", known)
            return clients.enter_context(RPCClient(config, source=source, **more))

        yield make


@pytest.fixture
def channel(amqp_url: str) -> Iterator[BlockingChannel]:
    """A plain pika channel, for what a foreign client or an operator would do."""
    connection = pika.BlockingConnection(pika.URLParameters(amqp_url))
    yield connection.channel()
    if connection.is_open:
        connection.close()


def next_of(channel: BlockingChannel, queue: str) -> tuple[int, pika.BasicProperties, bytes]:
    """Take the next message of a queue: delivery tag, properties, body."""
    method, properties, body = next(channel.consume(queue, inactivity_timeout=DEADLINE))
    assert method is not None
    assert properties is not None
    assert body is not None
    return method.delivery_tag, properties, body
