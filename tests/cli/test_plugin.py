# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""``tavrida plugin list`` says what is installed, and what of it cannot be used and why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import commands
from tests.cli.conftest import failed
from tests.packages import Packages


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of two packages: one cannot be imported, one gives a name twice."""
    folder = tmp_path_factory.mktemp("broken")
    packages = Packages(folder)
    packages.add(
        "acme-bad",
        {"tavrida.controllers": {"bad": "acme_bad:Bad", "gone": "acme_fine:Gone"}},
        acme_bad="raise SystemExit(7)",
    )
    packages.add(
        "acme-fine",
        {
            "tavrida.controllers": {"fine": "acme_fine:Fine", "other": "acme_fine:Other"},
            "tavrida.serializers": {"json": "x:y"},
        },
        acme_fine="""
            from tavrida.service import ServiceController

            class Fine(ServiceController):
                pass

            class Other:
                pass
        """,
    )
    packages.remove()
    return {"PYTHONPATH": str(folder)}


def test_each_plugin_tells_whether_it_loads(broken: dict[str, str]) -> None:
    """One that ends the program at import is told too, and a name that two packages give."""
    ended = commands.run("tavrida", "plugin", "list", "-f", "json", environment=broken)
    assert (4, "") == (ended.code, ended.stderr)
    rows = json.loads(ended.stdout)
    loads = {(row["Namespace"], row["Name"]): row["Loads"] for row in rows}
    assert "yes" == loads["tavrida.controllers", "fine"]
    assert (
        "no: it is not derived from tavrida.service.ServiceController"
        == (loads["tavrida.controllers", "other"])
    )
    assert "no: SystemExit: 7" == loads["tavrida.controllers", "bad"]
    assert loads["tavrida.controllers", "gone"].startswith("no: AttributeError: ")
    assert "several packages" in loads["tavrida.serializers", "json"]
    assert {"yes"} == {each for (kind, _), each in loads.items() if kind == "tavrida.commands"}


def test_one_namespace_by_its_short_name(broken: dict[str, str]) -> None:
    """All of tavrida's own in it can be loaded."""
    ended = commands.run("tavrida", "plugin", "list", "transports", "-f", "json")
    assert (0, "") == (ended.code, ended.stderr)
    rows = json.loads(ended.stdout)
    assert {"tavrida.transports"} == {row["Namespace"] for row in rows}
    assert {"amqp", "amqps", "sqlite"} < {row["Name"] for row in rows}
    assert {"tavrida"} == {row["Distribution"] for row in rows}


def test_nothing_is_imported_where_that_is_asked(broken: dict[str, str]) -> None:
    """Then nothing can go wrong."""
    arguments = ("plugin", "list", "controllers", "--no-load", "-f", "json")
    ended = commands.run("tavrida", *arguments, environment=broken)
    assert (0, "") == (ended.code, ended.stderr)
    rows = json.loads(ended.stdout)
    assert {"bad", "fine"} < {row["Name"] for row in rows}
    assert "Loads" not in rows[0]


def test_an_unknown_namespace_is_told_with_those_that_exist() -> None:
    """As everywhere where a name is given."""
    ended = commands.run("tavrida", "plugin", "list", "tavrida.controler")
    failed(ended, 64, "'tavrida.controler'", "did you mean 'controllers'?", "serializers")


def test_the_table_fits_80_columns(broken: dict[str, str], tmp_path: Path) -> None:
    """Names are folded behind their dots and colons."""
    narrow = broken | {"CLIFF_MAX_TERM_WIDTH": "80"}
    ended = commands.run("tavrida", "plugin", "list", environment=narrow)
    assert 80 == max(map(len, ended.stdout.splitlines()))
