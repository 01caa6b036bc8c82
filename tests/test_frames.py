# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Frames that are written and read beneath pika: the same bytes and values as pika's."""

from __future__ import annotations

import datetime as dt
import decimal
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import Any

import pika
import pika.exceptions
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import frame, spec
from pika.compat import long as pika_long

from tavrida.envelope import Properties
from tavrida.exceptions import PublishFailed
from tavrida.plugins.transports import MAX_PROPERTIES, Publication
from tavrida.plugins.transports.amqp import fields, frames
from tests.fields import BITS, RawProperties, long, short, table
from tests.properties import patient
from tests.test_fields import TOO_LATE, nested

FRAME_MAX = 131_072
BODY_MAX = FRAME_MAX - 8

# -- what is sent

names = st.sampled_from(["request_id", "destination", "é", "x" * 128]) | st.text(max_size=130)
texts = st.text(max_size=20) | st.sampled_from(
    ["", "é" * 127, "é" * 128, "x" * 255, "x" * 256, "\ud800"]
)
numbers = st.integers() | st.sampled_from(
    [-(2**31) - 1, -(2**31), 2**31 - 1, 2**31, 2**63, -(2**63)]
)
values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | numbers
    | st.text()
    | st.binary(max_size=9)
    | st.floats()
    | st.decimals(allow_nan=False, allow_infinity=False, places=2)
    | st.datetimes(timezones=st.just(dt.UTC))
    | numbers.map(pika_long)
    | st.sampled_from([decimal.Decimal("1e99"), object(), "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=4,
)
plain_values = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=50)


def publications(value: st.SearchStrategy[Any]) -> st.SearchStrategy[Publication]:
    return st.builds(
        Publication,
        texts,
        texts,
        st.binary(max_size=40),
        st.builds(
            Properties,
            texts,
            st.dictionaries(names, value, max_size=4),
            texts,
            texts,
            texts,
            texts,
            texts,
            st.just(0) | st.integers(-1, 2**64),
            st.none() | st.integers(),
            st.booleans(),
        ),
        st.booleans(),
    )


def publish_by_pika(channel: int, publication: Publication, body_max: int) -> bytes:
    """What pika's connection writes."""
    method = spec.Basic.Publish(
        exchange=publication.exchange,
        routing_key=publication.routing_key,
        mandatory=publication.is_mandatory,
    )
    body = publication.body
    properties = fields.pika_properties(publication.properties)
    pieces = [frame.Method(channel, method), frame.Header(channel, len(body), properties)]
    starts = range(0, len(body), body_max)
    pieces += [frame.Body(channel, body[start : start + body_max]) for start in starts]
    return b"".join(each.marshal() for each in pieces)


def outcome(function: Callable[..., Any], *args: Any) -> Any:
    """What a function returns, or the kind of error that it raises."""
    try:
        return function(*args)
    except Exception as error:
        return type(error)


@patient
@given(publications(plain_values), st.integers(1, 65_535), st.integers(1, 50))
def test_a_publication_has_the_bytes_of_pika(
    publication: Publication, channel: int, body_max: int
) -> None:
    """Or is refused as pika refuses it."""
    wanted = outcome(publish_by_pika, channel, publication, body_max)
    assert wanted == outcome(frames.publish_frames, channel, publication, body_max)


@patient
@given(publications(values))
def test_headers_of_all_kinds_have_the_bytes_of_pika(publication: Publication) -> None:
    """Or are refused as pika refuses them."""
    publication.exchange = publication.routing_key = ""
    wanted = outcome(publish_by_pika, 1, publication, BODY_MAX)
    assert wanted == outcome(frames.publish_frames, 1, publication, BODY_MAX)


@pytest.mark.parametrize(
    "size", [0, 1, BODY_MAX - 1, BODY_MAX, BODY_MAX + 1, 2 * BODY_MAX, 300_000]
)
def test_a_body_is_split_where_a_frame_ends(size: int) -> None:
    """An empty one has no frame."""
    publication = Publication("e", "k", b"x" * size, Properties(message_id="m"), is_mandatory=False)
    wanted = publish_by_pika(1, publication, BODY_MAX)
    assert wanted == frames.publish_frames(1, publication, BODY_MAX)


