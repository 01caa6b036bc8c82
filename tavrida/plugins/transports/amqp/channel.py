# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Channels: those of pika, whose methods can be awaited."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from pika.adapters.asyncio_connection import AsyncioConnection
from pika.channel import Channel
from pika.spec import Basic, BasicProperties


class AwaitableChannel:
    """A pika channel whose methods can be awaited, and end with an error if it closes."""

    def __init__(
        self,
        connection: AsyncioConnection,
        on_closed: Callable[[AwaitableChannel, BaseException], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._asked: set[asyncio.Future[Any]] = set()
        self._on_closed = on_closed
        self._getting: asyncio.Future[Any] | None = None
        self._one_get = asyncio.Lock()
        self.opened: asyncio.Future[Any] = self._future()
        self.pika = connection.channel(on_open_callback=self._resolve(self.opened))
        self.pika.add_on_close_callback(self._closed)
        self.pika.add_callback(self._got, [Basic.GetEmpty], one_shot=False)

    def _future(self) -> asyncio.Future[Any]:
        future = self._loop.create_future()
        self._asked.add(future)
        future.add_done_callback(self._asked.discard)
        return future

    @staticmethod
    def _resolve(future: asyncio.Future[Any]) -> Callable[[Any], None]:
        return lambda frame: None if future.done() else future.set_result(frame)

    def _closed(self, channel: Channel, reason: BaseException) -> None:
        for future in list(self._asked):
            if not future.done():
                future.set_exception(reason)
                future.exception()  # seen: who asked may be gone
        self._on_closed(self, reason)

    async def ask(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a method of the pika channel that takes a callback; return what it is given."""
        future = self._future()
        method(*args, callback=self._resolve(future), **kwargs)
        return await future

    async def get(self, queue: str) -> tuple[Channel, Basic.GetOk, BasicProperties, bytes] | None:
        """Return the next message of a queue, None when it is empty."""
        async with self._one_get:  # pika allows no second one before the first is answered
            self._getting = self._future()
            self.pika.basic_get(queue, self._got)
            try:
                answer = await self._getting
            except asyncio.CancelledError:
                self.pika.close()  # the message may be on its way to nobody: so it goes back
                raise
        return answer if len(answer) > 1 else None

    def _got(self, *answer: Any) -> None:
        if self._getting is not None and not self._getting.done():
            self._getting.set_result(answer)


@contextlib.asynccontextmanager
async def passing(connection: AsyncioConnection) -> AsyncIterator[AwaitableChannel]:
    """Give a channel for one question, whose refusal costs nothing but this channel."""
    channel = AwaitableChannel(connection, lambda channel, reason: None)
    await channel.opened
    try:
        yield channel
    finally:
        if channel.pika.is_open:
            channel.pika.close()
