# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""``tavrida`` as people and scripts use it: what it prints, where, and its exit codes.

0 done, 1 an error, 2 no answer in time, 3 no broker, 64 wrong usage.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pika
import pytest

from tests import commands
from tests.commands import Ended
from tests.packages import Packages
from tests.processes import Program
from tests.rabbitmq import Node

VHOST = "test-cli-tavrida"

ECHO = """
    from tavrida import dispatcher, service


    @dispatcher.rpc_service("echo")
    class Echo(service.ServiceController):
        @dispatcher.rpc_method(service="echo", method="echo")
        def echo(self, request, proxy, **payload):
            print("echoes", payload)
            return payload

        @dispatcher.rpc_method(service="echo", method="fail")
        def fail(self, request, proxy):
            raise ValueError("first line\\nsecond line")

        @dispatcher.subscription_method(service="echo", method="heard")
        def heard(self, notification, proxy, **payload):
            print("hears", payload)
"""


@dataclass(frozen=True)
class Site:
    """A running service, and what commands need to reach it."""

    server: Program
    config: Path
    environment: dict[str, str]
    url: str

    def tavrida(self, *arguments: str | Path) -> Ended:
        """Run the command with the service's ini."""
        return commands.run(
            "tavrida", *arguments, "--config-file", self.config, environment=self.environment
        )


