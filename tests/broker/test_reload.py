# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""``Server.reload``: other numbers while messages are handled, over the same connection."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from tavrida import dispatcher, exceptions, service
from tavrida.config import ConnectionConfig
from tavrida.retries import Retries, Retry
from tavrida.server import Server
from tests.broker.conftest import QUEUE, Connect, Serve
from tests.faults.proxy import Proxy
from tests.rabbitmq import Node
from tests.waiting import DEADLINE, eventually

NEVER = Retries(Retry(attempts=1))


@dispatcher.rpc_service("forge")
class Forge(service.ServiceController):
    """Counts what begins and ends, and ends when it is let."""

    permits: ClassVar[threading.Semaphore]
    begun: ClassVar[Counter[str]]
    ended: ClassVar[Counter[str]]

    def _work(self, name: str) -> None:
        self.begun[name] += 1
        assert self.permits.acquire(timeout=DEADLINE)
        self.ended[name] += 1

    @dispatcher.rpc_method(service="forge", method="hold")
    def hold(self, request: Any, proxy: Any, n: int = 0) -> None:
        self._work("hold")

    @dispatcher.rpc_method(service="forge", method="quick")
    def quick(self, request: Any, proxy: Any) -> None: ...

    @dispatcher.rpc_method(service="forge", method="fails")
    def fails(self, request: Any, proxy: Any) -> None:
        self.begun["fails"] += 1
        raise OSError("it is cold")


@pytest.fixture(autouse=True)
def _fresh() -> Any:
    Forge.permits = threading.Semaphore(0)
    Forge.begun, Forge.ended = Counter(), Counter()
    yield
    Forge.permits.release(1000)


def begun(name: str = "hold") -> int:
    return Forge.begun[name]


def let_end(count: int) -> None:
    """Let so many handlers end, and wait until they have."""
    before = Forge.ended["hold"]
    Forge.permits.release(count)
    eventually(lambda: Forge.ended["hold"] == before + count)


def change(server: Server, retries: Retries = NEVER, **settings: Any) -> bool:
    return server.reload(replace(server.settings, **settings), retries)


def connection_of(server: Server) -> object:
    """What is another object after a loss."""
    return server._consuming._connection  # type: ignore[attr-defined]


def test_more_concurrency_lets_more_begin_at_once(serve: Serve, connect: Connect) -> None:
    """The prefetch follows, or nothing more would come; and the connection stays."""
    server = serve(Forge, concurrency=2)
    before = connection_of(server)
    client = connect("forge")
    with client.pipeline():
        for n in range(9):
            client.forge.hold(n=n).cast()
    eventually(lambda: begun() == 2)
    change(server, concurrency=7)
    eventually(lambda: begun() == 7)
    let_end(7)
    eventually(lambda: begun() == 9)
    let_end(2)
    assert before is connection_of(server)


def test_less_concurrency_lets_those_end_that_run(serve: Serve, connect: Connect) -> None:
    """Nothing begins until there is room by the new number."""
    server = serve(Forge, concurrency=5)
    client = connect("forge")
    with client.pipeline():
        for n in range(9):
            client.forge.hold(n=n).cast()
    eventually(lambda: begun() == 5)
    change(server, concurrency=2)
    let_end(3)
    client_that_waits = client.forge.quick().future()  # behind the others in the queue
    assert 5 == begun()
    let_end(1)
    eventually(lambda: begun() == 6)
    let_end(1)
    eventually(lambda: begun() == 7)
    assert not client_that_waits.done()
    Forge.permits.release(4)
    assert {} == client_that_waits.result(DEADLINE).payload
    eventually(lambda: Forge.ended["hold"] == 9)


