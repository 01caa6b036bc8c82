# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Which transports the contract is tested on, and where."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tavrida import plugins
from tests.packages import Packages
from tests.transports.conftest import places


@pytest.fixture
def packages(tmp_path: Path) -> Iterator[Packages]:
    packages = Packages(tmp_path)
    yield packages
    packages.remove()


def test_every_registered_transport_is_tested(request: pytest.FixtureRequest) -> None:
    """By default: the file and the memory of sqlite, and RabbitMQ once for amqp and amqps."""
    names = [place.name for place in places(request.config)]
    assert {"rabbitmq", "sqlite-file", "sqlite-memory"} <= set(names)
    assert len(set(names)) == len(names)


def test_a_transport_without_a_place_fails_and_says_what_to_do(
    request: pytest.FixtureRequest, packages: Packages
) -> None:
    """It would be skipped for ever otherwise."""
    packages.add("odd-transport", {plugins.TRANSPORTS: {"odd": "odd_module:OddTransport"}})
    (place,) = (each for each in places(request.config) if each.name == "odd")
    with pytest.raises(pytest.fail.Exception, match="pass --transport-url odd://"):
        place.url(request)
