# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Who waits for a message that is alone on its connection reads the answer in its own thread."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import select
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from tavrida import dispatcher, exceptions
from tavrida.client import RPCClient
from tavrida.config import ConnectionConfig
from tavrida.plugins.transports.amqp.leader import LEASE, Leader
from tavrida.plugins.transports.amqp.transport import AMQPTransport
from tavrida.plugins.transports.amqp.wire import FastWire
from tavrida.service import ServiceController
from tests.broker.conftest import Connect, Serve
from tests.broker.interruptions import interrupt, is_kept_by_asyncio
from tests.waiting import DEADLINE, eventually

pytestmark = pytest.mark.usefixtures("amqp_url")


@dispatcher.rpc_service("svc")
class Service(ServiceController):
    #: What ``held`` waits for; a test that calls it begins with one of its own.
    gate: threading.Event

    @dispatcher.rpc_method("svc", "echo")
    async def echo(self, request: Any, proxy: Any, n: int) -> dict[str, Any]:
        return {"n": n}

    @dispatcher.rpc_method("svc", "held")
    async def held(self, request: Any, proxy: Any, n: int) -> dict[str, Any]:
        await asyncio.to_thread(self.gate.wait, DEADLINE)
        return {"n": n}


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Set it, and the handler that waits goes on."""
    gate = threading.Event()
    monkeypatch.setattr(Service, "gate", gate, raising=False)
    yield gate
    gate.set()


@pytest.fixture
def client(serve: Serve, connect: Connect, gate: threading.Event) -> RPCClient:
    """One that has made its first call, of which the loop has nothing more to do."""
    serve(Service)
    client = connect("svc")
    assert 0 == echo(client, 0)
    return client


def echo(client: RPCClient, n: int) -> int:
    return int(client.svc.echo(n=n).call(timeout=DEADLINE)["n"])


def transport_of(client: RPCClient) -> AMQPTransport:
    link = client._sender._link
    assert link is not None
    assert isinstance(link.transport, AMQPTransport)
    return link.transport


@pytest.fixture
def readers(client: RPCClient, monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """The threads that read anything for the client, each time that they do."""
    threads: list[threading.Thread] = []
    read, wire = FastWire.read, transport_of(client)._connection

    def note(self: FastWire) -> None:
        if self is wire:
            threads.append(threading.current_thread())
        read(self)

    monkeypatch.setattr(FastWire, "read", note)
    return threads


#: Makes a call that is held, whose caller reads itself; another thread acts when it does.
Leading = Callable[[Callable[[], object]], int]


@pytest.fixture
def leading(client: RPCClient, gate: threading.Event, monkeypatch: pytest.MonkeyPatch) -> Leading:
    begun = threading.Event()
    go_on = Leader._go_on

    def note(self: Leader, *args: Any) -> None:
        begun.set()
        go_on(self, *args)

    def lead(act: Callable[[], object]) -> int:
        def run() -> None:
            if begun.wait(0.5):
                act()
            else:  # the loop had something to do just then
                gate.set()

        while True:
            gate.clear()
            begun.clear()
            with ThreadPoolExecutor(1) as threads:
                acting = threads.submit(run)
                acting.add_done_callback(lambda ended: gate.set() if ended.exception() else None)
                answer = client.svc.held(n=3).call(timeout=DEADLINE)
                acting.result()
            if begun.is_set():
                return int(answer["n"])

    monkeypatch.setattr(Leader, "_go_on", note)
    return lead


WORK: dict[str, Callable[[RPCClient], object]] = {
    "call": lambda client: echo(client, 1),
    "cast": lambda client: client.svc.echo(n=1).cast(),
}


@pytest.mark.parametrize("kind", WORK)
def test_who_waits_alone_reads(
    client: RPCClient, readers: list[threading.Thread], kind: str
) -> None:
    """Which saves waking one thread by another."""

    def has_read() -> bool:
        WORK[kind](client)
        return threading.current_thread() in readers

    eventually(has_read)


def test_the_confirm_of_a_request_wakes_nobody(
    client: RPCClient, readers: list[threading.Thread], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read together with the answer."""
    monkeypatch.setattr("tavrida.plugins.transports.amqp.leader.PATIENCE", DEADLINE)
    monkeypatch.setattr("tavrida.plugins.transports.amqp.leader.LEASE", DEADLINE)

    def is_read_at_once() -> bool:
        readers.clear()
        echo(client, 1)
        return [threading.current_thread()] == readers

    eventually(is_read_at_once)


def test_who_waits_with_others_leaves_it_to_the_loop(
    client: RPCClient, readers: list[threading.Thread], gate: threading.Event
) -> None:
    """What a signal handler breaks off there could be the others'."""
    future = client.svc.held(n=7).future(timeout=DEADLINE)
    assert list(range(20)) == [echo(client, n) for n in range(20)]
    assert threading.current_thread() not in readers
    gate.set()
    assert 7 == future.result(DEADLINE)["n"]


