# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The test vectors of docs/wire-format.md: tavrida reads and writes what they say."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tavrida import envelope, messages
from tavrida.entry_point import EntryPoint
from tavrida.envelope import Codec
from tavrida.exceptions import MalformedMessage
from tavrida.messages import IncomingMessage, Message
from tavrida.plugins.serializers.json import JSONSerializer
from tavrida.plugins.serializers.msgpack import MsgpackSerializer
from tests.test_envelope import Received

FOLDER = Path(__file__).parent / "vectors"
VECTORS = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(FOLDER.glob("*.json"))}

JSON, MSGPACK = JSONSerializer(), MsgpackSerializer()
CODECS: dict[str, Codec] = {codec.content_type: codec for codec in (JSON, MSGPACK)}
SENT: dict[str, type[Message]] = {
    cls.message_type: cls
    for cls in (messages.Request, messages.Response, messages.Error, messages.Notification)
}

#: What a reader looks at; it ignores the other properties.
READ = ("content_type", "headers", "correlation_id", "reply_to", "message_id", "type", "app_id")


def having(part: str) -> list[str]:
    """The names of the vectors with that part."""
    return [name for name, each in VECTORS.items() if part in each]


def body_of(vector: dict[str, Any]) -> bytes:
    body = vector["body"]
    return base64.b64decode(body["base64"]) if "base64" in body else body["text"].encode()


def decode(vector: dict[str, Any]) -> IncomingMessage:
    properties = vector["properties"]
    return envelope.decode(
        Received(**{"headers": None, **{n: properties[n] for n in READ if n in properties}}),
        body_of(vector),
        vector["routing_key"],
        CODECS,
        default=JSON,
        untyped=messages.RESPONSE if vector.get("queue") == "reply" else messages.REQUEST,
    )


def as_vector(message: IncomingMessage) -> dict[str, Any]:
    """The message in the words of the vectors."""
    return {
        "kind": message.message_type,
        "payload": message.payload,
        "context": message.context,
        "correlation_id": message.correlation_id,
        "request_id": message.request_id,
        "message_id": message.message_id,
        "source": None if message.source is None else str(message.source),
        "destination": None if message.destination is None else str(message.destination),
        "reply_to": message.reply_to,
        "deadline_ms": None if message.deadline is None else round(1000 * message.deadline),
        "headers": message.extra_headers,
        "content_type": message.content_type,
        "enveloped": message.is_enveloped,
    }


@pytest.mark.parametrize("name", having("message"))
def test_a_vector_is_read_as_its_message(name: str) -> None:
    """Every field of it, those that are empty too."""
    vector = VECTORS[name]
    assert vector["message"] == as_vector(decode(vector))


@pytest.mark.parametrize("name", having("malformed"))
def test_a_malformed_vector_is_refused_with_its_reason(name: str) -> None:
    """The sentence begins as the vector says."""
    vector = VECTORS[name]
    with pytest.raises(MalformedMessage, match="^" + re.escape(vector["malformed"])):
        decode(vector)


@pytest.mark.parametrize("name", [n for n, v in VECTORS.items() if "written" in v["direction"]])
def test_a_message_is_written_as_its_vector(name: str) -> None:
    """Byte for byte; only timestamp tells the time, and delivery_mode is fixed."""
    vector = VECTORS[name]
    told = vector["message"]
    payload = told["payload"]
    message = SENT[told["kind"]](
        payload,
        # What comes from the payload is the same object there, as in any message that is sent.
        {k: payload[k] if payload.get(k) == v else v for k, v in told["context"].items()},
        told["headers"],
        told["correlation_id"],
        told["request_id"],
        told["message_id"],
        told["source"] and EntryPoint.parse_source(told["source"]),
        told["destination"] and EntryPoint.parse_source(told["destination"]),
        told["reply_to"],
        None if told["deadline_ms"] is None else told["deadline_ms"] / 1000,
    )
    codec = CODECS[told["content_type"]]
    properties, body = envelope.encode(message, codec, enveloped=told["enveloped"])
    assert body_of(vector) == body
    written = {part: value for part in READ if (value := getattr(properties, part)) != ""}
    assert {n: v for n, v in vector["properties"].items() if n != "delivery_mode"} == written
    assert properties.timestamp > 0
    assert properties.expiration is None


@pytest.mark.parametrize("kind", messages.KINDS)
@pytest.mark.parametrize("content_type", CODECS)
def test_there_is_a_vector_for_each_kind_and_serializer(kind: str, content_type: str) -> None:
    """An author of another client finds an example of everything."""
    assert any(
        (kind, content_type) == (each["message"]["kind"], each["message"]["content_type"])
        for each in VECTORS.values()
        if "written" in each["direction"]
    )


def test_every_vector_says_what_it_shows() -> None:
    """In one sentence, and is either a message or malformed."""
    for name, vector in VECTORS.items():
        assert vector["shows"].endswith("."), name
        assert ("message" in vector) != ("malformed" in vector), name
