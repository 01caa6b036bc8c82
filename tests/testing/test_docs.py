# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""docs/testing.md: every example is run, and every name in it exists."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from tavrida.testing import faults
from tavrida.testing.app import App
from tests.waiting import DEADLINE

pytest_plugins = ["pytester"]

PAGE = (Path(__file__).parents[2] / "docs" / "testing.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
*TESTS, CONFTEST = BLOCKS


def test_the_examples_pass_as_they_stand(pytester: pytest.Pytester) -> None:
    """One after the other in one file, as a reader would collect them."""
    pytester.makepyfile("\n\n".join(TESTS))
    result = pytester.runpytest_subprocess(
        "-p", "no:cacheprovider", "-W", "error", timeout=DEADLINE
    )
    result.assert_outcomes(passed=7)


def test_the_examples_pass_on_rabbitmq(pytester: pytest.Pytester, amqp_url: str) -> None:
    """With the fixture of the page, apart from the place of the broker."""
    fixture = CONFTEST.replace("amqp://guest:guest@localhost:5672/%2F", amqp_url)
    assert fixture != CONFTEST
    pytester.makeconftest(fixture)
    pytester.makepyfile("\n\n".join(TESTS))
    result = pytester.runpytest_subprocess(
        "-p", "no:cacheprovider", "-W", "error", "-k", "tavrida_app or story or full_disk or again"
    )
    result.assert_outcomes(passed=3, deselected=4)


def test_the_page_names_what_there_is() -> None:
    """Methods of the app with their arguments, and all faults."""
    for name, arguments in re.findall(r"`app\.(\w+)\((.*?)\)`", PAGE):
        parameters = inspect.signature(getattr(App, name)).parameters
        assert set(re.findall(r"(\w+)=", arguments)) <= {*parameters, "param"}, name
    made = {
        name
        for name, value in vars(faults).items()
        if inspect.isfunction(value) and value.__annotations__.get("return") == "Fault"
    }
    assert made
    for name in made:
        assert f"`{name}(" in PAGE


def test_links_lead_somewhere() -> None:
    """Each is a file or folder that is there."""
    for link in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (Path(__file__).parents[2] / "docs" / link).exists()
