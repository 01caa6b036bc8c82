# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Files that are read again: what takes effect, what needs a restart, and what runs then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tavrida import options
from tavrida.changes import Changes
from tavrida.options import Configuration
from tavrida.retries import Retry
from tests.packages import Packages

CONTROLLER = """
    from oslo_config import cfg

    from tavrida import dispatcher, service

    @dispatcher.rpc_service("again")
    class Again(service.ServiceController):
        @classmethod
        def list_opts(cls):
            return [cfg.StrOpt("greeting", mutable=True)]

        @dispatcher.rpc_method(service="again", method="hello")
        def hello(self, request, proxy): ...
"""

Read = Callable[[str], Configuration]


@pytest.fixture(scope="module", autouse=True)
def _packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A controller called ``again``."""
    packages = Packages(tmp_path_factory.mktemp("site"))
    packages.add(
        "acme-again", {"tavrida.controllers": {"again": "acme_again:Again"}}, acme_again=CONTROLLER
    )
    yield
    packages.remove()


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Read the text of an ini, which serves ``again`` on a bus in memory."""

    def read(text: str) -> Configuration:
        path = tmp_path / "again.conf"
        if "[connection]" not in text:
            text += "\n[connection]\nurl = sqlite://\n"
        path.write_text("[server]\nservices = again\n" + text)
        return options.read(options.parse(["--config-file", str(path)], "test"))

    return read


def test_the_same_files_change_nothing(read: Read) -> None:
    """Also with other comments and in another order."""
    changes = Changes.between(
        read("concurrency = 3\n[log]\nlevel = DEBUG\n"),
        read("# three\nconcurrency=3\n[log]\nlevel=DEBUG"),
    )
    assert ((), ()) == (changes.applied, changes.left)


def test_what_takes_effect_is_told_with_both_values(read: Read) -> None:
    """Options of the server, of the log and of retries, in whichever section."""
    changes = Changes.between(
        read("concurrency = 3\n[retry]\non = ValueError\n[retry:again]\nattempts = 2\n"),
        read(
            "handler_concurrency = again.hello:2, again.hello:3\n[log]\nlevel = ERROR\n"
            "[retry:again.hello]\nattempts = 7\n"
        ),
    )
    assert (
        "[log] level: INFO -> ERROR",
        "[retry] on: ValueError -> unset",
        "[retry:again] attempts: 2 -> unset",
        "[retry:again.hello] attempts: unset -> 7",
        "[server] concurrency: 3 -> 10",
        "[server] handler_concurrency: unset -> again.hello:2, again.hello:3",
    ) == changes.applied
    assert () == changes.left
    configuration = changes.configuration
    assert ("ERROR", 10) == (configuration.log.level, configuration.server.concurrency)
    assert {"again.hello": Retry(attempts=7)} == dict(configuration.retries.named)


def test_what_needs_a_restart_is_named_without_its_values_and_stays(read: Read) -> None:
    """A url has a password. Options of plugins need one too, whatever they declare."""
    running = read("queue_type = classic\n[connection]\nurl = amqp://a:old@b\n")
    changes = Changes.between(
        running,
        read(
            "workers = 2\nconcurrency = 4\n[log]\nformat = %(message)s\n"
            "[service:again]\ngreeting = Hi\nqueue = other\n[connection]\nurl = amqp://a:new@b\n"
        ),
    )
    assert (
        "[connection] url",
        "[log] format",
        "[server] queue_type",
        "[server] workers",
        "[service:again] greeting",
        "[service:again] queue",
    ) == changes.left
    assert ("[server] concurrency: 10 -> 4",) == changes.applied
    configuration = changes.configuration
    assert running.connection is configuration.connection
    assert running.services is configuration.services
    assert ("classic", 1, 4) == (
        configuration.server.queue_type,
        configuration.server.workers,
        configuration.server.concurrency,
    )


def test_what_was_left_is_named_again_the_next_time(read: Read) -> None:
    """And what took effect is not: the comparison is with what runs."""
    found = read("workers = 2\nconcurrency = 4\n")
    first = Changes.between(read(""), found)
    second = Changes.between(first.configuration, found)
    assert ("[server] workers",) == first.left == second.left
    assert () == second.applied
    back = Changes.between(second.configuration, read(""))
    assert (("[server] concurrency: 4 -> 10",), ()) == (back.applied, back.left)
