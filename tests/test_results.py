# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""From a handler's result and its annotation to the answer."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import IntEnum
from typing import Annotated, Any, Literal, NoReturn, Optional, TypedDict

import msgspec
import pytest

from tavrida.exceptions import InvalidHandler, UnknownResult
from tavrida.messages import Error, IncomingResponse, Message, Response
from tavrida.results import answers_of, response_of, result_type_of

PLACE = "shop.Shop.sell (shop.py:7)"


@dataclass
class Greeting:
    text: str
    times: Annotated[int, msgspec.Meta(ge=1)] = 1


@dataclass
class Guarded:
    text: str

    def __post_init__(self) -> None:
        if self.text == "bad":
            raise KeyError("guarded")


class Point(msgspec.Struct, rename="upper"):
    x: int


class Row(msgspec.Struct, array_like=True):
    x: int


class Sizes(TypedDict):
    sizes: list[int]


class Stranger:
    pass


def answer(hint: Any, result: object) -> Message:
    """What a handler with that return annotation answers."""
    return answers_of(annotated(hint), PLACE)(result)


class Huge(IntEnum):
    """More than msgspec compares."""

    A = 2**70


#: A type that no end of resolving makes whole.
Endless = list["Endless"]


def annotated(hint: Any) -> Any:
    def handler(request: Any, proxy: Any) -> Any: ...

    handler.__annotations__["return"] = hint
    return handler


@pytest.mark.parametrize(
    ("hint", "result", "payload"),
    [
        (Greeting, Greeting("a"), {"text": "a", "times": 1}),
        (Greeting, {"text": "a"}, {"text": "a"}),
        ("Greeting", {"text": "a", "more": 1}, {"text": "a", "more": 1}),
        (Annotated[Greeting, "note"], Greeting("a", 2), {"text": "a", "times": 2}),
        (Optional[Greeting], None, {}),  # noqa: UP045 - the older spelling works too
        (Greeting | None, Greeting("a"), {"text": "a", "times": 1}),
        (Response | Greeting, Greeting("a"), {"text": "a", "times": 1}),
        (Point, Point(1), {"X": 1}),
        (Sizes, {"sizes": [1]}, {"sizes": [1]}),
        (None, None, {}),
        (dict, {"a": Stranger}, {"a": Stranger}),
        (dict[str, Any], {"a": Stranger}, {"a": Stranger}),
        (dict[str, Any], Greeting("a"), {"text": "a", "times": 1}),
        (Mapping[str, Any] | None, {"a": Stranger}, {"a": Stranger}),
        (dict[str, Decimal], {"a": Decimal(1)}, {"a": Decimal(1)}),
        (dict[Literal["a"], dt.date], {"a": dt.date(2030, 1, 2)}, {"a": dt.date(2030, 1, 2)}),
        (dict[str, Greeting], {"a": Greeting("b")}, {"a": {"text": "b", "times": 1}}),
        (Any, {"a": 1}, {"a": 1}),
        (object, {"a": 1}, {"a": 1}),
        (Message, {"a": 1}, {"a": 1}),
        (NoReturn, None, {}),
    ],
)
def test_a_result_that_fits_its_annotation_is_the_answer(
    hint: Any, result: object, payload: dict[str, Any]
) -> None:
    """As it would be without the annotation."""
    response = answer(hint, result)
    assert isinstance(response, Response)
    assert payload == response.payload


@pytest.mark.parametrize(
    ("hint", "result", "reason"),
    [
        (Greeting, Greeting(5), "Greeting: Expected `str`, got `int` - at `$.text`"),  # type: ignore[arg-type]
        (Greeting, {"text": "a", "times": 0}, "Expected `int` >= 1 - at `$.times`"),
        (Greeting, {}, "Object missing required field `text`"),
        (Greeting, None, "returned NoneType, which does not fit its annotation"),
        (Greeting | None, {"text": 1}, "Expected `str`, got `int` - at `$.text`"),
        (Guarded, {"text": "bad"}, "guarded"),
        (Sizes, {"sizes": [1, "2"]}, "Expected `int`, got `str` - at `$.sizes[1]`"),
        (None, {"a": 1}, "Expected `null`, got `object`"),
        (dict, None, "Expected `object`, got `null`"),
        (dict[str, Any], {1: 2}, "keys are not all strings"),
        (dict[str, Greeting], {"a": Greeting(5)}, "Expected `str`, got `int`"),  # type: ignore[arg-type]
        (dict[str, Stranger], {"a": Stranger()}, "returned dict, which cannot be written"),
        (Response, {"a": 1}, "names messages only"),
        (Any, 42, "returned int, which is no answer"),
    ],
)
def test_a_result_that_does_not_fit_tells_path_and_type(
    hint: Any, result: object, reason: str
) -> None:
    """What the handler is, is added by who asks."""
    with pytest.raises(UnknownResult, match=re.escape(reason)):
        answer(hint, result)


@pytest.mark.parametrize("hint", [Greeting, None, Response, Error | None])
def test_messages_pass_whatever_the_annotation_says(hint: Any) -> None:
    """Middleware may have answered in place of the handler."""
    assert {"a": 1} == answer(hint, Response({"a": 1})).payload
    assert isinstance(answer(hint, Error({"class": "X"})), Error)


@pytest.mark.parametrize(
    "hint",
    [
        int,
        str,
        list[Greeting],
        tuple[int, ...],
        dict[int, str],
        Row,
        Stranger,
        Greeting | int,
        IncomingResponse,
    ],
)
def test_an_annotation_that_can_be_no_answer_is_told_at_start(hint: Any) -> None:
    """With the place and what may be returned."""
    sentence = re.escape(f"{PLACE} says that it returns ") + ".*can be no answer: return a dict"
    with pytest.raises(InvalidHandler, match=sentence):
        answers_of(annotated(hint), PLACE)


@pytest.mark.parametrize(
    "hint",
    [
        "",
        "Nowhere",
        "a b",
        "Endless",
        Greeting | Sizes,
        Annotated[Greeting, msgspec.Meta(ge=1)],
        Huge,
        dict[str, Huge],
        [int],
        5,
    ],
)
def test_an_annotation_that_cannot_be_read_or_checked_is_told_at_start(hint: Any) -> None:
    """Two classes without tags, for one, look the same on the wire."""
    with pytest.raises(InvalidHandler, match=re.escape(PLACE)):
        answers_of(annotated(hint), PLACE)


def test_a_handler_without_annotation_pays_nothing() -> None:
    """Its results go the plain way."""

    def handler(request, proxy): ...  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202

    assert response_of is answers_of(handler, PLACE)
    assert response_of is answers_of(annotated(Any), PLACE)


def test_the_type_of_a_result_is_that_of_its_payload() -> None:
    """Messages are left out of it."""
    assert Greeting is result_type_of(annotated(Greeting | Response | Error), PLACE)
    assert Response is result_type_of(annotated(Error | Response), PLACE)
    assert Any is result_type_of(annotated(NoReturn), PLACE)


def test_a_dataclass_that_cannot_be_written_is_no_answer() -> None:
    """Told as such; it does not fail later, when nobody can be told."""
    with pytest.raises(UnknownResult, match="returned Greeting, which cannot be written"):
        response_of(Greeting(Stranger()))  # type: ignore[arg-type]


def test_an_answer_that_was_received_is_not_passed_on_as_it_is() -> None:
    """Its headers are of another message; the error says what to return instead."""
    with pytest.raises(UnknownResult, match="IncomingResponse, which is no answer: return its pay"):
        response_of(IncomingResponse({"a": 1}))
