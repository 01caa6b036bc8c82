# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""``proxy.service.method(**payload).call()``, into a sender that only keeps what it is given."""

from __future__ import annotations

import asyncio
import copy
import time
from concurrent.futures import Future
from typing import Any

import pytest

from tavrida.entry_point import EntryPoint
from tavrida.exceptions import CallTimeout, MessageError, WrongEntryPoint
from tavrida.messages import IncomingRequest, IncomingResponse, Notification, Request
from tavrida.proxies import Call, MethodProxy, Origin, RPCProxy, ServiceProxy, notification


class Recorder:
    """A Sender that keeps the messages, and answers calls with what it is told."""

    def __init__(self) -> None:
        self.sent: list[Request | Notification] = []
        self.asked: list[tuple[str, Request, float | None]] = []
        self.answer: IncomingResponse | Exception = IncomingResponse({"answer": 42})

    def send(self, message: Request | Notification) -> None:
        self.sent.append(message)

    def call(self, request: Request, timeout: float | None) -> IncomingResponse | None:
        self.asked.append(("call", request, timeout))
        return self.ask(request, timeout).result()

    def wait(self, request: Request, timeout: float | None) -> IncomingResponse:
        self.asked.append(("wait", request, timeout))
        return self.ask(request, timeout).result()

    async def wait_async(self, request: Request) -> IncomingResponse:
        return await asyncio.wrap_future(self.ask(request, None))

    def ask(self, request: Request, timeout: float | None) -> Future[IncomingResponse]:
        self.asked.append(("ask", request, timeout))
        future: Future[IncomingResponse] = Future()
        if isinstance(self.answer, Exception):
            future.set_exception(self.answer)
        else:
            future.set_result(self.answer)
        return future

    @property
    def only(self) -> Request | Notification:
        assert 1 == len(self.sent)
        return self.sent[0]


@pytest.fixture
def recorder() -> Recorder:
    """Takes the messages of the proxy."""
    return Recorder()


@pytest.fixture
def proxy(recorder: Recorder) -> RPCProxy:
    """What a handler of shop.sell gets while it handles a message of some chain."""
    origin = Origin(recorder, EntryPoint("shop", "sell"), "the-chain", {"old": 1, "both": 1})
    return RPCProxy(origin)


def test_cast_builds_the_whole_request(proxy: RPCProxy, recorder: Recorder) -> None:
    """Everything that the wire needs is filled in."""
    proxy.stock.take(sku=5, both=2).cast()
    request = recorder.only
    assert isinstance(request, Request)
    assert {"sku": 5, "both": 2} == request.payload
    assert {"old": 1, "both": 2, "sku": 5} == request.context
    assert (EntryPoint("shop", "sell"), EntryPoint("stock", "take")) == (
        request.source,
        request.destination,
    )
    assert ("the-chain", "", None) == (request.correlation_id, request.reply_to, request.deadline)
    assert request.request_id
    assert request.message_id not in ("", request.request_id)


def test_arguments_of_a_cast_win_over_the_chain(proxy: RPCProxy, recorder: Recorder) -> None:
    """Also by position, in the tutorial's order; the payload wins over the context."""
    proxy.stock.take(sku=5).cast("mine", {"sku": 0, "new": 1}, "audit.log")
    proxy.stock.take(sku=5).cast(
        correlation_id="mine", context={"sku": 0, "new": 1}, source=EntryPoint("audit", "log")
    )
    for request in recorder.sent:
        assert "mine" == request.correlation_id
        assert {"old": 1, "both": 1, "new": 1, "sku": 5} == request.context
        assert EntryPoint("audit", "log") == request.source


def test_first_message_of_a_chain_names_the_chain(recorder: Recorder) -> None:
    """Its message id is the correlation id of all that follows."""
    unchained = RPCProxy(Origin(recorder, EntryPoint("cron", "tick")))
    unchained.stock.take().cast()
    unchained.stock.take().call()
    unchained.publish()
    firsts = [*recorder.sent, recorder.asked[0][1]]
    assert 3 == len({each.message_id for each in firsts})
    for each in firsts:
        assert each.message_id == each.request_id == each.correlation_id


