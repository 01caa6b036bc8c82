# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The decorators, and the handlers of one controller."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from tavrida import dispatcher, messages
from tavrida.dispatcher import Dispatcher, Mark, place_of, service_of
from tavrida.entry_point import EntryPoint
from tavrida.exceptions import ConfigError, HandlerConflict, InvalidHandler, WrongEntryPoint
from tavrida.service import ServiceController

DECORATORS = [
    (dispatcher.rpc_method, messages.REQUEST),
    (dispatcher.rpc_response_method, messages.RESPONSE),
    (dispatcher.rpc_error_method, messages.ERROR),
    (dispatcher.subscription_method, messages.NOTIFICATION),
]


@dispatcher.rpc_service("shop")
class Shop(ServiceController):
    @dispatcher.rpc_method(service="shop", method="sell")
    def sell(self, request: Any, proxy: Any, count: int = 1) -> Any:
        return count

    @dispatcher.rpc_method(service="shop", method="wait")
    async def wait(self, request: Any, proxy: Any) -> None: ...

    @dispatcher.rpc_response_method(service="stock", method="take")
    def taken(self, response: Any, proxy: Any) -> None: ...

    @dispatcher.rpc_error_method(service="stock", method="take")
    def not_taken(self, error: Any, proxy: Any) -> None: ...

    @dispatcher.subscription_method(service="stock", method="empty")
    @dispatcher.subscription_method(service="stock", method="full")
    def changed(self, notification: Any, proxy: Any) -> None: ...

    def helper(self, request: Any, proxy: Any) -> None: ...


def mark(kind: str, entry_point: str) -> Mark:
    return Mark(kind, EntryPoint.parse(entry_point))


def test_every_marked_method_is_a_handler_and_nothing_else() -> None:
    """All four kinds; one method may handle several messages."""
    handlers = Dispatcher(Shop()).handlers
    assert {
        mark("request", "shop.sell"): "sell",
        mark("request", "shop.wait"): "wait",
        mark("response", "stock.take"): "taken",
        mark("error", "stock.take"): "not_taken",
        mark("notification", "stock.empty"): "changed",
        mark("notification", "stock.full"): "changed",
    } == {key: handler.function.__name__ for key, handler in handlers.items()}


def test_handler_is_ready_to_run() -> None:
    """Bound to its controller, with its arguments, and with a place for messages."""
    shop = Shop()
    handler = Dispatcher(shop).handlers[mark("request", "shop.sell")]
    assert 5 == handler.function(None, None, **handler.arguments({"count": 5}))
    assert shop is handler.controller
    assert "shop" == handler.service
    assert handler.place.startswith(f"{__name__}.Shop.sell (")
    assert "test_dispatcher.py:" in handler.place


def test_async_handlers_are_known_as_such() -> None:
    """They run on the event loop, the others in threads."""
    handlers = Dispatcher(Shop()).handlers
    assert handlers[mark("request", "shop.wait")].is_async
    assert not handlers[mark("request", "shop.sell")].is_async


def test_error_handlers_take_nothing_of_the_payload() -> None:
    """It has class, message and code, which are in the error itself."""
    handler = Dispatcher(Shop()).handlers[mark("error", "stock.take")]
    assert {} == handler.arguments({"class": "X", "message": "y", "code": 1})


def test_subscriptions_are_the_notifications_that_are_handled() -> None:
    """The topology binds them."""
    assert {"stock.empty", "stock.full"} == {
        str(each.entry_point) for each in Dispatcher(Shop()).subscriptions()
    }


@pytest.mark.parametrize(("decorator", "kind"), DECORATORS)
def test_decorators_return_the_function_itself(
    decorator: Callable[[str, str], Any], kind: str
) -> None:
    """They only mark: a handler can still be called in a test of its author."""

    def handler(self: Any, message: Any, proxy: Any) -> None: ...

    assert handler is decorator("stock", "take")(handler)


@pytest.mark.parametrize(("decorator", "kind"), DECORATORS)
@pytest.mark.parametrize(
    ("service", "method"),
    [
        ("", "x"),
        ("x", ""),
        ("a.b", "c"),
        ("a", "b.c"),
        ("a", "*"),
        ("größe", "x"),
        (None, "x"),
        ("x", None),
        ("x", 5),
        (b"x", "y"),
    ],
)
def test_decorator_with_a_wrong_name_fails_at_once(
    decorator: Callable[[Any, Any], Any], kind: str, service: Any, method: Any
) -> None:
    """The traceback shows the very line; None is no name either."""
    with pytest.raises(WrongEntryPoint):
        decorator(service, method)


@pytest.mark.parametrize("name", ["", "a.b", "a b", None, 5, Shop])
def test_service_with_a_wrong_name_fails_at_once(name: Any) -> None:
    """Also where the parentheses were forgotten."""
    with pytest.raises(WrongEntryPoint, match="is no name"):
        dispatcher.rpc_service(name)


