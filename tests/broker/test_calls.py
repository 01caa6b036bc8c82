# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Requests and their answers, on every transport."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Annotated, Any

import msgspec
import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from tavrida import discovery, dispatcher, exceptions, messages
from tavrida.config import ConnectionConfig
from tavrida.service import ServiceController
from tests.broker.conftest import EXCHANGE, QUEUE, Connect, Serve, next_of
from tests.waiting import DEADLINE, eventually


@dataclass
class Item:
    name: str
    price: Annotated[int, msgspec.Meta(ge=0)]


class NotFound(Exception):
    code = 4711


@dispatcher.rpc_service("shop")
class Shop(ServiceController):
    """One method a behaviour."""

    handled: SimpleQueue[Any] = SimpleQueue()

    @dispatcher.rpc_method(service="shop", method="echo")
    def echo(self, request: Any, proxy: Any, **values: Any) -> dict[str, Any]:
        return values

    @dispatcher.rpc_method(service="shop", method="aecho")
    async def aecho(self, request: Any, proxy: Any, **values: Any) -> dict[str, Any]:
        return values

    @dispatcher.rpc_method(service="shop", method="buy")
    def buy(self, request: Any, proxy: Any, items: list[Item], note: str = "none") -> Item:
        return Item(note, sum(item.price for item in items))

    @dispatcher.rpc_method(service="shop", method="nothing")
    def nothing(self, request: Any, proxy: Any) -> None:
        self.handled.put(request)

    @dispatcher.rpc_method(service="shop", method="empty")
    def empty(self, request: Any, proxy: Any) -> dict[str, Any]:
        return {}

    @dispatcher.rpc_method(service="shop", method="fails")
    def fails(self, request: Any, proxy: Any) -> None:
        raise NotFound("no such thing")

    @dispatcher.rpc_method(service="shop", method="afails")
    async def afails(self, request: Any, proxy: Any) -> None:
        raise NotFound("no such thing")

    @dispatcher.rpc_method(service="shop", method="exits")
    def exits(self, request: Any, proxy: Any) -> None:
        raise SystemExit(3)

    @dispatcher.rpc_method(service="shop", method="error")
    def error(self, request: Any, proxy: Any) -> messages.Error:
        return messages.Error({"class": "Custom", "message": "made by hand", "code": 7})

    @dispatcher.rpc_method(service="shop", method="response")
    def response(self, request: Any, proxy: Any) -> messages.Response:
        return messages.Response({"a": 1}, extra_headers={"trace": "t1"})

    @dispatcher.rpc_method(service="shop", method="strange")
    def strange(self, request: Any, proxy: Any) -> Any:
        return 42

    @dispatcher.rpc_method(service="shop", method="unwritable")
    def unwritable(self, request: Any, proxy: Any) -> Any:
        return {"thing": object()}

    @dispatcher.rpc_method(service="shop", method="huge")
    def huge(self, request: Any, proxy: Any) -> Any:
        return {"text": "x" * 2000}

    @dispatcher.rpc_method(service="shop", method="slow")
    def slow(self, request: Any, proxy: Any, seconds: float) -> dict[str, Any]:
        time.sleep(seconds)
        return {"slept": seconds}

    @dispatcher.rpc_method(service="shop", method="aslow")
    async def aslow(self, request: Any, proxy: Any, seconds: float) -> dict[str, Any]:
        await asyncio.sleep(seconds)
        return {"slept": seconds}


@pytest.mark.parametrize("method", ["echo", "aecho"])
def test_a_call_returns_what_the_handler_returned(
    serve: Serve, connect: Connect, method: str
) -> None:
    """Plain and async handlers answer alike; the response shows payload, context and headers."""
    serve(Shop)
    answer = connect("shop").shop[method](a=1, b=["ü", None]).call(timeout=DEADLINE)
    assert {"a": 1, "b": ["ü", None]} == answer.payload
    assert 1 == answer["a"]
    assert {"a": 1, "b": ["ü", None]} == answer.context
    assert f"shop.{method}" == answer.headers["source"]
    assert "response" == answer.headers["message_type"]


@pytest.mark.parametrize("serializer", ["json", "msgpack"])
def test_an_answer_uses_the_serializer_of_its_request(
    serve: Serve, connect: Connect, serializer: str
) -> None:
    """A server that writes JSON answers MessagePack in MessagePack."""
    serve(Shop)
    answer = connect("shop", serializer=serializer).shop.echo(a=[1.5]).call(timeout=DEADLINE)
    assert {"a": [1.5]} == answer.payload
    assert f"application/{serializer}" == answer.content_type


@pytest.mark.parametrize("method", ["nothing", "empty"])
def test_none_and_an_empty_dict_answer_with_an_empty_payload(
    serve: Serve, connect: Connect, method: str
) -> None:
    """No answer is no option."""
    serve(Shop)
    assert {} == connect("shop").shop[method]().call(timeout=DEADLINE).payload


