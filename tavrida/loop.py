# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The event-loop thread: all input and output of a server or client happens on it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from tavrida import exceptions

LOG = logging.getLogger(__name__)

Result = TypeVar("Result")


class LoopThread:
    """An asyncio event loop in a thread of its own.

    The thread is a daemon: a program that forgot to close its client still ends. After a fork
    the child has no such thread; make servers and clients after forking.
    """

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._handed: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._is_woken = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self.loop.run_until_complete(self._cancel_tasks())
            self.loop.close()

    async def _cancel_tasks(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def is_current(self) -> bool:
        """True in code that runs on the loop."""
        return threading.current_thread() is self._thread

    def submit(self, callback: Callable[..., object], *args: Any) -> None:
        """Run the callback on the loop soon, in the order of submission. Thread-safe.

        Many submissions share one wake-up. An exception of the callback is logged.

        Raises:
            ConnectionFailed: the loop was stopped.
        """
        self._handed.append((callback, args))
        if not self._is_woken:
            self._is_woken = True
            self._wake()

    def _wake(self) -> None:
        try:
            self.loop.call_soon_threadsafe(self._drain)
        except RuntimeError:
            raise exceptions.ConnectionFailed("the connection was closed by this program") from None

    def _drain(self) -> None:
        # Cleared first: who appends after this wakes the loop again, who appended before is
        # in the deque already.
        self._is_woken = False
        for _ in range(len(self._handed)):
            callback, args = self._handed.popleft()
            try:
                callback(*args)
            except Exception:
                LOG.exception("A callback failed: %r.", callback)

    def start(self, coroutine: Coroutine[Any, Any, Result]) -> concurrent.futures.Future[Result]:
        """Start a coroutine on the loop; the future ends with its result. Thread-safe."""
        try:
            return asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        except RuntimeError:
            coroutine.close()
            raise exceptions.ConnectionFailed("the connection was closed by this program") from None

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine on the loop and return its result; not to be called on the loop."""
        return self.start(coroutine).result()

    def stop(self) -> None:
        """Cancel what runs on the loop, end the thread and wait for it. Thread-safe, idempotent."""
        try:
            self.loop.call_soon_threadsafe(self.loop.stop)
        except RuntimeError:
            return
        if not self.is_current:
            self._thread.join()
