# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""How calls end, one test an ending, on every transport. None of them ends with a hang."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

import pytest

from tavrida import discovery, dispatcher, exceptions
from tavrida.calls import Caller
from tavrida.client import RPCClient
from tavrida.config import ConnectionConfig
from tavrida.messages import Message
from tavrida.middleware import Middleware
from tavrida.service import ServiceController
from tavrida.testing import faults
from tavrida.testing.faults import Faults
from tests.broker.conftest import EXCHANGE, Connect, Serve
from tests.waiting import DEADLINE, eventually

#: Seconds. What ends "at once" takes less, and far less than the time-out of its call.
AT_ONCE = 5.0


class NotFound(Exception):
    code = 4711


class Unserved(BaseException):
    """No Exception, as SystemExit is none."""


@dispatcher.rpc_service("end")
class Service(ServiceController):
    """One method an ending."""

    gate = threading.Event()
    seen: SimpleQueue[Any] = SimpleQueue()
    raised: BaseException = NotFound()

    @dispatcher.rpc_method(service="end", method="answers")
    def answers(self, request: Any, proxy: Any, n: int = 0) -> dict[str, Any]:
        self.seen.put(n)
        return {"n": n}

    @dispatcher.rpc_method(service="end", method="raises")
    def raises(self, request: Any, proxy: Any) -> None:
        raise self.raised

    @dispatcher.rpc_method(service="end", method="araises")
    async def araises(self, request: Any, proxy: Any) -> None:
        raise self.raised

    @dispatcher.rpc_method(service="end", method="gated")
    def gated(self, request: Any, proxy: Any, n: int = 0) -> dict[str, Any]:
        self.seen.put(n)
        assert self.gate.wait(DEADLINE)
        return {"n": n}

    @dispatcher.rpc_method(service="end", method="strange")
    def strange(self, request: Any, proxy: Any) -> Any:
        return 42

    @dispatcher.rpc_method(service="end", method="unwritable")
    def unwritable(self, request: Any, proxy: Any) -> Any:
        return {"thing": object()}

    @dispatcher.rpc_method(service="end", method="huge")
    def huge(self, request: Any, proxy: Any) -> Any:
        return {"text": "x" * 2000}

    @dispatcher.rpc_method(service="end", method="transfers")
    def transfers(self, request: Any, proxy: Any) -> None:
        proxy.nobody.x().transfer(request)

    @dispatcher.rpc_method(service="end", method="sleeps")
    async def sleeps(self, request: Any, proxy: Any, n: int, seconds: float) -> dict[str, Any]:
        self.seen.put(n)
        await asyncio.sleep(seconds)
        return {"n": n}


@pytest.fixture(autouse=True)
def known() -> Iterator[discovery.LocalDiscovery]:
    """Fresh records, and a gate that is open when the test is over."""
    Service.gate = threading.Event()
    Service.seen = SimpleQueue()
    found = discovery.LocalDiscovery()
    for service in ("end", "nobody"):
        found.register_remote_service(service, EXCHANGE)
    Service.set_discovery(found)
    yield found
    Service.gate.set()


@pytest.fixture
def broken(url: str) -> Faults:
    """The test's place, where the test can make things go wrong."""
    return Faults(url)


@pytest.fixture
def faulty(broken: Faults) -> ConnectionConfig:
    """A connection that what is added to `broken` strikes."""
    return ConnectionConfig(url=(broken.url,), async_engine=True, retry_delay=0.05)


def _caller(client: RPCClient) -> Caller:
    link = client._sender._link
    assert link is not None
    return link.caller


def _nobody_waits(client: RPCClient) -> bool:
    """Tell whether the client has let go of everyone who waited for an answer."""
    return not _caller(client)._waiters


def _outcome(answer: Future[Any]) -> str:
    """The name of the error that a call ended with."""
    error = answer.exception(DEADLINE)
    return type(error).__name__


# -- with an answer of the other side


def test_with_the_answer(serve: Serve, connect: Connect) -> None:
    """What the handler returned."""
    serve(Service)
    client = connect("end")
    assert {"n": 3} == client.end.answers(n=3).call(timeout=DEADLINE).payload
    assert _nobody_waits(client)


