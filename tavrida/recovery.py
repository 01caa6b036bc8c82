# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Recovery: looking into dead-letter queues, sending letters back, and deleting them.

A broker has no way to read a queue but to take what is in it. So each walk through a queue takes
its messages one after the other and holds those that it does not want; when its connections close,
the broker puts them back, in their old order and in every kind of queue. The same happens when the
process is killed. While it lasts, nobody else sees them: two operators at once each see a part.

What is sent back is acknowledged after its confirm, so that at worst it is there twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from tavrida import exceptions, letters, plugins
from tavrida.config import ConnectionConfig
from tavrida.letters import Letter, Return, Selection
from tavrida.loop import LoopThread
from tavrida.plugins.transports import Delivery, Events, QueueState, Transport

#: Messages that one connection holds at most: AMQP counts them in 16 bits.
MAX_WINDOW = 65_535

#: Letters that are on their way back at a time, with their bodies in memory. Each further
#: connection of a walk, which is needed when one is full of letters that stay, has twice as many.
FIRST_WINDOW = 500

#: Seconds without any delivery after which a walk asks whether there still is anything to come.
QUIET = 0.5

#: Seconds that a broker gets for putting back what a walk held, and between two looks whether it
#: has. It may never seem so: somebody else may take them at once.
RETURNING = 2.0
SHORT = 0.02

#: Called with each letter and its delivery, on the loop; False ends the walk.
See = Callable[[Letter, Delivery], bool]

#: Called with each message; tells whether the visitor settles it itself. Else it stays.
_Visit = Callable[["_Walk", Delivery], bool]


@dataclass(slots=True)
class Tally:
    """What became of the letters of a queue."""

    #: How many were meant, and how many of them are gone from the queue.
    selected: int = 0
    done: int = 0
    #: How many stay although they were meant, by the reason.
    kept: Counter[str] = field(default_factory=Counter)


class Recovery:
    """Connections to look into queues with, for one thread; use it in a ``with``.

    ``on_seen`` is called on the loop for each message that is looked at. All methods raise
    ConnectionFailed when the connection is lost: what was done until then is done, and nothing
    else has changed.

    Raises:
        PluginError: there is no transport for the scheme of the url.
        ConfigError: the url can never work.
        ConnectionFailed: the broker cannot be reached.
    """

    def __init__(
        self, config: ConnectionConfig, on_seen: Callable[[], None] = lambda: None
    ) -> None:
        cls = plugins.load(plugins.TRANSPORTS, config.scheme, Transport)  # type: ignore[type-abstract]
        cls.check(config)
        # A new connection would be handed again what the last one has seen.
        self._config = dataclasses.replace(config, reconnect_attempts=0)
        #: Seconds that the broker may take for one thing.
        self.patience = config.publish_timeout
        self._class = cls
        self._on_seen = on_seen
        self._walk: _Walk | None = None
        self._loop = LoopThread("tavrida-recovery")
        try:
            self._home = self._loop.run(self.connect())
        except BaseException:
            self._loop.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(exceptions.ConnectionFailed):
            self._loop.run(self._home.close())
        self._loop.stop()

    async def connect(self) -> Transport:
        """Return a new connection, which tells the walk that is under way when it is lost."""
        name = f"tavrida dead@{socket.gethostname()} {os.getpid()}"
        transport = self._class(self._config, self._loop, name, Events(self._lost, self._failed))
        await transport.open(self._config.connection_attempts)
        return transport

    def _lost(self, reason: str) -> None:
        walk = self._walk
        if walk is not None:
            walk.fail(
                exceptions.ConnectionFailed(
                    f"the connection was lost: {reason}. {walk.gone} letters had left the queue; "
                    "the others are in it: run it again"
                )
            )

    def _failed(self, error: Exception) -> None:
        """The walk was told already."""

    async def waiting_in(self, queue: str) -> int | None:
        """Return how many messages wait in a queue; None where there is no such queue."""
        state = await self._inspect(queue)
        return None if state is None else state.messages

    async def _inspect(self, queue: str) -> QueueState | None:
        async with self.in_time():
            return await self._home.inspect(queue)

    @contextlib.asynccontextmanager
    async def in_time(self) -> AsyncIterator[None]:
        """Have the block fail when it takes too long: over a lost connection it would for ever."""
        try:
            async with asyncio.timeout(self.patience):
                yield
        except TimeoutError:
            raise exceptions.ConnectionFailed(
                f"the broker did not answer within {self.patience} s (publish_timeout)"
            ) from None

    def inspect(self, queue: str) -> QueueState | None:
        """Return how many messages wait in a queue, and who reads it; None where there is none."""
        return self._loop.run(self._inspect(queue))

    def look(self, queue: str, see: See) -> None:
        """Show all letters of a queue, the oldest first; all of them stay."""

        def visit(walk: _Walk, delivery: Delivery) -> bool:
            if not see(letters.read(delivery), delivery):
                walk.end()
            return False

        self._loop.run(self._go(queue, visit, MAX_WINDOW))

    def purge(self, queue: str, selection: Selection, limit: int | None = None) -> Tally:
        """Delete the selected letters of a queue, ``limit`` of them at most."""
        tally = Tally()

        def visit(walk: _Walk, delivery: Delivery) -> bool:
            if not _is_selected(letters.read(delivery), selection, tally, limit):
                return False
            tally.done += 1
            walk.settle(delivery)
            if tally.selected == limit:
                walk.end()
            return True

        self._loop.run(self._go(queue, visit, MAX_WINDOW))
        return tally

    def requeue(
        self, queue: str, selection: Selection, how: Return, limit: int | None = None
    ) -> Tally:
        """Send the selected letters of a queue back, ``limit`` of them at most.

        A letter leaves the queue when the broker has confirmed that it is where it goes.
        """
        tally = Tally()

        def visit(walk: _Walk, delivery: Delivery) -> bool:
            letter = letters.read(delivery)
            if not _is_selected(letter, selection, tally, limit):
                return False
            if tally.selected == limit:
                walk.end()
            why = letters.obstacle(letter, how)
            if why:
                tally.kept[why] += 1
                return False
            confirmed = functools.partial(end, walk, delivery)
            self._home.publish(letters.returned(delivery, letter, how), confirmed)
            return True

        def end(walk: _Walk, delivery: Delivery, error: Exception | None) -> None:
            if error is None:
                tally.done += 1
            elif isinstance(error, exceptions.PublishTimeout | exceptions.ConnectionFailed):
                walk.fail(error)  # the next ones would have to wait as long
            else:
                tally.kept[str(error)] += 1
            walk.settle(delivery, is_kept=error is not None)

        self._loop.run(self._go(queue, visit, FIRST_WINDOW))
        return tally

    async def _go(self, queue: str, visit: _Visit, window: int) -> None:
        total = await self.waiting_in(queue)
        if total is None:
            raise exceptions.TransportError(f"there is no queue {queue!r}")
        self._walk = walk = _Walk(self, queue, total, visit, self._on_seen)
        try:
            await walk.go(window)
        finally:
            self._walk = None
            # What one gives back shall not come to another, and stand in its old order again.
            for reader in walk.readers:
                await reader.cancel()
            for reader in walk.readers:
                await reader.close()
        await self._until_back(queue, walk.held)

    async def _until_back(self, queue: str, count: int) -> None:
        """Wait until the broker has put back what a walk was handed: the next one shall see it."""
        for _ in range(int(RETURNING / SHORT)):
            waiting = await self.waiting_in(queue)
            if waiting is None or waiting >= count:
                break
            await asyncio.sleep(SHORT)


