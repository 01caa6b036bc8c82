# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The ``amqp`` and ``amqps`` transport: RabbitMQ, or whatever speaks AMQP 0-9-1, by pika.

Why ``AsyncioConnection``: ``async def`` handlers need an asyncio loop, and one loop for handlers
and sockets means no hand-over between two. ``BlockingConnection`` was no choice: pika deprecates
it, and it ties heartbeats to handlers. Only the loop's thread touches pika. Heartbeats are pika's
and need nothing but the loop.
"""

from tavrida.plugins.transports.amqp.transport import AMQPTransport

__all__ = ["AMQPTransport"]
