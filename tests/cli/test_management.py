# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""``tavrida status`` with RabbitMQ's management: what AMQP does not tell, and why it does not."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pika
import pytest
import trustme
from pika.adapters.blocking_connection import BlockingChannel

from tavrida.cli import management
from tavrida.config import ConnectionConfig
from tavrida.exceptions import TransportError
from tests import commands
from tests.cli.conftest import failed
from tests.commands import Ended
from tests.conftest import require_rabbitmq
from tests.rabbitmq import Node, free_port
from tests.waiting import eventually


@dataclass(frozen=True)
class Site:
    """A broker with its management, and an ini of its service."""

    node: Node
    config: Path

    @property
    def management_url(self) -> str:
        return f"http://127.0.0.1:{self.node.management_port}"

    def status(self, *arguments: str, management_url: str | None = None) -> Ended:
        return commands.run(
            *("tavrida", "status", "--config-file", self.config),
            *arguments,
            environment={"OS_CONNECTION__MANAGEMENT_URL": management_url or self.management_url},
        )

    def rows(self, *arguments: str) -> list[dict[str, Any]]:
        return list(json.loads(self.status(*arguments, "-f", "json").stdout))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A node of these tests alone: on that of all others nobody counts."""
    require_rabbitmq()
    config = tmp_path_factory.mktemp("managed") / "shop.conf"
    with Node(management=True) as node:
        config.write_text(
            f"[connection]\nurl = {node.url()}\n"
            "[service:shop]\n[service:bank]\nqueue = bank_queue\n"
        )
        yield Site(node, config)


@pytest.fixture(scope="module")
def holder(site: Site) -> Iterator[BlockingChannel]:
    """A program that has two of three messages of the queue ``shop``, and settles none."""
    parameters = pika.URLParameters(site.node.url())
    parameters.client_properties = {"connection_name": "a holder\x1b[31m"}
    connection = pika.BlockingConnection(parameters)
    channel = connection.channel()
    for queue in ("shop", "shop.dead", "bank_queue"):
        channel.queue_declare(queue)
    channel.basic_qos(prefetch_count=2)
    for _ in range(3):
        channel.basic_publish("", "shop", b"{}")
    channel.basic_consume("shop", lambda *_: None)
    connection.process_data_events(0.1)
    yield channel
    connection.close()


# -- what it tells


def test_unacknowledged_messages_are_told(site: Site, holder: BlockingChannel) -> None:
    """Of each queue, when the management has counted them."""

    def told() -> bool:
        rows = {row["Queue"]: row for row in site.rows()}
        return (1, 2) == (rows["shop"]["Ready"], rows["shop"]["Unacked"]) and (
            0 == rows["bank_queue"]["Unacked"]
        )

    eventually(told)
    ended = site.status("shop", "-f", "value", "-c", "Queue", "-c", "Ready", "-c", "Unacked")
    assert "shop 1 2\n" == ended.stdout
    assert "connections to it: --connections lists them" in ended.stderr
    assert "Unacked: 2" in site.status("shop", "-f", "yaml").stdout


def test_connections_are_listed(site: Site, holder: BlockingChannel) -> None:
    """Of all programs but the command itself: who, from where, and what they hold."""

    def told() -> dict[str, Any]:
        found = [row for row in site.rows("--connections") if row["Unacked"] == 2]
        return found[0] if found else {}

    row = eventually(told)
    assert ("a holder\\x1b[31m", "guest", "running", "shop") == (
        row["Connection"],
        row["User"],
        row["State"],
        row["Queues"],
    )
    assert row["From"].startswith("127.0.0.1:")
    assert "T" in row["Since"]
    assert [row] == site.rows("--connections", "shop")
    assert [] == site.rows("--connections", "bank")
    table = site.status("--connections", "shop").stdout
    assert re.search(r" \d+[smh] ago ", table)
    assert "tavrida status@" not in site.status("--connections").stdout


def test_a_user_of_its_own_may_ask(site: Site, holder: BlockingChannel) -> None:
    """So that the services' user needs no tag."""
    site.node.add_user("watcher", "pass:word")
    site.node.permit("watcher", "/", configure="^$", write="^$", read="^$")
    url = f"http://watcher:pass%3Aword@127.0.0.1:{site.node.management_port}/"
    refused = site.status("-f", "json", management_url=url)
    assert "refused user 'watcher' (Not management user): " in refused.stderr
    assert "rabbitmqctl set_user_tags watcher monitoring" in refused.stderr
    site.node.eval(
        'rabbit_auth_backend_internal:set_tags(<<"watcher">>, [monitoring], <<"tests">>)'
    )
    assert "connections to it" in site.status("-f", "json", management_url=url).stderr


