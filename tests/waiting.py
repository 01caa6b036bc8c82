# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Waiting with a deadline, for tests."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")

#: Seconds. Far more than anything takes; only a failing test waits so long.
DEADLINE = 20.0


def eventually(probe: Callable[[], Value], deadline: float = DEADLINE) -> Value:
    """Return the first true value of the probe, or fail with the last one."""
    end = time.monotonic() + deadline
    while True:
        value = probe()
        if value:
            return value
        assert time.monotonic() < end, f"still {value!r} after {deadline} s"
        time.sleep(0.01)
