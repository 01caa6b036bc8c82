# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Channels: those of pika, whose methods can be awaited."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from pika.channel import Channel
from pika.spec import Basic, BasicProperties

from tavrida import interruptions
from tavrida.envelope import ReadProperties
from tavrida.plugins.transports.amqp import fields
from tavrida.plugins.transports.amqp.tags import Tags
from tavrida.plugins.transports.amqp.wire import PlainWire

LOG = logging.getLogger(__name__)

#: Called for each delivery of a consumer: delivery tag, redelivered, exchange, routing key.
Receive = Callable[[int, bool, str, str, ReadProperties, bytes], None]

#: Called for each confirm: delivery tag, multiple, and True where the broker has the message.
OnConfirm = Callable[[int, bool, bool], None]


class AwaitableChannel:
    """A pika channel whose methods can be awaited, and end with an error if it closes.

    ``on_closed`` is called when it is.
    """

    def __init__(
        self,
        wire: PlainWire,
        on_closed: Callable[[AwaitableChannel, BaseException], None] = lambda channel, reason: None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._wire = wire
        self._asked: set[asyncio.Future[Any]] = set()
        self._on_closed = on_closed
        #: That somebody waited for an answer here when it closed, and was told why.
        self.has_told = False
        #: The queue of each consumer, by its tag.
        self.queues: dict[str, str] = {}
        self._receivers: dict[str, Receive] = {}
        # What a read brought, handed over when all of it is there. A processor is quicker at the
        # same step for many messages than at all steps for one after the other.
        self._came: list[tuple[Any, ...]] = []
        self._getting: asyncio.Future[Any] | None = None
        self._one_get = asyncio.Lock()
        self.opened: asyncio.Future[Any] = self._future()
        self.pika = wire.channel(on_open_callback=self._resolve(self.opened))
        self.pika.add_on_close_callback(self._closed)
        self.pika.add_callback(self._got, [Basic.GetEmpty], one_shot=False)
        self.tags = Tags(self.pika, wire)

    def _future(self) -> asyncio.Future[Any]:
        future = self._loop.create_future()
        self._asked.add(future)
        future.add_done_callback(self._asked.discard)
        return future

    @staticmethod
    def _resolve(future: asyncio.Future[Any]) -> Callable[[Any], None]:
        return lambda frame: None if future.done() else future.set_result(frame)

    def _closed(self, channel: Channel, reason: BaseException) -> None:
        self._wire.forget(channel)
        for future in list(self._asked):
            if not future.done():
                self.has_told = True
                future.set_exception(reason)
                future.exception()  # seen: who asked may be gone
        self._on_closed(self, reason)

    async def ask(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a method of the pika channel that takes a callback; return what it is given."""
        future = self._future()
        method(*args, callback=self._resolve(future), **kwargs)
        return await future

    # -- publishing

    async def confirm(self, on_confirm: OnConfirm) -> None:
        """Have the broker confirm what is published here."""

        def confirmed(frame: Any) -> None:
            method = frame.method
            on_confirm(method.delivery_tag, method.multiple, isinstance(method, Basic.Ack))

        await self.ask(self.pika.confirm_delivery, confirmed)
        self._wire.watch(self.pika, None, lambda tag, multiple: on_confirm(tag, multiple, True))

    # -- consuming

    async def consume(
        self, queue: str, consumer_tag: str, receive: Receive, *, auto_ack: bool = False
    ) -> None:
        """Have the messages of a queue delivered."""
        if not self._receivers:
            self._wire.watch(self.pika, self._delivered, None)
        self.queues[consumer_tag] = queue
        self._receivers[consumer_tag] = receive
        await self.ask(
            self.pika.basic_consume,
            queue,
            self._delivered_by_pika,
            consumer_tag=consumer_tag,
            auto_ack=auto_ack,
        )

    async def cancel(self, consumer_tag: str) -> None:
        """End a consumer; what comes until the broker knows of it goes back."""
        self._receivers.pop(consumer_tag, None)
        await self.ask(self.pika.basic_cancel, consumer_tag)

    async def hand_on(self, consumer_tag: str) -> None:
        """End a consumer that has a successor; what comes until the broker knows of it is taken."""
        await self.ask(self.pika.basic_cancel, consumer_tag)
        self._receivers.pop(consumer_tag, None)
        self.queues.pop(consumer_tag, None)

    def _delivered(self, *delivery: Any) -> None:
        if not self._came:
            self._wire.loop.at_end(self._hand_over)
        self._came.append(delivery)

    def _hand_over(self) -> None:
        came, self._came = self._came, []
        for consumer_tag, tag, redelivered, exchange, routing_key, properties, body in came:
            receive = self._receivers.get(consumer_tag)
            try:
                if receive is not None:
                    receive(tag, redelivered, exchange, routing_key, properties, body)
                elif self.pika.is_open:
                    self.pika.basic_nack(tag, requeue=True)
            except Exception:  # ours: the others are not to suffer from it
                if interruptions.may_come():
                    raise
                LOG.exception(
                    "A delivery of queue %s cannot be taken.", self.queues.get(consumer_tag)
                )

    def _delivered_by_pika(
        self, channel: Channel, method: Basic.Deliver, properties: BasicProperties, body: bytes
    ) -> None:
        self._delivered(method.consumer_tag, *_read(method, properties), body)

    async def get(self, queue: str, receive: Receive) -> None:
        """Hand the next message of a queue to ``receive``, if there is one."""
        async with self._one_get:  # pika allows no second one before the first is answered
            self._getting = self._future()
            self.pika.basic_get(queue, self._got)
            try:
                answer = await self._getting
            except asyncio.CancelledError:
                self.close()  # the message may be on its way to nobody: so it goes back
                raise
        if len(answer) > 1:
            _, method, properties, body = answer
            receive(*_read(method, properties), body)

    def _got(self, *answer: Any) -> None:
        if self._getting is not None and not self._getting.done():
            self._getting.set_result(answer)

    def close(self) -> None:
        """Close it, when what was acknowledged has left."""
        self.tags.flush()
        self.pika.close()


def _read(
    method: Basic.Deliver | Basic.GetOk, properties: BasicProperties
) -> tuple[int, bool, str, str, ReadProperties]:
    """Return what pika says of a message, with values that the rest of us can use."""
    headers = properties.headers
    if headers:
        for name, value in headers.items():
            headers[name] = fields.plain(value)
    return (
        method.delivery_tag,
        method.redelivered,
        method.exchange or "",
        method.routing_key or "",
        properties,
    )


@contextlib.asynccontextmanager
async def passing(wire: PlainWire) -> AsyncIterator[AwaitableChannel]:
    """Give a channel for one question, whose refusal costs nothing but this channel."""
    channel = AwaitableChannel(wire)
    await channel.opened
    try:
        yield channel
    finally:
        if channel.pika.is_open:
            channel.pika.close()
