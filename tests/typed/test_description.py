# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""What services say of themselves."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any

import msgspec
import pytest

from tavrida import dispatcher, exceptions, messages, plugins
from tavrida.description import describe
from tavrida.dispatcher import Dispatcher
from tavrida.messages import Message
from tavrida.middleware import Middleware
from tavrida.service import ServiceController
from tests.typed.conftest import Connect
from tests.waiting import DEADLINE


@dataclass
class Item:
    name: str
    price: Annotated[int, msgspec.Meta(ge=0, description="in cents")]


class Strange:
    """A type that JSON has no word for."""


@dispatcher.rpc_service("shop")
class Shop(ServiceController):
    """Sells nails and screws. And
    other things.
    """

    @dispatcher.rpc_method(service="shop", method="buy")
    def buy(self, request: Any, proxy: Any, items: list[Item], note: str = "") -> Item | None:
        """Buy several things
        at once.

        All or none.
        """

    @dispatcher.rpc_method(service="shop", method="any")
    async def anything(self, request: Any, proxy: Any, key, **more: Any) -> Any: ...  # type: ignore[no-untyped-def]  # noqa: ANN001

    @dispatcher.rpc_method(service="shop", method="strange")
    def strange(
        self, request: Any, proxy: Any, one: Strange | None, two: dict[str, complex]
    ) -> messages.Response:
        return messages.Response()


@dispatcher.rpc_service("example")
class Example(ServiceController):
    @dispatcher.rpc_method(service="example", method="odd")
    def odd(
        self, request: Any, proxy: Any, n: Annotated[int, msgspec.Meta(examples=[object()])]
    ) -> None: ...

    @dispatcher.rpc_method(service="example", method="even")
    def even(
        self,
        request: Any,
        proxy: Any,
        day: Annotated[str, msgspec.Meta(examples=[{date(2030, 1, 2)}])],
    ) -> None: ...


@dispatcher.rpc_service("listener")
class Listener(ServiceController):
    @dispatcher.rpc_response_method(service="bank", method="pay")
    def paid(self, response: Any, proxy: Any) -> None: ...

    @dispatcher.rpc_error_method(service="bank", method="pay")
    def unpaid(self, error: Any, proxy: Any) -> None: ...

    @dispatcher.subscription_method(service="bank", method="closed")
    def closed(self, notification: Any, proxy: Any) -> None: ...


@dispatcher.rpc_service("guarded")
class Guarded(ServiceController):
    """A service that answers nobody."""

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.add_incoming_middleware(Guard())

    @dispatcher.rpc_method(service="guarded", method="open")
    def open(self, request: Any, proxy: Any) -> None: ...


class Guard(Middleware):
    def process(self, message: Message) -> Message:
        raise PermissionError(f"not {message.destination}")


@pytest.mark.parametrize("serializer", ["json", "msgpack"])
def test_a_service_tells_who_and_where_it_is(connect: Connect, serializer: str) -> None:
    """Its name, tavrida's version, host, process and when it started."""
    client = connect(Shop, Guarded, serializer=serializer)
    told = client.shop["__describe__"]().call(timeout=DEADLINE).payload
    assert "shop" == told["name"]
    assert plugins.version() == told["tavrida"]
    assert (socket.gethostname(), os.getpid()) == (told["host"], told["pid"])
    age = datetime.now(UTC) - datetime.fromisoformat(told["started"])
    assert timedelta(seconds=-2) < age < timedelta(minutes=5)
    assert "Sells nails and screws." == told["summary"]
    assert {"buy", "any", "strange"} == told["methods"].keys()