@pytest.mark.parametrize(
    "thing", [Shop, staticmethod(print), functools.partial(print), property(print), 5, None, Shop()]
)
def test_decorator_over_something_else_than_a_method_is_refused(thing: Any) -> None:
    """Decorators of the same method in the wrong order, mostly."""
    with pytest.raises(
        InvalidHandler, match=r"the request of shop\.x stands over .* over a method"
    ):
        dispatcher.rpc_method("shop", "x")(thing)


@pytest.mark.parametrize("thing", [print, Shop(), "shop", None])
def test_service_decorator_over_something_else_than_a_class_is_refused(thing: Any) -> None:
    """It names what it stands over."""
    with pytest.raises(InvalidHandler, match="belongs over a class"):
        dispatcher.rpc_service("shop")(thing)


def test_controller_without_a_service_is_told_what_to_write() -> None:
    """The class is named, with its file."""

    class Nameless(ServiceController):
        @dispatcher.rpc_method("shop", "sell")
        def sell(self, request: Any, proxy: Any) -> None: ...

    with pytest.raises(
        InvalidHandler, match=r"Nameless \(.*test_dispatcher\.py:\d+\) does not say"
    ):
        Dispatcher(Nameless())
    with pytest.raises(InvalidHandler, match=r'put @dispatcher\.rpc_service\("NAME"\)'):
        service_of(Nameless)


def test_controller_without_handlers_is_told_what_to_write() -> None:
    """It could never do anything."""

    @dispatcher.rpc_service("idle")
    class Idle(ServiceController): ...

    with pytest.raises(InvalidHandler, match=r'Idle .* has no handlers: .*service="idle"'):
        Dispatcher(Idle())


def test_two_handlers_of_one_message_are_both_named() -> None:
    """With the places of both."""

    @dispatcher.rpc_service("shop")
    class Double(ServiceController):
        @dispatcher.rpc_method("shop", "sell")
        def one(self, request: Any, proxy: Any) -> None: ...

        @dispatcher.rpc_method("shop", "sell")
        def two(self, request: Any, proxy: Any) -> None: ...

    with pytest.raises(HandlerConflict) as caught:
        Dispatcher(Double())
    text = str(caught.value)
    assert "Double.two (" in text
    assert "Double.one (" in text
    assert "both handle the request of shop.sell" in text


def test_response_and_error_of_one_method_are_two_messages() -> None:
    """They share an entry point and do not conflict."""
    assert 2 == sum("stock.take" == str(m.entry_point) for m in Dispatcher(Shop()).handlers)


def test_a_handler_whose_messages_could_have_no_source_is_refused() -> None:
    """Before it serves, and not at each delivery: the names are too long together."""

    @dispatcher.rpc_service("s" * 200)
    class Long(ServiceController):
        @dispatcher.subscription_method(service="shop", method="m" * 100)
        def sold(self, notification: Any, proxy: Any) -> None: ...

    with pytest.raises(
        InvalidHandler, match=r"Long\.sold .* 's+' .* 'm+' .* more than 255 .* shorten"
    ):
        Dispatcher(Long())


def test_requests_to_another_service_cannot_be_handled() -> None:
    """They would never arrive."""

    @dispatcher.rpc_service("shop")
    class Wrong(ServiceController):
        @dispatcher.rpc_method("stock", "take")
        def take(self, request: Any, proxy: Any) -> None: ...

    with pytest.raises(
        InvalidHandler, match=r"Wrong\.take .* stock\.take, but its class serves 'shop'"
    ):
        Dispatcher(Wrong())


def test_error_handler_with_parameters_is_refused() -> None:
    """It would never get them."""

    @dispatcher.rpc_service("shop")
    class Wrong(ServiceController):
        @dispatcher.rpc_error_method("stock", "take")
        def failed(self, error: Any, proxy: Any, **rest: Any) -> None: ...

    with pytest.raises(InvalidHandler, match=r"failed .*\(self, error, proxy\) and nothing else"):
        Dispatcher(Wrong())


def test_every_wrong_handler_is_told_at_once() -> None:
    """Nobody has to start the server three times."""

    @dispatcher.rpc_service("shop")
    class Wrong(ServiceController):
        @dispatcher.rpc_method("shop", "one")
        def one(self) -> None: ...

        @dispatcher.rpc_method("shop", "two")
        def two(self, request: Any, proxy: Any, *rest: Any) -> None: ...

        @dispatcher.rpc_method("stock", "three")
        def three(self, request: Any, proxy: Any) -> None: ...

    with pytest.raises(ConfigError) as caught:
        Dispatcher(Wrong())
    assert 3 == len(caught.value.faults)


