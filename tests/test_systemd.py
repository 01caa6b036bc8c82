# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""What systemd is told, over a real socket of its kind."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tavrida.cli.systemd import ServiceManager
from tests.waiting import DEADLINE


@pytest.fixture(params=["file", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A value of NOTIFY_SOCKET."""
    return f"{tmp_path}/notify" if request.param == "file" else f"@tavrida-test-{os.getpid()}"


@pytest.fixture
def listener(address: str) -> Iterator[socket.socket]:
    """What systemd has at the other end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.settimeout(DEADLINE)
        listener.bind(address.replace("@", "\0") if address.startswith("@") else address)
        yield listener


def test_each_state_is_one_datagram(
    address: str, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As sd_notify(3) has them; the children of the process do not inherit the address."""
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    manager = ServiceManager.of_environment()
    assert "NOTIFY_SOCKET" not in os.environ
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    manager.ready("Serving.")
    manager.reloading()
    manager.stopping()
    assert b"READY=1\nSTATUS=Serving." == listener.recv(1000)
    word, moment = listener.recv(1000).decode().splitlines()
    assert "RELOADING=1" == word
    assert before <= int(moment.removeprefix("MONOTONIC_USEC="))
    assert b"STOPPING=1\nSTATUS=Stopping." == listener.recv(1000)


def test_without_an_address_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a terminal or in a container."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    ServiceManager.of_environment().ready("Serving.")


@pytest.mark.parametrize("address", ["/nowhere/notify", "@", "nonsense", "vsock:2:1", "/" * 200])
def test_an_address_that_is_wrong_is_one_warning(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is no reason not to serve."""
    with caplog.at_level(logging.WARNING):
        ServiceManager(address).ready("Serving.")
    (record,) = caplog.records
    assert f"NOTIFY_SOCKET {ServiceManager(address)._address!r}" in record.getMessage()
    assert "READY=1" in record.getMessage()
