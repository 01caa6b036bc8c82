# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""/live and /ready as a probe meets them: over HTTP, whatever the server is doing."""

from __future__ import annotations

import contextlib
import gc
import http.client
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pika
import pytest

from tavrida import discovery, dispatcher, health
from tavrida.board import Board, Seat
from tavrida.client import RPCClient
from tavrida.config import ConnectionConfig, HealthSettings
from tavrida.exceptions import ConfigError
from tavrida.middleware import Middleware, Vitals
from tavrida.plugins.transports.sqlite import store
from tavrida.server import Server
from tavrida.service import ServiceController
from tests.rabbitmq import Node, free_port
from tests.waiting import DEADLINE, eventually


@dispatcher.rpc_service("shop")
class Shop(ServiceController):
    gate = threading.Event()

    @dispatcher.rpc_method(service="shop", method="gated")
    def gated(self, request: Any, proxy: Any) -> None:
        assert self.gate.wait(DEADLINE)

    @dispatcher.rpc_method(service="shop", method="block")
    async def block(self, request: Any, proxy: Any) -> None:
        self.gate.wait(DEADLINE)  # what an async def handler must not do

    @dispatcher.rpc_method(service="shop", method="fail")
    def fail(self, request: Any, proxy: Any) -> None:
        raise RuntimeError("out of order")


@pytest.fixture(autouse=True)
def gate() -> Iterator[threading.Event]:
    """Handlers end when it is set; at the latest when the test does."""
    Shop.gate = threading.Event()
    yield Shop.gate
    Shop.gate.set()


class Probe:
    """What answers at one port."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, path: str, method: str = "GET") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def told(self, path: str) -> tuple[int, dict[str, Any]]:
        status, body = self.ask(path)
        return status, json.loads(body)

    def status(self, path: str) -> int:
        return self.ask(path)[0]

    def seconds_until(self, path: str, status: int) -> float:
        """Return how long it takes until a path answers with that status."""
        began = time.monotonic()
        eventually(lambda: self.status(path) == status)
        return time.monotonic() - began


Serve = Callable[..., tuple[Server, Probe]]

#: Where servers run, by the name of the transport.
TRANSPORTS = ("rabbitmq", "sqlite")


@pytest.fixture(params=TRANSPORTS)
def url(request: pytest.FixtureRequest) -> str:
    """A place of the test's own, on every transport in turn."""
    if request.param == "rabbitmq":
        return str(request.getfixturevalue("amqp_url"))
    return f"sqlite://{request.getfixturevalue('tmp_path')}/bus.db"


def config_of(url: str) -> ConnectionConfig:
    return ConnectionConfig(
        url=(url,), async_engine=True, retry_delay=0.05, max_retry_delay=0.2, publish_timeout=5.0
    )


