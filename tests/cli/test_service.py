# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""``tavrida service list`` and ``show``: what running services say of themselves."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tavrida.cli import schema
from tavrida.cli.commands import service
from tests import commands
from tests.cli.conftest import Site, failed
from tests.rabbitmq import Node


def test_a_running_service_is_listed(site: Site) -> None:
    """With its process, so that an operator finds it."""
    ended = site.tavrida("service", "list", "-f", "json")
    assert (0, "") == (ended.code, ended.stderr)
    (row,) = json.loads(ended.stdout)
    assert ("echo", "running", 4) == (row["Service"], row["State"], row["Methods"])
    assert site.server.process.pid == row["Pid"]


def test_the_table_says_how_long_it_runs(site: Site) -> None:
    """For people; the other formats have the moment."""
    ended = site.tavrida("service", "list", "echo")
    assert (0, "") == (ended.code, ended.stderr)
    assert re.search(r" \d+[smh] ago ", ended.stdout)


def test_a_service_that_does_not_answer_has_exit_code_4(site: Site) -> None:
    """It stands in the list all the same, and the others are asked."""
    ended = site.tavrida("service", "list", "echo", "gone", "-f", "json")
    assert (4, "") == (ended.code, ended.stderr)
    rows = {row["Service"]: row["State"] for row in json.loads(ended.stdout)}
    assert {"echo": "running", "gone": "never started"} == rows


def test_show_has_everything_for_programs(site: Site) -> None:
    """What the service says, as it says it."""
    ended = site.tavrida("service", "show", "echo", "-f", "json")
    assert (0, "") == (ended.code, ended.stderr)
    said = json.loads(ended.stdout)
    assert {"add", "echo", "fail", "slow"} == said["methods"].keys()
    assert "Add two numbers." == said["methods"]["add"]["summary"]
    assert ["echo.heard"] == said["subscriptions"]


def test_show_has_signatures_for_people(site: Site) -> None:
    """One line a method, its summary below."""
    ended = site.tavrida("service", "show", "echo")
    assert (0, "") == (ended.code, ended.stderr)
    assert "add(a: integer (>= 0), b: integer = ...) -> object" in ended.stdout
    assert "Add two numbers." in ended.stdout
    assert "Says what it hears." in ended.stdout
    assert "echo.heard" in ended.stdout


def test_an_unknown_service_is_told_with_the_nearest(site: Site) -> None:
    """At once."""
    ended = site.tavrida("service", "show", "ecko")
    failed(ended, 1, "nobody serves 'ecko'", "did you mean 'echo'?")


def test_without_names_and_ini_it_says_what_is_missing() -> None:
    """A broker cannot be asked for services."""
    failed(commands.run("tavrida", "service", "list"), 64, "their names, or --config-file")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("list", "a.b"), "'a.b' is no name of a service"),
        (("show", "a", "--timeout", "0"), "--timeout 0 should be above 0, and at most"),
    ],
)
def test_a_slip_in_the_arguments_has_exit_code_64(arguments: tuple[str, ...], words: str) -> None:
    """Found before anything connects."""
    failed(commands.run("tavrida", "service", *arguments), 64, words)


@pytest.mark.parametrize("arguments", [("list",), ("show", "echo")])
def test_no_broker_has_exit_code_3(nowhere: Path, arguments: tuple[str, ...]) -> None:
    """Where it was looked for."""
    ended = commands.run("tavrida", "service", *arguments, "--config-file", nowhere)
    failed(ended, 3, "RabbitMQ at 127.0.0.1:1", "connection refused")


def test_a_refused_password_has_exit_code_3(rabbitmq: Node) -> None:
    """Without showing it."""
    url = rabbitmq.url("/", password="wrong-one")
    ended = commands.run("tavrida", "service", "list", "echo", "--url", url)
    failed(ended, 3, "user 'guest'", "password")
    assert "wrong-one" not in ended.stderr


def test_a_user_without_rights_has_exit_code_3(rabbitmq: Node, vhost: str, user: str) -> None:
    """Nothing that it could be answered in."""
    rabbitmq.permit(user, vhost, configure="^$", write="^$", read="^$")
    url = rabbitmq.url(vhost, user=user, password="password")
    ended = commands.run("tavrida", "service", "list", "echo", "--url", url)
    assert (3, "") == (ended.code, ended.stdout)
    last = ended.stderr.splitlines()[-1]
    assert "cannot make a queue for answers" in last
    assert f"refused for user '{user}'" in last


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("methods", {"m": {"parameters": 5}}, "m (its schema cannot be read: -f json)"),
        (
            "methods",
            {"m": {"parameters": {"properties": {"p": 5}}}},
            "m (its schema cannot be read",
        ),
        ("methods", {"m": {"result": {"anyOf": 3}}}, "m (its schema cannot be read: -f json)"),
        ("methods", {"m": 5}, "m"),
        ("methods", [1, 2], "1\n2"),
        ("subscriptions", {"a": 3, "b": ["c", 4]}, "a: 3\nb: c, 4"),
    ],
)
def test_a_strange_description_is_shown_as_far_as_it_can_be(
    field: str, value: object, shown: str
) -> None:
    """What is no description of ours is no error of the command."""
    assert shown in str(service._for_people(field, value))


def test_a_service_may_keep_to_itself(tmp_path: Path, packages: dict[str, str]) -> None:
    """It runs, which is what the list is about; there is nothing to show."""
    config = tmp_path / "silent.conf"
    config.write_text(
        f"[connection]\nurl = sqlite://{tmp_path}/bus.db\n"
        "[server]\nservices = echo\ndescribe = false\n"
    )
    place = ("--config-file", config)
    with commands.serve(*place, environment=packages):
        listed = commands.run("tavrida", "service", "list", *place, "-f", "json")
        shown = commands.run("tavrida", "service", "show", "echo", *place)
    assert 0 == listed.code
    assert "running, does not describe itself" == json.loads(listed.stdout)[0]["State"]
    failed(shown, 1, "'echo' runs", "describe = false")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({}, "any"),
        ({"type": "string", "format": "date-time"}, "date-time"),
        ({"type": "array", "items": {"$ref": "#/$defs/Item"}}, "[Item]"),
        ({"type": "array"}, "array"),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "integer | null"),
        ({"enum": ["a", 1]}, '"a" | 1'),
        ({"type": ["integer", "null"]}, "integer | null"),
        ({"type": "integer", "minimum": 1, "maximum": 9}, "integer (>= 1, <= 9)"),
        ({"type": "string", "pattern": "^x"}, "string (like '^x')"),
    ],
)
def test_a_schema_in_a_few_words(given: schema.Schema, text: str) -> None:
    """JSON Schema is for programs."""
    assert text == schema.kind_of(given)


def test_a_signature_has_defaults_and_result() -> None:
    """A parameter of any type stands without one; an unknown default is dots."""
    method = {
        "parameters": {
            "properties": {"a": {}, "b": {"type": "integer", "default": 2}, "c": {}},
            "required": ["a"],
        },
        "result": {"type": "boolean"},
    }
    assert "m(a, b: integer = 2, c = ...) -> boolean" == schema.signature("m", method)