def test_a_method_is_described_by_json_schemas() -> None:
    """Of its parameters and its result, and by the first sentence of its docstring."""
    item = {
        "title": "Item",
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "price": {"type": "integer", "minimum": 0, "description": "in cents"},
        },
        "required": ["name", "price"],
    }
    assert {
        "summary": "Buy several things at once.",
        "parameters": {
            "type": "object",
            "properties": {
                "items": {"type": "array", "items": {"$ref": "#/$defs/Item"}},
                "note": {"type": "string"},
            },
            "required": ["items"],
            "$defs": {"Item": item},
        },
        "result": {
            "anyOf": [{"$ref": "#/$defs/Item"}, {"type": "null"}],
            "$defs": {"Item": item},
        },
    } == describe(Dispatcher(Shop()))["methods"]["buy"]


def test_what_is_not_annotated_may_be_anything() -> None:
    """Whose schema is the empty one."""
    assert {
        "summary": "",
        "parameters": {"type": "object", "properties": {"key": {}}, "required": ["key"]},
        "result": {},
    } == describe(Dispatcher(Shop()))["methods"]["any"]


def test_types_without_a_json_schema_are_named() -> None:
    """They break neither the service nor its description."""
    told = describe(Dispatcher(Shop()))["methods"]["strange"]
    assert f"{__name__}.Strange" in str(told["parameters"]["properties"]["one"])
    assert "complex" in str(told["parameters"]["properties"]["two"])
    assert {} == told["result"]


@pytest.mark.parametrize("serializer", ["json", "msgpack"])
def test_examples_that_json_cannot_write_leave_the_rest(connect: Connect, serializer: str) -> None:
    """Of the description; what it can write is written as JSON has it."""
    client = connect(Example, serializer=serializer)
    methods = client.example["__describe__"]().call(timeout=DEADLINE)["methods"]
    assert "no JSON Schema" in methods["odd"]["parameters"]["description"]
    day = methods["even"]["parameters"]["properties"]["day"]
    assert {"type": "string", "examples": [["2030-01-02"]]} == day


def test_it_tells_what_it_listens_to() -> None:
    """Subscriptions, and the answers that come to its continuations."""
    told = describe(Dispatcher(Listener()))
    assert {} == told["methods"]
    assert ["bank.closed"] == told["subscriptions"]
    assert {"responses": ["bank.pay"], "errors": ["bank.pay"]} == told["continuations"]


def test_a_description_is_asked_for_by_a_request_like_any_other(connect: Connect) -> None:
    """Middleware sees it, and may refuse it; an expired one is not answered."""
    client = connect(Guarded)
    with pytest.raises(exceptions.RemoteError, match=r"PermissionError: not guarded\.__describe__"):
        client.guarded["__describe__"]().call(timeout=DEADLINE)


def test_the_switch_turns_it_off(connect: Connect) -> None:
    """It is an unknown method then; the answer names those that there are."""
    client = connect(Shop, describe=False)
    with pytest.raises(exceptions.RemoteError, match="HandlerNotFound") as caught:
        client.shop["__describe__"]().call(timeout=DEADLINE)
    assert "It has: any, buy, strange." in caught.value.message


def test_an_unknown_method_is_not_told_of_built_in_ones(connect: Connect) -> None:
    """They are in the documents; the answer names the service's own."""
    with pytest.raises(exceptions.RemoteError, match=r"It has: any, buy, strange\."):
        connect(Shop).shop.sell().call(timeout=DEADLINE)


@pytest.mark.parametrize("method", ["__describe__", "__anything__"])
def test_reserved_names_are_not_for_handlers_of_requests(method: str) -> None:
    """Told when the server is built, with the place; answers of one may be handled."""

    class Wrong(ServiceController):
        @dispatcher.rpc_method(service="wrong", method=method)
        def handler(self, request: Any, proxy: Any) -> None: ...

    class Right(ServiceController):
        @dispatcher.rpc_response_method(service="shop", method=method)
        def handler(self, response: Any, proxy: Any) -> None: ...

    Dispatcher(dispatcher.rpc_service("right")(Right)())
    with pytest.raises(exceptions.InvalidHandler, match=r"Wrong\.handler.*reserved.*rename"):
        Dispatcher(dispatcher.rpc_service("wrong")(Wrong)())
