# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The master: the process that keeps several worker processes at work, and serves nothing itself.

Each worker is forked from it, with a pipe between the two. Over the pipe the worker tells that it
serves, and is told to stop or to reload. It also is how each knows that the other is gone: nothing
but these two has its ends.

Not cotyledon: there Ctrl-C and a second SIGTERM do not do what they do with one process, all
workers wait while one that dies at once gets its pause, READY=1 goes out before anybody serves,
and it forks in a thread. What is left of it then is this module.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import logging
import os
import selectors
import signal
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, Pipe
from typing import Any, NoReturn

from tavrida.cli.systemd import ServiceManager

LOG = logging.getLogger(__name__)

#: What the master sends for "stop"; all else is a reload. What a worker sends.
STOP, SERVES, RELOADED = "stop", "serves", "reloaded"

#: Seconds. A worker that serves for less has died at once.
SHORT_LIFE = 1.0

#: Seconds until one that died at once is started again: the first time, and at most. They double.
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 30.0

#: Seconds that workers get beyond ``graceful_timeout``, to disconnect.
MARGIN = 15.0

#: Seconds within which a signal is the same once more: timeout(1), for one, sends it to the process
#: and to its group.
ECHO = 0.1

#: What the master handles.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


def tell(pipe: Connection, message: Any) -> None:
    """Send something to the other end of a pipe, unless nobody is there any more."""
    with contextlib.suppress(OSError):
        pipe.send(message)


def listen(pipe: Connection, stop: Callable[[], None], reload: Callable[[Any], None]) -> None:
    """Do in a worker what the master says, until that is to stop; its end means the same."""
    while True:
        try:
            message = pipe.recv()
        except (EOFError, OSError):
            LOG.warning("The master is gone: this worker (pid %d) stops too.", os.getpid())
            message = STOP
        if message == STOP:
            stop()
            return
        reload(message)


class Worker:
    """One worker as the master sees it. Its successors have the same number."""

    def __init__(self, number: int) -> None:
        self.number = number
        #: 0 while there is no process.
        self.pid = 0
        #: The master's end of the pipe; None when it was closed.
        self.pipe: Connection | None = None
        #: Moments of time.monotonic(): when it was started or is to be, and when it served first.
        self.started = 0.0
        self.served: float | None = None
        #: How often in a row it died at once.
        self.failures = 0
        #: It was told to reload, and has not said that it did.
        self.is_reloading = False
        #: What to reload after that; None: nothing.
        self._next: Any = None

    def send(self, message: Any) -> None:
        """Tell it something, unless it is gone."""
        if self.pipe is not None:
            tell(self.pipe, message)

    def reload(self, message: Any) -> None:
        """Have it reload, now or after what it does now; only the last one counts.

        Never two at a time: a process that is stopped reads nothing, and a full pipe would hold
        the master up for ever.
        """
        if self.is_reloading:
            self._next = message
        elif self.pipe is not None:
            self.is_reloading = True
            tell(self.pipe, message)

    def has_reloaded(self) -> None:
        """Note that it has, or has ended; go on with what came meanwhile."""
        self.is_reloading = False
        message, self._next = self._next, None
        if message is not None:
            self.reload(message)

    def close(self) -> None:
        """Close the pipe."""
        if self.pipe is not None:
            self.pipe.close()
            self.pipe = None

    def __str__(self) -> str:
        return f"Worker {self.number} (pid {self.pid})"


