# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Whatever bytes and headers arrive: the server stays up, and every message ends."""

from __future__ import annotations

import gc
import logging
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Self

import msgspec
import pika
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pika.adapters.blocking_connection import BlockingChannel

from tavrida import discovery, dispatcher
from tavrida.client import RPCClient
from tavrida.config import ConnectionConfig
from tavrida.server import Server
from tavrida.service import ServiceController
from tests.fields import RawProperties, long, short, table
from tests.transports.bench import Bench
from tests.waiting import DEADLINE, eventually

# A report of hypothesis may be long, and be it of a failure elsewhere.
pytestmark = pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")

EXCHANGE, QUEUE, REPLIES = "svc_exchange", "svc_queue", "replies"

#: Bytes that the process may grow by while thousands of messages go through it.
GROWTH = 48 * 2**20


@dispatcher.rpc_service("svc")
class Service(ServiceController):
    """One handler of each kind."""

    @dispatcher.rpc_method(service="svc", method="ok")
    def ok(self, request: Any, proxy: Any, n: int = 0, **more: Any) -> dict[str, Any]:
        return {"n": n}

    @dispatcher.rpc_method(service="svc", method="echo")
    async def echo(self, request: Any, proxy: Any, **values: Any) -> dict[str, Any]:
        return values

    @dispatcher.rpc_method(service="svc", method="hop")
    def hop(self, request: Any, proxy: Any) -> None:
        proxy.svc.ok(n=1).call()

    @dispatcher.rpc_response_method(service="svc", method="ok")
    def answered(self, response: Any, proxy: Any) -> None:
        pass

    @dispatcher.rpc_error_method(service="svc", method="ok")
    def refused(self, error: Any, proxy: Any) -> None:
        pass

    @dispatcher.subscription_method(service="news", method="printed")
    def printed(self, notification: Any, proxy: Any, title: str) -> None:
        pass


# -- what is sent


class Brief(bytes):
    """Bytes that a report of hypothesis does not print in full."""

    def __repr__(self) -> str:
        return f"{bytes(self[:200])!r}... of {len(self)}"


_SPECIAL = [
    b"T" + struct.pack(">Q", 2**63),
    b"T" + b"\xff" * 8,
    b"d" + struct.pack(">d", 1e300),
    b"l" + struct.pack(">q", 2**63 - 1),
    b"l" + struct.pack(">q", -(2**63)),
    b"D\xff\x7f\xff\xff\xff",
    b"V",
    Brief(b"S" + long(b"x" * 20_000)),
    b"S" + long(b"\xff\xfe\x00"),
]


def _of_size(kind: bytes, size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size).map(kind.__add__)


FIELDS = st.recursive(
    st.sampled_from(_SPECIAL)
    | _of_size(b"t", 1)
    | _of_size(b"b", 1)
    | _of_size(b"s", 2)
    | _of_size(b"I", 4)
    | _of_size(b"l", 8)
    | _of_size(b"T", 8)
    | _of_size(b"f", 4)
    | _of_size(b"d", 8)
    | _of_size(b"D", 5)
    | st.binary(max_size=30).map(lambda value: b"S" + long(value))
    | st.binary(max_size=30).map(lambda value: b"x" + long(value))
    | st.sampled_from([b"svc.ok", b"news.printed", b"*", b"a.b.c"]).map(lambda v: b"S" + long(v)),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda values: b"A" + long(b"".join(values)))
        | st.lists(st.tuples(st.binary(max_size=5), inner), max_size=3).map(
            lambda fields: b"F" + table(fields)
        )
    ),
    max_leaves=5,
)


def _nested(kind: bytes, depth: int) -> bytes:
    value = b"V"
    for _ in range(depth):
        value = b"A" + long(value) if kind == b"A" else b"F" + table([(b"a", value)])
    return Brief(value)


# Without x-death: a list of anything but tables in it crashes the queue in RabbitMQ 3.10 itself,
# when the message expires.
NAMES = st.sampled_from(
    [b"request_id", b"destination", b"deadline", b"dead_reason", b"attempt", b"", b"a"]
) | st.binary(max_size=20).filter(lambda name: name.upper() not in {b"CC", b"BCC"})
HEADERS = st.lists(
    st.tuples(NAMES, FIELDS | st.sampled_from([_nested(b"F", 9), _nested(b"A", 5_000)])),
    max_size=5,  # names may come twice
).map(lambda fields: Brief(table(fields)))

TEXTS = st.binary(max_size=255)


def _one_of(*texts: bytes) -> st.SearchStrategy[bytes]:
    return (st.sampled_from(texts) | TEXTS).map(short)


