# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The way out of every message: middleware, encode, check, and over to the transport."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

from tavrida import envelope, exceptions, middleware
from tavrida.addresses import Address
from tavrida.envelope import Codec
from tavrida.loop import LoopThread
from tavrida.messages import Message
from tavrida.middleware import Middleware
from tavrida.plugins.transports import Done, Publication, Transport

LOG = logging.getLogger(__name__)


class Publisher:
    """Sends messages over one transport. Thread-safe.

    At most ``max_unconfirmed`` messages await their confirm at a time; a thread that sends one
    more waits. Code on the event loop never waits: it goes over the limit instead.
    """

    def __init__(self, loop: LoopThread, transport: Transport) -> None:
        self._loop = loop
        self._transport = transport
        self._config = transport.config
        self._unconfirmed = 0
        self._room = threading.Condition()

    def send(
        self,
        message: Message,
        address: Address,
        codec: Codec,
        done: Done,
        *,
        chain: Sequence[Middleware] = (),
        enveloped: bool = True,
    ) -> None:
        """Send a message; ``done`` is called once, on the loop, with None or why it failed.

        Raises:
            MessageError: the message cannot be written or is too large; ``done`` is not called.
            PublishTimeout: there was no room within ``publish_timeout``; nor is it then.
        """
        if chain:
            message = middleware.outgoing(chain, message)
            for each in chain:
                each.before_publish(message)
        properties, body = envelope.encode(message, codec, enveloped=enveloped)
        if len(body) > self._config.max_message_size:
            raise exceptions.MessageTooLarge(
                f"the {message.message_type} to {address.routing_key!r} has {len(body)} bytes, "
                f"max_message_size allows {self._config.max_message_size}"
            )

        def finished(error: Exception | None) -> None:
            for each in chain:
                try:
                    each.after_publish(message, error)
                except BaseException:  # also SystemExit: ``done`` has to be called
                    LOG.exception("%s.after_publish failed.", type(each).__name__)
            done(error)

        self.send_raw(
            Publication(
                address.exchange, address.routing_key, body, properties, address.is_mandatory
            ),
            finished if chain else done,
        )

    def send_raw(self, publication: Publication, done: Done) -> None:
        """Send what is encoded already; as ``send``."""
        is_on_loop = self._loop.is_current
        self._take_room(may_wait=not is_on_loop)

        def finished(error: Exception | None) -> None:
            with self._room:
                self._unconfirmed -= 1
                self._room.notify()
            done(error)

        if is_on_loop:
            self._transport.publish(publication, finished)
        else:
            self._loop.submit(self._transport.publish, publication, finished)

    def _take_room(self, *, may_wait: bool) -> None:
        limit, timeout = self._config.max_unconfirmed, self._config.publish_timeout
        with self._room:
            if may_wait and self._unconfirmed >= limit:
                deadline = time.monotonic() + timeout
                while self._unconfirmed >= limit:
                    if not self._room.wait(deadline - time.monotonic()):
                        raise exceptions.PublishTimeout(
                            f"{limit} messages (max_unconfirmed) await their confirm and none came "
                            f"within {timeout} s"
                        )
            self._unconfirmed += 1