def test_typed_payloads_are_converted_on_the_way_in_and_written_on_the_way_out(
    serve: Serve, connect: Connect
) -> None:
    """Annotations decide; unknown keys are ignored, absent ones keep the function's default."""
    serve(Shop)
    shop = connect(service="shop", discovery=_known("shop"))
    items = [{"name": "a", "price": 2}, {"name": "b", "price": 3}]
    assert {"name": "none", "price": 5} == shop.buy(items=items, unknown=1).call().payload


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ({}, "missing required field `items`"),
        ({"items": "x"}, "Expected `array`, got `str` - at `$.items`"),
        ({"items": [{"name": "a", "price": -1}]}, "at `$.items[0].price`"),
    ],
)
def test_a_payload_that_does_not_fit_is_answered_with_its_path_and_reason(
    serve: Serve, connect: Connect, payload: dict[str, Any], reason: str
) -> None:
    """The handler is not run; the caller learns what to mend."""
    serve(Shop)
    with pytest.raises(exceptions.RemoteError) as caught:
        connect("shop").shop.buy(**payload).call(timeout=DEADLINE)
    assert "InvalidPayload" == caught.value.error_class
    assert exceptions.InvalidPayload.code == caught.value.code
    assert reason in caught.value.message


@pytest.mark.parametrize(
    ("method", "error_class", "message", "code"),
    [
        ("fails", "NotFound", "no such thing", 4711),
        ("afails", "NotFound", "no such thing", 4711),
        ("exits", "SystemExit", "3", 3),
        ("error", "Custom", "made by hand", 7),
        ("strange", "UnknownResult", "returned int", 1009),
        ("unwritable", "MessageError", "'thing'", 1001),
        ("ecko", "HandlerNotFound", "did you mean 'shop.echo'?", 1004),
    ],
)
def test_whatever_goes_wrong_in_a_handler_reaches_its_caller(
    serve: Serve, connect: Connect, method: str, error_class: str, message: str, code: int
) -> None:
    """Class, message and code of the remote exception; and the server goes on."""
    serve(Shop)
    shop = connect("shop").shop
    with pytest.raises(exceptions.RemoteError) as caught:
        shop[method]().call(timeout=DEADLINE)
    assert (error_class, code) == (caught.value.error_class, caught.value.code)
    assert message in caught.value.message
    assert {} == shop.empty().call(timeout=DEADLINE).payload


def test_an_answer_that_is_too_large_becomes_an_error(
    serve: Serve, connect: Connect, url: str
) -> None:
    """The limit is the server's; nothing over it is sent."""
    small = ConnectionConfig(url=(url,), async_engine=True, max_message_size=1000)
    serve(Shop, config=small)
    with pytest.raises(exceptions.RemoteError, match=r"MessageTooLarge.*max_message_size"):
        connect("shop").shop.huge().call(timeout=DEADLINE)


def test_a_request_that_is_too_large_is_refused_before_it_is_sent(
    connect: Connect, url: str
) -> None:
    """The error names size and limit."""
    small = ConnectionConfig(url=(url,), max_message_size=1000)
    with pytest.raises(exceptions.MessageTooLarge, match="max_message_size allows 1000"):
        connect("shop", config=small).shop.echo(text="x" * 2000).cast()


def test_headers_that_a_handler_adds_to_its_answer_arrive(serve: Serve, connect: Connect) -> None:
    """A Response carries headers of the user's."""
    serve(Shop)
    answer = connect("shop").shop.response().call(timeout=DEADLINE)
    assert ({"a": 1}, "t1") == (answer.payload, answer.headers["trace"])


def test_no_answer_in_time_is_a_call_timeout(serve: Serve, connect: Connect) -> None:
    """It comes at the time that was given, names the service, and the client goes on."""
    serve(Shop, graceful_timeout=0.1)
    shop = connect("shop").shop
    shop.empty().call()
    began = time.monotonic()
    with pytest.raises(exceptions.CallTimeout, match=r"shop\.aslow"):
        shop.aslow(seconds=30.0).call(timeout=0.2)
    assert 0.2 <= time.monotonic() - began < 5
    assert {} == shop.empty().call(timeout=DEADLINE).payload


def test_deadlines_outlive_a_callback_that_wants_to_end_the_program(
    serve: Serve, connect: Connect
) -> None:
    """It is called where one deadline passes, on the loop that has to see to all others."""
    serve(Shop, graceful_timeout=0.1)
    shop = connect("shop").shop
    shop.empty().call()
    called = threading.Event()

    def leave(ended: Any) -> None:
        called.set()
        raise SystemExit(1)

    shop.aslow(seconds=30.0).future(timeout=0.2).add_done_callback(leave)
    assert called.wait(DEADLINE)
    began = time.monotonic()
    with pytest.raises(exceptions.CallTimeout):
        shop.aslow(seconds=5.0).call(timeout=0.2)
    assert time.monotonic() - began < 5