def test_each_sending_is_a_message_of_its_own(proxy: RPCProxy, recorder: Recorder) -> None:
    """One call object may be sent repeatedly, and what happens to one message stays there."""
    call = proxy.stock.take(sku=5)
    call.cast()
    recorder.sent[0].payload["sku"] = recorder.sent[0].context["sku"] = 6
    recorder.sent[0].extra_headers["x"] = 1
    call.cast()
    names = [(each.request_id, each.message_id) for each in recorder.sent]
    assert 4 == len({*names[0], *names[1]})
    second = recorder.sent[1]
    assert {"sku": 5} == second.payload
    assert 5 == second.context["sku"]
    assert {} == second.extra_headers


def test_call_passes_timeout_and_reply_to(proxy: RPCProxy, recorder: Recorder) -> None:
    """And returns what the sender makes of it."""
    response = proxy.stock.take().call(reply_to="audit", timeout=5)
    assert response is not None
    assert 42 == response["answer"]
    kind, request, timeout = recorder.asked[0]
    assert ("call", "audit", 5) == (kind, request.reply_to, timeout)


def test_wait_and_future_answer_alike(proxy: RPCProxy, recorder: Recorder) -> None:
    """The one blocks, the other ends later."""
    assert 42 == proxy.stock.take().wait(3)["answer"]
    assert 42 == proxy.stock.take().future(timeout=4).result()["answer"]
    assert [("wait", 3), ("ask", 3), ("ask", 4)] == [(k, t) for k, _, t in recorder.asked]


def test_await_answers_as_wait_does(proxy: RPCProxy, recorder: Recorder) -> None:
    """In an ``async def`` handler."""

    async def handler() -> IncomingResponse:
        return await proxy.stock.take()

    assert 42 == asyncio.run(handler())["answer"]
    recorder.answer = CallTimeout("too late")
    with pytest.raises(CallTimeout, match="too late"):
        asyncio.run(handler())


def original(**changes: Any) -> IncomingRequest:
    return IncomingRequest(
        {"sku": 1},
        {"first": 1, "old": 9},
        correlation_id="original-chain",
        request_id="original-pair",
        reply_to="caller",
        source=EntryPoint("web"),
        deadline=time.time() + 5,
    )


def test_transfer_keeps_what_the_answer_needs(proxy: RPCProxy, recorder: Recorder) -> None:
    """The answer goes to the original caller, in its chain, for its request, in its time."""
    request = original()
    proxy.stock.take(sku=2).transfer(request, context={"extra": 1})
    sent = recorder.only
    assert ("original-chain", "original-pair", "caller", request.deadline) == (
        sent.correlation_id,
        sent.request_id,
        sent.reply_to,
        sent.deadline,
    )
    assert {"old": 9, "both": 1, "first": 1, "extra": 1, "sku": 2} == sent.context
    assert {"sku": 2} == sent.payload
    assert EntryPoint("shop", "sell") == sent.source


def test_transferred_request_expects_no_answer_here_any_more(proxy: RPCProxy) -> None:
    """It would get two."""
    request = original()
    proxy.stock.take().transfer(request)
    assert not request.expects_answer


def test_request_that_could_not_be_transferred_is_still_to_be_answered(recorder: Recorder) -> None:
    """The caller hears of the error."""

    class Broken(Recorder):
        def send(self, message: Request | Notification) -> None:
            raise MessageError("no")

    request = original()
    with pytest.raises(MessageError):
        RPCProxy(Origin(Broken(), EntryPoint("shop", "sell"))).stock.take().transfer(request)
    assert request.expects_answer


def test_headers_apply_to_everything_that_follows(proxy: RPCProxy, recorder: Recorder) -> None:
    """Also to what was half written before, and to notifications; later ones win."""
    half = proxy.stock.take(sku=1)
    proxy.add_headers({"tenant": "a", "n": 1})
    half.cast()
    proxy.add_headers({"tenant": "b"})
    proxy.publish(x=1)
    proxy.publish_as("other", x=1)
    assert {"tenant": "a", "n": 1} == recorder.sent[0].extra_headers
    assert {"tenant": "b", "n": 1} == recorder.sent[1].extra_headers
    assert {"tenant": "b", "n": 1} == recorder.sent[2].extra_headers


