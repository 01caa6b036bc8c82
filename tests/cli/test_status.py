# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""``tavrida status``: what waits, who reads, and what an operator should look at."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tavrida.topology import Queue
from tests import commands
from tests.cli.conftest import Site, failed
from tests.commands import Ended
from tests.rabbitmq import Node
from tests.transports.bench import Bench
from tests.waiting import eventually


def row_of(ended: Ended) -> dict[str, Any]:
    (row,) = json.loads(ended.stdout)
    return dict(row)


def test_a_queue_with_which_nothing_is_wrong(site: Site) -> None:
    """Depth, consumers, what waits to be tried again, and the dead."""
    site.tavrida("dead", "purge", "--all", "--yes")
    ended = site.tavrida("status", "-f", "json")
    row = row_of(ended)
    assert {
        "Queue": "echo_queue",
        "Services": "echo",
        "Ready": 0,
        "Unacked": 0 if site.is_embedded else None,
        "Consumers": 1,
        "Delayed": 0,
        "Dead": 0,
        "State": "ok",
    } == row
    assert 0 == ended.code
    assert "the broker is reachable: " in ended.stderr
    told = "2 connections to it: --connections lists them"
    hint = (
        "are not shown: AMQP does not tell them; set [connection] management_url, or beside --url"
    )
    assert (told if site.is_embedded else hint) in ended.stderr


def test_what_the_embedded_bus_knows_of_processes(site: Site) -> None:
    """It needs no management: who is connected, and what is unacknowledged."""
    if not site.is_embedded:
        ended = site.tavrida("status", "--connections")
        assert (1, "") == (ended.code, ended.stdout)
        assert "not shown: AMQP does not tell" in ended.stderr.splitlines()[-1]
        return
    assert 0 == site.tavrida("cast", "echo.slow").code
    site.server.line("is slow")
    assert 1 == row_of(site.tavrida("status", "-f", "json"))["Unacked"]
    rows = json.loads(site.tavrida("status", "--connections", "-f", "json").stdout)
    assert [("in", 1, "echo_queue"), ("out", 0, "")] == [
        (row["Connection"].rpartition(" ")[2], row["Unacked"], row["Queues"]) for row in rows
    ]
    assert all(f" {site.server.process.pid} " in row["Connection"] for row in rows)
    table = site.tavrida("status", "echo", "--connections").stdout
    assert re.search(r" \d+[smh] ago ", table)


def test_dead_letters_have_exit_code_4(site: Site) -> None:
    """A cast whose handler fails for good."""
    assert 0 == site.tavrida("cast", "echo.fail").code

    def told() -> bool:
        ended = site.tavrida("status", "echo", "-f", "json")
        return (4, "dead letters", 1) == (
            ended.code,
            row_of(ended)["State"],
            row_of(ended)["Dead"],
        )

    eventually(told)
    assert 0 == site.tavrida("dead", "purge", "--all", "--yes").code


def test_a_queue_that_nobody_reads_and_one_that_is_missing(tmp_path: Path) -> None:
    """Those of services that are not running, whose controllers are not installed here."""
    config = tmp_path / "shop.conf"
    config.write_text("[service:shop]\n[service:bar]\nqueue = bar_queue\n")
    place = ("--config-file", config, "--url", f"sqlite://{tmp_path}/bus.db")
    with Bench(f"sqlite://{tmp_path}/bus.db") as bench:
        connection = bench.connect()
        connection.declare(Queue("shop", "classic"), Queue("shop.dead", "classic"))
        connection.put("shop", b"{}")
        ended = commands.run("tavrida", "status", *place, "-f", "json")
    rows = {row["Queue"]: row for row in json.loads(ended.stdout)}
    assert 4 == ended.code
    assert ("nobody reads it", 1, 0, None) == tuple(
        rows["shop"][name] for name in ("State", "Ready", "Consumers", "Delayed")
    )
    assert ("never started", None, None) == tuple(
        rows["bar_queue"][name] for name in ("State", "Ready", "Dead")
    )
    assert "what waits to be tried again is not counted: " in ended.stderr


def test_an_unknown_service_is_told_with_the_nearest(site: Site) -> None:
    """Before anything connects."""
    failed(site.tavrida("status", "ecko"), 1, "no service 'ecko'", "did you mean 'echo'?")


def test_without_an_ini_it_says_what_is_missing() -> None:
    """There is no way to ask a broker for all its queues."""
    failed(commands.run("tavrida", "status"), 64, "--config-file")


def test_no_broker_has_exit_code_3(nowhere: Path, packages: dict[str, str]) -> None:
    """That is what the command is for."""
    ended = commands.run("tavrida", "status", "--config-file", nowhere, environment=packages)
    assert (3, "") == (ended.code, ended.stdout)
    assert "RabbitMQ at 127.0.0.1:1: connection refused" in ended.stderr.splitlines()[-1]


@pytest.mark.parametrize("what", ["password", "virtual host"])
def test_a_broker_that_refuses_has_exit_code_3(rabbitmq: Node, tmp_path: Path, what: str) -> None:
    """The user, or the virtual host."""
    url = rabbitmq.url("/", password="wrong-one") if what == "password" else rabbitmq.url("nope")
    config = tmp_path / "shop.conf"
    config.write_text("[service:shop]\n")
    ended = commands.run("tavrida", "status", "--config-file", config, "--url", url)
    assert (3, "") == (ended.code, ended.stdout)
    assert what in ended.stderr.splitlines()[-1]
    assert "wrong-one" not in ended.stderr


def test_it_needs_no_right_but_to_connect(
    rabbitmq: Node, vhost: str, user: str, tmp_path: Path
) -> None:
    """So an operator's account cannot harm anything."""
    rabbitmq.permit(user, vhost, configure="^$", write="^$", read="^$")
    with Bench(rabbitmq.url(vhost)) as bench:
        bench.connect().declare(Queue("shop", "classic"), Queue("shop.dead", "classic"))
    config = tmp_path / "shop.conf"
    config.write_text("[service:shop]\n")
    url = rabbitmq.url(vhost, user=user, password="password")
    ended = commands.run("tavrida", "status", "--config-file", config, "--url", url, "-f", "json")
    assert (4, "nobody reads it") == (ended.code, row_of(ended)["State"])