@pytest.mark.parametrize(
    "properties",
    [
        Properties(message_id=None),  # type: ignore[arg-type]
        Properties(headers=None),  # type: ignore[arg-type]
        Properties(correlation_id=b"bytes"),  # type: ignore[arg-type]
        Properties(correlation_id=5),  # type: ignore[arg-type]
        Properties(timestamp=1.5),  # type: ignore[arg-type]
        Properties(headers={5: 5}),  # type: ignore[dict-item]
        Properties(headers={b"name": b"value"}),  # type: ignore[dict-item]
    ],
)
def test_what_the_types_forbid_is_as_with_pika(properties: Properties) -> None:
    """Written or refused."""
    publication = Publication("e", "k", b"x", properties, is_mandatory=True)
    wanted = outcome(publish_by_pika, 1, publication, BODY_MAX)
    assert wanted == outcome(frames.publish_frames, 1, publication, BODY_MAX)


def test_a_time_that_amqp_does_not_have_is_refused_also_behind_an_equal_one() -> None:
    """What is remembered of the message before, with the integer 5, is not for it."""
    right = Publication("e", "k", b"x", Properties(timestamp=5), is_mandatory=True)
    wrong = Publication("e", "k", b"x", Properties(timestamp=5.0), is_mandatory=True)  # type: ignore[arg-type]
    frames.publish_frames(1, right, BODY_MAX)
    wanted = outcome(publish_by_pika, 1, wrong, BODY_MAX)
    assert wanted == outcome(frames.publish_frames, 1, wrong, BODY_MAX)
    assert wanted != outcome(frames.publish_frames, 1, right, BODY_MAX)


@pytest.mark.parametrize("value", ["x", ["x"]])
def test_headers_that_are_larger_than_a_frame_are_refused(value: Any) -> None:
    """Exactly from the byte on that is too many, however the value is encoded."""
    properties = Properties(headers={"large": value})
    publication = Publication("e", "k", b"", properties, is_mandatory=True)
    spare = MAX_PROPERTIES - sum(map(len, fields.pika_properties(properties).encode()))
    text = "x" * (1 + spare)
    properties.headers["large"] = text if value == "x" else [text]
    assert publish_by_pika(1, publication, 9) == frames.publish_frames(1, publication, 9)
    properties.headers["large"] = text + "x" if value == "x" else [text + "x"]
    with pytest.raises(PublishFailed, match="the headers have 120001 bytes, more than the 120000"):
        frames.publish_frames(1, publication, 9)


@patient
@given(st.integers(0, 65_535), st.integers(0, 2**64 - 1), st.booleans())
def test_an_ack_has_the_bytes_of_pika(channel: int, tag: int, multiple: bool) -> None:
    """Of one delivery and of many."""
    wanted = frame.Method(channel, spec.Basic.Ack(tag, multiple)).marshal()
    assert wanted == frames.ack_frame(channel, tag, multiple)


# -- the properties of what is received


def values_of(properties: Any) -> dict[str, Any]:
    """By name, each with its type: 1 is not True, and an int not pika's long."""
    return {
        name: repr(getattr(properties, name))
        for name in frames.DeliveredProperties.__struct_fields__
    }


def properties_by_pika(encoded: bytes) -> dict[str, Any]:
    found = spec.BasicProperties().decode(encoded)
    for name, value in (found.headers or {}).items():
        found.headers[name] = fields.plain(value)
    return values_of(found)


def properties_by_us(encoded: bytes, before: bytes = b"", after: bytes = b"") -> dict[str, Any]:
    start, end = len(before), len(before) + len(encoded)
    return values_of(frames.read_properties(before + encoded + after, start, end))


