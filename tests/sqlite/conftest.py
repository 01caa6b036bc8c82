# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""A bus in a file of the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.transports.bench import Bench


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bus.db"


@pytest.fixture
def bench(path: Path) -> Iterator[Bench]:
    """Connections to the file, which share one store as those of a server do."""
    with Bench(f"sqlite://{path}") as bench:
        yield bench
