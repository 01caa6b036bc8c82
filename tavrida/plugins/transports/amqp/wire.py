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
import socket
from collections.abc import Callable
from typing import Any

import pika.exceptions
import pika.frame
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.adapters.utils.io_services_utils import _AsyncPlaintextTransport
from pika.channel import Channel

from tavrida.interruptions import is_raised_in
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

    def send_now(self, data: bytes) -> bool:
        """Send a message at once, where ``is_idle``; in any thread that has the loop's turn.

        Return False where the socket failed, so that nobody knows how much was sent.
        """
        raise NotImplementedError

    def break_off(self, why: str) -> None:
        """End the connection without a goodbye; also where a message is half sent."""
        self._terminate_stream(pika.exceptions.StreamLostError(why))

    def acknowledge(self, channel: Channel, tag: int, *, multiple: bool) -> None:
        """Acknowledge a delivery, or all up to it, of a channel that is open."""
        channel.basic_ack(tag, multiple)

    @property
    def can_mute(self) -> bool:
        """True while another thread than the loop's may ``read``. With the loop's turn."""
        return False

    def mute(self, give_way: Callable[[], None]) -> int:
        """Have the loop not read until ``unmute``; return the socket, for who is to ``read``.

        Where ``can_mute``; in any thread that has the loop's turn. ``give_way`` is called on the
        loop when that sends something itself, whose answer it expects, or has to read.
        """
        raise NotImplementedError

    def unmute(self) -> None:
        """Have the loop read again, if it was muted. In any thread that has the loop's turn."""

    def expect(self, least: int) -> None:
        """Have the operating system wake who waits for a muted socket for so many bytes only."""
        raise NotImplementedError

    def read(self) -> bool:
        """Read what is there, and hand it on; False where the loop has to go on with it.

        In any thread that has the loop's turn. What that thread's signal handlers raise comes out,
        and leaves the connection to ``break_off``.
        """
        raise NotImplementedError

    def watch(
        self, channel: Channel, delivered: Delivered | None, confirmed: Confirmed | None
    ) -> None:
        """Hand over deliveries and confirms of a channel, where pika's callbacks are not used."""

    def forget(self, channel: Channel) -> None:
        """Undo ``watch``: the channel is closed, and its number may be another's soon."""

    def close(self, *args: Any, **kwargs: Any) -> None:
        self.loop.end_turn()  # acknowledgements go before the goodbye
        super().close(*args, **kwargs)


class _ForTheLoop(Exception):
    """Another thread than the loop's has read what is pika's."""


class FastWire(PlainWire):
    """A connection that writes once a turn, and reads deliveries and confirms past pika."""

    def __init__(self, loop: LoopThread, **kwargs: Any) -> None:
        self._written: list[bytes] = []
        self._size = 0
        self._reader = frames.Reader(self._read_cold)
        self._is_open_for_messages = False
        #: The socket, while the loop does not read it.
        self._muted = -1
        self._give_way: Callable[[], None] = self.unmute
        self._has_heard = False
        super().__init__(loop, **kwargs)

    # -- out

    def send(self, channel: Channel, publication: Publication) -> None:
        if not channel.is_open:
            raise pika.exceptions.ChannelWrongStateError(f"channel {channel.channel_number}")
        self._adapter_emit_data(self.encoded(channel, publication))

    @property
    def is_idle(self) -> bool:
        return not self._written and self._has_sent_all

    @property
    def _is_plain(self) -> bool:
        """True while there is a connection, without TLS."""
        transport: Any = self._transport
        return (
            isinstance(transport, _AsyncPlaintextTransport)
            and transport._state == transport._STATE_ACTIVE
        )

    @property
    def _has_sent_all(self) -> bool:
        """True while the connection is open, and its socket took all that was written."""
        transport: Any = self._transport
        return self._is_plain and not transport._tx_buffers

    def encoded(self, channel: Channel, publication: Publication) -> bytes:
        return frames.publish_frames(channel.channel_number, publication, self._body_max_length)

    def send_now(self, data: bytes) -> bool:
        transport: Any = self._transport
        try:
            sent = transport._sock.send(data)
        except OSError as error:
            if not is_raised_in(error, __name__):
                raise
            if not isinstance(error, BlockingIOError):
                return False
            sent = 0
        if sent < len(data):
            transport.write(data[sent:])
        return True

    def break_off(self, why: str) -> None:
        self._written.clear()
        self._size = 0
        super().break_off(why)

    def acknowledge(self, channel: Channel, tag: int, *, multiple: bool) -> None:
        self._adapter_emit_data(frames.ack_frame(channel.channel_number, tag, multiple))

    def _adapter_emit_data(self, data: bytes) -> None:
        if not self._written:
            self.loop.at_end(self._write)
            if self._muted >= 0 and self.loop.is_current:
                self._give_way()
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
            self.ioloop.add_reader(transport._sock.fileno(), self.loop.turn, self._read_on_loop)

    @property
    def can_mute(self) -> bool:
        return self.is_idle and self.is_open and self.loop.can_mute

    def mute(self, give_way: Callable[[], None]) -> int:
        transport: Any = self._transport
        self._give_way, self._has_heard = give_way, False
        self._muted = transport._sock.fileno()
        self.loop.mute(self._muted)
        return self._muted

    def expect(self, least: int) -> None:
        transport: Any = self._transport
        sock = transport and transport._sock
        if sock is not None:
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, least)
            except OSError as error:  # the loop is just closing it
                if not is_raised_in(error, __name__):
                    raise

    def unmute(self) -> None:
        # Where the socket has to be written to, the loop watches it anew, for reading too.
        if self._muted >= 0 and self._has_sent_all:
            self.loop.unmute(self._muted)
        self._muted = -1

    def _read_on_loop(self) -> None:
        if self._muted >= 0:
            # The loop may have seen that something came before it was muted: who reads now is
            # waiting for that, and would sleep on without it. The next time it is the end of the
            # connection, of which it is told in any case; or it has to write, and so listens.
            if self._has_heard:
                self._give_way()
            self._has_heard = True
            return
        transport: Any = self._transport
        sock = transport and transport._sock
        if sock is None:
            return
        # Once; pika's own reader asks again until there is nothing.
        try:
            data = sock.recv(READ)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            transport._initiate_abort(error)
            return
        if data:
            self._feed(data)
        else:
            transport._on_socket_readable()  # its way of ending

    def _feed(self, data: bytes) -> None:
        try:
            self._on_data_available(data)
        except Exception as error:
            self._abort(error)

    def _abort(self, error: Exception) -> None:
        if self._is_plain:
            transport: Any = self._transport
            transport._initiate_abort(error)

    def read(self) -> bool:
        transport: Any = self._transport
        try:
            data = transport._sock.recv(READ)
        except OSError as error:
            if not is_raised_in(error, __name__):
                raise
            if isinstance(error, BlockingIOError):
                return True
            self.loop.submit(self._abort, error)
            return False
        if not data:
            return False  # the loop sees that, too
        try:
            self._on_data_available(data)
        except _ForTheLoop:
            self.loop.submit(self._feed, b"")
        except pika.exceptions.AMQPError as error:
            self.loop.submit(self._abort, error)
        else:
            return True
        return False

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
        if not self.loop.is_current:
            # Of a future of asyncio that a signal handler breaks off nobody would ever hear.
            self._reader.give_back(data)
            raise _ForTheLoop
        _, frame = pika.frame.decode_frame(data)
        if frame is not None:
            self._process_frame(frame)


#: What connections are made of here.
Wire: type[PlainWire] = FastWire if frames.is_usable() else PlainWire
