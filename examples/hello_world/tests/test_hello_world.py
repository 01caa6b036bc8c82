# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""How to test services without a broker: handlers are methods, and inis can be checked."""

from pathlib import Path

import pytest
from hello_world.hello import HelloController
from hello_world.simple import HelloController as SimpleController
from hello_world.world import WorldController

from tavrida import messages, proxies
from tavrida.cli import server
from tavrida.entry_point import EntryPoint

ETC = Path(__file__).parent.parent / "etc"


class Outbox:
    """Takes what a handler sends, in place of the broker."""

    def __init__(self):
        self.sent = []

    def send(self, message):
        self.sent.append(("send", message))

    def call(self, request, timeout):
        self.sent.append(("call", request))


@pytest.fixture
def outbox():
    return Outbox()


@pytest.fixture
def proxy(outbox):
    return proxies.RPCProxy(proxies.Origin(outbox, EntryPoint.parse("test_hello.hello")))


def test_simple_prints_its_parameter(proxy, outbox, capsys):
    """The first story handles a request and sends nothing."""
    assert SimpleController().handler(messages.IncomingRequest(), proxy, param=123) is None
    assert capsys.readouterr().out == "123\n"
    assert outbox.sent == []


def test_hello_greets_asks_world_and_publishes(proxy, outbox):
    """One request is answered, and sets off a request and a notification."""
    hello = HelloController({"greeting": "Salut"})
    answer = hello.handler(messages.IncomingRequest(), proxy, param="Ann")
    assert answer == {"greeting": "Salut, Ann!"}
    (how, request), (_, notification) = outbox.sent
    assert (how, str(request.destination), request.payload) == (
        "call",
        "test_world.world",
        {"param": 12345},
    )
    assert (str(notification.source), notification.payload) == (
        "test_hello.hello",
        {"param": "hello publication"},
    )


def test_hello_prints_the_response_of_world(proxy, capsys):
    """What World answered arrives as parameters."""
    response = messages.IncomingResponse({"param": "world response"})
    HelloController().world_resp(response, proxy, **response.payload)
    assert capsys.readouterr().out.splitlines()[-1] == "world response"


def test_hello_prints_the_error_of_world(proxy, capsys):
    """An error has its class, message and code in the payload."""
    error = messages.IncomingError({"class": "ValueError", "message": "no", "code": 1000})
    HelloController().world_error(error, proxy)
    assert "ValueError" in capsys.readouterr().out


def test_world_answers(proxy):
    """A number that World knows gets its response."""
    request = messages.IncomingRequest({"param": 12345})
    assert WorldController().world(request, proxy, param=12345) == {"param": "world response"}


def test_world_refuses_negative_numbers(proxy):
    """What the handler raises is what the caller is told."""
    with pytest.raises(ValueError, match="no place for -1"):
        WorldController().world(messages.IncomingRequest(), proxy, param=-1)


def test_world_hears_hello(proxy, capsys):
    """A notification's payload arrives as parameters."""
    notification = messages.IncomingNotification({"param": "hello publication"})
    WorldController().hello_subscription(notification, proxy, **notification.payload)
    assert capsys.readouterr().out.splitlines()[-1] == "hello publication"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hello.conf", ["queue test_hello", "queue test_world", "notification test_hello.hello"]),
        ("simple.conf", ["hello_world.simple.HelloController"]),
        ("exchanges.conf", ["exchange test_exchange", "queue test_world_service"]),
    ],
)
def test_the_ini_files_can_be_served(name, expected, capsys):
    """tavrida-server --check finds nothing wrong, and says what would run."""
    assert server.main(["--config-file", str(ETC / name), "--check"]) == 0
    described = capsys.readouterr().out
    for words in expected:
        assert words in described
