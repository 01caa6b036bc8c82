# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The table of docs/reliability.md: its rows, as Markdown."""

from __future__ import annotations

from collections import Counter

from tests.faults.laboratory import Verdict
from tests.faults.rows import Row

COLUMNS = (
    "row",
    "on",
    "faults",
    "confirmed",
    "refused",
    "calls",
    "failed calls",
    "lost",
    "dead letters",
    "handled again",
    "recovery p50 / max",
)

HEADER = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"


def line_of(row: Row, variant: str, verdict: Verdict) -> str:
    """A line of the table, with the figures of one play."""
    recovery = verdict.recovery()
    cells = (
        row.name,
        variant,
        verdict.faults,
        verdict.confirmed,
        _total(verdict.refused),
        verdict.calls,
        _total(verdict.failed),
        verdict.lost,
        verdict.dead,
        verdict.again,
        f"{recovery[0]:.2f} / {recovery[1]:.2f} s" if recovery else "-",
    )
    return f"| {' | '.join(map(str, cells))} |"


def _total(counted: Counter[str]) -> str:
    if not counted:
        return "0"
    names = ", ".join(f"{count} {name}" for name, count in counted.most_common())
    return f"{counted.total()} ({names})"
