# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The event-loop thread: all input and output of a server or client happens on it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import functools
import logging
import os
import select
import selectors
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Collection, Coroutine
from typing import Any, TypeVar

from tavrida import exceptions, interruptions

LOG = logging.getLogger(__name__)

Result = TypeVar("Result")

#: Seconds that cancelled tasks get to end when the loop stops.
CANCEL_TIMEOUT = 5.0

#: Seconds. Python runs signal handlers in the main thread between two waits, not in a long one.
SLICE = 0.5


class Mailbox:
    """Runs callbacks on an event loop of another thread, in the order in which they are put in.

    Many share one wake-up, which costs a system call and, where that thread sleeps, some ten
    microseconds. ``put`` is thread-safe; an exception of a callback is logged.
    """

    __slots__ = ("_context", "_open", "_wakers", "_woken", "loop", "waiting")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        within: Callable[[Callable[[], object]], object] | None = None,
    ) -> None:
        self.loop = loop
        # ``within`` runs what empties the mailbox.
        self._open = functools.partial(within, self._empty) if within else self._empty
        self.waiting: deque[Callable[[], object]] = deque()
        # The thread that wakes the loop, or did, until that has come; and the same list once it has
        # done so: a signal handler in the midst of it wakes the loop itself, others need not.
        self._wakers: list[int] = []
        self._woken = self._wakers
        # What one thread hands over runs together with what others do: in nobody's context.
        self._context = contextvars.Context()

    def put(self, callback: Callable[[], object]) -> None:
        """Have a callback run soon; never, where the loop is closed."""
        try:
            self.waiting.append(callback)
            wakers = self._wakers
            if not wakers or (wakers is not self._woken and threading.get_ident() in wakers):
                self._wake()
        except BaseException:  # a Ctrl-C right here: it may have been put in
            self._wake()
            raise

    def _wake(self) -> None:
        self._wakers = wakers = [threading.get_ident()]
        try:
            self.loop.call_soon_threadsafe(self._open, context=self._context)
        except RuntimeError:
            if not self.loop.is_closed():
                raise
        self._woken = wakers

    def empty(self) -> None:
        """Run what is there now; on the loop."""
        self._open()

    def _empty(self) -> None:
        # Cleared first: who appends after this wakes the loop again, who appended before is
        # in the deque already.
        self._wakers.clear()
        waiting = self.waiting
        for _ in range(len(waiting)):
            callback = waiting.popleft()
            try:
                callback()
            except Exception:
                LOG.exception("A callback failed: %s.", _name_of(callback))
            except BaseException:  # it wants to end the program
                self._wake()  # the others are not to wait for more
                raise


class _Selector(selectors.DefaultSelector):
    """Waits for sockets; meanwhile whoever takes the turn may use what is on the loop."""

    def __init__(self, turn: threading.RLock) -> None:
        super().__init__()
        self._turn = turn

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout <= 0:
            return super().select(timeout)
        self._turn.release()
        try:
            return super().select(timeout)
        finally:
            self._turn.acquire()


class _Thread(threading.Thread):
    """The thread of a LoopThread."""


def is_on_a_loop() -> bool:
    """Tell whether this code runs on a LoopThread, of a server or client, and must not block."""
    return isinstance(threading.current_thread(), _Thread)


