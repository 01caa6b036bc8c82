# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""``tavrida topology`` as people and scripts use it: what it prints, and its exit codes.

0 done, or nothing to do; 1 an error; 3 no broker; 4 there is something to do; 64 wrong usage.
"""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tavrida import migration
from tavrida.cli.main import main
from tests import commands
from tests.commands import SCRIPTS, Ended
from tests.packages import Packages
from tests.transports.bench import Bench
from tests.waiting import DEADLINE

SHOP = """
    from tavrida import dispatcher, service


    @dispatcher.rpc_service("shop")
    class Shop(service.ServiceController):
        @dispatcher.rpc_method(service="shop", method="buy", retry=False)
        def buy(self, request, proxy, n=0):
            print(f"bought {n}")

        @dispatcher.subscription_method(service="bank", method="paid")
        def paid(self, notification, proxy):
            pass
"""


@dataclass(frozen=True)
class Site:
    """A service that is not running, and what commands need to know of it."""

    folder: Path
    packages: Path
    url: str
    capsys: pytest.CaptureFixture[str]

    @property
    def environment(self) -> dict[str, str]:
        return {"PYTHONPATH": str(self.packages)}

    def config(self, kind: str) -> Path:
        """The ini of the service with this type of queues."""
        path = self.folder / f"{kind}.conf"
        path.write_text(
            f"[connection]\nurl = {self.url}\nconnection_attempts = 1\n"
            f"[server]\nservices = shop\nqueue_type = {kind}\nconcurrency = 1\n"
        )
        return path

    def topology(self, *arguments: str, kind: str = "classic") -> Ended:
        """Run ``tavrida topology``, within this process."""
        code = main(["topology", *arguments, "--config-file", str(self.config(kind))])
        output, errors = self.capsys.readouterr()
        return Ended(code, output, errors)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which the service is installed."""
    folder = tmp_path_factory.mktemp("packages")
    packages = Packages(folder)
    packages.add("acme-shop", {"tavrida.controllers": {"shop": "acme_shop:Shop"}}, acme_shop=SHOP)
    yield folder
    packages.remove()


