# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Random values of random annotations, and random JSON that they do not allow."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import secrets
from decimal import Decimal
from queue import SimpleQueue
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tavrida import dispatcher, exceptions
from tavrida.arguments import arguments_of
from tavrida.client import RPCClient
from tavrida.config import ConnectionConfig
from tavrida.messages import Error, Message
from tavrida.middleware import Middleware
from tavrida.plugins import serializers
from tavrida.results import answers_of
from tavrida.server import Server
from tavrida.service import ServiceController
from tests.properties import patient
from tests.waiting import DEADLINE

#: An annotation, and the values that it allows.
Kind = tuple[Any, st.SearchStrategy[Any]]

# For annotations that are made while the tests run.
LIST: Any = list
TUPLE: Any = tuple
DICT: Any = dict

BOTH = pytest.mark.parametrize("name", ["json", "msgpack"])


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


# 64 bits are what MessagePack has; what both have is what a service can promise.
INTEGERS = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(max_size=8)
ZONES = st.sampled_from([dt.UTC, dt.timezone(dt.timedelta(hours=-3, minutes=-30))])

SCALARS: list[Kind] = [
    (bool, st.booleans()),
    (int, INTEGERS),
    (float, FLOATS),
    (str, TEXT),
    (None, st.none()),
    (bytes, st.binary(max_size=8)),
    (dt.datetime, st.datetimes(timezones=ZONES)),
    (dt.date, st.dates()),
    (dt.time, st.times()),
    (dt.timedelta, st.timedeltas(dt.timedelta(-9999), dt.timedelta(9999))),
    (UUID, st.uuids()),
    (Decimal, st.decimals(allow_nan=False, allow_infinity=False)),
    (Colour, st.sampled_from(Colour)),
    (Level, st.sampled_from(Level)),
    (Literal["a", 7], st.sampled_from(["a", 7])),
    (Annotated[int, msgspec.Meta(ge=0, lt=10)], st.integers(0, 9)),
    (Annotated[str, msgspec.Meta(min_length=2)], st.text(min_size=2, max_size=8)),
    (int | str, INTEGERS | TEXT),
]


def _list(kind: Kind) -> Kind:
    return LIST[kind[0]], st.lists(kind[1], max_size=4)


def _tuple(kind: Kind) -> Kind:
    return TUPLE[kind[0], int], st.tuples(kind[1], INTEGERS)


def _dict(kind: Kind) -> Kind:
    return DICT[str, kind[0]], st.dictionaries(TEXT, kind[1], max_size=4)


def _optional(kind: Kind) -> Kind:
    return kind[0] if kind[0] is None else kind[0] | None, kind[1] | st.none()


def _struct(kind: Kind) -> Kind:
    cls = msgspec.defstruct("Record", [("field", kind[0]), ("more", int, 5)])
    return cls, st.builds(cls, kind[1], INTEGERS)


def _dataclass(kind: Kind) -> Kind:
    cls = dataclasses.make_dataclass("Data", [("field", kind[0]), ("more", str, "x")])
    return cls, st.builds(cls, kind[1], TEXT)


def _made_of(kinds: st.SearchStrategy[Kind]) -> st.SearchStrategy[Kind]:
    makers = [_list, _tuple, _dict, _optional, _struct, _dataclass]
    return st.builds(lambda make, kind: make(kind), st.sampled_from(makers), kinds)


KINDS: st.SearchStrategy[Kind] = st.recursive(st.sampled_from(SCALARS), _made_of, max_leaves=3)

#: Annotations, each with some values that it allows.
TYPED = KINDS.flatmap(
    lambda kind: st.tuples(st.just(kind[0]), st.lists(kind[1], min_size=1, max_size=5))
)