def test_with_class_message_and_code_of_what_the_handler_raised(
    serve: Serve, connect: Connect
) -> None:
    """Whatever it raised, in a thread or on the loop; and the server goes on."""
    serve(Service, concurrency=1)
    client = connect("end")
    for raised, code in (
        (NotFound("why"), 4711),
        (ValueError("why"), 1000),
        (SystemExit("why"), 1000),
        (KeyboardInterrupt("why"), 1000),
        (Unserved("why"), 1000),
    ):
        Service.raised = raised
        for method in ("raises", "araises"):
            with pytest.raises(exceptions.RemoteError) as caught:
                client.end[method]().call(timeout=DEADLINE)
            assert (type(raised).__name__, "why", code) == (
                caught.value.error_class,
                caught.value.message,
                caught.value.code,
            )
    assert {"n": 1} == client.end.answers(n=1).call(timeout=DEADLINE).payload
    assert _nobody_waits(client)


@pytest.mark.parametrize(
    ("method", "payload", "error", "text"),
    [
        ("answers", {"n": "one"}, "InvalidPayload", r"\$\.n"),
        ("answer", {}, "HandlerNotFound", "did you mean 'end.answers'?"),
        ("strange", {}, "UnknownResult", "returned int"),
        ("unwritable", {}, "MessageError", "'thing'"),
        ("huge", {}, "MessageTooLarge", "max_message_size allows 1000"),
        ("transfers", {}, "ServiceUnavailable", "nobody serves 'nobody'"),
    ],
    ids=[
        "a payload that does not fit",
        "an unknown method",
        "a result that is no answer",
        "a result that cannot be written",
        "an answer that is too large",
        "a transfer to nobody",
    ],
)
def test_with_an_error_that_says_why_there_is_no_answer(
    serve: Serve,
    connect: Connect,
    config: ConnectionConfig,
    method: str,
    payload: dict[str, Any],
    error: str,
    text: str,
) -> None:
    """One of tavrida's own, in the name of the other side, at once."""
    serve(Service, config=replace(config, max_message_size=1000))
    with pytest.raises(exceptions.RemoteError, match=text) as caught:
        connect("end").end[method](**payload).call(timeout=DEADLINE)
    assert error == caught.value.error_class


def test_with_an_error_each_time_a_transfer_finds_nobody(serve: Serve, connect: Connect) -> None:
    """Also when that is known before the handler has let go of the request."""
    serve(Service)
    end = connect("end").end
    answers = [end.transfers().future(timeout=DEADLINE) for _ in range(100)]
    assert {"RemoteError"} == {_outcome(answer) for answer in answers}


HOOKS = (
    "process",
    "before_handle",
    "after_handle",
    "before_settle",
    "before_publish",
    "after_publish",
)

#: Those that come while the message is on its way; after the others it is over.
DECIDING = {"incoming": ("process", "before_handle"), "outgoing": ("process", "before_publish")}


class Breaking(Middleware):
    """Raises SystemExit, which is no Exception, in one of its methods."""

    def __init__(self, broken: str) -> None:
        self._broken = broken

    def _meet(self, hook: str) -> None:
        if hook == self._broken:
            raise SystemExit(f"{hook} leaves")

    def process(self, message: Message) -> Message:
        self._meet("process")
        return message

    def before_handle(self, message: Message) -> None:
        self._meet("before_handle")

    def after_handle(self, message: Message, error: BaseException | None) -> None:
        self._meet("after_handle")

    def before_settle(
        self, message: Message, answer: Message | None, error: BaseException | None
    ) -> None:
        self._meet("before_settle")

    def before_publish(self, message: Message) -> None:
        self._meet("before_publish")

    def after_publish(self, message: Message, error: BaseException | None) -> None:
        self._meet("after_publish")


@pytest.mark.parametrize("way", ["incoming", "outgoing"])
@pytest.mark.parametrize("hook", HOOKS)
def test_with_an_error_where_a_middleware_raised_on_the_way(
    serve: Serve, connect: Connect, way: str, hook: str
) -> None:
    """And with the answer where that was sent already; the one worker lives on."""

    @dispatcher.rpc_service("guarded")
    class Guarded(ServiceController):
        def __init__(self) -> None:
            super().__init__()
            getattr(self, f"add_{way}_middleware")(Breaking(hook))

        @dispatcher.rpc_method(service="guarded", method="plain")
        def plain(self, request: Any, proxy: Any) -> None: ...

        @dispatcher.rpc_method(service="guarded", method="async_")
        async def async_(self, request: Any, proxy: Any) -> None: ...

    serve(Guarded, concurrency=1)
    guarded = connect("guarded").guarded
    for method in ("plain", "async_", "plain"):
        if hook in DECIDING[way]:
            with pytest.raises(exceptions.RemoteError, match=f"SystemExit: {hook} leaves"):
                guarded[method]().call(timeout=DEADLINE)
        else:
            assert {} == guarded[method]().call(timeout=DEADLINE).payload