# -- why it does not


def not_told(ended: Ended, *words: str) -> None:
    """Check that the queues were shown without what the management tells, and that it says why."""
    assert {1: None} == {row["Ready"]: row["Unacked"] for row in json.loads(ended.stdout)}
    assert 4 == ended.code  # bank_queue has no reader
    (why,) = [line for line in ended.stderr.splitlines() if "are not shown" in line]
    for word in (
        "tavrida: unacknowledged messages and connections are not shown: ",
        *words,
    ):
        assert word in why
    assert "guest:guest" not in ended.stderr
    assert "hush" not in ended.stderr


@pytest.fixture
def shown(site: Site, holder: BlockingChannel) -> Site:
    """The service shop only, whose queue has a message."""
    path = site.config.parent / "one.conf"
    path.write_text(f"[connection]\nurl = {site.node.url()}\n[service:shop]\nqueue = lonely\n")
    holder.queue_declare("lonely")
    holder.queue_purge("lonely")
    holder.basic_publish("", "lonely", b"{}")
    holder.connection.process_data_events(0.1)
    return Site(site.node, path)


def test_without_a_url_the_option_is_named(shown: Site) -> None:
    """AMQP's own numbers are shown all the same, as in all that follows."""
    command = ("tavrida", "status", "--config-file", shown.config, "-f", "json")
    not_told(commands.run(*command), "[connection] management_url", "http://HOST:15672")


def test_another_broker_by_url_is_not_mixed_with_the_management_of_the_ini(shown: Site) -> None:
    """Until it is given too."""
    url = shown.node.url()
    not_told(shown.status("--url", url, "-f", "json"), "beside --url the option --management-url")
    more = ("--management-url", shown.management_url)
    ended = shown.status("--url", url, *more, "-f", "json", management_url="http://127.0.0.1:1")
    assert "connections to it" in ended.stderr


def test_nobody_listens(shown: Site) -> None:
    """As where the plugin is not enabled."""
    ended = shown.status("-f", "json", management_url=f"http://127.0.0.1:{free_port()}")
    not_told(ended, "connection refused", "rabbitmq-plugins enable rabbitmq_management")


def test_a_wrong_password(shown: Site) -> None:
    """It is not repeated."""
    url = f"http://guest:hush@127.0.0.1:{shown.node.management_port}"
    not_told(shown.status("-f", "json", management_url=url), "refused user 'guest' (Login failed)")


@pytest.mark.parametrize(
    ("scheme", "words"),
    [
        ("http", ("does not speak HTTP", "is [connection] management_url right?")),
        ("https", ("does not speak TLS", "127.0.0.1")),
    ],
)
def test_it_is_the_port_of_amqp(shown: Site, scheme: str, words: tuple[str, ...]) -> None:
    """The commonest slip."""
    url = f"{scheme}://127.0.0.1:{shown.node.port}"
    not_told(shown.status("-f", "json", management_url=url), *words)


def test_connections_alone_are_an_error_then(shown: Site) -> None:
    """There is nothing else to show."""
    ended = shown.status("--connections", management_url=f"http://127.0.0.1:{free_port()}")
    assert (1, "") == (ended.code, ended.stdout)
    assert "connections are not shown: RabbitMQ's management at" in ended.stderr.splitlines()[-1]


def test_a_wrong_url_is_wrong_usage(shown: Site) -> None:
    """Before anything connects."""
    ended = shown.status("--connections", "--management-url", "http://watcher:hu/sh@127.0.0.1")
    failed(ended, 64, "management_url: ", "http://USER:PASSWORD@HOST:15672")
    assert "hu/sh" not in ended.stderr


# -- answers that no management gives


