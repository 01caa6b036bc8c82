# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Doorbells: how one user of a bus wakes another, and knows whether it is still alive.

A bell is a Unix datagram socket beside the database. The kernel closes it with its process,
however that ends, so that ringing tells the dead from the living and nobody has to poll.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from collections.abc import Callable
from pathlib import Path

from tavrida import exceptions
from tavrida.loop import LoopThread


class SocketBell:
    """A bell that other processes can ring."""

    def __init__(self, folder: Path, loop: LoopThread, on_ring: Callable[[], None]) -> None:
        folder.mkdir(exist_ok=True)
        # Addresses of sockets have 107 bytes at most; through a descriptor any folder will do.
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        self.name = f"{os.getpid()}-{secrets.token_hex(6)}"
        self._loop = loop
        self._on_ring = on_ring
        self._bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._bell.setblocking(False)
        self._hand = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._hand.setblocking(False)
        # Kept, since there may be no descriptor left when it is needed.
        self._probe = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        for name in [each.name for each in folder.iterdir()]:
            self.is_alive(name)  # clears away what nobody remembers
        self._bell.bind(self._address(self.name))
        loop.loop.add_reader(self._bell, self._rung)

    def _address(self, name: str) -> str:
        return f"/proc/self/fd/{self._folder}/{name}"

    def _rung(self) -> None:
        with contextlib.suppress(OSError):
            while self._bell.recv(16):
                pass
        self._on_ring()

    def ring(self, name: str) -> bool:
        """Wake the owner of a bell; False when there is none any more."""
        try:
            self._hand.sendto(b"!", self._address(name))
        except (ConnectionRefusedError, FileNotFoundError):
            self._forget(name)
            return False
        except OSError:
            pass  # Full: it has enough rings to answer already. Or another user's: it lives.
        return True

    def is_alive(self, name: str) -> bool:
        """Tell whether a bell has an owner, without waking it."""
        try:
            self._probe.connect(self._address(name))
        except (ConnectionRefusedError, FileNotFoundError):
            self._forget(name)
            return False
        except OSError:
            pass
        return True

    def _forget(self, name: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=self._folder)

    def close(self) -> None:
        """Take the bell down: from now on its owner counts as dead."""
        self._loop.loop.remove_reader(self._bell)
        self._forget(self.name)
        self.abandon()

    def abandon(self) -> None:
        """Close what a forked child inherited; the bell stays its parent's."""
        self._bell.close()
        self._hand.close()
        self._probe.close()
        os.close(self._folder)


class MemoryBell:
    """A bell for the stores of one process, which share a database in memory."""

    def __init__(
        self,
        bells: dict[str, MemoryBell],
        loop: LoopThread,
        on_ring: Callable[[], None],
    ) -> None:
        self.name = secrets.token_hex(6)
        self._bells = bells
        self._loop = loop
        self._on_ring = on_ring
        bells[self.name] = self

    def ring(self, name: str) -> bool:
        """Wake the owner of a bell; False when there is none any more."""
        bell = self._bells.get(name)
        if bell is None:
            return False
        try:
            bell._loop.submit(bell._on_ring)  # noqa: SLF001 - another one of this class
        except exceptions.ConnectionFailed:
            bell.close()  # its loop was stopped without closing anything
            return False
        return True

    def is_alive(self, name: str) -> bool:
        """Tell whether a bell has an owner, without waking it."""
        return name in self._bells

    def close(self) -> None:
        """Take the bell down: from now on its owner counts as dead."""
        self._bells.pop(self.name, None)