def test_what_the_loop_saw_before_it_was_muted_is_left_to_the_leader(
    client: RPCClient, readers: list[threading.Thread]
) -> None:
    """Who would sleep on, because nothing more comes."""
    transport = transport_of(client)
    wire: Any = transport._connection
    loop = transport.loop
    eventually(lambda: loop.do_now(lambda: wire.can_mute and wire.mute(wire.unmute) >= 0))
    future = client.svc.echo(n=7).future(timeout=DEADLINE)
    came = select.poll()
    came.register(wire._muted, select.POLLIN)
    assert came.poll(1000 * DEADLINE)
    loop.submit(wire._read_on_loop)
    assert loop.run(asyncio.sleep(0, True))  # that has been
    assert [] == readers
    loop.submit(wire.unmute)
    assert 7 == future.result(DEADLINE)["n"]


def test_nobody_reads_in_the_debug_mode_of_asyncio(
    client: RPCClient, readers: list[threading.Thread]
) -> None:
    """There it forbids what is done."""
    transport_of(client).loop.loop.set_debug(True)
    assert list(range(20)) == [echo(client, n) for n in range(20)]
    assert threading.current_thread() not in readers


def test_who_waits_for_long_leaves_it_to_the_loop(
    client: RPCClient, gate: threading.Event, leading: Leading
) -> None:
    """While that has not ended, others are answered."""
    leader, answers = transport_of(client)._leader, list[int]()

    def others() -> None:
        eventually(lambda: leader.lead is None)
        answers.extend(echo(client, n) for n in range(5))
        gate.set()

    assert 3 == leading(others)
    assert list(range(5)) == answers


