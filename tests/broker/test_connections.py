# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Connecting, losing the connection, and coming back."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import re
import signal
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from queue import SimpleQueue
from typing import Any
from urllib.parse import urlsplit

import pytest
from pika.adapters.blocking_connection import BlockingChannel

from tavrida import discovery, dispatcher, exceptions
from tavrida.config import ConnectionConfig
from tavrida.plugins.transports import reconnecting
from tavrida.server import Server
from tavrida.service import ServiceController
from tests.broker.conftest import EXCHANGE, QUEUE, Connect, Serve
from tests.processes import Program
from tests.rabbitmq import Node
from tests.transports.bench import Bench
from tests.waiting import DEADLINE, eventually


@dispatcher.rpc_service("svc")
class Service(ServiceController):
    gate = threading.Event()
    seen: SimpleQueue[Any] = SimpleQueue()

    @dispatcher.rpc_method(service="svc", method="ok")
    def ok(self, request: Any, proxy: Any, n: int = 0) -> dict[str, Any]:
        self.seen.put(n)
        return {"n": n}

    @dispatcher.rpc_method(service="svc", method="gated")
    def gated(self, request: Any, proxy: Any) -> None:
        self.seen.put("began")
        assert self.gate.wait(DEADLINE)

    @dispatcher.rpc_method(service="svc", method="block")
    def block(self, request: Any, proxy: Any, seconds: float) -> dict[str, Any]:
        time.sleep(seconds)
        return {"blocked": seconds}


@pytest.fixture
def url(amqp_url: str) -> str:
    """All of this is about connections to RabbitMQ."""
    return amqp_url


@pytest.fixture(autouse=True)
def _fresh() -> None:
    Service.gate = threading.Event()
    Service.seen = SimpleQueue()


@pytest.fixture(scope="module")
def own_node() -> Iterator[Node]:
    """A node that the tests of this module may stop, restart and choke."""
    with Node() as node:
        yield node


@pytest.fixture
def own(own_node: Node, request: pytest.FixtureRequest) -> Iterator[ConnectionConfig]:
    """A connection to a fresh virtual host of that node."""
    vhost = "own-" + re.sub(r"\W+", "-", request.node.name)
    own_node.add_vhost(vhost)
    yield ConnectionConfig(
        url=(own_node.url(vhost),), async_engine=True, retry_delay=0.1, max_retry_delay=0.5
    )
    own_node.delete_vhost(vhost)


def _connections(node: Node, vhost: str) -> list[str]:
    """The names of all connections of a virtual host."""
    names = node.ctl("list_connections", "vhost", "client_properties", "pid", "--no-table-headers")
    return [line for line in names.splitlines() if line.startswith(f"{vhost}\t")]


def _cut(node: Node, vhost: str) -> None:
    """Close all connections of a virtual host, as an operator does."""
    node.ctl("close_all_connections", "--vhost", vhost, "for the test")


def _vhost(config: ConnectionConfig) -> str:
    return urlsplit(config.urls[0]).path.removeprefix("/")


