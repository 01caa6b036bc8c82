# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Reconnecting: a transport that keeps its connection, whatever that is a connection to."""

from __future__ import annotations

import abc
import asyncio
import itertools
import logging
import random
from collections.abc import Iterator

from tavrida import exceptions
from tavrida.config import ConnectionConfig
from tavrida.loop import LoopThread
from tavrida.plugins.transports import Events, Transport

LOG = logging.getLogger(__name__)

#: Seconds. A connection that lives for less is no reason to hurry with the next one.
SHORT_LIFE = 5.0

#: Seconds until a reason to have no connection is logged again.
SILENCE = 60.0


class ReconnectingTransport(Transport):
    """A transport that makes a new connection when the one it has is lost.

    A subclass makes one connection in ``_connect_to`` and says in ``_lost``, a future that it
    makes each time, when that is gone.
    """

    def __init__(
        self, config: ConnectionConfig, loop: LoopThread, name: str, events: Events
    ) -> None:
        super().__init__(config, loop, name, events)
        self._lost: asyncio.Future[str] | None = None
        #: Set while there is a connection on which everything is in place.
        self._ready = asyncio.Event()
        self._is_closing = False
        #: How the next loss is logged: less where who caused it was told why.
        self._loss_level = logging.WARNING
        self._was_open = False
        self._connected_at = 0.0
        self._keeper: asyncio.Task[None] | None = None
        self._pauses = pauses(config.retry_delay, config.max_retry_delay)

    @abc.abstractmethod
    async def _connect_to(self, url: str) -> None:
        """Connect to one node, put everything in place and make the future ``_lost``.

        Raises:
            ConnectionFailed: it did not work; nothing is left of it.
        """

    @abc.abstractmethod
    def _fail_all(self, error: Exception) -> None:
        """End every publication that waits for its confirm."""

    @property
    def is_ready(self) -> bool:
        return self._ready.is_set() and not self._is_closing

    @property
    def can_publish(self) -> bool:
        return self._ready.is_set()

    async def open(self, attempts: int) -> None:
        await self._connect(max(1, attempts) if attempts >= 0 else -1)
        self._keeper = asyncio.create_task(self._keep_connected())

    async def _keep_connected(self) -> None:
        while not self._is_closing:
            assert self._lost is not None
            reason = await self._lost
            if self._is_closing:
                return
            LOG.log(
                self._loss_level, "%s lost its connection: %s. Reconnecting.", self.name, reason
            )
            self._loss_level = logging.WARNING
            self.trouble = reason
            self.events.lost(reason)
            try:
                if self.loop.loop.time() - self._connected_at < SHORT_LIFE:
                    await asyncio.sleep(next(self._pauses))
                else:
                    self._pauses = pauses(self.config.retry_delay, self.config.max_retry_delay)
                await self._connect(self.config.reconnect_attempts)
            except exceptions.TransportError as error:
                self._give_up(error)
                return
            except Exception as error:  # ours: whoever waits has to hear of it
                LOG.exception("Reconnecting failed.")
                self._give_up(exceptions.ConnectionFailed(f"cannot reconnect: {error!r}"))
                return
            LOG.info("%s is connected again.", self.name)

    def _give_up(self, error: Exception) -> None:
        self._fail_all(error)
        self.events.failed(error)

    async def _connect(self, attempts: int) -> None:
        """Try all nodes, again and again with growing pauses, until one takes us."""
        error = exceptions.ConnectionFailed(f"{self.name} may not reconnect (reconnect_attempts)")
        rounds = itertools.count() if attempts < 0 else range(attempts)
        said: dict[str, float] = {}
        for number in rounds:
            if number:
                pause = next(self._pauses)
                _say(error, pause, said, self.loop.loop.time())
                await asyncio.sleep(pause)
            failure = await self._try_nodes()
            if failure is None:
                return
            # Once connected, a refusal may pass: users come back with a restored broker.
            if failure.is_final and not self._was_open:
                raise failure
            error = failure
        raise error

    async def _try_nodes(self) -> exceptions.ConnectionFailed | None:
        """Try each node once; return None when one took us, else the failure that says most."""
        failures = []
        for url in random.sample(self.config.urls, len(self.config.urls)):
            try:
                await self._connect_to(url)
            except exceptions.ConnectionFailed as failure:
                failures.append(failure)
                self.trouble = str(failure)
            else:
                self._was_open = True
                self.trouble = ""
                self._connected_at = self.loop.loop.time()
                return None
        return max(failures, key=lambda failure: failure.is_final)

    async def _stop_keeping(self) -> None:
        """Make no new connection any more."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])


def pauses(first: float, longest: float) -> Iterator[float]:
    """Seconds between attempts: doubling, with jitter, so that not all processes come at once."""
    pause = first
    while True:
        yield pause * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        pause = min(longest, pause * 2)


def closed() -> exceptions.ConnectionFailed:
    """Return the error of what is asked for, or still under way, when a transport is closed."""
    return exceptions.ConnectionFailed("the connection was closed by this program")


def _say(error: Exception, pause: float, said: dict[str, float], now: float) -> None:
    """Log why there is no connection: each reason once, and from time to time again."""
    text = str(error)
    if text in said and now < said[text] + SILENCE:
        return
    said[text] = now
    stop = "" if text.endswith(("?", ".")) else "."
    LOG.warning("%s%s Trying again, now in %.1f s.", text, stop, pause)
