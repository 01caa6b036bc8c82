# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The board: memory in which each worker process tells all others how it is."""

from __future__ import annotations

import json
import mmap
import socket
import struct
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: The checksum of what follows, its length, and the moment of time.monotonic() when it was told,
#: which is the same in all processes of a machine.
_HEADER = struct.Struct("=IId")

#: Bytes of a worker's place. Its two halves are written in turn: whoever reads while it is written,
#: or after its writer was killed in the middle, finds the other half whole.
_PLACE = 1 << 16
_HALF = _PLACE // 2

#: Bytes that can be told.
ROOM = _HALF - _HEADER.size


class Board:
    """One place for each worker, by its number from 1 on. Nothing in it waits for another process.

    To be made before the first fork. A place has one writer: its worker, or the master while that
    is not there.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._memory = mmap.mmap(-1, count * _PLACE)

    def tell(self, number: int, told: Mapping[str, Any]) -> None:
        """Have everybody see something in a worker's place, which has to fit into ROOM as JSON."""
        body = json.dumps(told, ensure_ascii=False).encode(errors="replace")
        if len(body) > ROOM:
            raise ValueError(f"{len(body)} bytes do not fit")
        moments = [moment for moment, _ in self._halves(number)]
        half = moments.index(min(moments))
        checked = struct.pack("=Id", len(body), time.monotonic()) + body
        self._write(number, half, struct.pack("=I", zlib.crc32(checked)) + checked)

    def clear(self, number: int) -> None:
        """Empty the place of a worker that has ended."""
        for half in (0, 1):
            self._write(number, half, bytes(_HEADER.size))

    def read(self, number: int) -> tuple[float, dict[str, Any]] | None:
        """Return what a worker told, and how many seconds ago; None where its place is empty."""
        moment, body = max(self._halves(number))
        if not body:
            return None
        return max(0.0, time.monotonic() - moment), dict(json.loads(body))

    def _halves(self, number: int) -> list[tuple[float, bytes]]:
        """Return when and what both halves tell; nothing, long ago, where that is not whole."""
        found = []
        for half in (0, 1):
            begin = (number - 1) * _PLACE + half * _HALF
            written = self._memory[begin : begin + _HALF]
            checksum, length, moment = _HEADER.unpack_from(written)
            end = _HEADER.size + length
            is_whole = 0 < length <= ROOM and checksum == zlib.crc32(written[4:end])
            found.append((moment, written[_HEADER.size : end]) if is_whole else (0.0, b""))
        return found

    def _write(self, number: int, half: int, written: bytes) -> None:
        begin = (number - 1) * _PLACE + half * _HALF
        self._memory[begin : begin + len(written)] = written


@dataclass(frozen=True, slots=True)
class Seat:
    """What one of several worker processes has to answer for all of them."""

    #: The socket that all of them listen at.
    listening: socket.socket
    board: Board
    #: Its own place.
    number: int
