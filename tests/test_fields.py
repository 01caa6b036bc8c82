# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Values in properties and headers that no honest client writes, and what is read of them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pika
import pika.data
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika.spec import BasicProperties

from tavrida import discovery, dispatcher
from tavrida.client import RPCClient
from tavrida.config import ConnectionConfig
from tavrida.plugins.transports.amqp import fields
from tavrida.server import Server
from tavrida.service import ServiceController
from tests.fields import RawProperties, long, short, table
from tests.properties import patient
from tests.transports.bench import Bench
from tests.waiting import DEADLINE

TOO_LATE = b"T" + struct.pack(">Q", 2**63)


def nested(kind: bytes, depth: int) -> bytes:
    value = b"V"
    for _ in range(depth):
        value = b"A" + long(value) if kind == b"A" else b"F" + table([(b"", value)])
    return value


def decode(**values: bytes) -> BasicProperties:
    """What pika makes of properties in bytes."""
    found: BasicProperties = BasicProperties().decode(b"".join(RawProperties(**values).encode()))
    return found


@pytest.mark.parametrize(
    "value",
    [
        TOO_LATE,
        b"T" + b"\xff" * 8,
        b"d" + struct.pack(">d", float("nan")),
        b"d" + struct.pack(">d", float("-inf")),
        b"f" + struct.pack(">f", float("nan")),
        b"f" + struct.pack(">f", float("inf")),
    ],
)
def test_a_value_that_python_has_none_for_is_none(value: bytes) -> None:
    """Alone, in a list and in a table; what stands beside it is read."""
    inside = b"F" + table([(b"odd", value), (b"n", b"t\x01")])
    fields = [(b"odd", value), (b"list", b"A" + long(value + b"t\x01")), (b"table", inside)]
    found = decode(headers=table([*fields, (b"last", b"S" + long(b"x"))]), type=short(b"error"))
    assert {
        "odd": None,
        "list": [None, True],
        "table": {"odd": None, "n": True},
        "last": "x",
    } == found.headers
    assert "error" == found.type


@pytest.mark.parametrize("kind", [b"A", b"F"])
def test_tables_without_end_are_cut_off(kind: bytes) -> None:
    """As many as fit into a frame; what comes after them is read."""
    deep = nested(kind, 18_000)
    found = decode(headers=table([(b"deep", deep), (b"last", b"S" + long(b"x"))]))
    assert "x" == (found.headers or {})["last"]
    fields.plain(found.headers)
    found.encode()


@pytest.mark.parametrize("name", ["correlation_id", "reply_to", "message_id", "type", "app_id"])
def test_a_text_that_is_no_utf8_is_text_all_the_same(name: str) -> None:
    """With the sign for what cannot be read; bytes would break whoever expects a text."""
    assert "a\ufffdb" == getattr(decode(**{name: short(b"a\xffb")}), name)


@patient
@given(st.binary(max_size=255))
def test_a_short_string_takes_the_bytes_that_it_says(text: bytes) -> None:
    """Whatever is in it."""
    value, end = pika.data.decode_short_string(b"xy" + short(text) + b"more", 2)
    assert (text.decode("utf-8", "replace"), 3 + len(text)) == (value, end)


@dispatcher.rpc_service("svc")
class Service(ServiceController):
    @dispatcher.rpc_method(service="svc", method="ok")
    def ok(self, request: Any, proxy: Any, n: int = 0) -> dict[str, Any]:
        return {"n": n}


def test_no_message_is_a_poison(amqp_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Neither connection of the service is lost, and each message is dealt with once."""
    known = discovery.LocalDiscovery()
    known.register_remote_service("svc", "svc_exchange")
    config = ConnectionConfig(url=(amqp_url,), async_engine=True, retry_delay=0.1)
    poisons = [
        RawProperties(headers=table([(b"when", TOO_LATE)])),
        RawProperties(headers=table([(b"deep", nested(b"F", 18_000))])),
        RawProperties(headers=table([(b"\xff", b"V")])),
        RawProperties(reply_to=short(b"\xff")),
        RawProperties(reply_to=short(b"\xff"), correlation_id=short(b"\xff" * 255)),
        RawProperties(type=short(b"\xff"), reply_to=short(b"nobody")),
    ]
    with (
        Server(config, "svc_queue", "svc_exchange", [Service], queue_type="classic") as server,
        RPCClient(config, "svc", known, "test") as client,
        pika.BlockingConnection(pika.URLParameters(amqp_url)) as connection,
    ):
        channel = connection.channel()
        channel.confirm_delivery()
        for poison in poisons:
            channel.basic_publish("svc_exchange", "svc.ok", b"{}", poison)
        channel.basic_publish("", "svc_queue", b"{", poisons[0])
        assert {"n": 1} == client.ok(n=1).call(timeout=DEADLINE).payload
        server.stop()
        assert 0 == channel.queue_declare("svc_queue", passive=True).method.message_count
    assert not [each for each in caplog.records if "lost its connection" in each.message]


@pytest.mark.parametrize("deaths", ["often", 5, {"queue": 1}, ["x"], [{"count": "x"}], [None]])
def test_a_death_that_a_sender_made_up_does_not_stop_the_embedded_bus(
    tmp_path: Path, deaths: Any
) -> None:
    """The message dies like any other, and its header tells the truth."""
    bench = Bench(f"sqlite://{tmp_path}/bus.db")
    try:
        connection = bench.connect()
        dead = connection.queue()
        queue = connection.queue(dead_letter_to=dead)
        connection.publish("", queue, headers={"x-death": deaths}, expiration=1)
        buried = connection.consume(dead).next().properties.headers or {}
        assert [(queue, "expired")] == [(d["queue"], d["reason"]) for d in buried["x-death"]]
        connection.close()
    finally:
        bench.loop.stop()