PROPERTIES = st.fixed_dictionaries(
    {},
    optional={
        "content_type": _one_of(b"application/json", b"application/msgpack", b";", b"\xff"),
        "content_encoding": _one_of(b"gzip", b"utf-8"),
        "headers": HEADERS,
        "delivery_mode": st.sampled_from([b"\x01", b"\x02"]),
        "priority": st.binary(min_size=1, max_size=1),
        "correlation_id": _one_of(b"17"),
        "reply_to": _one_of(REPLIES.encode(), QUEUE.encode(), b"svc", b"nobody", b"a.b"),
        "expiration": st.sampled_from([b"60000", b"1"]).map(short),
        "message_id": _one_of(b"m"),
        "timestamp": st.binary(min_size=8, max_size=8),
        "type": _one_of(b"request", b"response", b"error", b"notification"),
        "app_id": _one_of(b"svc.ok", b"My Shop 1.0"),
        "cluster_id": TEXTS.map(short),
    },
)

_VALID: list[bytes] = [
    b'{"n": 1}',
    b'{"context": {"a": 1}, "payload": {"n": 2}}',
    b'{"title": "today"}',
    msgspec.msgpack.encode({"n": 1}),
    msgspec.msgpack.encode({"context": {}, "payload": {"n": [1, {"a": b"x"}]}}),
    b"",
]


@st.composite
def _mutated(draw: st.DrawFn) -> bytes:
    """A valid body with some bytes changed, left out or doubled."""
    body = bytearray(draw(st.sampled_from(_VALID)))
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(body)))
        body[place : place + draw(st.integers(0, 2))] = draw(st.binary(max_size=3))
    return bytes(body)


_LONG = [Brief(b"[" * 50_000), Brief(b'{"a":' * 5_000), Brief(b"\x81\xa1a" * 5_000)]
_LONG.append(Brief(b"\xff" * 300_000))

BODIES = (
    _mutated() | st.sampled_from(_VALID) | st.binary(max_size=100) | st.sampled_from(_LONG)
).map(Brief)
KEYS = st.sampled_from(["svc.ok", "svc.echo", "svc.hop", "svc.unknown", "news.printed", QUEUE])
MESSAGES = st.lists(st.tuples(KEYS, PROPERTIES, BODIES), min_size=5, max_size=25)


# -- where it is sent


def _resident() -> int:
    """Bytes of memory that this process has."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Server]]:
    """Call it with a url to start the service there."""
    known = discovery.LocalDiscovery()
    known.register_remote_service("svc", EXCHANGE)
    known.register_remote_publisher("news", EXCHANGE)
    Service.set_discovery(known)
    with ExitStack() as servers:

        def start(url: str) -> Server:
            config = ConnectionConfig(url=(url,), async_engine=True, retry_delay=0.1)
            return servers.enter_context(
                Server(config, QUEUE, EXCHANGE, [Service], queue_type="classic", concurrency=4)
            )

        yield start


@pytest.fixture
def svc(request: pytest.FixtureRequest) -> Iterator[Callable[[str], RPCClient]]:
    """Call it with a url to make a client of the service there."""
    known = discovery.LocalDiscovery()
    known.register_remote_service("svc", EXCHANGE)
    with ExitStack() as clients:

        def make(url: str) -> RPCClient:
            config = ConnectionConfig(url=(url,), retry_delay=0.1)
            return clients.enter_context(RPCClient(config, "svc", known, "test"))

        yield make


class Publisher:
    """Publishes with confirms; what the broker itself refuses never reaches a service."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._open()

    def _open(self) -> None:
        self._connection = pika.BlockingConnection(pika.URLParameters(self._url))
        self.channel = self._connection.channel()
        self.channel.confirm_delivery()

    def __call__(self, exchange: str, key: str, body: bytes, properties: dict[str, bytes]) -> None:
        try:
            self.channel.basic_publish(exchange, key, body, RawProperties(**properties))
        except pika.exceptions.AMQPError:  # as NaN does, or headers larger than a frame
            self.close()
            self._open()

    def close(self) -> None:
        if self._connection.is_open:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _address(key: str) -> tuple[str, str]:
    return ("" if key == QUEUE else EXCHANGE), key


def _examples(count: int) -> settings:
    """How often to try: shrinking would take minutes with a broker."""
    return settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def _settle(server: Server, client: RPCClient) -> None:
    """Wait until all is settled, also what was sent while handling: a call queues up behind it."""
    for _ in range(5):
        assert {"n": 1} == client.ok(n=1).call(timeout=DEADLINE).payload
        eventually(lambda: _is_idle(server))


def _is_idle(server: Server) -> bool:
    """Tell whether every delivery so far was settled."""
    return not server._processor._open


