# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The kit on each transport."""

from __future__ import annotations

import secrets

import pytest


@pytest.fixture(params=["memory", "rabbitmq"])
def broker(request: pytest.FixtureRequest) -> str:
    """The url of a real broker, of each transport in turn."""
    if request.param == "rabbitmq":
        return str(request.getfixturevalue("amqp_url"))
    return f"sqlite://?memory=test-{secrets.token_hex(6)}"
