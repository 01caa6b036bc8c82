# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""A migration for tests that kill it: python migrator.py URL KIND SETTLE."""

from __future__ import annotations

import sys

from tavrida import migration
from tests.broker.test_migration import needed
from tests.transports.bench import Bench

URL, KIND, SETTLE = sys.argv[1:]


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


with Bench(URL) as bench:
    connection = bench.connect()
    say("begins")
    bench.run(migration.apply(connection.transport, needed(KIND), say, settle=float(SETTLE)))