def test_handlers_are_inherited_and_overridden_as_methods_are() -> None:
    """A subclass without a name of its own serves what its base serves."""

    class Branch(Shop):
        @dispatcher.rpc_method("shop", "sell")
        def sell(self, request: Any, proxy: Any, count: int = 1) -> Any:
            return 2 * count

        @dispatcher.rpc_method("shop", "close")
        def close(self, request: Any, proxy: Any) -> None: ...

    handlers = Dispatcher(Branch()).handlers
    assert 10 == handlers[mark("request", "shop.sell")].function(None, None, count=5)
    assert mark("request", "shop.close") in handlers
    assert mark("request", "shop.close") not in Dispatcher(Shop()).handlers


def test_marks_of_one_class_do_not_show_in_another() -> None:
    """Two classes with one base that has handlers of answers: each has its own handler objects."""

    class Base(ServiceController):
        @dispatcher.rpc_response_method("stock", "take")
        def taken(self, response: Any, proxy: Any) -> str:
            return type(self).__name__

    @dispatcher.rpc_service("a")
    class A(Base):
        @dispatcher.rpc_method("a", "go")
        def go(self, request: Any, proxy: Any) -> None: ...

    @dispatcher.rpc_service("b")
    class B(Base): ...

    a, b = Dispatcher(A()), Dispatcher(B())
    answer = mark("response", "stock.take")
    assert ("a", "b") == (a.handlers[answer].service, b.handlers[answer].service)
    assert ("A", "B") == (
        a.handlers[answer].function(None, None),
        b.handlers[answer].function(None, None),
    )
    assert [answer] == list(b.handlers)
    with pytest.raises(InvalidHandler):
        service_of(Base)


def test_handler_that_a_subclass_took_away_is_gone() -> None:
    """``name = None`` is how Python takes a method away."""

    class Closed(Shop):
        sell = None  # type: ignore[assignment]

    assert mark("request", "shop.sell") not in Dispatcher(Closed()).handlers


def test_static_and_class_methods_are_handlers_too() -> None:
    """A marked one is never passed over in silence."""

    @dispatcher.rpc_service("shop")
    class Mixed(ServiceController):
        @staticmethod
        @dispatcher.rpc_method("shop", "static")
        def static(request: Any, proxy: Any, x: int) -> Any:
            return x

        @classmethod
        @dispatcher.rpc_method("shop", "of_class")
        def of_class(cls, request: Any, proxy: Any, x: int) -> Any:
            return x

        @dispatcher.rpc_method("shop", "plain")
        def plain(self, request: Any, proxy: Any, x: int) -> Any:
            return x

    handlers = Dispatcher(Mixed()).handlers
    assert 3 == len(handlers)
    for handler in handlers.values():
        assert 7 == handler.function(None, None, **handler.arguments({"x": 7}))


def test_decorators_of_a_users_own_may_stand_on_either_side() -> None:
    """With functools.wraps both orders work, and the wrapper runs."""
    ran: list[str] = []

    def logged(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            ran.append(function.__name__)
            return function(*args, **kwargs)

        return wrapper

    @dispatcher.rpc_service("shop")
    class Logged(ServiceController):
        @logged
        @dispatcher.rpc_method("shop", "outer")
        def outer(self, request: Any, proxy: Any, x: int) -> Any:
            return x

        @dispatcher.rpc_method("shop", "inner")
        @logged
        def inner(self, request: Any, proxy: Any, x: int) -> Any:
            return x

    for handler in Dispatcher(Logged()).handlers.values():
        assert 7 == handler.function(None, None, **handler.arguments({"x": 7}))
    assert ["outer", "inner"] == ran


def test_generators_are_no_handlers() -> None:
    """A forgotten ``yield`` makes a handler whose body never runs: told at start."""

    def plain(self: Any, request: Any, proxy: Any) -> Iterator[int]:
        yield 1

    async def asynchronous(self: Any, request: Any, proxy: Any) -> AsyncIterator[int]:
        yield 1

    for function in (plain, asynchronous):

        @dispatcher.rpc_service("shop")
        class Lazy(ServiceController):
            go = dispatcher.rpc_method("shop", "go")(function)

        with pytest.raises(InvalidHandler, match=r"yield|generator"):
            Dispatcher(Lazy())


def test_attributes_that_answer_to_any_name_are_no_handlers() -> None:
    """Proxies, mocks and query builders say yes to every hasattr."""

    class Eager:
        def __getattr__(self, name: str) -> int:
            return 5

    class Client(Shop):
        eager = Eager()

    assert Dispatcher(Shop()).handlers.keys() == Dispatcher(Client()).handlers.keys()


def test_place_of_what_has_no_file_is_its_name() -> None:
    """Classes of a prompt have no lines to show."""
    names: dict[str, Any] = {"__name__": "prompt"}
    exec("class Typed: pass", names)  # noqa: S102
    assert "prompt.Typed" == place_of(names["Typed"])