shorts = st.binary(max_size=30).map(short) | st.text(max_size=30).map(lambda t: short(t.encode()))
kinds = st.one_of(
    st.text(max_size=30).map(lambda text: b"S" + long(text.encode())),
    st.binary(max_size=30).map(lambda text: b"S" + long(text)),
    st.integers(-(2**63), 2**63 - 1).map(lambda number: b"l" + struct.pack(">q", number)),
    st.integers(-(2**31), 2**31 - 1).map(lambda number: b"I" + struct.pack(">i", number)),
    st.integers(0, 255).map(lambda octet: b"t" + bytes([octet])),
    st.just(b"V"),
    st.sampled_from([TOO_LATE, b"T" + bytes(8), b"d" + bytes(8), b"f\x7f\xc0\0\0", b"D\1\0\0\0\1"]),
    st.sampled_from([b"b\xff", b"B\xff", b"s\0\1", b"u\0\1", b"i\0\0\0\1", b"L" + bytes(8)]),
    st.sampled_from([b"x" + long(b"\xff"), b"A" + long(b"l" + bytes(8)), b"F" + table([]), b"?"]),
)
tables = st.lists(st.tuples(st.binary(max_size=9) | st.just(b"n"), kinds), max_size=5).map(table)
octets = st.integers(0, 255).map(lambda octet: bytes([octet]))
raw_properties = st.fixed_dictionaries(
    {},
    optional={
        name: {
            "headers": tables,
            "delivery_mode": octets,
            "priority": octets,
            "timestamp": st.binary(min_size=8, max_size=8),
        }.get(name, shorts)
        for name in (*BITS, "user_id")
    },
).map(lambda raw: encoded_properties(**raw))


def encoded_properties(user_id: bytes | None = None, **raw: bytes) -> bytes:
    """Properties in bytes; RawProperties has no user_id, which only the broker lets through."""
    pieces = RawProperties(**raw).encode()
    if user_id is not None:
        pieces[0] = (int.from_bytes(pieces[0]) | 1 << 4).to_bytes(2)
        at = len(pieces) - len({"app_id", "cluster_id"} & raw.keys())
        pieces.insert(at, user_id)
    return b"".join(pieces)


@patient
@given(raw_properties, st.binary(max_size=3), st.binary(max_size=9))
def test_properties_are_read_as_pika_reads_them(raw: bytes, before: bytes, after: bytes) -> None:
    """Whatever stands before and after them in the buffer."""
    assert outcome(properties_by_pika, raw) == outcome(properties_by_us, raw, before, after)


@patient
@given(raw_properties, st.data(), st.integers(0, 255), st.binary(max_size=300))
def test_properties_with_a_wrong_byte_are_read_as_pika_reads_them(
    raw: bytes, data: st.DataObject, octet: int, after: bytes
) -> None:
    """Mostly a length that lies; what follows them in the buffer is not touched."""
    at = data.draw(st.integers(0, len(raw) - 1))
    raw = raw[:at] + bytes([octet]) + raw[at + 1 :]
    assert outcome(properties_by_pika, raw) == outcome(properties_by_us, raw, b"", after)


@pytest.mark.parametrize(
    "raw",
    [b"\x80\x00\x09json", b"\x80\x80\x00\x09id", b"\x80\x40\x00sec", b"\x80\x20\x00\x09t", b"\x80"],
)
def test_a_length_that_leads_into_what_follows_is_left_to_pika(raw: bytes) -> None:
    """Also where it is the last one, so that nothing behind it is missing."""
    assert outcome(properties_by_pika, raw) == outcome(properties_by_us, raw, b"", bytes(300))


@pytest.mark.parametrize("kind", [b"A", b"F"])
def test_tables_without_end_are_cut_off_here_too(kind: bytes) -> None:
    """As fields.py has pika do it."""
    deep = table([(b"deep", nested(kind, 18_000)), (b"last", b"V")])
    encoded = encoded_properties(headers=deep)
    found = frames.read_properties(encoded, 0, len(encoded))
    assert {"deep", "last"} == (found.headers or {}).keys()


def test_more_flags_are_left_to_pika() -> None:
    """Nobody ever had a use for them."""
    encoded = b"\x00\x21\x00\x00" + short(b"request")
    assert properties_by_pika(encoded) == properties_by_us(encoded)


# -- what is received

Event = tuple[Any, ...]


