# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Which handler takes a message."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tavrida import dispatcher, messages
from tavrida.dispatcher import Dispatcher
from tavrida.entry_point import EntryPoint
from tavrida.exceptions import ConfigError, HandlerConflict, HandlerNotFound
from tavrida.messages import (
    IncomingError,
    IncomingMessage,
    IncomingNotification,
    IncomingRequest,
    IncomingResponse,
)
from tavrida.router import Router
from tavrida.service import ServiceController


@dispatcher.rpc_service("shop")
class Shop(ServiceController):
    @dispatcher.rpc_method("shop", "sell")
    def sell(self, request: Any, proxy: Any) -> None: ...

    @dispatcher.rpc_method("shop", "refund")
    def refund(self, request: Any, proxy: Any) -> None: ...

    @dispatcher.rpc_response_method("stock", "take")
    def taken(self, response: Any, proxy: Any) -> None: ...

    @dispatcher.subscription_method("stock", "empty")
    def empty(self, notification: Any, proxy: Any) -> None: ...


@dispatcher.rpc_service("audit")
class Audit(ServiceController):
    @dispatcher.rpc_response_method("stock", "take")
    def taken(self, response: Any, proxy: Any) -> None: ...

    @dispatcher.rpc_error_method("stock", "count")
    def not_counted(self, error: Any, proxy: Any) -> None: ...


def router(*controllers: type[ServiceController]) -> Router:
    return Router(Dispatcher(cls()) for cls in controllers)


def point(text: str) -> EntryPoint | None:
    return EntryPoint.parse_source(text) if text else None


def handler_name(
    cls: type[IncomingMessage], source: str = "", destination: str = "", *more: Any
) -> str:
    message = cls(source=point(source), destination=point(destination))
    handler = router(Shop, Audit).route(message)
    return f"{handler.service}.{handler.function.__name__}"


def test_requests_go_by_their_destination() -> None:
    """Whoever sent them."""
    assert "shop.sell" == handler_name(IncomingRequest, "audit.x", "shop.sell")
    assert "shop.refund" == handler_name(IncomingRequest, "", "shop.refund")


def test_notifications_go_by_their_source() -> None:
    """They have no destination."""
    assert "shop.empty" == handler_name(IncomingNotification, "stock.empty")


@pytest.mark.parametrize("asker", ["shop", "audit"])
def test_answers_go_back_to_the_controller_that_asked(asker: str) -> None:
    """Two controllers on one queue may call the same method."""
    assert f"{asker}.taken" == handler_name(IncomingResponse, "stock.take", f"{asker}.any")
    assert f"{asker}.taken" == handler_name(IncomingResponse, "stock.take", asker)


def test_find_looks_up_without_a_message() -> None:
    """A call inside a handler asks whether its answer has a handler."""
    found = router(Shop).find(messages.RESPONSE, "stock.take", "shop")
    assert found is not None
    assert "taken" == found.function.__name__
    assert router(Shop).find(messages.RESPONSE, "stock.take") is None
    assert router(Shop).find(messages.ERROR, "stock.take", "shop") is None


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (
            IncomingRequest(destination=EntryPoint("shop", "sel")),
            (
                "service 'shop' has no method 'shop.sel' (did you mean 'shop.sell'?). "
                "It has: refund, sell."
            ),
        ),
        (
            IncomingRequest(destination=EntryPoint("audit", "x")),
            "service 'audit' has no method 'audit.x'. It has: none.",
        ),
        (
            IncomingRequest(destination=EntryPoint("bank", "pay")),
            "no handler here for the request of 'bank.pay'. Handled: shop.refund, shop.sell.",
        ),
        (
            IncomingNotification(source=EntryPoint("stock", "emty")),
            (
                "no handler here for the notification of 'stock.emty' (did you mean "
                "'stock.empty'?). "
                "Handled: stock.empty."
            ),
        ),
        (
            IncomingResponse(
                source=EntryPoint("stock", "takes"), destination=EntryPoint("audit", "x")
            ),
            (
                "no handler here for the response of 'stock.takes' (did you mean 'stock.take'?). "
                "Handled: stock.take."
            ),
        ),
        (
            IncomingError(source=EntryPoint("stock", "take"), destination=EntryPoint("shop", "x")),
            "no handler here for the error of 'stock.take'. Handled: none.",
        ),
        (IncomingResponse(source=EntryPoint("stock", "take")), "Handled: none."),
    ],
)
def test_message_without_a_handler_is_told_with_the_nearest_names(
    message: IncomingMessage, sentence: str
) -> None:
    """The sentence travels to the caller, or stands with the dead letter."""
    with pytest.raises(HandlerNotFound, match=re.escape(sentence)):
        router(Shop, Audit).route(message)