@contextlib.contextmanager
def answering(status: int, body: bytes, context: ssl.SSLContext | None = None) -> Iterator[int]:
    """Run a web server that has one answer to everything; give its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def survey(management_url: str, **more: Any) -> management.Survey:
    more.setdefault("url", "amqp://ann:hush@127.0.0.1:1/place%2Fone")
    return asyncio.run(management.survey(ConnectionConfig(management_url=management_url, **more)))


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (200, b"<html>", "answers what no management would"),
        (200, b"\xff\xfe", "answers what no management would"),
        (200, b'{"error": "x"}', "answers what no management would"),
        (200, b"[1]", "answers what no management would"),
        (200, b"[" * 100_000, "answers what no management would"),
        (401, b"[" * 100_000, "refused user"),
        (200, b'[{"name": null, "messages_unacknowledged": "x"}]', "answers what no management"),
        (200, b'[{"name": "x", "connected_at": 1e300}]', "answers what no management would"),
        (301, b"", "answered 301 Moved Permanently: is [connection] management_url right?"),
        (401, b"[]", "refused user 'ann': it wants the right password, rights on virtual host "),
        (401, b'{"reason": "{no}\\u001b"}', "refused user 'ann' ({no}\\x1b): it wants"),
        (404, b"{}", "knows no virtual host 'place/one', or is another program: is [connection]"),
        (503, b"", "answered 503 Service Unavailable: is [connection] management_url right?"),
    ],
)
def test_strange_answers_are_told_in_one_sentence(status: int, body: bytes, words: str) -> None:
    """With where they came from, and never with the password."""
    with answering(status, body) as port, pytest.raises(TransportError) as told:
        survey(f"http://127.0.0.1:{port}/prefix/")
    assert f"RabbitMQ's management at 127.0.0.1:{port} {words}" in str(told.value)
    assert "hush" not in str(told.value)


def test_a_queue_that_is_not_counted_yet_is_named(site: Site, holder: BlockingChannel) -> None:
    """An empty column has its reason; there is no number that is only guessed.

    The management itself may count in any moment.
    """
    config = site.config.parent / "new.conf"
    config.write_text(f"[connection]\nurl = {site.node.url()}\n[service:new]\n[service:never]\n")
    holder.queue_declare("new")
    with answering(200, b'[{"name": "new"}]') as port:
        ended = Site(site.node, config).status(
            "-f", "json", management_url=f"http://127.0.0.1:{port}"
        )
    assert "the management has not counted yet: new\n" in ended.stderr
    assert [None, None] == [row["Unacked"] for row in json.loads(ended.stdout)]


def test_what_is_not_counted_yet_is_left_out() -> None:
    """A queue that was just declared, and a connection whose channels are just being closed."""
    found = b'[{"name": "x", "connection_details": [], "channel_details": [], "queue": []}]'
    with answering(200, found) as port:
        told = survey(f"http://127.0.0.1:{port}")
    assert {} == told.unacknowledged
    (connection,) = told.connections
    assert ("x", "", None, (), None) == (
        connection.name,
        connection.peer,
        connection.since,
        connection.queues,
        connection.unacknowledged,
    )


def test_one_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks is told in time."""
    monkeypatch.setattr(management, "TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(TransportError) as told:
        survey(f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert "did not answer within" in str(told.value)


def test_tls_trusts_the_ca_of_the_connection() -> None:
    """And no other."""
    ca, stranger = trustme.CA(), trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("localhost").configure_cert(context)
    with answering(200, b"[]", context) as port:
        for each, is_trusted in ((ca, True), (stranger, False)):
            with each.cert_pem.tempfile() as path, contextlib.ExitStack() as expected:
                if not is_trusted:
                    expected.enter_context(pytest.raises(TransportError, match="not trusted here"))
                told = survey(
                    f"https://localhost:{port}", url="amqps://ann:hush@x", tls_ca_file=path
                )
                assert [] == told.connections


def test_a_client_certificate_is_no_password() -> None:
    """Then the management needs a user of its own."""
    with pytest.raises(TransportError, match="login = certificate"):
        survey("http://127.0.0.1:1", url="amqps://x", login="certificate", tls_cert_file="x")
