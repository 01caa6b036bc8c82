# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Delivery tags: what of a channel is settled, and told to the broker in few frames."""

from __future__ import annotations

from pika.channel import Channel

from tavrida.plugins.transports.amqp.wire import PlainWire


class Tags:
    """Settles the deliveries of one channel. Tags mean nothing on any other.

    Acknowledgements leave together, at the end of the loop's turn. With ``multiple``, AMQP 0-9-1
    (``basic.ack``) acknowledges everything up to a tag that is not settled yet, so that it is used
    only up to the first delivery that somebody still has.
    """

    __slots__ = ("_acknowledged", "_channel", "_held", "_wire")

    def __init__(self, channel: Channel, wire: PlainWire) -> None:
        self._channel = channel
        self._wire = wire
        # What the broker waits for, in the order of delivery, which is that of the tags.
        self._held: dict[int, None] = {}
        self._acknowledged: set[int] = set()

    @property
    def is_open(self) -> bool:
        """True while settling means something."""
        return bool(self._channel.is_open)

    def take(self, tag: int) -> None:
        """Note a delivery that has to be settled."""
        self._held[tag] = None

    def acknowledge(self, tag: int) -> None:
        """Tell the broker to forget a message, at the end of the turn."""
        if not self._acknowledged:
            self._wire.loop.at_end(self.flush)
        self._acknowledged.add(tag)

    def give_back(self, tag: int) -> None:
        """Give a message back untouched, at once."""
        del self._held[tag]
        self._channel.basic_nack(tag, requeue=True)

    def reject(self, tag: int) -> None:
        """Have the broker move a message to the dead-letter queue of its queue, at once."""
        del self._held[tag]
        self._channel.basic_reject(tag, requeue=False)

    def flush(self) -> None:
        """Send the acknowledgements of this turn."""
        acknowledged, self._acknowledged = self._acknowledged, set()
        if not self._channel.is_open:
            return  # the broker delivers all of it again
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
