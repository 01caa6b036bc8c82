# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Exchanges that somebody deletes while they are in use: declared again by who declared them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from tavrida import dispatcher, service
from tavrida.client import RPCClient
from tavrida.config import ConnectionConfig
from tavrida.exceptions import ServiceUnavailable
from tavrida.plugins.transports.amqp import transport as amqp
from tavrida.server import Server
from tests.waiting import DEADLINE, eventually


@dispatcher.rpc_service("svc")
class Service(service.ServiceController):
    @dispatcher.rpc_method(service="svc", method="ok")
    def ok(self, request: Any, proxy: Any) -> dict[str, Any]:
        return {}


@pytest.fixture
def channel(amqp_url: str) -> Iterator[BlockingChannel]:
    """What an operator deletes by."""
    with pika.BlockingConnection(pika.URLParameters(amqp_url)) as connection:
        yield connection.channel()


def test_a_service_whose_exchange_is_deleted_gets_its_requests_again(
    amqp_url: str, channel: BlockingChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its callers hear meanwhile that nobody serves it; nobody restarts anything."""
    monkeypatch.setattr(amqp, "GUARD_PAUSE", 0.3)
    config = ConnectionConfig(url=(amqp_url,), async_engine=True)
    with Server(config, "svc", "svc", [Service]), RPCClient(config) as client:
        client.svc.ok().call(timeout=DEADLINE)
        channel.exchange_delete("svc")
        with pytest.raises(ServiceUnavailable, match="'svc'"):
            client.svc.ok().call(timeout=DEADLINE)

        def answers() -> bool:
            try:
                return not client.svc.ok().call(timeout=DEADLINE).payload
            except ServiceUnavailable:
                return False

        eventually(answers)


def test_a_client_whose_exchange_is_deleted_declares_it_again_and_publishes(
    amqp_url: str, channel: BlockingChannel
) -> None:
    """At once, and without an error: to publish without subscribers is none."""
    with RPCClient(ConnectionConfig(url=(amqp_url,)), source="news.happened") as client:
        client.publish(n=1)
        for n in (2, 3):
            channel.exchange_delete("news.notifications")
            client.publish(n=n)
        channel.exchange_declare("news.notifications", passive=True)