class Master:
    """Keeps ``count`` workers at work until it is told to stop.

    ``work`` is called in each worker with its number, from 1 on, and its end of the pipe; what it
    returns is the exit code. ``reload`` is called at SIGHUP, and returns what to tell the workers,
    or None. ``has_ended`` is called with number and process id of each worker that is gone, before
    its successor starts.
    A worker that ends with one of the codes in ``final`` before all have served has said what is
    wrong, and would say it again: then all stop, and ``run`` returns that code.

    It has to be the only thread of its process.
    """

    def __init__(
        self,
        count: int,
        work: Callable[[int, Connection], int],
        *,
        graceful_timeout: Callable[[], float],
        reload: Callable[[], Any] = lambda: None,
        has_ended: Callable[[int, int], None] = lambda number, pid: None,
        final: tuple[int, ...] = (),
        manager: ServiceManager | None = None,
    ) -> None:
        self.workers = [Worker(number) for number in range(1, count + 1)]
        self._graceful_timeout = graceful_timeout
        self._work = work
        self._reload = reload
        self._tell_of_end = has_ended
        self._final = final
        self._manager = manager or ServiceManager()
        self._selector = selectors.DefaultSelector()
        self._has_one_served = self._have_all_served = False
        self._stopping_since: float | None = None
        self._kill_at: float | None = None
        self._code = 0

    def run(self) -> int:
        """Start the workers and return the exit code when all have ended.

        SIGTERM and SIGINT stop them gracefully, a second one at once; SIGHUP reloads.
        """
        LOG.info("Master (pid %d) starts %d workers.", os.getpid(), len(self.workers))
        # What is there now stays shared with the workers: their collector does not write to it.
        gc.collect()
        gc.freeze()
        with self._signals():
            self._start_workers()
            while not self._is_stopping or any(worker.pid for worker in self.workers):
                for key, _ in self._selector.select(self._pause()):
                    key.data()
                if not self._is_stopping:
                    self._start_workers()
                elif self._kill_at is not None and time.monotonic() >= self._kill_at:
                    self._kill_workers()
        LOG.info("tavrida stopped, with all its workers.")
        return self._code

    @property
    def _is_stopping(self) -> bool:
        return self._stopping_since is not None

    def _pause(self) -> float | None:
        """Return the seconds until there is something to do without being told."""
        if self._is_stopping:
            due = [] if self._kill_at is None else [self._kill_at]
        else:
            due = [worker.started for worker in self._wanted() if not worker.pid]
        return max(0.0, min(due) - time.monotonic()) if due else None

    # -- signals

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Have signals wake the loop, which handles them between two of its steps."""
        inlet, outlet = os.pipe()
        os.set_blocking(inlet, False)
        os.set_blocking(outlet, False)
        self._signal_pipe = (inlet, outlet)
        # They stay when all has ended: one more signal shall not change the exit code.
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)
        # Python writes the number of each signal there, whatever is going on.
        signal.set_wakeup_fd(outlet)
        self._selector.register(inlet, selectors.EVENT_READ, self._on_signals)
        # What came too early may have been kept waiting.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        try:
            yield
        finally:
            signal.set_wakeup_fd(-1)
            self._selector.close()
            os.close(inlet)
            os.close(outlet)

    def _on_signals(self) -> None:
        for number in os.read(self._signal_pipe[0], 1024):
            if number == signal.SIGCHLD:
                self._reap()
            elif number == signal.SIGHUP:
                self._on_hangup()
            elif number in (signal.SIGTERM, signal.SIGINT):
                self._on_stop(signal.Signals(number))

    def _on_stop(self, number: signal.Signals) -> None:
        if self._stopping_since is None:
            LOG.info("Got %s: stopping all workers. A second one stops at once.", number.name)
            self._stop(0)
        elif time.monotonic() > self._stopping_since + ECHO:
            LOG.warning("Got %s again: stopping at once.", number.name)
            self._code = 128 + number
            self._kill_workers()

    def _stop(self, code: int) -> None:
        self._stopping_since = time.monotonic()
        self._code = code
        self._manager.stopping()
        self._kill_at = time.monotonic() + self._graceful_timeout() + MARGIN
        for worker in self.workers:
            worker.send(STOP)

    def _kill_workers(self) -> None:
        """End what does not end by itself."""
        self._kill_at = None
        for worker in self.workers:
            if worker.pid:
                LOG.error("%s is killed; its messages go back to their queues.", worker)
                os.kill(worker.pid, signal.SIGKILL)

    # -- reloading

    def _on_hangup(self) -> None:
        if self._is_stopping:
            return
        self._manager.reloading()
        message = self._reload()
        if message is not None:
            for worker in self.workers:
                worker.reload(message)
        self._tell_if_reloaded()

    def _tell_if_reloaded(self) -> None:
        served = (worker for worker in self.workers if worker.served is not None)
        if self._have_all_served and not any(worker.is_reloading for worker in served):
            self._manager.ready(f"{len(self.workers)} workers serve.")

    # -- workers

    def _wanted(self) -> list[Worker]:
        """Return those that should be at work. At first it is one.

        It declares everything, and where it cannot, that is told once and not by all at a time.
        """
        return self.workers if self._has_one_served else self.workers[:1]

    def _start_workers(self) -> None:
        """Start each worker whose time has come."""
        for worker in self._wanted():
            if not worker.pid and worker.started <= time.monotonic():
                self._start(worker)

    def _start(self, worker: Worker) -> None:
        try:
            worker.pid, pipe = self._fork(worker.number)
        except OSError as error:  # too many processes, or files
            self._postpone(worker)
            LOG.warning("Worker %d cannot be started: %s. Trying again.", worker.number, error)
            return
        worker.pipe = pipe
        worker.started, worker.served = time.monotonic(), None
        self._selector.register(pipe, selectors.EVENT_READ, lambda: self._on_message(worker))

    def _fork(self, number: int) -> tuple[int, Connection]:
        """Make a process that is that worker; return its id and our end of the pipe to it."""
        ours, theirs = Pipe()
        # Until the child has let go of it, signals to it would be written into our signal pipe.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            pid = os.fork()
            if pid == 0:
                ours.close()
                self._become_a_worker(number, theirs)
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return pid, ours

    def _become_a_worker(self, number: int, pipe: Connection) -> NoReturn:
        """Work, in a process that was just forked."""
        code = os.EX_SOFTWARE
        # What the master has to do at its end is none of a worker's, which has its own to do, such
        # as to export its last spans. (multiprocessing does the same, from Python 3.14 on.)
        atexit._clear()  # noqa: SLF001
        try:
            signal.set_wakeup_fd(-1)
            for each in SIGNALS:
                signal.signal(each, signal.SIG_DFL)
            # A terminal sends it to all of its processes, and the master tells us.
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            self._selector.close()
            for inherited in self._signal_pipe:
                os.close(inherited)
            for other in self.workers:
                other.close()
            code = self._work(number, pipe)
        except BaseException:
            LOG.exception("A worker (pid %d) failed.", os.getpid())
        finally:
            with contextlib.suppress(BaseException):
                atexit._run_exitfuncs()  # noqa: SLF001
            # Not sys.exit(): that would go on in what the master does after the fork.
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):
                    stream.flush()
            os._exit(code)

    def _on_message(self, worker: Worker) -> None:
        if worker.pipe is None:  # it was found to have ended in the same turn
            return
        try:
            message = worker.pipe.recv()
        except (EOFError, OSError):  # it ends: SIGCHLD tells the rest
            self._selector.unregister(worker.pipe)
            worker.close()
            return
        if message == SERVES:
            worker.served = time.monotonic()
            self._has_one_served = True
            LOG.info("%s serves.", worker)
            if not self._have_all_served and all(each.served for each in self.workers):
                self._have_all_served = True
                LOG.info("All %d workers serve.", len(self.workers))
                self._tell_if_reloaded()
        elif message == RELOADED:
            worker.has_reloaded()
            self._tell_if_reloaded()

    def _reap(self) -> None:
        """See which workers have ended. All children are looked at: we may be process 1."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                for worker in self.workers:
                    if worker.pid == pid:
                        self._has_ended(worker, os.waitstatus_to_exitcode(status))

    def _has_ended(self, worker: Worker, code: int) -> None:
        if worker.pipe is not None:
            self._selector.unregister(worker.pipe)
            worker.close()
        now = time.monotonic()
        told = f"{worker} {_how(code)} after {now - worker.started:.1f} s"
        self._tell_of_end(worker.number, worker.pid)
        worker.pid = 0
        worker.started = now
        is_reloading = worker.is_reloading
        worker.has_reloaded()
        if self._is_stopping:
            if code != 0:
                LOG.warning("%s.", told)
            return
        if not self._have_all_served and code in self._final:
            LOG.error("%s. It told why; stopping the others.", told)
            self._stop(code)
            return
        if worker.served is not None and now - worker.served >= SHORT_LIFE:
            worker.failures = 0
            LOG.warning("%s. Starting it again.", told)
        else:
            self._postpone(worker)
            LOG.error(
                "%s; failure %d in a row. Starting it again in %g s.",
                told,
                worker.failures,
                round(worker.started - now, 2),
            )
        worker.served = None
        if is_reloading:
            self._tell_if_reloaded()

    @staticmethod
    def _postpone(worker: Worker) -> None:
        """Let a worker that died at once wait, longer each time."""
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(worker.failures, 20))
        worker.failures += 1
        worker.started = time.monotonic() + pause


def _how(code: int) -> str:
    """Say how a process ended."""
    if code >= 0:
        return f"ended with code {code}"
    # Those for programs' own use have no names.
    named = -code in set(signal.Signals)
    return f"was killed by {signal.Signals(-code).name if named else f'signal {-code}'}"
