# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""pika's BlockingConnection without a framework: direct reply-to, an ack for each message.

Its confirms are waited for one at a time: it has no other way.
"""

import json
import uuid

import pika

from benchmarks.peers._roles import (
    PREFETCH,
    ROUTING_KEY,
    Seen,
    Tally,
    in_window,
    one_by_one,
    play,
    ready,
)

REPLIES = "amq.rabbitmq.reply-to"


def connect(task):
    return pika.BlockingConnection(pika.URLParameters(task.url))


def serve(task):
    channel = connect(task).channel()
    channel.queue_declare(task.name, auto_delete=True)
    channel.basic_qos(prefetch_count=PREFETCH)

    def on_call(channel, method, properties, body):
        answer = {"param": json.loads(body)["param"]}
        channel.basic_publish(
            "",
            properties.reply_to,
            json.dumps(answer).encode(),
            pika.BasicProperties(correlation_id=properties.correlation_id),
        )
        channel.basic_ack(method.delivery_tag)

    channel.basic_consume(task.name, on_call)
    ready()
    channel.start_consuming()


class Caller:
    """Makes calls; any number in flight."""

    def __init__(self, task):
        self._name = task.name
        self._connection = connect(task)
        self._channel = self._connection.channel()
        self._answers = {}
        self._channel.basic_consume(REPLIES, self._on_answer, auto_ack=True)

    def _on_answer(self, channel, method, properties, body):
        self._answers[properties.correlation_id] = json.loads(body)

    def send(self, param):
        number = str(uuid.uuid4())
        self._channel.basic_publish(
            "",
            self._name,
            json.dumps({"param": param}).encode(),
            pika.BasicProperties(reply_to=REPLIES, correlation_id=number),
        )
        return number

    def answer_of(self, number):
        while number not in self._answers:
            self._connection.process_data_events(time_limit=None)
        return self._answers.pop(number)

    def call(self, param):
        return self.answer_of(self.send(param))


def calls(task):
    caller = Caller(task)
    in_window(task, caller.send, caller.answer_of)


def consume(task):
    seen = Seen(task)
    channel = connect(task).channel()
    channel.exchange_declare(task.exchange, "topic", durable=True)
    channel.queue_declare(task.queue, durable=True)
    channel.queue_bind(task.queue, task.exchange, "order.*")
    channel.basic_qos(prefetch_count=PREFETCH)

    def on_event(channel, method, properties, body):
        seen.handle(json.loads(body))
        channel.basic_ack(method.delivery_tag)

    channel.basic_consume(task.queue, on_event)
    ready()
    channel.start_consuming()


def publish(task):
    connection = connect(task)
    channel = connection.channel()
    channel.confirm_delivery()
    properties = pika.BasicProperties(delivery_mode=2, content_type="application/json")
    tally = Tally(task)
    tally.begin()
    for number in range(task.count):
        body = json.dumps(task.event(number)).encode()
        channel.basic_publish(task.exchange, ROUTING_KEY, body, properties, mandatory=True)
    tally.end()
    connection.close()


if __name__ == "__main__":
    play(
        serve=serve,
        call=lambda task: one_by_one(task, Caller(task).call),
        calls=calls,
        consume=consume,
        publish=publish,
    )
