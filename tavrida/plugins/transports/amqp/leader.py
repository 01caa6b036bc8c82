# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The leader: a thread that reads a connection while it waits for what comes there.

Otherwise the loop's thread reads, and then wakes who waits: two threads for each answer instead of
one, which is a tenth of a call. (The pattern is known as leader and followers.) It is done where
the thread's own message is the only one on its way, so that one which a signal handler breaks off
harms no other; and until the loop has something to ask of the broker, or a LEASE has passed. A
signal handler may keep a leader for longer; then the loop takes over when it next looks.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
import weakref
from collections.abc import Callable
from typing import Any

import msgspec

from tavrida import exceptions
from tavrida.loop import LoopThread
from tavrida.plugins.transports.amqp.wire import PlainWire
from tavrida.waiting import Waiting

#: Seconds that a thread reads; after so many, the time of a wake-up is nothing.
LEASE = 0.05

#: Seconds for which what is smaller than expected is left unread.
PATIENCE = 0.002

#: Seconds for which the loop reads when one who read had to give way: there are several.
REST = 0.1


class _Alarm:
    """Wakes a thread that polls ``number``, which is closed when nobody has this any more."""

    def __init__(self) -> None:
        self.number = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        weakref.finalize(self, os.close, self.number)

    def ring(self) -> None:
        os.eventfd_write(self.number, 1)

    def silence(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.number)


class _Lead(msgspec.Struct, eq=False):
    wire: PlainWire
    #: Wakes the leader; it would sleep on where the loop is quicker with what comes.
    alarm: _Alarm
    #: By the clock time.monotonic.
    until: float
    #: True where nothing else of the connection is awaited.
    is_alone: Callable[[], bool]
    socket: int = -1
    #: True while it may be that not every byte is told.
    is_patient: bool = False
    #: True while it reads; and behind it, where an exception broke that off.
    is_reading: bool = False
    #: True once the loop reads again.
    is_over: bool = False


class Leader:
    """Who reads the connection of a loop instead of it, one thread at a time. Thread-safe."""

    def __init__(self, loop: LoopThread) -> None:
        self._loop = loop
        #: There until its thread has left.
        self.lead: _Lead | None = None
        self._alarm: _Alarm | None = None
        self._rests_until = 0.0

    def read_until(
        self,
        wire: PlainWire,
        end: Waiting[Any],
        seconds: float,
        is_alone: Callable[[], bool],
        *,
        least: int,
    ) -> None:
        """Read in this thread until ``end`` has ended, or something else is to be done.

        What ends it comes with ``least`` bytes.
        """
        now = time.monotonic()
        if now < self._rests_until or not is_alone():
            return
        if self._alarm is None:
            # On the loop no signal handler comes between an open file and who will close it.
            self._loop.submit(self._prepare, wire)
            return
        lead = _Lead(wire, self._alarm, now + min(LEASE, seconds), is_alone)
        try:
            if self._loop.do_now(self._begin, lead, least):
                self._go_on(lead, end)
        finally:
            if lead is self.lead:
                self._have_done(self._leave, lead)

    def _prepare(self, wire: PlainWire) -> None:
        if self._alarm is None and wire.can_mute and hasattr(os, "eventfd"):
            with contextlib.suppress(OSError):  # there are too many open files
                self._alarm = _Alarm()
        if self._alarm is None:
            self._rests_until = time.monotonic() + 1

    def _begin(self, lead: _Lead, least: int) -> bool:
        # Who sends something looks for a leader after that is awaited.
        if self.lead is not None or not lead.wire.can_mute or not lead.is_alone():
            return False
        self.lead = lead  # first: what is muted is unmuted by all means
        lead.socket = lead.wire.mute(self.dismiss)
        if least > 1:
            lead.is_patient = True
            lead.wire.expect(least)
        return True

    def _go_on(self, lead: _Lead, end: Waiting[Any]) -> None:
        coming = select.poll()
        coming.register(lead.socket, select.POLLIN)
        coming.register(lead.alarm.number, select.POLLIN)
        came: list[tuple[int, int]] = []
        if lead.is_patient and not end.has_ended:
            came = coming.poll(1000 * max(0.0, min(PATIENCE, lead.until - time.monotonic())))
            lead.wire.expect(1)
            lead.is_patient = False
        while not end.has_ended:
            left = lead.until - time.monotonic()
            if left <= 0:
                return
            came = came or coming.poll(1000 * left)
            if lead.is_over or not came:
                return
            if (lead.alarm.number, select.POLLIN) in came:  # it was for the one before
                lead.alarm.silence()
            if not self._loop.do_now(self._read, lead):
                return
            came = []

    def _read(self, lead: _Lead) -> bool:
        if lead.is_over or not lead.wire.is_open:
            return False
        lead.is_reading = True
        goes_on = self._loop.turn_here(lead.wire.read)
        lead.is_reading = False
        return goes_on

    def _have_done(self, work: Callable[[_Lead], bool], lead: _Lead) -> None:
        """Do some work with the loop's turn. In any thread."""
        if self._loop.is_current:
            work(lead)
        # Where an exception broke off a read, or the loop has something to do: there.
        elif lead.is_reading or not self._loop.do_now(work, lead):
            with contextlib.suppress(exceptions.ConnectionFailed):  # the loop was stopped
                self._loop.submit(work, lead)

    def _leave(self, lead: _Lead) -> bool:
        if lead is self.lead:
            self._relieve(lead)
            self.lead = None
        return True

    def _relieve(self, lead: _Lead) -> None:
        """Have the loop read again."""
        if lead.is_reading and lead.wire.is_open:  # in nobody's thread any more
            lead.wire.break_off("a read was broken off in its midst")
        if lead.is_patient:
            lead.wire.expect(1)
        lead.wire.unmute()
        lead.is_over = True

    def dismiss(self) -> None:
        """Have the loop read again, and wake who did. In any thread."""
        lead = self.lead
        if lead is not None and not lead.is_over:
            self._rests_until = time.monotonic() + REST
            self._have_done(self._dismiss, lead)

    def _dismiss(self, lead: _Lead) -> bool:
        if lead is self.lead and not lead.is_over:
            self._relieve(lead)
            lead.alarm.ring()
        return True

    def look(self) -> None:
        """Have the loop read again where the leader does not, for a while. On the loop."""
        lead = self.lead
        if lead is not None and lead.until + LEASE < time.monotonic():
            self._leave(lead)

    def close(self) -> None:
        """Give back what this has of the operating system."""
        self._alarm = None
