# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Calls that end by their deadline, whatever it is that keeps them waiting."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from tavrida.client import AsyncRPCClient, RPCClient
from tavrida.config import ConnectionConfig
from tavrida.exceptions import CallTimeout, ConnectionFailed, PublishTimeout, TavridaError
from tests.faults.proxy import Proxy
from tests.rabbitmq import Node
from tests.waiting import DEADLINE, eventually


@pytest.fixture
def proxy(rabbitmq: Node) -> Iterator[Proxy]:
    with Proxy(rabbitmq.port) as proxy:
        yield proxy


@pytest.fixture
def config(amqp_url: str, rabbitmq: Node, proxy: Proxy) -> ConnectionConfig:
    """Through the proxy, with limits that are longer than those of the calls."""
    url = amqp_url.replace(f":{rabbitmq.port}/", f":{proxy.port}/")
    return ConnectionConfig(url=(url,), publish_timeout=DEADLINE, max_unconfirmed=1)


def test_the_first_call_of_a_client_ends_in_time_where_nobody_answers(
    config: ConnectionConfig, proxy: Proxy
) -> None:
    """By its own time-out, not by those of connecting."""
    proxy.swallow()
    with RPCClient(config) as client:
        began = time.monotonic()
        with pytest.raises((CallTimeout, ConnectionFailed)):
            client.svc.ok().call(timeout=0.5)
        assert time.monotonic() - began < 1.5
        proxy.heal()


def test_the_first_call_of_an_async_client_ends_in_time_where_nobody_answers(
    config: ConnectionConfig, proxy: Proxy
) -> None:
    """In the same way."""

    async def run() -> float:
        async with AsyncRPCClient(config) as client:
            began = time.monotonic()
            with pytest.raises((CallTimeout, ConnectionFailed)):
                await client.svc.ok().call(timeout=0.5)
            took = time.monotonic() - began
            proxy.heal()
            return took

    proxy.swallow()
    assert asyncio.run(run()) < 1.5


def test_a_call_ends_in_time_while_others_fill_the_window(
    config: ConnectionConfig, proxy: Proxy
) -> None:
    """It waits for room no longer than it has time, though a cast may wait for far longer."""
    with RPCClient(config) as client:
        with pytest.raises(TavridaError):  # nobody serves it; from now on it is connected
            client.svc.ok().call(timeout=DEADLINE)
        link = client._sender._link
        assert link is not None
        proxy.swallow()
        ended = threading.Event()

        def cast() -> None:
            with pytest.raises(TavridaError):
                client.svc.ok().cast()
            ended.set()

        threading.Thread(target=cast).start()
        eventually(lambda: link.publisher.unconfirmed)
        began = time.monotonic()
        with pytest.raises((PublishTimeout, CallTimeout)):
            client.svc.ok().call(timeout=0.5)
        assert time.monotonic() - began < 1.5
        proxy.heal()
        proxy.cut()
        assert ended.wait(DEADLINE)
