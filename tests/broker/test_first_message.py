# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""A client's first message, while it connects to a broker that does not answer yet."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tavrida import dispatcher, exceptions
from tavrida.client import AsyncRPCClient, RPCClient, _Link
from tavrida.config import ConnectionConfig
from tavrida.server import Server
from tavrida.service import ServiceController
from tests.broker.conftest import Connect, Serve
from tests.transports.bench import transport_class
from tests.waiting import DEADLINE, eventually

#: Seconds that the messages here have, and by which they end at the latest.
SHORT, SOON = 0.4, 3.0

Ask = Callable[[ConnectionConfig, float], None]


@dispatcher.rpc_service("echo")
class Echo(ServiceController):
    """Says what it is told."""

    @dispatcher.rpc_method(service="echo", method="say")
    def say(self, request: Any, proxy: Any, word: str = "") -> dict[str, Any]:
        return {"word": word}


@pytest.fixture
def silent() -> Iterator[ConnectionConfig]:
    """A place that takes connections and says nothing, for longer than any test here lasts."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        yield ConnectionConfig(
            url=(f"amqp://guest:guest@127.0.0.1:{port}/%2F",), socket_timeout=DEADLINE
        )


def _call(config: ConnectionConfig, seconds: float) -> None:
    with RPCClient(config) as client:
        client.echo.say().call(timeout=seconds)


def _future(config: ConnectionConfig, seconds: float) -> None:
    with RPCClient(config) as client:
        began = time.monotonic()
        answer = client.echo.say().future(timeout=seconds)
        assert time.monotonic() - began < seconds
        answer.result(DEADLINE)


def _cast(config: ConnectionConfig, seconds: float) -> None:
    with RPCClient(replace(config, publish_timeout=seconds)) as client:
        client.echo.say().cast()


def _publish(config: ConnectionConfig, seconds: float) -> None:
    with RPCClient(replace(config, publish_timeout=seconds), source="test.first") as client:
        client.publish()


def _call_async(config: ConnectionConfig, seconds: float) -> None:
    async def call() -> None:
        async with AsyncRPCClient(config) as client:
            await client.echo.say().call(timeout=seconds)

    asyncio.run(call())


def _cast_async(config: ConnectionConfig, seconds: float) -> None:
    async def cast() -> None:
        async with AsyncRPCClient(replace(config, publish_timeout=seconds)) as client:
            await client.echo.say().cast()

    asyncio.run(cast())


@pytest.mark.parametrize("ask", [_call, _future, _cast, _publish, _call_async, _cast_async])
def test_the_first_message_ends_within_its_own_time(silent: ConnectionConfig, ask: Ask) -> None:
    """However long connecting takes, and so does closing the client meanwhile."""
    began = time.monotonic()
    with pytest.raises(exceptions.ConnectionFailed, match=r"no connection .* nothing was sent"):
        ask(silent, SHORT)
    assert SHORT <= time.monotonic() - began < SOON


def test_the_error_says_why_there_is_no_connection() -> None:
    """What the last attempt met, while the next one is still to come."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    config = ConnectionConfig(url=(f"amqp://127.0.0.1:{port}/%2F",), retry_delay=DEADLINE)
    with RPCClient(config) as client, pytest.raises(exceptions.ConnectionFailed) as caught:
        client.echo.say().call(timeout=SHORT)
    assert f"127.0.0.1:{port}: connection refused" in str(caught.value)


def test_each_of_many_waits_for_its_own_time_only(silent: ConnectionConfig) -> None:
    """One that has long does not make the others wait."""
    with RPCClient(silent) as client:
        patient = client.echo.say().future(timeout=DEADLINE)
        began = time.monotonic()
        with ThreadPoolExecutor(4) as pool:
            others = [
                pool.submit(client.echo.say().call, timeout=SHORT * number) for number in (1, 2, 3)
            ]
            for other in others:
                assert isinstance(other.exception(DEADLINE), exceptions.ConnectionFailed)
        assert time.monotonic() - began < SOON
        assert not patient.done()
    with pytest.raises(exceptions.TavridaError):
        patient.result(SOON)


@pytest.mark.parametrize("send", ["call", "cast"])
def test_closing_does_not_wait_for_connecting(silent: ConnectionConfig, send: str) -> None:
    """Who waits in another thread is told at once."""
    client = RPCClient(silent)
    told: Future[Any] = Future()

    def ask() -> None:
        try:
            getattr(client.echo.say(), send)()
        except exceptions.TavridaError as error:
            told.set_result(error)

    threading.Thread(target=ask, daemon=True).start()
    eventually(lambda: client._sender._link is not None)
    began = time.monotonic()
    client.close()
    error = told.result(SOON)
    assert isinstance(error, exceptions.ConnectionFailed)  # and not "may have been handled"
    assert "closed" in str(error)
    assert time.monotonic() - began < SOON