def server_of(url: str, port: int, **more: Any) -> Server:
    limits = {name: more.pop(name) for name in ("stuck_loop", "stuck_handler") if name in more}
    settings = HealthSettings(port=port, **limits)
    more = {"queue_type": "classic", **more}
    return Server(config_of(url), "shop", "shop", [Shop], health=settings, **more)


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Call it with a url to start a server there, and to get what asks for its health."""
    with ExitStack() as servers:

        def start(url: str, **more: Any) -> tuple[Server, Probe]:
            port = free_port()
            return servers.enter_context(server_of(url, port, **more)), Probe(port)

        yield start


def cast(url: str, *methods: str) -> None:
    known = discovery.LocalDiscovery()
    known.register_remote_service("shop", "shop")
    with RPCClient(config_of(url), discovery=known) as client:
        for method in methods:
            getattr(client.shop, method)().cast()


# -- what is told


def test_a_server_that_serves_is_ready(serve: Serve, url: str) -> None:
    """The body says of each connection that it is there."""
    _, probe = serve(url)
    there = {"ready": True, "can_publish": True, "trouble": ""}
    assert (
        200,
        {
            "ready": True,
            "reasons": [],
            "state": "serving",
            "connections": {"incoming": there, "outgoing": there},
            "paused_queues": [],
            "stuck_handlers": [],
        },
    ) == probe.told("/ready")
    status, told = probe.told("/live")
    assert (200, True, []) == (status, told["live"], told["reasons"])


def test_a_server_that_waits_for_its_broker_lives_and_is_not_ready() -> None:
    """An orchestrator must not restart it for that."""
    port = free_port()
    server = server_of("amqp://guest:secret@127.0.0.1:1/", port)
    starting = threading.Thread(target=server.run)
    starting.start()
    try:
        probe = Probe(port)
        told = eventually(lambda: _told_of_trouble(probe))
        assert told["ready"] is False
        assert "the server is starting" in told["reasons"]
        assert "127.0.0.1:1" in told["connections"]["incoming"]["trouble"]
        assert "secret" not in json.dumps(told)
        assert 200 == probe.status("/live")
    finally:
        server.request_stop()
        starting.join(DEADLINE)


def _told_of_trouble(probe: Probe) -> dict[str, Any]:
    try:
        status, told = probe.told("/ready")
    except OSError:
        return {}
    assert 503 == status
    return told if told["connections"]["incoming"]["trouble"] else {}


@pytest.mark.slow
def test_ready_turns_within_a_second_when_the_broker_goes_and_comes(
    serve: Serve, node: Callable[[], Node]
) -> None:
    """However it goes; and the process lives all the time."""
    broker = node()
    _, probe = serve(broker.url())
    assert 200 == probe.status("/ready")
    for end in (broker.kill, broker.stop):
        ending = threading.Thread(target=end)
        ending.start()
        eventually(lambda: not speaks(broker))
        assert probe.seconds_until("/ready", 503) < 1
        ending.join()
        _, told = probe.told("/ready")
        assert "the incoming connection is not there" in told["reasons"][0]
        assert 200 == probe.status("/live")
        broker.start()
        eventually(lambda: consumers_of(broker) == 1)
        assert probe.seconds_until("/ready", 200) < 1
        assert 200 == probe.status("/live")


def speaks(broker: Node) -> bool:
    try:
        socket.create_connection(("127.0.0.1", broker.port), timeout=1).close()
    except OSError:
        return False
    return True


def consumers_of(broker: Node) -> int:
    """Return how many consume the queue, as the broker has it."""
    try:
        with pika.BlockingConnection(pika.URLParameters(broker.url())) as connection:
            found = connection.channel().queue_declare("shop", passive=True)
    except pika.exceptions.AMQPError:
        return 0
    return int(found.method.consumer_count)


def test_ready_turns_within_a_second_when_the_database_goes_and_comes(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedded bus is a broker too, and its file may be removed; it looks now and then."""
    monkeypatch.setattr(store, "SWEEP", 0.05)
    folder = tmp_path / "bus"
    folder.mkdir()
    _, probe = serve(f"sqlite://{folder}/bus.db")
    folder.rename(tmp_path / "gone")
    folder.touch()  # so that it cannot be made again
    assert probe.seconds_until("/ready", 503) < 1
    eventually(lambda: str(folder) in probe.told("/ready")[1]["reasons"][0])
    assert 200 == probe.status("/live")
    folder.unlink()
    folder.mkdir()
    assert probe.seconds_until("/ready", 200) < 1
    assert (folder / "bus.db").exists()


def test_a_server_that_stops_is_not_ready_any_more(
    serve: Serve, url: str, gate: threading.Event
) -> None:
    """It lives while its handlers finish; then nobody answers."""
    server, probe = serve(url)
    cast(url, "gated")
    eventually(lambda: server._processor.open_handlings)
    stopping = threading.Thread(target=server.stop)
    stopping.start()
    eventually(lambda: probe.status("/ready") == 503)
    status, told = probe.told("/ready")
    assert (503, "stopping") == (status, told["state"])
    assert "the server is stopping" in told["reasons"]
    assert 200 == probe.status("/live")
    gate.set()
    stopping.join(DEADLINE)
    with pytest.raises(OSError, match="refused"):
        probe.ask("/live")


