# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The rules of the bus, as operations on its tables: route, keep, hand over, settle, expire.

Everything here runs inside of one transaction, which the store begins and commits; so each
operation sees all others, of all processes, either whole or not at all.

An *entry* is the place of a message in a queue; its *content* has the same id. They are apart so
that handing over a message rewrites a few bytes and not its body.
"""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from tavrida import exceptions
from tavrida.entry_point import MAX_LENGTH
from tavrida.envelope import Properties
from tavrida.plugins.transports import (
    ConnectionState,
    Differences,
    QueueState,
    conflict,
    in_use,
)
from tavrida.plugins.transports.sqlite import tables
from tavrida.plugins.transports.sqlite.topics import matches
from tavrida.topology import Binding, Exchange, Queue, Topology

#: "tvrd": what SQLite's application_id says of a file that is such a bus.
APPLICATION = 0x74767264

#: Counted up with every change of the tables.
SCHEMA = 1

TABLES = """
CREATE TABLE counters (next_id INTEGER NOT NULL, topology INTEGER NOT NULL);
INSERT INTO counters VALUES (1, 1);
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY AUTOINCREMENT, bell TEXT NOT NULL, name TEXT NOT NULL,
    started_at INTEGER NOT NULL
);
CREATE TABLE exchanges (name TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE queues (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, type TEXT NOT NULL,
    dead_letter_to TEXT NOT NULL, delivery_limit INTEGER, message_ttl INTEGER,
    owner INTEGER -- the session of an exclusive queue
);
CREATE TABLE bindings (
    exchange TEXT NOT NULL, pattern TEXT NOT NULL, queue INTEGER NOT NULL,
    PRIMARY KEY (exchange, pattern, queue)
) WITHOUT ROWID;
CREATE TABLE consumers (
    session INTEGER NOT NULL, queue INTEGER NOT NULL,
    is_waiting INTEGER NOT NULL, -- it found its queue empty and has room for more
    PRIMARY KEY (queue, session)
) WITHOUT ROWID;
CREATE TABLE entries (
    id INTEGER PRIMARY KEY, queue INTEGER NOT NULL, holder INTEGER,
    deliveries INTEGER NOT NULL, expires_at INTEGER,
    position INTEGER NOT NULL -- among the others of its queue: the id, unless it was given back
);
CREATE INDEX entries_ready ON entries (queue, position) WHERE holder IS NULL;
CREATE INDEX entries_held ON entries (holder) WHERE holder IS NOT NULL;
CREATE TABLE contents (
    id INTEGER PRIMARY KEY, exchange TEXT NOT NULL, routing_key TEXT NOT NULL,
    properties BLOB NOT NULL, body BLOB NOT NULL
);
CREATE TRIGGER entries_deleted AFTER DELETE ON entries
    BEGIN DELETE FROM contents WHERE id = old.id; END;
"""

#: Messages that one transaction expires at most, there and in taking; the next one goes on.
BATCH = 1000

#: More than there will ever be messages: what is that much less stands before all of them.
_FIRST = 2**62

_MAX_ROUTES = 10_000


class StoredProperties(msgspec.Struct, array_like=True):
    """The properties of a message as they are kept, and as a delivery has them."""

    content_type: str | None
    headers: Mapping[str, Any] | None
    correlation_id: str | None
    reply_to: str | None
    expiration: str | None
    message_id: str | None
    timestamp: int | None
    type: str | None
    app_id: str | None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(StoredProperties, ext_hook=tables.read_extension)


def encode(properties: Properties) -> bytes:
    """Return the properties as they are kept.

    Raises:
        ValueError, OverflowError, msgspec.MsgspecError: they cannot be.
    """
    encoded = _encoder.encode(
        StoredProperties(
            properties.content_type or None,
            tables.writable(properties.headers),
            properties.correlation_id or None,
            properties.reply_to or None,
            None if properties.expiration is None else str(properties.expiration),
            properties.message_id,
            properties.timestamp or None,
            properties.type or None,
            properties.app_id or None,
        )
    )
    _decoder.decode(encoded)  # who takes it later has to be able to read it
    return encoded


def now() -> int:
    """Return the time in milliseconds, by the clock that all processes share."""
    return int(time.time() * 1000)


@dataclass(frozen=True, slots=True)
class QueueRow:
    """A queue as it is in the table, with the bell of the one whose it is, if exclusive."""

    id: int
    declared: Queue
    owner: int | None
    bell: str | None


@dataclass(slots=True)
class Taken:
    """A message that was handed to a consumer."""

    id: int
    exchange: str
    routing_key: str
    properties: StoredProperties
    body: bytes
    redelivered: bool


class Bus:
    """The tables of one bus. ``begin`` comes first in every transaction.

    ``touched`` has how many messages became ready in which queue since then: their consumers
    have to hear of it when the transaction is committed.
    """

    def __init__(self) -> None:
        self._db: sqlite3.Connection
        self.touched: Counter[int] = Counter()
        #: Queues that may have more for who took from them, though that was less than he wanted.
        self.unfinished: set[int] = set()
        #: When the first message will expire, as far as this process knows.
        self.next_expiry: int | None = None
        self._topology = 0
        self._next_id = self._first_id = 0
        self._exchanges: set[str] = set()
        self._queues: dict[str, QueueRow] = {}
        self._by_id: dict[int, QueueRow] = {}
        self._bindings: dict[str, list[tuple[str, int]]] = {}
        self._routes: dict[tuple[str, str], Sequence[QueueRow]] = {}
        self._new_entries: list[tuple[Any, ...]] = []
        self._new_contents: list[tuple[Any, ...]] = []

    def begin(self, connection: sqlite3.Connection) -> None:
        """Take up what other processes changed since the last transaction."""
        self.look(connection)
        self.touched = Counter()
        self.unfinished = set()
        self._new_entries.clear()
        self._new_contents.clear()
        topology, self._next_id = self._db.execute(
            "SELECT topology, next_id FROM counters"
        ).fetchone()
        self._first_id = self._next_id
        if topology != self._topology:
            self._read_topology(topology)

    def look(self, connection: sqlite3.Connection) -> None:
        """Have the operations that only read use a connection, without a transaction."""
        self._db = connection

    def finish(self) -> None:
        """Write what is still to be written, just before the commit."""
        self._flush()
        if self._next_id != self._first_id:
            self._db.execute("UPDATE counters SET next_id = ?", (self._next_id,))

    def forget(self) -> None:
        """Forget what a transaction that was rolled back has left here."""
        self._topology = 0

    def _read_topology(self, version: int) -> None:
        self._topology = version
        self._routes.clear()
        self._exchanges = {name for (name,) in self._db.execute("SELECT name FROM exchanges")}
        rows = self._db.execute(
            "SELECT q.id, q.name, q.type, q.dead_letter_to, q.delivery_limit, q.message_ttl,"
            " q.owner, s.bell FROM queues q LEFT JOIN sessions s ON s.id = q.owner"
        )
        self._by_id = {row[0]: QueueRow(row[0], Queue(*row[1:6]), *row[6:]) for row in rows}
        self._queues = {row.declared.name: row for row in self._by_id.values()}
        self._bindings = {}
        for exchange, pattern, queue in self._db.execute(
            "SELECT exchange, pattern, queue FROM bindings"
        ):
            self._bindings.setdefault(exchange, []).append((pattern, queue))

    def _topology_changed(self) -> None:
        self._db.execute("UPDATE counters SET topology = topology + 1")
        self._read_topology(self._topology + 1)

    def _flush(self) -> None:
        if self._new_entries:
            self._db.executemany(
                "INSERT INTO entries VALUES (?, ?, NULL, 0, ?, ?)", self._new_entries
            )
            self._db.executemany("INSERT INTO contents VALUES (?, ?, ?, ?, ?)", self._new_contents)
            self._new_entries.clear()
            self._new_contents.clear()

    # -- sessions

    def open_session(self, bell: str, name: str) -> int:
        """Return the id of a new session, which lives as long as its bell."""
        cursor = self._db.execute(
            "INSERT INTO sessions (bell, name, started_at) VALUES (?, ?, ?)", (bell, name, now())
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def sessions_of(self, bell: str) -> set[int]:
        """Return the ids of the sessions that live by a bell."""
        return {
            id_ for (id_,) in self._db.execute("SELECT id FROM sessions WHERE bell = ?", (bell,))
        }

    def bells(self) -> set[str]:
        """Return the bells of all sessions."""
        return {bell for (bell,) in self._db.execute("SELECT DISTINCT bell FROM sessions")}

    def end_session(self, session: int) -> None:
        """Give back what a session holds, and delete its consumers and exclusive queues."""
        self._flush()
        held = self._db.execute(
            "SELECT id FROM entries WHERE holder = ? ORDER BY position", (session,)
        ).fetchall()
        for (entry,) in held:
            self._release(entry, session, is_given_back=False)
        served = self._db.execute(
            "SELECT queue FROM consumers WHERE session = ?", (session,)
        ).fetchall()
        for (queue,) in served:
            self.stop_consuming(session, queue)
        owned = [row for row in self._by_id.values() if row.owner == session]
        for row in owned:
            self._delete_queue(row)
        self._db.execute("DELETE FROM sessions WHERE id = ?", (session,))
        if owned:
            self._topology_changed()

    def bury(self, bell: str) -> None:
        """End the sessions of a process that died."""
        for session in self.sessions_of(bell):
            self.end_session(session)

    # -- topology

    def declare(self, topology: Topology) -> None:
        """Make what does not exist yet.

        Raises:
            TopologyConflict: something exists with other properties; nothing was changed.
        """
        for queue in topology.queues:
            row = self._queues.get(queue.name)
            if row is not None and (found := _differences(row, queue)):
                raise conflict("queue", queue.name, found)
        _check_names(topology)
        self._check_bindings(topology.exchanges, topology.queues, topology.bindings)
        before = self._db.total_changes
        self._db.executemany(
            "INSERT OR IGNORE INTO exchanges VALUES (?)", [(e.name,) for e in topology.exchanges]
        )
        self._db.executemany(
            "INSERT OR IGNORE INTO queues"
            " (name, type, dead_letter_to, delivery_limit, message_ttl) VALUES (?, ?, ?, ?, ?)",
            [
                (q.name, q.type, q.dead_letter_to, q.delivery_limit, q.message_ttl)
                for q in topology.queues
                if q.name not in self._queues
            ],
        )
        self._bind(topology.bindings)
        if self._db.total_changes != before:
            self._topology_changed()

    def _bind(self, bindings: Iterable[Binding]) -> None:
        self._db.executemany(
            "INSERT OR IGNORE INTO bindings SELECT ?, ?, id FROM queues WHERE name = ?",
            [(b.exchange, b.routing_key, b.queue) for b in bindings],
        )

    def _check_bindings(
        self,
        new_exchanges: Iterable[Exchange],
        new_queues: Iterable[Queue],
        bindings: Iterable[Binding],
    ) -> None:
        exchanges = self._exchanges.union(each.name for each in new_exchanges)
        queues = self._queues.keys() | {each.name for each in new_queues}
        for binding in bindings:
            if binding.exchange not in exchanges:
                raise exceptions.TransportError(f"there is no exchange {binding.exchange!r}")
            if binding.queue not in queues:
                raise exceptions.TransportError(f"there is no queue {binding.queue!r}")

    def compare(self, thing: Queue | Exchange) -> Differences | None:
        """Return how a queue or exchange differs; None where there is none."""
        if isinstance(thing, Exchange):
            return {} if thing.name in self._exchanges else None
        row = self._queues.get(thing.name)
        return None if row is None else _differences(row, thing)

    def rebind(self, old: Collection[Binding], new: Collection[Binding]) -> None:
        """Make bindings and remove others, both at once; raises as Transport.rebind."""
        self._check_bindings((), (), [*old, *new])
        self._bind(new)
        self._db.executemany(
            "DELETE FROM bindings WHERE exchange = ? AND pattern = ?"
            " AND queue = (SELECT id FROM queues WHERE name = ?)",
            [(b.exchange, b.routing_key, b.queue) for b in old],
        )
        self._topology_changed()

    def delete(self, name: str) -> None:
        """Delete a queue that is empty and unused; raises as Transport.delete."""
        row = self._queues.get(name)
        if row is None:
            return
        self._flush()
        (messages,) = self._db.execute(
            "SELECT count(*) FROM entries WHERE queue = ?", (row.id,)
        ).fetchone()
        (consumers,) = self._db.execute(
            "SELECT count(*) FROM consumers WHERE queue = ?", (row.id,)
        ).fetchone()
        if messages or consumers:
            raise in_use(name, QueueState(messages, consumers))
        self._delete_queue(row)
        self._topology_changed()

    def make_exclusive_queue(self, session: int, name: str) -> int:
        """Return the id of a new queue that goes with its session."""
        cursor = self._db.execute(
            "INSERT INTO queues (name, type, dead_letter_to, owner) VALUES (?, 'exclusive', '', ?)",
            (name, session),
        )
        assert cursor.lastrowid is not None
        self._topology_changed()
        return cursor.lastrowid

    def _delete_queue(self, row: QueueRow) -> None:
        self._db.execute("DELETE FROM entries WHERE queue = ?", (row.id,))
        self._db.execute("DELETE FROM bindings WHERE queue = ?", (row.id,))
        self._db.execute("DELETE FROM queues WHERE id = ?", (row.id,))

    def queue_named(self, name: str, session: int) -> int:
        """Return the id of a queue that the session may consume.

        Raises:
            TransportError: there is none, or it belongs to another session.
        """
        row = self._queues.get(name)
        if row is None:
            raise exceptions.TransportError(f"there is no queue {name!r}")
        if row.owner not in (None, session):
            raise exceptions.TransportError(f"queue {name!r} belongs to another connection")
        return row.id

    # -- publishing

    def has_exchange(self, name: str) -> bool:
        """Tell whether there is such an exchange; the default one, "", always is."""
        return not name or name in self._exchanges

    def route(self, exchange: str, routing_key: str) -> Sequence[QueueRow]:
        """Return the queues that take a message, each once."""
        if not exchange:
            row = self._queues.get(routing_key)
            return (row,) if row else ()
        key = (exchange, routing_key)
        found = self._routes.get(key)
        if found is None:
            ids = {
                queue
                for pattern, queue in self._bindings.get(exchange, ())
                if matches(pattern, routing_key)
            }
            found = tuple(self._by_id[id_] for id_ in sorted(ids))
            if len(self._routes) >= _MAX_ROUTES:
                self._routes.clear()
            self._routes[key] = found
        return found

    def put(
        self,
        queue: QueueRow,
        exchange: str,
        routing_key: str,
        properties: bytes,
        body: bytes,
        expiration: int | None,
    ) -> None:
        """Append a message to a queue; ``expiration`` is in milliseconds from now."""
        ttl = queue.declared.message_ttl
        if ttl is not None:
            expiration = ttl if expiration is None else min(ttl, expiration)
        expires_at = None
        if expiration is not None:
            # now() may be almost a millisecond ago: it shall not be less than was asked for.
            expires_at = now() + (expiration + 1 if expiration else 0)
            self._expect(expires_at)
        entry = self._new_id()
        self._new_entries.append((entry, queue.id, expires_at, entry))
        self._new_contents.append((entry, exchange, routing_key, properties, body))
        self.touched[queue.id] += 1

    def _new_id(self) -> int:
        self._next_id += 1
        return self._next_id - 1

    # -- consuming

    def start_consuming(self, session: int, queue: int) -> None:
        """Register a consumer, so that others know whom to wake."""
        self._db.execute("INSERT OR REPLACE INTO consumers VALUES (?, ?, 0)", (session, queue))

    def stop_consuming(self, session: int, queue: int) -> None:
        """Take a consumer out; it may have been woken for messages that others shall have now."""
        self._db.execute("DELETE FROM consumers WHERE session = ? AND queue = ?", (session, queue))
        if self.has_ready(queue):
            self.touched[queue] += 1

    def inspect(self, name: str, session: int) -> QueueState | None:
        """Return the state of a queue; None where there is none, else raises as queue_named."""
        if name not in self._queues:
            return None
        queue = self.queue_named(name, session)
        self._flush()
        (messages,) = self._db.execute(
            "SELECT count(*) FROM entries WHERE queue = ? AND holder IS NULL"
            " AND (expires_at IS NULL OR expires_at > ?)",
            (queue, now()),
        ).fetchone()
        (consumers,) = self._db.execute(
            "SELECT count(*) FROM consumers WHERE queue = ?", (queue,)
        ).fetchone()
        (held,) = self._db.execute(
            "SELECT count(*) FROM entries WHERE holder IS NOT NULL AND queue = ?", (queue,)
        ).fetchone()
        return QueueState(messages, consumers, held)

    def connections(self) -> list[ConnectionState]:
        """Return the sessions of all processes."""
        read: dict[int, list[str]] = {}
        for session, queue in self._db.execute(
            "SELECT c.session, q.name FROM consumers c JOIN queues q ON q.id = c.queue"
            " ORDER BY q.name"
        ):
            read.setdefault(session, []).append(queue)
        rows = self._db.execute(
            "SELECT id, name, started_at,"
            " (SELECT count(*) FROM entries WHERE holder = sessions.id) FROM sessions"
        )
        return [
            ConnectionState(
                name, "", "", _moment(started), "running", tuple(read.get(id_, ())), held
            )
            for id_, name, started, held in rows
        ]

    def has_ready(self, queue: int) -> bool:
        """Tell whether a message waits in the queue."""
        return (
            self._db.execute(
                "SELECT 1 FROM entries WHERE queue = ? AND holder IS NULL LIMIT 1", (queue,)
            ).fetchone()
            is not None
        )

    def take(self, session: int, queue: int, limit: int) -> list[Taken]:
        """Hand the next messages of a queue to a session."""
        self._flush()
        taken: list[Taken] = []
        rows = self._next(queue, limit)
        left = BATCH
        while rows:
            time_now = now()
            expired = [row for row in rows if row[2] is not None and row[2] <= time_now]
            for row in expired:
                self._dead_letter(row[0], "expired")
            is_quorum = self._by_id[queue].declared.type == "quorum"
            fresh = [row for row in rows if row not in expired] if expired else rows
            self._hold(session, [row[0] for row in fresh], in_order=is_quorum)
            taken += [_taken(row, is_quorum) for row in fresh]
            left -= len(expired)
            if expired and left <= 0:
                self.unfinished.add(queue)
                break
            rows = self._next(queue, limit - len(taken)) if expired else []
        return taken

    def _hold(self, session: int, entries: Sequence[int], *, in_order: bool) -> None:
        if in_order:  # what comes back to a quorum queue does so in the order of delivery
            self._db.executemany(
                "UPDATE entries SET holder = ?, deliveries = deliveries + 1, position = ?"
                " WHERE id = ?",
                [(session, self._new_id(), entry) for entry in entries],
            )
        else:
            self._db.executemany(
                "UPDATE entries SET holder = ?, deliveries = deliveries + 1 WHERE id = ?",
                [(session, entry) for entry in entries],
            )

    def take_for_good(self, queue: int, limit: int) -> list[Taken]:
        """Hand over the next messages of a queue whose consumer need not acknowledge."""
        self._flush()
        rows = self._next(queue, limit)
        if len(rows) == limit:
            self.unfinished.add(queue)
        self._db.executemany("DELETE FROM entries WHERE id = ?", [(row[0],) for row in rows])
        time_now = now()
        return [_taken(row, False) for row in rows if row[2] is None or row[2] > time_now]

    def _next(self, queue: int, limit: int) -> list[tuple[Any, ...]]:
        return self._db.execute(
            "SELECT e.id, e.deliveries, e.expires_at, c.exchange, c.routing_key, c.properties,"
            " c.body FROM entries e JOIN contents c ON c.id = e.id"
            " WHERE e.queue = ? AND e.holder IS NULL ORDER BY e.position LIMIT ?",
            (queue, limit),
        ).fetchall()

    def set_waiting(self, session: int, queue: int, is_waiting: bool) -> None:
        """Note whether a consumer wants to be woken for the next message."""
        self._db.execute(
            "UPDATE consumers SET is_waiting = ?1 WHERE queue = ?2 AND session = ?3"
            " AND is_waiting <> ?1",
            (is_waiting, queue, session),
        )

    def to_wake(self, own_bell: str) -> set[str]:
        """Return the bells to ring: of one waiting consumer for every message that became ready."""
        bells = set()
        for queue, count in self.touched.items():
            waiting = self._db.execute(
                "SELECT c.session, s.bell FROM consumers c JOIN sessions s ON s.id = c.session"
                " WHERE c.queue = ? AND c.is_waiting AND s.bell <> ? ORDER BY random() LIMIT ?",
                (queue, own_bell, count),
            ).fetchall()
            for session, bell in waiting:
                self.set_waiting(session, queue, False)
                bells.add(bell)
        return bells

    # -- settling

    def acknowledge(self, session: int, entries: Iterable[int]) -> None:
        """Forget messages that a session holds."""
        self._db.executemany(
            "DELETE FROM entries WHERE id = ? AND holder = ?",
            [(entry, session) for entry in entries],
        )

    def give_back(self, entry: int, session: int) -> None:
        """Put a message that a session holds back; too often, and it is dead.

        A classic queue has it in its old place. A quorum queue with a delivery limit has it first
        in line, after those that came back before; without a limit it has it last.
        """
        self._release(entry, session, is_given_back=True)

    def _release(self, entry: int, session: int, *, is_given_back: bool) -> None:
        row = self._db.execute(
            "SELECT queue, deliveries, expires_at, position FROM entries"
            " WHERE id = ? AND holder = ?",
            (entry, session),
        ).fetchone()
        if row is None:
            return
        queue, deliveries, expires_at, position = row
        declared = self._by_id[queue].declared
        limit = declared.delivery_limit
        if limit is not None and deliveries > limit:
            self._dead_letter(entry, "delivery_limit")
            return
        if declared.type == "quorum":
            is_last = is_given_back and limit is None
            position = self._new_id() - (0 if is_last else _FIRST)
        self._db.execute(
            "UPDATE entries SET holder = NULL, position = ? WHERE id = ?", (position, entry)
        )
        self.touched[queue] += 1
        self._expect(expires_at)

    def _expect(self, expires_at: int | None) -> None:
        if expires_at is not None and (self.next_expiry is None or expires_at < self.next_expiry):
            self.next_expiry = expires_at

    def reject(self, entry: int, session: int) -> None:
        """Move a message that a session holds to where its queue's dead letters go."""
        if self._db.execute(
            "SELECT 1 FROM entries WHERE id = ? AND holder = ?", (entry, session)
        ).fetchone():
            self._dead_letter(entry, "rejected")

    def expire(self) -> None:
        """Move what is first in line and has expired, and find out when the next one will."""
        self._flush()
        left = BATCH
        while left > 0:
            time_now = now()
            heads = [entry for entry, expires_at in self._heads() if expires_at <= time_now]
            for entry in heads[:left]:
                self._dead_letter(entry, "expired")
            self._flush()
            if not heads:
                break
            left -= len(heads)
        self.next_expiry = self.first_expiry()

    def first_expiry(self) -> int | None:
        """Return when the next message expires that is first in line."""
        return min((expires_at for _, expires_at in self._heads()), default=None)

    def _heads(self) -> list[tuple[int, int]]:
        """Return those messages that can expire, of the first ones of all queues."""
        return self._db.execute(
            "SELECT id, expires_at FROM entries WHERE expires_at IS NOT NULL AND id IN ("
            " SELECT (SELECT id FROM entries WHERE queue = q.id AND holder IS NULL"
            "  ORDER BY position LIMIT 1) FROM queues q)"
        ).fetchall()

    def _dead_letter(self, entry: int, reason: str) -> None:
        queue, exchange, routing_key, properties, body = self._db.execute(
            "SELECT e.queue, c.exchange, c.routing_key, c.properties, c.body"
            " FROM entries e JOIN contents c ON c.id = e.id WHERE e.id = ?",
            (entry,),
        ).fetchone()
        self._db.execute("DELETE FROM entries WHERE id = ?", (entry,))
        origin = self._by_id[queue].declared
        target = self._queues.get(origin.dead_letter_to)
        if target is None:
            return
        stored = _decoder.decode(properties)
        _note_death(stored, origin.name, reason, exchange, routing_key)
        if reason != "rejected" and _is_cycle(stored, target.declared.name):
            return
        self.put(target, "", target.declared.name, _encoder.encode(stored), body, None)


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def _check_names(topology: Topology) -> None:
    names = [each.name for each in topology.exchanges]
    names += [each.name for each in topology.queues]
    names += [each.routing_key for each in topology.bindings]
    for name in names:
        try:
            length = len(name.encode())
        except UnicodeEncodeError as error:
            raise exceptions.TransportError(f"{name[:40]!r} is no name: {error}") from None
        if length > MAX_LENGTH:
            raise exceptions.TransportError(
                f"{name[:40]!r}... is longer than the {MAX_LENGTH} bytes of a name"
            )


#: By their names in AMQP, the settings of a queue that must not change.
_SETTINGS = {
    "x-queue-type": "type",
    "x-dead-letter-routing-key": "dead_letter_to",
    "x-delivery-limit": "delivery_limit",
    "x-message-ttl": "message_ttl",
}


def _differences(row: QueueRow, wanted: Queue) -> Differences:
    if row.owner is not None:
        raise exceptions.TransportError(f"queue {wanted.name!r} belongs to another connection")
    found = {
        name: tuple(getattr(queue, field) for queue in (row.declared, wanted))
        for name, field in _SETTINGS.items()
    }
    return {
        name: (None if old == "" else old, None if new == "" else new)
        for name, (old, new) in found.items()
        if old != new
    }


def _taken(row: tuple[Any, ...], is_quorum: bool) -> Taken:
    entry, deliveries, _, exchange, routing_key, properties, body = row
    stored = _decoder.decode(properties)
    if is_quorum and deliveries:
        stored.headers = {**(stored.headers or {}), "x-delivery-count": deliveries}
    return Taken(entry, exchange, routing_key, stored, body, deliveries > 0)


def _note_death(
    properties: StoredProperties, queue: str, reason: str, exchange: str, routing_key: str
) -> None:
    """Write into the headers why and where a message died, as RabbitMQ does (x-death)."""
    headers = dict(properties.headers or {})
    deaths = _deaths(headers.get("x-death"))
    death: dict[str, Any] = {
        "count": 1,
        "reason": reason,
        "queue": queue,
        "time": datetime.now(UTC).replace(microsecond=0),
        "exchange": exchange,
        "routing-keys": [routing_key],
    }
    if properties.expiration is not None:
        death["original-expiration"] = properties.expiration
        properties.expiration = None
    for number, earlier in enumerate(deaths):
        if (earlier["queue"], earlier["reason"]) == (queue, reason):
            death = {**earlier, "count": earlier["count"] + 1}
            del deaths[number]
            break
    headers["x-death"] = [death, *deaths]
    headers.setdefault("x-first-death-exchange", exchange)
    headers.setdefault("x-first-death-queue", queue)
    headers.setdefault("x-first-death-reason", reason)
    headers.pop("x-delivery-count", None)
    properties.headers = headers


def _deaths(told: Any) -> list[dict[str, Any]]:
    """Return the deaths that a header tells of; a publisher may have written anything there."""
    types = {"queue": str, "reason": str, "count": int}
    if isinstance(told, list) and all(
        isinstance(death, dict)
        and all(isinstance(death.get(name), kind) for name, kind in types.items())
        for death in told
    ):
        return list(told)
    return []


def _is_cycle(properties: StoredProperties, queue: str) -> bool:
    """Tell whether a message was in the queue before, and nobody rejected it since.

    RabbitMQ drops such a message: it would go round for ever.
    """
    assert properties.headers is not None
    for death in properties.headers["x-death"]:
        if death["reason"] == "rejected":
            return False
        if death["queue"] == queue:
            return True
    return False
