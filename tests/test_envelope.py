# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The wire format, without a wire."""

from __future__ import annotations

import datetime as dt
import json
import math
import os
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tavrida import envelope, exceptions, messages
from tavrida.entry_point import EntryPoint
from tavrida.envelope import Codec, Properties
from tavrida.exceptions import MalformedMessage, MessageError
from tavrida.messages import IncomingMessage, IncomingRequest, Message
from tavrida.plugins.serializers.json import JSONSerializer
from tavrida.plugins.serializers.msgpack import MsgpackSerializer
from tests.properties import patient

JSON, MSGPACK = JSONSerializer(), MsgpackSerializer()
CODECS: dict[str, Codec] = {codec.content_type: codec for codec in (JSON, MSGPACK)}
BOTH = pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=["json", "msgpack"])

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
BODIES = st.dictionaries(TEXT, VALUES, max_size=4)
POINTS = st.builds(EntryPoint, st.from_regex(r"\A[a-z_0-9-]{1,9}\Z"), st.just("go"))
HEADERS = st.dictionaries(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(
        lambda name: name not in envelope.RESERVED
    ),
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | TEXT,
    max_size=3,
)

SENT = (messages.Request, messages.Response, messages.Error, messages.Notification)


@dataclass
class Received:
    """The properties of a delivery, as pika gives them."""

    content_type: str | None = None
    headers: Mapping[str, Any] | None = field(default_factory=dict)
    correlation_id: str | None = None
    reply_to: str | None = None
    message_id: str | None = None
    type: str | None = None
    app_id: str | None = None

    @classmethod
    def of(cls, sent: Properties) -> Received:
        return cls(
            sent.content_type,
            sent.headers,
            sent.correlation_id,
            sent.reply_to,
            sent.message_id,
            sent.type,
            sent.app_id,
        )


def decode(
    body: bytes = b"{}",
    routing_key: str = "test_hello.hello",
    headers: dict[str, Any] | None = None,
    **properties: Any,
) -> IncomingMessage:
    """Decode what a client with these properties sent."""
    received = Received(headers=headers or {}, **properties)
    return envelope.decode(received, body, routing_key, CODECS, default=JSON)


def request(payload: dict[str, Any] | None = None, **fields: Any) -> Message:
    """A request whose identifiers are all filled in."""
    values: dict[str, Any] = {
        "correlation_id": "c",
        "request_id": "r",
        "message_id": "m",
        "source": EntryPoint("cron"),
        "destination": EntryPoint("test_hello", "hello"),
    }
    return messages.Request(payload or {}, **{**values, **fields})


@BOTH
@patient
@given(
    cls=st.sampled_from(SENT),
    payload=BODIES,
    context=BODIES,
    headers=HEADERS,
    message_id=st.sampled_from(["the-one", "the-chain"]),
    points=st.tuples(POINTS, POINTS),
    reply_to=st.text(st.characters(codec="ascii"), max_size=255),
    deadline=st.none() | st.integers(1, 2**42),
)
def test_what_is_sent_arrives(
    codec: Codec,
    cls: type[Message],
    payload: dict[str, Any],
    context: dict[str, Any],
    headers: dict[str, Any],
    message_id: str,
    points: tuple[EntryPoint, EntryPoint],
    reply_to: str,
    deadline: int | None,
) -> None:
    """Every part of every kind of message survives the way."""
    message = cls(
        payload,
        context,
        headers,
        "the-chain",
        "the-pair",
        message_id,
        points[0],
        points[1],
        reply_to,
        None if deadline is None else deadline / 1000,
    )
    properties, body = envelope.encode(message, codec)
    arrived = envelope.decode(Received.of(properties), body, "elsewhere", CODECS, default=JSON)
    assert messages.INCOMING[message.message_type] is type(arrived)
    assert (payload, {**payload, **context}, headers) == (
        arrived.payload,
        arrived.context,
        arrived.extra_headers,
    )
    assert message.headers == arrived.headers
    assert (codec.content_type, True) == (arrived.content_type, arrived.is_enveloped)
    if deadline is None:
        assert arrived.deadline is None
    else:
        assert arrived.deadline == pytest.approx(deadline / 1000, abs=0.0011)


@patient
@given(st.binary(max_size=60), st.sampled_from(["", *CODECS]), st.sampled_from(messages.KINDS))
def test_any_bytes_are_read_or_refused_as_malformed(body: bytes, codec: str, kind: str) -> None:
    """No other error comes out: it would stop the consumer."""
    try:
        message = decode(body, content_type=codec, type=kind)
    except MalformedMessage:
        return
    assert all(isinstance(key, str) for key in message.payload)


