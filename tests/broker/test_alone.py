# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""A message that is alone on its connection leaves in the thread that sends it."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any
from unittest.mock import Mock

import pytest

from tavrida import exceptions
from tavrida.client import RPCClient, _Link
from tavrida.discovery import LocalDiscovery
from tavrida.plugins.transports.amqp.transport import MAX_ALONE, AMQPTransport
from tavrida.plugins.transports.amqp.wire import FastWire
from tests.broker.conftest import EXCHANGE, Connect, Serve
from tests.broker.echoing import Service
from tests.waiting import DEADLINE, eventually

pytestmark = pytest.mark.usefixtures("amqp_url")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Service, "seen", SimpleQueue())


#: What is done around a message that is sent in its own thread: before it, and behind it.
Around = Callable[[Callable[[], None]], None]


@pytest.fixture
def around(monkeypatch: pytest.MonkeyPatch) -> list[Around]:
    """Put something in: it is called, once, with what sends the next such message."""
    waiting: list[Around] = []
    send_now = FastWire.send_now

    def send(self: FastWire, *args: Any) -> bool:
        is_sent: list[bool] = []
        if waiting:
            waiting.pop()(lambda: is_sent.append(send_now(self, *args)))
        else:
            is_sent.append(send_now(self, *args))
        return is_sent.pop()

    monkeypatch.setattr(FastWire, "send_now", send)
    return waiting


@pytest.fixture
def client(serve: Serve, connect: Connect) -> RPCClient:
    """One that has made its first call, of which the loop has nothing more to do."""
    serve(Service)
    client = connect("svc")
    assert 0 == client.svc.echo(n=0).call(timeout=DEADLINE)["n"]
    return client


def transport_of(client: RPCClient) -> AMQPTransport:
    link = client._sender._link
    assert link is not None
    assert isinstance(link.transport, AMQPTransport)
    return link.transport


def alone(client: RPCClient, around: list[Around], what: Around) -> None:
    """Make calls until one has been sent in its own thread, with that around it."""
    around.append(what)

    def called() -> bool:
        assert 1 == client.svc.echo(n=1).call(timeout=DEADLINE)["n"]
        return not around

    eventually(called)


def test_a_call_leaves_in_its_own_thread(client: RPCClient, around: list[Around]) -> None:
    """Which saves waking the loop."""
    threads: list[threading.Thread] = []

    def note(send: Callable[[], None]) -> None:
        threads.append(threading.current_thread())
        send()

    alone(client, around, note)
    assert [threading.current_thread()] == threads


def test_what_does_not_go_alone_goes_by_the_loop(client: RPCClient, around: list[Around]) -> None:
    """A large body, an exchange that was not looked for yet, and all that comes in bursts."""
    unseen: list[int] = []

    def note(send: Callable[[], None]) -> None:
        unseen.append(1)
        send()

    around.append(note)
    assert 1 == client.svc.echo(n=1, pad="x" * MAX_ALONE).call(timeout=DEADLINE)["n"]
    assert [] == unseen
    around.clear()
    with client.pipeline():
        for n in range(200):
            client.svc.note(n=n).cast()
    assert list(range(200)) == sorted(Service.seen.get(timeout=DEADLINE) for _ in range(200))


def test_many_threads_get_their_own_answers(client: RPCClient) -> None:
    """Also where one sends in its own thread while the loop sends for others."""

    def calls(thread: int) -> list[int]:
        numbers = range(1000 * thread, 1000 * thread + 150)
        return [client.svc.echo(n=n).call(timeout=DEADLINE)["n"] for n in numbers]

    with ThreadPoolExecutor(6) as threads:
        for thread, answers in enumerate(threads.map(calls, range(6))):
            assert list(range(1000 * thread, 1000 * thread + 150)) == answers


