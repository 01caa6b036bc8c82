# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The transport: one connection, a channel that publishes and one that consumes, by pika."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import math
import os
import secrets
import socket
import weakref
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import msgspec
import pika
import pika.compat
import pika.credentials
import pika.data
import pika.exceptions
from pika.spec import Basic

from tavrida import exceptions, interruptions
from tavrida.config import ConnectionConfig, redact
from tavrida.envelope import ReadProperties
from tavrida.loop import LoopThread
from tavrida.plugins.transports import (
    Differences,
    Done,
    Events,
    OnDelivery,
    Publication,
    QueueState,
    in_use,
    no_exchange,
    passwords,
    refusals,
    tls,
    undeclared,
    unroutable,
)
from tavrida.plugins.transports.amqp.channel import AwaitableChannel, Receive, passing
from tavrida.plugins.transports.amqp.declarations import (
    PARAMETERS,
    arguments_of,
    conflict_of,
    difference_of,
    missing_of,
    refusal_of,
    settings_of,
)
from tavrida.plugins.transports.amqp.frames import CONFIRM_SIZE, UNENCODABLE
from tavrida.plugins.transports.amqp.leader import Leader
from tavrida.plugins.transports.amqp.objections import (
    NOT_FOUND,
    is_named_in,
    objection_to,
    refused,
    text_of,
)
from tavrida.plugins.transports.amqp.tags import Tags
from tavrida.plugins.transports.amqp.wire import PlainWire, Wire
from tavrida.plugins.transports.reconnecting import ReconnectingTransport, closed
from tavrida.topology import Binding, Exchange, Queue, Topology
from tavrida.waiting import Waiting

LOG = logging.getLogger(__name__)

# pika logs each lost connection as an error, with a traceback; one line of ours tells it better.
logging.getLogger("pika").setLevel(logging.CRITICAL)

#: Seconds to wait for the broker's goodbye before the socket is left to the operating system.
CLOSE_TIMEOUT = 5.0

#: AMQP has 16 bits for it.
MAX_PREFETCH = 65_535

#: Seconds between two looks whether the exchanges of what is consumed are still there.
GUARD_PAUSE = 5.0

#: Bytes of a body that the thread whose message it is sends itself.
MAX_ALONE = 32_768

#: Seconds until a message that the broker refused is sent again.
REFUSAL_PAUSE = 1.0


class AMQPDelivery(msgspec.Struct, eq=False, weakref=True):
    """A delivery. Its tags are those of its channel, and mean nothing on a later one."""

    body: bytes
    properties: ReadProperties
    exchange: str
    routing_key: str
    redelivered: bool
    queue: str
    tags: Tags
    tag: int
    is_settled: bool = False

    @property
    def is_live(self) -> bool:
        """True while settling it means something."""
        return not self.is_settled and self.tags.is_open

    def ack(self) -> None:
        """Tell the broker to forget the message."""
        if not self.is_settled:
            self.is_settled = True
            self.tags.acknowledge(self.tag)  # which sends it only where that means something

    def requeue(self) -> None:
        """Give the message back untouched."""
        if self.is_live:
            self.is_settled = True
            self.tags.give_back(self.tag)

    def reject(self) -> None:
        """Have the broker move the message to the dead-letter queue of its queue."""
        if self.is_live:
            self.is_settled = True
            self.tags.reject(self.tag)


#: What a broker that returns a message says of it: message id, exchange, routing key.
_Route = tuple[str | None, str, str]


def _route(publication: Publication) -> _Route:
    return publication.properties.message_id, publication.exchange, publication.routing_key


class _Sending(msgspec.Struct, eq=False, gc=False):
    """A publication that is not confirmed yet. It ends by its deadline, or when all is closed.

    Called on the loop, it goes to its transport: so a message is handed over as one object. As the
    garbage collector does not see it, what it refers to lives until it has ended.
    """

    transport: AMQPTransport
    publication: Publication
    done: Done
    #: In the loop's time; it runs from when the loop has the message.
    deadline: float = math.inf

    def __call__(self) -> None:
        self.transport.post(self)

    def end(self, error: Exception | None) -> None:
        """Tell the sender; its failure is not the connection's."""
        try:
            self.done(error)
        except Exception:
            if interruptions.may_come():
                raise
            LOG.exception("A callback of a confirm failed.")


@dataclass(frozen=True, slots=True)
class _Consumer:
    queue: str
    prefetch: int
    on_delivery: OnDelivery
    tag: str


