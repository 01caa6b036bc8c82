# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""From signature and payload to the arguments of a handler."""

from __future__ import annotations

import datetime as dt
import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Annotated, Any, ClassVar, Literal, Optional
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tavrida.arguments import arguments_of
from tavrida.exceptions import InvalidHandler, InvalidPayload
from tests.properties import patient

PLACE = "shop.Shop.sell (shop.py:7)"

#: A type that no end of resolving makes whole.
Endless = list["Endless"]


@dataclass
class Item:
    sku: int
    name: str = "nail"
    tags: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.sku < 0:
            raise ValueError("sku below zero")


class Point(msgspec.Struct):
    x: float
    y: float = 0


class Tree(msgspec.Struct):
    children: list[Tree] = []


def arguments(handler: Callable[..., Any], payload: dict[str, Any]) -> dict[str, Any]:
    """What the handler would be called with."""
    return arguments_of(handler, PLACE)(payload)


def untyped(request, proxy, param, other=5): ...  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201


def typed(
    request: Any,
    proxy: Any,
    count: int,
    when: dt.datetime,
    items: list[Item],
    point: Point,
    price: Annotated[int, msgspec.Meta(ge=0)],
    key: UUID,
    colour: Literal["red", "blue"],
    note: Optional[str] = None,  # noqa: UP045 - the older spelling works too
    blob: bytes | None = None,
) -> None: ...


GOOD: dict[str, Any] = {
    "count": 3,
    "when": "2030-01-02T03:04:05Z",
    "items": [{"sku": 1}, {"sku": 2, "name": "screw", "tags": ["new"]}],
    "point": {"x": 1},
    "price": 0,
    "key": "00000000-0000-0000-0000-000000000001",
    "colour": "red",
}


def test_parameters_without_annotation_take_anything() -> None:
    """The tutorial's handlers go on working."""
    for value in (None, 1, "x", [1], {"a": {}}, object()):
        assert {"param": value} == arguments(untyped, {"param": value})


def test_annotated_parameters_are_converted() -> None:
    """Handlers get what they ask for, nested or not."""
    assert {
        "count": 3,
        "when": dt.datetime(2030, 1, 2, 3, 4, 5, tzinfo=dt.UTC),
        "items": [Item(1), Item(2, "screw", ["new"])],
        "point": Point(1),
        "price": 0,
        "key": UUID(int=1),
        "colour": "red",
    } == arguments(typed, GOOD)


def test_values_that_msgpack_brings_ready_made_are_kept() -> None:
    """A datetime and bytes arrive as themselves there."""
    when = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
    found = arguments(typed, {**GOOD, "when": when, "blob": b"\x00", "key": UUID(int=5)})
    assert (when, b"\x00", UUID(int=5)) == (found["when"], found["blob"], found["key"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"count": "3"}, "Expected `int`, got `str` - at `$.count`"),
        ({"count": True}, "Expected `int`, got `bool` - at `$.count`"),
        ({"count": 3.5}, "Expected `int`, got `float` - at `$.count`"),
        ({"count": None}, "Expected `int`, got `null` - at `$.count`"),
        ({"when": "soon"}, "Invalid RFC3339 encoded datetime - at `$.when`"),
        ({"items": {}}, "Expected `array`, got `object` - at `$.items`"),
        ({"items": [{"sku": 1}, {}]}, "missing required field `sku` - at `$.items[1]`"),
        ({"items": [{"sku": 1, "tags": [1]}]}, "got `int` - at `$.items[0].tags[0]`"),
        ({"items": [{"sku": -1}]}, "sku below zero - at `$.items[0]`"),
        ({"point": {"x": "1"}}, "Expected `float`, got `str` - at `$.point.x`"),
        ({"price": -1}, "Expected `int` >= 0 - at `$.price`"),
        ({"key": "x"}, "Invalid UUID - at `$.key`"),
        ({"colour": "green"}, "Invalid enum value 'green' - at `$.colour`"),
        ({"note": 5}, "Expected `str | null`, got `int` - at `$.note`"),
    ],
)
def test_payload_that_does_not_fit_names_path_and_reason(
    change: dict[str, Any], reason: str
) -> None:
    """The caller reads where and why; nothing else comes out."""
    with pytest.raises(InvalidPayload, match=re.escape(reason)):
        arguments(typed, {**GOOD, **change})


def test_missing_value_is_named() -> None:
    """A parameter without a default has to be there, also one without annotation."""
    with pytest.raises(InvalidPayload, match="missing required field `param`"):
        arguments(untyped, {"other": 1})


def test_null_is_a_value_and_not_an_absence() -> None:
    """It does not stand for the default."""
    assert {"param": None, "other": None} == arguments(untyped, {"param": None, "other": None})


