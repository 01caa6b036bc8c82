# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Tables fit the terminal, and stay readable."""

from __future__ import annotations

import string

from hypothesis import given
from hypothesis import strategies as st

from tavrida.cli import tables


def test_a_line_ends_behind_punctuation() -> None:
    """Not in the middle of a word."""
    name = "tavrida.plugins.transports.sqlite:SQLiteTransport"
    assert [
        "tavrida.plugins.",
        "transports.",
        "sqlite:SQLite",
        "Transport",
    ] == tables.fold(name, 16).splitlines()


def test_a_word_that_is_too_long_is_cut() -> None:
    """Nothing is left out."""
    assert ["abcdefgh", "ij kl"] == tables.fold("abcdefghij kl", 8).splitlines()


def test_lines_stay_lines() -> None:
    """Empty ones too."""
    assert "a\n\nb" == tables.fold("a\n\nb", 8)


@given(st.text(string.ascii_letters + " ./:-_\n"), st.integers(1, 20))
def test_folding_loses_nothing_but_space(text: str, width: int) -> None:
    """Whatever the text, no line is longer than asked for."""
    folded = tables.fold(text, width)
    assert all(len(line) <= width for line in folded.splitlines())
    assert "".join(text.split()) == "".join(folded.split())


def test_the_widest_column_gives_first() -> None:
    """Short ones keep what they need."""
    columns = [["Id", "1"], ["Reason", "one two three four five six seven"], ["Kind", "request"]]
    assert [2, 21, 7] == tables.widths_for(columns, 30)


def test_words_are_cut_where_nothing_else_helps() -> None:
    """Down to a few characters a column."""
    columns = [["A", "a" * 30], ["B", "b" * 40]]
    assert [11, 10] == tables.widths_for(columns, 21)
    assert [8, 8] == tables.widths_for(columns, 3)


def test_names_are_cut_at_underscores_before_sentences_get_too_narrow() -> None:
    """Only where they have to be; headings stay whole."""
    columns = [
        ["Queue", "test_hello_world"],
        ["Entry point", "test_hello_world"],
        ["Reason", "it is not as long as it should be"],
    ]
    assert [16, 16, 8] == tables.widths_for(columns, 40)
    assert [10, 11, 9] == tables.widths_for(columns, 30)


def test_a_cell_is_cut_where_a_table_would_be_as_wide_as_a_payload() -> None:
    """Each of its lines would be; the other formats have it all."""
    long = "x" * 3_000_000
    for width in (0, 80):
        names, [[field, value, number]] = tables.fitted(
            ("A\x1b", "B", "C"), [[long, [long], 7]], width
        )
        assert [r"A\x1b", "B", "C"] == names
        assert max(len(field), len(value)) < 3 * tables.MAX_CELL
        assert "... 2992000 more characters: -f json" in " ".join(field.split())
        assert "more characters" in " ".join(value.split())
        assert 7 == number