def test_what_cannot_be_encoded_is_told(
    client: RPCClient, around: list[Around], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the loop, as everywhere, and what follows is not taken for it."""
    alone(client, around, lambda send: send())
    refusal = exceptions.PublishFailed("the headers are too large")
    with monkeypatch.context() as patched:
        patched.setattr(FastWire, "encoded", Mock(side_effect=refusal))
        with pytest.raises(exceptions.PublishFailed, match="too large"):
            client.svc.echo(n=1).call(timeout=DEADLINE)
    assert [2, 3] == [client.svc.echo(n=n).call(timeout=DEADLINE)["n"] for n in (2, 3)]


def test_an_error_of_the_socket_is_not_the_senders(
    client: RPCClient, around: list[Around], caplog: pytest.LogCaptureFixture
) -> None:
    """The message goes out once more, over a new connection."""

    def fail(send: Callable[[], None]) -> None:
        wire._transport._sock.shutdown(socket.SHUT_WR)
        send()

    alone(client, around, lambda send: send())
    link = client._sender._link
    assert link is not None
    wire: Any = getattr(link.transport, "_connection")  # noqa: B009 - of RabbitMQ's only
    around.append(fail)
    eventually(lambda: client.svc.note(n=5).cast() or not around)
    assert 5 == Service.seen.get(timeout=DEADLINE)
    assert "a message was broken off in its midst; connecting anew" in caplog.text


# -- signals


@pytest.fixture
def on_signal() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Call it with what SIGUSR1 does in this test."""
    before = signal.getsignal(signal.SIGUSR1)

    def handle(handler: Callable[[], None]) -> None:
        signal.signal(signal.SIGUSR1, lambda *_: handler())

    yield handle
    signal.signal(signal.SIGUSR1, before)


#: The last one could be taken for an error of the socket.
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, TimeoutError])
@pytest.mark.parametrize("is_sent", [True, False])
def test_a_message_that_a_signal_broke_off_harms_no_other(
    client: RPCClient,
    around: list[Around],
    on_signal: Any,
    is_sent: bool,
    error: type[BaseException],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Before it was sent or behind it: its connection is made anew, and nothing is mixed up."""

    def interrupt() -> None:
        raise error

    on_signal(interrupt)

    def break_off(send: Callable[[], None]) -> None:
        if is_sent:
            send()
        signal.raise_signal(signal.SIGUSR1)

    with pytest.raises(error):
        alone(client, around, break_off)
    with client.pipeline():  # on its way while the connection is made anew
        for n in range(100):
            client.svc.note(n=n).cast()
    assert set(range(100)) <= {Service.seen.get(timeout=DEADLINE) for _ in range(100)}
    assert list(range(50)) == [client.svc.echo(n=n).call(timeout=DEADLINE)["n"] for n in range(50)]
    assert "a message was broken off in its midst; connecting anew" in caplog.text


def test_a_signal_handler_is_told_that_it_cannot_wait_here(
    client: RPCClient, around: list[Around], on_signal: Any
) -> None:
    """It would wait for what it interrupts; what need not wait is sent."""
    errors: list[str] = []
    futures: list[Any] = []

    def handle() -> None:
        for wait in (client.svc.echo(n=1).call, client.svc.note(n=1).cast):
            with pytest.raises(exceptions.CallError) as caught:
                wait()
            errors.append(str(caught.value))
        futures.append(client.svc.echo(n=7).future(timeout=DEADLINE))

    def interrupted(send: Callable[[], None]) -> None:
        send()
        signal.raise_signal(signal.SIGUSR1)

    on_signal(handle)
    alone(client, around, interrupted)
    assert 2 == len(errors)
    assert all("this is a signal handler" in error for error in errors)
    assert 7 == futures[0].result(DEADLINE)["n"]
    assert Service.seen.empty()


def test_a_signal_handler_may_close_the_client(
    client: RPCClient, around: list[Around], on_signal: Any
) -> None:
    """It does not wait for what it interrupts."""

    def interrupted(send: Callable[[], None]) -> None:
        send()
        signal.raise_signal(signal.SIGUSR1)

    link = client._sender._link
    assert link is not None
    on_signal(client.close)
    with contextlib.suppress(exceptions.CallInterrupted, exceptions.ConnectionFailed):
        alone(client, around, interrupted)  # which may be answered just before
    link.loop._thread.join(DEADLINE)
    assert not link.loop._thread.is_alive()


def test_a_signal_handler_is_told_that_a_pipeline_cannot_end_here(
    serve: Serve, connect: Connect, around: list[Around], on_signal: Any
) -> None:
    """Nor an exchange be declared for what it publishes, in a pipeline that it interrupts."""
    serve(Service)
    known = LocalDiscovery()
    known.register_remote_service("svc", EXCHANGE)
    known.register_local_publisher("clock", "clock_exchange")
    client = connect(discovery=known, source="clock.tick")
    assert 0 == client.svc.echo(n=0).call(timeout=DEADLINE)["n"]
    errors: list[exceptions.CallError] = []

    def begin() -> None:
        with client.pipeline():
            pytest.fail("this would never end")

    def handle() -> None:
        for wait in (begin, client.publish):
            with pytest.raises(exceptions.CallError, match="this is a signal handler") as caught:
                wait()
            errors.append(caught.value)

    def interrupted(send: Callable[[], None]) -> None:
        send()
        signal.raise_signal(signal.SIGUSR1)

    def sent() -> bool:
        with client.pipeline():
            client.svc.note(n=1).cast()
        return not around

    on_signal(handle)
    around.append(interrupted)
    eventually(sent)
    assert 2 == len(errors)


def test_a_signal_handler_may_call_while_its_thread_makes_the_connection(
    serve: Serve, connect: Connect, on_signal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same client, which is locked then; both calls are answered."""
    serve(Service)
    client = connect("svc")
    make, signals, answers = _Link.__init__, iter([True]), list[int]()

    def interrupted(self: _Link, *args: Any) -> None:
        if next(signals, False):
            signal.raise_signal(signal.SIGUSR1)
        make(self, *args)

    monkeypatch.setattr(_Link, "__init__", interrupted)
    on_signal(lambda: answers.append(client.svc.echo(n=1).call(timeout=DEADLINE)["n"]))
    assert 2 == client.svc.echo(n=2).call(timeout=DEADLINE)["n"]
    assert [1] == answers
