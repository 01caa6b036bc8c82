# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Marks: that a message was handled, noted in the handler's own database transaction.

What the handler does in that transaction is done exactly once: both are committed, or neither.
"""

from __future__ import annotations

import time
from typing import Any

from tavrida.messages import IncomingMessage
from tavrida.plugins.middleware import keys
from tavrida.transactions import POSTGRESQL, SQLITE, Transaction

_BYTES = {SQLITE: "BLOB", POSTGRESQL: "BYTEA"}

_TABLE = """\
CREATE TABLE IF NOT EXISTS tavrida_handled (
    message_key {bytes} PRIMARY KEY,
    handled_at DOUBLE PRECISION NOT NULL
)"""

_MARK = "INSERT INTO tavrida_handled VALUES (?, ?) ON CONFLICT DO NOTHING"

_FORGET = "DELETE FROM tavrida_handled WHERE handled_at < ?"


def create_table(connection: Any) -> None:
    """Make the table of marks where it is missing; connections are those of an Outbox."""
    transaction = Transaction(connection)
    transaction.execute(_TABLE.format(bytes=_BYTES[transaction.dialect]))


def mark(connection: Any, message: IncomingMessage) -> bool:
    """Note in this transaction that its handler handles a message; False if that was done before.

    ``if mark(connection, request): ...`` and then commit. The key is that of ``known_by``, else
    the message id; a message without one is never known, and it is True. While another
    transaction has the same mark and is not committed, it is waited for.
    """
    key = keys.digest_of(message)
    if key is None:
        return True
    return bool(Transaction(connection).execute(_MARK, (key, time.time())).rowcount)


def forget(connection: Any, seconds: float) -> None:
    """Remove the marks that are older than so many seconds."""
    Transaction(connection).execute(_FORGET, (time.time() - seconds,))