def test_with_an_error_when_the_broker_refuses_the_answer(
    serve: Serve, connect: Connect, broken: Faults, faulty: ConnectionConfig
) -> None:
    """The handler ran once; its caller learns that the answer could not be sent."""
    broken.add(faults.full_disk(kind="response"))
    serve(Service, config=faulty)
    with pytest.raises(exceptions.RemoteError, match="PublishFailed"):
        connect("end").end.answers(n=1).call(timeout=DEADLINE)
    assert 1 == Service.seen.get_nowait()
    assert Service.seen.empty()


# -- at once, since nobody is there or it cannot be sent


def test_at_once_when_nobody_serves_that(connect: Connect) -> None:
    """Not after the time-out; nothing of the call is left."""
    client = connect("nobody")
    began = time.monotonic()
    with pytest.raises(exceptions.ServiceUnavailable, match=r"'nobody'.*nobody\.x"):
        client.nobody.x().call(timeout=DEADLINE)
    assert time.monotonic() - began < AT_ONCE
    assert _nobody_waits(client)


def test_at_once_when_discovery_does_not_know_the_service(connect: Connect) -> None:
    """Nothing is sent; the error says how to make it known."""
    with pytest.raises(exceptions.ServiceUnknown, match=r"'stranger'.*register_remote_service"):
        connect("end").stranger.x().call(timeout=DEADLINE)


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        ({"text": "x" * 2000}, exceptions.MessageTooLarge),
        ({"thing": object()}, exceptions.MessageError),
    ],
    ids=["too large", "no value of the wire"],
)
def test_at_once_when_the_request_cannot_be_written(
    connect: Connect, config: ConnectionConfig, payload: dict[str, Any], error: type[Exception]
) -> None:
    """Nothing is sent, and nobody waits."""
    client = connect("end", config=replace(config, max_message_size=1000))
    with pytest.raises(error):
        client.end.answers(**payload).call(timeout=DEADLINE)
    assert eventually(lambda: _nobody_waits(client))


def test_at_once_when_the_broker_refuses_the_request(
    connect: Connect, broken: Faults, faulty: ConnectionConfig
) -> None:
    """With the broker's reason."""
    broken.add(faults.full_disk(kind="request"))
    client = connect("end", config=faulty)
    with pytest.raises(exceptions.PublishFailed):
        client.end.answers().call(timeout=DEADLINE)
    assert _nobody_waits(client)


# -- by a lost connection


@pytest.mark.parametrize(
    ("on", "kind"),
    [("publish", "request"), ("confirm", "request"), ("deliver", "response")],
    ids=["at the request", "at its confirm", "at the answer"],
)
def test_at_once_when_the_caller_loses_its_connection(
    serve: Serve,
    connect: Connect,
    broken: Faults,
    faulty: ConnectionConfig,
    on: str,
    kind: str,
) -> None:
    """CallInterrupted: the queue of the answer went with it; the next call is answered."""
    serve(Service)
    client = connect("end", config=faulty)
    assert {"n": 1} == client.end.answers(n=1).call(timeout=DEADLINE).payload
    loss = faults.lose_connection(on, kind=kind)
    broken.add(loss)
    began = time.monotonic()
    with pytest.raises(exceptions.CallInterrupted, match="may or may not"):
        client.end.sleeps(n=2, seconds=0.1).call(timeout=DEADLINE)
    assert time.monotonic() - began < AT_ONCE
    assert 1 == broken.struck(loss)
    assert {"n": 3} == client.end.answers(n=3).call(timeout=DEADLINE).payload