class AMQPTransport(ReconnectingTransport):
    """One connection to RabbitMQ: a channel that publishes, with confirms, and one that consumes.

    A channel error while publishing costs that channel only; anything wrong with consuming (a
    consumer that the broker cancels, a channel that it closes) makes a new connection, so that
    there is one way of recovery and never a silent consumer.
    """

    has_consumer_timeout = True

    def __init__(
        self, config: ConnectionConfig, loop: LoopThread, name: str, events: Events
    ) -> None:
        super().__init__(config, loop, name, events)
        self._connection: PlainWire | None = None
        self._is_blocked = False
        self._topologies: dict[Topology, None] = {}
        self._consumers: list[_Consumer] = []
        self._consumer_tags = itertools.count(1)
        self._consuming: AwaitableChannel | None = None
        self._getting: AwaitableChannel | None = None
        # By queue: what was taken by `get`, while somebody else keeps it.
        self._held: defaultdict[str, weakref.WeakSet[AMQPDelivery]] = defaultdict(weakref.WeakSet)
        self._publishing: AwaitableChannel | None = None
        self._outbox: deque[_Sending] = deque()
        self._will_flush = False
        self._unconfirmed: dict[int, _Sending] = {}
        # True in ``_send_now``; and behind it, where an exception broke that off.
        self._is_half_sent = False
        self._last_tag = 0
        self._returned: Counter[_Route] = Counter()
        # Exchanges that are there, as far as we know: a message to one that is not would close
        # the channel, and have all others that are on their way sent twice.
        self._exchanges = {""}
        self._looking_for: asyncio.Task[None] | None = None
        # Publications of which one made the broker close the channel: they go one at a time.
        self._suspects = 0
        # What the broker refused, and the moment to send it again, over a channel that is new.
        self._refused: list[_Sending] = []
        self._renewal: asyncio.TimerHandle | None = None
        self._is_renewing = False
        self._guard: asyncio.Task[None] | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._leader = Leader(loop)

    @classmethod
    def check(cls, config: ConnectionConfig) -> None:
        super().check(config)
        passwords.check(config)
        tls.check(config)

    @classmethod
    def check_url(cls, url: str) -> None:
        why = _fault_of(url)
        if why:
            raise exceptions.ConfigError(
                f"[connection] url {redact(url)} cannot be used: {why}. Write it as "
                "amqp://USER:PASSWORD@HOST:PORT/VIRTUAL_HOST"
            )

    @property
    def can_publish(self) -> bool:
        return super().can_publish and not self._is_blocked

    # -- connecting

    async def _connect_to(self, url: str) -> None:
        parameters = await self._parameters(url)
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        ended = asyncio.Event()

        def on_open(connection: Any) -> None:
            ended.set()
            if not opened.done():
                opened.set_result(None)

        def on_error(connection: Any, error: BaseException | str) -> None:
            ended.set()
            if not opened.done():
                opened.set_exception(refusals.refusal(parameters, error))

        connection = Wire(
            self.loop,
            parameters=parameters,
            on_open_callback=on_open,
            on_open_error_callback=on_error,
            on_close_callback=self._on_connection_closed,
        )
        try:
            await opened
        except asyncio.CancelledError:
            # Half open: pika has to see the end of what it began.
            _break_off(connection)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), 0.2)
            raise
        self._connection = connection
        self._is_blocked = False
        self._exchanges = {""}
        self._lost = asyncio.get_running_loop().create_future()
        connection.add_on_connection_blocked_callback(self._on_blocked)
        connection.add_on_connection_unblocked_callback(self._on_unblocked)
        try:
            async with asyncio.timeout(self.config.publish_timeout):
                await self._restore(connection)
        except TimeoutError:
            # A queue without a leader answers nothing; whoever waits on would idle in silence.
            self._drop(connection)
            raise exceptions.ConnectionFailed(
                f"{redact(url)} was connected, but did not declare and consume within "
                f"{self.config.publish_timeout} s (publish_timeout); has a queue lost its leader?"
            ) from None
        except (pika.exceptions.AMQPError, exceptions.TransportError) as error:
            self._drop(connection)
            if isinstance(error, exceptions.TopologyConflict) and not self._was_open:
                raise
            raise exceptions.ConnectionFailed(
                f"{redact(url)} was connected, but not usable: {error}"
            ) from error

    async def _parameters(self, url: str) -> pika.URLParameters:
        """Return how to connect to a node, with password and certificates as they are now."""
        parameters = pika.URLParameters(_without_user(url))
        if self.config.login == "certificate":
            parameters.credentials = pika.credentials.ExternalCredentials()
        else:
            user, password = await passwords.user_and_password(self.config, url)
            parameters.credentials = pika.PlainCredentials(user, password)
        if parameters.ssl_options is not None:
            try:
                context = tls.context(self.config)
            except exceptions.ConfigError as error:  # a file is just being replaced
                raise exceptions.ConnectionFailed(str(error)) from error
            name = self.config.tls_server_name or parameters.host
            parameters.ssl_options = pika.SSLOptions(context, name)
        parameters.heartbeat = self.config.heartbeat
        parameters.connection_attempts = 1
        parameters.socket_timeout = self.config.socket_timeout
        parameters.stack_timeout = self.config.socket_timeout
        parameters.client_properties = {"connection_name": self.name, "product": "tavrida"}
        return parameters

    async def _restore(self, connection: PlainWire) -> None:
        """Put everything in place on a new connection."""
        await self._open_publishing(connection)
        self._consuming = AwaitableChannel(connection, self._on_consuming_closed)
        await self._consuming.opened
        self._consuming.pika.add_on_cancel_callback(self._on_cancelled)
        for topology in list(self._topologies):
            await self._declare(topology)
        for consumer in self._consumers:
            await self._start_consumer(consumer)
        if not connection.is_open:  # lost after the last answer
            raise pika.exceptions.ConnectionWrongStateError("the connection was lost at once")
        self._guard = asyncio.create_task(self._guard_exchanges(connection))
        self._ready.set()
        self._flush()

    async def _open_publishing(self, connection: PlainWire) -> None:
        channel = AwaitableChannel(connection, self._on_publishing_closed)
        await channel.opened
        channel.pika.add_on_return_callback(self._on_return)
        await channel.confirm(functools.partial(self._on_confirm, channel))
        self._publishing = channel

    def _on_connection_closed(self, connection: Any, reason: BaseException) -> None:
        if connection is not self._connection:
            return
        self._connection = None
        self._is_half_sent = False
        self._ready.clear()
        if self._guard is not None:
            self._guard.cancel()
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(text_of(reason))

    def _drop(self, connection: PlainWire | None) -> None:
        if connection is not None and connection is self._connection:
            self._ready.clear()
            if connection.is_open:
                self._part(connection)

    def _part(self, connection: PlainWire) -> None:
        """Close a connection; acknowledgements go before the goodbye."""
        self.loop.end_turn()  # of handlers that just ended, too
        if self._consuming is not None:
            self._consuming.tags.flush()
        connection.close()

    def _on_blocked(self, connection: Any, frame: Any) -> None:
        self._is_blocked = True
        LOG.warning("%s: the broker takes no messages now: %s.", self.name, frame.method.reason)

    def _on_unblocked(self, connection: Any, frame: Any) -> None:
        self._is_blocked = False
        LOG.warning("%s: the broker takes messages again.", self.name)
        self._flush()

    # -- declaring

    async def declare(self, topology: Topology) -> None:
        self._topologies[topology] = None
        try:
            await self._apply(lambda: self._declare(topology))
        except exceptions.TransportError:
            del self._topologies[topology]
            raise

    async def _apply(self, action: Callable[[], Awaitable[None]]) -> None:
        """Do what ``_restore`` does too; when the connection goes meanwhile, that has done it."""
        await self._ready.wait()
        try:
            async with asyncio.timeout(self.config.publish_timeout):
                await action()
        except pika.exceptions.ChannelClosedByBroker as error:
            raise refused(error) from error
        except (pika.exceptions.ShortStringTooLong, UnicodeEncodeError) as error:
            raise exceptions.TransportError(f"AMQP cannot write a name: {error}") from error
        except pika.exceptions.AMQPError:
            await self._ready.wait()
        except TimeoutError:
            LOG.warning("%s: the broker did not answer in time.", self.name)
            self._drop(self._connection)
            await self._ready.wait()

    async def _declare(self, topology: Topology) -> None:
        if self._connection is None:  # lost since the caller looked
            raise pika.exceptions.ConnectionWrongStateError("the connection is lost")
        # A refusal closes the channel that asked; so it is a channel for this alone.
        channel = AwaitableChannel(self._connection)
        await channel.opened
        amqp = channel.pika
        asked = [
            channel.ask(amqp.exchange_declare, exchange.name, "topic", durable=True)
            for exchange in topology.exchanges
        ]
        asked += [
            channel.ask(amqp.queue_declare, queue.name, durable=True, arguments=arguments_of(queue))
            for queue in topology.queues
        ]
        asked += [
            channel.ask(amqp.queue_bind, binding.queue, binding.exchange, binding.routing_key)
            for binding in topology.bindings
        ]
        try:
            await asyncio.gather(*asked)
        except pika.exceptions.ChannelClosedByBroker as error:
            raise conflict_of(error) from error
        finally:
            if amqp.is_open:
                amqp.close()
        self._exchanges.update(exchange.name for exchange in topology.exchanges)

    async def _guard_exchanges(self, connection: PlainWire) -> None:
        """Declare again what somebody deleted: a consumer is not told, and would idle in silence.

        Queues need no guard, since the broker cancels their consumers.
        """
        while connection.is_open:
            await asyncio.sleep(GUARD_PAUSE)
            try:
                async with asyncio.timeout(self.config.publish_timeout):
                    for topology in list(self._topologies) if self._consumers else ():
                        await self._mend(connection, topology)
            except (pika.exceptions.AMQPError, exceptions.TransportError, TimeoutError) as error:
                LOG.warning("%s: cannot see to its exchanges: %r.", self.name, error)

    async def _mend(self, connection: PlainWire, topology: Topology) -> None:
        missing = await missing_of(connection, [each.name for each in topology.exchanges])
        if missing is not None:
            LOG.warning("%s: exchange %r is gone; declaring it again.", self.name, missing)
            await self._declare(topology)

    async def compare(self, thing: Queue | Exchange) -> Differences | None:
        settings = settings_of(thing)
        found: dict[str, tuple[object, object]] = {}
        async with self._asking() as connection:
            if await refusal_of(connection, thing, {"passive": True}) is not None:
                return None
            # The broker tells of one difference at a time: with that one as it is, of the next.
            while (told := await refusal_of(connection, thing, settings)) is not None:
                difference = difference_of(told, settings)
                if difference is None or difference[0] in found:
                    if found:
                        break
                    raise told
                name, old, new = difference
                found[name] = (old, new)
                place = settings["arguments"] if name.startswith("x-") else settings
                place[PARAMETERS.get(name, name)] = old
                if old is None:
                    del place[PARAMETERS.get(name, name)]
        return found

    async def rebind(self, old: Collection[Binding], new: Collection[Binding]) -> None:
        async with self._asking() as connection, passing(connection) as channel:
            amqp = channel.pika
            for method, bindings in ((amqp.queue_bind, new), (amqp.queue_unbind, old)):
                await asyncio.gather(
                    *(channel.ask(method, b.queue, b.exchange, b.routing_key) for b in bindings)
                )
        self._topologies = undeclared(self._topologies, bindings=old)
        self._topologies[Topology(bindings=tuple(new))] = None

    async def delete(self, queue: str) -> None:
        differences = await self.compare(Queue(queue, "classic"))
        state = await self.inspect(queue)
        if differences is None or state is None:
            return
        if state.messages or state.consumers:
            raise in_use(queue, state)
        # RabbitMQ looks itself, but not for quorum queues: there it closes the connection.
        is_guarded = "x-queue-type" not in differences
        async with self._asking() as connection, passing(connection) as channel:
            frame = await channel.ask(
                channel.pika.queue_delete, queue, if_unused=is_guarded, if_empty=is_guarded
            )
        if frame.method.message_count:
            LOG.error(
                "%d messages that came to queue %r in the last moment were deleted with it: some "
                "program publishes to it by its name.",
                frame.method.message_count,
                queue,
            )
        self._topologies = undeclared(self._topologies, queue)

    # -- looking into queues

    @contextlib.asynccontextmanager
    async def _asking(self) -> AsyncIterator[PlainWire]:
        """Give the connection for a question that is answered within ``publish_timeout``."""
        await self._ready.wait()
        assert self._connection is not None
        try:
            async with asyncio.timeout(self.config.publish_timeout):
                yield self._connection
        except pika.exceptions.ChannelClosedByBroker as error:
            raise refused(error) from error
        except pika.exceptions.AMQPError as error:
            raise exceptions.ConnectionFailed(
                f"the connection was lost before the broker answered: {text_of(error)}"
            ) from error
        except TimeoutError:
            self._drop(self._connection)
            raise exceptions.ConnectionFailed(
                f"the broker did not answer within {self.config.publish_timeout} s "
                "(publish_timeout)"
            ) from None

    async def inspect(self, queue: str) -> QueueState | None:
        async with self._asking() as connection:
            channel = AwaitableChannel(connection)
            await channel.opened
            try:
                frame = await channel.ask(channel.pika.queue_declare, queue, passive=True)
            except pika.exceptions.ChannelClosedByBroker as error:
                if error.reply_code == NOT_FOUND:
                    return None
                raise
            finally:
                if channel.pika.is_open:
                    channel.pika.close()
        # RabbitMQ counts each message that was taken out of a quorum queue by basic.get, and is
        # not settled, as a consumer.
        held = self._held_of(queue) if self._is_quorum(queue) else 0
        return QueueState(frame.method.message_count, frame.method.consumer_count - held)

    def _held_of(self, queue: str) -> int:
        return sum(each.is_live for each in self._held[queue])

    def _is_quorum(self, queue: str) -> bool:
        return any(
            each.name == queue and each.type == "quorum"
            for topology in self._topologies
            for each in topology.queues
        )

    async def get(self, queue: str) -> AMQPDelivery | None:
        got: list[AMQPDelivery] = []
        async with self._asking() as connection:
            channel = self._getting
            if channel is None or channel.pika.is_closing or channel.pika.is_closed:
                # A channel of its own: a queue that does not exist would end the consumers too.
                channel = self._getting = AwaitableChannel(connection)
            await asyncio.shield(channel.opened)  # others may wait for it too
            await channel.get(queue, _receiver(channel, queue, got.append))
        if not got:
            return None
        self._held[queue].add(got[0])
        return got[0]

    # -- consuming

    async def consume(self, queue: str, prefetch: int, on_delivery: OnDelivery) -> None:
        consumer = _Consumer(queue, prefetch, on_delivery, self._new_tag())
        self._consumers.append(consumer)
        try:
            await self._apply(lambda: self._start_consumer(consumer))
        except exceptions.TransportError:
            self._consumers.remove(consumer)
            raise

    async def _start_consumer(self, consumer: _Consumer) -> None:
        assert self._consuming is not None
        channel = self._consuming
        # Per consumer, not per channel: RabbitMQ 4.3 refuses the latter.
        prefetch = min(consumer.prefetch, MAX_PREFETCH)
        await channel.ask(channel.pika.basic_qos, prefetch_count=prefetch)
        if consumer not in self._consumers:
            return  # cancelled meanwhile: nobody would take what comes
        channel.tags.prefetch = min(each.prefetch for each in self._consumers)
        receive = _receiver(channel, consumer.queue, consumer.on_delivery)
        await channel.consume(consumer.queue, consumer.tag, receive)

    def _new_tag(self) -> str:
        """Return a name for a consumer. It is short, because each delivery has it."""
        return str(next(self._consumer_tags))

    async def change_prefetch(self, queue: str, prefetch: int) -> None:
        for number, old in enumerate(self._consumers):
            if old.queue == queue and old.prefetch != prefetch:
                new = replace(old, prefetch=prefetch, tag=self._new_tag())
                self._consumers[number] = new
                await self._apply(functools.partial(self._succeed, old, new))

    async def _succeed(self, old: _Consumer, new: _Consumer) -> None:
        """Replace a consumer: RabbitMQ applies a prefetch to new ones only."""
        assert self._consuming is not None
        channel = self._consuming
        await self._start_consumer(new)
        await channel.hand_on(old.tag)

    async def reply_queue(self, on_delivery: OnDelivery) -> str:
        await self._ready.wait()
        assert self._consuming is not None
        channel = self._consuming
        # A new name at each connection: the old queue may still be there, locked by a connection
        # that the broker has not given up yet.
        name = f"tavrida.reply.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(6)}"
        receive = _receiver(channel, name, on_delivery, is_settled=True)
        try:
            await channel.ask(channel.pika.queue_declare, name, exclusive=True)
            await channel.consume(name, self._new_tag(), receive, auto_ack=True)
        except pika.exceptions.AMQPError as error:
            why = refused(error, "cannot make a queue for answers")
            raise exceptions.ConnectionFailed(str(why), is_denied=why.is_denied) from error
        return name

    async def cancel(self) -> None:
        consumers, self._consumers = self._consumers, []
        channel = self._consuming
        if channel is None or not channel.pika.is_open:
            return
        # No channel, no consumers; and closing ends those that the broker does not answer for.
        with contextlib.suppress(pika.exceptions.AMQPError, TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await asyncio.gather(*(channel.cancel(c.tag) for c in consumers))

    def _on_cancelled(self, frame: Any) -> None:
        assert self._consuming is not None
        queue = self._consuming.queues.get(frame.method.consumer_tag)
        LOG.warning(
            "%s: the broker cancelled the consumer of queue %r; was that queue deleted?",
            self.name,
            queue,
        )
        self._drop(self._connection)

    def _on_consuming_closed(self, channel: AwaitableChannel, reason: BaseException) -> None:
        connection = self._connection
        if channel is not self._consuming:
            return  # of a connection before this one
        if connection is not None and connection.is_open and not self._is_closing:
            # Who asked for what the broker objects to is told, and tells it.
            level = logging.DEBUG if channel.has_told else logging.WARNING
            LOG.log(level, "%s: the broker closed its channel: %s.", self.name, text_of(reason))
            self._loss_level = level
            self._drop(connection)

    # -- publishing

    def publish(self, publication: Publication, done: Done) -> None:
        self.post(_Sending(self, publication, done))

    def post(self, sending: _Sending) -> None:
        """Put a message into the outbox, from which it leaves soon; on the loop."""
        if self._is_closing:
            sending.end(closed())
            return
        sending.deadline = self.loop.loop.time() + self.config.publish_timeout
        self._outbox.append(sending)
        if not self._will_flush:
            self._will_flush = True
            self.loop.at_end(self._flush)
        if self._sweeper is None:
            self._sweep()

    def read_confirm(
        self, end: Waiting[None], seconds: float, is_alone: Callable[[], bool]
    ) -> None:
        self._read_until(end, seconds, is_alone, least=1)

    def read_answer(self, end: Waiting[Any], seconds: float, is_alone: Callable[[], bool]) -> None:
        # The confirm of its request, which comes before, is no reason to wake up.
        self._read_until(end, seconds, is_alone, least=CONFIRM_SIZE + 1)

    def _read_until(
        self, end: Waiting[Any], seconds: float, is_alone: Callable[[], bool], *, least: int
    ) -> None:
        connection = self._connection
        if connection is not None:
            may_lead = functools.partial(self._may_lead, is_alone)
            self._leader.read_until(connection, end, seconds, may_lead, least=least)

    def _may_lead(self, is_alone: Callable[[], bool]) -> bool:
        # Else there is nothing to read yet; and the sweeper sees to it that the loop reads again.
        return bool(self._unconfirmed) and self._sweeper is not None and is_alone()

    def submit(self, publication: Publication, done: Done) -> None:
        if self._leader.lead is not None:
            self._leader.dismiss()
        # As Nagle's algorithm does it: what is alone leaves at once, what comes while something
        # is on its way leaves together.
        is_alone = not self._unconfirmed and len(publication.body) <= MAX_ALONE
        if not (is_alone and self.loop.do_now(self._send_now, publication, done)):
            self.loop.submit(_Sending(self, publication, done))

    def _send_now(self, publication: Publication, done: Done) -> bool:
        """Send a message where nothing else is to be done, in any thread that has the turn."""
        connection, channel = self._connection, self._publishing
        if (
            self._unconfirmed
            or self._outbox
            or self._refused
            or self._sweeper is None
            or self._is_half_sent
            or self._is_blocked
            or self._is_closing
            or not self._ready.is_set()
            or publication.exchange not in self._exchanges
            or connection is None
            or not connection.is_idle
            or channel is None
            or not channel.pika.is_open
        ):
            return False
        try:
            data = connection.encoded(channel.pika, publication)
        except UNENCODABLE:  # for the loop to meet once more
            return False
        deadline = self.loop.loop.time() + self.config.publish_timeout
        sending, tag = _Sending(self, publication, done, deadline), self._last_tag + 1
        # No call stands between these: a signal handler that raises finds all of it, or nothing.
        self._is_half_sent = True
        self._last_tag = tag
        self._unconfirmed[tag] = sending
        if connection.send_now(data):
            self._is_half_sent = False
        else:
            self.loop.submit(self._is_whole)
        return True

    def _is_whole(self) -> bool:
        """Make sure that nothing is half sent; else the confirms would be taken for others'."""
        if self._is_half_sent:
            self._is_half_sent = False
            connection = self._connection
            if connection is not None and connection.is_open:
                LOG.warning(
                    "%s: a message was broken off in its midst; connecting anew.", self.name
                )
                self._ready.clear()
                connection.break_off("a message was broken off in its midst")
            return False
        return True

    def _flush(self) -> None:
        """Send what waits, unless there is no one to take it."""
        self._will_flush = False
        if not self._is_whole():
            return
        while self._outbox and self._ready.is_set() and not self._is_blocked:
            if self._is_renewing or (self._suspects and self._unconfirmed):
                return
            exchange = self._outbox[0].publication.exchange
            if exchange not in self._exchanges:
                self._look_for(exchange)
                return
            self._send(self._outbox.popleft())

    def _look_for(self, exchange: str) -> None:
        """Ask whether an exchange is there, once a connection; what waits goes on after that."""
        if self._looking_for is None:
            assert self._connection is not None
            looking = self._find(self._connection, exchange)
            self._looking_for = self.loop.loop.create_task(looking)

    def _declaring(self, exchange: str) -> Topology | None:
        """What was declared here with this exchange, if it was."""
        for topology in self._topologies:
            if any(each.name == exchange for each in topology.exchanges):
                return topology
        return None

    async def _find(self, connection: PlainWire, exchange: str) -> None:
        try:
            async with asyncio.timeout(self.config.publish_timeout):
                is_there = await missing_of(connection, [exchange]) is None
                own = self._declaring(exchange)
                if not is_there and own is not None:
                    await self._declare(own)
                    is_there = True
        except (
            pika.exceptions.AMQPError,
            exceptions.TransportError,
            TimeoutError,
            ValueError,
            TypeError,
        ):
            # No connection, no name, no right: for the message itself to meet.
            is_there = True
        finally:
            self._looking_for = None
        if is_there and connection is self._connection:
            self._exchanges.add(exchange)
        elif not is_there:
            missing = [s for s in self._outbox if s.publication.exchange == exchange]
            self._outbox = deque(s for s in self._outbox if s.publication.exchange != exchange)
            for sending in missing:
                sending.end(no_exchange(sending.publication))
        self._flush()

    def _send(self, sending: _Sending) -> None:
        connection = self._connection
        assert self._publishing is not None and connection is not None
        publication = sending.publication
        try:
            connection.send(self._publishing.pika, publication)
        except (pika.exceptions.ChannelWrongStateError, pika.exceptions.ConnectionWrongStateError):
            # Closing, and the callback that says so is on its way.
            self._outbox.appendleft(sending)
            self._ready.clear()
        except exceptions.PublishFailed as error:
            sending.end(error)
        except Exception as error:  # pika's encoder: nothing was written
            sending.end(exceptions.PublishFailed(f"the message cannot be encoded: {error!r}"))
        else:
            self._last_tag += 1
            self._unconfirmed[self._last_tag] = sending

    def _on_return(self, channel: Any, method: Basic.Return, properties: Any, body: bytes) -> None:
        if self._publishing is None or channel is not self._publishing.pika:
            return
        # RabbitMQ sends the return before the confirm of the same message.
        self._returned[properties.message_id, method.exchange or "", method.routing_key or ""] += 1

    def _on_confirm(
        self,
        channel: AwaitableChannel,
        tag: int,
        multiple: bool,
        is_ack: bool,
    ) -> None:
        if channel is not self._publishing or not self._is_whole():
            return  # its tags mean nothing any more
        unconfirmed = self._unconfirmed
        # In the order of sending, which is that of the tags.
        tags = list(itertools.takewhile(tag.__ge__, unconfirmed)) if multiple else (tag,)
        for each in tags:
            sending = unconfirmed.get(each)
            if sending is not None:  # else its deadline passed
                self._conclude(sending, is_ack=is_ack)
                # Not before: what a signal handler breaks off here is sent once more.
                if unconfirmed.get(each) is sending:
                    del unconfirmed[each]
        if not self._unconfirmed:
            self._returned.clear()  # of those whose deadline passed
        if self._is_renewing:
            self._renew()
        if self._outbox:
            self._flush()

    def _conclude(self, sending: _Sending, *, is_ack: bool) -> None:
        if self._suspects:
            self._suspects -= 1
        if not is_ack:
            self._send_again(sending)
        elif self._returned and self._take_return(sending.publication):
            sending.end(unroutable(sending.publication))
        else:
            sending.end(None)

    def _send_again(self, sending: _Sending) -> None:
        """Keep what the broker refused (basic.nack) until there is a new channel.

        A channel of RabbitMQ refuses all that goes to a quorum queue whose leader was on a node
        that is down, for as long as it is, and a new one asks the new leader.
        """
        self._refused.append(sending)
        if self._renewal is None:
            LOG.warning("%s: the broker refused a message; sending it again.", self.name)
            self._renewal = self.loop.loop.call_later(REFUSAL_PAUSE, self._begin_renewal)

    def _begin_renewal(self) -> None:
        self._renewal = None
        if self._refused:
            self._is_renewing = True
            self._renew()

    def _renew(self) -> None:
        """Close the channel, once nothing is on its way over it that would be sent twice."""
        channel = self._publishing
        if not self._unconfirmed and channel is not None and channel.pika.is_open:
            self._ready.clear()
            channel.pika.close()

    def _take_return(self, publication: Publication) -> bool:
        """Tell whether a message was returned, and forget about it."""
        route = _route(publication)
        if not publication.is_mandatory or route not in self._returned:
            return False
        self._returned[route] -= 1
        self._returned += Counter()  # without those that are zero
        return True

    def _on_publishing_closed(self, channel: AwaitableChannel, reason: BaseException) -> None:
        """Find out which publication the broker objected to; the others are sent again."""
        if channel is not self._publishing:
            return  # of a connection before this one, or never open
        self._publishing = None
        self._ready.clear()
        sent = list(self._unconfirmed.values())
        self._unconfirmed.clear()
        self._returned.clear()
        self._last_tag = 0
        connection = self._connection
        is_objection = isinstance(reason, pika.exceptions.ChannelClosedByBroker)
        culprits: list[_Sending] = []
        if isinstance(reason, pika.exceptions.ChannelClosedByBroker):
            culprits = [s for s in sent if is_named_in(reason.reply_text, s.publication)]
            if not culprits and len(sent) == 1:
                culprits = sent
        self._exchanges -= {culprit.publication.exchange for culprit in culprits} - {""}
        is_suspicious = is_objection and not culprits
        if getattr(reason, "reply_code", 0) == NOT_FOUND:
            # Those to exchanges that were declared here go out when these are declared again.
            culprits = [s for s in culprits if not self._declaring(s.publication.exchange)]
        others = [*self._refused, *(sending for sending in sent if sending not in culprits)]
        self._refused.clear()
        self._is_renewing = False
        self._outbox.extendleft(reversed(others))
        self._suspects = len(others) if is_suspicious else 0
        for culprit in culprits:
            culprit.end(objection_to(culprit.publication, reason))
        if connection is not None and connection.is_open and not self._is_closing:
            self.loop.loop.create_task(self._reopen_publishing(connection))

    async def _reopen_publishing(self, connection: PlainWire) -> None:
        try:
            await self._open_publishing(connection)
        except pika.exceptions.AMQPError:
            self._drop(connection)
        else:
            if connection is self._connection:
                self._ready.set()
                self._flush()

    def _sweep(self) -> None:
        """End publications that are over their deadline; runs while there are any."""
        self._sweeper = None
        self._is_whole()
        now = self.loop.loop.time()
        overdue = []
        for tag, sending in list(self._unconfirmed.items()):
            if sending.deadline > now:
                break
            overdue.append(self._unconfirmed.pop(tag))
            self._take_return(sending.publication)
        while self._outbox and self._outbox[0].deadline <= now:
            overdue.append(self._outbox.popleft())
        refused = [sending for sending in self._refused if sending.deadline <= now]
        self._refused = [sending for sending in self._refused if sending.deadline > now]
        overdue += refused
        if refused:
            why = "it refused it each time (basic.nack); is its queue full, or without a leader?"
        elif self._is_blocked:
            why = "it takes no messages now (memory or disk alarm)"
        elif self._ready.is_set():
            why = "it is connected, but did not answer"
        else:
            why = "there is no connection to it"
        for sending in overdue:
            sending.end(
                exceptions.PublishTimeout(
                    f"the broker did not confirm a message within {self.config.publish_timeout} s: "
                    f"{why}"
                )
            )
        if self._is_renewing:
            self._renew()
        self._leader.look()
        if self._outbox or self._unconfirmed or self._refused or self._leader.lead is not None:
            pause = min(1.0, self.config.publish_timeout / 4)
            self._sweeper = self.loop.loop.call_later(pause, self._sweep)

    def _fail_all(self, error: Exception) -> None:
        waiting = [*self._refused, *self._unconfirmed.values(), *self._outbox]
        self._refused.clear()
        self._unconfirmed.clear()
        self._outbox.clear()
        for sending in waiting:
            sending.end(error)

    # -- closing

    async def close(self) -> None:
        self._is_closing = True
        self._leader.close()
        for waiting in (self._sweeper, self._renewal, self._guard):
            if waiting is not None:
                waiting.cancel()
        self._sweeper = None
        connection = self._connection
        if connection is not None and self._lost is not None:
            if connection.is_open:  # else it closes already
                self._part(connection)
            await asyncio.wait([self._lost], timeout=CLOSE_TIMEOUT)
        await self._stop_keeping()
        self._fail_all(closed())


def _receiver(
    channel: AwaitableChannel,
    queue: str,
    on_delivery: Callable[[AMQPDelivery], None],
    *,
    is_settled: bool = False,
) -> Receive:
    """Return what makes deliveries of a queue of what a channel receives."""
    tags = channel.tags

    def receive(
        tag: int,
        redelivered: bool,
        exchange: str,
        routing_key: str,
        properties: ReadProperties,
        body: bytes,
    ) -> None:
        if not is_settled:
            tags.take(tag)
        on_delivery(
            AMQPDelivery(
                body, properties, exchange, routing_key, redelivered, queue, tags, tag, is_settled
            )
        )

    return receive


def _break_off(connection: PlainWire) -> None:
    """End a connection that is being made, or just was."""
    if connection.is_open:
        connection.close()
    elif not connection.is_closing and not connection.is_closed:
        # close() does that too, but in a handshake with an error that pika then stumbles over: it
        # takes the class AMQPConnectionWorkflowAborted for an exception.
        connection.break_off("given up")


def _fault_of(url: str) -> str:
    """Return why a url can never work, or nothing."""
    parts = urlsplit(url)
    if "ssl_options" in parts.query:
        return "ssl_options in it have no effect; set tls_ca_file and its like"
    try:
        pika.URLParameters(_without_user(url))
        if not parts.hostname:
            return "it has no host"
        return "its port is 0" if parts.port == 0 else ""
    except (ValueError, TypeError) as error:  # of what is not the user or the password
        return str(error)


def _without_user(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
