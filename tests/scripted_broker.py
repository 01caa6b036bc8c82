# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""A broker that does what a test says: AMQP 0-9-1 on a socket, without queues, in bursts.

It lets clients declare and consume what they like. When a whole burst of publications has come in,
all are confirmed at once, and answered where somebody consumes their ``reply_to``; so that whoever
is measured gets the same frames in the same pieces in each run.
"""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import pika
from pika import spec
from pika.frame import Body, Header, Method, ProtocolHeader, decode_frame

from tests.waiting import DEADLINE

#: What a broker answers to a method, where that needs no thought.
_ANSWERS: dict[type[Any], Callable[[Any], Any]] = {
    spec.Connection.StartOk: lambda _: spec.Connection.Tune(2047, 131_072, 0),
    spec.Connection.Open: lambda _: spec.Connection.OpenOk(),
    spec.Connection.Close: lambda _: spec.Connection.CloseOk(),
    spec.Channel.Open: lambda _: spec.Channel.OpenOk(),
    spec.Channel.Close: lambda _: spec.Channel.CloseOk(),
    spec.Confirm.Select: lambda _: spec.Confirm.SelectOk(),
    spec.Exchange.Declare: lambda _: spec.Exchange.DeclareOk(),
    spec.Queue.Declare: lambda method: spec.Queue.DeclareOk(method.queue or "replies", 0, 0),
    spec.Queue.Bind: lambda _: spec.Queue.BindOk(),
    spec.Basic.Qos: lambda _: spec.Basic.QosOk(),
    spec.Basic.Cancel: lambda method: spec.Basic.CancelOk(method.consumer_tag),
}


@dataclass
class _Connection:
    socket: socket.socket
    unread: bytes = b""
    #: By channel: how many messages were published and delivered on it, and acknowledged.
    published: dict[int, int] = field(default_factory=dict)
    delivered: dict[int, int] = field(default_factory=dict)
    acknowledged: dict[int, int] = field(default_factory=dict)
    properties: pika.BasicProperties | None = None


@dataclass(frozen=True)
class _Consumer:
    connection: _Connection
    channel: int
    tag: str


class ScriptedBroker:
    """The broker, in a thread of its own; a context manager."""

    def __init__(self, burst: int) -> None:
        self._burst = burst
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._consumers: dict[str, _Consumer] = {}
        self._changed = threading.Condition()
        #: The properties of what was published since the last burst was complete.
        self._pending: list[pika.BasicProperties] = []
        #: Bursts that were published and confirmed, and messages that were acknowledged.
        self.bursts = 0
        self.acknowledged = 0
        self._is_over = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self._listener.getsockname()[1]}/%2F"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._is_over = True
        socket.create_connection(self._listener.getsockname()).close()  # wakes it up
        self._thread.join()
        self._selector.close()
        self._listener.close()

    def deliver(self, queue: str, messages: Sequence[tuple[pika.BasicProperties, bytes]]) -> None:
        """Send these to the consumer of a queue, in one piece."""
        consumer = self._consumers[queue]
        connection, channel = consumer.connection, consumer.channel
        frames = []
        for properties, body in messages:
            tag = connection.delivered[channel] = connection.delivered.get(channel, 0) + 1
            delivery = spec.Basic.Deliver(consumer.tag, tag, False, "exchange", "echo.number")
            frames += [Method(channel, delivery), Header(channel, len(body), properties)]
            frames.append(Body(channel, body))
        connection.socket.sendall(b"".join(frame.marshal() for frame in frames))

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is true of what this broker has seen."""
        with self._changed:
            assert self._changed.wait_for(condition, DEADLINE)

    # -- in its thread -------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._is_over:
            for key, _ in self._selector.select():
                if key.data is None:
                    client, _ = self._listener.accept()
                    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self._selector.register(client, selectors.EVENT_READ, _Connection(client))
                    continue
                with self._changed:
                    self._read(key.data)
                    self._changed.notify_all()
        for key in list(self._selector.get_map().values()):
            if key.data is not None:
                key.data.socket.close()

    def _read(self, connection: _Connection) -> None:
        try:
            data = connection.socket.recv(1_000_000)
        except ConnectionResetError:
            data = b""
        if not data:
            self._selector.unregister(connection.socket)
            connection.socket.close()
            return
        connection.unread += data
        while connection.unread:
            consumed, frame = decode_frame(connection.unread)
            if not consumed:
                return
            connection.unread = connection.unread[consumed:]
            if isinstance(frame, ProtocolHeader):
                self._greet(connection)
            elif isinstance(frame, Method):
                self._obey(connection, frame.channel_number, frame.method)
            elif isinstance(frame, Header):
                assert isinstance(frame.properties, pika.BasicProperties)
                connection.properties = frame.properties
            elif isinstance(frame, Body):
                self._take(connection, frame.channel_number)

    def _greet(self, connection: _Connection) -> None:
        capabilities = dict.fromkeys(
            ("publisher_confirms", "basic.nack", "consumer_cancel_notify"), True
        )
        start = spec.Connection.Start(0, 9, {"capabilities": capabilities}, "PLAIN", "en_US")
        connection.socket.sendall(Method(0, start).marshal())

    def _obey(self, connection: _Connection, channel: int, method: Any) -> None:
        if isinstance(method, spec.Basic.Consume):
            tag = method.consumer_tag or f"consumer-{channel}"
            self._consumers[method.queue] = _Consumer(connection, channel, tag)
            connection.socket.sendall(Method(channel, spec.Basic.ConsumeOk(tag)).marshal())
        elif isinstance(method, spec.Basic.Ack):
            before = connection.acknowledged.get(channel, 0)
            count = method.delivery_tag - before if method.multiple else 1
            connection.acknowledged[channel] = before + count
            self.acknowledged += count
        elif type(method) in _ANSWERS and not getattr(method, "nowait", False):
            answer = _ANSWERS[type(method)](method)
            connection.socket.sendall(Method(channel, answer).marshal())

    def _take(self, connection: _Connection, channel: int) -> None:
        """Take a publication; confirm and answer all of a burst together."""
        assert connection.properties is not None
        self._pending.append(connection.properties)
        tag = connection.published[channel] = connection.published.get(channel, 0) + 1
        if len(self._pending) < self._burst:
            return
        pending, self._pending = self._pending, []
        confirm = Method(channel, spec.Basic.Ack(tag, multiple=True))
        connection.socket.sendall(confirm.marshal())
        reply_to = pending[0].reply_to
        if reply_to in self._consumers:
            body = b'{"param": 1}'
            self.deliver(
                reply_to,
                [
                    (pika.BasicProperties(correlation_id=each.correlation_id), body)
                    for each in pending
                ],
            )
        self.bursts += 1