# -- what is stuck


def test_a_stuck_handler_is_told_and_logged_once(
    serve: Serve, url: str, gate: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    """With service, method and seconds; the server stays ready, and forgets it when it ends."""
    _, probe = serve(url, stuck_handler=0.5)
    cast(url, "gated")
    eventually(lambda: probe.told("/ready")[1]["stuck_handlers"])
    status, told = probe.told("/ready")
    (stuck,) = told["stuck_handlers"]
    assert (200, "shop", "gated") == (status, stuck["service"], stuck["method"])
    first = stuck["seconds"]
    assert 0.5 <= first < DEADLINE
    eventually(lambda: probe.told("/ready")[1]["stuck_handlers"][0]["seconds"] >= first + 0.6)
    (record,) = [each for each in caplog.records if each.name == health.__name__]
    assert "shop.gated has been handling a message of queue shop" in record.getMessage()
    assert ("shop", "gated") == (vars(record)["service"], vars(record)["method"])
    gate.set()
    eventually(lambda: not probe.told("/ready")[1]["stuck_handlers"])


def test_a_message_that_waits_for_its_turn_is_not_stuck(
    serve: Serve, url: str, gate: threading.Event
) -> None:
    """Only handlers that run are."""
    server, probe = serve(url, stuck_handler=0.3, concurrency=1, prefetch=5)
    cast(url, "gated", "gated")
    eventually(lambda: len(server._processor.open_handlings) == 2)
    eventually(lambda: probe.told("/ready")[1]["stuck_handlers"])
    end = time.monotonic() + 0.8
    while time.monotonic() < end:
        assert 1 == len(probe.told("/ready")[1]["stuck_handlers"])
    gate.set()


def test_a_stuck_event_loop_is_not_alive_until_it_goes_on(
    serve: Serve, url: str, gate: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    """The probe is answered all the same; the log tells once where the loop is."""
    _, probe = serve(url, stuck_loop=0.5)
    cast(url, "block")
    eventually(lambda: probe.status("/live") == 503)
    status, told = probe.told("/live")
    assert (503, False) == (status, told["live"])
    assert 0.5 <= told["loop_seconds"]  # to a tenth of a second
    assert "the event loop has been held up" in told["reasons"][0]
    assert 503 == probe.status("/ready")
    eventually(lambda: [r for r in caplog.records if "held up" in r.getMessage()])
    gate.set()
    eventually(lambda: probe.status("/live") == 200)
    (record,) = [each for each in caplog.records if "held up" in each.getMessage()]
    assert "in block" in record.getMessage()
    assert logging.ERROR == record.levelno


def test_a_paused_queue_is_told(serve: Serve, url: str) -> None:
    """The kill switch has shut it; the consumer is there, so the server stays ready."""
    _, probe = serve(url, failure_threshold=0.5, failure_window=1, failure_pause=60.0, retry=1)
    cast(url, "fail")
    eventually(lambda: probe.told("/ready")[1]["paused_queues"] == ["shop"])
    assert 200 == probe.status("/ready")


# -- the HTTP server


@pytest.fixture
def probe(serve: Serve, tmp_path: Path) -> Probe:
    """Asks a server of the embedded bus."""
    return serve(f"sqlite://{tmp_path}/bus.db")[1]


def test_what_is_not_there_is_told_with_what_is(probe: Probe) -> None:
    """And metrics with how to get them."""
    status, told = probe.told("/health")
    assert (404, "there is only /live, /ready") == (status, told["error"])
    status, told = probe.told("/metrics")
    assert 404 == status
    assert "name prometheus in incoming_middleware" in told["error"]
    assert 405 == probe.ask("/live", "POST")[0]
    assert (200, b"") == probe.ask("/live", "HEAD")
    assert 200 == probe.status("/live?from=kubelet")


NO_HTTP = [b"\r\n\r\n", b"GET\r\n\r\n", b"\x00\xff GET /live\r\nx\r\n\r\n", b"GET  /live a\r\n\r\n"]


@pytest.mark.parametrize("sent", NO_HTTP)
def test_what_is_no_http_is_refused(probe: Probe, sent: bytes) -> None:
    """In one answer, and the next request is served."""
    with socket.create_connection(("127.0.0.1", probe.port), DEADLINE) as client:
        client.sendall(sent)
        assert client.makefile("rb").readline().startswith(b"HTTP/1.1 40")
    assert 200 == probe.status("/live")


def test_a_head_without_end_is_cut_off(probe: Probe) -> None:
    """It takes no memory beyond MAX_HEAD."""
    with (
        socket.create_connection(("127.0.0.1", probe.port), DEADLINE) as client,
        pytest.raises(OSError, match=r"reset|[Pp]ipe"),
    ):
        client.sendall(b"x" * 100_000_000)
    assert 200 == probe.status("/live")


def test_clients_that_say_nothing_are_sent_away(probe: Probe) -> None:
    """At most MAX_CONNECTIONS are open at a time, each for REQUEST_TIMEOUT seconds.

    Whoever does ask is served at once all the same: a probe must not fail of strangers.
    """
    with ExitStack() as clients:
        silent = [
            clients.enter_context(socket.create_connection(("127.0.0.1", probe.port), DEADLINE))
            for _ in range(2 * health.MAX_CONNECTIONS)
        ]
        assert [200] * 3 == [probe.status("/live") for _ in range(3)]
        began = time.monotonic()
        for client in silent:
            with contextlib.suppress(ConnectionResetError):
                assert b"" == client.recv(1)
        assert time.monotonic() - began < health.REQUEST_TIMEOUT + 3


def test_a_server_that_is_stopped_leaves_no_socket_open(serve: Serve, tmp_path: Path) -> None:
    """Whoever is just being answered, or has only connected; an open one would be a warning."""
    for n in range(10):
        server, probe = serve(f"sqlite://{tmp_path}/{n}.db")
        with ExitStack() as clients:
            for _ in range(5):
                clients.enter_context(socket.create_connection(("127.0.0.1", probe.port), DEADLINE))
            server.stop()
    gc.collect()


def test_a_taken_port_is_told_before_anything_connects(tmp_path: Path) -> None:
    """One sentence with port, host, reason and remedy."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = server_of(f"sqlite://{tmp_path}/bus.db", port)
        with pytest.raises(ConfigError) as caught:
            server.start()
    assert (
        f"[health] cannot listen at port {port} of 127.0.0.1: Address already in use; choose "
        "another port or host, or end what uses it"
    ) == str(caught.value)
    assert [] == list(tmp_path.iterdir())
    server.start()  # it is free now
    assert 200 == Probe(port).status("/ready")
    server.stop()


def test_a_host_that_is_not_this_machines_is_told(tmp_path: Path) -> None:
    """The same sentence."""
    settings = HealthSettings(port=free_port(), host="no.such.host.invalid")
    with pytest.raises(ConfigError, match=r"\[health\] cannot listen .* no\.such\.host\.invalid: "):
        health.Health(settings)


def test_a_server_without_a_port_has_no_thread_for_it(tmp_path: Path) -> None:
    """It is off by default, and costs nothing then."""
    config = config_of(f"sqlite://{tmp_path}/bus.db")
    with Server(config, "shop", "shop", [Shop]):
        assert "tavrida-health" not in {each.name for each in threading.enumerate()}


# -- several workers: more in broker/test_master.py


def test_two_servers_at_one_port_answer_for_each_other(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is asked, as workers do."""
    listening = health.listen(HealthSettings(port=free_port()))
    probe, board = Probe(listening.getsockname()[1]), Board(2)
    one, other = (server_of(url, probe.port) for _ in range(2))
    one.health_seat, other.health_seat = Seat(listening, board, 1), Seat(listening.dup(), board, 2)
    with one:
        status, told = probe.told("/ready")
        assert (503, ["worker 2 (pid none): it does not run, or not yet"]) == (
            status,
            told["reasons"],
        )
        with other:
            assert [200] * 6 == [probe.status("/ready") for _ in range(6)]
        status, told = probe.told("/ready")
        assert (503, "the server is stopping") == (status, told["workers"][1]["reasons"][0])
        assert 200 == probe.status("/live")
        # However long its process takes to end: it tells nothing more.
        last = board.read(2)
        assert last is not None
        monkeypatch.setattr(board, "read", lambda number: (60.0, last[1]))
        status, told = probe.told("/ready")
        assert (503, "the server is stopping") == (status, told["workers"][1]["reasons"][0])
        assert 200 == probe.status("/live")


def test_what_is_too_much_for_the_others_is_told_in_part(tmp_path: Path) -> None:
    """A worker with hundreds of paused queues is ready all the same."""
    board = Board(1)
    port = free_port()
    server = server_of(f"sqlite://{tmp_path}/bus.db", port)
    server.health_seat = Seat(health.listen(HealthSettings(port=port)), board, 1)
    with server:
        paused = {f"{n:0255}": SimpleNamespace(is_paused=True) for n in range(500)}
        server._processor.switches.update(paused)  # type: ignore[arg-type]
        assert 500 == len(Probe(port).told("/ready")[1]["paused_queues"])

        def cut() -> list[str]:
            found = board.read(1)
            assert found is not None
            return list(found[1]["ready"]["paused_queues"])

        assert sorted(paused)[:3] == eventually(cut)
        server._processor.switches.clear()


# -- what middleware adds


class Watches(Middleware):
    """Has a page of its own, and one that fails."""

    def __init__(self) -> None:
        self.observed = 0
        self.looked = threading.Event()

    def observe(self, vitals: Vitals) -> None:
        self.observed += 1
        self.vitals = vitals
        vitals.pages["/mine"] = lambda accept: ("text/plain", f"ready {vitals.is_ready}".encode())
        vitals.pages["/broken"] = lambda accept: ("text/plain", b"%d" % (1 // 0))
        vitals.looks += [self.fail, self.looked.set]

    def fail(self) -> None:
        raise RuntimeError("no look today")


def test_middleware_adds_pages_and_looks_and_may_fail(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is asked once, whatever number of chains it is in; its faults are its own."""
    watches = Watches()

    @dispatcher.rpc_service("shop")
    class Observed(Shop):
        def __init__(self) -> None:
            super().__init__()
            self.add_incoming_middleware(watches)
            self.add_outgoing_middleware(watches)

    port = free_port()
    config = config_of(f"sqlite://{tmp_path}/bus.db")
    with Server(config, "shop", "shop", [Observed], health=HealthSettings(port=port)):
        probe = Probe(port)
        assert (1, 0) == (watches.observed, watches.vitals.late_answers)
        assert watches.looked.wait(DEADLINE)
        assert (200, b"ready True") == probe.ask("/mine")
        status, told = probe.told("/broken")
        assert (500, "ZeroDivisionError") == (status, told["error"].partition(":")[0])
        assert 200 == probe.status("/ready")
    assert "no look today" in caplog.text


def test_a_middleware_that_cannot_observe_is_one_sentence_and_leaves_nothing_behind(
    tmp_path: Path,
) -> None:
    """What it is told of comes before the first message: so it is told at start, by its name."""

    class Blind(Middleware):
        def observe(self, vitals: Vitals) -> None:
            raise RuntimeError("no eyes\nat all")

    @dispatcher.rpc_service("shop")
    class Unseen(Shop):
        def __init__(self) -> None:
            super().__init__()
            self.add_incoming_middleware(Blind())

    port = free_port()
    config = config_of(f"sqlite://{tmp_path}/bus.db")
    server = Server(config, "shop", "shop", [Unseen], health=HealthSettings(port=port))
    before = set(threading.enumerate())
    for _ in range(2):  # nothing keeps it from being started again
        with pytest.raises(ConfigError) as caught:
            server.run()
        told = "the middleware Blind cannot begin to observe: RuntimeError: no eyes\\nat all"
        assert told == str(caught.value)
    assert before >= set(threading.enumerate())
    health.listen(HealthSettings(port=port)).close()