class Listener:
    """A Reader, and what it tells."""

    def __init__(self, *, delivered: Iterable[int] = (), confirmed: Iterable[int] = ()) -> None:
        self.events: list[Event] = []
        self.reader = frames.Reader(lambda data: self.events.append(("cold", data)))
        for channel in {*delivered, *confirmed}:
            self.reader.watch(
                channel,
                self.on_delivered(channel) if channel in delivered else None,
                self.on_confirmed(channel) if channel in confirmed else None,
            )

    def feed(self, stream: bytes, size: int) -> None:
        for start in range(0, len(stream), size):
            self.reader.feed(stream[start : start + size])

    def on_delivered(self, channel: int) -> frames.Delivered:
        def delivered(*args: Any) -> None:
            *method, properties, body = args
            self.events.append(("delivered", channel, *method, values_of(properties), body))

        return delivered

    def on_confirmed(self, channel: int) -> frames.Confirmed:
        return lambda *args: self.events.append(("confirmed", channel, *args))


@dataclass
class Sent:
    """Frames of one method, and what is told of it when the last one is there."""

    frames: list[bytes]
    event: Event | None


def content(
    channel: int, method: Any, properties: bytes = b"\0\0", body: bytes = b"", size: int = BODY_MAX
) -> list[bytes]:
    """A method with its content in frames."""
    header = struct.pack(">HHQ", 60, 0, len(body)) + properties
    pieces = [frame.Method(channel, method).marshal(), framed(2, channel, header)]
    pieces += [
        frame.Body(channel, body[at : at + size]).marshal() for at in range(0, len(body), size)
    ]
    return pieces


def framed(kind: int, channel: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"


def delivery(
    channel: int, tag: int = 1, body: bytes = b"body", size: int = BODY_MAX
) -> list[bytes]:
    return content(
        channel, spec.Basic.Deliver("consumer", tag, False, "e", "k"), body=body, size=size
    )


def told(channel: int, tag: int = 1, body: bytes = b"body") -> Event:
    nothing = values_of(spec.BasicProperties())
    return ("delivered", channel, "consumer", tag, False, "e", "k", nothing, body)


DELIVERED, CONFIRMED, CHANNELS = {1, 2}, {2, 3}, [0, 1, 2, 3, 4]
tags = st.integers(0, 2**64 - 1)
short_texts = st.text(max_size=20) | st.sampled_from(["", "exchange", "x" * 255])
bodies = st.sampled_from([b"", b"x"]) | st.binary(max_size=40)


@st.composite
def sent(draw: st.DrawFn, channel: int) -> Sent:
    """Anything that a broker may send, whole."""
    kind = draw(st.sampled_from(["deliver", "deliver", "ack", "return", "get", "method"]))
    if channel == 0:
        whole = [frame.Heartbeat(), frame.Method(0, spec.Connection.Blocked("disk"))]
        return Sent([draw(st.sampled_from(whole)).marshal()], None)
    if kind == "ack":
        args = (draw(tags), draw(st.booleans()))
        confirmed = ("confirmed", channel, *args) if channel in CONFIRMED else None
        return Sent([frame.Method(channel, spec.Basic.Ack(*args)).marshal()], confirmed)
    if kind == "method":
        methods = [spec.Basic.Nack(5, True), spec.Channel.CloseOk(), spec.Basic.CancelOk("x")]
        return Sent([frame.Method(channel, draw(st.sampled_from(methods))).marshal()], None)
    properties, body = draw(raw_properties), draw(bodies)
    try:
        values = properties_by_pika(properties)
    except pika.exceptions.InvalidFieldTypeException:
        properties, values = b"\0\0", values_of(spec.BasicProperties())
    exchange, key = draw(short_texts), draw(short_texts)
    event: Event | None = None
    method: Any = spec.Basic.GetOk(draw(tags), False, exchange, key, 5)
    if kind == "return":
        method = spec.Basic.Return(312, "NO_ROUTE", exchange, key)
    elif kind == "deliver":
        method = spec.Basic.Deliver(
            draw(short_texts), draw(tags), draw(st.booleans()), exchange, key
        )
        if channel in DELIVERED:
            told = (method.consumer_tag, method.delivery_tag, method.redelivered, exchange, key)
            event = ("delivered", channel, *told, values, body)
    return Sent(content(channel, method, properties, body, draw(st.integers(1, 50))), event)


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[bytes], list[Event]]:
    """What a broker sends over several channels, interleaved, and what is to be told of it."""
    lines = [
        [
            (data, each.event, i + 1 == len(each.frames))
            for each in draw(st.lists(sent(channel), max_size=3))
            for i, data in enumerate(each.frames)
        ]
        for channel in CHANNELS
    ]
    chance: Random = draw(st.randoms(use_true_random=False))
    stream, events = [], []
    while lines := [line for line in lines if line]:
        data, event, is_last = chance.choice(lines).pop(0)
        stream.append(data)
        if event is None:
            events.append(("cold", data))
        elif is_last:
            events.append(event)
    return stream, events


