# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""``tavrida listen``: what it prints, when it ends, and its exit codes."""

from __future__ import annotations

import json
import queue
import signal
from pathlib import Path

import pika
import pytest
import yaml  # type: ignore[import-untyped]

from tavrida.cli import subscription
from tavrida.config import ConnectionConfig
from tests import commands
from tests.cli.conftest import Site, failed
from tests.processes import Program
from tests.rabbitmq import Node
from tests.transports.bench import Bench, new_name
from tests.waiting import DEADLINE, eventually


def publish(site: Site, topic: str, *values: str) -> None:
    """Publish a notification in the name of the service."""
    assert 0 == site.tavrida("publish", topic, *values).code


@pytest.mark.parametrize("topic", ["echo.news", "echo", "echo.*"])
def test_notifications_are_printed_as_they_come(site: Site, topic: str) -> None:
    """One line each, until so many have come; a service without a method is all it publishes."""
    with site.program("listen", topic, "--count", "2") as listener:
        line = listener.line("listening to ")
        assert "at exchange 'echo_news'" in line
        publish(site, "echo.news", "n=1")
        assert listener.line('echo.news {"n": 1}')
        publish(site, "echo.news", "name=Öl")
        assert listener.line('echo.news {"name": "Öl"}')
        assert 0 == listener.process.wait(DEADLINE)


def test_other_topics_are_not_heard(site: Site) -> None:
    """The second publication is the only one of that name."""
    with site.program("listen", "echo.news", "--count", "1", "-f", "json") as listener:
        listener.line("listening")
        publish(site, "echo.other", "n=1")
        publish(site, "echo.news", "n=2")
        said = json.loads(listener.line("{"))
        assert 0 == listener.process.wait(DEADLINE)
    assert ("echo.news", "echo.news", {"n": 2}) == (said["topic"], said["source"], said["payload"])
    assert {"message_id", "correlation_id", "headers", "context"} < said.keys()


@pytest.mark.parametrize(
    ("form", "end", "read"), [("value", "{", json.loads), ("yaml", "  n:", yaml.safe_load)]
)
def test_other_formats(site: Site, form: str, end: str, read: object) -> None:
    """The payload alone, or a document for each."""
    with site.program("listen", "echo.news", "--count", "1", "-f", form) as listener:
        listener.line("listening")
        publish(site, "echo.news", "n=3")
        assert 0 == listener.process.wait(DEADLINE)
        with pytest.raises(AssertionError, match="no 'never'"):
            listener.line("never")
        text = "\n".join(listener.output[1:])
    assert callable(read)
    said = read(text)
    assert {"n": 3} == (said if form == "value" else said["payload"])


def test_nothing_within_the_timeout_has_exit_code_2(site: Site) -> None:
    """As a call without an answer; a script waits for an event so."""
    ended = site.tavrida("listen", "echo.silence", "--timeout", "0.3")
    assert (2, "") == (ended.code, ended.stdout)
    assert "no notifications of echo.silence in 0.3 s" in ended.stderr


def test_something_within_the_timeout_has_exit_code_0(site: Site) -> None:
    """Without --count, one is enough."""
    with site.program("listen", "echo.news", "--timeout", "1.5") as listener:
        listener.line("listening")
        publish(site, "echo.news", "n=1")
        listener.line('{"n": 1}')
        assert 0 == listener.process.wait(DEADLINE)


def test_ctrl_c_ends_it_quietly(site: Site) -> None:
    """With the exit code that shells have for it."""
    with site.program("listen", "echo.news") as listener:
        listener.line("listening")
        assert 130 == listener.end(signal.SIGINT)
        with pytest.raises(AssertionError):
            listener.line("Traceback")


def test_a_new_exchange_is_told(site: Site) -> None:
    """The name may be a slip, or its service is started later."""
    ended = site.tavrida("listen", "eco.news", "--timeout", "0.2")
    assert 2 == ended.code
    assert "exchange 'eco.notifications' is new" in ended.stderr


def strange_listener(url: str, *arguments: str) -> Program:
    """Listen to echo.news at an exchange of strangers."""
    place = ("--url", url, "--exchange", "strange")
    return Program([commands.SCRIPTS / "tavrida", "listen", "echo.news", *arguments, *place])


def test_a_lost_connection_is_made_again(rabbitmq: Node, vhost: str) -> None:
    """It says so; what is published afterwards is heard."""
    url = rabbitmq.url(vhost)
    with strange_listener(url, "--count", "1") as listener:
        listener.line("listening")
        rabbitmq.ctl("close_all_connections", "-p", vhost, "for a test")
        assert "what is published meanwhile is not heard" in listener.line("connecting anew")
        listener.line("listening")
        with pika.BlockingConnection(pika.URLParameters(url)) as connection:
            connection.channel().basic_publish("strange", "echo.news", b'{"n": 1}')
        listener.line('{"n": 1}')
        assert 0 == listener.process.wait(DEADLINE)