class LoopThread:
    """An asyncio event loop in a thread of its own.

    The thread is a daemon: a program that forgot to close its client still ends. After a fork
    the child has no such thread; make servers and clients after forking.
    """

    def __init__(self, name: str) -> None:
        # Held by the thread of the loop, except while that waits for something to do.
        self._turn = threading.RLock()
        # What threading.Condition asks it; typeshed does not know.
        self._has_turn: Callable[[], bool] = self._turn._is_owned  # type: ignore[attr-defined] # noqa: SLF001
        selector = _Selector(self._turn)
        # A private name of Python's, which may go; and other systems have none.
        self._epoll: Any = getattr(selector, "_selector", None)
        self._has_epoll = hasattr(select, "epoll") and isinstance(self._epoll, select.epoll)
        self.loop = asyncio.SelectorEventLoop(selector)
        self._mailbox = Mailbox(self.loop, self.turn)
        # What asyncio's loops have ready to run; a private name of theirs, which may go.
        self._ready: Collection[object] = getattr(self.loop, "_ready", (None,))
        # Of what another thread does for the loop: what that leaves to it is not part of what the
        # thread does.
        self._context = contextvars.Context()
        self._at_end: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        self._is_in_turn = False
        self._will_end = False
        self._is_stopped = False
        self._process = os.getpid()
        self._lock = threading.RLock()  # signal handlers, too, start what they send
        self._thread = _Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self._turn.acquire()
        try:
            while not self._is_stopped:
                try:
                    self.loop.run_forever()
                except BaseException:  # asyncio lets SystemExit and KeyboardInterrupt out
                    LOG.exception("Something on the event loop wanted to end the program.")
        finally:
            self.loop.run_until_complete(self._cancel_tasks())
            self._mailbox.empty()
            self.loop.close()

    async def _cancel_tasks(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:  # with a limit: a task may refuse to be cancelled
            await asyncio.wait(tasks, timeout=CANCEL_TIMEOUT)

    @property
    def is_current(self) -> bool:
        """True in code that runs on the loop."""
        return threading.current_thread() is self._thread

    @property
    def is_stopping(self) -> bool:
        """True once ``stop`` was called: tasks that are cancelled are so for that reason."""
        return self._is_stopped

    def stack(self) -> str:
        """Return where the code is that runs on the loop, as lines. From any thread."""
        frame = sys._current_frames().get(self._thread.ident or 0)  # noqa: SLF001 - the only way
        return "".join(traceback.format_stack(frame)) if frame is not None else ""

    def submit(self, callback: Callable[..., object], *args: Any) -> None:
        """Run the callback on the loop soon, in the order of submission. Thread-safe.

        Many submissions share one wake-up. An exception of the callback is logged.

        Raises:
            ConnectionFailed: the loop was stopped.
        """
        if self._is_stopped:
            raise _closed()
        call = functools.partial(callback, *args) if args else callback
        self._mailbox.put(call)
        if self._is_stopped and not self.is_current:
            # It stopped while this was handed over: did the last turn still take it?
            self._join()
            with contextlib.suppress(ValueError):
                self._mailbox.waiting.remove(call)
                raise _closed()

    def do_now(self, work: Callable[..., bool], *args: Any) -> bool:
        """Do some work of the loop at once, in this other thread, where the loop has none.

        Waking the loop for it takes tens of microseconds. Return what the work returned; False
        where it was not done, because the loop is busy or stopped. The work has to be short, must
        not run a user's code, and of the loop may use only what wakes it. In the main thread a
        signal handler may raise anywhere in it. Thread-safe.
        """
        turn = self._turn
        if (
            self._mailbox.waiting
            or self._is_stopped
            or self._has_turn()
            or self._process != os.getpid()  # what others read there is missing here
        ):
            return False
        try:
            is_free = turn.acquire(blocking=False)
        except BaseException:  # of a signal handler, before the acquire or right behind it
            try:  # noqa: SIM105 - nothing may run before the release: another handler could raise
                turn.release()
            except RuntimeError:
                pass  # it was before
            raise
        if not is_free:
            return False
        try:
            is_done = work(*args)
        finally:
            turn.release()
        return is_done

    @property
    def is_busy_here(self) -> bool:
        """True in what interrupted ``do_now`` in this thread: a signal handler.

        The loop goes on only after that: to wait for it there would be to wait for ever.
        """
        # A thread that is gone leaves its number, with the turn, to another one; also after a fork.
        return self._has_turn() and not self.is_current and self._thread.is_alive()

    def check_free(self) -> None:
        """Raise CallError in a signal handler that would wait for ever: where ``is_busy_here``."""
        if self.is_busy_here:
            raise exceptions.CallError(
                "this is a signal handler, and the thread that it interrupted was just sending or "
                "reading something, which goes on only after it: set a flag here, or use .future() "
                "and do not wait for it"
            )

    @property
    def can_mute(self) -> bool:
        """True where ``mute`` may be called."""
        # In its debug mode, asyncio forbids other threads what they may do with the turn.
        return self._has_epoll and not self.loop.get_debug()

    def mute(self, socket: int) -> None:
        """Have the loop not read a socket, for another thread does; it is not woken for that.

        Of its end the loop is told all the same. In any thread that has the loop's turn.
        """
        self._epoll.modify(socket, 0)

    def unmute(self, socket: int) -> None:
        """Have the loop read a socket again that is open, and has nothing to write. As ``mute``."""
        self._epoll.modify(socket, select.EPOLLIN)

    def turn_here(self, work: Callable[..., Result], *args: Any) -> Result:
        """As ``turn``, in another thread that has the loop's turn: within ``do_now``.

        What is raised there may be a signal handler's: so it is not logged, but comes out of here.
        """
        try:
            return self._context.run(self.turn, work, *args)
        finally:
            if self._ready:
                self.loop.call_soon_threadsafe(_nothing)  # it sleeps, and does not see that

    def turn(self, work: Callable[..., Result], *args: Any) -> Result:
        """Do some work whose end is worth to wait for with what it has to send; on the loop."""
        self._is_in_turn = True
        try:
            return work(*args)
        finally:
            self._is_in_turn = False
            self.end_turn()
            if self._ready:
                # For what the work has begun: else its end would cost another turn of the loop.
                self._end_soon()

    def last(self, work: Callable[..., object], *args: Any) -> None:
        """Do some work when all has run that the loop has ready now; on the loop.

        What many leave to be done last is done in a row, which a processor is quicker at, and what
        it sends leaves together. With nothing else ready it is done at once, as a turn of its own.
        """
        if self._ready or self._is_in_turn:
            self.at_end(contextvars.copy_context().run, work, *args)
        else:
            self.turn(work, *args)

    def at_end(self, callback: Callable[..., object], *args: Any) -> None:
        """Call back soon, when more of what runs now may be done; on the loop.

        That is at the end of the ``turn``, or when all has run that the loop has ready now.
        """
        self._at_end.append((callback, args))
        if not self._is_in_turn:
            self._end_soon()

    def _end_soon(self) -> None:
        if not self._will_end:
            self.loop.call_soon(self._end, context=contextvars.Context())
            self._will_end = True  # behind it: a signal handler may break that off

    def _end(self) -> None:
        self._will_end = False
        self.end_turn()

    def end_turn(self) -> None:
        """Call back at once; on the loop."""
        while self._at_end:
            callbacks, self._at_end = self._at_end, []
            rest = iter(callbacks)
            for callback, args in rest:
                try:
                    callback(*args)
                except BaseException as error:
                    if isinstance(error, Exception) and not interruptions.may_come():
                        LOG.exception("A callback failed: %s.", _name_of(callback))
                        continue
                    # It wants to end the program, or is a signal handler's.
                    self._at_end[:0] = rest
                    self._end_soon()  # the others are not to wait for more
                    raise

    def start(self, coroutine: Coroutine[Any, Any, Result]) -> concurrent.futures.Future[Result]:
        """Start a coroutine on the loop; the future ends with its result. Thread-safe."""
        with self._lock:
            if not self._is_stopped:
                return asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        coroutine.close()
        raise _closed()

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine on the loop and return its result; not to be called on the loop.

        Raises:
            CallError: this is a signal handler, as ``check_free`` has it.
        """
        if self.is_current:
            coroutine.close()
            raise RuntimeError("this would wait for itself: it was called on the event loop")
        try:
            self.check_free()
        except exceptions.CallError:
            coroutine.close()
            raise
        future = self.start(coroutine)
        while True:
            try:
                return future.result(SLICE)
            except TimeoutError:
                if future.done():  # the coroutine's own
                    raise

    def stop(self) -> None:
        """Cancel what runs on the loop, end the thread and wait for it. Thread-safe, idempotent."""
        with self._lock:
            if not self._is_stopped:
                self._is_stopped = True
                self.loop.call_soon_threadsafe(self.loop.stop)
        self._join()

    def _join(self) -> None:
        if not (self.is_current or self.is_busy_here):  # it ends when what runs here has
            self._thread.join()


async def in_thread(function: Callable[[], Result], name: str) -> Result:
    """Run a function that may block; when it does so for ever, nobody waits for it."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[Result] = loop.create_future()

    def end(value: Any, error: BaseException | None) -> None:
        if result.cancelled():
            return
        if error is None:
            result.set_result(value)
        else:
            result.set_exception(error)

    def run() -> None:
        value, error = None, None
        try:
            value = function()
        except Exception as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed: it came too late
            loop.call_soon_threadsafe(end, value, error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await result


def _name_of(callback: Callable[..., object]) -> str:
    """Return what to call it in a log: without what it is called with, which may be a secret."""
    function = getattr(callback, "func", callback)
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def _nothing() -> None:
    """What the loop is woken for when it is to look around."""


def _closed() -> exceptions.ConnectionFailed:
    return exceptions.ConnectionFailed("the connection was closed by this program")
