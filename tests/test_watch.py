# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The watch over handlers that run for long."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tavrida import discovery, dispatcher
from tavrida.client import RPCClient
from tavrida.config import ConnectionConfig
from tavrida.server import Server
from tavrida.service import ServiceController
from tavrida.watch import Since, look
from tests.transports.bench import new_name
from tests.waiting import DEADLINE, eventually


@dispatcher.rpc_service("svc")
class Service(ServiceController):
    gate = threading.Event()

    @dispatcher.rpc_method(service="svc", method="gated")
    def gated(self, request: Any, proxy: Any) -> None:
        assert self.gate.wait(DEADLINE)


@pytest.fixture
def server() -> Iterator[Server]:
    """A server on the embedded bus, with two handlers that run until `Service.gate` opens."""
    Service.gate = threading.Event()
    config = ConnectionConfig(url=(f"sqlite://?memory={new_name('test')}",), async_engine=True)
    known = discovery.LocalDiscovery()
    known.register_remote_service("svc", "exchange")
    with Server(config, "queue", "exchange", [Service], consumer_timeout=0.05) as server:
        with RPCClient(config, discovery=known) as client:
            client.svc.gated().cast()
            client.svc.gated().cast()
        eventually(lambda: len(server._processor._open) == 2)
        yield server
        Service.gate.set()


def test_a_handler_is_warned_of_once_when_half_of_the_time_is_over(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Each one counts from when it was first seen, and what has ended is forgotten."""
    first, second = server._processor._open
    warned: list[int] = []
    since: Since = {}
    for now, seen in ((0, {first}), (40, {first, second}), (49, {first, second})):
        since = look(seen, since, now, 100)
    warned.append(len(caplog.records))
    since = look({first, second}, since, 50, 100)
    warned.append(len(caplog.records))
    since = look({first, second}, since, 89, 100)
    warned.append(len(caplog.records))
    since = look({first, second}, since, 90, 100)
    warned.append(len(caplog.records))
    assert [0, 1, 1, 2] == warned
    assert {} == look(set(), since, 95, 100)
    assert "Service.gated" in caplog.records[0].message
    assert "a message of queue queue for 50 s. After 100 s" in caplog.records[0].message


def test_the_embedded_bus_takes_nothing_back_and_there_is_no_warning(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """However long a handler runs there, its message is its own."""
    end = time.monotonic() + 0.2  # four times what RabbitMQ would allow
    eventually(lambda: time.monotonic() > end)
    assert 2 == len(server._processor._open)
    assert [] == caplog.records
