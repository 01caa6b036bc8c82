# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Worker threads for plain handlers, which may block."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

Job = Callable[[], None]


class Workers:
    """Up to ``limit`` daemon threads, started as they are needed. Jobs must not raise.

    Not ``ThreadPoolExecutor``: the interpreter waits for its threads at exit, so that one handler
    that never returns would keep a stopped server alive.
    """

    def __init__(self, limit: int, name: str) -> None:
        self._limit = limit
        self._name = name
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._started = 0
        self._is_stopped = False
        self._threads: set[int] = set()
        self._idle = threading.Semaphore(0)

    def change(self, limit: int) -> None:
        """Have another limit from now on. Threads that are there stay."""
        self._limit = limit

    def run(self, job: Job) -> None:
        """Run a job in a thread, as soon as one is free. Called by one thread only.

        After ``stop`` each job gets a thread of its own.
        """
        if self._is_stopped:
            threading.Thread(target=job, name=f"{self._name}-late", daemon=True).start()
            return
        self._jobs.put(job)
        if not self._idle.acquire(blocking=False) and self._started < self._limit:
            self._started += 1
            threading.Thread(
                target=self._work, name=f"{self._name}-{self._started}", daemon=True
            ).start()

    @property
    def is_current(self) -> bool:
        """True in a job itself, False in a thread that a job started."""
        return threading.get_ident() in self._threads

    def stop(self) -> None:
        """Let each thread end after its job; does not wait."""
        self._is_stopped = True
        for _ in range(self._started):
            self._jobs.put(None)

    def _work(self) -> None:
        self._threads.add(threading.get_ident())
        while (job := self._jobs.get()) is not None:
            job()
            self._idle.release()
        # The operating system may give the number to a thread that is none of ours.
        self._threads.discard(threading.get_ident())
