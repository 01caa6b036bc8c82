# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The ``sqlite`` transport: a bus in a file, for the processes of one machine, or in memory.

``sqlite:///PATH/bus.db`` needs no broker; ``sqlite://`` lives as long as this process uses it.

How a message goes: everything that an event loop has to do with the bus since its last turn is
one transaction (``store``), by rules that are the same as RabbitMQ's (``bus``). A commit makes it
visible to other processes at once. A publication is confirmed when a thread has brought the log
to the disk (``syncer``); one sync serves all that was committed before it.

How others hear of it, without polling: each user of the bus has a doorbell, a Unix datagram socket
in ``PATH/bus.db-wake`` (``doorbell``). A consumer that finds its queue empty says so in the table
of consumers; who puts a message there rings one such consumer for each message, after the commit.
Both happen inside of transactions, so that no ring is missed. A bell whose process died refuses
the ring: then its messages are given back and its exclusive queues deleted. Once a second each
user looks for the dead that nobody rang, which costs some microseconds.
"""

from tavrida.plugins.transports.sqlite.transport import SQLiteTransport

__all__ = ["SQLiteTransport"]
