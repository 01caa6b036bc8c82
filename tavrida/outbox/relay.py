# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Relay: publishes what an outbox stored, in order per key, and forgets it when it is confirmed."""

from __future__ import annotations

import logging
import random
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Self

from tavrida import exceptions
from tavrida.client import RPCClient
from tavrida.loop import SLICE
from tavrida.outbox import table
from tavrida.outbox.table import Row
from tavrida.transactions import Transaction

LOG = logging.getLogger(__name__)

#: Seconds before the first new attempt, of a row or of a lost database or broker; it doubles.
FIRST_PAUSE = 0.5

#: Seconds of a pause at most, while the database or the broker is away.
LONGEST_WAIT = 5.0

#: What is no fault of a message: nothing can be published at the moment.
_BROKER_IS_AWAY = (exceptions.ConnectionFailed, exceptions.PublishTimeout)


class Relay:
    """Publishes the messages of an outbox until it is stopped.

    ``connect`` returns a new connection to the database, which the relay keeps for itself;
    ``client`` sends. At least once, with the ``message_id`` of the storing: what was published and
    not yet forgotten when the process dies is published again.

    Several relays of one database take turns: one works, and another takes over ``lease`` seconds
    after it was heard of last. Of each ``key`` one message is on its way at a time, of all keys
    together ``batch``. A message that cannot be published stays and is tried again, after pauses
    that grow to ``max_pause`` seconds; it holds back its key only. A database or broker that is
    away is waited for. New rows are looked for every ``poll`` seconds, and after ``wake()``.

    Use it in a ``with``, which runs it in a thread, or call ``run()``. Thread-safe.
    """

    def __init__(
        self,
        connect: Callable[[], Any],
        client: RPCClient,
        *,
        poll: float = 0.5,
        batch: int = 100,
        lease: float = 10.0,
        max_pause: float = 60.0,
    ) -> None:
        self._connect = connect
        self._client = client
        self._poll = poll
        self._batch = batch
        self._lease = lease
        self._max_pause = max_pause
        self._holder = secrets.token_hex(8)
        self._held_until = 0.0
        # Not an Event: a signal handler may run inside its methods, and would wait for itself.
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._is_stopping = False
        self._thread: threading.Thread | None = None
        #: How often in a row the database, and the broker, were away.
        self._database_failures = 0
        self._broker_failures = 0

    def run(self) -> None:
        """Work until ``stop()``, in this thread.

        Raises:
            ConfigError: the database has no tables of an outbox.
            TypeError: ``connect`` returns what is no connection.
        """
        while not self._is_stopping:
            connection = None
            try:
                connection = self._connect()
                self._work(connection, Transaction(connection))
            except (exceptions.ConfigError, TypeError):
                raise
            except Exception as error:  # whatever this driver raises
                self._lose_database(error)
            finally:
                if connection is not None:
                    with suppress(Exception):
                        connection.close()

    def wake(self) -> None:
        """Look for new rows now: for a program that has just committed some."""
        self._bell.put(None)

    def request_stop(self) -> None:
        """Make ``run`` return soon, when what is on its way is confirmed or failed.

        May be called from signal handlers.
        """
        self._is_stopping = True
        self.wake()

    def stop(self) -> None:
        """Stop, and wait for the thread of ``with`` to end. Idempotent."""
        self.request_stop()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()

    def __enter__(self) -> Self:
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="tavrida-relay", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            self.run()
        except Exception as error:
            LOG.critical("The relay of the outbox ended: %s", error)

    # -- the database

    def _work(self, connection: Any, database: Transaction) -> None:
        if not table.exists(database):
            raise exceptions.ConfigError(
                "the database has no tables of an outbox: make them with "
                "tavrida.outbox.create_tables(CONNECTION), or with what 'tavrida outbox sql' prints"
            )
        while not self._is_stopping:
            now = time.time()
            rows = table.due(database, now, self._batch) if self._is_mine(database, now) else []
            connection.commit()
            self._find_database()
            if not rows:
                self._rest(self._poll)
                continue
            published, failed, is_away = self._publish(rows)
            if published:
                table.delete(database, published)
            table.fail(database, self._judge(failed))
            connection.commit()
            if is_away is not None:
                self._lose_broker(is_away)
            elif published:
                self._find_broker()
        table.leave(database, self._holder)
        connection.commit()
        self._held_until = 0.0

    def _is_mine(self, database: Transaction, now: float) -> bool:
        """Tell whether this relay is the one that works."""
        # Each renewal is a write: at half of the lease is soon enough.
        if now > self._held_until - self._lease / 2:
            is_mine = table.take(database, self._holder, now, now + self._lease)
            self._held_until = now + self._lease if is_mine else 0.0
        return now < self._held_until

    def _judge(self, failed: Iterable[tuple[Row, Exception]]) -> list[tuple[int, float, str]]:
        """Say when to try failed rows again; log each of them once."""
        judged = []
        for row, error in failed:
            reason = f"{type(error).__name__}: {exceptions.text_of(error)}"[:1000]
            pause = _pause_after(row.attempts, self._max_pause)
            if row.reason != reason:
                LOG.error(
                    "Message %s of the outbox (row %d, %s, key %r) cannot be published: %s. It "
                    "stays, holds back its key, and is tried again with pauses of up to %g s.",
                    row.message_id,
                    row.id,
                    row.destination or row.source,
                    row.order_key,
                    reason,
                    self._max_pause,
                )
            judged.append((row.id, time.time() + pause, reason))
        return judged

    def _lose_database(self, error: Exception) -> None:
        if not self._database_failures:
            LOG.warning(
                "The database of the outbox cannot be used, waiting for it: %s: %s",
                type(error).__name__,
                " ".join(str(error).split()),
            )
        self._database_failures += 1
        self._rest(_pause_after(self._database_failures - 1, min(self._max_pause, LONGEST_WAIT)))

    def _find_database(self) -> None:
        if self._database_failures:
            self._database_failures = 0
            LOG.info("The database of the outbox is back.")

    # -- the broker

    def _publish(
        self, rows: list[Row]
    ) -> tuple[list[int], list[tuple[Row, Exception]], Exception | None]:
        """Publish rows, one of each key at a time.

        Return the ids of those that are confirmed, those that cannot be published with the
        reason, and why the broker is away, if it is.
        """
        lines: dict[str, deque[Row]] = {}
        for row in rows:
            # What has no key stands in a line of its own.
            key = f"id {row.id}" if row.order_key is None else f"key {row.order_key}"
            lines.setdefault(key, deque()).append(row)
        published: list[int] = []
        failed: list[tuple[Row, Exception]] = []
        while lines and not self._is_stopping:
            heads = {key: line.popleft() for key, line in lines.items()}
            errors = self._send(heads.values())
            for key, row in heads.items():
                error = errors.get(row.id)
                if error is None:
                    published.append(row.id)
                elif not isinstance(error, _BROKER_IS_AWAY):
                    failed.append((row, error))
                if error is not None or not lines[key]:
                    del lines[key]
            away = [error for error in errors.values() if isinstance(error, _BROKER_IS_AWAY)]
            if away:
                return published, failed, away[0]
        return published, failed, None

    def _send(self, rows: Iterable[Row]) -> dict[int, Exception]:
        """Send rows all at once and wait for their confirms; return what failed, by id."""
        errors: dict[int, Exception] = {}
        ids: dict[str, int] = {}
        away: Exception | None = None
        try:
            with self._client.pipeline():
                for row in rows:
                    ids[row.message_id] = row.id
                    if away is not None:
                        errors[row.id] = away
                        continue
                    try:
                        # The message is there already, with its identifiers: no proxy makes it.
                        self._client._sender.send(row.message())  # noqa: SLF001
                    except exceptions.TavridaError as error:
                        errors[row.id] = error
                        away = error if isinstance(error, _BROKER_IS_AWAY) else None
        except exceptions.PipelineFailed as failure:
            errors |= {ids[message.message_id]: error for message, error in failure.failures}
        return errors

    def _lose_broker(self, error: Exception) -> None:
        if not self._broker_failures:
            LOG.warning("The outbox cannot be published now, waiting for the broker: %s", error)
        self._broker_failures += 1
        self._rest(_pause_after(self._broker_failures - 1, min(self._max_pause, LONGEST_WAIT)))

    def _find_broker(self) -> None:
        if self._broker_failures:
            self._broker_failures = 0
            LOG.info("The outbox is published again.")

    # -- time

    def _rest(self, seconds: float) -> None:
        """Wait until somebody wakes or stops us, at most so long."""
        end = time.monotonic() + seconds
        while not self._is_stopping and (left := end - time.monotonic()) > 0:
            # In slices: a signal that comes just before the waiting begins does not end it.
            with suppress(Empty):
                self._bell.get(timeout=min(left, SLICE))
                break
        while not self._bell.empty():
            self._bell.get()


def _pause_after(failures: int, longest: float) -> float:
    """Return the seconds to wait after so many failures before; with jitter."""
    pause: float = min(longest, FIRST_PAUSE * 2.0 ** min(failures, 20))
    return pause * random.uniform(0.8, 1.0)  # noqa: S311 - keeps no secret
