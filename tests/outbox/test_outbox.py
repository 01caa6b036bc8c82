# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""What is stored, on which connections, and what of it is sent."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg
import pytest
import sqlalchemy
from sqlalchemy.orm import Session

from tavrida import exceptions, outbox
from tavrida.messages import Notification, Request
from tavrida.outbox import Outbox, table
from tavrida.transactions import Transaction
from tests.outbox.conftest import open_database
from tests.postgresql import Cluster


def engine_of(place: str) -> sqlalchemy.Engine:
    if place.startswith("postgresql:"):
        return sqlalchemy.create_engine(place.replace("postgresql:", "postgresql+psycopg:", 1))
    return sqlalchemy.create_engine(f"sqlite:///{place}")


def stored(place: str) -> list[table.Row]:
    """What is committed, in the order of the ids."""
    with closing(open_database(place)) as database:
        return table.due(Transaction(database), 1e12, 1000)


@contextmanager
def plain(place: str) -> Iterator[Any]:
    with closing(open_database(place)) as database:
        yield database


@contextmanager
def core(place: str) -> Iterator[Any]:
    engine = engine_of(place)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


@contextmanager
def session(place: str) -> Iterator[Any]:
    engine = engine_of(place)
    with Session(engine) as session:
        yield session
    engine.dispose()


CONNECTIONS = [plain, core, session]


@pytest.mark.parametrize("connect", CONNECTIONS)
def test_a_message_is_there_when_the_transaction_is_committed(place: str, connect: Any) -> None:
    """And not before; whole, with identifiers of its own."""
    with connect(place) as connection:
        box = Outbox("orders.paid", headers={"tenant": "a"})
        proxy = box.on(connection, key=7)
        proxy.billing.charge(amount=3, raw=b"\x00").cast(correlation_id="c1", context={"x": 1})
        proxy.publish(order=7)
        assert [] == stored(place)
        connection.commit()
    cast, event = stored(place)
    assert ("7", "7") == (cast.order_key, event.order_key)
    message = cast.message()
    assert isinstance(message, Request)
    assert {"amount": 3, "raw": b"\x00"} == message.payload
    assert {"x": 1, "amount": 3, "raw": b"\x00"} == message.context
    assert ("c1", "billing.charge", "orders.paid", {"tenant": "a"}) == (
        message.correlation_id,
        str(message.destination),
        str(message.source),
        message.extra_headers,
    )
    assert message.message_id
    assert message.request_id
    told = event.message()
    assert isinstance(told, Notification)
    assert ({"order": 7}, "orders.paid", None) == (
        told.payload,
        str(told.source),
        told.destination,
    )


@pytest.mark.parametrize("connect", CONNECTIONS)
def test_nothing_is_left_of_a_transaction_that_is_rolled_back(place: str, connect: Any) -> None:
    """Neither the user's row nor the message."""
    with connect(place) as connection:
        Outbox("orders").on(connection).billing.charge(amount=3).cast()
        connection.rollback()
        connection.commit()
    assert [] == stored(place)


def test_the_tables_can_be_made_again_and_by_sqlalchemy(place: str) -> None:
    """What is there already stays."""
    with core(place) as connection:
        Outbox("orders").on(connection).billing.charge().cast()
        outbox.create_tables(connection)
        connection.commit()
    assert 1 == len(stored(place))


def test_a_row_that_was_deleted_does_not_give_its_id_to_another(database: Any) -> None:
    """A relay that was held up deletes by id what it published."""
    transaction = Transaction(database)
    Outbox("orders").on(database).billing.charge().cast()
    (first,) = table.due(transaction, 1.0, 10)
    table.delete(transaction, [first.id])
    Outbox("orders").on(database).billing.charge().cast()
    (second,) = table.due(transaction, 1.0, 10)
    assert first.id < second.id


@pytest.mark.parametrize("method", ["call", "wait", "future"])
def test_nobody_can_wait_for_an_answer_through_an_outbox(method: str) -> None:
    """The sentence names the method and the way out."""
    with closing(sqlite3.connect(":memory:")) as database:
        request = Outbox("orders").on(database).billing.charge()
        with pytest.raises(exceptions.CallError, match=rf"billing\.charge: \.{method}\(\) .*cast"):
            getattr(request, method)()


def test_what_cannot_be_written_is_told_when_it_is_stored() -> None:
    """In the user's transaction, where it can still be undone."""
    with closing(sqlite3.connect(":memory:")) as database:
        outbox.create_tables(database)
        proxy = Outbox("orders").on(database)
        with pytest.raises(exceptions.MessageError, match=r"billing\.charge cannot be stored"):
            proxy.billing.charge(amount=object()).cast()
        with pytest.raises(exceptions.MessageError, match="header 'reply_to' cannot be set"):
            Outbox("orders", headers={"reply_to": "x"})


@pytest.mark.parametrize("connection", [None, object(), "orders.db"])
def test_what_is_no_connection_is_refused(connection: Any) -> None:
    """By name, with what is wanted."""
    with pytest.raises(TypeError, match="is no connection that can be used: give one of sqlite3"):
        Outbox("orders").on(connection)


def test_a_subclass_of_a_drivers_connection_is_one_of_that_driver() -> None:
    """Programs make their own."""

    class Mine(sqlite3.Connection):
        pass

    with closing(sqlite3.connect(":memory:", factory=Mine)) as database:
        assert "sqlite" == Transaction(database).dialect


def test_an_asynchronous_connection_is_refused_and_not_forgotten(postgresql: Cluster) -> None:
    """A statement that nobody awaits would store nothing, silently."""

    async def store() -> None:
        async with await psycopg.AsyncConnection.connect(postgresql.url("postgres")) as connection:
            with pytest.raises(TypeError, match=r"is asynchronous, .*run_sync"):
                Outbox("orders").on(connection).billing.charge().cast()

    asyncio.run(store())


def test_the_values_of_a_statement_stand_where_the_driver_wants_them(place: str) -> None:
    """The same statement on each."""
    for connect in CONNECTIONS:
        with connect(place) as connection:
            found = Transaction(connection).execute("SELECT ?, ?, 'a'", (1, 2)).fetchall()
            assert [(1, 2, "a")] == [tuple(row) for row in found]


def test_psycopg_is_known_by_its_module() -> None:
    """Its name for a value is not SQLite's."""
    assert "pyformat" == psycopg.paramstyle