def test_an_expired_request_is_not_run(serve: Serve, connect: Connect) -> None:
    """Its caller gave up while it waited behind another one."""
    Shop.handled = SimpleQueue()
    serve(Shop, concurrency=1)
    shop = connect("shop").shop
    first = shop.slow(seconds=0.5).future()
    with pytest.raises(exceptions.CallTimeout):
        shop.nothing().call(timeout=0.1)
    assert 0.5 == first.result(DEADLINE)["slept"]
    shop.empty().call(timeout=DEADLINE)
    assert Shop.handled.empty()


@pytest.mark.parametrize("exchange", ["", "amq.topic", "never_declared"])
def test_a_service_that_nobody_runs_is_told_at_once(
    connect: Connect, config: ConnectionConfig, exchange: str
) -> None:
    """Not after the time-out: ServiceUnavailable names service, exchange and routing key."""
    known = discovery.LocalDiscovery()
    known.register_remote_service("nobody", exchange or "amq.topic")
    client = connect(discovery=known)
    began = time.monotonic()
    for send in (client.nobody.x().cast, lambda: client.nobody.x().call(timeout=30)):
        with pytest.raises(exceptions.ServiceUnavailable, match=r"'nobody'.*nobody\.x"):
            send()
    assert time.monotonic() - began < 5


def test_a_missing_exchange_does_not_disturb_other_calls_in_flight(
    serve: Serve, connect: Connect
) -> None:
    """RabbitMQ closes the channel over it; what else was on its way is sent again."""
    serve(Shop, concurrency=20)
    known = _known("shop")
    known.register_remote_service("nobody", "never_declared")
    client = connect(discovery=known)
    good = [client.shop.aslow(seconds=0.05).future() for _ in range(20)]
    bad = [client.nobody.x().future() for _ in range(3)]
    good += [client.shop.aecho(n=n).future() for n in range(20)]
    for future in bad:
        with pytest.raises(exceptions.ServiceUnavailable):
            future.result(DEADLINE)
    assert [{"n": n} for n in range(20)] == [f.result(DEADLINE).payload for f in good[20:]]
    assert [{"slept": 0.05}] * 20 == [f.result(DEADLINE).payload for f in good[:20]]


def test_many_threads_share_one_client(serve: Serve, connect: Connect) -> None:
    """Every thread gets its own answers."""
    serve(Shop)
    shop = connect("shop").shop
    with ThreadPoolExecutor(16) as pool:
        answers = pool.map(lambda n: shop.echo(n=n).call(timeout=DEADLINE)["n"], range(400))
    assert list(range(400)) == list(answers)


def test_a_thousand_calls_are_in_flight_on_one_connection(serve: Serve, connect: Connect) -> None:
    """They are not run one after another: 1000 handlers of 100 ms end in far less than 100 s."""
    serve(Shop, concurrency=1000)
    shop = connect("shop").shop
    shop.empty().call()
    began = time.monotonic()
    futures = [shop.aslow(seconds=0.1).future() for _ in range(1000)]
    assert [0.1] * 1000 == [future.result(DEADLINE)["slept"] for future in futures]
    assert time.monotonic() - began < 10


def test_one_handler_at_a_time_keeps_the_order_of_the_queue(
    serve: Serve, connect: Connect, url: str
) -> None:
    """async_engine=False, the tutorial's default: no two handlers overlap, async or not."""
    log: list[str] = []

    @dispatcher.rpc_service("line")
    class Line(ServiceController):
        @dispatcher.rpc_method(service="line", method="sync")
        def sync(self, request: Any, proxy: Any, n: int) -> None:
            log.append(f"begin {n}")
            time.sleep(0.005)
            log.append(f"end {n}")

        @dispatcher.rpc_method(service="line", method="async_")
        async def async_(self, request: Any, proxy: Any, n: int) -> None:
            log.append(f"begin {n}")
            await asyncio.sleep(0.005)
            log.append(f"end {n}")

    serve(Line, config=ConnectionConfig(url=(url,)))
    client = connect("line")
    for n in range(20):
        (client.line.async_ if n % 3 else client.line.sync)(n=n).cast()
    eventually(lambda: len(log) == 40)
    assert [f"{what} {n}" for n in range(20) for what in ("begin", "end")] == log