@patient
@given(streams(), st.data())
def test_a_stream_is_split_wherever_it_is_cut(
    found: tuple[list[bytes], list[Event]], data: st.DataObject
) -> None:
    """What is delivered and confirmed has pika's values, all the rest its bytes, in their order."""
    pieces, events = found
    stream = b"".join(pieces)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=5).map(sorted))
    for ends in ([len(stream)], [*cuts, len(stream)], range(len(stream) + 1)):
        listener = Listener(delivered=DELIVERED, confirmed=CONFIRMED)
        start = 0
        for end in ends:
            listener.reader.feed(stream[start:end])
            start = end
        assert events == listener.events
        assert not listener.reader._pieces


def test_a_large_body_comes_in_many_frames_and_pieces() -> None:
    """Joined once it is there."""
    body = bytes(range(256)) * 8_000
    stream = b"".join(delivery(1, body=body))
    listener = Listener(delivered=[1])
    listener.feed(stream, 1448)
    assert [told(1, body=body)] == listener.events


def test_names_that_are_no_utf8_are_text_all_the_same() -> None:
    """As short strings are everywhere."""
    listener = Listener(delivered=[1])
    method = struct.pack(">I", spec.Basic.Deliver.INDEX) + short(b"\xff") + bytes(9)
    header = delivery(1, body=b"")[1]
    listener.reader.feed(framed(1, 1, method + short(b"a\xff") + short(b"\xffb")) + header)
    assert ("\ufffd", 0, False, "a\ufffd", "\ufffdb") == listener.events[0][2:7]


# -- what may not be


def pika_raises(data: bytes) -> None:
    frame.decode_frame(data)


@pytest.mark.parametrize(
    ("stream", "error"),
    [
        (framed(1, 1, b"12345")[:-1] + b"\x00", pika.exceptions.InvalidFrameError),
        (framed(2, 1, b"12345")[:-1] + b"\x00", pika.exceptions.InvalidFrameError),
        (framed(4, 1, b"12345"), pika.exceptions.InvalidFrameError),
        (framed(1, 1, b""), struct.error),
        (framed(1, 1, struct.pack(">I", spec.Basic.Deliver.INDEX)), IndexError),
        (framed(1, 1, struct.pack(">I", spec.Basic.Ack.INDEX)), struct.error),
        (framed(1, 1, struct.pack(">I", 1)), KeyError),
        (struct.pack(">BHI", 3, 1, 2**31) + b"12345", pika.exceptions.InvalidFrameError),
    ],
)
def test_a_broken_stream_is_an_error_of_pika(stream: bytes, error: type[Exception]) -> None:
    """Whether pika finds it or the Reader does."""
    reader = frames.Reader(pika_raises)
    reader.watch(1, lambda *args: None, lambda *args: None)
    with pytest.raises(error):
        reader.feed(b"".join(delivery(1)) + stream + b"".join(delivery(1)))