def test_what_has_time_left_is_sent_when_the_broker_answers(tmp_path: Path) -> None:
    """One client goes on connecting for those that wait, and for those that come later."""
    config = ConnectionConfig(url=(f"sqlite://{tmp_path}/bus.db",), retry_delay=0.1)
    with Server(config, "echo", "echo", [Echo]):
        pass  # what it declared stays
    with closing(sqlite3.connect(tmp_path / "bus.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        client = RPCClient(config)
        early = client.echo.say(word="early").future(timeout=SHORT)
        late = client.echo.say(word="late").future(timeout=DEADLINE)
        assert isinstance(early.exception(DEADLINE), exceptions.ConnectionFailed)
        other.execute("ROLLBACK")
    with client, Server(config, "echo", "echo", [Echo]):
        assert "late" == late.result(DEADLINE)["word"]
        assert "later" == client.echo.say(word="later").call(timeout=DEADLINE)["word"]


def test_a_client_may_try_again_after_it_could_not_connect(
    serve: Serve, connect: Connect, config: ConnectionConfig
) -> None:
    """Each attempt of its own begins anew."""
    serve(Echo)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    nowhere = f"amqp://127.0.0.1:{port}/%2F"
    client = connect("echo", config=replace(config, url=(nowhere,), connection_attempts=1))
    for _ in range(3):
        with pytest.raises(exceptions.ConnectionFailed, match="connection refused"):
            client.echo.say().call(timeout=DEADLINE)
    client._sender._config = config
    client._sender._transport = transport_class(config.url[0])
    assert "now" == client.echo.say(word="now").call(timeout=DEADLINE)["word"]


def test_a_child_forked_while_another_thread_connects_has_a_client_too(
    serve: Serve, connect: Connect
) -> None:
    """That thread, which holds the lock, is not in the child."""
    serve(Echo)
    client = connect("echo")
    fork = multiprocessing.get_context("fork")
    words = fork.SimpleQueue()

    def say() -> None:
        words.put(client.echo.say(word="child").call(timeout=DEADLINE)["word"])
        client.close()

    child = fork.Process(target=say, daemon=True)
    with client._sender._connecting:
        child.start()
    child.join(SOON)
    try:
        assert (0, "child") == (child.exitcode, words.get())
    finally:
        child.kill()
    assert "parent" == client.echo.say(word="parent").call(timeout=DEADLINE)["word"]


def test_connecting_that_fails_leaves_nothing_behind() -> None:
    """However often a client tries again."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    config = ConnectionConfig(url=(f"amqp://127.0.0.1:{port}/%2F",), connection_attempts=1)
    before = threading.active_count()
    with RPCClient(config) as client:
        for _ in range(50):
            with pytest.raises(exceptions.ConnectionFailed):
                client.echo.say().cast()
        gc.collect()
        links = [each for each in gc.get_objects() if isinstance(each, _Link)]
        assert [client._sender._link] == [each for each in links if each.transport.config is config]
        assert threading.active_count() <= before + 2  # the link's, and one that resolves names


@pytest.mark.parametrize("client", [RPCClient, AsyncRPCClient])
@pytest.mark.parametrize(
    ("urls", "error"),
    [
        (("sqlite:///a.db", "sqlite:///b.db"), exceptions.ConfigError),
        (("nowhere://host",), exceptions.PluginError),
    ],
)
def test_a_url_that_cannot_work_is_told_before_there_is_a_thread(
    client: Any, urls: tuple[str, ...], error: type[Exception]
) -> None:
    """By the constructor, and not by the first message."""
    before = set(threading.enumerate())
    with pytest.raises(error):
        client(ConnectionConfig(url=urls))
    assert set(threading.enumerate()) <= before


def test_giving_up_while_connecting_makes_no_noise(
    silent: ConnectionConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither asyncio nor pika complains of what nobody waits for any more."""

    async def ask() -> None:
        async with AsyncRPCClient(silent) as client:
            with pytest.raises(exceptions.ConnectionFailed):
                await client.echo.say().call(timeout=0.1)
            for giving_up in (client.echo.say().cast(), client.echo.say().call()):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(giving_up, 0.1)

    asyncio.run(ask())
    with RPCClient(silent) as client:
        answer = client.echo.say().future(timeout=DEADLINE)
        with pytest.raises(exceptions.ConnectionFailed):
            client.echo.say().call(timeout=0.1)
    assert isinstance(answer.exception(SOON), exceptions.ConnectionFailed)
    del client, answer
    gc.collect()
    assert [] == [each.getMessage() for each in caplog.records if each.name == "asyncio"]
