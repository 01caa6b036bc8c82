# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Typed handlers through the wire: every kind of annotation, both ways, with both serializers."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from queue import SimpleQueue
from typing import Annotated, Any, Literal, NamedTuple, TypedDict
from uuid import UUID

import msgspec
import pytest

from tavrida import dispatcher, exceptions
from tavrida.service import ServiceController
from tests.typed.conftest import Connect
from tests.waiting import DEADLINE


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


@dataclass
class Item:
    name: str
    price: Decimal
    tags: set[str] = field(default_factory=set)


class Cat(msgspec.Struct, tag=True):
    lives: int


class Dog(msgspec.Struct, tag=True):
    name: str


class Size(TypedDict):
    width: int
    height: int


class Pair(NamedTuple):
    left: int
    right: str


class Values(msgspec.Struct, omit_defaults=True):
    """What a handler is sent and answers; its fields have all the types that the wire is for."""

    when: datetime | None = None
    there: datetime | None = None
    day: date | None = None
    hour: time | None = None
    span: timedelta | None = None
    price: Decimal | None = None
    blob: bytes | None = None
    key: UUID | None = None
    colour: Colour = Colour.RED
    level: Level = Level.LOW
    word: Literal["a", "b"] = "a"
    count: Annotated[int, msgspec.Meta(ge=0, le=10)] = 0
    name: Annotated[str, msgspec.Meta(min_length=2, pattern="^[a-z]+$")] = "ab"
    items: list[Item] = []
    by_name: dict[str, Item] = {}
    pet: Cat | Dog | None = None
    either: int | str | None = None
    size: Size | None = None
    pair: Pair | None = None
    ratio: float = 0.0
    several: tuple[int, ...] = ()
    anything: Any = None


FULL = Values(
    when=datetime(2030, 1, 2, 3, 4, 5, 678901, UTC),
    there=datetime(2030, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=-3))),
    day=date(2030, 1, 2),
    hour=time(3, 4, 5),
    span=timedelta(days=1, seconds=2, microseconds=3),
    price=Decimal("12.3400"),
    blob=bytes(range(256)),
    key=UUID("0123456789abcdef0123456789abcdef"),
    colour=Colour.BLUE,
    level=Level.HIGH,
    word="b",
    count=10,
    name="xyz",
    items=[Item("nail", Decimal("0.01"), {"new"}), Item("screw", Decimal(0))],
    by_name={"ä": Item("ü", Decimal("1e10"))},
    pet=Dog("Rex"),
    either="7",
    size={"width": 1, "height": 2},
    pair=Pair(1, "b"),
    ratio=1.5,
    several=(1, 2, 3),
    anything={"a": [None, True, 1.5, "x"]},
)

seen: SimpleQueue[Any] = SimpleQueue()


@dispatcher.rpc_service("typed")
class Typed(ServiceController):
    """Echoes, by an annotated parameter and an annotated result."""

    @dispatcher.rpc_method(service="typed", method="echo")
    def echo(self, request: Any, proxy: Any, values: Values) -> Values:
        seen.put(values)
        return values

    @dispatcher.rpc_method(service="typed", method="aecho")
    async def aecho(self, request: Any, proxy: Any, values: Values) -> dict[str, Values]:
        seen.put(values)
        return {"values": values}

    @dispatcher.rpc_method(service="typed", method="buy")
    def buy(self, request: Any, proxy: Any, items: list[Item]) -> None:
        seen.put(items)

    @dispatcher.rpc_method(service="typed", method="wrong")
    def wrong(self, request: Any, proxy: Any, result: Any = None) -> Values | None:
        return result  # type: ignore[no-any-return]

    @dispatcher.rpc_method(service="typed", method="instance")
    def instance(self, request: Any, proxy: Any) -> dict[str, Item]:
        return {"a": Item("nail", "cheap")}  # type: ignore[arg-type]