@pytest.mark.parametrize("headers", [{"reply_to": "x"}, {"n": 1.5}, {1: "x"}])
def test_header_that_cannot_be_sent_is_refused_and_none_is_added(
    proxy: RPCProxy, recorder: Recorder, headers: dict[Any, Any]
) -> None:
    """At the line that adds it."""
    with pytest.raises(MessageError):
        proxy.add_headers({"good": 1, **headers})
    proxy.stock.take().cast()
    assert {} == recorder.only.extra_headers


def test_notification_has_the_handling_entry_point_as_its_topic(
    proxy: RPCProxy, recorder: Recorder
) -> None:
    """And carries the chain on."""
    proxy.publish(sku=5)
    sent = recorder.only
    assert isinstance(sent, Notification)
    assert (EntryPoint("shop", "sell"), None) == (sent.source, sent.destination)
    assert {"sku": 5} == sent.payload
    assert {"old": 1, "both": 1, "sku": 5} == sent.context
    assert "the-chain" == sent.correlation_id
    assert "" not in (sent.message_id, sent.request_id)


def test_notification_may_name_another_topic_of_the_service(
    proxy: RPCProxy, recorder: Recorder
) -> None:
    """The service stays, and later notifications are not changed."""
    proxy.publish_as("sold", sku=5)
    proxy.publish(sku=6)
    assert ["shop.sold", "shop.sell"] == [str(each.source) for each in recorder.sent]


def test_source_without_a_method_is_no_topic(recorder: Recorder) -> None:
    """The error says what to write."""
    with pytest.raises(
        WrongEntryPoint, match=r"'cron' names no method.*such as 'test_hello\.hello'"
    ):
        notification(Origin(recorder, EntryPoint("cron")), {})


@pytest.mark.parametrize("name", ["self", "service", "method", "payload", "origin", "größe"])
def test_payload_may_have_any_key(proxy: RPCProxy, recorder: Recorder, name: str) -> None:
    """No name of ours is in the way."""
    proxy.stock.take(**{name: 1}).cast()
    proxy.publish(**{name: 1})
    proxy.publish_as("x", **{name: 1})
    assert [{name: 1}] * 3 == [message.payload for message in recorder.sent]


def test_names_that_are_no_attributes_are_taken_in_brackets(
    proxy: RPCProxy, recorder: Recorder
) -> None:
    """Such as those with a dash, a leading underscore, or of the proxy's own methods."""
    proxy["publish"]["add_headers"]().cast()
    proxy["my-service"]["_x"]().cast()
    proxy.stock["take"]().cast()
    assert ["publish.add_headers", "my-service._x", "stock.take"] == [
        str(message.destination) for message in recorder.sent
    ]


@pytest.mark.parametrize(
    ("service", "method"),
    [
        ("a.b", "c"),
        ("a", "b.c"),
        ("", "x"),
        ("x", ""),
        ("a.b", ""),
        (None, "x"),
        ("x", None),
        ("ü", "x"),
    ],
)
def test_wrong_name_is_refused_before_anything_is_sent(
    proxy: RPCProxy, service: Any, method: Any
) -> None:
    """Nothing is quietly sent to a service called None."""
    with pytest.raises(WrongEntryPoint):
        proxy[service][method]


def test_copying_and_probing_a_proxy_sends_nothing(proxy: RPCProxy, recorder: Recorder) -> None:
    """Debuggers and libraries ask for private attributes and take any answer for a yes."""
    for thing in (proxy, proxy.stock, proxy.stock.take):
        assert not hasattr(thing, "_private")
        assert not hasattr(thing, "__deepcopy__")
        assert type(thing) is type(copy.copy(thing))
    assert [] == recorder.sent


def test_each_step_of_the_sentence_is_of_its_class(proxy: RPCProxy) -> None:
    """And a call that was not sent says so, for those who forget."""
    assert isinstance(proxy.stock, ServiceProxy)
    assert isinstance(proxy.stock.take, MethodProxy)
    call = proxy.stock.take(sku=1)
    assert isinstance(call, Call)
    assert "<Call of stock.take: not sent until .call() or .cast()>" == repr(call)
