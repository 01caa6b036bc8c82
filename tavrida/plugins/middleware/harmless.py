# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Harmless hooks: middleware that only watches may fail, and nothing else fails of it."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

LOG = logging.getLogger(__name__)

#: Seconds until the failure of a watcher is logged again.
SILENCE = 60.0

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class Watcher(Protocol):
    """Whose hooks are harmless."""

    #: When a failure was logged last, in the time of time.monotonic; minus infinity at first.
    complained_at: float


Who = TypeVar("Who", bound=Watcher)


def harmless(
    hook: Callable[Concatenate[Who, Parameters], Result],
) -> Callable[Concatenate[Who, Parameters], Result | None]:
    """Return the hook, which logs what it raises, once a minute, and returns None then."""

    @functools.wraps(hook)
    def guarded(self: Who, /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result | None:
        try:
            return hook(self, *args, **kwargs)
        except Exception:
            now = time.monotonic()
            if now - self.complained_at >= SILENCE:
                self.complained_at = now
                LOG.exception(
                    "%s failed; messages go on, and this is not logged again soon.",
                    hook.__qualname__,
                )
            return None

    return guarded