@pytest.fixture(scope="module")
def site(rabbitmq: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One service for all tests of this module, on a virtual host of its own."""
    folder = tmp_path_factory.mktemp("site")
    packages = Packages(folder)
    points = {"tavrida.controllers": {"echo": "acme_echo:Echo"}}
    packages.add("acme-echo", points, acme_echo=ECHO)
    packages.remove()  # other processes find it by PYTHONPATH
    environment = {"PYTHONPATH": str(folder)}
    rabbitmq.add_vhost(VHOST)
    url = rabbitmq.url(VHOST)
    config = folder / "echo.conf"
    config.write_text(
        f"[connection]\nurl = {url}\n[server]\nservices = echo\nqueue_type = classic\n"
        "[service:echo]\nexchange = echo_exchange\npublish_exchange = echo_news\n"
    )
    with commands.serve("--config-file", config, environment=environment) as server:
        yield Site(server, config, environment, url)
        assert server.end() == 0
    rabbitmq.delete_vhost(VHOST)


def failed(ended: Ended, code: int, *words: str) -> None:
    """Check that a command failed with one line on stderr and nothing on stdout."""
    assert ended.code == code, ended
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith("tavrida: ")
    for word in words:
        assert word in line


# -- call ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("123", 123),
        ("-1.5", -1.5),
        ("true", True),
        ("null", None),
        ("Ann", "Ann"),
        ('"123"', "123"),
        ("[1, 2]", [1, 2]),
        ('{"a": {"b": []}}', {"a": {"b": []}}),
        ("a=b", "a=b"),
        ("", ""),
        ("[not json", "[not json"),
        ("Öl 油", "Öl 油"),
    ],
)
def test_a_value_is_json_where_it_reads_as_json_else_a_string(
    site: Site, text: str, value: object
) -> None:
    """As people type them: numbers are numbers, words are words."""
    ended = site.tavrida("call", "echo.echo", f"it={text}", "-f", "json")
    assert (ended.code, ended.stderr) == (0, "")
    assert json.loads(ended.stdout) == {"it": value}


def test_the_whole_payload_may_be_json(site: Site) -> None:
    """For values that KEY=VALUE cannot say, such as a key with an equals sign."""
    payload = {"a=b": [1, None], "c": "123"}
    ended = site.tavrida("call", "echo.echo", "--json", json.dumps(payload), "-f", "json")
    assert (ended.code, ended.stderr) == (0, "")
    assert json.loads(ended.stdout) == payload


def test_an_answer_is_a_table_for_people(site: Site) -> None:
    """One row for each key."""
    ended = site.tavrida("call", "echo.echo", "name=Ann", "age=7")
    assert (ended.code, ended.stderr) == (0, "")
    rows = [line.strip("|").split("|") for line in ended.stdout.splitlines() if "|" in line]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["Field", "Value"],
        ["name", "Ann"],
        ["age", "7"],
    ]


def test_one_value_of_an_answer_can_be_had_alone(site: Site) -> None:
    """For shell scripts."""
    ended = site.tavrida("call", "echo.echo", "a=1", "b=two", "-f", "value", "-c", "b")
    assert (ended.code, ended.stdout) == (0, "two\n")


def test_an_empty_answer_is_an_empty_object(site: Site) -> None:
    """A script that reads JSON gets JSON."""
    ended = site.tavrida("call", "echo.echo", "-f", "json")
    assert (ended.code, json.loads(ended.stdout)) == (0, {})


def test_a_remote_error_is_one_line_and_exit_code_1(site: Site) -> None:
    """Class, message and code of what the handler raised, whatever lines it has."""
    failed(site.tavrida("call", "echo.fail"), 1, "ValueError: first line second line", "1000")


def test_an_unknown_method_is_told_with_those_that_exist(site: Site) -> None:
    """The service itself answers so."""
    failed(site.tavrida("call", "echo.ehco"), 1, "'echo.ehco'", "'echo.echo'", "fail")


def test_an_unknown_service_is_told_at_once(site: Site) -> None:
    """Nobody waits for a time-out."""
    failed(site.tavrida("call", "ecko.echo"), 1, "nobody serves 'ecko'", "'ecko.echo'")


def test_no_answer_in_time_has_exit_code_2(site: Site) -> None:
    """The queue is there, but nobody reads it."""
    with pika.BlockingConnection(pika.URLParameters(site.url)) as connection:
        channel = connection.channel()
        channel.exchange_declare("deaf", "topic", durable=True)
        channel.queue_declare("deaf", durable=True)
        channel.queue_bind("deaf", "deaf", "deaf.*")
    ended = site.tavrida("call", "deaf.hear", "--timeout", "0.2")
    failed(ended, 2, "no answer from deaf.hear in time")


def test_the_exchange_may_be_given(site: Site) -> None:
    """Without an ini the environment says where the broker is, and --exchange where to send."""
    ended = commands.run(
        "tavrida",
        *("call", "echo.echo", "it=1", "--exchange", "echo_exchange", "-f", "json"),
        environment={"OS_CONNECTION__URL": site.url},
    )
    assert (ended.code, json.loads(ended.stdout)) == (0, {"it": 1})


def test_the_url_goes_before_the_ini(site: Site, tmp_path: Path) -> None:
    """The one in the file leads nowhere."""
    config = tmp_path / "closed.conf"
    config.write_text("[connection]\nurl = amqp://127.0.0.1:1/%2F\nconnection_attempts = 1\n")
    ended = commands.run(
        "tavrida",
        *("cast", "echo.echo", "--config-file", config),
        *("--url", site.url, "--exchange", "echo_exchange"),
    )
    assert ended == Ended(0, "", "")


def test_a_body_in_another_serializer_is_answered(site: Site) -> None:
    """The answer comes in the serializer of the request."""
    ended = site.tavrida("call", "echo.echo", "it=1", "--serializer", "msgpack", "-f", "json")
    assert (ended.code, json.loads(ended.stdout)) == (0, {"it": 1})


# -- cast, publish -------------------------------------------------------------------------------


def test_a_cast_prints_nothing_and_is_handled(site: Site) -> None:
    """Exit code 0 says that the broker has it."""
    ended = site.tavrida("cast", "echo.echo", "cast=7")
    assert ended == Ended(0, "", "")
    site.server.line("echoes {'cast': 7}")


def test_a_cast_to_a_service_that_nobody_runs_fails(site: Site) -> None:
    """It would be lost."""
    failed(site.tavrida("cast", "ecko.echo", "cast=7"), 1, "nobody serves 'ecko'")


def test_a_notification_is_heard(site: Site) -> None:
    """It goes to the exchange that the ini names, with its entry point as the topic."""
    ended = site.tavrida("publish", "echo.heard", "news=1")
    assert ended == Ended(0, "", "")
    site.server.line("hears {'news': 1}")


def test_a_notification_that_nobody_hears_is_no_error(site: Site) -> None:
    """Publishers do not know their subscribers."""
    assert site.tavrida("publish", "echo.unheard", "news=1") == Ended(0, "", "")


# -- the broker ----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["call", "cast", "publish"])
def test_a_broker_that_cannot_be_reached_has_exit_code_3(tmp_path: Path, command: str) -> None:
    """The message says where it was looked for."""
    config = tmp_path / "closed.conf"
    config.write_text("[connection]\nurl = amqp://127.0.0.1:1/%2F\nconnection_attempts = 1\n")
    ended = commands.run("tavrida", command, "a.b", "--config-file", config)
    failed(ended, 3, "RabbitMQ at 127.0.0.1:1", "connection refused")


def test_a_wrong_password_has_exit_code_3(rabbitmq: Node) -> None:
    """Neither the message nor anything else shows the password."""
    url = rabbitmq.url("/", password="wrong-one")
    ended = commands.run("tavrida", "cast", "a.b", "--url", url)
    failed(ended, 3, "user 'guest'", "password")
    assert "wrong-one" not in ended.stderr


# -- usage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [(), ("a.b", "--bogus"), ("a.b", "--timeout", "soon")])
def test_wrong_arguments_have_exit_code_64(arguments: tuple[str, ...]) -> None:
    """The usage is shown; 2, argparse's own, is taken."""
    ended = commands.run("tavrida", "call", *arguments)
    assert (ended.code, ended.stdout) == (64, "")
    assert "usage: tavrida call" in ended.stderr


@pytest.mark.parametrize("arguments", [("coll",), ("--bogus",), ("plugin", "lst")])
def test_an_unknown_command_has_exit_code_64(arguments: tuple[str, ...]) -> None:
    """With the nearest ones."""
    ended = commands.run("tavrida", *arguments)
    assert (ended.code, ended.stdout) == (64, "")
    assert arguments[-1] in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("a.b", "value"), "'value' is no KEY=VALUE, such as name=Ann"),
        (("a.b", "=1"), "'=1' is no KEY=VALUE"),
        (("a.b", "--json", "{"), "--json is no JSON"),
        (("a.b", "--json", "[1]"), "--json is no object"),
        (("a.b", "c=1", "--json", "{}"), "either KEY=VALUE or --json"),
        (("a.b", "--timeout", "0"), "--timeout 0 should be above 0, and at most 4294967 seconds"),
        (("ab",), "'ab' names no method"),
        (("a.b.c",), "'a.b.c'"),
    ],
)
def test_a_slip_in_the_arguments_is_one_line_and_exit_code_64(
    arguments: tuple[str, ...], words: str
) -> None:
    """Found before anything connects."""
    failed(commands.run("tavrida", "call", *arguments), 64, words)