def _is_selected(letter: Letter, selection: Selection, tally: Tally, limit: int | None) -> bool:
    if not selection.takes(letter) or tally.selected == limit:
        return False
    tally.selected += 1
    return True


class _Walk:
    """One way through the messages that wait in a queue, each of which is visited once.

    What comes to the queue meanwhile is not looked at: letters that were sent back may well die
    again at once. All methods are called on the loop.
    """

    def __init__(
        self,
        recovery: Recovery,
        queue: str,
        total: int,
        visit: _Visit,
        on_seen: Callable[[], None],
    ) -> None:
        self._recovery = recovery
        self._queue = queue
        self._total = total
        self._visit = visit
        self._on_seen = on_seen
        #: How many messages left the queue, and how many the readers have and give back.
        self.gone = 0
        self.held = 0
        self._seen = 0
        self.readers: list[Transport] = []
        self._is_over = total == 0
        self._error: Exception | None = None
        # How many the visitor will settle yet; and of the last connection, how many it holds that
        # will stay, and how many it may hold at all.
        self._taken = 0
        self._staying = 0
        self._window = 0
        self._changed = asyncio.Event()

    async def go(self, window: int) -> None:
        """Visit all messages, and wait until those that the visitor took are settled."""
        while not self._is_over:
            self._staying, self._window = 0, min(window, MAX_WINDOW, self._total - self._seen)
            reader = await self._recovery.connect()
            self.readers.append(reader)
            async with self._recovery.in_time():
                await reader.consume(self._queue, self._window, self._receive)
            await self._until_full()
            window *= 2
        while self._taken and self._error is None:
            self._changed.clear()
            await self._changed.wait()
        if self._error is not None:
            raise self._error

    async def _until_full(self) -> None:
        """Wait until the last connection is full of what stays, or everything was seen."""
        quiet = 0.0
        while not self._is_over and self._staying < self._window:
            seen, taken = self._seen, self._taken
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(QUIET):
                    await self._changed.wait()
                continue
            if taken or self._seen != seen:
                quiet = 0.0
                continue
            quiet += QUIET
            waiting = await self._recovery.waiting_in(self._queue)
            if self._seen != seen:
                continue
            if not waiting:  # others have the rest, or deleted the queue
                self.end()
            elif quiet > self._recovery.patience:
                raise exceptions.TransportError(
                    f"queue {self._queue!r} holds {waiting} messages and hands none over: does it "
                    "allow a single active consumer, which is another one?"
                )

    def _receive(self, delivery: Delivery) -> None:
        self.held += 1
        if self._is_over:
            return  # it goes back with the connection
        self._seen += 1
        self._on_seen()
        if self._seen == self._total:
            self.end()
        try:
            is_taken = self._visit(self, delivery)
        except Exception as error:
            self.fail(error)
            return
        if is_taken:
            self._taken += 1
        else:
            self._stay()

    def settle(self, delivery: Delivery, *, is_kept: bool = False) -> None:
        """Forget a message that the visitor took, or leave it in the queue after all."""
        self._taken -= 1
        if is_kept:
            self._stay()
        else:
            if delivery.is_live:  # else its connection is lost, and it is still there
                self.gone += 1
                self.held -= 1
            delivery.ack()
        if not self._taken:
            self._changed.set()

    def _stay(self) -> None:
        self._staying += 1
        if self._staying >= self._window:
            self._changed.set()

    def end(self) -> None:
        """Visit no more messages."""
        self._is_over = True
        self._changed.set()

    def fail(self, error: Exception) -> None:
        """End with an error."""
        self._error = self._error or error
        self.end()
