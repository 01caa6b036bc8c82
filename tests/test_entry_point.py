# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""EntryPoint: the name "service.method"."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tavrida.entry_point import MAX_LENGTH, EntryPoint
from tavrida.exceptions import WrongEntryPoint
from tests.properties import patient

NAMES = st.text("abcXYZ019_-", min_size=1, max_size=100)


@patient
@given(NAMES, NAMES)
def test_text_of_an_entry_point_parses_to_the_same_one(service: str, method: str) -> None:
    """Writing and reading are each other's reverse."""
    point = EntryPoint(service, method)
    assert f"{service}.{method}" == str(point)
    assert point == EntryPoint.parse(str(point))
    assert point == EntryPoint.parse_source(str(point))


@patient
@given(st.text())
def test_any_text_either_parses_to_itself_or_is_refused(text: str) -> None:
    """No text makes an entry point of another name, and no other error comes out."""
    try:
        point = EntryPoint.parse_source(text)
    except WrongEntryPoint:
        return
    assert text == str(point)


def test_service_alone_is_a_source_but_no_address() -> None:
    """Programs that serve nothing have a name only; requests need a method."""
    assert EntryPoint("cron") == EntryPoint.parse_source("cron")
    with pytest.raises(WrongEntryPoint, match=r"'cron' names no method.*'service\.method'"):
        EntryPoint.parse("cron")


def test_entry_points_parse_to_themselves() -> None:
    """Callers may pass either form."""
    point = EntryPoint("test_hello", "hello")
    assert point is EntryPoint.parse(point)
    assert point is EntryPoint.parse_source(point)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        ".a",
        "a.",
        "a..b",
        "a.b.c",
        "a.*",
        "#.a",
        "a b.c",
        " a.b",
        "a.b ",
        "a.b\n",
        "a\x00.b",
        "größe.b",
        "a.\u0661",
        "a.\udcff",
        None,
        5,
        b"a.b",
        ["a", "b"],
        {"a": "b"},
    ],
)
def test_anything_else_is_refused_with_the_value_in_the_message(text: Any) -> None:
    """A wrong name of any type is one clear error; nothing but WrongEntryPoint comes out."""
    with pytest.raises(WrongEntryPoint) as caught:
        EntryPoint.parse(text)
    assert "service.method" in str(caught.value) or "test_hello.hello" in str(caught.value)


@pytest.mark.parametrize("method", [None, 0, 5, b"b", []])
def test_method_that_is_no_string_is_refused(method: Any) -> None:
    """Only "" stands for no method."""
    with pytest.raises(WrongEntryPoint):
        EntryPoint("a", method)


def test_longest_name_fits_a_routing_key() -> None:
    """AMQP's short strings hold 255 bytes, the dot among them."""
    assert MAX_LENGTH == len(str(EntryPoint("a" * 127, "b" * 127)))
    with pytest.raises(WrongEntryPoint, match="longer than 255") as caught:
        EntryPoint("a" * 128, "b" * 127)
    assert len(str(caught.value)) < 200


def test_entry_points_sort_and_hash_as_their_names() -> None:
    """They are keys of look-ups and are listed in order."""
    points = [EntryPoint("b", "a"), EntryPoint("a", "b"), EntryPoint("a"), EntryPoint("a", "b")]
    assert ["a", "a.b", "a.b", "b.a"] == [str(point) for point in sorted(points)]
    assert 3 == len(set(points))


def test_entry_points_cannot_be_changed() -> None:
    """They are shared by everything that looks them up."""
    with pytest.raises(AttributeError):
        cast("Any", EntryPoint("a", "b")).service = "c"


def test_wrong_name_is_a_value_error_too() -> None:
    """Programs that know nothing of tavrida's errors can catch it."""
    with pytest.raises(ValueError, match="is no name"):
        EntryPoint("")
