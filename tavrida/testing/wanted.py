# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""What a test waits for among the records, and the words for its absence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from tavrida import exceptions, messages
from tavrida.testing.recording import Handled, Sent

Record = TypeVar("Record", Handled, Sent)


@dataclass(frozen=True, slots=True)
class Wanted(Generic[Record]):
    """The nth record of an entry point, of a kind, and with these items in its payload.

    Raises:
        ConfigError: there is no such kind, or no such number.
    """

    records: Sequence[Record]
    entry_point: str
    kind: str | None
    payload: Mapping[str, Any] | None
    nth: int

    def __post_init__(self) -> None:
        if self.kind is not None and self.kind not in messages.KINDS:
            raise exceptions.ConfigError(
                f"kind={self.kind!r} should be one of {', '.join(messages.KINDS)}"
                f"{exceptions.did_you_mean(str(self.kind), messages.KINDS)}"
            )
        if self.nth < 1:
            raise exceptions.ConfigError(
                f"nth={self.nth!r} should be 1 or more: the first is number 1"
            )

    def find(self) -> Record | None:
        """Return the record, or None as long as there are not so many."""
        fitting = self._fitting()
        return fitting[self.nth - 1] if len(fitting) >= self.nth else None

    def _alike(self) -> list[Record]:
        return [
            each
            for each in self.records
            if each.entry_point == self.entry_point and self.kind in (None, each.kind)
        ]

    def _fitting(self) -> list[Record]:
        wanted = (self.payload or {}).items()
        return [
            each
            for each in self._alike()
            if all(key in each.payload and each.payload[key] == value for key, value in wanted)
        ]

    def lack(self, verb: str, timeout: float) -> str:
        """Return why there is no such record: "no request a.b was handled within 5 s"."""
        what = f"{self.kind or 'message'} {self.entry_point}"
        within = f"within {timeout} s"
        payload = f" with payload {dict(self.payload)!r}" if self.payload else ""
        number = len(self._fitting())
        if number:
            return f"{what}{payload} was {verb} {_times(number)}, not {_times(self.nth)}, {within}"
        if self._alike():
            return f"{what} was {verb} {_times(len(self._alike()))}, never{payload}, {within}"
        return f"no {what}{payload} was {verb} {within}"


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"
