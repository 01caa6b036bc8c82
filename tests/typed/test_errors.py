# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Errors through the wire: their details, local classes for them, and tracebacks."""

from __future__ import annotations

import asyncio
import concurrent.futures
from queue import SimpleQueue
from typing import Any

import pytest

from tavrida import dispatcher, exceptions, messages
from tavrida.service import ServiceController
from tests.typed.conftest import Connect
from tests.waiting import DEADLINE


class OutOfStock(Exception):
    """The local class: known to the caller, not to the shop."""


class NeedsMore(Exception):
    def __init__(self, message: str, more: int) -> None:
        super().__init__(message, more)


class Strict(Exception):
    def __init__(self, message: str) -> None:
        raise RuntimeError("never made")


def remote(name: str, **attributes: Any) -> Exception:
    """An exception of a class that only the shop has."""
    cls: type[Exception] = type(name, (Exception,), attributes)
    return cls("nothing left")


class Collection(Exception):
    """False, as every collection that has nothing in it."""

    def __len__(self) -> int:
        return 0


@dispatcher.rpc_service("shop")
class Shop(ServiceController):
    seen: SimpleQueue[Any] = SimpleQueue()

    @dispatcher.rpc_method(service="shop", method="fail")
    def fail(self, request: Any, proxy: Any, name: str, details: Any = None) -> None:
        raise remote(name, code=7, details=details)

    @dispatcher.rpc_method(service="shop", method="hopeless")
    def hopeless(self, request: Any, proxy: Any) -> None:
        raise remote("Hopeless", details={"thing": object()})

    @dispatcher.rpc_method(service="shop", method="wait")
    def wait(self, request: Any, proxy: Any) -> dict[str, Any]:
        try:
            proxy.other.fail().raises(OutOfStock).wait()
        except OutOfStock as error:
            return {"caught": str(error)}
        return {}

    @dispatcher.rpc_method(service="shop", method="await")
    async def awaits(self, request: Any, proxy: Any) -> dict[str, Any]:
        try:
            await proxy.other.fail().raises(OutOfStock)
        except OutOfStock as error:
            return {"caught": str(error)}
        return {}

    @dispatcher.rpc_method(service="shop", method="later")
    def later(self, request: Any, proxy: Any) -> None:
        proxy.other.fail().call()

    @dispatcher.rpc_error_method(service="other", method="fail")
    def failed(self, error: messages.IncomingError, proxy: Any) -> None:
        self.seen.put(error.to_exception(OutOfStock))
        self.seen.put(error.to_exception(Other=OutOfStock))


@dispatcher.rpc_service("other")
class Other(ServiceController):
    @dispatcher.rpc_method(service="other", method="fail")
    def fail(self, request: Any, proxy: Any) -> None:
        raise remote("OutOfStock")


def test_details_of_an_exception_reach_the_caller(connect: Connect) -> None:
    """What is a dict that can be written; anything else is left out, and is no error."""
    client = connect(Shop)
    for details, expected in (
        ({"left": 0, "nested": {"a": [1, None]}}, {"left": 0, "nested": {"a": [1, None]}}),
        ({}, {}),
        (None, {}),
        ("text", {}),
        ([1], {}),
        ({"long": "x" * 20_000}, {}),
    ):
        with pytest.raises(exceptions.RemoteError) as caught:
            client.shop.fail(name="OutOfStock", details=details).call(timeout=DEADLINE)
        assert expected == caught.value.details
        assert ("OutOfStock", "nothing left", 7) == (
            caught.value.error_class,
            caught.value.message,
            caught.value.code,
        )
    with pytest.raises(exceptions.RemoteError, match="Hopeless") as caught:
        client.shop.hopeless().call(timeout=DEADLINE)
    assert {"class": "Hopeless", "message": "nothing left", "code": 1000} == caught.value.payload


def test_a_remote_error_is_raised_as_the_local_class_that_the_caller_names(
    connect: Connect,
) -> None:
    """By the name of the remote class; the RemoteError is its cause and has the details."""
    call = connect(Shop).shop.fail(name="OutOfStock", details={"left": 0})
    with pytest.raises(OutOfStock, match=r"^nothing left$") as caught:
        call.raises(OutOfStock).call(timeout=DEADLINE)
    cause = caught.value.__cause__
    assert isinstance(cause, exceptions.RemoteError)
    assert {"left": 0} == cause.details
    with pytest.raises(LookupError, match="nothing left"):
        call.raises(OutOfStock=LookupError).wait(timeout=DEADLINE)
    with pytest.raises(OutOfStock):
        call.raises(KeyError).raises(OutOfStock).future(timeout=DEADLINE).result(DEADLINE)

    async def awaited() -> None:
        await call.raises(OutOfStock)

    with pytest.raises(OutOfStock):
        asyncio.run(awaited())


