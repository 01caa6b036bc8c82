# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The pytest plugin: fixtures for authors of services.

pytest imports this module in every run of everybody who has tavrida installed, so everything else
is imported by the fixtures, when a test asks for one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tavrida.service import ServiceController
    from tavrida.testing.app import App, StartApp

_APPS: pytest.StashKey[list[App]] = pytest.StashKey()


@pytest.fixture
def tavrida_url() -> str:
    """The broker of this test, in memory and its own. Override it to run on another one."""
    import secrets

    return f"sqlite://?memory=test-{secrets.token_hex(6)}"


@pytest.fixture
def tavrida_app(tavrida_url: str, request: pytest.FixtureRequest) -> Iterator[StartApp]:
    """Call it with controllers to start an app of them; see tavrida.testing.app.App.

    The app stops at the end of the test, also when that failed. The test fails then if a handler
    has failed and nobody noticed.
    """
    from tavrida.testing.app import App, UnseenFailures

    started = request.node.stash.setdefault(_APPS, [])
    try:
        with ExitStack() as apps:

            def start(*classes: type[ServiceController], **how: Any) -> App:
                app = App(*classes, **{"url": tavrida_url, **how})
                started.append(app)
                return apps.enter_context(app)

            yield start
    except UnseenFailures as failures:
        pytest.fail(str(failures), pytrace=False)


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Show what the apps of a failing test did, and the seed of their faults."""
    if call.excinfo is None:
        return
    for app in item.stash.get(_APPS, ()):
        item.add_report_section(call.when, "tavrida", f"{app!r}\n{app.story()}")
