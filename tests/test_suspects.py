# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Messages that were there when their process died begin one at a time, each time otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest

from tavrida.copies import NEW, History
from tavrida.envelope import Properties
from tavrida.loop import LoopThread
from tavrida.messages import IncomingMessage, IncomingRequest
from tavrida.suspects import MEMORY, Suspects
from tests.waiting import DEADLINE


@dataclass(eq=False)
class Held:
    """What a server holds of a delivery."""

    message: IncomingMessage
    delivery: Any


def held(message_id: str, deliveries: int = 0, *, redelivered: bool = True) -> Held:
    """Return what is held of a message that a quorum queue delivered so often before."""
    delivery = SimpleNamespace(
        properties=Properties(message_id=message_id, headers={"x-delivery-count": deliveries}),
        is_live=True,
        redelivered=redelivered,
    )
    return Held(IncomingRequest(message_id=message_id), delivery)


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    """An event loop in a thread."""
    loop = LoopThread("test-suspects")
    yield loop
    loop.stop()


def order_of(loop: LoopThread, counts: dict[str, int]) -> list[str]:
    """Return the ids of messages in the order in which they begin; each is settled at once."""
    begun: SimpleQueue[str] = SimpleQueue()

    def begin(each: Held) -> None:
        begun.put(each.message.message_id)
        suspects.settled(each)

    suspects: Suspects[Held] = Suspects(loop, begin)

    def add() -> None:
        for message_id, deliveries in counts.items():
            suspects.add(held(message_id), deliveries)

    loop.submit(add)
    return [begun.get(timeout=DEADLINE) for _ in counts]


def test_every_second_order_is_the_one_before_backwards(loop: LoopThread) -> None:
    """Whoever stood behind the culprit stands before it the next time."""
    names = [f"m{n}" for n in range(4)]
    orders = [order_of(loop, dict.fromkeys(names, count)) for count in range(2, 8)]
    assert orders[0] == orders[1][::-1]
    assert orders[2] == orders[3][::-1]
    assert orders[4] == orders[5][::-1]
    assert len({tuple(order) for order in orders}) > 2


def test_those_delivered_less_often_come_first(loop: LoopThread) -> None:
    """They were there at fewer crashes."""
    assert ["c", "a", "b"] == order_of(loop, {"a": 4, "b": 9, "c": 2})


def test_the_next_one_waits_for_the_last_one_to_be_settled(loop: LoopThread) -> None:
    """And those that wait can be given back."""
    begun: SimpleQueue[Held] = SimpleQueue()
    suspects: Suspects[Held] = Suspects(loop, begun.put)
    one, two = held("1"), held("2")
    loop.submit(suspects.add, one, 2)
    loop.submit(suspects.add, two, 3)
    assert one is begun.get(timeout=DEADLINE)
    loop.submit(suspects.settled, two)  # given back, say: it is not the one that runs
    assert begun.empty()
    loop.submit(suspects.settled, one)
    assert two is begun.get(timeout=DEADLINE)
    left: SimpleQueue[list[Held]] = SimpleQueue()
    loop.submit(suspects.add, one, 2)
    loop.submit(lambda: left.put(suspects.release()))
    assert [one] == left.get(timeout=DEADLINE)


@pytest.mark.parametrize("is_early", [False, True])
def test_a_turn_is_kept_for_the_copy_with_the_count(
    loop: LoopThread, monkeypatch: pytest.MonkeyPatch, is_early: bool
) -> None:
    """Of a queue that does not count; nobody else begins before that copy has ended.

    Classic queues deliver a copy before they confirm it, as a rule.
    """
    monkeypatch.setattr("tavrida.suspects.RETURN", DEADLINE)
    begun: SimpleQueue[Held] = SimpleQueue()
    suspects: Suspects[Held] = Suspects(loop, begun.put)
    original, copy, other = held("m"), held("m", redelivered=False), held("other")
    steps: list[Callable[[], None]] = [
        lambda: suspects.settled(original),
        lambda: suspects.add(other, 0),
        lambda: suspects.add(copy, 3),
    ]
    if is_early:
        steps.reverse()
    loop.submit(suspects.add, original, 2)
    assert original is begun.get(timeout=DEADLINE)
    loop.submit(suspects.expect, "m")
    for step in steps:
        loop.submit(step)
    assert copy is begun.get(timeout=DEADLINE)
    assert begun.empty()
    loop.submit(suspects.settled, copy)
    assert other is begun.get(timeout=DEADLINE)


def test_what_has_the_same_identifier_is_not_taken_for_the_copy(
    loop: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strangers may give the same one to all their messages; a copy comes for the first time."""
    monkeypatch.setattr("tavrida.suspects.RETURN", DEADLINE)
    begun: SimpleQueue[Held] = SimpleQueue()
    suspects: Suspects[Held] = Suspects(loop, begun.put)
    copy = held("m", redelivered=False)
    loop.submit(suspects.expect, "m")
    loop.submit(suspects.add, held("m"), 2)
    loop.submit(suspects.add, copy, 3)
    assert copy is begun.get(timeout=DEADLINE)


def test_a_copy_that_another_process_got_holds_nobody_up(
    loop: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The turn is kept for a moment only."""
    monkeypatch.setattr("tavrida.suspects.RETURN", 0.05)
    begun: SimpleQueue[Held] = SimpleQueue()
    suspects: Suspects[Held] = Suspects(loop, begun.put)
    other = held("other")
    loop.submit(suspects.expect, "m")
    loop.submit(suspects.add, other, 2)
    assert other is begun.get(timeout=DEADLINE)


def test_those_whose_connection_is_gone_are_forgotten_at_once(loop: LoopThread) -> None:
    """The broker delivers them again; the line is for those that can still be settled."""
    begun: SimpleQueue[Held] = SimpleQueue()
    suspects: Suspects[Held] = Suspects(loop, begun.put)
    gone, live = held("gone"), held("live")
    gone.delivery.is_live = False
    left: SimpleQueue[list[Held]] = SimpleQueue()

    def lose() -> None:
        suspects.add(gone, 2)
        suspects.add(live, 9)
        left.put(suspects.survive([gone]))

    loop.submit(lose)
    assert [gone] == left.get(timeout=DEADLINE)
    assert live is begun.get(timeout=DEADLINE)


def test_what_a_process_survived_does_not_count(loop: LoopThread) -> None:
    """Each loss of its connection counts for one delivery; those of other processes stay."""
    suspects: Suspects[Held] = Suspects(loop, lambda _: None)
    one, other = held("one", 5), held("other", 5)
    for _ in range(3):
        suspects.survive([one, one])
    assert 2 == suspects.deliveries_in_vain(one.delivery, NEW)
    assert 5 == suspects.deliveries_in_vain(other.delivery, NEW)
    assert 4 == suspects.deliveries_in_vain(one.delivery, History(crashes=7))


def test_what_a_process_survived_is_remembered_within_bounds(loop: LoopThread) -> None:
    """The latest are; messages without an id are not."""
    suspects: Suspects[Held] = Suspects(loop, lambda _: None)
    first, nameless = held("first", 1), held("", 1)
    suspects.survive([first, nameless])
    assert (0, 1) == tuple(suspects.deliveries_in_vain(x.delivery, NEW) for x in (first, nameless))
    suspects.survive(held(str(n)) for n in range(MEMORY))
    assert 1 == suspects.deliveries_in_vain(first.delivery, NEW)
    assert MEMORY == len(suspects._survived)
