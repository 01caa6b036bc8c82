# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""No change makes a message dearer unnoticed.

What is counted are bytecode instructions, as a ratio to those that pika takes to write and read the
frames of as many messages and nothing else: a busy machine changes neither. The messages come in
bursts from a scripted broker, so that each run reads and writes the same pieces.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Self

import pika
import pytest
from pika.frame import Body, Header, Method, decode_frame
from pika.spec import Basic

from tavrida import envelope, messages
from tavrida.client import RPCClient
from tavrida.config import ConnectionConfig
from tavrida.discovery import LocalDiscovery
from tavrida.dispatcher import rpc_method, rpc_service
from tavrida.entry_point import EntryPoint
from tavrida.plugins.serializers.json import JSONSerializer
from tavrida.server import Server
from tavrida.service import ServiceController
from tests.scripted_broker import ScriptedBroker
from tests.waiting import DEADLINE

#: Instructions of a message in tavrida for each one of pika's, with CPython 3.11. A change that
#: takes more than TOLERANCE times as many fails; one that takes fewer writes its figure here.
FIGURES = {"serve": 1.85, "cast": 1.16, "call": 1.07}
TOLERANCE = 1.2

#: Messages of one burst, and how many bursts are counted, after one that is not; the cheapest
#: counts, because threads that wait for each other do so in a different order each time.
BURST, BURSTS = 50, 5

pytestmark = pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="other versions of Python have other instructions"
)

JSON = JSONSerializer()


class Instructions:
    """Counts the bytecode instructions of all threads that are started inside the block."""

    def __init__(self) -> None:
        # A plain += could lose counts between threads.
        self._count = itertools.count()

    def __enter__(self) -> Self:
        self._before = sys.gettrace(), threading.gettrace()
        threading.settrace(self._trace)
        sys.settrace(self._trace)
        return self

    def __exit__(self, *exc_info: object) -> None:
        sys.settrace(self._before[0])
        threading.settrace(self._before[1])

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            next(self._count)
        return self._trace

    def of(self, burst: Callable[[], None]) -> float:
        """Return how many instructions a message of the burst takes."""
        burst()
        counts = []
        for _ in range(BURSTS):
            before = next(self._count)
            burst()
            counts.append(next(self._count) - before - 1)
        return min(counts) / BURST


@pytest.fixture
def broker() -> Iterator[ScriptedBroker]:
    """Started before anything is counted, so that its own instructions are not."""
    with ScriptedBroker(BURST) as broker:
        yield broker


# -- tavrida -------------------------------------------------------------------------------------


@rpc_service("echo")
class Echo(ServiceController):
    @rpc_method(service="echo", method="number")
    async def number(self, request: Any, proxy: Any, param: int) -> dict[str, Any]:
        return {"param": param}


def config_of(broker: ScriptedBroker) -> ConnectionConfig:
    return ConnectionConfig(url=(broker.url,), async_engine=True)


def client_of(broker: ScriptedBroker) -> RPCClient:
    discovery = LocalDiscovery()
    discovery.register_remote_service("echo", "exchange")
    return RPCClient(config_of(broker), service="echo", discovery=discovery)


def requests() -> list[tuple[pika.BasicProperties, bytes]]:
    """Return the calls of a burst, as a client of tavrida writes them."""
    found = []
    for number in range(BURST):
        request = messages.Request(
            payload={"param": number},
            correlation_id=envelope.new_id(),
            request_id=envelope.new_id(),
            message_id=envelope.new_id(),
            source=EntryPoint.parse_source("client"),
            destination=EntryPoint.parse("echo.number"),
            reply_to="somebody",
        )
        sent, body = envelope.encode(request, JSON)
        properties = pika.BasicProperties(
            sent.content_type,
            headers=dict(sent.headers),
            correlation_id=sent.correlation_id,
            reply_to=sent.reply_to,
            message_id=sent.message_id,
            type=sent.type,
            app_id=sent.app_id,
        )
        found.append((properties, body))
    return found


def serving(broker: ScriptedBroker) -> Callable[[], None]:
    """Return what delivers a burst of calls, and waits for the answers and acknowledgements."""
    burst = requests()

    def deliver() -> None:
        bursts, acknowledged = broker.bursts + 1, broker.acknowledged + BURST
        broker.deliver("queue", burst)
        broker.wait_until(lambda: broker.bursts >= bursts and broker.acknowledged >= acknowledged)

    return deliver


def test_serving_a_call_is_not_dearer_than_it_was(broker: ScriptedBroker) -> None:
    """From the delivery to the confirmed answer and the acknowledgement."""
    with Instructions() as instructions:
        config = config_of(broker)
        with Server(config, "queue", "exchange", [Echo], queue_type="classic", concurrency=BURST):
            ours = instructions.of(serving(broker))
        check("serve", ours, instructions.of(writing_and_reading))


def test_casting_is_not_dearer_than_it_was(broker: ScriptedBroker) -> None:
    """From the client's proxy to the confirm."""
    with Instructions() as instructions:
        with client_of(broker) as client:

            def cast() -> None:
                with client.pipeline():
                    for number in range(BURST):
                        client.number(param=number).cast()

            ours = instructions.of(cast)
        check("cast", ours, instructions.of(writing))


def test_calling_is_not_dearer_than_it_was(broker: ScriptedBroker) -> None:
    """From the client's proxy to the answer in the caller's hands."""
    with Instructions() as instructions:
        with client_of(broker) as client:

            def call() -> None:
                futures = [client.number(param=n).future() for n in range(BURST)]
                assert all(future.result(DEADLINE)["param"] == 1 for future in futures)

            ours = instructions.of(call)
        check("call", ours, instructions.of(writing_and_reading))


def check(what: str, ours: float, theirs: float) -> None:
    ratio, figure = ours / theirs, FIGURES[what]
    told = (
        f"{what}: {ours:.0f} instructions a message, pika's frames {theirs:.0f}: {ratio:.2f} "
        f"times as many, and {figure} in FIGURES"
    )
    print(told)  # noqa: T201 - pytest -rP shows it
    assert ratio <= TOLERANCE * figure, told


# -- pika without a framework --------------------------------------------------------------------


def written(properties: pika.BasicProperties, body: bytes) -> bytes:
    """Return the frames of a publication."""
    method = Basic.Publish(exchange="exchange", routing_key="echo.number", mandatory=True)
    frames = (Method(1, method), Header(1, len(body), properties), Body(1, body))
    return b"".join(frame.marshal() for frame in frames)


def read(data: bytes) -> None:
    """Read all frames."""
    while data:
        consumed, _ = decode_frame(data)
        data = data[consumed:]


def writing() -> None:
    """Write a burst of messages."""
    for _ in range(BURST):
        written(PROPERTIES, BODY)


def writing_and_reading() -> None:
    """Write a burst of messages and read as many."""
    for _ in range(BURST):
        written(PROPERTIES, BODY)
        read(FRAMES)


#: What pika writes and reads: no message of tavrida, which may change.
PROPERTIES = pika.BasicProperties(
    "application/json",
    headers={"request_id": "0123456789abcdef01", "destination": "echo.number"},
    correlation_id="0123456789abcdef02",
    reply_to="amq.rabbitmq.reply-to",
    message_id="0123456789abcdef03",
    type="request",
    app_id="client",
)
BODY = b'{"context": {}, "payload": {"param": 1}}'
FRAMES = written(PROPERTIES, BODY)