def test_a_handler_that_blocks_for_three_heartbeats_does_not_lose_the_connection(
    serve: Serve, connect: Connect, config: ConnectionConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """Heartbeats are the event loop's business, not the handlers'."""
    quick = replace(config, heartbeat=1)
    serve(Service, config=quick, concurrency=1)
    client = connect("svc", config=quick)
    assert {"blocked": 3.5} == client.svc.block(seconds=3.5).call(timeout=DEADLINE).payload
    assert [] == [record for record in caplog.records if "lost its connection" in record.message]


def test_connections_have_names_that_an_operator_can_read(
    serve: Serve, connect: Connect, rabbitmq: Node, vhost: str
) -> None:
    """One of a client, two of a server: services, host and process id."""
    serve(Service)
    connect("svc").svc.ok().call(timeout=DEADLINE)
    host, pid = socket.gethostname(), os.getpid()
    found = "\n".join(_connections(rabbitmq, vhost))
    for name in (f"svc@{host} {pid} in", f"svc@{host} {pid} out", f"client@{host} {pid}"):
        assert f'"connection_name","tavrida {name}"' in found.replace(" ", " ")
    assert 3 == len(found.splitlines())


def test_after_a_cut_connection_server_and_client_go_on(
    serve: Serve, connect: Connect, rabbitmq: Node, vhost: str
) -> None:
    """What was being handled is delivered again; who waited for an answer hears it at once."""
    serve(Service, concurrency=2)
    client = connect("svc")
    waiting = client.svc.gated().future(timeout=DEADLINE)
    Service.seen.get(timeout=DEADLINE)
    _cut(rabbitmq, vhost)
    with pytest.raises(exceptions.CallInterrupted):
        waiting.result(5)
    Service.gate.set()
    assert {"n": 5} == client.svc.ok(n=5).call(timeout=DEADLINE).payload
    assert sorted(["began", 5], key=str) == sorted(
        [Service.seen.get(timeout=DEADLINE) for _ in range(2)], key=str
    )


def test_casts_that_meet_a_cut_connection_are_sent_again(
    serve: Serve, connect: Connect, rabbitmq: Node, vhost: str
) -> None:
    """Every cast that returned is handled, at least once, though the connection is cut thrice."""
    serve(Service)
    client = connect("svc")
    sent: list[int] = []
    stop = threading.Event()

    def cast() -> None:
        while not stop.is_set():
            client.svc.ok(n=len(sent)).cast()
            sent.append(len(sent))

    thread = threading.Thread(target=cast)
    thread.start()
    for _ in range(3):
        before = len(sent)
        eventually(lambda: len(sent) > before + 20)  # noqa: B023 - called in this turn
        _cut(rabbitmq, vhost)
    before = len(sent)
    eventually(lambda: len(sent) > before + 20)
    stop.set()
    thread.join(DEADLINE)
    handled: set[int] = set()

    def all_handled() -> bool:
        while not Service.seen.empty():
            handled.add(Service.seen.get())
        return handled >= set(sent)

    eventually(all_handled)


def test_a_queue_deleted_under_its_consumer_is_declared_and_consumed_again(
    serve: Serve, connect: Connect, channel: BlockingChannel, caplog: pytest.LogCaptureFixture
) -> None:
    """The broker cancels the consumer; the server never idles in silence."""
    serve(Service)
    client = connect("svc")
    client.svc.ok(n=1).call(timeout=DEADLINE)
    channel.queue_delete(QUEUE)

    def answers() -> bool:
        try:
            return bool(client.svc.ok(n=2).call(timeout=1).payload == {"n": 2})
        except exceptions.CallError:  # the queue is not there yet
            return False

    eventually(answers)
    assert f"cancelled the consumer of queue {QUEUE!r}" in caplog.text


def test_a_node_that_is_down_is_passed_over(serve: Serve, connect: Connect, amqp_url: str) -> None:
    """Several nodes of a cluster in one configuration."""
    dead = f"amqp://guest:guest@127.0.0.1:{_closed_port()}/%2F"
    both = ConnectionConfig(url=(dead, amqp_url, dead), async_engine=True, retry_delay=0.05)
    serve(Service, config=both)
    assert {"n": 1} == connect("svc", config=both).svc.ok(n=1).call(timeout=DEADLINE).payload


def test_a_node_that_refuses_us_does_not_keep_us_from_the_others(amqp_url: str) -> None:
    """One node of a cluster may be set up wrongly; the order of trying is random."""
    wrong = amqp_url.replace("guest:guest@", "guest:wrong@")
    config = ConnectionConfig(url=(wrong, amqp_url), connection_attempts=1)
    for _ in range(6):
        with _client(config) as client, pytest.raises(exceptions.ServiceUnavailable):
            client.svc.ok().cast()


def test_when_no_node_takes_us_the_refusal_is_told_and_not_the_node_that_is_down(
    amqp_url: str,
) -> None:
    """A wrong password does not get better by waiting for the other node."""
    wrong = amqp_url.replace("guest:guest@", "guest:wrong@")
    dead = f"amqp://guest:guest@127.0.0.1:{_closed_port()}/%2F"
    for _ in range(4):
        server = Server(ConnectionConfig(url=(wrong, dead)), QUEUE, EXCHANGE, [Service])
        with pytest.raises(exceptions.ConnectionFailed, match="refused user 'guest'"):
            server.start()


@pytest.mark.parametrize(("silence", "is_said_again"), [(60.0, False), (0.0, True)])
def test_why_a_server_waits_is_logged_once_and_then_sparsely(
    silence: float,
    is_said_again: bool,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However often it tries; the log of a night without a broker stays small."""
    monkeypatch.setattr(reconnecting, "SILENCE", silence)
    with socket.create_server(("127.0.0.1", 0)) as broker:
        config = ConnectionConfig(
            "127.0.0.1", port=broker.getsockname()[1], retry_delay=0.01, max_retry_delay=0.02
        )
        server = Server(config, QUEUE, EXCHANGE, [Service])
        starting = threading.Thread(target=server.start)
        starting.start()
        for _ in range(8):
            broker.accept()[0].close()
        server.request_stop()
        starting.join(DEADLINE)
    said = [record.message for record in caplog.records if "before it was open" in record.message]
    assert re.fullmatch(r"RabbitMQ at \S+ closed .* Trying again, now in 0\.0 s\.", said[0])
    assert is_said_again is (len(said) > 1)


def test_a_handler_that_runs_into_the_brokers_consumer_timeout_is_warned_of(
    serve: Serve, connect: Connect, config: ConnectionConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, by name and with what to do; others are left alone."""
    serve(Service, config=config, concurrency=3, consumer_timeout=0.9)
    client = connect("svc", config=config)
    waiting = [client.svc.gated().future(timeout=DEADLINE) for _ in range(2)]
    for _ in waiting:
        assert "began" == Service.seen.get(timeout=DEADLINE)

    def warnings() -> list[str]:
        return [r.message for r in caplog.records if "consumer_timeout" in r.message]

    eventually(lambda: len(warnings()) == 2)
    for n in range(50):
        client.svc.ok(n=n).call(timeout=DEADLINE)
    Service.gate.set()
    for answer in waiting:
        answer.result(DEADLINE)
    assert 2 == len(warnings())
    assert re.search(
        rf"Service\.gated \(.*\) has had a message of queue {QUEUE} for \d s\. .* Split the work",
        warnings()[0],
    )


@pytest.mark.slow
def test_the_broker_takes_a_message_back_from_a_handler_that_runs_for_too_long(
    serve: Serve,
    connect: Connect,
    own: ConnectionConfig,
    own_node: Node,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What the warning is about: the message is handled again meanwhile, and all goes on."""
    for name, value in (("consumer_timeout", 2000), ("channel_tick_interval", 500)):
        own_node.eval(f"application:set_env(rabbit, {name}, {value})")
    try:
        serve(Service, config=own, concurrency=3, consumer_timeout=2.0)
        client = connect("svc", config=own)
        client.svc.gated().cast()
        assert "began" == Service.seen.get(timeout=DEADLINE)
        assert "began" == Service.seen.get(timeout=DEADLINE)
        Service.gate.set()
        assert {"n": 1} == client.svc.ok(n=1).call(timeout=DEADLINE).payload
    finally:
        own_node.eval("application:set_env(rabbit, consumer_timeout, 1800000)")
        own_node.eval("application:set_env(rabbit, channel_tick_interval, 60000)")
    said = [record.message for record in caplog.records]
    warned = next(n for n, text in enumerate(said) if "Split the work" in text)
    closed = next(n for n, text in enumerate(said) if "delivery acknowledgement" in text)
    assert warned < closed


@pytest.mark.parametrize(
    ("wrong_url", "text", "is_final"),
    [
        ("amqp://guest:wrong@127.0.0.1:{port}/{vhost}", "refused user 'guest'", True),
        ("amqp://guest:guest@127.0.0.1:{port}/nowhere", "'nowhere' does not exist", True),
        ("amqp://{user}:password@127.0.0.1:{port}/{vhost}", "'{vhost}' is closed to this", True),
        ("amqp://guest:guest@127.0.0.1:{closed}/x", "Is RabbitMQ running there?", False),
        ("amqp://guest:guest@no.such.host.invalid/x", "'no.such.host.invalid' is not", False),
        ("amqp://guest:guest@127.0.0.1:{silent}/x", "no answer in time", False),
    ],
)
def test_why_there_is_no_connection_is_said_in_one_sentence(
    rabbitmq: Node, vhost: str, user: str, wrong_url: str, text: str, is_final: bool
) -> None:
    """For servers and clients alike; what cannot get better by waiting is not tried again."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        fields = {
            "port": rabbitmq.port,
            "vhost": vhost,
            "user": user,
            "closed": _closed_port(),
            "silent": silent.getsockname()[1],
        }
        config = ConnectionConfig(
            url=(wrong_url.format(**fields),),
            connection_attempts=1,
            reconnect_attempts=1,
            socket_timeout=0.3,
        )
        server = Server(config, QUEUE, EXCHANGE, [Service])
        with pytest.raises(exceptions.ConnectionFailed, match=text.format(**fields)) as caught:
            server.start()
        assert is_final is caught.value.is_final
        with (
            _client(config) as client,
            pytest.raises(exceptions.ConnectionFailed, match=text.format(**fields)),
        ):
            client.svc.ok().cast()


def test_a_password_does_not_show(config: ConnectionConfig) -> None:
    """Neither in an error nor in what prints a configuration."""
    secret = ConnectionConfig(
        url=(f"amqp://guest:s3cret@127.0.0.1:{_closed_port()}/x",), connection_attempts=1
    )
    with _client(secret) as client, pytest.raises(exceptions.ConnectionFailed) as caught:
        client.svc.ok().cast()
    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in repr(secret)


def test_a_server_that_waits_for_its_broker_can_be_stopped() -> None:
    """It tries for ever, and yet ends when it is told to."""
    config = ConnectionConfig("127.0.0.1", port=_closed_port(), retry_delay=0.05)
    server = Server(config, QUEUE, EXCHANGE, [Service])
    starting = threading.Thread(target=server.start)
    starting.start()
    server.request_stop()
    starting.join(DEADLINE)
    assert not starting.is_alive()


def test_a_server_waits_for_a_broker_that_comes_later(
    own: ConnectionConfig, own_node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    """No order of starting is needed."""
    own_node.stop()
    server = Server(own, QUEUE, EXCHANGE, [Service])
    starting = threading.Thread(target=server.start)
    starting.start()
    eventually(lambda: any("Is RabbitMQ running there?" in r.message for r in caplog.records))
    own_node.start()
    starting.join(DEADLINE)
    assert not starting.is_alive()
    try:
        with _client(own) as client:
            assert {"n": 1} == client.svc.ok(n=1).call(timeout=DEADLINE).payload
    finally:
        server.stop()


# A quorum queue that is a moment old when its only node is killed is lost to RabbitMQ 3.10 itself.
@pytest.mark.parametrize(("queue_type", "how"), [("classic", "kill"), ("quorum", "stop")])
def test_server_and_client_survive_a_restart_of_the_broker(
    serve: Serve,
    connect: Connect,
    own: ConnectionConfig,
    own_node: Node,
    queue_type: str,
    how: str,
) -> None:
    """A cast made while the broker is down waits for it, and is handled."""
    serve(Service, config=own, queue_type=queue_type)
    client = connect("svc", config=own)
    assert {"n": 1} == client.svc.ok(n=1).call(timeout=DEADLINE).payload
    getattr(own_node, how)()
    cast: Future[None] = Future()

    def send() -> None:
        client.svc.ok(n=2).cast()
        cast.set_result(None)

    threading.Thread(target=send).start()
    own_node.start()
    cast.result(DEADLINE)
    while Service.seen.get(timeout=DEADLINE) != 2:
        pass
    assert {"n": 3} == client.svc.ok(n=3).call(timeout=DEADLINE).payload


def test_a_broker_that_takes_no_messages_makes_publishers_fail_by_their_deadline(
    serve: Serve, connect: Connect, own: ConnectionConfig, own_node: Node
) -> None:
    """A memory alarm: nothing hangs, the reason is said, and all goes on after it."""
    serve(Service, config=own)
    client = connect("svc", config=replace(own, publish_timeout=0.5))
    client.svc.ok(n=1).cast()
    own_node.ctl("set_vm_memory_high_watermark", "0.000001")
    try:
        # RabbitMQ says that it blocks a connection at the first message that it does not take.
        with pytest.raises(exceptions.PublishTimeout):
            client.svc.ok(n=2).cast()
        with pytest.raises(exceptions.PublishTimeout, match="takes no messages now"):
            client.svc.ok(n=3).cast()
    finally:
        own_node.ctl("set_vm_memory_high_watermark", "0.4")
    eventually(lambda: _casts(client))
    assert {1} <= {Service.seen.get(timeout=DEADLINE) for _ in range(2)}


def test_a_broker_that_hangs_is_noticed_by_its_missing_heartbeats(
    serve: Serve, connect: Connect, own: ConnectionConfig, own_node: Node
) -> None:
    """A call ends in time, and when the broker is awake again everything goes on."""
    quick = replace(own, heartbeat=1)
    serve(Service, config=quick)
    client = connect("svc", config=quick)
    client.svc.ok(n=1).call(timeout=DEADLINE)
    assert own_node.pid is not None
    os.kill(own_node.pid, signal.SIGSTOP)
    try:
        with pytest.raises(exceptions.CallInterrupted):
            client.svc.ok(n=2).call(timeout=DEADLINE)
    finally:
        os.kill(own_node.pid, signal.SIGCONT)
    assert {"n": 3} == client.svc.ok(n=3).call(timeout=DEADLINE).payload


def test_a_program_that_forgets_to_close_its_client_still_ends(serve: Serve, amqp_url: str) -> None:
    """At once, with exit code 0 and nothing printed."""
    serve(Service)
    text = f"""
from tavrida import client, config, discovery
known = discovery.LocalDiscovery()
known.register_remote_service("svc", {EXCHANGE!r})
cli = client.RPCClient(config.ConnectionConfig(url={amqp_url!r}), "svc", known, "script")
cli.ok(n=1).cast()
print(cli.ok(n=2).call().payload)
"""
    with Program(["-W", "error", "-c", text]) as program:
        program.line("{'n': 2}")
        assert 0 == program.process.wait(5)
        assert ["{'n': 2}"] == program.output


def test_a_forked_child_gets_a_connection_of_its_own(serve: Serve, amqp_url: str) -> None:
    """A client that the parent has used already works in both, and both end well."""
    serve(Service)
    text = f"""
import os, sys
from tavrida import client, config, discovery
known = discovery.LocalDiscovery()
known.register_remote_service("svc", {EXCHANGE!r})
cli = client.RPCClient(config.ConnectionConfig(url={amqp_url!r}), "svc", known, "script")
print("before", cli.ok(n=1).call().payload)
child = os.fork()
print("child" if child == 0 else "parent", cli.ok(n=2).call().payload)
if child:
    print("child ended with", os.waitpid(child, 0)[1])
"""
    with Program(["-c", text]) as program:
        program.line("child ended with 0")
        assert 0 == program.process.wait(5)
        assert {"before {'n': 1}", "child {'n': 2}", "parent {'n': 2}"} <= set(program.output)


def test_stopping_a_server_on_its_own_event_loop_is_an_error(
    serve: Serve, connect: Connect
) -> None:
    """It would wait for itself; request_stop is for handlers."""

    @dispatcher.rpc_service("suicidal")
    class Suicidal(ServiceController):
        @dispatcher.rpc_method(service="suicidal", method="stop")
        async def stop(self, request: Any, proxy: Any) -> None:
            server.stop()

    server = serve(Suicidal)
    with pytest.raises(exceptions.RemoteError, match="would wait for itself"):
        connect("suicidal").suicidal.stop().call(timeout=DEADLINE)


def _casts(client: Any) -> bool:
    try:
        client.svc.ok(n=4).cast()
    except exceptions.PublishTimeout:
        return False
    return True


def _client(config: ConnectionConfig) -> Any:
    from tavrida.client import RPCClient

    known = discovery.LocalDiscovery()
    known.register_remote_service("svc", EXCHANGE)
    return RPCClient(config, discovery=known)


def _closed_port() -> int:
    """A port on which nobody listens, out of the range of outgoing connections."""
    for port in range(19_999, 10_000, -1):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port")


def test_many_who_get_messages_share_one_channel(url: str) -> None:
    """Beside the two that publish and consume."""
    with Bench(url) as bench:
        connection = bench.connect()
        queue = connection.queue()
        connection.put(queue, *[b"x"] * 10)

        async def all_at_once() -> list[Any]:
            return await asyncio.gather(*(connection.transport.get(queue) for _ in range(10)))

        assert all(bench.run(all_at_once()))
        assert 3 == len(connection.transport._connection._channels)  # type: ignore[attr-defined]


@pytest.mark.parametrize("how", ["ack", "requeue", "reject"])
def test_what_was_got_is_not_kept_after_it_was_settled(url: str, how: str) -> None:
    """Nor counted as held."""
    with Bench(url) as bench:
        connection = bench.connect()
        queue = connection.queue()
        connection.put(queue, b"x")
        got = connection.get(queue)
        assert got is not None
        getattr(bench, how)(got)
        kept = weakref.ref(got)
        del got
        gc.collect()
        assert kept() is None


def test_only_a_loss_that_nobody_was_told_of_is_a_warning(
    rabbitmq: Node, vhost: str, user: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A refusal is told to whoever asked; the loss that it costs is no further news."""
    rabbitmq.permit(user, vhost, configure="^$", write="^$", read="^$")
    caplog.set_level(logging.DEBUG, "tavrida")

    def levels() -> list[int]:
        return [each.levelno for each in caplog.records if "lost its connection" in each.message]

    with Bench(rabbitmq.url(vhost, user=user, password="password")) as bench:
        connection = bench.connect()
        with pytest.raises(exceptions.ConnectionFailed, match="cannot make a queue for answers"):
            connection.reply_queue()
        eventually(lambda: levels() == [logging.DEBUG])
        eventually(lambda: connection.transport.is_ready)
        wire: Any = getattr(connection.transport, "_connection")  # noqa: B009 - of RabbitMQ's only
        wire._transport._sock.shutdown(socket.SHUT_RDWR)
        eventually(lambda: levels() == [logging.DEBUG, logging.WARNING])
        for _ in levels():
            connection.lost.get(timeout=DEADLINE)


def test_a_connection_that_is_just_closing_has_closed_before_its_loop_ends(amqp_url: str) -> None:
    """Its socket would stay open as long as the program runs."""
    with Bench(amqp_url) as bench:
        connection = bench.connect()
        wire: Any = getattr(connection.transport, "_connection")  # noqa: B009 - of RabbitMQ's only
        sock = wire._transport._sock

        async def close() -> None:
            wire.close()
            await connection.transport.close()

        connection.transport.loop.run(close())
        assert -1 == sock.fileno()