@pytest.mark.parametrize("end", [b"\x01e\x01kmore", b"\x01e\x05k", b"\x01e", b"\x05e"])
def test_a_delivery_that_does_not_end_where_it_should_is_left_to_pika(end: bytes) -> None:
    """With its content; the next one is read."""
    listener = Listener(delivered=[1])
    tag = struct.pack(">IBQB", spec.Basic.Deliver.INDEX, 0, 1, 0)
    odd = [framed(1, 1, tag + end), *delivery(1)[1:]]
    listener.reader.feed(b"".join([*odd, *delivery(1, 2)]))
    assert [*(("cold", each) for each in odd), told(1, 2)] == listener.events


HEADER, BODY = delivery(1)[1:]


@pytest.mark.parametrize(
    "then",
    [
        [HEADER, HEADER],
        [BODY],
        [HEADER, framed(3, 1, b"too long")],
        [HEADER, framed(3, 1, b"bod"), BODY],
        [framed(2, 1, struct.pack(">HHQ", 50, 0, 4) + b"\0\0"), BODY],
    ],
)
def test_content_that_is_no_content_is_an_error_of_pika(then: list[bytes]) -> None:
    """At once or in pieces."""
    stream = b"".join([delivery(1)[0], *then])
    for size in (1, len(stream)):
        listener = Listener(delivered=[1])
        with pytest.raises(pika.exceptions.InvalidFrameError):
            listener.feed(stream, size)


@pytest.mark.parametrize("size", [1, 1000])
def test_a_body_frame_behind_an_empty_message_is_none_of_it(size: int) -> None:
    """However the stream is cut; pika takes it for a mistake."""
    listener = Listener(delivered=[1])
    more = framed(3, 1, b"")
    listener.feed(b"".join([*delivery(1, body=b""), more]), size)
    assert [told(1, body=b""), ("cold", more)] == listener.events


@pytest.mark.parametrize("header", [b"", b"\x80\x00", b"\x20\x00" + table([(b"n", b"?")])])
def test_a_header_that_cannot_be_read_is_an_error(header: bytes) -> None:
    """As with pika; the frames count as read."""
    listener = Listener(delivered=[1])
    broken = framed(2, 1, struct.pack(">HHQ", 60, 0, 4) + header)
    with pytest.raises((struct.error, IndexError, pika.exceptions.InvalidFieldTypeException)):
        listener.reader.feed(b"".join([delivery(1)[0], broken, BODY, *delivery(1, 2)]))
    listener.reader.feed(b"")
    assert [told(1, 2)] == listener.events


def test_the_header_of_another_protocol_goes_to_pika() -> None:
    """A broker that speaks another version sends it before it closes."""
    listener = Listener(delivered=[1])
    listener.feed(b"AMQP\x00\x00\x09\x01", 1)
    assert [("cold", b"AMQP\x00\x00\x09\x01")] == listener.events


def test_headers_that_a_broker_made_larger_than_a_frame_are_read() -> None:
    """What it adds when a message dies goes beyond the limit that was agreed upon."""
    large = encoded_properties(headers=table([(b"n", b"S" + long(b"x" * FRAME_MAX))]))
    listener = Listener(delivered=[1])
    method = spec.Basic.Deliver("consumer", 1, False, "e", "k")
    for each in content(1, method, large, b"body"):
        listener.reader.feed(each)
    assert [properties_by_pika(large)] == [event[7] for event in listener.events]


def test_a_method_ends_the_content_before_it() -> None:
    """A sender may give a message up (4.2.6); its rest belongs to nothing."""
    listener = Listener(delivered=[1], confirmed=[1])
    method, header, body = delivery(1)
    close = frame.Method(1, spec.Channel.CloseOk()).marshal()
    listener.reader.feed(b"".join([method, header, close, body, *delivery(1, 2)]))
    assert [("cold", close), ("cold", body), told(1, 2)] == listener.events


# -- callbacks


