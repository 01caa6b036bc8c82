# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The board: what one process tells, all others see, whole or not at all."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest

from tavrida import board
from tavrida.board import Board
from tests.waiting import eventually


def told(of: Board, number: int) -> dict[str, Any] | None:
    found = of.read(number)
    return None if found is None else found[1]


def test_what_is_told_is_seen_in_its_place() -> None:
    """The last thing of each worker, and how old it is."""
    three = Board(3)
    assert [None] * 3 == [told(three, number) for number in (1, 2, 3)]
    for n in range(5):
        three.tell(2, {"n": n, "name": "Ä\ud800"})
    assert [None, {"n": 4, "name": "Ä?"}, None] == [told(three, number) for number in (1, 2, 3)]
    found = three.read(2)
    assert found is not None
    assert 0 <= found[0] < 5
    three.clear(2)
    assert told(three, 2) is None


def test_what_does_not_fit_is_refused_and_changes_nothing() -> None:
    """Not even the place of the neighbour."""
    two = Board(2)
    two.tell(1, {"n": 1})
    two.tell(2, {"n": 2})
    with pytest.raises(ValueError, match="do not fit"):
        two.tell(1, {"n": "x" * board.ROOM})
    two.tell(1, {"n": "x" * (board.ROOM - 10)})
    assert {"n": 2} == told(two, 2)
    found = told(two, 1)
    assert found is not None
    assert board.ROOM - 10 == len(found["n"])


@pytest.mark.parametrize("at", [0, 5, 20, 30])
def test_what_was_being_written_when_its_writer_was_killed_is_as_if_never_told(at: int) -> None:
    """The thing before it is there, and the next one takes the broken half."""
    one = Board(1)
    one.tell(1, {"n": 1})
    one.tell(1, {"n": 2})
    begin = one._memory.find(b'{"n": 2}') - board._HEADER.size
    one._memory[begin + at] ^= 0xFF if at < 24 else 0
    assert ({"n": 1} if at < 24 else {"n": 2}) == told(one, 1)
    one.tell(1, {"n": 3})
    assert {"n": 3} == told(one, 1)


def test_other_processes_see_only_whole_things() -> None:
    """However fast they come, and when their writer is killed."""
    one = Board(1)
    pid = os.fork()
    if pid == 0:
        n = 0
        while True:
            n += 1
            one.tell(1, {"n": n, "again": [n] * 1000})
    try:
        seen = set()
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            found = told(one, 1)
            if found is not None:
                assert [found["n"]] * 1000 == found["again"]
                seen.add(found["n"])
        eventually(lambda: told(one, 1))
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    last = told(one, 1)
    assert last is not None
    assert [last["n"]] * 1000 == last["again"]
    assert len(seen) > 1
