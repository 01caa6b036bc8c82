# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Turns: who begins, and who waits before which gate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tavrida.turns import Gate, Turns


@dataclass(eq=False)
class Guest:
    name: str
    gates: tuple[Gate[Any], ...] = ()
    passed: int = 0
    is_welcome: bool = True


@dataclass
class House:
    """Turns that note who began."""

    concurrency: int = 1
    running: list[Guest] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.turns: Turns[Guest] = Turns(self.concurrency, self._begin)
        self.began: list[str] = []

    def _begin(self, guest: Guest) -> bool:
        if guest.is_welcome:
            self.began.append(guest.name)
            self.running.append(guest)
        return guest.is_welcome

    def arrive(self, name: str, *gates: Gate[Any], is_welcome: bool = True) -> Guest:
        guest = Guest(name, (*gates, self.turns.hall), is_welcome=is_welcome)
        self.turns.arrive(guest)
        return guest

    def leave(self, name: str) -> None:
        (guest,) = (each for each in self.running if each.name == name)
        self.running.remove(guest)
        self.turns.leave(guest)


def test_as_many_begin_as_may_run_and_the_next_when_one_ends() -> None:
    """In the order of their coming."""
    house = House(2)
    for name in "abcd":
        house.arrive(name)
    assert ["a", "b"] == house.began
    house.leave("b")
    assert ["a", "b", "c"] == house.began
    house.leave("a")
    house.leave("c")
    assert ["a", "b", "c", "d"] == house.began


def test_who_waits_before_a_full_gate_lets_others_pass() -> None:
    """And goes on when that gate has room, in the order of coming."""
    house, narrow = House(3), Gate[Any](1)
    for name in ("n1", "n2", "n3"):
        house.arrive(name, narrow)
    house.arrive("other")
    assert ["n1", "other"] == house.began
    house.leave("n1")
    house.leave("n2")
    assert ["n1", "other", "n2", "n3"] == house.began


def test_thousands_that_are_turned_away_in_a_row_do_no_harm() -> None:
    """As expired requests are, when a handler ends after a long time."""
    house, gate = House(1), Gate[Any](1)
    house.arrive("first", gate)
    for number in range(5000):
        house.arrive(f"expired {number}", gate, is_welcome=False)
    house.arrive("last", gate)
    house.leave("first")
    assert ["first", "last"] == house.began


def test_a_gate_that_is_shut_calls_back_who_has_not_begun() -> None:
    """Before those that came later; when it opens, they go on in their order."""
    house, gate = House(1), Gate[Any]()
    house.arrive("running", gate)
    house.arrive("a", gate)
    house.arrive("free")
    house.arrive("b", gate)
    house.turns.shut(gate)
    house.arrive("c", gate)
    house.leave("running")
    assert ["running", "free"] == house.began
    gate.limit = 1
    house.turns.let_in(gate)
    for name in ("free", "a", "b"):
        house.leave(name)
    assert ["running", "free", "a", "b", "c"] == house.began


def test_who_is_withdrawn_leaves_its_places() -> None:
    """Others take them."""
    house, gate = House(1), Gate[Any](1)
    house.arrive("first")
    waits = house.arrive("waits", gate)
    house.arrive("behind", gate)
    house.turns.withdraw(waits)
    house.leave("first")
    assert ["first", "behind"] == house.began


def test_all_that_wait_can_be_taken_out() -> None:
    """In the hall and before other gates; nobody begins any more."""
    house, gate = House(1), Gate[Any](1)
    house.arrive("running", gate)
    waiting = [house.arrive("a"), house.arrive("b", gate)]
    assert waiting == house.turns.clear([gate])
    house.leave("running")
    assert ["running"] == house.began


@given(st.data())
def test_limits_hold_and_nobody_is_forgotten(data: st.DataObject) -> None:
    """Whatever comes and goes, in whichever order."""
    house = House(data.draw(st.integers(1, 4)))
    gates = [Gate[Any](data.draw(st.integers(1, 3))) for _ in range(3)]
    limits = {id(gate): gate.limit for gate in gates}
    welcome = set()
    for number in range(data.draw(st.integers(1, 40))):
        step = data.draw(st.integers(0, 9))
        if step < 5:
            chosen = data.draw(st.sets(st.sampled_from(range(3)), max_size=2))
            through = [gates[index] for index in sorted(chosen)]
            is_welcome = data.draw(st.booleans())
            house.arrive(str(number), *through, is_welcome=is_welcome)
            welcome |= {str(number)} if is_welcome else set()
        elif step < 8 and house.running:
            house.leave(data.draw(st.sampled_from(house.running)).name)
        elif step == 8:
            house.turns.shut(data.draw(st.sampled_from(gates)))
        else:
            gate = data.draw(st.sampled_from(gates))
            gate.limit = limits[id(gate)]
            house.turns.let_in(gate)
        assert len(house.running) <= house.concurrency
        for gate in gates:
            through_it = sum(gate in guest.gates for guest in house.running)
            assert through_it <= limits[id(gate)]
    for gate in gates:
        gate.limit = limits[id(gate)]
        house.turns.let_in(gate)
    while house.running:
        house.leave(house.running[0].name)
    assert welcome == set(house.began)
    assert 0 == house.turns.hall.inside == sum(gate.inside for gate in gates)
