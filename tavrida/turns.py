# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Turns: which of the deliveries that were taken is handled now, and which has to wait."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Generic, Protocol, TypeVar


class Guest(Protocol):
    """What goes through gates."""

    #: The gates on its way, the hall at the end. Two that go through the same gates do so in the
    #: same order, or each might wait for a place that the other holds.
    gates: tuple[Gate[Any], ...]
    #: How many of them it has passed.
    passed: int


Who = TypeVar("Who", bound=Guest)


class Gate(Generic[Who]):
    """Lets in ``limit`` guests at a time; the others wait before it, in the order of coming."""

    __slots__ = ("inside", "limit", "waiting")

    def __init__(self, limit: float = math.inf) -> None:
        self.limit = limit
        self.inside = 0
        self.waiting: deque[Who] = deque()


class Turns(Generic[Who]):
    """Leads each guest through its gates, one after the other, and then begins it.

    Who waits before one gate is inside of those that it has passed, and keeps its place there.
    ``begin`` may turn a guest away by returning False. All methods are called on the loop.
    """

    def __init__(self, concurrency: int, begin: Callable[[Who], bool]) -> None:
        #: The last gate of everybody.
        self.hall: Gate[Who] = Gate(concurrency)
        self._begin = begin
        self._freed: list[Gate[Who]] = []

    def arrive(self, guest: Who) -> None:
        """Begin a guest as soon as all of its gates let it in."""
        self._advance(guest)
        if self._freed:
            self._fill()

    def leave(self, guest: Who) -> None:
        """Have a guest leave all that it is inside of; others take its places."""
        self._free(guest)
        if self._freed:
            self._fill()

    def change(self, gate: Gate[Who], limit: float) -> None:
        """Give a gate another limit. Those inside stay, also where they are more."""
        gate.limit = limit
        self.let_in(gate)

    def let_in(self, gate: Gate[Who]) -> None:
        """Let in as many as there is room for; called when a limit was raised."""
        self._freed.append(gate)
        self._fill()

    def _advance(self, guest: Who) -> None:
        for gate in guest.gates[guest.passed :]:
            if gate.inside >= gate.limit:
                gate.waiting.append(guest)
                return
            gate.inside += 1
            guest.passed += 1
        if not self._begin(guest):
            self._free(guest)

    def _free(self, guest: Who) -> None:
        for gate in guest.gates[: guest.passed]:
            gate.inside -= 1
            if gate.waiting:
                self._freed.append(gate)
        guest.passed = 0

    def _fill(self) -> None:
        # A loop and not a recursion: of those that wait, thousands may be turned away in a row.
        while self._freed:
            gate = self._freed[-1]
            if gate.waiting and gate.inside < gate.limit:
                guest = gate.waiting.popleft()
                gate.inside += 1
                guest.passed += 1
                self._advance(guest)
            else:
                self._freed.pop()

    def shut(self, gate: Gate[Who]) -> None:
        """Let nobody in any more, and call back who came through and has not begun."""
        gate.limit = 0
        back = [guest for guest in self.hall.waiting if gate in guest.gates]
        for guest in back:
            self.hall.waiting.remove(guest)
            place = guest.gates.index(gate)
            for passed in guest.gates[place : guest.passed]:
                passed.inside -= 1
            guest.passed = place
        gate.waiting.extendleft(reversed(back))

    def withdraw(self, guest: Who) -> None:
        """Take out a guest that waits."""
        guest.gates[guest.passed].waiting.remove(guest)
        self.leave(guest)

    def clear(self, gates: Iterable[Gate[Who]]) -> list[Who]:
        """Take out all that wait in the hall and before these gates; return them."""
        found: list[Who] = []
        for gate in (self.hall, *gates):
            found += gate.waiting
            gate.waiting.clear()
        for guest in found:
            self.leave(guest)
        return found
