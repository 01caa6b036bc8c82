# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""What tells whether a row holds is itself to be trusted: the judge finds, the proxy breaks."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from tests.faults.journal import (
    ANSWERED,
    CALLED,
    CONFIRMED,
    FAILED,
    HANDLED,
    NOTIFICATION,
    REFUSED,
    UNEXPECTED,
    Record,
)
from tests.faults.laboratory import judge
from tests.faults.proxy import FRAME_END, Direction, Proxy
from tests.waiting import DEADLINE


def record(word: str, key: str = "a@1", at: float = 1.0, detail: str = "", pid: int = 1) -> Record:
    return Record(word, key, at, pid, detail)


GOOD = [
    record(CONFIRMED),
    record(HANDLED, detail="False"),
    record(REFUSED, "b@1", detail="PublishTimeout"),
    record(CALLED, "c@1", 1.0, "5.0"),
    record(ANSWERED, "c@1", 6.9),
    record(CALLED, "d@1", 1.0, "5.0"),
    record(FAILED, "d@1", 1.1, "CallInterrupted"),
]


def test_a_play_without_loss_is_good_and_counted() -> None:
    verdict = judge(GOOD)
    assert [] == verdict.complaints
    assert (1, 0, 0, 2) == (verdict.confirmed, verdict.lost, verdict.again, verdict.calls)
    assert {"PublishTimeout": 1} == verdict.refused
    assert {"CallInterrupted": 1} == verdict.failed


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ([record(CONFIRMED, "z@1")], "lost: 1 of 2 confirmed messages, such as z@1"),
        ([record(CALLED, "z@1", 1.0, "5.0")], "a call never ended: z@1"),
        (
            [record(CALLED, "z@1", 1.0, "5.0"), record(ANSWERED, "z@1", 7.2)],
            "a call ended 1.2 s after its deadline, by answered",
        ),
        ([record(UNEXPECTED, "z@1", detail="KeyError()")], "pid 1: KeyError()"),
    ],
)
def test_whatever_must_not_happen_is_a_complaint(more: list[Record], complaint: str) -> None:
    """A message that is gone, a call that hangs or is late, an error that is none of ours."""
    assert complaint in judge([*GOOD, *more]).complaints[0]


def test_a_repetition_is_counted_and_a_complaint_only_where_nothing_may_repeat() -> None:
    again = [*GOOD, record(HANDLED, detail="True")]
    assert (1, 1, []) == (
        (verdict := judge(again)).again,
        verdict.redelivered,
        verdict.complaints,
    )
    assert "1 messages were handled again" in judge(again, may_repeat=False).complaints[0]


def test_nobody_waits_for_the_calls_of_a_killed_process() -> None:
    hanging = [*GOOD, record(CALLED, "z@1", 1.0, "5.0", pid=7)]
    assert [] == judge(hanging, killed={7}).complaints


def test_what_went_with_a_deleted_queue_is_excused_and_no_more() -> None:
    """All that was sent before it was deleted, and notifications until it was repaired."""
    lost = [
        record(CONFIRMED, "x@2"),
        record(CONFIRMED, "y@3", detail=NOTIFICATION),
    ]
    assert [] == judge([*GOOD, *lost], deleted_at=2.0, repaired_at=3.0).complaints
    assert judge([*GOOD, *lost], deleted_at=1.9, repaired_at=3.0).lost == 1
    assert judge([*GOOD, *lost], deleted_at=2.0, repaired_at=2.9).lost == 1


# -- the proxy, in front of a listener that the test holds

FRAME = bytes([1, 2, 3, 4, 5, 6, 7, FRAME_END])


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(DEADLINE)
        yield listener


@pytest.fixture
def proxy(listener: socket.socket) -> Iterator[Proxy]:
    with Proxy(listener.getsockname()[1]) as proxy:
        yield proxy


Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair(listener: socket.socket, proxy: Proxy) -> Iterator[Pair]:
    """A client and its broker, connected through the proxy."""
    with connected(listener, proxy) as (client, broker):
        yield client, broker


