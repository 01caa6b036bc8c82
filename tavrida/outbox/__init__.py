# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Outbox: messages that are stored in the user's own database transaction, and sent after it.

``tavrida.outbox.relay`` publishes what was committed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any, NoReturn

from tavrida import context, envelope, exceptions, messages
from tavrida.entry_point import EntryPoint
from tavrida.messages import IncomingResponse, Notification, Request
from tavrida.outbox import table
from tavrida.proxies import Origin, RPCProxy
from tavrida.transactions import Transaction


class Outbox:
    """Stores casts and notifications beside the data that they tell of; connects to nothing.

    ``source`` says who sends, and is the topic of what ``publish`` sends. Without it that is, in
    a handler, the entry point which it handles, as with the handler's own proxy; elsewhere
    "client". Thread-safe.

    Raises:
        WrongEntryPoint: ``source`` is no name.
        MessageError: ``headers`` cannot be set.
    """

    def __init__(
        self, source: str | EntryPoint | None = None, *, headers: Mapping[str, Any] | None = None
    ) -> None:
        envelope.check_headers(headers or {})
        self._source = None if source is None else EntryPoint.parse_source(source)
        self._headers = dict(headers or {})

    def on(self, connection: Any, key: object = None) -> RPCProxy:
        """Return a proxy whose casts and publications are stored on this connection.

        ``outbox.on(connection, key=order_id).billing.charge(amount=3).cast()``. They are sent
        when the transaction was committed, and never when it is rolled back. What has one ``key``
        is sent in the order of storing; without a key a message waits for no other.

        In a handler, correlation id and context are those of the message that it handles.
        ``connection`` is a DB-API connection (sqlite3, psycopg, psycopg2, pg8000) or a Connection
        or Session of SQLAlchemy.

        Raises:
            TypeError: the connection cannot be used.
        """
        sender = _Storing(Transaction(connection), None if key is None else str(key))
        handled = context.handled.get()
        if handled is None:
            source = self._source or EntryPoint("client")
            return RPCProxy(Origin(sender, source, headers=dict(self._headers)))
        message = handled.message
        return RPCProxy(
            Origin(
                sender,
                self._source or _source_of(handled),
                message.correlation_id,
                {**message.context, **message.payload},
                dict(self._headers),
            )
        )


def create_tables(connection: Any) -> None:
    """Make the tables of the outbox where they are missing, in the transaction of the connection.

    ``tavrida outbox sql`` prints the same for a migration.
    """
    table.create(Transaction(connection))


def _source_of(handled: context.Handled) -> EntryPoint:
    """Return in whose name the proxy of a handler sends."""
    handler = handled.handler
    if handler is None:
        return EntryPoint("client")
    point = handler.mark.entry_point
    is_request = handler.mark.kind == messages.REQUEST
    return point if is_request else EntryPoint(handler.service, point.method)


class _Storing:
    """The Sender of a proxy whose messages are stored."""

    def __init__(self, transaction: Transaction, key: str | None) -> None:
        self._transaction = transaction
        self._key = key

    def send(self, message: Request | Notification) -> None:
        if message.reply_to:
            _refuse(message, "transfer")
        table.insert(self._transaction, message, self._key, time.time())

    def call(self, request: Request, timeout: float | None) -> IncomingResponse | None:
        _refuse(request, "call")

    def wait(self, request: Request, timeout: float | None) -> IncomingResponse:
        _refuse(request, "wait")

    def ask(self, request: Request, timeout: float | None) -> Future[IncomingResponse]:
        _refuse(request, "future")


def _refuse(request: Request | Notification, method: str) -> NoReturn:
    raise exceptions.CallError(
        f"{request.destination}: .{method}() cannot go through an outbox, which sends after the "
        "transaction, when nobody waits any more: use .cast(), or the proxy of the handler"
    )
