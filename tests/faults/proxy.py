# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""A TCP proxy that breaks the network between a broker and those who use it."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import random
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

Result = TypeVar("Result")

#: Bytes that are read and passed on at a time.
CHUNK = 16_384

#: The last byte of every frame of AMQP 0-9-1: a cut anywhere else is within a frame.
FRAME_END = 0xCE

#: Seconds that a connection gets to say something and be cut in the middle of that.
SILENCE = 0.1


class Direction(enum.Enum):
    """Where bytes go."""

    TO_BROKER = "to broker"
    TO_CLIENT = "to client"


@dataclass(eq=False, slots=True)
class _Link:
    """A connection through the proxy: one socket to the client, one to the broker."""

    writers: dict[Direction, asyncio.StreamWriter] = field(default_factory=dict)
    #: Bytes that still pass in either direction before it is cut; None: all.
    passing: dict[Direction, int] | None = None
    is_black_hole: bool = False
    is_to_be_cut: bool = False
    #: Where nothing passes any more, since that half is closed.
    closed: set[Direction] = field(default_factory=set)

    def end(self) -> None:
        """Close both sides; what the kernel has already still arrives."""
        for writer in self.writers.values():
            writer.transport.abort()

    def reset(self) -> None:
        """End both sides with a reset (RST), which overtakes what is on its way."""
        for writer in self.writers.values():
            with contextlib.suppress(OSError):  # closed already
                writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
        self.end()


class Proxy:
    """Listens on a port of its own and passes everything on, until told otherwise.

    Runs in a thread of its own; the methods may be called from any. A context manager.
    """

    def __init__(self, port: int) -> None:
        """Pass on to a port of 127.0.0.1."""
        self._broker_port = port
        self._loop = asyncio.new_event_loop()
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_down = False
        self._is_black_hole = False
        self._delay = 0.0
        self._rate: float | None = None
        #: For each connection from now on: bytes after which it is cut, by direction.
        self.cut_after: dict[Direction, int] | None = None
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ask(self._listen())
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ask(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self) -> None:
        self._loop.run_forever()

    def _ask(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    def _do(self, action: Callable[[], None]) -> None:
        async def act() -> None:
            action()

        self._ask(act())

    # -- faults

    def cut(self) -> None:
        """Reset every connection now."""

        def cut() -> None:
            for link in self._links:
                link.reset()

        self._do(cut)

    def cut_in_frames(self) -> None:
        """Reset every connection in the middle of the next frame that passes it."""

        async def cut() -> None:
            links = list(self._links)
            for link in links:
                link.is_to_be_cut = True
            await asyncio.sleep(SILENCE)
            for link in links:  # nothing came: there is no frame to cut
                link.end()

        self._ask(cut())

    def go_down(self) -> None:
        """Cut everything, and reset whoever connects from now on."""
        self._is_down = True
        self.cut()

    def swallow(self) -> None:
        """Pass nothing on any more, without closing anything; new connections get no answer.

        What was connected stays dead for ever, as behind a firewall that lost its tables.
        """

        def swallow() -> None:
            self._is_black_hole = True
            for link in self._links:
                link.is_black_hole = True

        self._do(swallow)

    def close_half(self, direction: Direction) -> None:
        """Say that nothing more comes (FIN) in one direction; the other one goes on."""

        def close() -> None:
            for link in self._links:
                writer = link.writers.get(direction)
                link.closed.add(direction)
                if writer is not None and not writer.is_closing():
                    writer.write_eof()

        self._do(close)

    def slow_down(self, *, delay: float = 0.0, rate: float | None = None) -> None:
        """Hold each piece back by ``delay`` seconds, and pass ``rate`` bytes a second at most."""
        self._delay, self._rate = delay, rate

    def heal(self) -> None:
        """Pass on everything again, on new connections too."""
        self._is_down = self._is_black_hole = False
        self.slow_down()

    # -- passing on

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, sock=self._listener)

    async def _close(self) -> None:
        self._server.close()
        for link in self._links:
            link.end()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        link = _Link({Direction.TO_CLIENT: writer}, is_black_hole=self._is_black_hole)
        if self.cut_after is not None:
            link.passing = dict(self.cut_after)
        self._links.add(link)
        try:
            if self._is_down:
                return
            if link.is_black_hole:
                await reader.read(-1)
                return
            broker_reader, broker_writer = await asyncio.open_connection(
                "127.0.0.1", self._broker_port
            )
            link.writers[Direction.TO_BROKER] = broker_writer
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass(link, reader, Direction.TO_BROKER))
                both.create_task(self._pass(link, broker_reader, Direction.TO_CLIENT))
        except* (OSError, asyncio.CancelledError):
            pass
        finally:
            self._links.discard(link)
            link.end()

    async def _pass(self, link: _Link, reader: asyncio.StreamReader, direction: Direction) -> None:
        writer = link.writers[direction]
        while data := await reader.read(CHUNK):
            if link.is_black_hole or direction in link.closed:
                continue
            if self._delay or self._rate:
                await asyncio.sleep(self._delay + (len(data) / self._rate if self._rate else 0))
            last = _limit(link, direction, data)
            writer.write(data if last is None else data[:last])
            await writer.drain()
            if last is not None:
                await _flushed(writer)
                link.end()
                return
        if direction not in link.closed and not writer.is_closing():
            writer.write_eof()


def _limit(link: _Link, direction: Direction, data: bytes) -> int | None:
    """How many bytes of a piece pass before the connection is cut; None: it is not."""
    if link.passing is not None:
        left = link.passing.get(direction)
        if left is None:
            return None
        link.passing[direction] = left - len(data)
        return None if left > len(data) else max(0, left)
    if link.is_to_be_cut:
        inside = [n for n in random.sample(range(len(data)), min(8, len(data))) if n]
        return next((n for n in inside if data[n - 1] != FRAME_END), 0)
    return None


async def _flushed(writer: asyncio.StreamWriter) -> None:
    # asyncio has no event for an empty buffer: drain() returns before.
    while writer.transport.get_write_buffer_size():  # noqa: ASYNC110
        await asyncio.sleep(0.001)
