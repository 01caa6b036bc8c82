# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The tables of an outbox, and everything that is done to them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from tavrida import envelope, exceptions, messages
from tavrida.entry_point import EntryPoint
from tavrida.messages import Notification, Request
from tavrida.transactions import POSTGRESQL, SQLITE, Transaction, places

_COLUMNS = (
    "order_key",
    "kind",
    "destination",
    "source",
    "message_id",
    "request_id",
    "correlation_id",
    "body",
    "stored_at",
)

# An id is never given twice: a relay that was held up deletes what it published by its id.
_IDS = {
    SQLITE: "INTEGER PRIMARY KEY AUTOINCREMENT",
    POSTGRESQL: "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
}
_BYTES = {SQLITE: "BLOB", POSTGRESQL: "BYTEA"}

_TABLE = """\
CREATE TABLE IF NOT EXISTS tavrida_outbox (
    id {ids},
    order_key TEXT,
    kind TEXT NOT NULL,
    destination TEXT NOT NULL,
    source TEXT NOT NULL,
    message_id TEXT NOT NULL,
    request_id TEXT NOT NULL,
    correlation_id TEXT NOT NULL,
    body {bytes} NOT NULL,
    stored_at DOUBLE PRECISION NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    not_before DOUBLE PRECISION NOT NULL DEFAULT 0,
    reason TEXT
)"""

_INDEX = """\
CREATE INDEX IF NOT EXISTS tavrida_outbox_failed
    ON tavrida_outbox (not_before, order_key) WHERE not_before > 0"""

_RELAY_TABLE = """\
CREATE TABLE IF NOT EXISTS tavrida_outbox_relay (
    id INTEGER PRIMARY KEY,
    holder TEXT NOT NULL,
    until DOUBLE PRECISION NOT NULL
)"""

_RELAY_ROW = """\
INSERT INTO tavrida_outbox_relay (id, holder, until) VALUES (1, '', 0) ON CONFLICT DO NOTHING"""

_EXISTS = {
    SQLITE: "SELECT name FROM sqlite_master WHERE name = 'tavrida_outbox_relay'",
    POSTGRESQL: "SELECT to_regclass('tavrida_outbox_relay')",
}

_INSERT = f"INSERT INTO tavrida_outbox ({', '.join(_COLUMNS)}) VALUES ({places(len(_COLUMNS))})"  # noqa: S608

# What failed and is not due yet holds back the rest of its key.
_DUE = f"""\
SELECT id, attempts, reason, {", ".join(_COLUMNS)} FROM tavrida_outbox
WHERE not_before <= ? AND (order_key IS NULL OR order_key NOT IN (
    SELECT order_key FROM tavrida_outbox
    WHERE not_before > 0 AND not_before > ? AND order_key IS NOT NULL))
ORDER BY id LIMIT ?"""  # noqa: S608

_FAIL = """\
UPDATE tavrida_outbox SET attempts = attempts + 1, not_before = ?, reason = ? WHERE id = ?"""

_TAKE = "UPDATE tavrida_outbox_relay SET holder = ?, until = ? WHERE holder = ? OR until < ?"

_LEAVE = "UPDATE tavrida_outbox_relay SET holder = '', until = 0 WHERE holder = ?"


@dataclass(frozen=True, slots=True)
class Row:
    """A stored message that waits to be published."""

    id: int
    #: How often it failed, and the reason of the last time.
    attempts: int
    reason: str | None
    order_key: str | None
    kind: str
    destination: str
    source: str
    message_id: str
    request_id: str
    correlation_id: str
    body: bytes | memoryview
    #: Seconds since the epoch.
    stored_at: float

    def message(self) -> Request | Notification:
        """Return the message, with the identifiers that it got when it was stored.

        Raises:
            MalformedMessage: somebody changed the row to what is no message.
        """
        try:
            body = msgspec.msgpack.decode(self.body, type=dict[str, dict[str, Any]])
            return _KINDS[self.kind](
                body["payload"],
                body["context"],
                body["headers"],
                self.correlation_id,
                self.request_id,
                self.message_id,
                EntryPoint.parse_source(self.source),
                EntryPoint.parse(self.destination) if self.destination else None,
            )
        except (TypeError, msgspec.MsgspecError, KeyError, exceptions.WrongEntryPoint) as error:
            raise exceptions.MalformedMessage(f"the row holds no message: {error!r}") from None


_KINDS: dict[str, type[Request | Notification]] = {
    messages.REQUEST: Request,
    messages.NOTIFICATION: Notification,
}


def statements(dialect: str) -> list[str]:
    """Return the SQL that makes the tables where they are missing; ``dialect`` is of DIALECTS."""
    table = _TABLE.format(ids=_IDS[dialect], bytes=_BYTES[dialect])
    return [table, _INDEX, _RELAY_TABLE, _RELAY_ROW]


def create(transaction: Transaction) -> None:
    """Make the tables where they are missing."""
    for statement in statements(transaction.dialect):
        transaction.execute(statement)


def exists(transaction: Transaction) -> bool:
    """Tell whether the tables are there."""
    found = transaction.execute(_EXISTS[transaction.dialect]).fetchall()
    return bool(found and found[0][0])


def insert(
    transaction: Transaction, message: Request | Notification, order_key: str | None, now: float
) -> None:
    """Store a message.

    Raises:
        MessageError: something in it cannot be written; nothing was stored.
    """
    envelope.check_headers(message.extra_headers)
    try:
        body = msgspec.msgpack.encode(
            {
                "payload": message.payload,
                "context": message.context,
                "headers": message.extra_headers,
            }
        )
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise exceptions.MessageError(
            f"the {message.message_type} of {message.destination or message.source} cannot be "
            f"stored: {error}"
        ) from None
    transaction.execute(
        _INSERT,
        (
            order_key,
            message.message_type,
            str(message.destination or ""),
            str(message.source or ""),
            message.message_id,
            message.request_id,
            message.correlation_id,
            body,
            now,
        ),
    )


def due(transaction: Transaction, now: float, limit: int) -> list[Row]:
    """Return what is to be published now, in order; not what waits behind a failed one."""
    found = transaction.execute(_DUE, (now, now, limit)).fetchall()
    return [Row(*values) for values in found]


def delete(transaction: Transaction, ids: Sequence[int]) -> None:
    """Forget rows that were published."""
    transaction.execute(f"DELETE FROM tavrida_outbox WHERE id IN ({places(len(ids))})", ids)  # noqa: S608


def fail(transaction: Transaction, failures: Iterable[tuple[int, float, str]]) -> None:
    """Note of rows that they failed: id, when to try again, and why."""
    for row, not_before, reason in failures:
        transaction.execute(_FAIL, (not_before, reason, row))


def take(transaction: Transaction, holder: str, now: float, until: float) -> bool:
    """Become or stay the one relay that works, until then; False where another one is."""
    return bool(transaction.execute(_TAKE, (holder, until, holder, now)).rowcount)


def leave(transaction: Transaction, holder: str) -> None:
    """Let another relay work."""
    transaction.execute(_LEAVE, (holder,))
