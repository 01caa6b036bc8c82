# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The wire: pika's connection, with the frames of messages written and read by ``frames``.

pika has a system call for each frame that it sends, and two to watch its socket for it; it copies
what it received once a frame. Here all that was sent in a turn of the loop leaves in one call, and
what a read brought is gone through once. Everything that is not a message stays pika's:
handshake, channels, declarations, heartbeats, errors.

This goes below pika's public API. It is used with the versions that it was tested with
(``frames.is_usable``), and ``PlainWire`` does the same by the public API with any other.
"""

# ruff: noqa: SLF001 - it is below pika's public API that the time is
from __future__ import annotations

import contextlib
from typing import Any

import pika.exceptions
import pika.frame
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.adapters.utils.io_services_utils import _AsyncPlaintextTransport
from pika.channel import Channel

from tavrida.loop import LoopThread
from tavrida.plugins.transports import Publication
from tavrida.plugins.transports.amqp import fields, frames
from tavrida.plugins.transports.amqp.frames import Confirmed, Delivered

#: Bytes of a read: what a prefetch of hundreds brings at a time.
READ = 65_536

#: Bytes that leave before the turn has ended, so that there are not three copies of much.
MUCH = 1_048_576


class PlainWire(AsyncioConnection):
    """A connection whose messages go by pika's public API."""

    def __init__(self, loop: LoopThread, **kwargs: Any) -> None:
        self.loop = loop
        super().__init__(custom_ioloop=loop.loop, **kwargs)

    def send(self, channel: Channel, publication: Publication) -> None:
        """Send a message.

        Raises:
            ChannelWrongStateError: the channel is closed, or closing.
            PublishFailed: its headers are too large.
            Exception: pika's, when it cannot be encoded; nothing was sent.
        """
        properties = fields.pika_properties(publication.properties)
        fields.check_size(properties)
        channel.basic_publish(
            publication.exchange,
            publication.routing_key,
            publication.body,
            properties,
            publication.is_mandatory,
        )

    @property
    def is_idle(self) -> bool:
        """True while ``send_now`` may be called. In any thread that has the loop's turn."""
        return False

    def encoded(self, channel: Channel, publication: Publication) -> bytes:
        """Return a message for ``send_now``; raises UNENCODABLE."""
        raise NotImplementedError

    def send_now(self, data: bytes) -> None:
        """Send a message at once, where ``is_idle``; in any thread that has the loop's turn.

        Raises:
            OSError: of the socket; how much was sent nobody knows.
        """
        raise NotImplementedError

    def break_off(self, why: str) -> None:
        """End the connection without a goodbye; also where a message is half sent."""
        self._terminate_stream(pika.exceptions.StreamLostError(why))

    def acknowledge(self, channel: Channel, tag: int, *, multiple: bool) -> None:
        """Acknowledge a delivery, or all up to it, of a channel that is open."""
        channel.basic_ack(tag, multiple)

    def watch(
        self, channel: Channel, delivered: Delivered | None, confirmed: Confirmed | None
    ) -> None:
        """Hand over deliveries and confirms of a channel, where pika's callbacks are not used."""

    def forget(self, channel: Channel) -> None:
        """Undo ``watch``: the channel is closed, and its number may be another's soon."""

    def close(self, *args: Any, **kwargs: Any) -> None:
        self.loop.end_turn()  # acknowledgements go before the goodbye
        super().close(*args, **kwargs)


class FastWire(PlainWire):
    """A connection that writes once a turn, and reads deliveries and confirms past pika."""

    def __init__(self, loop: LoopThread, **kwargs: Any) -> None:
        self._written: list[bytes] = []
        self._size = 0
        self._reader = frames.Reader(self._read_cold)
        self._is_open_for_messages = False
        super().__init__(loop, **kwargs)

    # -- out

    def send(self, channel: Channel, publication: Publication) -> None:
        if not channel.is_open:
            raise pika.exceptions.ChannelWrongStateError(f"channel {channel.channel_number}")
        self._adapter_emit_data(self.encoded(channel, publication))

    @property
    def is_idle(self) -> bool:
        transport: Any = self._transport
        return (
            not self._written
            and isinstance(transport, _AsyncPlaintextTransport)
            and transport._state == transport._STATE_ACTIVE
            and not transport._tx_buffers
        )

    def encoded(self, channel: Channel, publication: Publication) -> bytes:
        return frames.publish_frames(channel.channel_number, publication, self._body_max_length)

    def send_now(self, data: bytes) -> None:
        transport: Any = self._transport
        try:
            sent = transport._sock.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            transport.write(data[sent:])

    def break_off(self, why: str) -> None:
        self._written.clear()
        self._size = 0
        super().break_off(why)

    def acknowledge(self, channel: Channel, tag: int, *, multiple: bool) -> None:
        self._adapter_emit_data(frames.ack_frame(channel.channel_number, tag, multiple))

    def _adapter_emit_data(self, data: bytes) -> None:
        if not self._written:
            self.loop.at_end(self._write)
        self._written.append(data)
        self._size += len(data)
        if self._size >= MUCH:
            self._write()

    def _write(self) -> None:
        transport: Any = self._transport
        # A view: pika cuts off what was sent, which would copy all the rest each time.
        data = memoryview(b"".join(self._written))
        self._written.clear()
        self._size = 0
        # It went before; or the connection is lost, maybe within a frame.
        if not data or transport is None or transport._state != transport._STATE_ACTIVE:
            return
        if isinstance(transport, _AsyncPlaintextTransport) and not transport._tx_buffers:
            with contextlib.suppress(OSError):  # the transport meets it too, and tells
                data = data[transport._sock.send(data) :]
        if data:
            transport.write(data)

    def _adapter_disconnect_stream(self) -> None:
        self._write()  # the answer to a broker's goodbye
        super()._adapter_disconnect_stream()

    # -- in

    def watch(
        self, channel: Channel, delivered: Delivered | None, confirmed: Confirmed | None
    ) -> None:
        self._reader.watch(channel.channel_number, delivered, confirmed)

    def forget(self, channel: Channel) -> None:
        self._reader.forget(channel.channel_number)

    def _proto_connection_made(self, transport: Any) -> None:
        super()._proto_connection_made(transport)
        if isinstance(transport, _AsyncPlaintextTransport):
            self.ioloop.add_reader(transport._sock.fileno(), self.loop.turn, self._read)

    def _read(self) -> None:
        """Read once; pika's own reader asks again until there is nothing."""
        transport: Any = self._transport
        sock = transport and transport._sock
        if sock is None:
            return
        try:
            data = sock.recv(READ)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            transport._initiate_abort(error)
            return
        if not data:
            transport._on_socket_readable()  # its way of ending
            return
        try:
            self._on_data_available(data)
        except Exception as error:
            transport._initiate_abort(error)

    def _on_data_available(self, data_in: bytes) -> None:
        if self._is_open_for_messages:
            self.bytes_received += len(data_in)  # what pika's heartbeats look at
            self._reader.feed(data_in)
            return
        super()._on_data_available(data_in)
        if self.is_open:
            self._is_open_for_messages = True
            rest, self._frame_buffer = self._frame_buffer, b""
            if rest:
                self._reader.feed(rest)

    def _read_cold(self, data: bytes) -> None:
        _, frame = pika.frame.decode_frame(data)
        if frame is not None:
            self._process_frame(frame)


#: What connections are made of here.
Wire: type[PlainWire] = FastWire if frames.is_usable() else PlainWire
