# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Transactions: tavrida's own statements inside a database transaction of the user's.

A connection is that of any DB-API driver for SQLite or PostgreSQL, or a Connection or Session of
SQLAlchemy. None of them is imported here.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

SQLITE, POSTGRESQL = DIALECTS = ("sqlite", "postgresql")

#: The package of a DB-API driver, and which SQL its database speaks.
DRIVERS = {
    "sqlite3": SQLITE,
    "psycopg": POSTGRESQL,
    "psycopg2": POSTGRESQL,
    "pg8000": POSTGRESQL,
}

#: How the n-th value of a statement is written, by the ``paramstyle`` of a driver (PEP 249).
_PLACES = {
    "qmark": "?",
    "format": "%s",
    "pyformat": "%s",
    "numeric": ":{}",
    "numeric_dollar": "${}",
}


class Transaction:
    """Runs statements on a user's connection, as a part of what the user does there.

    It commits and rolls back nothing. Not thread-safe, as the connection is not.

    Raises:
        TypeError: the object is no connection that can be used; says what to give instead.
    """

    __slots__ = ("_execute", "_paramstyle", "dialect")

    def __init__(self, connection: Any) -> None:
        is_connection = hasattr(connection, "exec_driver_sql") or hasattr(connection, "cursor")
        if not is_connection and callable(getattr(connection, "connection", None)):
            connection = _plain(connection.connection(), connection)  # SQLAlchemy's Session
        if hasattr(connection, "exec_driver_sql"):  # SQLAlchemy's Connection
            #: One of DIALECTS.
            self.dialect = str(connection.dialect.name)
            self._paramstyle = str(connection.dialect.paramstyle)
            self._execute = connection.exec_driver_sql
        else:
            cls: type = type(connection)
            self.dialect, self._paramstyle = _driver_of(cls)
            self._execute = functools.partial(_execute, connection)
        if self.dialect not in DIALECTS or self._paramstyle not in _PLACES:
            raise TypeError(
                f"a database of {self.dialect!r} (paramstyle {self._paramstyle!r}) cannot be used: "
                f"those of {', '.join(DIALECTS)} can"
            )

    def execute(self, statement: str, values: Sequence[Any] = ()) -> Any:
        """Run a statement, in which ``?`` stands for each value; return its cursor or result."""
        written = _written(statement, self._paramstyle)
        return _plain(self._execute(written, tuple(values)), self._execute)


def places(count: int) -> str:
    """Return the places of so many values: ``?, ?, ?``."""
    return ", ".join("?" * count)


def _execute(connection: Any, statement: str, values: Sequence[Any]) -> Any:
    cursor = connection.cursor()
    pending = cursor.execute(statement, values)
    _plain(pending, connection)
    return cursor


@functools.lru_cache(maxsize=256)
def _written(statement: str, paramstyle: str) -> str:
    first, *rest = statement.split("?")
    place = _PLACES[paramstyle]
    return first + "".join(place.format(n) + part for n, part in enumerate(rest, 1))


@functools.lru_cache(maxsize=64)
def _driver_of(cls: type) -> tuple[str, str]:
    """Return the dialect and paramstyle of the driver that a class of connections is of."""
    for base in cls.__mro__:
        package = base.__module__.partition(".")[0]
        if package in DRIVERS:
            return DRIVERS[package], str(sys.modules[package].paramstyle)
    raise TypeError(
        f"{cls.__module__}.{cls.__qualname__} is no connection that can be used: give one of "
        f"{', '.join(DRIVERS)}, or a Connection or Session of SQLAlchemy"
    )


def _plain(result: Any, owner: object) -> Any:
    """Return what a call gave; refuse what has to be awaited, which nobody would do here."""
    if inspect.isawaitable(result):
        _refuse(result, owner)
    return result


def _refuse(pending: Any, owner: object) -> NoReturn:
    close = getattr(pending, "close", None)
    if close is not None:
        close()
    raise TypeError(
        f"{owner!r:.80} is asynchronous, and nothing waits for it here: give the plain "
        "connection; with SQLAlchemy, await session.run_sync(FUNCTION)"
    )
