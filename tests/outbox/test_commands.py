# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""``tavrida outbox``: the relay as a process of its own, and the SQL of the tables."""

from __future__ import annotations

import json
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from tavrida import dispatcher
from tavrida.outbox import Outbox
from tavrida.service import ServiceController
from tests.broker.conftest import EXCHANGE, Serve
from tests.commands import SCRIPTS, run
from tests.outbox.conftest import open_database
from tests.processes import Program
from tests.waiting import DEADLINE


@dispatcher.rpc_service("svc")
class Service(ServiceController):
    seen: SimpleQueue[int] = SimpleQueue()

    @dispatcher.rpc_method(service="svc", method="take")
    def take(self, request: Any, proxy: Any, n: int) -> None:
        self.seen.put(n)


def test_the_relay_runs_from_an_ini_until_sigterm(
    serve: Serve, url: str, place: str, database: Any, tmp_path: Path
) -> None:
    """It finds services where the ini says, and ends with 0."""
    Service.seen = SimpleQueue()
    serve(Service)
    ini = tmp_path / "relay.conf"
    where = place if place.startswith("postgresql:") else f"sqlite://{place}"
    ini.write_text(
        f"[connection]\nurl = {url.replace('$', '$$')}\n[outbox]\nurl = {where}\npoll = 0.02\n"
        f"[discovery:local]\nexchanges = svc:{EXCHANGE}\n"
    )
    Outbox("orders").on(database).svc.take(n=1).cast()
    database.commit()
    with Program([SCRIPTS / "tavrida", "outbox", "relay", f"--config-file={ini}"]) as relay:
        assert 1 == Service.seen.get(timeout=DEADLINE)
        assert 0 == relay.end(signal.SIGTERM)
        assert "The relay is publishing." in relay.line("publishing")
    cursor = open_database(place)
    with closing(cursor):
        found = cursor.cursor()
        found.execute("SELECT count(*) FROM tavrida_outbox")
        assert 0 == found.fetchone()[0]


def test_the_printed_sql_makes_the_tables(tmp_path: Path) -> None:
    """As a migration would run it."""
    ended = run("tavrida", "outbox", "sql", "sqlite")
    assert 0 == ended.code
    with closing(sqlite3.connect(tmp_path / "new.db")) as database:
        database.executescript(ended.stdout)
        Outbox("orders").on(database).svc.take(n=1).cast()
    assert (
        "BIGINT GENERATED ALWAYS AS IDENTITY"
        in run("tavrida", "outbox", "sql", "postgresql").stdout
    )


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "[outbox] url is missing: write it as sqlite:///PATH"),
        ("[outbox]\nurl = oracle://x/y\n", "[outbox] url has the scheme 'oracle'"),
        ("[outbox]\nbatch = 0\n", "batch"),
        ("[outbox]\nbatsh = 1\n", "[outbox] batsh is unknown (did you mean 'batch'?)"),
    ],
)
def test_an_ini_that_cannot_work_is_told_in_one_sentence(
    tmp_path: Path, text: str, fault: str
) -> None:
    """With the option and the remedy; nothing connects."""
    ini = tmp_path / "relay.conf"
    ini.write_text(text)
    ended = run("tavrida", "outbox", "relay", f"--config-file={ini}")
    assert 1 == ended.code
    assert fault in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_relay_logs_as_a_server_does(tmp_path: Path) -> None:
    """As [log] says; without the passwords, also in what a driver says of them."""
    ini = tmp_path / "relay.conf"
    ini.write_text(
        "[connection]\nurl = amqp://guest:s3cret-1@127.0.0.1:1/\n[log]\nformat = json\n"
        f"[outbox]\nurl = sqlite://{tmp_path}/s3cret-1.db\n"
    )
    with Program([SCRIPTS / "tavrida", "outbox", "relay", f"--config-file={ini}"]) as relay:
        relay.line("cannot be used")
        assert 0 == relay.end(signal.SIGTERM)
        records = [json.loads(line) for line in relay.rest()]
    first, second, third = records[:3]
    assert ("WARNING", "tavrida.cli.commands.outbox") == (first["level"], first["logger"])
    assert first["message"].startswith("What is stored waits for the broker: cannot reach")
    assert "The relay is publishing." == second["message"]
    assert f"{tmp_path}/***.db" in third["message"]


def test_a_database_without_tables_is_told_with_the_remedy(tmp_path: Path) -> None:
    """The relay ends: waiting would not help."""
    sqlite3.connect(tmp_path / "empty.db").close()
    (tmp_path / "empty.db").touch()
    ini = tmp_path / "relay.conf"
    ini.write_text(
        f"[connection]\nurl = sqlite://{tmp_path}/bus.db\n[outbox]\nurl = sqlite://{tmp_path}/empty.db\n"
    )
    ended = run("tavrida", "outbox", "relay", f"--config-file={ini}")
    assert 1 == ended.code
    assert "has no tables of an outbox" in ended.stderr
