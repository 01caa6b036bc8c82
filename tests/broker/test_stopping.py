# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Servers that are stopped under load, one after the other, as in a rolling restart."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tavrida import dispatcher, service
from tavrida.config import ConnectionConfig
from tavrida.server import Server
from tests.broker.conftest import Connect
from tests.processes import Program
from tests.waiting import DEADLINE, eventually

BUSY = Path(__file__).with_name("busy.py")

#: How often a server is stopped.
STOPS = 5


@pytest.mark.slow
@pytest.mark.timeout(120)  # six processes that are busy, on a machine that may be too
def test_sigterm_under_load_lets_nothing_be_handled_twice_and_loses_nothing(
    connect: Connect, url: str, tmp_path: Path
) -> None:
    """Every acknowledgement and confirm is out before the process ends, with exit code 0."""
    ledger = tmp_path / "ledger"
    client = connect("busy", source="busy")
    sent = 0
    stop = threading.Event()

    def load() -> None:
        nonlocal sent
        while not stop.is_set():
            with client.pipeline():
                for _ in range(20):
                    client.busy.plain(n=sent).cast()
                    sent += 1

    def handled() -> Counter[str]:
        return Counter(ledger.read_text().splitlines())

    with ExitStack() as running:

        def start() -> Program:
            program = running.enter_context(Program([BUSY, url, ledger]))
            program.line("is serving")
            return program

        serving = start()
        loading = threading.Thread(target=load)
        loading.start()
        try:
            for _ in range(STOPS):
                following, before = start(), len(handled())
                eventually(lambda: len(handled()) > before + 100)  # noqa: B023 - called in this turn
                assert 0 == serving.end()
                serving.line("tavrida stopped")
                serving = following
        finally:
            stop.set()
            loading.join(DEADLINE)
        wanted = {f"{word} {n}" for word in ("plain", "rest") for n in range(sent)}
        eventually(lambda: wanted <= set(handled()))
        assert 0 == serving.end()
    assert {} == {line: count for line, count in handled().items() if count != 1}
    assert wanted == set(handled())


@dispatcher.rpc_service("idle")
class Idle(service.ServiceController):
    @dispatcher.rpc_method(service="idle", method="nothing")
    def nothing(self, request: Any, proxy: Any) -> None: ...


def make(config: ConnectionConfig) -> Server:
    return Server(config, "idle", "test_exchange", [Idle], queue_type="classic")


def test_a_stop_that_is_asked_for_before_run_is_heeded(config: ConnectionConfig) -> None:
    """As by a signal that comes while a program begins. A later run is another matter."""
    server = make(config)
    server.request_stop()
    server.run()
    ran: list[str] = []
    server.request(lambda: ran.append("it serves"))
    server.request(server.request_stop)
    server.run()
    assert ["it serves"] == ran


def test_jobs_run_in_their_order_in_the_thread_that_serves(config: ConnectionConfig) -> None:
    """Whichever thread asks for them, and whenever it does."""
    server = make(config)
    ran: list[tuple[int, threading.Thread]] = []

    def note(number: int) -> None:
        ran.append((number, threading.current_thread()))

    server.request(lambda: note(1))
    server.request(lambda: server.request(lambda: note(3)))
    server.request(lambda: note(2))
    serving = threading.Thread(target=server.run)
    serving.start()
    eventually(lambda: len(ran) == 3)
    server.request(lambda: note(4))
    server.request(server.request_stop)
    serving.join(DEADLINE)
    assert [(number, serving) for number in (1, 2, 3, 4)] == ran


def test_what_is_to_be_done_before_the_stop_is_done_while_it_still_serves(
    config: ConnectionConfig, connect: Connect
) -> None:
    """Once, in the thread that serves."""
    server = make(config)
    client = connect("idle")
    answered: list[object] = []

    def before_stop() -> None:
        answered.append(client.idle.nothing().call().payload)

    server.request(server.request_stop)
    server.run(before_stop=before_stop)
    assert [{}] == answered
