# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""call_handler: what a server would do with one message, and what the other services get."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tavrida import dispatcher, exceptions, messages, middleware, service
from tavrida.discovery import LocalDiscovery
from tavrida.testing.handlers import Peers, UnexpectedCall, call_handler
from tests.testing.services import Shop, Stock


@pytest.fixture
def peers() -> Peers:
    """The services that are not there."""
    return Peers()


def sent(peers: Peers) -> list[tuple[str, str, dict[str, Any]]]:
    return [(each.how, each.entry_point, each.payload) for each in peers.received]


# -- what comes in


def test_the_answer_is_what_the_caller_would_get() -> None:
    """A response with its payload."""
    answer = call_handler(Stock, "stock.take", {"sku": 5})
    assert isinstance(answer, messages.Response)
    assert {"sku": 5, "taken": 1} == answer.payload


def test_arguments_are_converted_and_checked_as_always() -> None:
    """The handler is not run with what does not fit."""
    with pytest.raises(exceptions.InvalidPayload, match=r"Expected `int`, got `str`.*sku"):
        call_handler(Stock, "stock.take", {"sku": "five"})


def test_what_a_handler_raises_is_raised_here() -> None:
    """As it is, with its traceback."""
    with pytest.raises(ValueError, match="cannot take 0"):
        call_handler(Stock, "stock.take", {"sku": 5, "amount": 0})


def test_an_error_that_is_returned_is_an_answer() -> None:
    """Not an exception."""
    answer = call_handler(Shop, "shop.refuse")
    assert isinstance(answer, messages.Error)
    assert 7 == answer["code"]


def test_what_nobody_awaits_has_no_answer(peers: Peers) -> None:
    """Casts, responses, notifications."""
    assert call_handler(Stock, "stock.take", {"sku": 5}, reply_to="") is None
    assert call_handler(Stock, "shop.sell", {"sku": 5}) is None
    assert call_handler(Shop, "stock.take", {"taken": 5}) is None


def test_handlers_run_in_the_thread_of_the_test() -> None:
    """What a fixture opened for this thread, they can use."""
    assert {"thread": threading.get_ident(), "async": threading.get_ident()} == {
        "thread": call_handler(Probe, "probe.thread")["thread"],  # type: ignore[index]
        "async": call_handler(Probe, "probe.thread_async")["thread"],  # type: ignore[index]
    }


@dispatcher.rpc_service("probe")
class Probe(service.ServiceController):
    """Tells what it sees."""

    @dispatcher.rpc_method(service="probe", method="thread")
    def thread(self, request: Any, proxy: Any) -> dict[str, Any]:
        return {"thread": threading.get_ident()}

    @dispatcher.rpc_method(service="probe", method="thread_async")
    async def thread_async(self, request: Any, proxy: Any) -> dict[str, Any]:
        return {"thread": threading.get_ident()}

    @dispatcher.rpc_method(service="probe", method="message")
    def message(self, request: Any, proxy: Any, **payload: Any) -> dict[str, Any]:
        return {
            "context": request.context,
            "headers": request.headers,
            "redelivered": request.redelivered,
            "attempt": request.attempt,
        }

    @dispatcher.rpc_error_method(service="stock", method="take")
    def failed(self, error: Any, proxy: Any) -> None:
        proxy.log.write(text=error["message"], code=error["code"]).cast()

    @dispatcher.rpc_response_method(service="stock", method="take")
    def taken(self, response: Any, proxy: Any, sku: int) -> None:
        proxy.log.write(sku=sku).cast()


def test_a_message_is_made_up_as_the_test_says() -> None:
    """Context, headers, source; and the values of the payload are in the context."""
    seen = call_handler(
        Probe,
        "probe.message",
        {"b": 2},
        context={"a": 1, "b": 1},
        headers={"tenant": "t"},
        source="web.shop",
        redelivered=True,
        attempt=3,
    )
    assert seen is not None
    assert {"a": 1, "b": 2} == seen["context"]
    assert seen["redelivered"]
    assert 3 == seen["attempt"]
    headers = seen["headers"]
    assert ("t", "web.shop", "probe.message") == (
        headers["tenant"],
        headers["source"],
        headers["destination"],
    )
    assert headers["request_id"]


