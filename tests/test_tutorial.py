# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The programs of the tutorial, each a process of its own, print what the tutorial says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pika
import pytest

from tests.processes import Program
from tests.rabbitmq import Node
from tests.waiting import DEADLINE, eventually

PROGRAMS = Path(__file__).parent / "tutorial"

Start = Callable[[str, str], Program]


@pytest.fixture
def where(rabbitmq: Node, vhost: str) -> dict[str, str]:
    """The environment that leads the programs to the broker of the test."""
    return {"PORT": str(rabbitmq.port), "VHOST": vhost}


@pytest.fixture
def serve(where: dict[str, str], amqp_url: str) -> Iterator[Start]:
    """Start a service of the tutorial and wait until it consumes from its queue."""
    with ExitStack() as programs:

        def start(name: str, queue: str) -> Program:
            program = Program([PROGRAMS / f"{name}.py"], environment=where)
            programs.enter_context(program)
            eventually(lambda: consumers_of(amqp_url, queue))
            return program

        yield start


@pytest.fixture
def call_hello(where: dict[str, str]) -> Callable[[], None]:
    """Run the tutorial's client to its end."""

    def run() -> None:
        with Program([PROGRAMS / "client.py"], environment=where) as client:
            assert client.process.wait(DEADLINE) == 0

    return run


def consumers_of(url: str, queue: str) -> int:
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        try:
            declared = connection.channel().queue_declare(queue, passive=True)
        except pika.exceptions.ChannelClosedByBroker:  # there is no such queue yet
            return 0
        return int(declared.method.consumer_count)


def test_the_simple_service_prints_what_the_client_casts(
    serve: Start, call_hello: Callable[[], None]
) -> None:
    """Story one: one request, one line, and SIGTERM ends the service well."""
    hello = serve("simple_hello", "test_service")
    call_hello()
    hello.line("123")
    assert hello.end() == 0
    assert hello.output == ["123"]


def test_hello_hears_the_response_of_world(serve: Start, call_hello: Callable[[], None]) -> None:
    """Story two: the request to Hello becomes one to World, whose response comes to Hello."""
    world = serve("world", "test_world_service")
    hello = serve("hello", "test_service")
    call_hello()
    world.line("---------------------------")
    hello.line("--------------------------------------")
    assert hello.end() == 0
    assert world.end() == 0

    asked, context, headers, param, _ = world.output
    assert asked == "---- request to world------"
    assert context == "{'param': 12345}"
    assert "'source': 'test_hello.hello', 'destination': 'test_world.world'" in headers
    assert param == "12345"

    assert hello.output[:2] == ["---- request to hello ----", "123"]
    heard, context, headers, param, _ = hello.output[2:]
    assert heard == "---- response from world to hello ----"
    assert context == "{'param': 'world response'}"
    assert "'message_type': 'response'" in headers
    assert "'source': 'test_world.world', 'destination': 'test_hello.hello'" in headers
    assert param == "world response"


def test_hello_hears_the_error_when_nobody_serves_world(
    serve: Start, call_hello: Callable[[], None]
) -> None:
    """Story two without World: the error handler of Hello is told at once."""
    hello = serve("hello", "test_service")
    call_hello()
    hello.line("----------------------------")
    assert hello.end() == 0
    heard, _, headers, payload, _ = hello.output[2:]
    assert heard == "---- error from hello ------"
    assert "'message_type': 'error'" in headers
    assert "'class': 'ServiceUnavailable'" in payload
    assert "test_world_exchange" in payload


def test_the_subscriber_hears_the_publisher(serve: Start, call_hello: Callable[[], None]) -> None:
    """Story three: what Hello publishes while it handles a request comes to World."""
    world = serve("subscriber", "test_world_service")
    hello = serve("publisher", "test_service")
    call_hello()
    hello.line("123")
    world.line("hello publication")
    assert hello.end() == 0
    assert world.end() == 0
    assert world.output == ["---- notification from hello ------", "hello publication"]
