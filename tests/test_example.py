# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""examples/hello_world does on RabbitMQ what its README says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import commands

ETC = Path(__file__).parent.parent / "examples" / "hello_world" / "etc"


@pytest.mark.parametrize("name", ["hello.conf", "exchanges.conf"])
def test_hello_and_world_tell_their_story(amqp_url: str, name: str) -> None:
    """An answer, a response, a notification, an error that comes back and one that is handled."""
    config = ETC / name
    broker = {"OS_CONNECTION__URL": amqp_url}

    def call(*arguments: str) -> commands.Ended:
        options = ("--config-file", config, "-f", "json")
        return commands.run("tavrida", "call", *arguments, *options, environment=broker)

    with commands.serve("--config-file", config, environment=broker) as server:
        answered = call("test_hello.hello", "param=123")
        assert (answered.code, answered.stderr) == (0, "")
        assert json.loads(answered.stdout) == {"greeting": "Hello, 123!"}
        awaited = {"world response", "hello publication"}  # in either order
        while awaited:
            line = server.line("")
            awaited = {words for words in awaited if words not in line}

        refused = call("test_world.world", "param=-1")
        assert (refused.code, refused.stdout) == (1, "")
        assert refused.stderr == "tavrida: ValueError: the world has no place for -1 (code 1000)\n"

        answered = call("test_hello.hello", "param=Ann", "number=-1")
        assert json.loads(answered.stdout) == {"greeting": "Hello, Ann!"}
        server.line("---- error from world to hello ----")
        server.line("'class': 'ValueError'")
        assert server.end() == 0


def test_the_simple_service_prints_its_parameter(amqp_url: str) -> None:
    """The first story, by an ini instead of a program."""
    config = ETC / "simple.conf"
    broker = {"OS_CONNECTION__URL": amqp_url}
    with commands.serve("--config-file", config, environment=broker) as server:
        cast = ("cast", "test_hello.hello", "param=123", "--config-file", config)
        assert commands.run("tavrida", *cast, environment=broker).code == 0
        server.line("123")
        assert server.end() == 0