def test_the_kind_tells_handlers_of_one_entry_point_apart(peers: Peers) -> None:
    """And an exception is an error without saying so."""
    call_handler(Probe, "stock.take", {"sku": 1}, kind="response", peers=peers)
    call_handler(Probe, "stock.take", ValueError("no"), peers=peers)
    assert [
        ("cast", "log.write", {"sku": 1}),
        ("cast", "log.write", {"text": "no", "code": 1000}),
    ] == sent(peers)


# -- what goes out


def test_everything_that_is_sent_is_recorded_with_how(peers: Peers) -> None:
    """In the order of sending."""
    call_handler(Shop, "shop.sell", {"sku": 1}, peers=peers)
    call_handler(Shop, "shop.order", {"sku": 2}, peers=peers)
    call_handler(Shop, "shop.tell", {"sku": 3}, peers=peers)
    call_handler(Shop, "shop.hand_on", {"sku": 4}, peers=peers)
    peers.answers("stock.take", {})
    call_handler(Shop, "shop.ask", {"sku": 5}, peers=peers)
    assert [
        ("publish", "shop.sell", {"sku": 1}),
        ("call", "stock.take", {"sku": 2, "amount": 1}),
        ("cast", "stock.take", {"sku": 3}),
        ("transfer", "stock.take", {"sku": 4}),
        ("wait", "stock.take", {"sku": 5}),
    ] == sent(peers)
    assert {"tenant": "a"} == peers.received[2].message.extra_headers


def test_messages_are_those_that_a_server_would_send(peers: Peers) -> None:
    """In the name of the handler, with the context and the chain."""
    call_handler(Shop, "shop.order", {"sku": 2}, context={"user": "u"}, peers=peers)
    message = peers.received[0].message
    assert ("shop.order", "shop") == (str(message.source), message.reply_to)
    assert {"user": "u", "sku": 2, "amount": 1} == message.context


def test_a_transferred_request_has_no_answer_here(peers: Peers) -> None:
    """Whoever handles it next gives the answer to the caller."""
    assert call_handler(Shop, "shop.hand_on", {"sku": 4}, reply_to="web", peers=peers) is None
    assert "web" == peers.received[0].message.reply_to


def test_middleware_works_on_both_ways(peers: Peers) -> None:
    """In, out, and on the answer."""

    class Sign(middleware.Middleware):
        def process(self, message: messages.Message) -> messages.Message:
            message.payload["signed"] = True
            return message

    class Signing(Shop):
        def __init__(self, options: Any = None) -> None:
            super().__init__(options)
            self.add_outgoing_middleware(Sign())

    class Closed(Shop):
        def __init__(self, options: Any = None) -> None:
            super().__init__(options)
            self.add_incoming_middleware(Close())

    class Close(middleware.Middleware):
        def process(self, message: messages.Message) -> messages.Message:
            return messages.Response({"closed": True})

    answer = call_handler(Signing, "shop.sell", {"sku": 1}, peers=peers)
    assert answer is not None
    assert answer["signed"]
    assert {"sku": 1, "signed": True} == peers.received[0].payload
    answer = call_handler(Closed, "shop.sell", {"sku": 1})
    assert answer is not None
    assert {"closed": True} == answer.payload


@pytest.mark.parametrize("method", ["async def", "def"])
def test_middleware_knows_how_it_ended_before_the_call_returns(method: str) -> None:
    """Its ``before_settle`` is called here too."""
    told: list[messages.Message | None] = []

    class Hears(middleware.Middleware):
        def before_settle(
            self,
            message: messages.IncomingMessage,
            answer: messages.Message | None,
            error: BaseException | None,
        ) -> None:
            told.append(answer)

    class HearsOnLoop(middleware.Middleware):
        async def before_settle(
            self,
            message: messages.IncomingMessage,
            answer: messages.Message | None,
            error: BaseException | None,
        ) -> None:
            told.append(answer)

    class Heard(Shop):
        def __init__(self, options: Any = None) -> None:
            super().__init__(options)
            self.add_incoming_middleware(Hears() if method == "def" else HearsOnLoop())

    assert [call_handler(Heard, "shop.sell", {"sku": 1}, peers=Peers())] == told