def test_one_more_message_ends_it(
    client: RPCClient,
    gate: threading.Event,
    leading: Leading,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of another thread, whose answer the loop reads: callbacks of a future run there."""
    monkeypatch.setattr("tavrida.plugins.transports.amqp.leader.LEASE", DEADLINE)
    threads: list[threading.Thread] = []

    def other() -> None:
        future = client.svc.echo(n=1).future(timeout=DEADLINE)
        future.add_done_callback(lambda _: threads.append(threading.current_thread()))
        assert 1 == future.result(DEADLINE)["n"]
        gate.set()

    assert 3 == leading(other)
    assert [transport_of(client).loop._thread] == threads


def test_a_loss_ends_what_is_waited_for(
    client: RPCClient,
    leading: Leading,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At once, though the loop does not read."""
    monkeypatch.setattr("tavrida.plugins.transports.amqp.leader.LEASE", DEADLINE)
    wire: Any = transport_of(client)._connection
    with pytest.raises(exceptions.CallInterrupted):
        leading(lambda: wire._transport._sock.shutdown(socket.SHUT_RDWR))
    with contextlib.suppress(exceptions.CallInterrupted):  # it may not have been noticed yet
        assert 1 == echo(client, 1)
    assert 2 == echo(client, 2)


def test_what_is_not_a_message_is_left_to_the_loop(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal handler could break off what is pika's and asyncio's, and nobody went on with it."""
    serve(Service)
    client = connect("svc", "nobody")
    assert 0 == echo(client, 0)
    loop, threads = transport_of(client).loop, list[threading.Thread]()
    read, process = FastWire.read, FastWire._process_frame
    goes_on: list[bool] = []

    def note(self: FastWire) -> bool:
        goes_on.append(read(self))
        return goes_on[-1]

    def note_thread(self: FastWire, frame: Any) -> None:
        threads.append(threading.current_thread())
        process(self, frame)

    monkeypatch.setattr(FastWire, "read", note)
    monkeypatch.setattr(FastWire, "_process_frame", note_thread)

    def is_given_back() -> bool:  # it is not where the loop had something to do just then
        with pytest.raises(exceptions.ServiceUnavailable):  # as a Basic.Return tells
            client.nobody.x().call(timeout=DEADLINE)
        return False in goes_on

    eventually(is_given_back)
    assert loop._thread in threads
    assert threading.current_thread() not in threads
    assert 1 == echo(client, 1)


def test_a_timeout_shorter_than_the_lease_is_kept(client: RPCClient) -> None:
    began = time.monotonic()
    for _ in range(20):
        with pytest.raises(exceptions.CallTimeout):
            client.svc.held(n=3).call(timeout=LEASE / 10)
    assert time.monotonic() - began < 20 * LEASE


def test_a_signal_handler_may_wait_for_a_thread_that_calls(
    client: RPCClient, leading: Leading, gate: threading.Event
) -> None:
    """The thread that it interrupts does not read meanwhile."""
    main, answers = threading.get_ident(), list[int]()

    def handle(*_: object) -> None:
        thread = threading.Thread(target=lambda: answers.append(echo(client, 5)))
        thread.start()
        thread.join()
        gate.set()

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        assert 3 == leading(lambda: signal.pthread_kill(main, signal.SIGUSR1))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert [5] == answers


class Alarm(Exception):
    """What a handler raises."""


#: Does some work; with what is raised, in a lead, at a moment. Tells whether there was a lead, and
#: whether that was raised.
Interrupting = Callable[[Callable[[], object], int, type[BaseException]], tuple[bool, bool]]


@pytest.fixture
def interrupting(monkeypatch: pytest.MonkeyPatch) -> Interrupting:
    read_until, go_on = Leader.read_until, Leader._go_on
    wanted: list[tuple[int, Callable[[], None]]] = []
    happened: list[str] = []
    where: list[traceback.FrameSummary] = []

    def read(self: Leader, *args: Any, **kwargs: Any) -> None:
        if wanted:
            interrupt(lambda: read_until(self, *args, **kwargs), *wanted.pop())
        else:
            read_until(self, *args, **kwargs)

    def note(self: Leader, *args: Any) -> None:
        happened.append("lead")
        go_on(self, *args)

    def work_until(
        work: Callable[[], object], moment: int, error: type[BaseException]
    ) -> tuple[bool, bool]:
        def alarm() -> None:
            happened.append("raised")
            where[:] = traceback.extract_stack()
            if is_kept_by_asyncio():
                happened.append("let go")
            else:
                raise error(errno.EAGAIN, "which a socket has as well")

        happened.clear()
        wanted.append((moment, alarm))
        try:
            work()
        except error:
            assert "raised" in happened
        except exceptions.CallInterrupted:  # the one before broke its connection
            return False, False
        else:
            was_kept = "raised" in happened and "let go" not in happened
            assert not was_kept, f"kept from who waits, at moment {moment}: {where[-6:]}"
        finally:
            wanted.clear()
        return "lead" in happened, "raised" in happened

    monkeypatch.setattr(Leader, "read_until", read)
    monkeypatch.setattr(Leader, "_go_on", note)
    return work_until


def is_whole(client: RPCClient) -> bool:
    """Tell whether the loop reads, and hears of each byte."""
    transport = transport_of(client)
    wire: Any = transport._connection
    sock = wire and wire._transport and wire._transport._sock
    if sock is None or transport._leader.lead is not None:
        return False
    with contextlib.suppress(OSError):  # it is closed just now
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1)
    return False


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("call", BlockingIOError),
        ("call", IndexError),
        ("call", KeyboardInterrupt),
        ("cast", Alarm),
    ],
)
def test_what_a_signal_breaks_off_leaves_nobody_deaf(
    serve: Serve,
    connect: Connect,
    config: ConnectionConfig,
    interrupting: Interrupting,
    kind: str,
    error: type[BaseException],
) -> None:
    """At each moment of a lead: it comes out, and what follows is confirmed."""
    serve(Service)
    config = replace(config, retry_delay=0.01, max_retry_delay=0.01, publish_timeout=5.0)
    client = connect("svc", config=config)
    assert 0 == echo(client, 0)
    moment = 0
    while True:
        had_lead, was_raised = interrupting(lambda: WORK[kind](client), moment, error)
        if was_raised:
            eventually(lambda: is_whole(client))
            client.svc.echo(n=moment).cast()
            moment += 1
        elif had_lead:
            break  # it has not so many
    assert moment > 50


#: Makes a call whose thread takes over reading, and does not read.
Stuck = Callable[[], object]


@pytest.fixture
def get_stuck(
    client: RPCClient, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Stuck]:
    """As a signal handler may keep a thread for as long as it likes; until ``gate`` is set."""
    stuck = threading.Event()

    def sleep(*_: object) -> None:
        stuck.set()
        gate.wait(DEADLINE)

    def is_stuck() -> bool:
        threads.submit(echo, client, 1)
        return stuck.wait(0.1)

    monkeypatch.setattr(Leader, "_go_on", sleep)
    with ThreadPoolExecutor() as threads:
        yield lambda: eventually(is_stuck)
        gate.set()


def test_one_that_reads_no_more_is_relieved(client: RPCClient, get_stuck: Stuck) -> None:
    get_stuck()
    leader = transport_of(client)._leader
    eventually(lambda: leader.lead is None)
    assert 2 == client.svc.echo(n=2).future(timeout=DEADLINE).result(DEADLINE)["n"]


#: What the loop has to hear of at once, whoever leads.
EVENTS: dict[str, Callable[[RPCClient], object]] = {
    "what it asks": lambda client: transport_of(client).loop.run(
        transport_of(client).inspect("test_service")
    ),
    "closing": lambda client: client.close(),
    "the end of the connection": lambda client: _cut(transport_of(client)),
}


def _cut(transport: AMQPTransport) -> None:
    wire: Any = transport._connection
    wire._transport._sock.shutdown(socket.SHUT_RDWR)
    eventually(lambda: transport._connection is not wire)


@pytest.mark.parametrize("event", EVENTS)
def test_one_that_reads_no_more_gives_way(
    client: RPCClient, get_stuck: Stuck, event: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without waiting for the lease to end."""
    monkeypatch.setattr("tavrida.plugins.transports.amqp.leader.LEASE", 10 * DEADLINE)
    monkeypatch.setattr("tavrida.plugins.transports.amqp.transport.CLOSE_TIMEOUT", 10 * DEADLINE)
    get_stuck()
    with ThreadPoolExecutor(1) as threads:
        threads.submit(EVENTS[event], client).result(DEADLINE)