@pytest.mark.parametrize("serializer", ["json", "msgpack"])
def test_every_type_goes_through_the_wire_and_back(connect: Connect, serializer: str) -> None:
    """The handler sees the values as they were sent, and so does the caller of its answer."""
    client = connect(Typed, serializer=serializer)
    answer = client.typed.echo(values=FULL).call(timeout=DEADLINE)
    assert FULL == seen.get(timeout=DEADLINE)
    assert FULL == msgspec.convert(answer.payload, Values)
    answer = client.typed.aecho(values=FULL).call(timeout=DEADLINE)
    assert FULL == seen.get(timeout=DEADLINE)
    assert FULL == msgspec.convert(answer["values"], Values)


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"when": "soon"}, "$.values.when", "Invalid RFC3339 encoded datetime"),
    ({"price": "x"}, "$.values.price", "Invalid decimal string"),
    ({"blob": "~"}, "$.values.blob", "Invalid base64 encoded string"),
    ({"key": "x"}, "$.values.key", "Invalid UUID"),
    ({"colour": "green"}, "$.values.colour", "Invalid enum value 'green'"),
    ({"level": 3}, "$.values.level", "Invalid enum value 3"),
    ({"word": "c"}, "$.values.word", "Invalid enum value 'c'"),
    ({"count": 11}, "$.values.count", "int <= 10"),
    ({"count": True}, "$.values.count", "int"),
    ({"name": "x"}, "$.values.name", "str of length >= 2"),
    ({"pet": {"type": "Cow"}}, "$.values.pet.type", "Invalid value 'Cow'"),
    ({"either": 1.5}, "$.values.either", "int | str | null"),
    ({"size": {"width": 1}}, "$.values.size", "Object missing required field height"),
    ({"pair": [1]}, "$.values.pair", "array of length 2"),
    ({"several": [1, "2"]}, "$.values.several[1]", "int"),
    ({"items": [{"name": "a", "price": "1"}, {"name": 5}]}, "$.values.items[1].name", "str"),
]


@pytest.mark.parametrize("serializer", ["json", "msgpack"])
def test_what_does_not_fit_is_told_with_its_path_and_what_was_expected(
    connect: Connect, serializer: str
) -> None:
    """In the text and in the details; the handler is not run."""
    client = connect(Typed, serializer=serializer)
    for values, path, expected in WRONG:
        with pytest.raises(exceptions.RemoteError) as caught:
            client.typed.echo(values=values).call(timeout=DEADLINE)
        assert ("InvalidPayload", 1003) == (caught.value.error_class, caught.value.code)
        assert {"path": path, "expected": expected} == caught.value.details
        assert path in caught.value.message
    assert seen.empty()


def test_the_path_goes_into_lists(connect: Connect) -> None:
    """With the index, counted from 0."""
    items = [{"name": "a", "price": "1"}] * 3 + [{"name": "a", "price": []}]
    with pytest.raises(exceptions.RemoteError, match=r"\$\.items\[3\]\.price") as caught:
        connect(Typed).typed.buy(items=items).call(timeout=DEADLINE)
    assert "$.items[3].price" == caught.value.details["path"]
    assert seen.empty()


def test_a_result_that_does_not_fit_the_annotation_is_an_unknown_result(connect: Connect) -> None:
    """The caller is told the handler, the path and the type; it is not sent half of it."""
    client = connect(Typed)
    assert {} == client.typed.wrong().call(timeout=DEADLINE).payload
    fits = {"count": 3, "more": "passes"}
    assert fits == client.typed.wrong(result=fits).call(timeout=DEADLINE).payload
    for method, payload, reason in (
        ("wrong", {"result": {"count": 11}}, "Expected `int` <= 10 - at `$.count`"),
        ("wrong", {"result": 5}, "Expected `object | null`, got `int`"),
        ("instance", {}, "Invalid decimal string - at `$[...].price`"),
    ):
        with pytest.raises(exceptions.RemoteError) as caught:
            client.typed[method](**payload).call(timeout=DEADLINE)
        assert ("UnknownResult", 1009) == (caught.value.error_class, caught.value.code)
        assert f"Typed.{method} (" in caught.value.message
        assert "does not fit its annotation" in caught.value.message
        assert caught.value.message.endswith(reason)