@dispatcher.rpc_service("clumsy")
class Clumsy(service.ServiceController):
    """Every mistake that a server would tell, too."""

    @dispatcher.rpc_method(service="clumsy", method="result")
    def result(self, request: Any, proxy: Any) -> Any:
        return [1]

    @dispatcher.rpc_method(service="clumsy", method="value")
    def value(self, request: Any, proxy: Any) -> Any:
        return {"x": object()}

    @dispatcher.rpc_method(service="clumsy", method="cast")
    def cast(self, request: Any, proxy: Any) -> None:
        proxy.stock.take(sku=object()).cast()

    @dispatcher.rpc_method(service="clumsy", method="call")
    def call(self, request: Any, proxy: Any) -> None:
        proxy.stock.take(sku=1).call()

    @dispatcher.rpc_method(service="clumsy", method="wait")
    async def wait(self, request: Any, proxy: Any) -> None:
        proxy.stock.take(sku=1).wait()


@pytest.mark.parametrize(
    ("method", "error", "text"),
    [
        ("result", exceptions.UnknownResult, "returned list, which is no answer"),
        ("value", exceptions.MessageError, "payload key 'x' of the response cannot be written"),
        ("cast", exceptions.MessageError, "payload key 'sku' of the request cannot be written"),
        ("call", exceptions.HandlerNotFound, "the answer of stock.take would be lost"),
        ("wait", exceptions.CallError, "would block the event loop"),
    ],
)
def test_mistakes_are_told_as_a_server_tells_them(
    peers: Peers, method: str, error: type[Exception], text: str
) -> None:
    """Nothing of it waits for the first real broker."""
    with pytest.raises(error, match=text):
        call_handler(Clumsy, f"clumsy.{method}", peers=peers)
    assert [] == peers.received