ROUNDS = pytest.mark.parametrize(
    "rounds", [10, pytest.param(150, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
)


@ROUNDS
def test_whatever_arrives_ends_and_the_service_goes_on(
    rounds: int, amqp_url: str, server: Any, svc: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Through RabbitMQ: answered, or a dead letter that says why; no connection is lost."""
    caplog.set_level(logging.WARNING)
    serving, client = server(amqp_url), svc(amqp_url)
    with Publisher(amqp_url) as publish:
        publish.channel.queue_declare(REPLIES, durable=True)
        sizes: list[int] = []

        @_examples(rounds)
        @given(MESSAGES)
        def play(messages: list[tuple[str, dict[str, bytes], bytes]]) -> None:
            for key, properties, body in messages:
                publish(*_address(key), body, properties)
            assert {"n": 1} == client.ok(n=1).call(timeout=DEADLINE).payload
            eventually(lambda: _is_idle(serving))
            _check_dead_letters(publish.channel)
            publish.channel.queue_purge(REPLIES)
            assert not [r for r in caplog.records if "lost its connection" in r.message]
            caplog.clear()
            sizes.append(_resident())

        play()
        _settle(serving, client)
        client.close()
        serving.stop()
        assert 0 == publish.channel.queue_declare(QUEUE, passive=True).method.message_count
    assert sizes[-1] - sizes[len(sizes) // 4] < GROWTH


def _check_dead_letters(channel: BlockingChannel) -> None:
    """Take all of them; each says why it is there."""
    while True:
        method, properties, _ = channel.basic_get(f"{QUEUE}.dead", auto_ack=True)
        if method is None or properties is None:
            return
        headers = properties.headers or {}
        assert "dead_reason" in headers or "x-death" in headers


@ROUNDS
def test_whatever_comes_to_a_reply_queue_harms_no_other_call(
    rounds: int, amqp_url: str, server: Any, svc: Any
) -> None:
    """A client that is sent anything gets the right answer to its next call."""
    server(amqp_url)
    client = svc(amqp_url)
    client.ok().call(timeout=DEADLINE)
    queue = client._sender._link.caller._queue
    with Publisher(amqp_url) as publish:

        @_examples(rounds)
        @given(MESSAGES)
        def play(messages: list[tuple[str, dict[str, bytes], bytes]]) -> None:
            for _, properties, body in messages:
                publish("", queue, body, properties)
            assert {"n": 1} == client.ok(n=1).call(timeout=DEADLINE).payload

        play()
    link = client._sender._link
    assert (queue, {}) == (link.caller._queue, link.caller._waiters)


# -- on the embedded bus, whose properties are Python's values

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
TEXT = st.text(st.characters(codec="utf-8"), max_size=60)


def _text_of(*texts: str) -> st.SearchStrategy[str]:
    return st.sampled_from(texts) | TEXT


EMBEDDED = st.fixed_dictionaries(
    {},
    optional={
        "content_type": _text_of("application/json", "application/msgpack", ";"),
        "headers": st.dictionaries(
            _text_of("request_id", "destination", "deadline", "x-death"), VALUES, max_size=5
        ),
        "correlation_id": _text_of("17"),
        "reply_to": _text_of(REPLIES, QUEUE, "svc", "nobody"),
        "message_id": _text_of("m"),
        "type": _text_of("request", "response", "error", "notification"),
        "app_id": _text_of("svc.ok", "My Shop 1.0"),
        "expiration": st.sampled_from([60_000, 1]),
    },
)


@ROUNDS
def test_whatever_arrives_on_the_embedded_bus_ends_too(
    rounds: int, tmp_path: Path, server: Any, svc: Any
) -> None:
    """The same promise; every dead letter says why."""
    url = f"sqlite://{tmp_path}/bus.db"
    serving, client = server(url), svc(url)
    letters: SimpleQueue[dict[str, Any]] = SimpleQueue()

    def bury(delivery: Any) -> None:
        letters.put(dict(delivery.properties.headers or {}))
        delivery.ack()

    bench = Bench(url)
    try:
        connection = bench.connect()
        connection.consume(f"{QUEUE}.dead", 100, bury)

        @_examples(rounds)
        @given(st.lists(st.tuples(KEYS, EMBEDDED, BODIES), min_size=5, max_size=25))
        def play(messages: list[tuple[str, dict[str, Any], bytes]]) -> None:
            for key, properties, body in messages:
                sent = connection.send(*_address(key), body, **properties)
                sent.wait()
            assert {"n": 1} == client.ok(n=1).call(timeout=DEADLINE).payload
            eventually(lambda: _is_idle(serving))

        play()
        _settle(serving, client)
        client.close()
        serving.stop()
        left = connection.consume(QUEUE)
        connection.round_trip()
        assert left.is_empty
        connection.close()
    finally:
        bench.loop.stop()
    while not letters.empty():
        headers = letters.get()
        assert "dead_reason" in headers or "x-death" in headers
