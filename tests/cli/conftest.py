# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""A running service on each transport, shared by all tests of the commands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import commands
from tests.commands import SCRIPTS, Ended
from tests.packages import Packages
from tests.processes import Program

ECHO = """
    from typing import Annotated

    import msgspec

    from tavrida import dispatcher, service


    @dispatcher.rpc_service("echo")
    class Echo(service.ServiceController):
        \"\"\"Says what it hears. And more.\"\"\"

        @classmethod
        def list_opts(cls):
            from oslo_config import cfg

            return [
                cfg.StrOpt("token", secret=True, help="Nobody may see it."),
                cfg.StrOpt("peer", help="An address."),
            ]

        @dispatcher.rpc_method(service="echo", method="echo")
        def echo(self, request, proxy, **payload):
            return payload

        @dispatcher.rpc_method(service="echo", method="add")
        def add(
            self, request, proxy, a: Annotated[int, msgspec.Meta(ge=0)], b: int = 1
        ) -> dict[str, int]:
            \"\"\"Add two numbers.\"\"\"
            return {"sum": a + b}

        @dispatcher.rpc_method(service="echo", method="slow")
        def slow(self, request, proxy):
            import time

            print("is slow", flush=True)
            time.sleep(2)

        @dispatcher.rpc_method(service="echo", method="fail", retry=False)
        def fail(self, request, proxy):
            raise ValueError("on purpose")

        @dispatcher.subscription_method(service="echo", method="heard")
        def heard(self, notification, proxy, **payload):
            print("hears", payload)
"""

#: A virtual host for all tests of this folder.
VHOST = "test-cli"


@dataclass(frozen=True)
class Site:
    """A running service, and what commands need to reach it."""

    server: Program
    config: Path
    environment: dict[str, str]
    url: str

    @property
    def place(self) -> tuple[str | Path, ...]:
        """The arguments that lead here."""
        return ("--config-file", self.config)

    @property
    def is_embedded(self) -> bool:
        """Tell whether it is on the embedded bus, and not on RabbitMQ."""
        return self.url.startswith("sqlite")

    def tavrida(self, *arguments: str | Path) -> Ended:
        """Run the command with the service's ini."""
        return commands.run("tavrida", *arguments, *self.place, environment=self.environment)

    def program(self, *arguments: str | Path) -> Program:
        """Start the command with the service's ini."""
        words = [SCRIPTS / "tavrida", *arguments, *self.place]
        return Program(words, environment=self.environment)


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which the package of the service is installed."""
    folder = tmp_path_factory.mktemp("packages")
    packages = Packages(folder)
    packages.add("acme-echo", {"tavrida.controllers": {"echo": "acme_echo:Echo"}}, acme_echo=ECHO)
    packages.remove()  # other processes find it by PYTHONPATH
    return {"PYTHONPATH": str(folder)}


@pytest.fixture(scope="session", params=["sqlite", "rabbitmq"])
def site(
    request: pytest.FixtureRequest,
    packages: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Site]:
    """The service echo, on each transport."""
    folder = tmp_path_factory.mktemp("site")
    url = f"sqlite://{folder}/bus.db"
    node = None
    if request.param == "rabbitmq":
        node = request.getfixturevalue("rabbitmq")
        node.add_vhost(VHOST)
        url = node.url(VHOST)
    config = folder / "echo.conf"
    config.write_text(
        f"[connection]\nurl = {url}\nconnection_attempts = 1\n"
        "[server]\nservices = echo\nqueue_type = classic\n"
        "[service:echo]\nexchange = echo_exchange\npublish_exchange = echo_news\n"
        "queue = echo_queue\n"
    )
    with commands.serve("--config-file", config, environment=packages) as server:
        yield Site(server, config, packages, url)
        assert server.end() == 0
    if node is not None:
        node.delete_vhost(VHOST)


@pytest.fixture
def nowhere(tmp_path: Path) -> Path:
    """The ini of a service whose broker does not exist."""
    path = tmp_path / "nowhere.conf"
    path.write_text(
        "[connection]\nurl = amqp://guest:guest@127.0.0.1:1/%2F\nconnection_attempts = 1\n"
        "[service:echo]\nqueue = echo_queue\n"
    )
    return path


def failed(ended: Ended, code: int, *words: str) -> None:
    """Check that a command failed with one line on stderr and nothing on stdout."""
    assert (code, "") == (ended.code, ended.stdout), ended
    (line,) = ended.stderr.splitlines()
    assert line.startswith("tavrida: ")
    for word in words:
        assert word in line