def test_concurrency_limits_how_many_handlers_run_side_by_side(
    serve: Serve, connect: Connect
) -> None:
    """Never more than the option says, plain and async together; and as many as that."""
    lock, running, most = threading.Lock(), 0, 0

    def enter(by: int) -> None:
        nonlocal running, most
        with lock:
            running += by
            most = max(most, running)

    @dispatcher.rpc_service("busy")
    class Busy(ServiceController):
        @dispatcher.rpc_method(service="busy", method="sync")
        def sync(self, request: Any, proxy: Any) -> None:
            enter(1)
            time.sleep(0.02)
            enter(-1)

        @dispatcher.rpc_method(service="busy", method="async_")
        async def async_(self, request: Any, proxy: Any) -> None:
            enter(1)
            await asyncio.sleep(0.02)
            enter(-1)

    serve(Busy, concurrency=4, prefetch=50)
    busy = connect("busy").busy
    futures = [(busy.sync if n % 2 else busy.async_)().future() for n in range(40)]
    for future in futures:
        future.result(DEADLINE)
    assert 4 == most


def test_a_client_without_tavrida_calls_with_plain_json_and_gets_plain_json(
    serve: Serve, channel: BlockingChannel
) -> None:
    """The classic reply-to and correlation-id pattern; an error has its type in the property."""
    serve(Shop)
    reply = channel.queue_declare("", exclusive=True).method.queue
    for method, body in (("echo", {"a": 1}), ("fails", {})):
        channel.basic_publish(
            EXCHANGE,
            f"shop.{method}",
            json.dumps(body).encode(),
            pika.BasicProperties(reply_to=reply, correlation_id=f"c-{method}"),
        )
    answers: dict[str, tuple[str, Any]] = {}
    for _ in range(2):
        _, properties, text = next_of(channel, reply)
        answers[str(properties.correlation_id)] = (str(properties.type), json.loads(text))
    assert ("response", {"a": 1}) == answers["c-echo"]
    kind, error = answers["c-fails"]
    assert ("error", "NotFound", 4711) == (kind, error["class"], error["code"])


def test_a_foreign_service_that_copies_only_the_correlation_id_can_be_called(
    connect: Connect, channel: BlockingChannel
) -> None:
    """Whoever answers the classic way answers tavrida too."""
    channel.queue_declare(QUEUE, durable=True)
    channel.exchange_declare(EXCHANGE, "topic", durable=True)
    channel.queue_bind(QUEUE, EXCHANGE, "foreign.*")
    future = connect("foreign").foreign.add(a=1, b=2).future(timeout=DEADLINE)
    tag, properties, body = next_of(channel, QUEUE)
    payload = json.loads(body)["payload"]
    channel.basic_publish(
        "",
        str(properties.reply_to),
        json.dumps({"sum": payload["a"] + payload["b"]}).encode(),
        pika.BasicProperties(correlation_id=properties.correlation_id),
    )
    channel.basic_ack(tag)
    assert {"sum": 3} == future.result(DEADLINE).payload


def test_a_late_answer_is_dropped_and_counted(serve: Serve, connect: Connect) -> None:
    """Whoever waited is gone; nothing piles up."""
    serve(Shop)
    client = connect("shop")
    client.shop.empty().call(timeout=DEADLINE)
    with pytest.raises(exceptions.CallTimeout):
        client.shop.aslow(seconds=0.8).call(timeout=0.4)
    link = client._sender._link
    assert link is not None
    assert eventually(lambda: link.caller.late_answers) == 1
    assert {} == link.caller._waiters


def test_calls_that_have_ended_are_not_kept_until_their_deadlines(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory follows the calls under way; those with a shorter time still end by it."""
    monkeypatch.setattr("tavrida.calls.ENDED", 20)
    serve(Shop, graceful_timeout=0.1)
    client = connect("shop")
    waiting = client.shop.aslow(seconds=30).future(timeout=DEADLINE)
    for _ in range(200):
        client.shop.empty().call(timeout=DEADLINE)
    link = client._sender._link
    assert link is not None
    assert len(link.caller._deadlines) + len(link.caller._new) <= 2 * 20 + 2 * 2 + 1
    began = time.monotonic()
    with pytest.raises(exceptions.CallTimeout):
        client.shop.aslow(seconds=30).call(timeout=0.3)
    assert 0.3 <= time.monotonic() - began < 3
    assert waiting.cancel()
    eventually(lambda: not link.caller._waiters)


def test_closing_a_client_ends_calls_that_wait(serve: Serve, connect: Connect) -> None:
    """With CallInterrupted, at once; after that the client says that it is closed."""
    serve(Shop, graceful_timeout=0.1)
    client = connect("shop")
    client.shop.empty().call(timeout=DEADLINE)
    future = client.shop.aslow(seconds=30).future()
    client.close()
    with pytest.raises(exceptions.CallInterrupted):
        future.result(DEADLINE)
    with pytest.raises(exceptions.ConnectionFailed, match="closed"):
        client.shop.empty().call()
    client.close()


def _known(*services: str) -> discovery.LocalDiscovery:
    known = discovery.LocalDiscovery()
    for service in services:
        known.register_remote_service(service, EXCHANGE)
    return known
