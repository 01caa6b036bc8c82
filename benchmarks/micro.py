# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The steps of a message one by one, in nanoseconds: ``./dev bench micro``.

Its arguments go to pytest: ``./dev bench micro -k decode --benchmark-json FILE``. README.md in this
folder says what each figure means.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pika
import pytest
from pika.frame import Body, Header, Method, decode_frame
from pytest_benchmark.fixture import BenchmarkFixture

from tavrida import envelope, messages, results
from tavrida.dispatcher import Dispatcher, rpc_method, rpc_service
from tavrida.entry_point import EntryPoint
from tavrida.plugins.serializers import Serializer
from tavrida.plugins.serializers.json import JSONSerializer
from tavrida.plugins.serializers.msgpack import MsgpackSerializer
from tavrida.router import Router
from tavrida.service import ServiceController

JSON, MSGPACK = JSONSerializer(), MsgpackSerializer()
BOTH = pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=["json", "msgpack"])

#: What all of them carry.
PAYLOAD = {"param": 1234, "text": "x" * 60}


@rpc_service("echo")
class Echo(ServiceController):
    """A service with one typed method and one without types."""

    @rpc_method(service="echo", method="typed")
    async def typed(self, request: Any, proxy: Any, param: int, text: str) -> dict[str, Any]:
        """Answer."""
        return {"param": param}

    @rpc_method(service="echo", method="untyped")
    async def untyped(self, request, proxy, param, text):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        """Answer."""
        return {"param": param}


REQUEST = messages.Request(
    payload=PAYLOAD,
    correlation_id=envelope.new_id(),
    request_id=envelope.new_id(),
    message_id=envelope.new_id(),
    source=EntryPoint.parse_source("client_app"),
    destination=EntryPoint.parse("echo.typed"),
    reply_to="amq.gen-0123456789",
    deadline=1_800_000_000.0,
)
ECHO = Dispatcher(Echo())
ROUTER = Router([ECHO])
HANDLERS = {str(mark.entry_point): handler for mark, handler in ECHO.handlers.items()}


@dataclass
class Read:
    """The properties of a delivery, as a transport hands them over."""

    content_type: str | None
    headers: Mapping[str, Any] | None
    correlation_id: str | None
    reply_to: str | None
    message_id: str | None
    type: str | None
    app_id: str | None


def read(codec: Serializer) -> tuple[Read, bytes]:
    """Return the properties and body of a request that arrives."""
    sent, body = envelope.encode(REQUEST, codec)
    names = Read.__dataclass_fields__
    return Read(**{name: getattr(sent, name) for name in names}), body


@BOTH
def test_encode(benchmark: BenchmarkFixture, codec: Serializer) -> None:
    """From a request to properties and a body."""
    _, body = benchmark(envelope.encode, REQUEST, codec)
    assert body


@BOTH
def test_decode(benchmark: BenchmarkFixture, codec: Serializer) -> None:
    """From properties and a body to a request."""
    properties, body = read(codec)
    codecs = {codec.content_type: codec}
    message = benchmark(envelope.decode, properties, body, "echo.typed", codecs, default=codec)
    assert message.payload == PAYLOAD


def test_route(benchmark: BenchmarkFixture) -> None:
    """From a request to its handler."""
    properties, body = read(JSON)
    message = envelope.decode(
        properties, body, "echo.typed", {JSON.content_type: JSON}, default=JSON
    )
    assert benchmark(ROUTER.route, message) is HANDLERS["echo.typed"]


@pytest.mark.parametrize("method", ["typed", "untyped"])
def test_convert(benchmark: BenchmarkFixture, method: str) -> None:
    """From a payload to the arguments of a handler."""
    assert benchmark(HANDLERS[f"echo.{method}"].arguments, PAYLOAD) == PAYLOAD


def test_answer(benchmark: BenchmarkFixture) -> None:
    """From the result of a handler to a response."""
    assert benchmark(results.response_of, PAYLOAD).payload == PAYLOAD


# -- what pika takes for the same message --------------------------------------------------------


def pika_frames() -> bytes:
    """Return the frames of a publication, as pika's channels write them."""
    sent, body = envelope.encode(REQUEST, JSON)
    properties = pika.BasicProperties(
        sent.content_type,
        None,
        dict(sent.headers),
        2,
        correlation_id=sent.correlation_id,
        reply_to=sent.reply_to,
        message_id=sent.message_id,
        type=sent.type,
        app_id=sent.app_id,
    )
    method = pika.spec.Basic.Publish(exchange="echo", routing_key="echo.typed", mandatory=True)
    frames = (Method(1, method), Header(1, len(body), properties), Body(1, body))
    return b"".join(frame.marshal() for frame in frames)


def test_pika_write(benchmark: BenchmarkFixture) -> None:
    """From a request to frames, with the encoding before."""
    assert benchmark(pika_frames)


def test_pika_read(benchmark: BenchmarkFixture) -> None:
    """From the three frames of a message to pika's objects."""
    data = pika_frames()

    def decode() -> int:
        count, rest = 0, data
        while rest:
            consumed, _ = decode_frame(rest)
            rest = rest[consumed:]
            count += 1
        return count

    assert benchmark(decode) == 3


def main() -> int:
    """Run this file in pytest, in a process of its own: this one has imported tavrida already."""
    shown = ["--benchmark-columns=median,iqr,ops", "--benchmark-sort=name"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, *shown]
    return subprocess.call([*command, *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