JSON = st.recursive(
    st.none() | st.booleans() | INTEGERS | FLOATS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


def controller_of(
    hint: Any, seen: SimpleQueue[Any], *middleware: Middleware
) -> type[ServiceController]:
    """Return a controller whose handler takes one value of the annotation and answers it."""
    result = msgspec.defstruct("Result", [("value", hint)])

    def echo(self: Any, request: Any, proxy: Any, value: Any) -> Any:
        seen.put(value)
        return result(value)

    echo.__annotations__ |= {"value": hint, "return": result}

    @dispatcher.rpc_service("echo")
    class Echo(ServiceController):
        handler = dispatcher.rpc_method(service="echo", method="echo")(echo)

        def __init__(self, options: Any = None) -> None:
            super().__init__(options)
            self.outgoing_middleware += middleware

    return Echo


@BOTH
@patient
@given(typed=TYPED)
def test_values_that_the_annotation_allows_go_through_unchanged(
    name: str, typed: tuple[Any, list[Any]]
) -> None:
    """From the payload over the wire to the handler, and its answer over the wire back."""
    hint, values = typed
    serializer = serializers.load(name)
    seen: SimpleQueue[Any] = SimpleQueue()
    echo = controller_of(hint, seen)().handler  # type: ignore[attr-defined]
    arguments, answer = arguments_of(echo, "here"), answers_of(echo, "here")
    for value in values:
        payload = serializer.decode(serializer.encode({"value": value}))
        response = answer(echo(None, None, **arguments(payload)))
        assert value == seen.get()
        returned = serializer.decode(serializer.encode(response.payload))
        assert value == msgspec.convert(returned["value"], hint)


@BOTH
@settings(patient, max_examples=25)
@given(typed=TYPED)
def test_values_go_through_a_running_server_unchanged(
    name: str, typed: tuple[Any, list[Any]]
) -> None:
    """The same with a server and a client."""
    hint, values = typed
    seen: SimpleQueue[Any] = SimpleQueue()
    bus = ConnectionConfig(url=(f"sqlite://?memory={secrets.token_hex(8)}",), async_engine=True)
    with (
        Server(bus, "echo", "echo", [controller_of(hint, seen)]),
        RPCClient(bus, serializer=name) as client,
    ):
        for value in values:
            answer = client.echo.echo(value=value).call(timeout=DEADLINE)
            assert value == seen.get()
            assert value == msgspec.convert(answer["value"], hint)


class Errors(Middleware):
    """Counts the error answers."""

    def __init__(self) -> None:
        self.sent = 0

    def process(self, message: Message) -> Message:
        self.sent += isinstance(message, Error)
        return message


def is_allowed(value: Any, hint: Any) -> bool:
    """Tell whether the annotation allows a value, by another way than the one that is tested."""
    try:
        msgspec.json.decode(msgspec.json.encode(value), type=hint)
    except msgspec.ValidationError:
        return False
    return True


@BOTH
@settings(patient, max_examples=25)
@given(kind=KINDS, values=st.lists(JSON, min_size=1, max_size=20))
def test_what_the_annotation_does_not_allow_never_reaches_the_handler(
    name: str, kind: Kind, values: list[Any]
) -> None:
    """Each such request gets exactly one InvalidPayload."""
    hint = kind[0]
    wrong = [value for value in values if not is_allowed(value, hint)]
    seen: SimpleQueue[Any] = SimpleQueue()
    errors = Errors()
    controller = controller_of(hint, seen, errors)
    bus = ConnectionConfig(url=(f"sqlite://?memory={secrets.token_hex(8)}",), async_engine=True)
    with Server(bus, "echo", "echo", [controller]), RPCClient(bus, serializer=name) as client:
        payloads = [{"value": value} for value in wrong] + [{}]
        calls = [client.echo.echo(**each).future(timeout=DEADLINE) for each in payloads]
        for call in calls:
            error = call.exception(timeout=DEADLINE)
            assert isinstance(error, exceptions.RemoteError)
            assert "InvalidPayload" == error.error_class
            assert error.details["path"].startswith("$")
    assert len(calls) == errors.sent
    assert seen.empty()
