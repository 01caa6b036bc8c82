# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Databases with the tables of an outbox, of every kind in turn, and brokers as in tests/broker."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tavrida import outbox
from tests.broker import conftest as broker
from tests.postgresql import Cluster, missing

config, serve, connect = broker.config, broker.serve, broker.connect
url = broker.url

DATABASES = ("sqlite", "postgresql")


#: Transport and database: each of them in one of two runs, or, where it matters, all with all.
PAIRS = (("sqlite", "postgresql"), ("rabbitmq", "sqlite"))
ALL_PAIRS = (*PAIRS, ("sqlite", "sqlite"), ("rabbitmq", "postgresql"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if any("place" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")):
        return
    if {"url", "place"} <= set(metafunc.fixturenames):
        metafunc.parametrize(("url", "place"), PAIRS, indirect=True)
        return
    broker.pytest_generate_tests(metafunc)
    if "place" in metafunc.fixturenames:
        metafunc.parametrize("place", DATABASES, indirect=True)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Cluster]:
    """One PostgreSQL for all tests; take a new database of it."""
    reason = missing()
    if reason is not None and os.environ.get("CI") == "true":
        pytest.fail(f"CI=true, but {reason}", pytrace=False)
    if reason is not None:
        pytest.skip(reason)
    with Cluster() as cluster:
        yield cluster


def open_database(place: str) -> Any:
    """Connect to a database by its url, or by the path of an SQLite file."""
    if place.startswith("postgresql:"):
        return psycopg.connect(place)
    return sqlite3.connect(place, timeout=20, check_same_thread=False)


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where the test's database is, with the tables of an outbox and one of orders."""
    if request.param == "postgresql":
        found = str(request.getfixturevalue("postgresql").new_database())
    else:
        found = str(tmp_path / "orders.db")
    database = open_database(found)
    if request.param == "sqlite":
        database.execute("PRAGMA journal_mode = WAL")
    outbox.create_tables(database)
    database.cursor().execute("CREATE TABLE orders (name TEXT)")
    database.commit()
    database.close()
    return found


@pytest.fixture
def database(place: str) -> Iterator[Any]:
    """A connection of the user's to that database."""
    with ExitStack() as stack:
        connection = open_database(place)
        stack.callback(connection.close)
        yield connection