def test_what_cannot_be_read_is_told(amqp_url: str) -> None:
    """A stranger's body; the listener goes on."""
    with (
        strange_listener(amqp_url, "--count", "2") as listener,
        pika.BlockingConnection(pika.URLParameters(amqp_url)) as connection,
    ):
        listener.line("is new")
        channel = connection.channel()
        channel.basic_publish("strange", "echo.news", b"\x1b[2Jno json")
        channel.basic_publish("strange", "echo.news", b'{"fine": true}')
        told = listener.line("cannot be read")
        assert "\x1b" not in told
        listener.line('{"fine": true}')
        assert 0 == listener.process.wait(DEADLINE)


@pytest.mark.parametrize("right", ["configure", "write", "read"])
def test_a_user_without_the_right_is_told_which_there_have_to_be(
    rabbitmq: Node, vhost: str, user: str, right: str
) -> None:
    """The broker's own words, and what to ask its administrator for."""
    rabbitmq.permit(user, vhost, **{right: "^$"})
    url = rabbitmq.url(vhost, user=user, password="password")
    ended = commands.run("tavrida", "listen", "echo.news", "--url", url)
    assert (3, "") == (ended.code, ended.stdout)
    last = ended.stderr.splitlines()[-1]
    for words in ("queue 'tavrida.reply.", f"for user '{user}'", "Who listens needs the rights"):
        assert words in last


def test_an_exchange_that_exists_need_not_be_made(rabbitmq: Node, vhost: str, user: str) -> None:
    """So the right to configure it is not needed."""
    rabbitmq.permit(user, vhost, configure=r"^tavrida\.reply\.")
    with pika.BlockingConnection(pika.URLParameters(rabbitmq.url(vhost))) as connection:
        connection.channel().exchange_declare("echo.notifications", "topic", durable=True)
    url = rabbitmq.url(vhost, user=user, password="password")
    ended = commands.run("tavrida", "listen", "echo.news", "--url", url, "--timeout", "0.1")
    assert 2 == ended.code
    assert "listening to echo.news" in ended.stderr


def test_what_cannot_be_read_has_no_bare_value(amqp_url: str) -> None:
    """A script gets null; who looks is told why."""
    with (
        strange_listener(amqp_url, "--count", "1", "-f", "value") as listener,
        pika.BlockingConnection(pika.URLParameters(amqp_url)) as connection,
    ):
        listener.line("is new")
        connection.channel().basic_publish("strange", "echo.news", b"no json")
        listener.line("echo.news cannot be read, so null stands for it: ")
        listener.line("null")
        assert 0 == listener.process.wait(DEADLINE)


def test_what_comes_faster_than_it_is_read_is_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Memory is bounded; nothing waits for whoever listens."""
    monkeypatch.setattr(subscription, "MAX_WAITING", 3)
    url = f"sqlite://?memory={new_name('listen').replace('.', '-')}"
    with (
        Bench(url) as bench,
        subscription.Subscription(ConnectionConfig(url=(url,)), "news", "echo.*") as heard,
    ):
        connection = bench.connect()
        heard.wait()
        for number in range(5):
            connection.publish("news", "echo.news", b"%d" % number)
        eventually(lambda: heard.missed == 2)
        bodies = [heard.next(DEADLINE).body for _ in range(3)]
        with pytest.raises(queue.Empty):
            heard.next(0.01)
    assert [b"0", b"1", b"2"] == bodies
    assert "tavrida: 2 notifications were passed over" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("a b",), "'a b' is no name"),
        (("a.b.c",), "'a.b.c' is no entry point"),
        (("a.b", "--count", "0"), "--count 0 should be more than 0"),
        (("a.b", "--timeout", "nan"), "--timeout nan should be more than 0"),
    ],
)
def test_a_slip_in_the_arguments_has_exit_code_64(arguments: tuple[str, ...], words: str) -> None:
    """Found before anything connects."""
    failed(commands.run("tavrida", "listen", *arguments), 64, words)


def test_no_broker_has_exit_code_3(nowhere: Path) -> None:
    """At once; a connection that is lost later is made again."""
    ended = commands.run("tavrida", "listen", "a.b", "--config-file", nowhere)
    failed(ended, 3, "RabbitMQ at 127.0.0.1:1", "connection refused")
