# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The leader: a thread that reads a connection while it waits for what comes there.

Otherwise the loop's thread reads, and then wakes who waits: two threads for each answer instead of
one, which is a tenth of a call. (The pattern is known as leader and followers.) It is done where
the thread's own message is the only one on its way, so that one which a signal handler breaks off
harms no other; and for a LEASE only, because a signal handler may keep it from reading.
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


class _Lead(msgspec.Struct, eq=False):
    wire: PlainWire
    #: By the clock time.monotonic.
    until: float
    #: True where nothing else of the connection is awaited.
    is_alone: Callable[[], bool]
    socket: int = -1
    #: True once the loop reads again.
    is_over: bool = False
    #: True while it reads; and behind it, where an exception broke that off.
    is_reading: bool = False


class Leader:
    """Who reads the connection of a loop instead of it, one thread at a time. Thread-safe."""

    def __init__(self, loop: LoopThread) -> None:
        self._loop = loop
        #: There until its thread has left.
        self.lead: _Lead | None = None
        # Wakes the leader; it would sleep on where the loop is quicker with what comes.
        self._alarm = -1
        self._close_alarm: Callable[[], object] | None = None
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
        lead = _Lead(wire, now + min(LEASE, seconds), is_alone)
        try:
            if self._loop.do_now(self._begin, lead):
                self._go_on(lead, end, least)
        finally:
            if lead is self.lead:
                self._have_done(self._leave, lead)

    def _begin(self, lead: _Lead) -> bool:
        if self.lead is not None or not lead.wire.can_mute or not self._has_alarm():
            return False
        self.lead = lead  # first: what is muted is unmuted by all means
        lead.socket = lead.wire.mute()
        # Once more: who sends something looks for a leader after that is awaited.
        return lead.is_alone()

    def _has_alarm(self) -> bool:
        if self._alarm < 0 and hasattr(os, "eventfd"):
            try:
                self._alarm = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            except OSError as error:
                if error.errno is None:
                    raise  # of a signal handler; else there are too many open files
                return False
            self._close_alarm = weakref.finalize(self, os.close, self._alarm)
        return self._alarm >= 0

    def _go_on(self, lead: _Lead, end: Waiting[Any], least: int) -> None:
        coming = select.poll()
        coming.register(lead.socket, select.POLLIN)
        coming.register(self._alarm, select.POLLIN)
        if least > 1 and not end.has_ended:
            lead.wire.expect(least)
            coming.poll(1000 * max(0.0, min(PATIENCE, lead.until - time.monotonic())))
            lead.wire.expect(1)
        while not end.has_ended:
            left = lead.until - time.monotonic()
            if left <= 0:
                return
            came = coming.poll(1000 * left)
            if (self._alarm, select.POLLIN) in came:  # maybe for the one before
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._alarm)
            if not came or not self._loop.do_now(self._read, lead):
                return

    def _read(self, lead: _Lead) -> bool:
        if lead.is_over or not lead.wire.is_open:
            return False
        lead.is_reading = True
        self._loop.turn_here(lead.wire.read)
        lead.is_reading = False
        return True

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
            self._end(lead)
            self.lead = None
        return True

    def _end(self, lead: _Lead) -> None:
        if lead.is_reading and lead.wire.is_open:  # in nobody's thread any more
            lead.wire.break_off("a read was broken off in its midst")
        lead.wire.unmute()
        lead.is_over = True

    def dismiss(self) -> None:
        """Have the loop read again. In any thread."""
        lead = self.lead
        if lead is not None and not lead.is_over:
            self._rests_until = time.monotonic() + REST
            self._have_done(self._dismiss, lead)

    def _dismiss(self, lead: _Lead) -> bool:
        if lead is self.lead and not lead.is_over:
            self._end(lead)
            os.eventfd_write(self._alarm, 1)
        return True

    def look(self) -> None:
        """Have the loop read again where the leader does not, for a while. On the loop."""
        lead = self.lead
        if lead is not None and lead.until + LEASE < time.monotonic():
            self._leave(lead)

    def close(self) -> None:
        """Give back what it has of the operating system. On the loop."""
        # One that still leads has its alarm until nobody knows of it any more.
        if self.lead is None and self._close_alarm is not None:
            self._close_alarm()
            self._alarm, self._close_alarm = -1, None