@patient
@given(BODIES)
def test_plain_json_of_any_client_is_the_payload(payload: dict[str, Any]) -> None:
    """A standard client publishes a JSON object with routing key, reply_to and correlation id."""
    message = decode(json.dumps(payload).encode(), correlation_id="17", reply_to="amq.gen-x")
    assert isinstance(message, IncomingRequest)
    if payload.keys() != {"context", "payload"}:
        assert payload == message.payload
        assert not message.is_enveloped
    assert EntryPoint("test_hello", "hello") == message.destination
    assert ("17", "17", "amq.gen-x") == (
        message.correlation_id,
        message.request_id,
        message.reply_to,
    )
    assert message.source is None


@pytest.mark.parametrize(
    "body",
    [
        b'{"payload": {"a": 1}}',
        b'{"context": {}}',
        b'{"context": {}, "payload": {}, "x": 1}',
    ],
)
def test_body_that_only_looks_like_the_envelope_is_the_payload(body: bytes) -> None:
    """The envelope has both keys and no third."""
    message = decode(body)
    assert json.loads(body) == message.payload
    assert not message.is_enveloped


def test_empty_body_is_an_empty_payload() -> None:
    """A ping needs no JSON."""
    assert {} == decode(b"").payload
    assert not decode(b"").is_enveloped


def test_absent_properties_read_as_nothing() -> None:
    """Pika gives None for what a client left out."""
    message = envelope.decode(Received(headers=None), b"{}", "a.b", CODECS, default=JSON)
    assert ("", "", "", "") == (
        message.correlation_id,
        message.request_id,
        message.message_id,
        message.reply_to,
    )


@pytest.mark.parametrize("kind", ["request", "notification"])
def test_the_message_id_stands_for_an_absent_correlation_id(kind: str) -> None:
    """Not where somebody waits for an answer, who would take it for that of another call."""
    message = decode(type=kind, message_id="m", routing_key="a.b")
    assert ("m", "m", "m") == (message.correlation_id, message.request_id, message.message_id)
    message = decode(type=kind, message_id="m", routing_key="a.b", reply_to="q")
    assert ("", "", "m") == (message.correlation_id, message.request_id, message.message_id)


def test_notification_without_a_source_comes_from_its_routing_key() -> None:
    """Clients in other languages publish with the topic only."""
    message = decode(type="notification", routing_key="test_hello.hello")
    assert EntryPoint("test_hello", "hello") == message.source
    assert message.destination is None


def test_answer_without_source_and_destination_is_read() -> None:
    """Services in other languages copy the correlation id and nothing else."""
    message = decode(type="response", correlation_id="17", routing_key="amq.gen-x")
    assert (None, None, "17") == (message.source, message.destination, message.request_id)


@pytest.mark.parametrize(
    "content_type", ["application/json; charset=utf-8", "Application/JSON", "application/json;x=y"]
)
def test_content_type_is_compared_as_http_does(content_type: str) -> None:
    """Case and parameters are no part of a media type's name (RFC 9110, 8.3.1)."""
    assert {"a": 1} == decode(b'{"a":1}', content_type=content_type).payload


def test_app_id_that_is_no_entry_point_does_not_refuse_a_foreign_request() -> None:
    """AMQP's app_id is free text, and other clients use it so."""
    assert {"a": 1} == decode(b'{"a":1}', app_id="My Shop 1.0").payload


