# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""kombu over py-amqp without a framework: its Consumer and Producer.

Direct reply-to; several messages for each ack; requests are not confirmed. kombu's own way to
confirm waits for each event (about five times slower), so that py-amqp's confirms are counted here.
"""

import uuid

from kombu import Connection, Consumer, Exchange, Producer, Queue

from benchmarks.peers._roles import (
    ACK_AFTER,
    ACK_EVERY,
    PREFETCH,
    ROUTING_KEY,
    UNCONFIRMED,
    Seen,
    Tally,
    in_window,
    one_by_one,
    play,
    ready,
)

REPLIES = "amq.rabbitmq.reply-to"


class Acks:
    """Acknowledges ACK_EVERY deliveries at once, or fewer when nothing comes in."""

    def __init__(self):
        self.last, self._count = None, 0

    def add(self, message):
        self.last = message
        self._count += 1
        if self._count == ACK_EVERY:
            self.send()

    def send(self):
        if self.last is not None:
            self.last.ack(multiple=True)
        self.last, self._count = None, 0


def take(connection, queue, handle):
    """Hand over the messages of a queue, for ever."""
    channel, acks = connection.default_channel, Acks()
    channel.basic_qos(0, PREFETCH, False)

    def on_message(message):
        handle(message)
        acks.add(message)

    Consumer(channel, [queue], on_message=on_message).consume()
    ready()
    while True:
        try:
            connection.drain_events(timeout=None if acks.last is None else ACK_AFTER)
        except TimeoutError:
            acks.send()


def serve(task):
    # Answers go out on a connection of their own: a publish reads from its connection first, and
    # would run handlers inside handlers.
    with Connection(task.url) as connection, Connection(task.url) as out:
        producer = Producer(out.default_channel, serializer="json")

        def on_call(message):
            producer.publish(
                {"param": message.payload["param"]},
                routing_key=message.properties["reply_to"],
                correlation_id=message.properties["correlation_id"],
                delivery_mode=1,
            )

        take(connection, Queue(task.name, durable=False, auto_delete=True), on_call)


class Caller:
    """Makes calls; any number in flight."""

    def __init__(self, task):
        self._name = task.name
        self._connection = Connection(task.url)
        self._answers = {}
        channel = self._connection.default_channel
        replies = Queue(REPLIES, no_declare=True)
        Consumer(channel, [replies], no_ack=True, on_message=self._on_answer).consume()
        self._producer = Producer(channel, serializer="json")

    def _on_answer(self, message):
        self._answers[message.properties["correlation_id"]] = message.payload

    def send(self, param):
        number = str(uuid.uuid4())
        self._producer.publish(
            {"param": param},
            routing_key=self._name,
            reply_to=REPLIES,
            correlation_id=number,
            delivery_mode=1,
        )
        return number

    def answer_of(self, number):
        while number not in self._answers:
            self._connection.drain_events()
        return self._answers.pop(number)

    def call(self, param):
        return self.answer_of(self.send(param))


def calls(task):
    caller = Caller(task)
    in_window(task, caller.send, caller.answer_of)


def exchange_of(task):
    return Exchange(task.exchange, "topic", durable=True)


def consume(task):
    seen = Seen(task)
    with Connection(task.url) as connection:
        queue = Queue(task.queue, exchange_of(task), "order.*", durable=True)
        take(connection, queue, lambda message: seen.handle(message.payload))


def publish(task):
    tally, unconfirmed, lowest = Tally(task), set(), 1

    def on_confirm(delivery_tag, multiple):
        nonlocal lowest
        if multiple:
            unconfirmed.difference_update(range(lowest, delivery_tag + 1))
            lowest = delivery_tag + 1
        else:
            unconfirmed.discard(delivery_tag)

    with Connection(task.url) as connection:
        channel = connection.default_channel
        channel.confirm_select()
        channel.events["basic_ack"].add(on_confirm)
        producer = Producer(channel, exchange_of(task), serializer="json", auto_declare=False)
        tally.begin()
        for number in range(task.count):
            while len(unconfirmed) >= UNCONFIRMED:
                connection.drain_events()
            unconfirmed.add(number + 1)
            producer.publish(task.event(number), routing_key=ROUTING_KEY, delivery_mode=2)
        while unconfirmed:
            connection.drain_events()
        tally.end()


if __name__ == "__main__":
    play(
        serve=serve,
        call=lambda task: one_by_one(task, Caller(task).call),
        calls=calls,
        consume=consume,
        publish=publish,
    )
