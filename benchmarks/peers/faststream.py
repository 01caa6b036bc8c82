# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""FastStream on uvloop, without its log of each message (``logger=None``).

``broker.request()`` holds a lock for the whole call, and so has one call in flight. With several,
the program does what FastStream's docs call reply-to: a subscriber for answers, and a table of
futures by correlation id.
"""

import asyncio
import uuid

from faststream import Context
from faststream.rabbit import Channel, ExchangeType, RabbitBroker, RabbitExchange, RabbitQueue

from benchmarks.peers._roles import (
    PREFETCH,
    ROUTING_KEY,
    TIMEOUT,
    Seen,
    async_one_by_one,
    async_publish,
    async_tasks,
    play,
    ready,
    run_on_uvloop,
)


def broker_of(task, *, confirms):
    channel = Channel(prefetch_count=PREFETCH, publisher_confirms=confirms)
    return RabbitBroker(task.url, logger=None, app_id=None, default_channel=channel)


def exchange_of(task):
    return RabbitExchange(task.exchange, type=ExchangeType.TOPIC, durable=True)


async def serve(task):
    broker = broker_of(task, confirms=False)

    @broker.subscriber(RabbitQueue(task.name, auto_delete=True))
    async def echo(body: dict) -> dict:
        return {"param": body["param"]}

    async with broker:
        await broker.start()
        ready()
        await asyncio.Future()


async def call(task):
    broker = broker_of(task, confirms=False)
    async with broker:
        await broker.start()

        async def one(param):
            answer = await broker.request({"param": param}, task.name, timeout=TIMEOUT)
            return await answer.decode()

        await async_one_by_one(task, one)


async def calls(task):
    broker = broker_of(task, confirms=False)
    replies = f"{task.name}.replies"
    waiting = {}

    @broker.subscriber(RabbitQueue(replies, exclusive=True, auto_delete=True), no_reply=True)
    async def on_answer(body: dict, number: str = Context("message.correlation_id")):
        waiting.pop(number).set_result(body)

    async with broker:
        await broker.start()
        loop = asyncio.get_running_loop()

        async def one(param):
            number = str(uuid.uuid4())
            waiting[number] = loop.create_future()
            await broker.publish(
                {"param": param}, task.name, reply_to=replies, correlation_id=number
            )
            return await waiting[number]

        await async_tasks(task, one)


async def consume(task):
    seen = Seen(task)
    broker = broker_of(task, confirms=True)

    @broker.subscriber(
        RabbitQueue(task.queue, durable=True, routing_key="order.*"), exchange_of(task)
    )
    async def on_event(body: dict):
        seen.handle(body)

    async with broker:
        await broker.start()
        ready()
        await asyncio.Future()


async def publish(task):
    broker = broker_of(task, confirms=True)
    exchange = exchange_of(task)
    async with broker:
        await broker.start()
        await broker.declare_exchange(exchange)

        async def send(event):
            await broker.publish(event, routing_key=ROUTING_KEY, exchange=exchange, persist=True)

        await async_publish(task, send)


if __name__ == "__main__":
    play(
        serve=lambda task: run_on_uvloop(serve(task)),
        call=lambda task: run_on_uvloop(call(task)),
        calls=lambda task: run_on_uvloop(calls(task)),
        consume=lambda task: run_on_uvloop(consume(task)),
        publish=lambda task: run_on_uvloop(publish(task)),
    )