def test_unknown_keys_are_ignored() -> None:
    """Senders may be newer than this service."""
    assert {"param": 1} == arguments(untyped, {"param": 1, "new": 2, "": 3, "größe": 4})


def test_absent_parameters_keep_the_default_of_the_function() -> None:
    """Whatever it is, it is not even looked at: any object, mutable or wrong for its type."""
    marker: list[object] = [object()]

    def handler(
        request: Any,
        proxy: Any,
        a: Any = marker,
        b: int = 1.5,  # type: ignore[assignment]
        c: str = 5,  # type: ignore[assignment]
    ) -> Any:
        return a, b, c

    found = arguments(handler, {})
    assert {} == found
    assert handler(1, 2, **found)[0] is marker


def test_given_value_is_checked_although_there_is_a_default() -> None:
    """A default makes a value optional, not its type."""

    def handler(request: Any, proxy: Any, count: int = 5) -> None: ...

    assert {"count": 6} == arguments(handler, {"count": 6})
    with pytest.raises(InvalidPayload, match=r"\$\.count"):
        arguments(handler, {"count": "6"})


def test_rest_of_the_payload_goes_to_keywords() -> None:
    """``**kwargs`` receives what no parameter takes, and only that."""

    def handler(request: Any, proxy: Any, count: int, **rest: Any) -> None: ...

    assert {"count": 1, "a": 2, "größe": 3} == arguments(handler, {"count": 1, "a": 2, "größe": 3})
    assert {"count": 1} == arguments(handler, {"count": 1})


@pytest.mark.parametrize("key", ["self", "request", "proxy"])
def test_keywords_cannot_collide_with_the_handlers_own_arguments(key: str) -> None:
    """What a stranger sends makes no TypeError in the call: it is refused or left out."""

    class Controller:
        def handler(self, request: Any, proxy: Any, **rest: Any) -> dict[str, Any]:
            return rest

    handler = Controller().handler
    convert = arguments_of(handler, PLACE)
    try:
        found = convert({"a": 1, key: 2})
    except InvalidPayload:
        return
    assert 1 == handler(None, None, **found)["a"]


def test_keyword_only_parameters_are_filled() -> None:
    """A star in the signature changes nothing."""

    def handler(request: Any, proxy: Any, *, a: int, b: int = 2) -> None: ...

    assert {"a": 1} == arguments(handler, {"a": 1})
    assert {"a": 1, "b": 3} == arguments(handler, {"a": 1, "b": 3})


def test_leading_arguments_may_be_positional_only_and_have_any_name() -> None:
    """Then the payload may use their names."""

    def handler(message: Any, _: Any, /, message_: int = 0, **rest: Any) -> Any:
        return message, rest

    found = arguments(handler, {"message": 1, "_": 2})
    assert ("m", {"message": 1, "_": 2}) == handler("m", None, **found)


def test_annotations_of_the_leading_arguments_are_not_needed() -> None:
    """Message and proxy may be imported for type checkers only: the payload does not fill them."""

    def handler(request: Any, proxy: Any, count: int) -> Any: ...

    handler.__annotations__.update(
        {"request": "IncomingRequest", "proxy": "RPCProxy", "return": "Nowhere"}
    )
    assert {"count": 1} == arguments(handler, {"count": 1})


@pytest.mark.parametrize(
    "annotation", ["", "Nowhere", "dt.nothing", "1 +", "int | 'str'", "list[Nope]", "Endless"]
)
def test_annotation_that_cannot_be_read_is_told_at_start(annotation: str) -> None:
    """As a fault of the handler that names its place, whatever Python says."""

    def handler(request: Any, proxy: Any, count: Any) -> None: ...

    handler.__annotations__["count"] = annotation
    with pytest.raises(InvalidHandler, match=f"^{re.escape(PLACE)}"):
        arguments_of(handler, PLACE)


def test_name_for_type_checkers_only_is_told_with_the_remedy() -> None:
    """The most likely reason, said in words."""

    def handler(request: Any, proxy: Any, count: Any) -> None: ...

    handler.__annotations__["count"] = "Nowhere"
    with pytest.raises(
        InvalidHandler, match=r"'Nowhere' is not defined.*not only under TYPE_CHECK"
    ):
        arguments_of(handler, PLACE)


class Circle(msgspec.Struct): ...


class Huge(IntEnum):
    """More than msgspec compares."""

    A = 2**70


