# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Hearing notifications for a while, with a queue that lives as long as the connection."""

from __future__ import annotations

import asyncio
import dataclasses
import queue
from types import TracebackType
from typing import Self

from tavrida import exceptions
from tavrida.cli.application import note
from tavrida.cli.broker import connected
from tavrida.config import ConnectionConfig
from tavrida.loop import LoopThread
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
        self._missed = 0
        self._is_hearing = False
        self._loop = LoopThread("tavrida-listen")
        self._hearing = self._loop.start(self._hear())

    def next(self, timeout: float) -> Delivery:
        """Return the next notification.

        Raises:
            queue.Empty: none came within the timeout.
            TavridaError: none will come any more.
        """
        if self._missed:
            missed, self._missed = self._missed, 0
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
        exchange = Exchange(self._exchange)
        is_new = await transport.compare(exchange) is None
        # As every subscriber does: a publisher may come later.
        await transport.declare(Topology(exchanges=(exchange,)))
        name = await transport.reply_queue(self._receive)
        await transport.rebind((), [Binding(exchange.name, name, self._key)])
        self._is_hearing = True
        note(f"listening to {self._key} at exchange {exchange.name!r}; Ctrl-C ends it")
        if is_new:
            note(
                f"exchange {exchange.name!r} is new: nobody has published to it or heard it so far"
            )
        await asyncio.Event().wait()

    def _receive(self, delivery: Delivery) -> None:
        try:
            self._arrived.put_nowait(delivery)
        except queue.Full:
            self._missed += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.stop()