@pytest.mark.parametrize(
    ("properties", "reason"),
    [
        ({"body": b"{"}, "the body cannot be read as application/json: "),
        ({"body": b"\xff"}, "the body cannot be read as application/json: "),
        ({"body": b"\xef\xbb\xbf{}"}, "the body cannot be read as application/json: "),
        ({"body": b"[" * 100_000}, "the body cannot be read as application/json: "),
        ({"body": b'{"a":' + b"9" * 5000 + b"}"}, "cannot be read as application/json: "),
        (
            {"body": b"\xc1", "content_type": "application/msgpack"},
            "the body cannot be read as application/msgpack: ",
        ),
        (
            {"body": b"\x81\x80\xc0", "content_type": "application/msgpack"},
            "the body cannot be read as application/msgpack: ",
        ),
        (
            {"body": b"\x81\x01\xc0", "content_type": "application/msgpack"},
            "the body should be an object with names, not dict",
        ),
        ({"body": b"[1]"}, "the body should be an object with names, not list"),
        ({"body": b"null"}, "the body should be an object with names, not NoneType"),
        ({"body": b'"{}"'}, "the body should be an object with names, not str"),
        (
            {"body": b'{"context": 1, "payload": {}}'},
            "'context' in the body should be an object with names, not int",
        ),
        (
            {"body": b'{"context": {}, "payload": [1]}'},
            "'payload' in the body should be an object with names, not list",
        ),
        (
            {"body": b'{"context": null, "payload": {}}'},
            "'context' in the body should be an object with names, not NoneType",
        ),
        (
            {
                "body": msgspec.msgpack.encode({"context": {}, "payload": {1: 2}}),
                "content_type": "application/msgpack",
            },
            "'payload' in the body should be an object with names",
        ),
        ({"type": "event"}, "type 'event' is none of request, response, error, notification"),
        ({"type": "x" * 5000}, f"type '{'x' * 40}' is none of"),
        (
            {"content_type": "text/xml"},
            "content type 'text/xml' is not accepted here; accepted: application/json, appl",
        ),
        ({"routing_key": "test_hello"}, "destination: 'test_hello' names no method"),
        ({"routing_key": ""}, "destination: '' is no"),
        ({"routing_key": "a.b.c"}, "destination: 'a.b.c' is no entry point"),
        ({"headers": {"destination": "a.b.c"}}, "destination: 'a.b.c' is no entry point"),
        ({"headers": {"destination": 5}}, "header 'destination' is 5, not a string"),
        ({"headers": {"destination": None}}, "header 'destination' is None, not a string"),
        ({"headers": {"request_id": [1]}}, "header 'request_id' is [1], not a string"),
        ({"headers": {"deadline": "soon"}}, "header 'deadline' is 'soon', not a number"),
        ({"headers": {"deadline": 1.5}}, "header 'deadline' is 1.5, not a number of milliseconds"),
        ({"headers": {"deadline": True}}, "header 'deadline' is True, not a number"),
    ],
)
def test_what_is_not_the_wire_format_is_refused_with_the_reason(
    properties: dict[str, Any], reason: str
) -> None:
    """The sentence says what is wrong, and no other error comes out."""
    with pytest.raises(MalformedMessage, match=re.escape(reason)) as caught:
        decode(**properties)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "headers",
    [
        {"tenant": "größe"},
        {"n": 2**63 - 1, "m": -(2**63), "yes": True, "no": None},
        {"x" * 128: ""},
        {},
    ],
)
def test_plain_values_may_be_headers(headers: dict[str, Any]) -> None:
    """Strings, integers of 64 bits, booleans and None."""
    envelope.check_headers(headers)


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        *(({name: "x"}, f"header {name!r} cannot be set") for name in sorted(envelope.RESERVED)),
        ({"": "x"}, "header '' cannot be set: use a string of 1 to 128 bytes"),
        ({5: "x"}, "header 5 cannot be set"),
        ({None: "x"}, "header None cannot be set"),
        ({"x" * 129: "x"}, "cannot be set"),
        ({"ü" * 65: "x"}, "cannot be set"),
        ({"\udcff": "x"}, "cannot be set"),
        ({"n": 2**63}, "header 'n' cannot be 9223372036854775808"),
        ({"n": -(2**63) - 1}, "header 'n' cannot be -9223372036854775809"),
        ({"n": 1.5}, "header 'n' cannot be 1.5: use a string, an integer of 64 bits"),
        ({"n": b"x"}, "header 'n' cannot be b'x'"),
        ({"n": [1]}, "header 'n' cannot be [1]"),
        ({"n": {}}, "header 'n' cannot be {}"),
        ({"n": dt.datetime.now(dt.UTC)}, "header 'n' cannot be datetime"),
        ({"n": "\udcff"}, "header 'n' cannot be"),
    ],
)
def test_headers_that_not_every_client_can_read_are_refused(
    headers: dict[Any, Any], reason: str
) -> None:
    """The one who adds them hears of it, with the name of the header."""
    with pytest.raises(MessageError, match=re.escape(reason)):
        envelope.check_headers(headers)


@BOTH
@pytest.mark.parametrize("value", [object(), {1, object()}, "\udcff", [[object()]], lambda: 0])
def test_value_that_cannot_be_written_is_named_by_its_key(codec: Codec, value: object) -> None:
    """The sentence tells part, key, kind of message and serializer."""
    for part in ("payload", "context"):
        message = request(**{part: {"good": 1, "bad": value}})
        with pytest.raises(
            MessageError,
            match=rf"^{part} key 'bad' of the request cannot be written as {codec.content_type}: ",
        ):
            envelope.encode(message, codec)


@BOTH
def test_value_that_contains_itself_is_named_by_its_key(codec: Codec) -> None:
    """Endless recursion is an error like any other."""
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(MessageError, match="payload key 'bad' of the request"):
        envelope.encode(request({"bad": endless}), codec)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_writes_numbers_that_it_has_no_word_for_as_null(value: float) -> None:
    """As its documentation says."""
    _, body = envelope.encode(request({"a": value}), JSON)
    assert {"a": None} == decode(body).payload