@pytest.mark.parametrize(
    "hint",
    [
        Point | Circle,
        Annotated[str, msgspec.Meta(ge=0)],
        Annotated[int, msgspec.Meta(pattern="x")],
        Huge,
        [int],
        5,
        print,
        ClassVar[int],
    ],
)
def test_annotation_that_msgspec_cannot_check_is_told_at_start(hint: Any) -> None:
    """And not at the first message."""

    def handler(request: Any, proxy: Any, thing: Any) -> None: ...

    handler.__annotations__["thing"] = hint
    for defaults in ((), (None,)):
        handler.__defaults__ = defaults
        with pytest.raises(InvalidHandler, match=f"^{re.escape(PLACE)}: ") as caught:
            arguments_of(handler, PLACE)
        assert "\n" not in str(caught.value)


def none_at_all() -> None: ...
def only_message(request: Any) -> None: ...
def only_stars(*everything: Any, **rest: Any) -> None: ...
def half_starred(request: Any, *rest: Any) -> None: ...
def all_keywords(*, request: Any, proxy: Any) -> None: ...


@pytest.mark.parametrize(
    "handler", [none_at_all, only_message, only_stars, half_starred, all_keywords, len, print]
)
def test_handler_that_cannot_take_message_and_proxy_is_refused(
    handler: Callable[..., Any],
) -> None:
    """The sentence has the place and the right form."""
    with pytest.raises(InvalidHandler, match=r"takes too few arguments.*\(self, message, proxy"):
        arguments_of(handler, PLACE)


def positional(request: Any, proxy: Any, count: int, /) -> None: ...
def starred(request: Any, proxy: Any, *counts: int) -> None: ...


@pytest.mark.parametrize(("handler", "name"), [(positional, "count"), (starred, "counts")])
def test_parameter_that_a_name_cannot_fill_is_refused(
    handler: Callable[..., Any], name: str
) -> None:
    """Values of a payload have names."""
    with pytest.raises(InvalidHandler, match=rf"parameter .[*]?{name}: .*cannot be filled"):
        arguments_of(handler, PLACE)


def test_signature_behind_a_well_behaved_wrapper_counts() -> None:
    """functools.wraps keeps it."""

    def handler(request: Any, proxy: Any, count: int, colour: str = "red") -> None: ...

    @functools.wraps(handler)
    def wrapper(*args: Any, **kwargs: Any) -> None: ...

    assert {"count": 1} == arguments(wrapper, {"count": 1})
    with pytest.raises(InvalidPayload):
        arguments(wrapper, {"count": "1"})


def test_recursive_types_are_followed() -> None:
    """A struct may hold itself."""

    def handler(request: Any, proxy: Any, tree: Tree) -> None: ...

    tree: dict[str, Any] = {"children": [{"children": [{}]}]}
    assert {"tree": Tree([Tree([Tree()])])} == arguments(handler, {"tree": tree})
    with pytest.raises(InvalidPayload, match=re.escape("$.tree.children[0].children")):
        arguments(handler, {"tree": {"children": [{"children": 5}]}})


def test_nesting_without_end_is_an_invalid_payload() -> None:
    """And no RecursionError: one message does not say more about the handler than another."""

    def handler(request: Any, proxy: Any, tree: Tree) -> None: ...

    tree: dict[str, Any] = {}
    for _ in range(5_000):
        tree = {"children": [tree]}
    with pytest.raises(InvalidPayload):
        arguments(handler, {"tree": tree})


@patient
@given(
    st.dictionaries(
        st.sampled_from(["count", "when", "items", "point", "price", "colour", "x", ""]),
        st.none() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2),
    )
)
def test_no_payload_brings_another_error_than_invalid_payload(payload: dict[str, Any]) -> None:
    """It is what strangers send."""
    try:
        found = arguments(typed, payload)
    except InvalidPayload:
        return
    assert found.keys() <= payload.keys()


def test_payload_is_left_as_it_is() -> None:
    """The message is shown to middleware afterwards."""
    payload = {"param": [1], "new": 2}
    arguments(untyped, payload)
    assert {"param": [1], "new": 2} == payload


@pytest.mark.parametrize(
    ("payload", "path", "expected"),
    [
        (GOOD | {"count": "3"}, "$.count", "int"),
        (GOOD | {"price": -1}, "$.price", "int >= 0"),
        (GOOD | {"items": [{"sku": 1}, {"sku": 2, "tags": [None]}]}, "$.items[1].tags[0]", "str"),
        (GOOD | {"items": [{"sku": -1}]}, "$.items[0]", "sku below zero"),
        (GOOD | {"colour": "green"}, "$.colour", "Invalid enum value 'green'"),
        (GOOD | {"note": 5}, "$.note", "str | null"),
        ({}, "$", "Object missing required field count"),
    ],
)
def test_details_tell_where_and_what_was_expected(
    payload: dict[str, Any], path: str, expected: str
) -> None:
    """For programs; the text says the same to people."""
    with pytest.raises(InvalidPayload) as caught:
        arguments(typed, payload)
    assert {"path": path, "expected": expected} == caught.value.details