@pytest.mark.parametrize(
    ("on", "kind"),
    [
        ("deliver", "request"),
        ("publish", "response"),
        ("confirm", "response"),
        ("ack", "request"),
    ],
    ids=["before the handler", "at the answer", "at its confirm", "at the acknowledgement"],
)
def test_with_the_answer_though_the_service_loses_its_connection(
    serve: Serve,
    connect: Connect,
    broken: Faults,
    faulty: ConnectionConfig,
    on: str,
    kind: str,
) -> None:
    """The request is delivered again; a second answer to it is late, and dropped."""
    loss = faults.lose_connection(on, kind=kind)
    broken.add(loss)
    serve(Service, config=faulty)
    client = connect("end")
    assert {"n": 1} == client.end.answers(n=1).call(timeout=DEADLINE).payload
    eventually(lambda: broken.struck(loss) == 1)
    assert {"n": 2} == client.end.answers(n=2).call(timeout=DEADLINE).payload
    assert _nobody_waits(client)


# -- by its deadline


def test_by_its_deadline_in_the_queue_of_a_service_that_is_down(
    serve: Serve, connect: Connect
) -> None:
    """CallTimeout; the expired request is not run by the next instance."""
    serve(Service).stop()
    client = connect("end")
    with pytest.raises(exceptions.CallTimeout, match=r"end\.answers"):
        client.end.answers(n=1).call(timeout=0.1)
    serve(Service)
    assert {"n": 2} == client.end.answers(n=2).call(timeout=DEADLINE).payload
    assert [2] == [Service.seen.get_nowait() for _ in range(Service.seen.qsize())]
    assert 0 == _caller(client).late_answers


def test_by_its_deadline_behind_other_handlers(serve: Serve, connect: Connect) -> None:
    """Delivered, and expired before a handler was free: it is not run."""
    serve(Service, concurrency=1, prefetch=10)
    end = connect("end").end
    first = end.gated(n=1).future(timeout=DEADLINE)
    assert 1 == Service.seen.get(timeout=DEADLINE)
    with pytest.raises(exceptions.CallTimeout):
        end.answers(n=2).call(timeout=0.1)
    Service.gate.set()
    assert 1 == first.result(DEADLINE)["n"]
    assert {"n": 3} == end.answers(n=3).call(timeout=DEADLINE).payload
    assert [3] == [Service.seen.get_nowait() for _ in range(Service.seen.qsize())]


def test_by_its_deadline_while_the_handler_runs(serve: Serve, connect: Connect) -> None:
    """The caller goes on; the answer that comes after all is counted and dropped."""
    serve(Service)
    client = connect("end")
    with pytest.raises(exceptions.CallTimeout, match="may still be handled"):
        client.end.gated(n=1).call(timeout=0.5)
    assert 1 == Service.seen.get_nowait()
    assert _nobody_waits(client)
    Service.gate.set()
    assert 1 == eventually(lambda: _caller(client).late_answers)
    assert {"n": 2} == client.end.answers(n=2).call(timeout=DEADLINE).payload


def test_by_its_deadline_while_the_answer_is_on_its_way(
    serve: Serve, connect: Connect, broken: Faults, faulty: ConnectionConfig
) -> None:
    """The handler was in time, its answer was not."""
    serve(Service)
    client = connect("end", config=faulty)
    assert {"n": 1} == client.end.answers(n=1).call(timeout=DEADLINE).payload
    broken.add(faults.delay(0.7, kind="response"))
    with pytest.raises(exceptions.CallTimeout):
        client.end.answers(n=2).call(timeout=0.5)
    assert 1 == eventually(lambda: _caller(client).late_answers)
    assert _nobody_waits(client)


def test_by_its_deadline_when_the_answer_is_lost(
    serve: Serve, connect: Connect, broken: Faults, faulty: ConnectionConfig
) -> None:
    """A broker's node died with it in memory."""
    broken.add(faults.lose_answer())
    serve(Service)
    client = connect("end", config=faulty)
    with pytest.raises(exceptions.CallTimeout):
        client.end.answers(n=2).call(timeout=0.3)
    assert _nobody_waits(client)


# -- by a stop


def test_at_once_when_its_caller_is_closed(serve: Serve, connect: Connect) -> None:
    """CallInterrupted; the handler ends in peace, and its answer is nobody's."""
    serve(Service)
    client = connect("end")
    answer = client.end.gated(n=1).future(timeout=DEADLINE)
    assert 1 == Service.seen.get(timeout=DEADLINE)
    client.close()
    assert "CallInterrupted" == _outcome(answer)
    Service.gate.set()
    assert {"n": 2} == connect("end").end.answers(n=2).call(timeout=DEADLINE).payload
    assert 2 == Service.seen.get(timeout=DEADLINE)
    assert Service.seen.empty()