def test_a_prefetch_of_its_own_is_changed_too(serve: Serve, connect: Connect) -> None:
    """What is handed over ahead of the handlers, as the broker counts it."""
    server = serve(Forge, concurrency=1, prefetch=2)
    client = connect("forge")
    with client.pipeline():
        for n in range(20):
            client.forge.hold(n=n).cast()

    def waiting() -> int:
        assert server._loop is not None
        state = server._loop.run(server._consuming.inspect(QUEUE))
        assert state is not None
        return state.messages

    eventually(lambda: waiting() == 18)
    change(server, prefetch=12)
    eventually(lambda: waiting() <= 8)
    assert 1 == begun()
    Forge.permits.release(20)
    eventually(lambda: Forge.ended["hold"] == 20)


def test_a_handler_gets_a_limit_another_one_and_none(serve: Serve, connect: Connect) -> None:
    """Others are not held up by it."""
    server = serve(Forge, concurrency=10)
    client = connect("forge")
    change(server, handler_concurrency=("forge.hold:1",))
    with client.pipeline():
        for n in range(6):
            client.forge.hold(n=n).cast()
    eventually(lambda: begun() == 1)
    client.forge.quick().call()
    assert 1 == begun()
    change(server, handler_concurrency=("forge.hold:3",))
    eventually(lambda: begun() == 3)
    client.forge.quick().call()
    assert 3 == begun()
    change(server, handler_concurrency=())
    eventually(lambda: begun() == 6)
    let_end(6)