@pytest.fixture
def site(packages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Site:
    """At an embedded bus that does not exist yet."""
    return Site(tmp_path, packages, f"sqlite://{tmp_path}/bus.db", capsys)


@pytest.fixture(params=["rabbitmq", "sqlite"])
def any_site(request: pytest.FixtureRequest, site: Site) -> Site:
    """On each transport."""
    if request.param == "rabbitmq":
        return replace(site, url=request.getfixturevalue("amqp_url"))
    return site


@pytest.fixture
def nowhere(site: Site) -> Site:
    """Where there is no broker."""
    return replace(site, url="amqp://guest:guest@127.0.0.1:1/")


def queues_of(ended: Ended) -> dict[str, dict[str, object]]:
    return {row["Name"]: row for row in json.loads(ended.stdout) if row["Kind"] == "queue"}


def test_show_needs_no_broker(nowhere: Site) -> None:
    """Exchanges, queues and bindings, for programs."""
    ended = nowhere.topology("show", "-f", "json", kind="quorum")
    assert (ended.code, ended.stderr) == (0, "")
    rows = json.loads(ended.stdout)
    assert {"service", "exchange", "queue", "binding"} == {row["Kind"] for row in rows}
    settings = {"queue": "shop", "exchange": "shop", "publishes_to": "shop.notifications"}
    assert {"Kind": "service", "Name": "shop", "Type": "", "Settings": settings} in rows
    assert {"Kind": "exchange", "Name": "shop", "Type": "topic", "Settings": {}} in rows
    queue = queues_of(ended)["shop"]
    assert "quorum" == queue["Type"]
    assert {"dead_letter_to": "shop.dead", "delivery_limit": 20} == queue["Settings"]
    assert {"exchange": "bank.notifications", "routing_key": "bank.paid"} in [
        row["Settings"] for row in rows if row["Kind"] == "binding"
    ]


def test_show_is_a_table_for_people(site: Site) -> None:
    """One row for each thing, one line for each setting; other formats are there too."""
    ended = site.topology("show")
    assert (ended.code, ended.stderr) == (0, "")
    assert "| Kind     | Name" in ended.stdout
    assert "dead_letter_to: shop.dead" in ended.stdout
    for format_ in ("yaml", "value", "csv"):
        assert "shop.dead" in site.topology("show", "-f", format_).stdout


def test_a_plan_ends_with_4_where_there_is_something_to_do_and_0_where_there_is_not(
    any_site: Site,
) -> None:
    """Apply makes what is missing, without a question."""
    ended = any_site.topology("plan", "-f", "json")
    assert (ended.code, ended.stderr) == (4, "")
    assert {"create"} == {row["Action"] for row in json.loads(ended.stdout)}
    ended = any_site.topology("apply")
    assert (ended.code, ended.stderr) == (0, "")
    assert "make queue shop.dead\n" in ended.stdout
    ended = any_site.topology("plan", "-f", "json")
    assert (ended.code, ended.stderr) == (0, "")
    assert {"keep", "declare"} == {row["Action"] for row in json.loads(ended.stdout)}


def put(url: str, count: int) -> None:
    with Bench(url) as bench:
        connection = bench.connect()
        for number in range(count):
            body = json.dumps({"n": number}).encode()
            connection.publish("shop", "shop.buy", body, is_mandatory=True)


def test_a_queue_changes_its_type_with_its_messages(any_site: Site) -> None:
    """Plan says how; apply does it; the service handles what waited, as it was published."""
    assert any_site.topology("apply").code == 0
    put(any_site.url, 7)
    ended = any_site.topology("plan", "-f", "json", kind="quorum")
    assert (ended.code, ended.stderr) == (4, "")
    queue = queues_of(ended)["shop"]
    assert ("move", 7, 0) == (queue["Action"], queue["Messages"], queue["Consumers"])
    assert {"old": "classic", "new": "quorum"} == queue["Changes"]["x-queue-type"]  # type: ignore[index]
    assert "moves 7 messages through shop.moving" in str(queue["How"])
    ended = any_site.topology("plan", kind="quorum")
    assert "x-queue-type: 'classic' -> 'quorum'" in ended.stdout
    ended = any_site.topology("apply", "--yes", kind="quorum")
    assert (ended.code, ended.stderr) == (0, "")
    assert "moved 7 messages to queue shop\n" in ended.stdout
    assert any_site.topology("plan", kind="quorum").code == 0
    with commands.serve(
        "--config-file", any_site.config("quorum"), environment=any_site.environment
    ) as server:
        server.line("bought 6")
        assert server.end() == 0
    # What it prints and what it logs share a pipe, and may share a line.
    assert list("0123456") == re.findall(r"bought (\d)", "\n".join(server.output))


def test_without_a_terminal_moving_messages_needs_a_yes(site: Site) -> None:
    """It says what it would do; nothing is changed."""
    assert site.topology("apply").code == 0
    ended = site.topology("apply", kind="quorum")
    assert ended.code == 64
    assert "say --yes" in ended.stderr
    assert "x-queue-type 'classic' -> 'quorum'" in ended.stdout
    assert site.topology("plan").code == 0


@pytest.mark.parametrize(("answer", "code"), [("yes\n", 0), ("y\n", 1), ("\x04", 1)])
def test_on_a_terminal_it_asks(site: Site, answer: str, code: int) -> None:
    """Only the whole word counts; Ctrl-D is none."""
    assert site.topology("apply").code == 0
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [SCRIPTS / "tavrida", "topology", "apply", "--config-file", site.config("quorum")],
        env=os.environ | site.environment,
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        os.write(ours, answer.encode())
        output, _ = process.communicate(timeout=DEADLINE)
    os.close(ours)
    os.close(theirs)
    assert code == process.returncode, output
    assert ("nothing was changed" in output) == (code == 1)
    assert site.topology("plan", kind="quorum").code == (0 if code == 0 else 4)


def test_a_running_service_has_to_stop_first(
    any_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names its queue, the plan names the service; nothing is changed."""
    monkeypatch.setattr(migration, "PATIENCE", 0.2)
    with commands.serve(
        "--config-file", any_site.config("classic"), environment=any_site.environment
    ) as server:
        ended = any_site.topology("plan", "-f", "json", kind="quorum")
        assert "stop first: shop (1 consumers)" in str(queues_of(ended)["shop"]["How"])
        ended = any_site.topology("apply", "--yes", kind="quorum")
        assert ended.code == 1
        (line,) = ended.stderr.splitlines()
        assert "'shop' has 1" in line
        assert "Stop all processes" in line
        assert any_site.topology("plan").code == 0
        assert server.end() == 0


def test_a_server_says_what_differs_and_what_to_do(any_site: Site) -> None:
    """In one line, with the exit code of a broker that refuses."""
    assert any_site.topology("apply").code == 0
    ended = commands.run(
        "tavrida-server",
        "--config-file",
        any_site.config("quorum"),
        environment=any_site.environment,
    )
    assert ended.code == 3
    line = ended.stderr.splitlines()[-1]
    assert "x-queue-type is 'classic', wanted is 'quorum'" in line
    assert "tavrida topology apply" in line


def test_a_broker_that_cannot_be_reached_is_one_line(nowhere: Site) -> None:
    """And the exit code 3."""
    for command in ("plan", "apply"):
        ended = nowhere.topology(command)
        assert ended.code == 3
        assert "cannot reach RabbitMQ" in ended.stderr


def test_another_url_may_be_given(site: Site, tmp_path: Path) -> None:
    """Instead of that of the files."""
    other = f"sqlite://{tmp_path}/other.db"
    assert site.topology("apply", "--url", other).code == 0
    assert site.topology("plan", "--url", other).code == 0
    assert site.topology("plan").code == 4
