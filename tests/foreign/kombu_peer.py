# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The client of kombu, which Celery uses."""

from __future__ import annotations

import contextlib
import importlib
import json
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

from tests.foreign.peer import DIRECT, EXCHANGE, QUEUE, Answer, Sent, answer_of
from tests.waiting import DEADLINE

# It has no types.
kombu: Any = importlib.import_module("kombu")


def tell(url: str, sent: Sent) -> None:
    with kombu.Connection(url) as connection:
        _publish(connection.channel(), sent)


def ask(url: str, sent: Sent, *, is_direct: bool) -> Answer:
    answers: list[Answer] = []

    def on_message(message: Any) -> None:
        answers.append(
            Answer(
                bytes(message.body, "utf-8") if isinstance(message.body, str) else message.body,
                message.properties["type"],
                message.content_type,
                message.properties.get("correlation_id"),
            )
        )

    with kombu.Connection(url) as connection:
        channel = connection.channel()
        if is_direct:
            queue = kombu.Queue(DIRECT, channel=channel, no_declare=True)
        else:
            queue = kombu.Queue("", channel=channel, exclusive=True)
        with kombu.Consumer(channel, queue, on_message=on_message, no_ack=True) as consumer:
            _publish(channel, sent, reply_to=consumer.queues[0].name)
            while not answers:
                connection.drain_events(timeout=DEADLINE)
    return answers[0]


@contextlib.contextmanager
def listen(url: str, exchange: str, key: str) -> Iterator[SimpleQueue[bytes]]:
    bodies: SimpleQueue[bytes] = SimpleQueue()
    queue = kombu.Queue("", kombu.Exchange(exchange, "topic"), key, exclusive=True)

    def on_message(message: Any) -> None:
        bodies.put(message.body.encode() if isinstance(message.body, str) else message.body)
        message.ack()

    with _consuming(url, queue, lambda channel: on_message):
        yield bodies


@contextlib.contextmanager
def serve(url: str) -> Iterator[None]:
    def answering(channel: Any) -> Callable[[Any], None]:
        producer = kombu.Producer(channel)

        def on_message(message: Any) -> None:
            method = message.delivery_info["routing_key"].partition(".")[2]
            kind, payload = answer_of(json.loads(message.body), method)
            producer.publish(
                payload,
                serializer="json",
                exchange="",
                routing_key=message.properties["reply_to"],
                correlation_id=message.properties["correlation_id"],
                headers={k: v for k, v in message.headers.items() if k == "request_id"},
                type=kind,
            )
            message.ack()

        return on_message

    queue = kombu.Queue(QUEUE, kombu.Exchange(EXCHANGE, "topic"), "mirror.*")
    with _consuming(url, queue, answering):
        yield


@contextlib.contextmanager
def _consuming(
    url: str, queue: Any, handler: Callable[[Any], Callable[[Any], None]]
) -> Iterator[None]:
    """Consume in a thread while the block runs."""
    is_ready, is_over = threading.Event(), threading.Event()

    def run() -> None:
        with kombu.Connection(url) as connection:
            channel = connection.channel()
            with kombu.Consumer(channel, queue, on_message=handler(channel)):
                is_ready.set()
                while not is_over.is_set():
                    with contextlib.suppress(TimeoutError):
                        connection.drain_events(timeout=0.05)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert is_ready.wait(DEADLINE)
        yield
    finally:
        is_over.set()
        thread.join()


def _publish(channel: Any, sent: Sent, **more: Any) -> None:
    told = {"correlation_id": sent.correlation_id, "type": sent.type, **more}
    # kombu's Producer adds a content type of its own where there is none; its channel does not.
    message = channel.prepare_message(
        sent.body,
        content_type=sent.content_type,
        headers=sent.headers,
        properties={name: value for name, value in told.items() if value is not None},
    )
    channel.basic_publish(message, exchange=sent.exchange, routing_key=sent.routing_key)
