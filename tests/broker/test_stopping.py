# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Servers that are stopped under load, one after the other, as in a rolling restart."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

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
