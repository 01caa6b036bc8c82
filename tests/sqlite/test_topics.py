# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Topic patterns."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tavrida.plugins.transports.sqlite.topics import matches


@pytest.mark.parametrize(
    ("pattern", "key"),
    [
        ("a.b", "a.b"),
        ("a.*", "a.b"),
        ("a.*", "a."),
        ("*.b", ".b"),
        ("a.#", "a"),
        ("a.#", "a.b.c"),
        ("#", ""),
        ("#", "a.b"),
        ("#.b", "b"),
        ("#.b.#", "a.b"),
        ("a.#.#.b", "a.b"),
        ("#.#", ""),
        ("*.#.*", "a.b"),
        ("", ""),
        ("*", "a"),
        ("a..b", "a..b"),
        ("a.*.b", "a..b"),
    ],
)
def test_a_pattern_takes_what_amqp_says(pattern: str, key: str) -> None:
    """One word for a star, any number for a hash; words may be empty."""
    assert matches(pattern, key)


@pytest.mark.parametrize(
    ("pattern", "key"),
    [
        ("a.b", "a.c"),
        ("a.b", "a"),
        ("a", "a.b"),
        ("a.*", "a"),
        ("a.*", "a.b.c"),
        ("*", ""),
        ("*", "a.b"),
        ("", "a"),
        ("a*", "ab"),
        ("#.b", "b.a"),
        ("*.#.*", "a"),
        ("a.b", "a+b"),
    ],
)
def test_a_pattern_leaves_what_amqp_says(pattern: str, key: str) -> None:
    """Stars and hashes are words of their own, and nothing else is special."""
    assert not matches(pattern, key)


WORDS = st.lists(st.sampled_from(["a", "b", "*", "#"]), max_size=6).map(".".join)
KEYS = st.lists(st.sampled_from(["a", "b"]), max_size=7).map(".".join)


@given(WORDS, KEYS)
def test_it_agrees_with_a_regular_expression(pattern: str, key: str) -> None:
    """Every word is followed by a dot here, so that a hash is simply a repetition."""
    parts = {"*": r"[^.]*\.", "#": r"([^.]*\.)*"}
    words = pattern.split(".") if pattern else []
    expression = "".join(parts.get(word, re.escape(word) + r"\.") for word in words)
    assert matches(pattern, key) == bool(re.fullmatch(expression, f"{key}." if key else ""))