def test_another_remote_error_stays_a_remote_error(connect: Connect) -> None:
    """Also after raises(): a Call is not changed by it."""
    call = connect(Shop).shop.fail(name="NotFound")
    call.raises(NotFound=OutOfStock)
    with pytest.raises(exceptions.RemoteError, match="NotFound: nothing left"):
        call.call(timeout=DEADLINE)
    with pytest.raises(exceptions.RemoteError, match="NotFound: nothing left"):
        call.raises(OutOfStock).call(timeout=DEADLINE)


@pytest.mark.parametrize("cls", [NeedsMore, Strict])
def test_a_class_that_takes_no_message_leaves_the_remote_error(
    connect: Connect, cls: type[Exception]
) -> None:
    """With a note that tells why."""
    call = connect(Shop).shop.fail(name="OutOfStock").raises(OutOfStock=cls)
    with pytest.raises(exceptions.RemoteError, match="OutOfStock") as caught:
        call.call(timeout=DEADLINE)
    [note] = caught.value.__notes__
    assert f"{cls.__name__}('nothing left') could not be made: " in note


def test_a_local_error_that_is_false_leaves_the_remote_error(connect: Connect) -> None:
    """A future would take it for no error at all, and a call return None."""
    call = connect(Shop).shop.fail(name="OutOfStock").raises(OutOfStock=Collection)
    with pytest.raises(exceptions.RemoteError, match="OutOfStock") as caught:
        call.call(timeout=DEADLINE)
    assert "Collection('nothing left')" in caught.value.__notes__[0]

    async def awaited() -> None:
        await call

    with pytest.raises(exceptions.RemoteError, match="OutOfStock"):
        asyncio.run(awaited())


@pytest.mark.parametrize(
    "cls", [5, "OutOfStock", int, SystemExit, StopIteration, concurrent.futures.CancelledError]
)
def test_raises_takes_classes_of_exceptions_only(connect: Connect, cls: Any) -> None:
    """Told before anything is sent. The last two would not come out of an await."""
    call = connect(Shop).shop.fail(name="OutOfStock")
    with pytest.raises(TypeError, match="should name classes of exceptions"):
        call.raises(cls)
    with pytest.raises(TypeError, match="should name classes of exceptions"):
        call.raises(OutOfStock=cls)


def test_handlers_name_local_classes_too(connect: Connect) -> None:
    """For wait, for await, and for the error that comes to an rpc_error_method."""
    client = connect(Shop, Other)
    known = client.shop
    for method in ("wait", "await"):
        assert {"caught": "nothing left"} == known[method]().call(timeout=DEADLINE).payload
    known.later().cast()
    local, other = Shop.seen.get(timeout=DEADLINE), Shop.seen.get(timeout=DEADLINE)
    assert isinstance(local, OutOfStock)
    assert isinstance(local.__cause__, exceptions.RemoteError)
    assert isinstance(other, exceptions.RemoteError)


def test_tracebacks_cross_the_wire_only_when_the_debug_option_says_so(connect: Connect) -> None:
    """As details, beside those of the exception."""
    client = connect(Shop, debug_tracebacks=True)
    with pytest.raises(exceptions.RemoteError) as caught:
        client.shop.fail(name="OutOfStock", details={"left": 0}).call(timeout=DEADLINE)
    assert 0 == caught.value.details["left"]
    assert "raise remote(name" in caught.value.details["traceback"]


def test_no_traceback_crosses_the_wire_by_default(connect: Connect) -> None:
    """Neither of a handler's exception nor of what tavrida raises."""
    client = connect(Shop)
    for payload in ({"name": "OutOfStock"}, {}):
        with pytest.raises(exceptions.RemoteError) as caught:
            client.shop.fail(**payload).call(timeout=DEADLINE)
        assert "Traceback" not in str(caught.value.payload)
        assert __file__ not in str(caught.value.payload)