def test_the_kill_switch_is_set_and_taken_away(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """A queue that is paused goes on when the option is 0 again."""
    server = serve(Forge)
    client = connect("forge")
    change(server, failure_threshold=0.5, failure_window=2, failure_pause=300.0)
    with caplog.at_level(logging.ERROR):
        for _ in range(2):
            client.forge.fails().cast()
        eventually(lambda: "Paused queue" in caplog.text)
    waiting = client.forge.quick().future()
    change(server, failure_threshold=0.5, failure_window=4)
    assert not waiting.done()
    change(server, failure_threshold=0.0)
    waiting.result(DEADLINE)
    for _ in range(4):
        client.forge.fails().cast()
    client.forge.quick().call()
    assert 1 == caplog.text.count("Paused queue")


def test_a_kill_switch_that_was_taken_away_holds_nobody_up_later(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """Also those that came while it was there, and wait for something else."""
    server = serve(Forge)
    client = connect("forge")
    change(
        server,
        handler_concurrency=("forge.hold:2",),
        failure_threshold=0.5,
        failure_window=2,
        failure_pause=0.3,
    )
    with client.pipeline():
        for n in range(5):
            client.forge.hold(n=n).cast()
    eventually(lambda: begun() == 2)
    with caplog.at_level(logging.ERROR):
        for _ in range(2):
            client.forge.fails().cast()
        eventually(lambda: "Paused queue" in caplog.text)
    paused_at = time.monotonic()
    change(server, failure_threshold=0.0)
    eventually(lambda: time.monotonic() > paused_at + 0.6)
    change(server, handler_concurrency=())
    eventually(lambda: begun() == 5)
    let_end(5)


def test_retries_begin_and_end(serve: Serve, connect: Connect) -> None:
    """The queues in which they wait are declared when they are needed."""
    server = serve(Forge)
    client = connect("forge")
    client.forge.fails().cast()
    eventually(lambda: begun("fails") == 1)
    change(server, Retries(Retry(attempts=3, first_delay=0.05, factor=2.0)))
    client.forge.fails().cast()
    eventually(lambda: begun("fails") == 4)
    change(server, NEVER)
    client.forge.fails().cast()
    eventually(lambda: begun("fails") == 5)
    dead = f"{QUEUE}.dead"

    def letters() -> int:
        assert server._loop is not None
        state = server._loop.run(server._consuming.inspect(dead))
        return state.messages if state else 0

    eventually(lambda: letters() == 3)
    assert 5 == begun("fails")


def test_what_cannot_work_is_refused_and_all_stays(serve: Serve, connect: Connect) -> None:
    """All faults at once, before anything is changed."""
    server = serve(Forge, concurrency=2)
    settings = server.settings
    with pytest.raises(exceptions.ConfigError) as refusal:
        change(
            server,
            Retries(named={"forge": Retry(first_delay=1000.0)}),
            concurrency=5,
            handler_concurrency=("forge.hol:1",),
        )
    first, *more = refusal.value.faults
    assert "first_delay=1000.0 is longer than max_delay" in first
    assert "there is no handler of 'forge.hol' here (did you mean 'forge.hold'?)" in more[-1]
    assert settings is server.settings
    client = connect("forge")
    for n in range(4):
        client.forge.hold(n=n).cast()
    eventually(lambda: begun() == 2)
    Forge.permits.release(1)
    eventually(lambda: begun() == 3)


def test_a_server_that_is_not_started_begins_with_what_it_was_told_last(
    config: ConnectionConfig, connect: Connect
) -> None:
    """As the master of several processes does, which only checks."""
    server = Server(config, QUEUE, "test_exchange", [Forge], queue_type="classic", retry=False)
    change(server, concurrency=3)
    with server:
        client = connect("forge")
        with client.pipeline():
            for n in range(5):
                client.forge.hold(n=n).cast()
        eventually(lambda: begun() == 3)
        Forge.permits.release(5)
        eventually(lambda: Forge.ended["hold"] == 5)


@pytest.fixture
def proxy(rabbitmq: Node) -> Iterator[Proxy]:
    """What stands between the test and its broker."""
    with Proxy(rabbitmq.port) as proxy:
        yield proxy


@pytest.fixture
def behind(proxy: Proxy, rabbitmq: Node, amqp_url: str) -> ConnectionConfig:
    """A connection through the proxy."""
    url = amqp_url.replace(f":{rabbitmq.port}/", f":{proxy.port}/")
    return ConnectionConfig(url=(url,), async_engine=True, retry_delay=0.1)


def test_without_a_connection_it_takes_effect_with_the_next_one(
    proxy: Proxy, behind: ConnectionConfig, connect: Connect
) -> None:
    """Prefetch and new queues for retries too."""
    retries = Retries(Retry(attempts=2, first_delay=0.01))
    with Server(
        behind, QUEUE, "test_exchange", [Forge], queue_type="classic", retry=False, concurrency=1
    ) as server:
        proxy.go_down()
        eventually(lambda: not server._consuming.can_publish)
        client = connect("forge")
        with client.pipeline():
            for n in range(6):
                client.forge.hold(n=n).cast()
        changing = threading.Thread(
            target=lambda: change(server, retries, concurrency=4), daemon=True
        )
        changing.start()
        changing.join(0.5)
        assert changing.is_alive()
        proxy.heal()
        changing.join(DEADLINE)
        assert not changing.is_alive()
        eventually(lambda: begun() == 4)
        assert 4 == server.settings.concurrency
        let_end(4)
        eventually(lambda: begun() == 6)
        let_end(2)
        client.forge.fails().cast()
        eventually(lambda: begun("fails") == 2)


def test_a_stop_ends_the_waiting_for_a_connection(
    proxy: Proxy, behind: ConnectionConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator who stops a server that reloads in an outage does not wait for its end.

    And is not told that it has reloaded.
    """
    server = Server(behind, QUEUE, "test_exchange", [Forge], queue_type="classic", retry=False)
    serving, reloading = threading.Event(), threading.Event()
    reloaded = []

    def reload() -> None:
        reloading.set()
        reloaded.append(change(server, Retries(Retry(attempts=2)), concurrency=4))

    server.request(serving.set)
    running = threading.Thread(target=server.run)
    running.start()
    assert serving.wait(DEADLINE)
    proxy.go_down()
    eventually(lambda: not server._consuming.can_publish)
    server.request(reload)
    assert reloading.wait(DEADLINE)
    server.request_stop()
    running.join(DEADLINE)
    assert not running.is_alive()
    assert "A job failed" not in caplog.text
    assert [False] == reloaded
