# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""A broker that refuses messages for a while (basic.nack): they are sent again until it takes them.

RabbitMQ does so when a node of a cluster is down, and when a queue is full whose policy says
``reject-publish``. The tests use the latter, for which one node is enough.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from tavrida.client import RPCClient
from tavrida.config import ConnectionConfig
from tavrida.discovery import LocalDiscovery
from tavrida.exceptions import PipelineFailed, PublishTimeout
from tavrida.plugins.transports.amqp import transport as amqp
from tests.waiting import eventually


@pytest.fixture
def channel(amqp_url: str) -> Iterator[BlockingChannel]:
    """A plain pika channel."""
    with pika.BlockingConnection(pika.URLParameters(amqp_url)) as connection:
        yield connection.channel()


@contextmanager
def _client(url: str, publish_timeout: float) -> Iterator[RPCClient]:
    discovery = LocalDiscovery()
    discovery.register_remote_service("svc", "things")
    config = ConnectionConfig(url=(url,), publish_timeout=publish_timeout)
    with RPCClient(config, discovery=discovery, source="test") as client:
        yield client


@pytest.fixture(autouse=True)
def _queues(channel: BlockingChannel) -> None:
    """One that takes a message at a time, and one that takes any number."""
    channel.exchange_declare("things", "topic", durable=True)
    limits = {"x-max-length": 1, "x-overflow": "reject-publish"}
    channel.queue_declare("small", durable=True, arguments=limits)
    channel.queue_bind("small", "things", "svc.small")
    channel.queue_declare("large", durable=True)
    channel.queue_bind("large", "things", "svc.large")


def test_a_refused_message_is_sent_again_until_the_broker_takes_it(
    amqp_url: str, channel: BlockingChannel
) -> None:
    """Once each, and what goes elsewhere meanwhile is neither held up nor sent twice."""
    with _client(amqp_url, publish_timeout=20.0) as client, client.pipeline():
        for n in range(3):
            client.svc.small(n=n).cast()
        client.svc.large().cast()
        eventually(lambda: _depth(channel, "large") == 1)
        taken: list[bytes] = []

        def is_taken() -> bool:
            _, _, body = channel.basic_get("small", auto_ack=True)
            taken.extend([body] if body is not None else [])
            return len(taken) == 3

        eventually(is_taken)
    assert [0, 1, 2] == sorted(json.loads(body)["payload"]["n"] for body in taken)
    assert (0, 1) == (_depth(channel, "small"), _depth(channel, "large"))


def test_a_message_that_is_refused_for_too_long_is_a_timeout_that_says_so(
    amqp_url: str, channel: BlockingChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its deadline, after it was refused more than once; nothing of it stays behind."""
    monkeypatch.setattr(amqp, "REFUSAL_PAUSE", 0.05)
    with _client(amqp_url, publish_timeout=1.0) as client:
        client.svc.small().cast()
        with pytest.raises(PublishTimeout, match=r"refused it each time \(basic.nack\)"):
            client.svc.small().cast()
        with pytest.raises(PipelineFailed):
            _cast_to_both(client)
        channel.queue_purge("small")
        client.svc.small().cast()
    assert (1, 1) == (_depth(channel, "small"), _depth(channel, "large"))


def _cast_to_both(client: RPCClient) -> None:
    with client.pipeline():
        client.svc.small().cast()
        client.svc.large().cast()


def _depth(channel: BlockingChannel, queue: str) -> int:
    return int(channel.queue_declare(queue, passive=True).method.message_count)
