# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""What the fast wire hands to the socket, where that does not take all of it at once."""

from __future__ import annotations

import random
import socket
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import Mock

import pytest
from pika.adapters.utils.io_services_utils import _AsyncPlaintextTransport

from tavrida.plugins.transports.amqp.wire import FastWire


class Bench:
    """A wire that is connected to a socket of the test's own."""

    def __init__(self) -> None:
        ours, self.theirs = socket.socketpair()
        ours.setblocking(False)
        self.theirs.setblocking(False)
        self._at_end: list[Callable[[], object]] = []
        self.transport: Any = _AsyncPlaintextTransport(ours, Mock(), Mock())
        self.wire: Any = FastWire.__new__(FastWire)
        self.wire.loop = Mock(at_end=self._at_end.append)
        self.wire._written, self.wire._size, self.wire._muted = [], 0, -1
        self.wire._transport = self.transport

    def end_turn(self) -> None:
        """Have the wire write."""
        while self._at_end:
            self._at_end.pop(0)()

    def read(self) -> bytes:
        """Take what has come."""
        found = b""
        try:
            while data := self.theirs.recv(1 << 20):
                found += data
        except BlockingIOError:
            pass
        return found


@pytest.fixture
def bench() -> Iterator[Bench]:
    """A wire and its other end."""
    bench = Bench()
    yield bench
    bench.transport._sock.close()
    bench.theirs.close()


def test_bytes_keep_their_order_however_little_the_socket_takes(bench: Bench) -> None:
    """New ones come behind those that are left, and are not sent past them."""
    sent, received = b"", b""
    for _ in range(100):
        for _ in range(random.randrange(1, 5)):
            data = random.randbytes(random.randrange(1, 200_000))
            bench.wire._adapter_emit_data(data)
            sent += data
        bench.end_turn()
        if random.random() < 0.7:
            received += bench.read()
        if bench.transport._tx_buffers and random.random() < 0.5:
            bench.transport._on_socket_writable()
    while bench.transport._tx_buffers:
        received += bench.read()
        bench.transport._on_socket_writable()
    assert sent == received + bench.read()


def test_what_is_left_is_not_copied_each_time(bench: Bench) -> None:
    """A slow reader of large messages would keep the loop busy with that."""
    bench.wire._adapter_emit_data(bytes(16_000_000))
    bench.end_turn()
    bench.read()
    tracemalloc.start()
    try:
        bench.transport._on_socket_writable()
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
    assert 0 < len(bench.transport._tx_buffers[0]) < 16_000_000


def test_a_turn_that_sends_much_does_not_put_it_all_together(bench: Bench) -> None:
    """What waited for a connection may be as much as max_unconfirmed large messages."""
    for _ in range(50):
        bench.wire._adapter_emit_data(bytes(500_000))
    bench.end_turn()
    assert max(len(piece) for piece in bench.transport._tx_buffers) < 2_000_000


def test_nothing_follows_half_a_frame_of_a_connection_that_is_given_up(bench: Bench) -> None:
    """It would be taken for the rest of that frame."""
    bench.wire._adapter_emit_data(b"a" * 16_000_000)
    bench.end_turn()
    bench.transport.abort()
    bench.read()
    bench.wire._adapter_emit_data(b"b")
    bench.end_turn()
    assert b"" == bench.read()
