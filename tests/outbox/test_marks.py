# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Marks: exactly once, in the handler's own transaction."""

from __future__ import annotations

import threading
from contextlib import closing
from queue import SimpleQueue
from typing import Any

from tavrida import dispatcher
from tavrida.messages import IncomingRequest
from tavrida.plugins.middleware import marks
from tavrida.plugins.middleware.keys import known_by
from tavrida.service import ServiceController
from tests.broker.conftest import Connect, Serve
from tests.outbox.conftest import open_database
from tests.waiting import DEADLINE


def test_a_mark_is_there_once_and_goes_with_its_transaction(place: str, database: Any) -> None:
    """A handler that is rolled back has handled nothing."""
    message = IncomingRequest(message_id="m1")
    marks.create_table(database)
    database.commit()
    assert marks.mark(database, message)
    assert not marks.mark(database, message)
    database.rollback()
    assert marks.mark(database, message)
    database.commit()
    assert not marks.mark(database, message)
    assert marks.mark(database, IncomingRequest(message_id="m2"))
    assert marks.mark(database, IncomingRequest())
    assert marks.mark(database, IncomingRequest())
    marks.forget(database, 100.0)
    assert not marks.mark(database, message)
    marks.forget(database, -1.0)
    assert marks.mark(database, message)


def test_handlers_that_run_side_by_side_do_their_work_once(
    serve: Serve, connect: Connect, place: str, database: Any
) -> None:
    """The second waits for the transaction of the first, and finds it done."""
    marks.create_table(database)
    database.commit()
    ended: SimpleQueue[bool] = SimpleQueue()
    together = threading.Barrier(4)

    @dispatcher.rpc_service("svc")
    class Service(ServiceController):
        @dispatcher.rpc_method(service="svc", method="charge")
        @known_by("payload.order")
        def charge(self, request: Any, proxy: Any, order: int) -> None:
            together.wait(DEADLINE)
            with closing(open_database(place)) as own:
                is_first = marks.mark(own, request)
                if is_first:
                    own.cursor().execute("INSERT INTO orders VALUES ('paid')")
                own.commit()
            ended.put(is_first)

    serve(Service, concurrency=4)
    client = connect("svc")
    for _ in range(4):
        client.svc.charge(order=7).cast()
    assert [False, False, False, True] == sorted(ended.get(timeout=DEADLINE) for _ in range(4))
    cursor = database.cursor()
    cursor.execute("SELECT count(*) FROM orders")
    assert 1 == cursor.fetchone()[0]