def test_a_discovery_of_the_controllers_own_is_asked(
    peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that it was not told about is the error that it will be in production."""
    known = LocalDiscovery()
    monkeypatch.setattr(Shop, "_discovery", known)
    with pytest.raises(exceptions.ServiceUnknown, match="does not know service 'stock'"):
        call_handler(Shop, "shop.tell", {"sku": 1}, peers=peers)
    known.register_remote_service("stock", "somewhere")
    call_handler(Shop, "shop.tell", {"sku": 1}, peers=peers)
    assert ["cast"] == [each.how for each in peers.received]


# -- programmed answers


def test_programmed_answers_come_in_turn_and_the_last_one_stays(peers: Peers) -> None:
    """To a handler that waits."""
    peers.answers("stock.take", {"n": 1}, messages.Response({"n": 2}))
    got = [call_handler(Shop, "shop.ask", {"sku": 1}, peers=peers) for _ in range(3)]
    assert [1, 2, 2] == [answer["n"] for answer in got if answer is not None]


def test_an_answer_may_be_made_of_the_request(peers: Peers) -> None:
    """To an async handler that awaits many."""
    peers.answers("stock.take", lambda request: {"sku": 10 * request["sku"]})
    answer = call_handler(Shop, "shop.ask_many", {"skus": [1, 2, 3]}, peers=peers)
    assert answer is not None
    assert [10, 20, 30] == answer["taken"]


@pytest.mark.parametrize(
    "answer",
    [
        ValueError("none left"),
        messages.Error({"class": "ValueError", "message": "none left", "code": 1000}),
        lambda request: ValueError("none left"),
    ],
)
def test_a_remote_exception_is_a_remote_error(peers: Peers, answer: Any) -> None:
    """As it is over a broker."""
    peers.answers("stock.take", answer)
    with pytest.raises(exceptions.RemoteError, match="ValueError: none left") as raised:
        call_handler(Shop, "shop.ask", {"sku": 1}, peers=peers)
    assert "ValueError" == raised.value.error_class


@pytest.mark.parametrize("method", ["ask", "ask_many"])
def test_a_call_that_ends_badly_is_raised_as_it_is(peers: Peers, method: str) -> None:
    """Timeouts, and services that nobody runs."""
    peers.answers("stock.take", exceptions.CallTimeout("too late"))
    with pytest.raises(exceptions.CallTimeout, match="too late"):
        call_handler(Shop, f"shop.{method}", {"sku": 1, "skus": [1]}, peers=peers)


def test_an_answer_that_was_not_programmed_is_told() -> None:
    """With the line that is missing."""
    with pytest.raises(UnexpectedCall) as raised:
        call_handler(Shop, "shop.ask", {"sku": 1})
    assert (
        "shop.ask waits for an answer of stock.take to {'sku': 1}, and none is programmed: "
        "peers.answers('stock.take', {...})"
    ) == str(raised.value)


# -- options


def test_options_are_those_of_the_ini() -> None:
    """Given, converted, or by default."""
    for options, limit in (({"limit": "3"}, 3), ({"limit": 4}, 4), ({}, 10), (None, 10)):
        answer = call_handler(Shop, "shop.sell", {"sku": 1}, options=options)
        assert answer is not None
        assert limit == answer["limit"]


def test_an_object_is_taken_as_it_is() -> None:
    """With its own options and state."""
    answer = call_handler(Shop({"limit": 7}), "shop.sell", {"sku": 1})
    assert answer is not None
    assert 7 == answer["limit"]


# -- what cannot be


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (
            lambda: call_handler(Stock, "stock.tale"),
            (
                "Stock has no handler for the messages of stock.tale (did you mean 'stock.take'?). "
                "It handles: notification shop.sell, request stock.slow, request stock.take."
            ),
        ),
        (
            lambda: call_handler(Stock, "stock.take", kind="error"),
            (
                "Stock has no handler for the error of stock.take. It handles: notification "
                "shop.sell, request stock.slow, request stock.take."
            ),
        ),
        (
            lambda: call_handler(Probe, "stock.take"),
            (
                "Probe has several handlers for stock.take: say which one, kind='error' and "
                "kind='response'"
            ),
        ),
        (
            lambda: call_handler(Stock, "stock.take", kind="requests"),
            (
                "kind='requests' should be one of request, response, error, notification (did you "
                "mean 'request'?)"
            ),
        ),
        (
            lambda: call_handler(Shop, "shop.sell", options={"limt": 3, "name": None}),
            (
                "option 'limt' of 'shop' is none that Shop.list_opts() declares (did you mean "
                "'limit'?): there is limit, name; option 'name' of 'shop' is missing: give it a "
                "value in options"
            ),
        ),
        (
            lambda: call_handler(Stock({}), "stock.take", options={}),
            "options are for a controller class: this is an object, which has its own",
        ),
        (
            lambda: call_handler(dict, "stock.take"),  # type: ignore[arg-type]
            (
                "<class 'dict'> is no controller: give a class that derives from "
                "tavrida.service.ServiceController"
            ),
        ),
        (
            lambda: Peers().answers("stock.take"),
            "answers('stock.take') needs at least one answer",
        ),
    ],
)
def test_what_cannot_be_called_is_told(make: Callable[[], object], told: str) -> None:
    """In one sentence, with what there is."""
    with pytest.raises(exceptions.ConfigError) as raised:
        make()
    assert told == str(raised.value)


def test_a_wrong_value_of_an_option_is_told() -> None:
    """With its name and its service."""
    with pytest.raises(exceptions.ConfigError, match=r"option 'limit' of 'shop': .*many"):
        call_handler(Shop, "shop.sell", options={"limit": "many"})


def test_an_async_test_is_told_what_to_do() -> None:
    """Instead of waiting for itself."""

    async def test() -> None:
        with pytest.raises(exceptions.ConfigError, match=r"by asyncio\.to_thread"):
            call_handler(Stock, "stock.take", {"sku": 1})
        assert await asyncio.to_thread(call_handler, Stock, "stock.take", {"sku": 1})

    asyncio.run(test())


@dataclass
class Item:
    """What a handler may return."""

    price: float


def test_results_of_every_kind_become_payloads() -> None:
    """By the product's own rules."""

    @dispatcher.rpc_service("items")
    class Items(service.ServiceController):
        @dispatcher.rpc_method(service="items", method="get")
        def get(self, request: Any, proxy: Any) -> Item:
            return Item(1.5)

    answer = call_handler(Items, "items.get")
    assert answer is not None
    assert {"price": 1.5} == answer.payload