class connected:  # noqa: N801 - used as a function
    """Connect a client to a broker through the proxy, and close both in the end."""

    def __init__(self, listener: socket.socket, proxy: Proxy) -> None:
        self._client = socket.create_connection(("127.0.0.1", proxy.port), timeout=DEADLINE)
        self._broker, _ = listener.accept()
        self._broker.settimeout(DEADLINE)
        self._client.sendall(b"!")  # what comes through is connected on both sides
        exactly(self._broker, 1)

    def __enter__(self) -> Pair:
        return self._client, self._broker

    def __exit__(self, *exc_info: object) -> None:
        self._client.close()
        self._broker.close()


def exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (piece := sock.recv(size - len(data))):
        data += piece
    return data


def is_over(sock: socket.socket) -> bool:
    """Whether nothing more comes."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_proxy_passes_everything_on_and_both_ends(pair: Pair) -> None:
    client, broker = pair
    client.sendall(FRAME * 5000)
    assert FRAME * 5000 == exactly(broker, 40_000)
    broker.sendall(b"back")
    assert b"back" == exactly(client, 4)
    client.shutdown(socket.SHUT_WR)
    assert is_over(broker)
    broker.sendall(b"late")
    assert b"late" == exactly(client, 4)


def test_a_cut_resets_both_sides(proxy: Proxy, pair: Pair) -> None:
    client, broker = pair
    client.sendall(FRAME)
    exactly(broker, len(FRAME))
    proxy.cut()
    assert is_over(client) and is_over(broker)


def test_a_cut_in_frames_leaves_part_of_a_frame(proxy: Proxy, pair: Pair) -> None:
    """What arrives ends within a frame."""
    client, broker = pair
    for link in proxy._links:
        link.is_to_be_cut = True
    client.sendall(FRAME)
    arrived = exactly(broker, len(FRAME))
    assert 0 < len(arrived) < len(FRAME)
    assert FRAME.startswith(arrived)
    assert is_over(client)


def test_a_connection_without_traffic_is_cut_too(proxy: Proxy, pair: Pair) -> None:
    client, broker = pair
    proxy.cut_in_frames()
    assert is_over(client) and is_over(broker)


@pytest.mark.parametrize("direction", Direction)
def test_one_half_is_closed_and_the_other_goes_on(
    proxy: Proxy, pair: Pair, direction: Direction
) -> None:
    client, broker = pair
    closed, other = (broker, client) if direction is Direction.TO_BROKER else (client, broker)
    proxy.close_half(direction)
    assert is_over(closed)
    closed.sendall(b"still")
    assert b"still" == exactly(other, 5)


def test_a_network_that_swallows_closes_nothing_and_stays_dead(
    proxy: Proxy, pair: Pair, listener: socket.socket
) -> None:
    """Until it is healed, for new connections only."""
    client, broker = pair
    client.sendall(FRAME)
    exactly(broker, len(FRAME))
    proxy.swallow()
    client.sendall(FRAME)
    broker.settimeout(0.2)
    with pytest.raises(TimeoutError):
        broker.recv(1)
    proxy.heal()
    with connected(listener, proxy) as (other, new):
        other.sendall(b"new")
        assert b"new" == exactly(new, 3)
    client.sendall(FRAME)
    with pytest.raises(TimeoutError):
        broker.recv(1)


def test_a_network_that_is_down_resets_who_connects(proxy: Proxy, listener: socket.socket) -> None:
    proxy.go_down()
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=DEADLINE) as client:
        assert is_over(client)
    proxy.heal()
    with connected(listener, proxy) as (client, broker):
        client.sendall(b"up")
        assert b"up" == exactly(broker, 2)


def test_a_slow_network_takes_its_time(proxy: Proxy, pair: Pair) -> None:
    """16 kB at 100 kB/s take over a tenth of a second."""
    client, broker = pair
    proxy.slow_down(rate=100_000)
    began = time.monotonic()
    client.sendall(b"x" * 16_000)
    exactly(broker, 16_000)
    assert time.monotonic() - began > 0.12
