# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Who waits for a message that is alone on its connection reads the answer in its own thread."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import select
import signal
import socket
import sys
import termios
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from tavrida import dispatcher, envelope, exceptions, messages
from tavrida.client import RPCClient
from tavrida.config import ConnectionConfig
from tavrida.plugins.transports.amqp.frames import CONFIRM_SIZE
from tavrida.plugins.transports.amqp.leader import Leader
from tavrida.plugins.transports.amqp.transport import AMQPTransport
from tavrida.plugins.transports.amqp.wire import FastWire
from tavrida.service import ServiceController
from tavrida.waiting import Waiting
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
def client(
    serve: Serve, connect: Connect, config: ConnectionConfig, gate: threading.Event
) -> RPCClient:
    """One that has made its first call, of which the loop has nothing more to do, nor soon has."""
    serve(Service)
    client = connect("svc", config=replace(config, heartbeat=3600))
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
    """The threads that read anything for the client, the loop's too, each time that they do."""
    threads: list[threading.Thread] = []
    take, wire = FastWire._on_data_available, transport_of(client)._connection

    def note(self: FastWire, data: bytes) -> None:
        if self is wire:
            threads.append(threading.current_thread())
        take(self, data)

    monkeypatch.setattr(FastWire, "_on_data_available", note)
    return threads


#: Makes a call that is held, whose caller reads itself; another thread acts when it does. Who
#: sleeps on to the end of its lease, where that is long, fails.
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
            began = time.monotonic()
            with ThreadPoolExecutor(1) as threads:
                acting = threads.submit(run)
                acting.add_done_callback(lambda ended: gate.set() if ended.exception() else None)
                answer = client.svc.held(n=3).call(timeout=2 * DEADLINE)
                acting.result()
            assert time.monotonic() - began < DEADLINE
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
    client: RPCClient,
    gate: threading.Event,
    leading: Leading,
    readers: list[threading.Thread],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is read together with the answer."""
    monkeypatch.setattr("tavrida.plugins.transports.amqp.leader.PATIENCE", 10 * DEADLINE)
    monkeypatch.setattr("tavrida.plugins.transports.amqp.leader.LEASE", 10 * DEADLINE)
    wire: Any = transport_of(client)._connection

    def unread() -> int:
        answer = fcntl.ioctl(wire._transport._sock, termios.FIONREAD, bytes(4))
        return int.from_bytes(answer, sys.byteorder)

    def answer() -> None:
        readers.clear()
        eventually(lambda: unread() == CONFIRM_SIZE)
        gate.set()

    assert 3 == leading(answer)
    assert [threading.current_thread()] == readers


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
    assert transport_of(client)._leader._alarm is None  # nor has it opened anything for that


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
    monkeypatch.setattr("tavrida.plugins.transports.amqp.leader.LEASE", 10 * DEADLINE)
    threads: list[threading.Thread] = []
    transport = transport_of(client)

    def other() -> None:
        # With a confirm on its way, it would not be sent by its own thread.
        eventually(lambda: not transport._unconfirmed)
        # Later than that of the call, so that there is nothing for the loop but the answer.
        future = client.svc.echo(n=1).future(timeout=3 * DEADLINE)
        future.add_done_callback(lambda _: threads.append(threading.current_thread()))
        assert 1 == future.result(DEADLINE)["n"]
        gate.set()

    assert 3 == leading(other)
    assert [transport.loop._thread] == threads


def test_who_is_dismissed_leaves_at_once(
    client: RPCClient,
    gate: threading.Event,
    leading: Leading,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where nothing comes that would wake it."""
    monkeypatch.setattr("tavrida.plugins.transports.amqp.leader.LEASE", 10 * DEADLINE)
    leader = transport_of(client)._leader

    def dismiss() -> None:
        leader.dismiss()
        eventually(lambda: leader.lead is None)
        gate.set()

    assert 3 == leading(dismiss)


def test_who_is_alone_no_more_once_it_has_the_turn_does_not_read(client: RPCClient) -> None:
    """Whoever sent something in between has looked for a leader already."""
    transport, asked = transport_of(client), list[bool]()
    wire: Any = transport._connection

    def is_alone() -> bool:
        asked.append(not asked)
        return asked[-1]

    def is_asked_twice() -> bool:
        asked.clear()
        transport._leader.read_until(wire, Waiting(), DEADLINE, is_alone, least=1)
        assert not transport._leader.lead
        return len(asked) == 2

    eventually(is_asked_twice)


def test_nobody_reads_while_the_connection_closes(client: RPCClient) -> None:
    """The loop waits for the broker's goodbye."""
    transport = transport_of(client)
    wire: Any = transport._connection

    async def close() -> bool:
        assert wire.can_mute
        wire.close()
        transport.loop.end_turn()
        assert wire.is_idle
        return bool(wire.can_mute)

    assert transport.loop.run(close()) is False


