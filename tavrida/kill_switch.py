# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The kill switch: pauses a queue whose messages fail, and tries again later."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from typing import Any

from tavrida.loop import LoopThread
from tavrida.overload import Threshold
from tavrida.turns import Gate, Turns

LOG = logging.getLogger(__name__)


class KillSwitch:
    """Watches how the messages of one queue end; ``gate`` is what it shuts.

    After the pause it lets in one more message than still run from before: when one succeeds, all
    may come, and when one fails, it pauses again. What was taken from the broker meanwhile is kept
    here and not given back: it would only count as one more delivery in vain. All methods are
    called on the loop.
    """

    def __init__(
        self, queue: str, threshold: Threshold, loop: LoopThread, turns: Turns[Any]
    ) -> None:
        self.gate: Gate[Any] = Gate()
        self._queue = queue
        self._threshold = threshold
        self._loop = loop
        self._turns = turns
        self._ends: deque[bool] = deque(maxlen=threshold.window)
        #: Whether nothing is let in.
        self.is_paused = False
        self._is_trial = False
        self._trying: asyncio.TimerHandle | None = None

    def change(self, threshold: Threshold) -> None:
        """Have another threshold from now on. A pause that has begun is as long as it was."""
        self._threshold = threshold
        self._ends = deque(self._ends, maxlen=threshold.window)

    def retire(self) -> None:
        """Let all in, for good."""
        if self._trying is not None:
            self._trying.cancel()
        self.is_paused = False
        self._open(math.inf)

    def note(self, error: BaseException | None) -> None:
        """Note how a message ended: with this failure, or well."""
        if self.is_paused:
            return  # it had begun before
        is_trial, self._is_trial = self._is_trial, False
        if is_trial and error is None:
            LOG.warning("Queue %s is handled again: a message succeeded.", self._queue)
            self._open(math.inf)
        self._ends.append(error is not None)
        failures = sum(self._ends)
        is_over = failures >= self._threshold.failures
        if error is not None and (is_trial or is_over):
            self._pause(failures, error)

    def _pause(self, failures: int, error: BaseException) -> None:
        LOG.error(
            "Paused queue %s for %g s (failure_pause): %d of its last %d messages failed, this one "
            "with %s.",
            self._queue,
            self._threshold.pause,
            failures,
            len(self._ends),
            type(error).__name__,
        )
        self._ends.clear()
        self.is_paused = True
        self._turns.shut(self.gate)
        self._trying = self._loop.loop.call_later(self._threshold.pause, self._try)

    def _try(self) -> None:
        self.is_paused = False
        self._is_trial = True
        self._open(self.gate.inside + 1)

    def _open(self, limit: float) -> None:
        self.gate.limit = limit
        self._turns.let_in(self.gate)