def test_an_unknown_serializer_is_told_with_those_that_exist() -> None:
    """As everywhere where a plugin is named."""
    ended = commands.run("tavrida", "call", "a.b", "--serializer", "jsn")
    failed(ended, 1, "'jsn'", "did you mean 'json'?")


def test_every_fault_of_the_ini_is_told(tmp_path: Path) -> None:
    """One line each, as tavrida-server does."""
    config = tmp_path / "wrong.conf"
    config.write_text("[connection]\nheartbeat = often\n[log]\nlevel = LOUD\n")
    ended = commands.run("tavrida", "cast", "a.b", "--config-file", config)
    assert (ended.code, ended.stdout) == (1, "")
    first, second = ended.stderr.splitlines()
    assert "wrong.conf:2: [connection] heartbeat: " in first
    assert "wrong.conf:4: [log] level: " in second


def test_a_misspelt_section_does_not_lead_to_another_broker(tmp_path: Path) -> None:
    """Without a word the command would go to the default url."""
    config = tmp_path / "wrong.conf"
    config.write_text("[conection]\nurl = amqp://127.0.0.1:1/%2F\n")
    ended = commands.run("tavrida", "cast", "a.b", "--config-file", config)
    failed(ended, 1, "section [conection] is unknown", "did you mean 'connection'?")


def test_help_lists_the_commands() -> None:
    """Where a newcomer begins."""
    ended = commands.run("tavrida", "--help")
    assert (ended.code, ended.stderr) == (0, "")
    for command in ("call", "cast", "publish", "plugin list"):
        assert f"\n  {command} " in ended.stdout


def test_the_version_is_that_of_the_package() -> None:
    """For reports of bugs."""
    from tavrida import plugins

    ended = commands.run("tavrida", "--version")
    assert (ended.code, ended.stdout) == (0, f"tavrida {plugins.version()}\n")


def test_a_service_is_described_for_people_and_for_scripts(site: Site) -> None:
    """In the table an object has a line for each key; JSON is what the service said."""
    ended = site.tavrida("call", "echo.__describe__")
    assert (ended.code, ended.stderr) == (0, "")
    assert "| name          | echo" in ended.stdout
    assert '|   "echo": {' in " ".join(ended.stdout.split("                 "))
    ended = site.tavrida("call", "echo.__describe__", "-f", "json")
    assert (ended.code, ended.stderr) == (0, "")
    told = json.loads(ended.stdout)
    assert {"echo", "fail"} == told["methods"].keys()
    assert ["echo.heard"] == told["subscriptions"]


# -- plugin list ---------------------------------------------------------------------------------


@pytest.fixture
def plugin_list(site: Site) -> Callable[..., Ended]:
    """Run ``tavrida plugin list`` where acme-echo is installed."""

    def run(*arguments: str) -> Ended:
        return commands.run("tavrida", "plugin", "list", *arguments, environment=site.environment)

    return run


def test_plugin_list_shows_strangers_beside_built_ins(plugin_list: Callable[..., Ended]) -> None:
    """With class, distribution and version, for scripts."""
    ended = plugin_list("-f", "json")
    assert (ended.code, ended.stderr) == (0, "")
    rows = {(row["Namespace"], row["Name"]): row for row in json.loads(ended.stdout)}
    assert rows["tavrida.controllers", "echo"] == {
        "Namespace": "tavrida.controllers",
        "Name": "echo",
        "Class": "acme_echo:Echo",
        "Distribution": "acme-echo",
        "Version": "1.0",
        "Loads": "yes",
    }
    for built_in in (
        ("tavrida.discovery", "convention"),
        ("tavrida.serializers", "json"),
        ("tavrida.transports", "amqp"),
        ("tavrida.commands", "call"),
    ):
        assert rows[built_in]["Distribution"] == "tavrida"


def test_plugin_list_is_a_table_for_people(plugin_list: Callable[..., Ended]) -> None:
    """One row for each plugin."""
    ended = plugin_list()
    assert (ended.code, ended.stderr) == (0, "")
    assert "| tavrida.controllers" in ended.stdout
    assert "acme_echo:Echo" in ended.stdout
