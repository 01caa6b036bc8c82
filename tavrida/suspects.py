# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Suspects: messages that were there when their process died, more than once."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from typing import Any, Generic, Protocol, TypeVar

from tavrida.copies import History
from tavrida.loop import LoopThread
from tavrida.messages import IncomingMessage
from tavrida.plugins.transports import Delivery

#: How often a message was delivered in vain before it is a suspect. Once or twice happens to
#: everybody: connections are lost, servers are stopped.
SUSPICION = 2

#: Seconds for other suspects to arrive, and for one's acknowledgement to get away before the next.
GATHERING = 0.1
PAUSE = 0.02

#: Seconds for the copy of a suspect that is counted to come back; another process may get it.
RETURN = 1.0

#: Of how many messages, those of the last losses, it is known that this process survived them.
MEMORY = 10_000


class Suspect(Protocol):
    """What is held here: the handling of a delivery."""

    delivery: Delivery

    @property
    def message(self) -> IncomingMessage:
        """What was delivered."""


Held = TypeVar("Held", bound=Suspect)


class Suspects(Generic[Held]):
    """Lets suspects begin one at a time. All methods are called on the loop.

    One message that kills its process makes the broker deliver again, and count, all that the
    process held. Run side by side they would all reach the delivery limit together, though only
    one is to blame. One at a time, those that come before it end and are acknowledged. Which ones
    these are changes from crash to crash: the order is another one each time, and every second one
    is the one before, backwards; so one culprit keeps the others for two crashes at most.

    A connection that was lost is no crash: what this process held then did not kill it.

    Where the queue does not count, a suspect is counted when it is its turn, and those that only
    wait are not: ``begin`` sends a copy with the count, and the turn is kept for that (``expect``).
    """

    def __init__(self, loop: LoopThread, begin: Callable[[Held], None]) -> None:
        self._loop = loop
        self._begin = begin
        self._waiting: list[tuple[int, Held]] = []
        self._current: Held | None = None
        self._is_pausing = False
        self._expected = ""
        self._counted: tuple[int, Held] | None = None
        # By message id: how often this process lost its connection while it held the message.
        self._survived: dict[str, int] = {}

    def deliveries_in_vain(self, delivery: Delivery, history: History) -> int:
        """Return how often a message was delivered before and not settled, but for such losses."""
        # Quorum queues count themselves.
        told: Any = (delivery.properties.headers or {}).get("x-delivery-count", 0)
        in_vain = max(history.crashes, told if isinstance(told, int) else 0)
        return in_vain - self._survived.get(delivery.properties.message_id or "", 0)

    def add(self, suspect: Held, deliveries: int) -> None:
        """Have it begin when it is its turn; it was delivered so often in vain."""
        place = deliveries, suspect
        self._waiting.append(place)
        is_copy = not suspect.delivery.redelivered
        if self._expected and is_copy and suspect.message.message_id == self._expected:
            # It may come before its confirm, with which the original ends, and waits for that.
            self._counted, self._expected = place, ""
            self._pause(PAUSE)
        else:
            self._pause(GATHERING)

    def expect(self, message_id: str) -> None:
        """Keep the turn for the copy of this message that is on its way."""
        self._expected = message_id
        self._loop.loop.call_later(RETURN, self._stop_expecting, message_id)

    def _stop_expecting(self, message_id: str) -> None:
        if self._expected == message_id:
            self._expected = ""
            self._pause(PAUSE)

    def settled(self, suspect: Held) -> None:
        """Called for every delivery that was settled: the next suspect may follow."""
        if suspect is self._current:
            self._current = None
            self._pause(PAUSE)

    def survive(self, held: Iterable[Held]) -> list[Held]:
        """Take note that the connection was lost, while the process held these, and lives.

        Return those that have not begun and never will, and forget them.
        """
        ids = {each.delivery.properties.message_id or "" for each in held} - {""}
        for message_id in ids:
            # Those of the last loss stand last.
            self._survived[message_id] = self._survived.pop(message_id, 0) + 1
        for message_id in list(self._survived)[:-MEMORY]:
            del self._survived[message_id]
        waiting, self._waiting = self._waiting, []
        self._waiting = [each for each in waiting if each[1].delivery.is_live]
        return [suspect for _, suspect in waiting if not suspect.delivery.is_live]

    def release(self) -> list[Held]:
        """Return those that have not begun, and forget them."""
        waiting, self._waiting = self._waiting, []
        return [suspect for _, suspect in waiting]

    def _pause(self, seconds: float) -> None:
        is_free = self._current is None and not self._expected
        if self._waiting and is_free and not self._is_pausing:
            self._is_pausing = True
            self._loop.loop.call_later(seconds, self._next)

    def _next(self) -> None:
        self._is_pausing = False
        if self._waiting and self._current is None:
            counted, self._counted = self._counted, None
            first = min(self._waiting, key=_turn)
            if counted is not None and counted in self._waiting:
                first = counted
            self._waiting.remove(first)
            self._current = first[1]
            self._begin(first[1])


def _turn(waiting: tuple[int, Suspect]) -> tuple[int, int]:
    """Return the place in the line: those delivered less often come first, the rest is drawn."""
    deliveries, suspect = waiting
    lot = zlib.crc32(f"{deliveries // 2} {suspect.message.message_id}".encode())
    return deliveries, -lot if deliveries % 2 else lot
