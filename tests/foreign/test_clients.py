# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Clients of kombu, aio-pika and Node's amqplib call a service, hear it, and serve it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from tavrida import discovery, exceptions
from tavrida.client import RPCClient
from tavrida.config import ConnectionConfig
from tests.foreign import peer as foreign
from tests.foreign.conftest import EXCHANGE, QUEUE, Shop
from tests.foreign.peer import Peer, Sent
from tests.waiting import DEADLINE

REPLIES = pytest.mark.parametrize("is_direct", [False, True], ids=["queue", "direct"])

ADD = Sent(EXCHANGE, "shop.add", b'{"a": 1, "b": 2}', "application/json", "17")


@REPLIES
def test_the_classic_pattern_is_answered(
    shop: type[Shop], peer: Peer, amqp_url: str, is_direct: bool
) -> None:
    """Routing key, reply_to, correlation id and plain JSON; the answer is plain JSON."""
    answer = peer.ask(amqp_url, ADD, is_direct=is_direct)
    assert {"sum": 3} == json.loads(answer.body)
    assert ("response", "application/json", "17") == (
        answer.type,
        answer.content_type,
        answer.correlation_id,
    )


def test_a_question_in_messagepack_is_answered_in_messagepack(
    shop: type[Shop], peer: Peer, amqp_url: str
) -> None:
    """By whichever name the client calls it."""
    for name in ("msgpack", "x-msgpack", "vnd.msgpack"):
        body = msgspec.msgpack.encode({"a": 1, "b": 2})
        sent = replace(ADD, body=body, content_type=f"application/{name}")
        answer = peer.ask(amqp_url, sent, is_direct=True)
        assert {"sum": 3} == msgspec.msgpack.decode(answer.body)
        assert "application/msgpack" == answer.content_type


#: What clients leave out or add, and what they are answered.
TOLERATED: list[tuple[Sent, dict[str, Any]]] = [
    (Sent(EXCHANGE, "shop.ping"), {"text": "größe"}),
    (Sent(EXCHANGE, "shop.ping", b"{}", headers={"tenant": "a", "n": 5}), {"text": "größe"}),
    (replace(ADD, correlation_id=None), {"sum": 3}),
    (replace(ADD, content_type=None, type="request"), {"sum": 3}),
    (replace(ADD, content_type="Application/JSON; charset=utf-8"), {"sum": 3}),
]


def test_a_routing_key_and_a_reply_to_are_enough(
    shop: type[Shop], peer: Peer, amqp_url: str
) -> None:
    """What a client leaves out is filled in."""
    for sent, payload in TOLERATED:
        answer = peer.ask(amqp_url, sent, is_direct=False)
        assert (payload, "response") == (json.loads(answer.body), answer.type)


#: What goes wrong, and class and part of the text of the error that answers it.
WRONG: list[tuple[Sent, str, str]] = [
    (replace(ADD, routing_key="shop.fails", body=b""), "NotFound", "no such article"),
    (replace(ADD, routing_key="shop.ad"), "HandlerNotFound", "did you mean 'shop.add'?"),
    (replace(ADD, body=b'{"a": "x", "b": 2}'), "InvalidPayload", "at `$.a`"),
    (replace(ADD, body=b'{"a": 1'), "MalformedMessage", "cannot be read as application/json"),
    (replace(ADD, body=b"[1, 2]"), "MalformedMessage", "an object with names, not list"),
    (replace(ADD, content_type="text/xml"), "MalformedMessage", "'text/xml' is not accepted"),
    (replace(ADD, type="event"), "MalformedMessage", "type 'event' is none of request"),
    (replace(ADD, headers={"deadline": "x"}), "MalformedMessage", "header 'deadline'"),
]


def test_what_goes_wrong_is_answered_with_an_error(
    shop: type[Shop], peer: Peer, amqp_url: str
) -> None:
    """Type error, the same correlation id, and a payload that says what to mend."""
    for sent, error, text in WRONG:
        answer = peer.ask(amqp_url, sent, is_direct=True)
        told = json.loads(answer.body)
        assert ("error", "17", error) == (answer.type, answer.correlation_id, told["class"])
        assert text in told["message"]
        assert isinstance(told["code"], int)


def test_a_cast_needs_a_routing_key_and_a_body(shop: type[Shop], peer: Peer, amqp_url: str) -> None:
    """The handler gets the payload, and the client's headers as they were."""
    sent = Sent(EXCHANGE, "shop.note", b'{"text": "hi"}', headers={"tenant": "a", "yes": True})
    peer.tell(amqp_url, sent)
    assert ("hi", {"tenant": "a", "yes": True}) == shop.seen.get(timeout=DEADLINE)


def test_a_cast_that_cannot_be_read_is_a_dead_letter_with_the_reason(
    shop: type[Shop], peer: Peer, amqp_url: str, channel: BlockingChannel
) -> None:
    """Nobody waits for an answer; the bytes are kept as they came."""
    peer.tell(amqp_url, Sent(EXCHANGE, "shop.note", b"<note/>"))
    letters = channel.consume(f"{QUEUE}.dead", inactivity_timeout=DEADLINE)
    _, properties, body = next(letters)
    assert b"<note/>" == body
    assert properties is not None
    assert "cannot be read as application/json" in (properties.headers or {})["dead_reason"]


def test_a_foreign_notification_reaches_its_subscribers(
    shop: type[Shop], peer: Peer, amqp_url: str
) -> None:
    """The routing key is the topic."""
    sent = Sent("news_exchange", "news.printed", b'{"title": "today"}', type="notification")
    peer.tell(amqp_url, sent)
    assert "today" == shop.seen.get(timeout=DEADLINE)


def test_a_foreign_consumer_hears_a_notification_with_a_json_parser(
    peer: Peer, amqp_url: str, config: ConnectionConfig
) -> None:
    """Any queue that is bound to the exchange gets it."""
    known = discovery.LocalDiscovery()
    known.register_local_publisher("shop", "shop_news")
    with (
        peer.listen(amqp_url, "shop_news", "shop.*") as bodies,
        RPCClient(config, discovery=known, source="shop.sold") as client,
    ):
        client.publish(article="größer", pieces=[1, 2.5, None])
        body = json.loads(bodies.get(timeout=DEADLINE))
    assert {"article": "größer", "pieces": [1, 2.5, None]} == body["payload"]


def test_a_foreign_service_answers_calls(
    peer: Peer, amqp_url: str, config: ConnectionConfig
) -> None:
    """It copies correlation and request id; a type of error raises, with or without a text."""
    known = discovery.LocalDiscovery()
    known.register_remote_service("mirror", foreign.EXCHANGE)
    with (
        peer.serve(amqp_url),
        RPCClient(config, discovery=known, service="mirror", source="test") as mirror,
    ):
        asked = [mirror.show(n=n).future(timeout=DEADLINE) for n in range(20)]
        assert [{"n": n} for n in range(20)] == [each.result()["echo"] for each in asked]
        with pytest.raises(exceptions.RemoteError, match="come again") as caught:
            mirror.fails().call(timeout=DEADLINE)
        assert ("OutOfStock", 77) == (caught.value.error_class, caught.value.code)
        with pytest.raises(exceptions.RemoteError):
            mirror.shrugs().call(timeout=DEADLINE)