def test_with_the_answer_when_its_service_is_stopped_while_the_handler_runs(
    serve: Serve, connect: Connect
) -> None:
    """A graceful stop waits for it."""
    server = serve(Service)
    answer = connect("end").end.gated(n=1).future(timeout=DEADLINE)
    assert 1 == Service.seen.get(timeout=DEADLINE)
    stopping = threading.Thread(target=server.stop)
    stopping.start()
    eventually(lambda: server._processor._is_draining)
    Service.gate.set()
    assert {"n": 1} == answer.result(DEADLINE).payload
    stopping.join(DEADLINE)


def test_with_the_answer_of_the_next_instance_when_its_service_is_stopped_before(
    serve: Serve, connect: Connect
) -> None:
    """What has not begun stays in the queue."""
    server = serve(Service, concurrency=1, prefetch=5)
    end = connect("end").end
    first = end.gated(n=1).future(timeout=DEADLINE)
    assert 1 == Service.seen.get(timeout=DEADLINE)
    second = end.answers(n=2).future(timeout=DEADLINE)
    stopping = threading.Thread(target=server.stop)
    stopping.start()
    eventually(lambda: server._processor._is_draining)
    Service.gate.set()
    assert {"n": 1} == first.result(DEADLINE).payload
    stopping.join(DEADLINE)
    third = end.answers(n=3).future(timeout=DEADLINE)
    serve(Service)
    assert [2, 3] == [each.result(DEADLINE)["n"] for each in (second, third)]


def test_with_the_answer_of_the_next_instance_when_the_handler_was_not_waited_for(
    serve: Serve, connect: Connect
) -> None:
    """graceful_timeout is over: the request goes back, and the answer of the first is dropped."""
    server = serve(Service, graceful_timeout=0.1)
    answer = connect("end").end.gated(n=1).future(timeout=DEADLINE)
    assert 1 == Service.seen.get(timeout=DEADLINE)
    server.stop()
    assert not answer.done()
    Service.gate.set()
    serve(Service)
    assert {"n": 1} == answer.result(DEADLINE).payload
    assert 1 == Service.seen.get(timeout=DEADLINE)


# -- many at a time


def test_each_with_its_own_answer_though_thousands_are_in_flight(
    serve: Serve, connect: Connect
) -> None:
    """One connection, answers in any order, matched by their identifiers; nobody is left."""
    serve(Service, concurrency=2000)
    client = connect("end")
    count = 2000
    answers = [
        client.end.sleeps(n=n, seconds=0.1 + (count - n) % 7 / 100).future(timeout=DEADLINE)
        for n in range(count)
    ]
    assert list(range(count)) == [answer.result(DEADLINE)["n"] for answer in answers]
    assert _nobody_waits(client)
    assert 0 == _caller(client).late_answers


def test_those_in_time_with_their_answer_and_the_others_by_their_deadline(
    serve: Serve, connect: Connect
) -> None:
    """Late answers find nobody, and disturb nobody."""
    serve(Service, concurrency=400)
    client = connect("end")
    client.end.answers(n=-1).call(timeout=DEADLINE)
    late = [client.end.sleeps(n=-1, seconds=1.0).future(timeout=0.5) for _ in range(200)]
    good = [client.end.sleeps(n=n, seconds=0.1).future(timeout=DEADLINE) for n in range(200)]
    assert list(range(200)) == [answer.result(DEADLINE)["n"] for answer in good]
    assert {"CallTimeout"} == {_outcome(answer) for answer in late}
    assert _nobody_waits(client)
    # On a busy machine some of them expire before they begin, and so are not run.
    seen = [Service.seen.get_nowait() for _ in range(Service.seen.qsize())]
    ran = seen.count(-1) - 1
    assert eventually(lambda: _caller(client).late_answers == ran)
    assert ran > 0


def test_the_one_that_its_caller_cancelled_disturbs_no_other(
    serve: Serve, connect: Connect
) -> None:
    """Its answer is for nobody."""
    serve(Service)
    client = connect("end")
    cancelled = client.end.gated(n=1).future(timeout=DEADLINE)
    kept = client.end.gated(n=2).future(timeout=DEADLINE)
    for _ in range(2):
        Service.seen.get(timeout=DEADLINE)
    assert cancelled.cancel()
    Service.gate.set()
    assert {"n": 2} == kept.result(DEADLINE).payload
    eventually(lambda: _nobody_waits(client))
