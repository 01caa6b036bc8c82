# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Acknowledgements leave together, and never take a delivery along that somebody still has."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tavrida.plugins.transports.amqp.tags import GROUP, LATENESS, Tags

#: What may be done with a delivery; None is nothing.
FATES = st.sampled_from(["ack", "give_back", "reject", None])


class Broker:
    """A wire, a channel and the broker behind them: what it holds as unsettled, and what became."""

    def __init__(self) -> None:
        self.is_open = True
        self.unsettled: list[int] = []
        self.fates: dict[int, str] = {}
        self.frames = 0
        self.now = 0.0
        self._timers: list[tuple[float, Callable[[], None]]] = []
        self._callbacks: list[Callable[[], None]] = []

    # -- the wire and its loop

    @property
    def loop(self) -> Broker:
        return self

    def turn(self, work: Callable[[], None]) -> None:
        work()
        self.end_turn()

    def at_end(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)

    def end_turn(self) -> None:
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def time(self) -> float:
        return self.now

    def call_later(
        self, delay: float, callback: Callable[..., None], *args: Any, context: Any
    ) -> None:
        self._timers.append((self.now + delay, functools.partial(callback, *args)))

    def wait(self, seconds: float) -> None:
        self.now += seconds
        due = [timer for timer in self._timers if timer[0] <= self.now]
        self._timers = [timer for timer in self._timers if timer not in due]
        for _, callback in due:
            callback()

    def acknowledge(self, channel: Any, tag: int, *, multiple: bool) -> None:
        """AMQP 0-9-1, basic.ack: with multiple, all up to the tag that are unsettled."""
        taken = [each for each in self.unsettled if each <= tag] if multiple else [tag]
        self._settle(taken, "ack")

    # -- the channel

    def basic_nack(self, tag: int, *, requeue: bool) -> None:
        assert requeue
        self._settle([tag], "give_back")

    def basic_reject(self, tag: int, *, requeue: bool) -> None:
        assert not requeue
        self._settle([tag], "reject")

    def _settle(self, tags: list[int], fate: str) -> None:
        self.frames += 1
        for tag in tags:
            self.unsettled.remove(tag)  # ValueError: RabbitMQ closes the channel (406)
            self.fates[tag] = fate


def bench() -> tuple[Broker, Any]:
    broker: Any = Broker()
    return broker, Tags(broker, broker)


METHODS = {"ack": "acknowledge", "give_back": "give_back", "reject": "reject"}


@given(st.lists(st.lists(st.tuples(st.booleans(), st.integers(0, 5), FATES))))
def test_each_delivery_gets_its_own_fate(turns: list[list[tuple[bool, int, str | None]]]) -> None:
    """Whatever is settled in whichever order, and deliveries that need no ack between."""
    broker, tags = bench()
    fates: dict[int, str] = {}
    held: list[int] = []
    tag = 0
    for turn in turns:
        for needs_ack, which, fate in turn:
            tag += 1
            if needs_ack:
                broker.unsettled.append(tag)
                tags.take(tag)
                held.append(tag)
            if fate is not None and held:
                chosen = held.pop(which % len(held))
                fates[chosen] = fate
                getattr(tags, METHODS[fate])(chosen)
        broker.end_turn()
        assert fates == broker.fates
        assert sorted(held) == broker.unsettled


def test_what_is_acknowledged_in_order_leaves_as_one_frame() -> None:
    """A hundred of a turn."""
    broker, tags = bench()
    for tag in range(1, 101):
        broker.unsettled.append(tag)
        tags.take(tag)
        tags.acknowledge(tag)
    assert 0 == broker.frames
    broker.end_turn()
    assert 1 == broker.frames
    assert [] == broker.unsettled


def acknowledge(broker: Broker, tags: Any, *numbers: int) -> None:
    """Take deliveries, and acknowledge them at the end of a turn."""
    for tag in numbers:
        broker.unsettled.append(tag)
        tags.take(tag)
        tags.acknowledge(tag)
    broker.end_turn()


def test_one_that_is_alone_leaves_at_once() -> None:
    """Whoever gets a message now and then does not wait."""
    broker, tags = bench()
    tags.prefetch = 100
    for tag in range(1, 4):
        acknowledge(broker, tags, tag)
        assert [] == broker.unsettled
        broker.wait(2 * LATENESS)


def test_those_of_turns_in_a_row_wait_for_each_other() -> None:
    """Until there are enough of them; the first has left."""
    broker, tags = bench()
    tags.prefetch = 100
    for tag in range(1, GROUP + 1):
        acknowledge(broker, tags, tag)
    assert 1 == broker.frames
    acknowledge(broker, tags, GROUP + 1)
    assert (2, []) == (broker.frames, broker.unsettled)


def test_no_acknowledgement_waits_for_long() -> None:
    """What comes meanwhile leaves with it, and the next one waits anew."""
    broker, tags = bench()
    tags.prefetch = 100
    acknowledge(broker, tags, 1)
    acknowledge(broker, tags, 2)
    broker.wait(LATENESS / 2)
    acknowledge(broker, tags, 3)
    assert [2, 3] == broker.unsettled
    broker.wait(LATENESS / 2)
    assert (2, []) == (broker.frames, broker.unsettled)
    acknowledge(broker, tags, 4)
    assert [4] == broker.unsettled
    broker.wait(LATENESS)
    assert (3, []) == (broker.frames, broker.unsettled)


@pytest.mark.parametrize(("prefetch", "held"), [(0, 0), (4, 0), (100, 94)])
def test_nothing_waits_where_the_broker_would_have_to(prefetch: int, held: int) -> None:
    """It hands over no more than the prefetch, of which slow handlers hold most."""
    broker, tags = bench()
    tags.prefetch = prefetch
    for tag in range(1, held + 1):
        broker.unsettled.append(tag)
        tags.take(tag)
    for tag in range(held + 1, held + 4):
        acknowledge(broker, tags, tag)
        assert held == len(broker.unsettled)


def test_nothing_is_sent_over_a_channel_that_is_closed() -> None:
    """The broker delivers it again."""
    broker, tags = bench()
    broker.unsettled.append(1)
    tags.take(1)
    tags.acknowledge(1)
    broker.is_open = False
    broker.end_turn()
    assert (0, False) == (broker.frames, tags.is_open)
