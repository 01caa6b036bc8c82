# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Hearing notifications for a while, with a queue that lives as long as the connection."""

from __future__ import annotations

import asyncio
import dataclasses
import queue
import threading
from types import TracebackType
from typing import Self

from tavrida import exceptions
from tavrida.cli.application import note
from tavrida.cli.broker import connected
from tavrida.config import ConnectionConfig
from tavrida.loop import SLICE, LoopThread
from tavrida.plugins.serializers import Serializers
from tavrida.plugins.transports import Delivery, Transport
from tavrida.topology import Binding, Exchange, Topology

#: Notifications that may wait to be printed; what comes beyond that is passed over.
MAX_WAITING = 10_000


class Subscription:
    """Hears what an exchange carries under a routing key; use it in a ``with``, from one thread.

    Nobody else misses what comes here, and nothing is kept for later: what is published while
    the connection is lost is not heard. It connects anew after a loss, and says so.
    """

    def __init__(self, config: ConnectionConfig, exchange: str, key: str) -> None:
        self.serializers = Serializers("json", ("json", "msgpack"))
        # The queue goes with its connection, so each one is a transport of its own.
        self._config = dataclasses.replace(config, reconnect_attempts=0)
        self._patience = config.reconnect_attempts
        self._exchange = exchange
        self._key = key
        self._arrived: queue.Queue[Delivery] = queue.Queue(MAX_WAITING)
        #: How many were passed over, and of how many of these that was said.
        self.missed = 0
        self._told = 0
        self._is_hearing = False
        self._begun = threading.Event()
        self._loop = LoopThread("tavrida-listen")
        self._hearing = self._loop.start(self._hear())
        self._hearing.add_done_callback(lambda _: self._begun.set())

    def wait(self) -> None:
        """Return when it hears; raise TavridaError where it never will."""
        while not self._begun.wait(SLICE):
            continue
        if self._hearing.done():
            self._hearing.result()

    def next(self, timeout: float) -> Delivery:
        """Return the next notification.

        Raises:
            queue.Empty: none came within the timeout, which should be short: only between two
                waits are signals heard.
            TavridaError: none will come any more.
        """
        missed = self.missed - self._told
        if missed:
            self._told += missed
            note(f"{missed} notifications were passed over: they come faster than they are read")
        if self._hearing.done() and self._arrived.empty():
            self._hearing.result()
        return self._arrived.get(timeout=timeout)

    async def _hear(self) -> None:
        attempts = None
        while True:
            self._is_hearing = False
            try:
                await connected(self._config, self._loop, "listen", self._subscribe, attempts)
            except exceptions.ConnectionFailed as error:
                if not self._is_hearing:
                    raise
                note(f"{error}; connecting anew: what is published meanwhile is not heard")
            attempts = self._patience
            await asyncio.sleep(self._config.retry_delay)

    async def _subscribe(self, transport: Transport) -> None:
        try:
            is_new = await self._bind(transport)
        except exceptions.TransportError as error:
            if not error.is_denied:
                raise
            raise exceptions.ConnectionFailed(
                f"{error}. Who listens needs the rights to configure, write and read queues named "
                f"'tavrida.reply.*', to read exchange {self._exchange!r}, and to configure it "
                "where it is missing",
                is_denied=True,
            ) from error
        self._is_hearing = True
        self._begun.set()
        note(f"listening to {self._key} at exchange {self._exchange!r}; Ctrl-C ends it")
        if is_new:
            note(f"exchange {self._exchange!r} is new: nobody has published to it or heard it yet")
        await asyncio.Event().wait()

    async def _bind(self, transport: Transport) -> bool:
        """Have the notifications come; tell whether the exchange had to be made."""
        name = await transport.reply_queue(self._receive)
        bindings = [Binding(self._exchange, name, self._key)]
        try:
            await transport.rebind((), bindings)
        except exceptions.ConnectionFailed:
            raise
        except exceptions.TransportError as error:
            if error.is_denied:
                raise
            # It does not exist. As every subscriber does: a publisher may come later.
            await transport.declare(Topology(exchanges=(Exchange(self._exchange),)))
            await transport.rebind((), bindings)
            return True
        return False

    def _receive(self, delivery: Delivery) -> None:
        try:
            self._arrived.put_nowait(delivery)
        except queue.Full:
            self.missed += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.stop()
