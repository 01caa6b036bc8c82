# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Every row of the fault laboratory in its short form, and the page that shows the full one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.rows import ROWS, Bench, NotHereError, Row
from tests.faults.table import COLUMNS
from tests.rabbitmq import Node

PAGE = Path(__file__).parent.parent.parent / "docs" / "reliability.md"


@pytest.fixture(scope="module")
def bench(rabbitmq: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Brokers and folders; a node that one row has restarted serves the next one too."""
    with Bench(tmp_path_factory.mktemp("faults"), rabbitmq) as bench:
        yield bench


@pytest.mark.slow
@pytest.mark.timeout(300)  # a busy machine is slow in starting nodes
@pytest.mark.parametrize(
    ("row", "variant"),
    [
        pytest.param(row, variant, id=f"{row.name}-{variant}")
        for row in ROWS
        for variant in row.short_variants
    ],
)
def test_nothing_is_lost_and_nothing_hangs(bench: Bench, row: Row, variant: str) -> None:
    """What has to hold is in the row; the verdict lists what did not."""
    try:
        verdict = row.play(bench, variant, row.short)
    except NotHereError as reason:
        pytest.skip(str(reason))
    assert [] == verdict.complaints
    assert verdict.faults >= row.short
    assert verdict.confirmed > 0


def _tables() -> list[list[list[str]]]:
    """The cells of the page's tables, without their heads."""
    tables = re.findall(r"(?:^\|.*\n)+", PAGE.read_text(), flags=re.MULTILINE)
    return [
        [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table.splitlines()]
        for table in tables
    ]


def test_the_page_has_every_row_with_what_must_hold() -> None:
    """Name, fault and promise, in the words of the code and in its order."""
    expected = [[f"`{row.name}`", row.fault, row.holds] for row in ROWS]
    assert expected in [table[2:] for table in _tables()]


def test_the_page_has_the_figures_of_every_row() -> None:
    """Of one full run: each row on everything that it runs on, as often as in full, none lost."""
    (figures,) = [table[2:] for table in _tables() if tuple(table[0]) == COLUMNS]
    assert [(row.name, variant) for row in ROWS for variant in row.variants] == [
        (name, variant) for name, variant, *_ in figures
    ]
    counts = {row.name: row.full for row in ROWS}
    lost = COLUMNS.index("lost")
    for line in figures:
        assert int(line[2]) >= counts[line[0]], line
        assert line[lost] == "0", line