@pytest.mark.parametrize("cls", [IncomingResponse, IncomingError, IncomingNotification])
def test_message_without_a_source_is_told_so(cls: type[IncomingMessage]) -> None:
    """None is no service."""
    with pytest.raises(HandlerNotFound) as caught:
        router(Shop).route(cls())
    assert "'None'" not in str(caught.value)


def test_answer_with_only_the_other_kind_of_handler_has_a_counterpart() -> None:
    """It is acknowledged and logged, not dead-lettered; that is for what nobody expected."""
    both = router(Shop, Audit)
    for cls, source, destination, expected in [
        (IncomingError, "stock.take", "shop.x", True),
        (IncomingResponse, "stock.count", "audit.x", True),
        (IncomingError, "stock.take", "", False),
        (IncomingError, "stock.other", "shop.x", False),
        (IncomingError, "stock.count", "shop.x", False),
        (IncomingRequest, "", "shop.none", False),
        (IncomingNotification, "stock.take", "", False),
    ]:
        message = cls(source=point(source), destination=point(destination))
        assert expected is both.has_counterpart(message)


def test_two_controllers_of_one_service_are_both_named() -> None:
    """With their places."""

    @dispatcher.rpc_service("shop")
    class OtherShop(ServiceController):
        @dispatcher.rpc_method("shop", "other")
        def other(self, request: Any, proxy: Any) -> None: ...

    with pytest.raises(HandlerConflict) as caught:
        router(Shop, OtherShop)
    text = str(caught.value)
    assert re.search(
        r"OtherShop \(.*test_router\.py:\d+\) and .*\.Shop \(.*test_router\.py:\d+\)", text
    )
    assert "both serve 'shop': leave one of them out" in text


def test_same_controller_twice_is_a_conflict() -> None:
    """Two objects of one class are two controllers."""
    with pytest.raises(HandlerConflict, match="both serve 'shop'"):
        router(Shop, Shop)


def test_two_readers_of_one_event_on_one_queue_are_both_named() -> None:
    """A failure of the one would make the other handle it again."""

    @dispatcher.rpc_service("buyer")
    class Buyer(ServiceController):
        @dispatcher.subscription_method("stock", "empty")
        def buy(self, notification: Any, proxy: Any) -> None: ...

    with pytest.raises(HandlerConflict) as caught:
        router(Shop, Buyer)
    text = str(caught.value)
    assert "Buyer.buy (" in text
    assert "Shop.empty (" in text
    assert "give each service a queue of its own" in text


def test_every_conflict_is_told_at_once() -> None:
    """Three wrong things, three faults."""

    @dispatcher.rpc_service("buyer")
    class Buyer(ServiceController):
        @dispatcher.subscription_method("stock", "empty")
        def buy(self, notification: Any, proxy: Any) -> None: ...

    with pytest.raises(ConfigError) as caught:
        router(Shop, Buyer, Shop, Buyer)
    assert 3 == len(caught.value.faults)


def test_router_without_controllers_handles_nothing() -> None:
    """And says so."""
    with pytest.raises(HandlerNotFound, match=r"Handled: none\."):
        Router([]).route(IncomingRequest(destination=EntryPoint("a", "b")))