@pytest.mark.parametrize("name", ["correlation_id", "reply_to", "message_id"])
@pytest.mark.parametrize("value", ["x" * 256, "ü" * 128, "\udcff", 5, None])
def test_text_that_does_not_fit_amqp_is_named(name: str, value: Any) -> None:
    """Callers pass correlation_id= and reply_to= of their own; the error says which is wrong."""
    with pytest.raises(MessageError, match=name) as caught:
        envelope.encode(request(**{name: value}), JSON)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", ["correlation_id", "reply_to", "message_id"])
def test_text_of_255_bytes_fits(name: str) -> None:
    """AMQP's short strings hold as much."""
    properties, _ = envelope.encode(request(None, **{name: "x" * 255}), JSON)
    assert "x" * 255 == getattr(properties, name)


def test_a_deadline_is_no_expiration() -> None:
    """The broker would move a request that expired to the dead letters, which nobody needs."""
    deadline = time.time() + 10
    properties, _ = envelope.encode(request(deadline=deadline), JSON)
    assert int(1000 * deadline) == properties.headers["deadline"]
    assert properties.expiration is None


def test_answers_to_foreign_clients_have_no_envelope() -> None:
    """They asked with a plain object and get one."""
    _, body = envelope.encode(messages.Response({"a": 1}, {"chain": 2}), JSON, enveloped=False)
    assert b'{"a":1}' == body


def test_header_of_a_message_cannot_replace_a_built_in_one() -> None:
    """Even where a middleware put it there without asking."""
    message = request(extra_headers={"request_id": "forged", "destination": "forged.too"})
    with pytest.raises(exceptions.MessageError, match="header 'request_id' cannot be set"):
        envelope.encode(message, JSON)


def test_what_the_reader_assumes_anyway_is_not_written() -> None:
    """A missing request id is the correlation id, and that the message id where nobody answers."""
    first, later = request(request_id="c"), request()
    assert [None, "r"] == [
        envelope.encode(m, JSON)[0].headers.get("request_id") for m in (first, later)
    ]
    beginning, inherited, call = (
        request(correlation_id="m"),
        request(),
        request(correlation_id="m", reply_to="q"),
    )
    assert ["", "c", "m"] == [
        envelope.encode(m, JSON)[0].correlation_id for m in (beginning, inherited, call)
    ]
    answer = messages.Response(correlation_id="c", request_id="c", destination=EntryPoint("asker"))
    assert {"destination": "asker"} == envelope.encode(answer, JSON)[0].headers


@pytest.mark.parametrize(
    ("is_awaited", "routing_key"), [(False, "a.b"), (False, "a.c"), (True, "a.b"), (True, "a.c")]
)
def test_a_destination_is_left_out_only_where_the_routing_key_tells_it_for_good(
    is_awaited: bool, routing_key: str
) -> None:
    """Not where middleware gave another one, nor where other programs may move the message."""
    message = request(is_awaited=is_awaited, destination=EntryPoint("a", "b"))
    properties, _ = envelope.encode(message, JSON, routing_key=routing_key)
    is_told = is_awaited and routing_key == "a.b"
    assert (None if is_told else "a.b") == properties.headers.get("destination")


def test_only_requests_whose_caller_waits_are_transient() -> None:
    """Everything else outlives a restart of the broker."""
    assert envelope.encode(request(), JSON)[0].is_persistent
    assert envelope.encode(messages.Notification({}), JSON)[0].is_persistent
    assert not envelope.encode(request(is_awaited=True), JSON)[0].is_persistent


def test_encoding_leaves_the_message_as_it_is() -> None:
    """A message may be sent twice."""
    message = request({"a": 1}, extra_headers={"h": 1}, deadline=time.time() + 5)
    envelope.encode(message, JSON)
    assert ({"a": 1}, {"h": 1}) == (message.payload, message.extra_headers)


def test_decoding_leaves_the_properties_as_they_are() -> None:
    """A dead letter carries them on."""
    headers = {"request_id": "r", "deadline": 5, "destination": "a.b", "mine": 1}
    message = decode(headers=headers)
    assert {"mine": 1} == message.extra_headers
    assert {"request_id", "deadline", "destination", "mine"} == headers.keys()


def test_identifiers_are_unique_over_threads() -> None:
    """Eight threads at once get no identifier twice."""
    found: list[str] = []

    def take() -> None:
        found.extend([envelope.new_id() for _ in range(5_000)])

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 40_000 == len(set(found))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12, with threads
def test_identifiers_are_unique_over_forks() -> None:
    """A child does not go on with the identifiers of its parent."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, "\n".join(envelope.new_id() for _ in range(100)).encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as pipe:
        theirs = set(pipe.read().split("\n"))
    assert 100 == len(theirs)
    assert not theirs & {envelope.new_id() for _ in range(100)}


def test_identifiers_fit_amqp_and_any_log() -> None:
    """Short, and letters and digits only."""
    assert re.fullmatch(r"[0-9a-f]{17,40}", envelope.new_id())