@pytest.mark.parametrize("size", [1, 10_000])
@pytest.mark.parametrize("cause", ["delivered", "confirmed", "cold"])
def test_a_callback_that_raises_has_taken_its_frames(cause: str, size: int) -> None:
    """The error goes out, and what follows is read with the next piece."""

    def fail(*args: Any) -> None:
        raise ZeroDivisionError

    ack = frame.Method(1, spec.Basic.Ack(5, True)).marshal()
    heartbeat = frame.Heartbeat().marshal()
    stream = {"delivered": b"".join(delivery(1)), "confirmed": ack, "cold": heartbeat}[cause]
    events: list[Any] = []
    reader = frames.Reader(fail)
    reader.watch(1, fail, fail)
    reader.watch(2, lambda *args: events.append(args[1]))
    failures = 0
    stream = stream + b"".join(delivery(2, 1)) + stream + b"".join(delivery(2, 2))
    for start in range(0, len(stream), size):
        try:
            reader.feed(stream[start : start + size])
        except ZeroDivisionError:
            failures += 1
    while reader._pieces:
        try:
            reader.feed(b"")
        except ZeroDivisionError:
            failures += 1
    assert (2, [1, 2]) == (failures, events)


@patient
@given(streams(), st.integers(1, 300))
def test_a_frame_that_is_given_back_comes_again(
    given_stream: tuple[list[bytes], list[Event]], size: int
) -> None:
    """Before all that follows it, which waits for it."""
    frames_of_it, events = given_stream
    listener = Listener(delivered=DELIVERED, confirmed=CONFIRMED)
    given_back: list[bytes] = []

    def cold(data: bytes) -> None:
        if given_back:
            given_back.clear()
            listener.events.append(("cold", data))
        else:
            given_back.append(data)
            listener.reader.give_back(data)
            raise ZeroDivisionError

    listener.reader._cold = cold
    stream = b"".join(frames_of_it)
    for start in range(0, len(stream), size):
        piece = stream[start : start + size]
        while True:
            try:
                listener.reader.feed(piece)
                break
            except ZeroDivisionError:
                piece = b""
    assert events == listener.events


def test_a_callback_may_forget_its_channel() -> None:
    """What follows on it goes to pika."""
    cold: list[bytes] = []
    tags: list[int] = []

    def delivered(consumer: str, tag: int, *rest: Any) -> None:
        tags.append(tag)
        reader.forget(1)

    reader = frames.Reader(cold.append)
    reader.watch(1, delivered)
    reader.feed(b"".join([*delivery(1, 1), *delivery(1, 2)]))
    assert ([1], delivery(1, 2)) == (tags, cold)


def test_a_callback_may_watch_a_channel() -> None:
    """From the next frame on, as when the answer to the opening of a channel is read."""
    listener = Listener()
    opened = frame.Method(1, spec.Channel.OpenOk()).marshal()
    listener.reader._cold = lambda data: listener.reader.watch(1, listener.on_delivered(1))
    listener.reader.feed(b"".join([opened, *delivery(1, 1)]))
    assert [told(1, 1)] == listener.events


def test_half_a_delivery_of_a_channel_that_is_forgotten_is_dropped() -> None:
    """Nobody told pika of its method; a new delivery is pika's from the beginning."""
    listener = Listener(delivered=[1])
    method, *rest = delivery(1, 1)
    listener.reader.feed(method)
    listener.reader.forget(1)
    listener.reader.feed(b"".join([*rest, *delivery(1, 2)]))
    assert [("cold", each) for each in delivery(1, 2)] == listener.events


def test_a_message_that_pika_has_begun_to_read_stays_with_pika() -> None:
    """A channel is watched from the next method on."""
    listener = Listener()
    method, *rest = delivery(1, 1)
    listener.reader.feed(method)
    listener.reader.watch(1, listener.on_delivered(1))
    listener.reader.feed(b"".join([*rest, *delivery(1, 2)]))
    assert [*(("cold", each) for each in delivery(1, 1)), told(1, 2)] == listener.events


# -- whether all this holds


def test_it_is_usable_with_the_pika_that_was_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    """And with no other, nor with one that writes or reads anything differently."""
    check = frames.is_usable.__wrapped__
    assert check()
    monkeypatch.setattr(pika, "__version__", "1.5.0")
    assert not check()
    monkeypatch.undo()
    monkeypatch.setattr(spec.BasicProperties, "FLAG_APP_ID", 1 << 1)
    assert not check()
