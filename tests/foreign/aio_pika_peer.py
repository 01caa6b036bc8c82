# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The client of aio-pika."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from queue import SimpleQueue
from typing import Any

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, ExchangeType

from tests.foreign.peer import DIRECT, EXCHANGE, QUEUE, Answer, Sent, answer_of
from tests.waiting import DEADLINE

Setup = Callable[[AbstractChannel], Awaitable[None]]


def tell(url: str, sent: Sent) -> None:
    async def run() -> None:
        async with await aio_pika.connect(url) as connection:
            await _publish(await connection.channel(), sent)

    asyncio.run(run())


def ask(url: str, sent: Sent, *, is_direct: bool) -> Answer:
    async def run() -> Answer:
        answered: asyncio.Future[AbstractIncomingMessage] = asyncio.Future()

        async def on_answer(message: AbstractIncomingMessage) -> None:
            answered.set_result(message)

        async with await aio_pika.connect(url) as connection:
            channel = await connection.channel()
            if is_direct:
                queue = await channel.get_queue(DIRECT, ensure=False)
            else:
                queue = await channel.declare_queue(exclusive=True)
            await queue.consume(on_answer, no_ack=True)
            await _publish(channel, sent, reply_to=queue.name)
            answer = await asyncio.wait_for(answered, DEADLINE)
            return Answer(
                answer.body, answer.type or "", answer.content_type or "", answer.correlation_id
            )

    return asyncio.run(run())


@contextlib.contextmanager
def listen(url: str, exchange: str, key: str) -> Iterator[SimpleQueue[bytes]]:
    bodies: SimpleQueue[bytes] = SimpleQueue()

    async def set_up(channel: AbstractChannel) -> None:
        topic = await channel.declare_exchange(exchange, ExchangeType.TOPIC, durable=True)
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind(topic, key)

        async def on_message(message: AbstractIncomingMessage) -> None:
            bodies.put(message.body)
            await message.ack()

        await queue.consume(on_message)

    with _connected(url, set_up):
        yield bodies


@contextlib.contextmanager
def serve(url: str) -> Iterator[None]:
    async def set_up(channel: AbstractChannel) -> None:
        topic = await channel.declare_exchange(EXCHANGE, ExchangeType.TOPIC, durable=True)
        queue = await channel.declare_queue(QUEUE, durable=True)
        await queue.bind(topic, "mirror.*")

        async def on_message(message: AbstractIncomingMessage) -> None:
            method = (message.routing_key or "").partition(".")[2]
            kind, payload = answer_of(json.loads(message.body), method)
            answer = aio_pika.Message(
                json.dumps(payload).encode(),
                content_type="application/json",
                correlation_id=message.correlation_id,
                headers={k: v for k, v in message.headers.items() if k == "request_id"},
                type=kind,
            )
            await channel.default_exchange.publish(answer, message.reply_to or "")
            await message.ack()

        await queue.consume(on_message)

    with _connected(url, set_up):
        yield


@contextlib.contextmanager
def _connected(url: str, set_up: Setup) -> Iterator[None]:
    """Keep a connection in a thread of its own while the block runs."""
    is_ready = threading.Event()
    loop = asyncio.new_event_loop()
    is_over = asyncio.Event()

    async def run() -> None:
        async with await aio_pika.connect(url) as connection:
            await set_up(await connection.channel())
            is_ready.set()
            await is_over.wait()

    def work() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(run())

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert is_ready.wait(DEADLINE)
        yield
    finally:
        loop.call_soon_threadsafe(is_over.set)
        thread.join()


async def _publish(channel: AbstractChannel, sent: Sent, **more: Any) -> None:
    exchange = await channel.get_exchange(sent.exchange, ensure=False)
    message = aio_pika.Message(
        sent.body,
        headers=sent.headers,
        content_type=sent.content_type,
        correlation_id=sent.correlation_id,
        type=sent.type,
        **more,
    )
    await exchange.publish(message, sent.routing_key)
