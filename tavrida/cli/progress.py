# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""A progress bar for what takes longer than a moment."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

#: Seconds. What is over sooner needs no bar.
MOMENT = 1.0


class Bar:
    """A bar on stderr, if that is a terminal; it shows after a moment. Use it in a ``with``."""

    def __init__(self, what: str) -> None:
        self._what = what
        #: How much there is to do, as soon as that is known.
        self.total = 0
        self._done = 0
        self._begin = time.monotonic() + MOMENT if sys.stderr.isatty() else float("inf")
        self._shown: tuple[Progress, TaskID] | None = None

    def advance(self) -> None:
        """Count one more; from one thread only."""
        self._done += 1
        if self._shown is not None:
            progress, task = self._shown
            progress.update(task, completed=self._done, total=self.total)
        elif time.monotonic() > self._begin:
            self._shown = self._show()

    def _show(self) -> tuple[Progress, TaskID]:
        # Here, because it costs more than most commands take.
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        progress = Progress(
            self._what,
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        progress.start()
        return progress, progress.add_task("", total=self.total, completed=self._done)

    def hide(self) -> None:
        """Take it away, as long as nothing advances."""
        if self._shown is not None:
            self._shown[0].stop()
            self._shown = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.hide()
