# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Doorbells between processes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tavrida.loop import LoopThread
from tavrida.plugins.transports.sqlite.doorbell import SocketBell
from tests.waiting import DEADLINE


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    loop = LoopThread("test")
    yield loop
    loop.stop()


class House:
    """A bell, and whether it was rung."""

    def __init__(self, folder: Path, loop: LoopThread) -> None:
        self.rung = threading.Event()
        self.loop = loop
        self.bell = loop.run(self._hang(folder))

    async def _hang(self, folder: Path) -> SocketBell:
        return SocketBell(folder, self.loop, self.rung.set)

    def close(self) -> None:
        async def close() -> None:
            self.bell.close()

        self.loop.run(close())


def test_a_ring_wakes_the_owner(tmp_path: Path, loop: LoopThread) -> None:
    """And only that one."""
    one, two, three = (House(tmp_path / "wake", loop) for _ in range(3))
    assert one.bell.ring(two.bell.name)
    assert two.rung.wait(DEADLINE)
    assert not three.rung.is_set()
    for house in (one, two, three):
        house.close()
    assert [] == list((tmp_path / "wake").iterdir())


def test_a_bell_without_owner_is_known_and_cleared_away(tmp_path: Path, loop: LoopThread) -> None:
    """The socket is still there when its process was killed, and nobody listens."""
    one, two = House(tmp_path, loop), House(tmp_path, loop)
    assert one.bell.is_alive(two.bell.name)
    two.bell.abandon()  # as the kernel does it
    loop.loop.call_soon_threadsafe(loop.loop.remove_reader, two.bell._bell)
    assert not one.bell.is_alive(two.bell.name)
    assert not one.bell.ring(two.bell.name)
    assert [one.bell.name] == [each.name for each in tmp_path.iterdir()]
    one.close()


def test_looking_whether_somebody_lives_does_not_wake_him(tmp_path: Path, loop: LoopThread) -> None:
    """The sweeps of others cost an idle process nothing."""
    one, two = House(tmp_path, loop), House(tmp_path, loop)
    assert one.bell.is_alive(two.bell.name)
    assert one.bell.ring(one.bell.name)
    assert one.rung.wait(DEADLINE)
    assert not two.rung.is_set()
    one.close()
    two.close()


def test_a_bell_that_was_rung_too_often_still_works(tmp_path: Path, loop: LoopThread) -> None:
    """Its owner is busy: what does not fit any more is no loss, it is awake already."""
    one, two = House(tmp_path, loop), House(tmp_path, loop)
    busy = threading.Event()
    loop.submit(busy.wait, DEADLINE)
    assert all(one.bell.ring(two.bell.name) for _ in range(2000))
    busy.set()
    assert two.rung.wait(DEADLINE)
    one.close()
    two.close()


def test_a_path_may_be_longer_than_an_address_of_a_socket(tmp_path: Path, loop: LoopThread) -> None:
    """The kernel takes 107 bytes."""
    folder = tmp_path / ("d" * 120) / "wake"
    folder.parent.mkdir()
    one, two = House(folder, loop), House(folder, loop)
    assert one.bell.ring(two.bell.name)
    assert two.rung.wait(DEADLINE)
    one.close()
    two.close()