def test_a_loss_ends_what_is_waited_for(
    client: RPCClient,
    leading: Leading,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At once, though the loop does not read."""
    monkeypatch.setattr("tavrida.plugins.transports.amqp.leader.LEASE", 10 * DEADLINE)
    wire: Any = transport_of(client)._connection
    began = time.monotonic()
    with pytest.raises(exceptions.CallInterrupted):
        leading(lambda: wire._transport._sock.shutdown(socket.SHUT_RDWR))
    assert time.monotonic() - began < DEADLINE
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


def test_a_timeout_shorter_than_the_lease_is_kept(
    client: RPCClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the loop, which wakes nobody for it who polls."""
    monkeypatch.setattr("tavrida.plugins.transports.amqp.leader.LEASE", DEADLINE)
    go_on, begun = Leader._go_on, list[Leader]()

    def note(self: Leader, *args: Any) -> None:
        begun.append(self)
        go_on(self, *args)

    def times_out() -> bool:
        # The loop looks for deadlines before that of the next call, which so has nothing for it.
        with contextlib.suppress(exceptions.CallTimeout):
            client.svc.echo(n=1).call(timeout=0.2)
        begun.clear()
        with pytest.raises(exceptions.CallTimeout):
            client.svc.held(n=3).call(timeout=0.4)
        return bool(begun)

    monkeypatch.setattr(Leader, "_go_on", note)
    began = time.monotonic()
    eventually(times_out)
    assert time.monotonic() - began < DEADLINE


def test_who_expects_errors_of_the_users_leaves_it_to_the_loop(
    client: RPCClient, readers: list[threading.Thread]
) -> None:
    """Their classes are made where the answer is read, and may do as they like."""
    for n in range(20):
        assert n == client.svc.echo(n=n).raises(ValueError).call(timeout=DEADLINE)["n"]
    assert threading.current_thread() not in readers


def test_an_answer_that_a_plugin_fails_to_read_costs_no_connection(
    client: RPCClient, readers: list[threading.Thread], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no signal handler can have raised that: it is as if the loop had read."""
    decode, is_broken = envelope.decode, threading.Event()

    def fail(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("untyped") == messages.RESPONSE and is_broken.is_set():
            raise KeyError("of a plugin")
        return decode(*args, **kwargs)

    monkeypatch.setattr(envelope, "decode", fail)
    wire = transport_of(client)._connection

    def is_led() -> bool:
        readers.clear()
        is_broken.clear()
        with contextlib.suppress(exceptions.CallTimeout):  # then the next one has nothing for the
            client.svc.echo(n=1).call(timeout=0.2)  # loop, which looks for deadlines before
        is_broken.set()
        with pytest.raises(exceptions.CallTimeout):
            client.svc.echo(n=1).call(timeout=0.4)
        return threading.current_thread() in readers

    with ThreadPoolExecutor(1) as threads:
        threads.submit(eventually, is_led).result()
    is_broken.clear()
    assert 2 == echo(client, 2)
    assert transport_of(client)._connection is wire


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


class Confusing(BlockingIOError, IndexError, RuntimeError):
    """The same, of the kinds that a socket, a parser and a lock have as well."""


#: Does some work; with what is raised, in a lead, at a moment. Tells whether there was a lead in
#: which all was read that was waited for, and whether that was raised.
Interrupting = Callable[[Callable[[], object], int, type[BaseException]], tuple[bool, bool]]


@pytest.fixture
def enders(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """The threads that ended what somebody waits for."""
    threads: list[threading.Thread] = []
    end = Waiting._end

    def note(self: Waiting[Any]) -> None:
        end(self)
        threads.append(threading.current_thread())

    monkeypatch.setattr(Waiting, "_end", note)
    return threads


@pytest.fixture
def interrupting(enders: list[threading.Thread], monkeypatch: pytest.MonkeyPatch) -> Interrupting:
    read_until = Leader.read_until
    wanted: list[tuple[int, Callable[[], None]]] = []
    happened: list[str] = []
    where: list[traceback.FrameSummary] = []

    def read(self: Leader, *args: Any, **kwargs: Any) -> None:
        if wanted:
            interrupt(lambda: read_until(self, *args, **kwargs), *wanted.pop())
        else:
            read_until(self, *args, **kwargs)

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
        enders.clear()
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
        return threading.current_thread() in enders, "raised" in happened

    monkeypatch.setattr(Leader, "read_until", read)
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
        ("call", Confusing),
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
    assert moment > 100


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
        gate.wait(10 * DEADLINE)

    def is_stuck() -> bool:
        calling = threads.submit(echo, client, 1)
        eventually(lambda: calling.done() or stuck.is_set())
        return stuck.is_set()

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
    client: RPCClient,
    gate: threading.Event,
    get_stuck: Stuck,
    event: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without waiting for the lease to end."""
    monkeypatch.setattr("tavrida.plugins.transports.amqp.leader.LEASE", 10 * DEADLINE)
    monkeypatch.setattr("tavrida.plugins.transports.amqp.transport.CLOSE_TIMEOUT", 10 * DEADLINE)
    get_stuck()
    with ThreadPoolExecutor(1) as threads:
        told = threads.submit(EVENTS[event], client)
        try:
            told.result(DEADLINE)
        finally:
            gate.set()
