# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""What every test may ask for."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tavrida import masks
from tests.rabbitmq import Node, missing


@pytest.fixture(scope="session", autouse=True)
def _environment() -> None:
    """Forget settings of the shell that would go before those of the tests, or hide a fault."""
    for name in list(os.environ):
        if name.startswith(("OS_", "CLIFF_")) or name == "PYTHONUNBUFFERED":
            del os.environ[name]


@pytest.fixture(autouse=True)
def _secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Know no secrets of other tests: their words would be missing in what this one reads."""
    monkeypatch.setattr(masks, "_known", {})
    monkeypatch.setattr(masks, "_pattern", None)


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[Node]:
    """One RabbitMQ node for all tests; take a `vhost` of it, and never stop or kill it."""
    require_rabbitmq()
    with Node() as node:
        yield node


@pytest.fixture
def vhost(rabbitmq: Node, request: pytest.FixtureRequest) -> Iterator[str]:
    """A virtual host that is only this test's: empty, and deleted afterwards."""
    # The test's name in it makes the broker's log readable.
    name = re.sub(r"\W+", "-", request.node.name)[:60] + "-" + secrets.token_hex(4)
    rabbitmq.add_vhost(name)
    yield name
    rabbitmq.delete_vhost(name)


@pytest.fixture
def user(rabbitmq: Node) -> Iterator[str]:
    """A user that is only this test's, with password `password` and no right on any virtual host.

    A name of the test's own choice can be that of another test, and the node is the same.
    """
    name = f"user-{secrets.token_hex(4)}"
    rabbitmq.add_user(name, "password")
    yield name
    rabbitmq.delete_user(name)


@pytest.fixture
def amqp_url(rabbitmq: Node, vhost: str) -> str:
    """The URL of `vhost`."""
    return rabbitmq.url(vhost)


@pytest.fixture
def node() -> Iterator[Callable[[], Node]]:
    """Start a node of the test's own, to be stopped and killed at will; costs about 7 s each."""
    require_rabbitmq()
    with ExitStack() as nodes:
        yield lambda: nodes.enter_context(Node())


def require_rabbitmq() -> None:
    """Skip where a node cannot run; in CI (CI=true) that is a failure."""
    reason = missing()
    if reason is None:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI=true, but {reason}", pytrace=False)
    pytest.skip(reason)
