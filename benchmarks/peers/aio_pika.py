# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""aio-pika on uvloop: its JsonRPC for calls, channel, queue and exchange for events."""

import asyncio
import json

import aio_pika
from aio_pika.patterns import JsonRPC

from benchmarks.peers._roles import (
    PREFETCH,
    ROUTING_KEY,
    Seen,
    async_one_by_one,
    async_publish,
    async_tasks,
    play,
    ready,
    run_on_uvloop,
)


async def serve(task):
    connection = await aio_pika.connect_robust(task.url)
    channel = await connection.channel(publisher_confirms=False)
    await channel.set_qos(prefetch_count=PREFETCH)

    async def echo(*, param):
        return {"param": param}

    rpc = await JsonRPC.create(channel)
    await rpc.register(task.name, echo, auto_delete=True)
    ready()
    await asyncio.Future()


async def call(task, way):
    connection = await aio_pika.connect_robust(task.url)
    channel = await connection.channel(publisher_confirms=False)
    rpc = await JsonRPC.create(channel)
    await way(task, lambda param: rpc.call(task.name, {"param": param}))
    await connection.close()


async def consume(task):
    seen = Seen(task)
    connection = await aio_pika.connect_robust(task.url)
    channel = await connection.channel()
    await channel.set_qos(prefetch_count=PREFETCH)
    exchange = await channel.declare_exchange(task.exchange, "topic", durable=True)
    queue = await channel.declare_queue(task.queue, durable=True)
    await queue.bind(exchange, "order.*")

    async def on_event(message):
        seen.handle(json.loads(message.body))
        await message.ack()

    await queue.consume(on_event)
    ready()
    await asyncio.Future()


async def publish(task):
    connection = await aio_pika.connect_robust(task.url)
    channel = await connection.channel(publisher_confirms=True)
    exchange = await channel.declare_exchange(task.exchange, "topic", durable=True)

    async def send(event):
        message = aio_pika.Message(
            json.dumps(event).encode(),
            content_type="application/json",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        )
        await exchange.publish(message, ROUTING_KEY)

    await async_publish(task, send)
    await connection.close()


if __name__ == "__main__":
    play(
        serve=lambda task: run_on_uvloop(serve(task)),
        call=lambda task: run_on_uvloop(call(task, async_one_by_one)),
        calls=lambda task: run_on_uvloop(call(task, async_tasks)),
        consume=lambda task: run_on_uvloop(consume(task)),
        publish=lambda task: run_on_uvloop(publish(task)),
    )
