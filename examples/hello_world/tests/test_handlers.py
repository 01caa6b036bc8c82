# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Handlers one by one, with no server around them: call_handler does what a server would do."""

import pytest
from hello_world.hello import HelloController
from hello_world.simple import HelloController as SimpleController
from hello_world.world import WorldController

from tavrida import exceptions
from tavrida.testing.handlers import Peers, call_handler


def test_simple_prints_its_parameter(capsys):
    """The first story handles a request, answers with nothing in particular and sends nothing."""
    peers = Peers()
    answer = call_handler(SimpleController, "test_hello.hello", {"param": 123}, peers=peers)
    assert answer.payload == {}
    assert capsys.readouterr().out == "123\n"
    assert peers.received == []


def test_hello_greets_asks_world_and_publishes():
    """One request is answered, and sets off a request and a notification."""
    peers = Peers()
    answer = call_handler(
        HelloController,
        "test_hello.hello",
        {"param": "Ann"},
        options={"greeting": "Salut"},
        peers=peers,
    )
    assert answer.payload == {"greeting": "Salut, Ann!"}
    assert [(each.how, each.entry_point, each.payload) for each in peers.received] == [
        ("call", "test_world.world", {"param": 12345}),
        ("publish", "test_hello.hello", {"param": "hello publication"}),
    ]


def test_hello_says_hello_unless_the_ini_says_otherwise():
    """Options that are not given have their defaults."""
    answer = call_handler(HelloController, "test_hello.hello", {"param": "Ann"})
    assert answer["greeting"] == "Hello, Ann!"


def test_hello_prints_the_response_of_world(capsys):
    """What World answered arrives as parameters."""
    call_handler(HelloController, "test_world.world", {"param": "world response"}, kind="response")
    assert capsys.readouterr().out.splitlines()[-1] == "world response"


def test_hello_prints_the_error_of_world(capsys):
    """An exception as the payload stands for the error that World would answer with."""
    call_handler(HelloController, "test_world.world", ValueError("no"))
    assert "'class': 'ValueError', 'message': 'no'" in capsys.readouterr().out


def test_world_answers():
    """A number that World knows gets its response."""
    answer = call_handler(WorldController, "test_world.world", {"param": 12345})
    assert answer.payload == {"param": "world response"}


def test_world_refuses_negative_numbers():
    """What the handler raises is what the caller is told."""
    with pytest.raises(ValueError, match="no place for -1"):
        call_handler(WorldController, "test_world.world", {"param": -1})


def test_world_refuses_what_is_no_number():
    """The annotation of the parameter does it: the handler is not run."""
    with pytest.raises(exceptions.InvalidPayload, match="Expected `int`, got `str`"):
        call_handler(WorldController, "test_world.world", {"param": "many"})


def test_world_hears_hello(capsys):
    """A notification's payload arrives as parameters."""
    call_handler(WorldController, "test_hello.hello", {"param": "hello publication"})
    assert capsys.readouterr().out.splitlines()[-1] == "hello publication"
