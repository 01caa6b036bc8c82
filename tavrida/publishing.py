# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The way out of every message: middleware, encode, check, and over to the transport."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue

import msgspec

from tavrida import envelope, exceptions, middleware
from tavrida.addresses import Address
from tavrida.envelope import Codec
from tavrida.loop import LoopThread
from tavrida.messages import Message, Notification, Request
from tavrida.middleware import Middleware
from tavrida.plugins.transports import Done, Publication, Transport

#: Called, on the loop, instead of ``done`` for a message that was not confirmed in time: with how
#: to send it once more, and how to give it up. It calls one of them, there or later.
Keep = Callable[[Callable[[], None], Callable[[], None]], None]

#: How many times ``max_unconfirmed`` the async def handlers of a process may have on their way.
OVERDRAFT = 10


class _Awaited(msgspec.Struct, eq=False, gc=False):
    """A message whose confirm is awaited; the transport calls it with how that ended.

    Not a closure: each variable of one is an object more, of hundreds of messages at a time, that
    the garbage collector goes through again and again. It leaves this one alone, as all that stands
    for a message on its way: each ends, by its deadline at the latest, and is let go then.
    """

    publisher: Publisher
    publication: Publication
    done: Done
    keep: Keep | None

    @property
    def message_id(self) -> str:
        return self.publication.properties.message_id

    def __call__(self, error: Exception | None) -> None:
        publisher, publication, done, keep = self.publisher, self.publication, self.done, self.keep
        publisher.release(self)
        if error is None:
            done(None)
            return
        may_pass = isinstance(error, exceptions.PublishTimeout) or (
            isinstance(error, exceptions.PublishFailed) and error.is_passing
        )
        if keep is not None and may_pass:
            again = functools.partial(publisher.send_raw, publication, done, keep=keep)
            keep(again, functools.partial(done, error))
        else:
            done(error)


class Publisher:
    """Sends messages over one transport. Thread-safe.

    At most ``max_unconfirmed`` messages await their confirm at a time; a thread that sends one
    more waits. Code on the event loop cannot wait: it goes over the limit instead, and gets an
    error where what handlers send comes to OVERDRAFT times as many.
    """

    def __init__(self, loop: LoopThread, transport: Transport) -> None:
        self._loop = loop
        self._transport = transport
        self._config = transport.config
        # A signal handler may send and wait in the midst of what its thread sends, or break that
        # off: so the loop waits for no lock here, and what is broken off is taken out, whether or
        # not it is on its way.
        self._awaited: set[_Awaited] = set()
        # Each thread that waits for room; and what wakes one of them whenever there may be some,
        # who wakes the next one: more than one at a time would only be taken out in vain.
        self._waiting: set[object] = set()
        self._room: SimpleQueue[None] = SimpleQueue()
        self._lock = threading.RLock()

    def send(
        self,
        message: Message,
        address: Address,
        codec: Codec,
        done: Done,
        *,
        chain: Sequence[Middleware] = (),
        enveloped: bool = True,
        keep: Keep | None = None,
    ) -> None:
        """Send a message; ``done`` is called once, on the loop, with None or why it failed.

        With ``keep``, a message that is not confirmed in time has not failed yet.

        Raises:
            MessageError: the message cannot be written or is too large; ``done`` is not called.
            PublishTimeout: there was no room within ``publish_timeout``, or the time that a
                request has left; nor is it then.
            PublishFailed: too many of an event loop's requests and notifications are on their way.
        """
        # Answers come one for each delivery, so that their number is bounded already.
        if (
            len(self._awaited) >= OVERDRAFT * self._config.max_unconfirmed
            and self._loop.is_current
            and isinstance(message, Request | Notification)
        ):
            raise exceptions.PublishFailed(
                f"{self.unconfirmed} messages await their confirm, {OVERDRAFT} times "
                "max_unconfirmed, and an async def handler cannot wait for room: let it await "
                "something now and then while it sends, or send from a def handler, which waits"
            )
        if not chain:
            self._send(message, address, codec, done, enveloped=enveloped, keep=keep)
            return
        with middleware.Publishing(chain, message) as sent:
            end = sent.telling(done)
            self._send(sent.message, address, codec, end, enveloped=enveloped, keep=keep)

    def _send(
        self,
        message: Message,
        address: Address,
        codec: Codec,
        done: Done,
        *,
        enveloped: bool,
        keep: Keep | None,
    ) -> None:
        properties, body = envelope.encode(
            message, codec, enveloped=enveloped, routing_key=address.routing_key
        )
        if len(body) > self._config.max_message_size:
            raise exceptions.MessageTooLarge(
                f"the {message.message_type} to {address.routing_key!r} has {len(body)} bytes, "
                f"max_message_size allows {self._config.max_message_size}"
            )
        self.send_raw(
            Publication(
                address.exchange, address.routing_key, body, properties, address.is_mandatory
            ),
            done,
            deadline=message.deadline,
            keep=keep,
        )

    @property
    def unconfirmed(self) -> int:
        """How many messages await their confirm."""
        return len(self._awaited)

    def has_only(self, message: Message) -> bool:
        """Tell whether no confirm is awaited, but maybe that of this message. Thread-safe."""
        if len(self._awaited) > 1:
            return False
        awaited = tuple(self._awaited)  # a set that others change must not be gone through
        return all(each.message_id == message.message_id for each in awaited)

    @property
    def can_publish(self) -> bool:
        """False while nothing can be published. On the loop."""
        return self._transport.can_publish

    def send_raw(
        self,
        publication: Publication,
        done: Done,
        *,
        deadline: float | None = None,
        keep: Keep | None = None,
    ) -> None:
        """Send what is encoded already; as ``send``. It waits for room until ``deadline`` at most.

        That is in seconds since the epoch.
        """
        is_on_loop = self._loop.is_current
        awaited = _Awaited(self, publication, done, keep)
        try:
            self._awaited.add(awaited)
            if is_on_loop:
                self._transport.publish(publication, awaited)
                return
            has_room = len(self._awaited) <= self._config.max_unconfirmed
            if not has_room and not self._loop.is_busy_here:
                self._awaited.discard(awaited)
                self._wait_for_room(awaited, deadline)
            self._transport.submit(publication, awaited)
        except BaseException:
            self.release(awaited)
            raise

    def release(self, awaited: _Awaited) -> None:
        """Await a message no more, which makes room for another one. Thread-safe."""
        self._awaited.discard(awaited)
        self._wake_one()

    def _wait_for_room(self, awaited: _Awaited, deadline: float | None) -> None:
        limit, timeout = self._config.max_unconfirmed, self._config.publish_timeout
        if deadline is not None:  # a call ends by its own
            timeout = min(timeout, max(0.0, deadline - time.time()))
        end = time.monotonic() + timeout
        waiting = object()
        try:
            self._waiting.add(waiting)
            while not self._took_room(awaited, limit):
                self._room.get(timeout=max(0.0, end - time.monotonic()))
        except Empty:
            raise exceptions.PublishTimeout(
                f"{limit} messages (max_unconfirmed) await their confirm and none came "
                f"within {timeout:.3g} s"
            ) from None
        finally:
            self._waiting.discard(waiting)
            self._wake_one()  # there may be more room; or what was put in was for another one

    def _wake_one(self) -> None:
        # Who waits was added before it looked at what is awaited, and looks again once woken.
        if self._waiting and self._room.empty():
            self._room.put(None)

    def _took_room(self, awaited: _Awaited, limit: int) -> bool:
        with self._lock:  # of several threads, one takes what is left
            has_room = len(self._awaited) < limit
            if has_room:
                self._awaited.add(awaited)
        return has_room
