# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Delivery tags: what of a channel is settled, and told to the broker in few frames."""

from __future__ import annotations

import asyncio
import contextvars

from pika.channel import Channel

from tavrida.plugins.transports.amqp.wire import PlainWire

#: Acknowledgements that wait for each other at most, and seconds that they do: a frame of its own
#: for each costs the broker a fifth of what the message does. One that is alone leaves at once.
GROUP, LATENESS = 25, 0.002


class Tags:
    """Settles the deliveries of one channel. Tags mean nothing on any other.

    Acknowledgements leave together: at the end of the loop's turn or, while one turn follows the
    other, when there are enough of them. With ``multiple``, AMQP 0-9-1 (``basic.ack``) acknowledges
    everything up to a tag that is not settled yet, so that it is used only up to the first delivery
    that somebody still has.
    """

    __slots__ = (
        "_acknowledged",
        "_channel",
        "_flushed_at",
        "_held",
        "_timer",
        "_waits_for_end",
        "_wire",
        "prefetch",
    )

    def __init__(self, channel: Channel, wire: PlainWire) -> None:
        self._channel = channel
        self._wire = wire
        # What the broker waits for, in the order of delivery, which is that of the tags.
        self._held: dict[int, None] = {}
        self._acknowledged: set[int] = set()
        #: How many deliveries the broker hands over at a time; 0 where nobody said.
        self.prefetch = 0
        # In the loop's time.
        self._flushed_at = -LATENESS
        self._timer: asyncio.TimerHandle | None = None
        self._waits_for_end = False

    @property
    def is_open(self) -> bool:
        """True while settling means something."""
        return bool(self._channel.is_open)

    def take(self, tag: int) -> None:
        """Note a delivery that has to be settled."""
        self._held[tag] = None

    def acknowledge(self, tag: int) -> None:
        """Tell the broker to forget a message, at the end of the turn or LATENESS later."""
        if not self._waits_for_end:
            self._waits_for_end = True
            self._wire.loop.at_end(self._end_turn)
        self._acknowledged.add(tag)

    def _end_turn(self) -> None:
        self._waits_for_end = False
        loop = self._wire.loop.loop
        many = len(self._acknowledged)
        # The broker is not to wait for room meanwhile: what handlers still have takes some up.
        room = self.prefetch - (len(self._held) - many)
        if many < min(GROUP, room // 4):
            left = self._flushed_at + LATENESS - loop.time()
            if left > 0:
                if self._timer is None:
                    turn, nobodys = self._wire.loop.turn, contextvars.Context()
                    self._timer = loop.call_later(left, turn, self._end_wait, context=nobodys)
                return
        self.flush()

    def _end_wait(self) -> None:
        self._timer = None
        self.flush()

    def give_back(self, tag: int) -> None:
        """Give a message back untouched, at once."""
        del self._held[tag]
        self._channel.basic_nack(tag, requeue=True)

    def reject(self, tag: int) -> None:
        """Have the broker move a message to the dead-letter queue of its queue, at once."""
        del self._held[tag]
        self._channel.basic_reject(tag, requeue=False)

    def flush(self) -> None:
        """Send the acknowledgements that wait."""
        acknowledged, self._acknowledged = self._acknowledged, set()
        if not acknowledged or not self._channel.is_open:
            return  # where it is closed, the broker delivers all of it again
        self._flushed_at = self._wire.loop.loop.time()
        run = []
        for tag in self._held:
            if tag not in acknowledged:
                break
            run.append(tag)
        if run:
            self._wire.acknowledge(self._channel, run[-1], multiple=len(run) > 1)
            acknowledged.difference_update(run)
        for tag in sorted(acknowledged):
            self._wire.acknowledge(self._channel, tag, multiple=False)
        for tag in (*run, *acknowledged):
            del self._held[tag]
