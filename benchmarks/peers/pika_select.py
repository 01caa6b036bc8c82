# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""pika's SelectConnection without a framework: what can be reached in pure Python with pika.

Callbacks all the way; direct reply-to; several messages for each ack; requests are not confirmed,
the confirms of events are counted as they come.

| variant | what is different |
|---|---|
| confirmed | calls promise what those of tavrida do: requests and answers are mandatory and confirmed, answers come to an exclusive queue, and a request is acknowledged once its answer is confirmed |
"""  # noqa: E501 - a row of a table is a line

import functools
import json
import time

import pika

from benchmarks.peers._roles import (
    ACK_AFTER,
    ACK_EVERY,
    PREFETCH,
    ROUTING_KEY,
    UNCONFIRMED,
    WARM_UP,
    WINDOW,
    Seen,
    Tally,
    play,
    ready,
)

REPLIES = "amq.rabbitmq.reply-to"


def run(task, on_channel):
    """Open a connection and a channel, hand over the channel, run the loop."""
    connection = pika.SelectConnection(
        pika.URLParameters(task.url),
        on_open_callback=lambda opened: opened.channel(on_open_callback=on_channel),
    )
    connection.ioloop.start()


class Acks:
    """Acknowledges ACK_EVERY deliveries at once, or fewer after ACK_AFTER seconds."""

    def __init__(self, channel):
        self._channel = channel
        self._loop = channel.connection.ioloop
        self._count = self._last = 0
        self._timer = None

    def add(self, delivery_tag):
        self._last = delivery_tag
        self._count += 1
        if self._count == ACK_EVERY:
            self._send()
        elif self._timer is None:
            self._timer = self._loop.call_later(ACK_AFTER, self._send_late)

    def _send_late(self):
        self._timer = None
        if self._count:
            self._send()

    def _send(self):
        self._count = 0
        self._channel.basic_ack(self._last, multiple=True)


class Plain:
    """Publishes, and does at once what is to be done after that."""

    def __init__(self, channel):
        self._channel = channel

    def publish(self, routing_key, body, properties, then):
        self._channel.basic_publish("", routing_key, body, properties)
        then()


class Confirmed:
    """Publishes, and does what is to be done after that when it is confirmed."""

    def __init__(self, channel):
        self._channel = channel
        self._last = 0
        self._unconfirmed = {}
        channel.confirm_delivery(self._on_confirm)

    def publish(self, routing_key, body, properties, then):
        self._channel.basic_publish("", routing_key, body, properties, mandatory=True)
        self._last += 1
        self._unconfirmed[self._last] = then

    def _on_confirm(self, frame):
        confirm = frame.method
        if confirm.NAME != "Basic.Ack":
            raise RuntimeError("a message was refused")
        first = next(iter(self._unconfirmed)) if confirm.multiple else confirm.delivery_tag
        for tag in range(first, confirm.delivery_tag + 1):
            self._unconfirmed.pop(tag)()


def sender(task, channel):
    return (Confirmed if task.variant == "confirmed" else Plain)(channel)


def serve(task):
    def on_channel(channel):
        acks = Acks(channel)
        answers = sender(task, channel)

        def on_call(channel, method, properties, body):
            answer = {"param": json.loads(body)["param"]}
            answers.publish(
                properties.reply_to,
                json.dumps(answer).encode(),
                pika.BasicProperties(correlation_id=properties.correlation_id),
                functools.partial(acks.add, method.delivery_tag),
            )

        channel.queue_declare(task.name, auto_delete=True)
        channel.basic_qos(prefetch_count=PREFETCH)
        channel.basic_consume(task.name, on_call, callback=lambda _: ready())

    run(task, on_channel)


class Caller:
    """Makes the calls of a task, so many in flight; each answer makes room for the next one."""

    def __init__(self, task, window):
        self._task, self._window = task, window
        self._tally = Tally(task)
        self._flying = {}
        self._sent = self._answered = 0

    def on_channel(self, channel):
        self._channel = channel
        self._requests = sender(self._task, channel)
        if self._task.variant == "confirmed":
            channel.queue_declare("", exclusive=True, callback=self._on_queue)
        else:
            self._consume(REPLIES)

    def _on_queue(self, frame):
        self._consume(frame.method.queue)

    def _consume(self, queue):
        self._replies = queue
        self._channel.basic_consume(
            queue, self._on_answer, auto_ack=True, callback=lambda _: self._fill(WARM_UP)
        )

    def _fill(self, end):
        while self._sent < end and len(self._flying) < self._window:
            number, self._sent = self._sent, self._sent + 1
            param = self._task.param(number)
            self._flying[str(number)] = (number, time.perf_counter())
            self._requests.publish(
                self._task.name,
                json.dumps({"param": param}).encode(),
                pika.BasicProperties(reply_to=self._replies, correlation_id=str(number)),
                lambda: None,
            )

    def _on_answer(self, channel, method, properties, body):
        number, began = self._flying.pop(properties.correlation_id)
        answer = json.loads(body)
        took = time.perf_counter() - began
        self._tally.check(number, answer)
        self._answered += 1
        if number >= WARM_UP and self._window == 1:
            self._tally.took.append(took)
        if self._answered == WARM_UP:
            self._tally.begin()
        end = WARM_UP + self._task.count
        if self._answered == end:
            self._tally.end()
            channel.connection.ioloop.stop()
        else:
            self._fill(WARM_UP if self._answered < WARM_UP else end)


def consume(task):
    seen = Seen(task)

    def on_channel(channel):
        acks = Acks(channel)

        def on_event(channel, method, properties, body):
            seen.handle(json.loads(body))
            acks.add(method.delivery_tag)

        channel.exchange_declare(task.exchange, "topic", durable=True)
        channel.queue_declare(task.queue, durable=True)
        channel.queue_bind(task.queue, task.exchange, "order.*")
        channel.basic_qos(prefetch_count=PREFETCH)
        channel.basic_consume(task.queue, on_event, callback=lambda _: ready())

    run(task, on_channel)


class Publishing:
    """Publishes the events of a task, UNCONFIRMED at a time."""

    def __init__(self, task):
        self._task = task
        self._tally = Tally(task)
        self._unconfirmed = set()
        self._sent = 0
        self._lowest = 1

    def on_channel(self, channel):
        self._channel = channel
        channel.confirm_delivery(self._on_confirm, callback=self._begin)

    def _begin(self, frame):
        self._tally.begin()
        self._fill()

    def _fill(self):
        while self._sent < self._task.count and len(self._unconfirmed) < UNCONFIRMED:
            body = json.dumps(self._task.event(self._sent)).encode()
            properties = pika.BasicProperties(delivery_mode=2, content_type="application/json")
            self._channel.basic_publish(self._task.exchange, ROUTING_KEY, body, properties)
            self._sent += 1
            self._unconfirmed.add(self._sent)

    def _on_confirm(self, frame):
        confirm = frame.method
        if confirm.NAME != "Basic.Ack":
            self._tally.wrong += 1
        if confirm.multiple:
            self._unconfirmed.difference_update(range(self._lowest, confirm.delivery_tag + 1))
            self._lowest = confirm.delivery_tag + 1
        else:
            self._unconfirmed.discard(confirm.delivery_tag)
        self._fill()
        if not self._unconfirmed:
            self._tally.end()
            self._channel.connection.ioloop.stop()


if __name__ == "__main__":
    play(
        serve=serve,
        call=lambda task: run(task, Caller(task, 1).on_channel),
        calls=lambda task: run(task, Caller(task, WINDOW).on_channel),
        consume=consume,
        publish=lambda task: run(task, Publishing(task).on_channel),
    )
