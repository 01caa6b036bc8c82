# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Servers and clients on the embedded bus and on RabbitMQ, stopped when the test ends."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tavrida.client import RPCClient
from tavrida.config import ConnectionConfig
from tavrida.server import Server
from tavrida.service import ServiceController

Connect = Callable[..., RPCClient]


@pytest.fixture
def memory() -> ConnectionConfig:
    """An embedded bus of the test's own, in this process."""
    return ConnectionConfig(url=(f"sqlite://?memory={secrets.token_hex(8)}",), async_engine=True)


@pytest.fixture(params=["sqlite", "amqp"])
def config(request: pytest.FixtureRequest, memory: ConnectionConfig) -> ConnectionConfig:
    """Both transports, one after the other."""
    if request.param == "sqlite":
        return memory
    url = request.getfixturevalue("amqp_url")
    return ConnectionConfig(url=(url,), async_engine=True, retry_delay=0.1)


@pytest.fixture
def connect(config: ConnectionConfig) -> Iterator[Connect]:
    """Call it with controllers to start a server of them; returns a client for the server."""
    with ExitStack() as stack:

        def start(
            *controllers: type[ServiceController],
            config: ConnectionConfig = config,
            serializer: str = "json",
            **settings: Any,
        ) -> RPCClient:
            settings.setdefault("queue_type", "classic")
            service = controllers[0].__dict__["__tavrida_service__"]
            stack.enter_context(Server(config, service, service, controllers, **settings))
            return stack.enter_context(RPCClient(config, serializer=serializer))

        yield start
