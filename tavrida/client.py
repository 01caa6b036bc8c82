# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The clients: they call services, cast and publish from programs that serve nothing.

``AsyncRPCClient`` is for asyncio programs, ``RPCClient`` for all others.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import threading
import weakref
from collections import deque
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextvars import Context, ContextVar
from types import TracebackType
from typing import Any, ClassVar, Generic, Self, TypeVar

import msgspec

from tavrida import envelope, exceptions, outgoing, plugins, proxies
from tavrida.addresses import Address, AddressBook
from tavrida.calls import Caller, forget_cancelled, watched
from tavrida.config import ConnectionConfig
from tavrida.discovery import Discovery
from tavrida.entry_point import EntryPoint
from tavrida.loop import LoopThread, Mailbox, is_on_a_loop
from tavrida.messages import IncomingResponse, Message, Notification, Request
from tavrida.middleware import Middleware, Page
from tavrida.outgoing import Outgoing, Telling
from tavrida.plugins.serializers import Serializer, Serializers
from tavrida.plugins.transports import Done, Events, Transport
from tavrida.publishing import Publisher
from tavrida.topology import Exchange, Topology
from tavrida.waiting import Waiting

Result = TypeVar("Result")


class _Client:
    """What both clients have in common: how they are made, and what their attributes are."""

    _call_class: ClassVar[type[proxies.Unsent]]
    _sender: _Connector

    def __init__(
        self,
        config: ConnectionConfig,
        service: str | None = None,
        discovery: Discovery | None = None,
        source: str | EntryPoint = "client",
        *,
        headers: Mapping[str, Any] | None = None,
        serializer: str = "json",
        outgoing_middleware: Iterable[str | Middleware] = (),
    ) -> None:
        envelope.check_headers(headers or {})
        if discovery is None:
            discovery = plugins.load(plugins.DISCOVERY, "convention", Discovery)()
        chain = outgoing.made(outgoing_middleware)
        self._sender = self._new_sender(config, AddressBook(discovery), serializer, chain=chain)
        origin = proxies.Origin(
            self._sender,
            EntryPoint.parse_source(source),
            headers=dict(headers or {}),
            call_class=self._call_class,
        )
        self._origin = origin
        self._proxy: proxies.RPCProxy | proxies.ServiceProxy = proxies.RPCProxy(origin)
        if service is not None:
            EntryPoint(service)
            self._proxy = proxies.ServiceProxy(origin, service)

    def _new_sender(
        self,
        config: ConnectionConfig,
        addresses: AddressBook,
        serializer: str,
        *,
        chain: Sequence[Middleware],
    ) -> _Connector:
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._proxy[name]

    def __getitem__(self, name: str) -> Any:
        return self._proxy[name]


class RPCClient(_Client):
    """Sends requests and notifications; thread-safe, one connection for all threads.

    With ``service`` its attributes are the methods of that service, ``client.hello(param=1)``;
    without, they are services, ``client.test_hello.hello(param=1)``. ``client["close"]`` takes
    any name. It connects at the first message, and in a forked child once more.

    ``source`` says who sends, for those who look into a message later, and is the topic of what
    ``publish`` sends. Without ``discovery`` every service is assumed at the exchange of its own
    name. Close the client or use it in a ``with``; a program that forgets still ends.

    ``outgoing_middleware`` sees all that goes out, in that order: names of plugins
    (tavrida.middleware), ``["opentelemetry", "prometheus"]``, or objects of such classes. It must
    be thread-safe; ``close`` ends what it was told of, and leaves it alone.

    Raises:
        WrongEntryPoint: ``service`` or ``source`` is no name.
        PluginError: there is no such serializer or middleware, or no transport for the scheme of
            the url.
        ConfigError: the transport cannot work with these settings, or a middleware cannot.
    """

    _call_class = proxies.Call
    _sender: _Sender

    def _new_sender(
        self,
        config: ConnectionConfig,
        addresses: AddressBook,
        serializer: str,
        *,
        chain: Sequence[Middleware],
    ) -> _Sender:
        return _Sender(config, addresses, serializer, chain=chain)

    def publish(self, /, **payload: Any) -> None:
        """Publish a notification; its topic is the ``source`` of the client.

        It returns when the broker has confirmed it; that nobody subscribed is no error. Raises
        as ``Call.cast``, and WrongEntryPoint where the source names no method.
        """
        self._sender.send(proxies.notification(self._origin, payload))

    @contextlib.contextmanager
    def pipeline(self) -> Iterator[None]:
        """Make casts and publications of this thread, inside the block, return at once.

        Leaving the block waits for all confirms. Memory stays bounded: at most
        ``max_unconfirmed`` messages are on their way, the next one waits.

        Raises:
            PipelineFailed: some were not confirmed; lists each with its reason.
        """
        if self._sender.link is not None:
            self._sender.link.loop.check_free()
        end: Waiting[None] = Waiting()
        pipeline, before = _Pipeline(end), _pipeline.get()
        try:
            _pipeline.set(pipeline)
            yield
        finally:
            _pipeline.set(before)
            pipeline.leave()
            end.result()  # each confirm has its own deadline, so that this ends
        if pipeline.failures:
            raise exceptions.PipelineFailed(pipeline.failures)

    def close(self) -> None:
        """Close the connection. Idempotent.

        Calls that wait end with CallInterrupted, those not sent yet with ConnectionFailed.
        """
        self._sender.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class AsyncRPCClient(_Client):
    """The client of asyncio programs: ``await client.test_hello.hello(param=1).call(timeout=5)``.

    It is made and named as ``RPCClient``, with the same arguments, and raises the same. What
    sends something is awaited and never blocks the event loop: ``call``, ``cast``, ``publish``.
    Awaiting the request itself is short for its ``call()``. Many tasks share one client; it
    belongs to no event loop and may be used in several. Its connection is served by a thread of
    its own.

    ``asyncio.timeout`` and the cancellation of a task end a call at once; its request may still
    be handled. Use the client in an ``async with``, or await ``close()``; a program that forgets
    still ends.
    """

    _call_class = proxies.AsyncCall
    _sender: _AsyncSender

    def _new_sender(
        self,
        config: ConnectionConfig,
        addresses: AddressBook,
        serializer: str,
        *,
        chain: Sequence[Middleware],
    ) -> _AsyncSender:
        return _AsyncSender(config, addresses, serializer, chain=chain)

    async def publish(self, /, **payload: Any) -> None:
        """Publish a notification; as ``RPCClient.publish``."""
        await self._sender.send(proxies.notification(self._origin, payload))

    @contextlib.asynccontextmanager
    async def pipeline(self) -> AsyncIterator[None]:
        """Make casts and publications inside the block return before they are confirmed.

        That is also so in tasks that are started inside. As ``RPCClient.pipeline`` otherwise:
        ``async with client.pipeline(): ...`` waits at its end, and memory stays bounded.

        Raises:
            PipelineFailed: some were not confirmed; lists each with its reason.
        """
        end: Future[None] = Future()
        pipeline, before = _Pipeline(end), _pipeline.get()
        try:
            _pipeline.set(pipeline)
            yield
        finally:
            _pipeline.set(before)
            pipeline.leave()
            await asyncio.wrap_future(end)
        if pipeline.failures:
            raise exceptions.PipelineFailed(pipeline.failures)

    async def close(self) -> None:
        """Close the connection. Idempotent.

        Calls that wait end with CallInterrupted, those not sent yet with ConnectionFailed.
        """
        await asyncio.to_thread(self._sender.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


class _Ending(msgspec.Struct, eq=False, gc=False):
    """Ends the wait of a pipeline for a message; called with how that ended."""

    pipeline: _Pipeline
    message: Message

    def __call__(self, error: Exception | None) -> None:
        self.pipeline.ended(self, error)


class _Pipeline:
    """Knows the confirms that a block of code waits for."""

    def __init__(self, end: Waiting[None] | Future[None]) -> None:
        #: What is awaited. There is no lock: a signal handler may wait for a confirm in the midst
        #: of what its thread sends, or break that off.
        self.awaited: set[_Ending] = set()
        self._end = end
        self._is_left = False
        self.failures: list[tuple[Message, Exception]] = []

    def ended(self, ending: _Ending, error: Exception | None) -> None:
        """End the wait for a message that is ``awaited``; no more than once."""
        if ending not in self.awaited:
            return
        if error is not None and not isinstance(error, CancelledError):
            self.failures.append((ending.message, error))
        self.awaited.discard(ending)
        if self._is_left:
            self._end_if_done()

    @property
    def is_over(self) -> bool:
        """True when nobody looks at the failures any more."""
        return self._is_left and not self.awaited

    def leave(self) -> None:
        """Have ``end`` end when nothing is awaited any more."""
        self._is_left = True
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self.is_over:
            with contextlib.suppress(InvalidStateError):  # it was over, or cancelled
                self._end.set_result(None)


_pipeline: ContextVar[_Pipeline | None] = ContextVar("tavrida_pipeline", default=None)


def _open_pipeline() -> _Pipeline | None:
    """Return the pipeline around this code; not one that a task has outlived."""
    pipeline = _pipeline.get()
    return None if pipeline is None or pipeline.is_over else pipeline


class _Link:
    """An open connection, and what needs one."""

    def __init__(
        self, transport: type[Transport], config: ConnectionConfig, serializers: Serializers
    ) -> None:
        self.loop = LoopThread("tavrida-client")
        name = f"tavrida client@{socket.gethostname()} {os.getpid()}"
        events = Events(self._lost, self._failed)
        self._is_given_up = False
        self._was_opened = False
        self._process = os.getpid()
        self.transport = transport(config, self.loop, name, events)
        self.publisher = Publisher(self.loop, self.transport)
        #: Ends when it is connected for the first time, or with why it is not.
        self.opened = self.loop.start(self._open(config.connection_attempts))
        self.caller = Caller(self.loop, self.transport, serializers, self.opened)
        self.window = _Window(
            self.loop, self.publisher, serializers.default, config.max_unconfirmed
        )
        self.exchanges: set[str] = set()

    async def _open(self, attempts: int) -> None:
        try:
            await self.transport.open(attempts)
        except asyncio.CancelledError:
            raise exceptions.ConnectionFailed("the client was closed meanwhile") from None
        self._was_opened = True

    def _lost(self, reason: str) -> None:
        self.caller.interrupt()

    def _failed(self, error: Exception) -> None:
        self._is_given_up = True

    @property
    def is_usable(self) -> bool:
        """False when it is of another process, or gave up connecting."""
        if self._is_given_up or self._process != os.getpid():
            return False
        return self._was_opened or not self.opened.done() or self.opened.exception() is None

    @property
    def is_open(self) -> bool:
        """True once it was connected."""
        return self._was_opened or (self.opened.done() and self.opened.exception() is None)

    def wait(
        self,
        end: Waiting[Result],
        message: Message,
        read: Callable[[Waiting[Result], float, Callable[[], bool]], None],
    ) -> Result:
        """Wait for the end of a message that this thread has sent; return its result.

        ``read`` is how the transport reads in this thread. Of a user's code only that of a
        serializer runs there.
        """
        left = message.time_left
        seconds = self.transport.config.publish_timeout if left is None else left
        read(end, seconds, functools.partial(self._has_only, message))
        return end.result()

    def _has_only(self, message: Message) -> bool:
        return self.publisher.has_only(message) and self.caller.has_only(message)

    def not_connected(self, seconds: float) -> exceptions.ConnectionFailed:
        """Return the error of a message that waited so long for the first connection."""
        return exceptions.not_connected(f"{seconds} s (publish_timeout)", self.transport.trouble)

    def close(self) -> None:
        if self._process != os.getpid():  # the connection and its thread are the parent's
            return
        with contextlib.suppress(exceptions.ConnectionFailed):
            # The garbage collector may run a finalizer anywhere, and a signal handler may close.
            if self.loop.is_current or self.loop.is_busy_here:
                self.loop.start(self._close()).add_done_callback(lambda closed: self.loop.stop())
                return
            self.loop.run(self._close())
        self.loop.stop()

    async def _close(self) -> None:
        self.caller.interrupt()
        self.window.close()
        await self.transport.close()

    async def declare(self, exchange: str, timeout: float) -> None:
        """Make sure that an exchange is there: without subscribers nobody else declared it."""
        declaring = self.transport.declare(Topology((Exchange(exchange),)))
        try:
            await asyncio.wait_for(declaring, timeout)
        except TimeoutError:
            raise exceptions.PublishTimeout(
                f"exchange {exchange!r} could not be declared within {timeout} s: "
                "there is no connection to the broker"
            ) from None
        self.exchanges.add(exchange)


class _Window:
    """Sends for those who cannot wait: over ``limit`` unconfirmed messages, it keeps them itself.

    All methods are called on the loop.
    """

    def __init__(
        self, loop: LoopThread, publisher: Publisher, codec: Serializer, limit: int
    ) -> None:
        self._loop = loop
        self._publisher = publisher
        self._codec = codec
        self._limit = limit
        self._unconfirmed = 0
        self._is_closed = False
        self._kept: deque[tuple[Message, Address, Done, Future[Any] | None]] = deque()

    def send(
        self, message: Message, address: Address, done: Done, begun: Future[Any] | None = None
    ) -> None:
        """Send a message when there is room; ``begun`` ends then. One that expired is not sent.

        A ``begun`` that was cancelled takes its message back, where that was not sent yet.
        """
        self._kept.append((message, address, done, begun))
        if self._unconfirmed < self._limit or self._is_closed:
            self._go_on()

    def _go_on(self) -> None:
        while self._kept and (self._unconfirmed < self._limit or self._is_closed):
            message, address, done, begun = self._kept.popleft()
            if begun is not None and not begun.set_running_or_notify_cancel():
                done(CancelledError())
                continue
            if begun is not None:
                begun.set_result(None)
            if self._is_closed:
                done(exceptions.ConnectionFailed("the connection was closed by this program"))
            elif message.time_left == 0:
                done(
                    exceptions.CallTimeout(
                        f"no answer from {message.destination} in time; nothing was sent, for "
                        f"{self._limit} messages (max_unconfirmed) awaited their confirm"
                    )
                )
            else:
                self._send(message, address, done)

    def _send(self, message: Message, address: Address, done: Done) -> None:
        self._unconfirmed += 1

        finished = functools.partial(self._finished, done)
        try:
            self._publisher.send(message, address, self._codec, finished)
        except Exception as error:
            finished(error)

    def _finished(self, done: Done, error: Exception | None) -> None:
        self._unconfirmed -= 1
        done(error)
        if self._kept:  # soon, not now: sending may finish at once, and so on
            self._loop.loop.call_soon(self._go_on)

    def close(self) -> None:
        """Fail what was kept."""
        self._is_closed = True
        self._go_on()


class _Connector:
    """Where a client's messages go; begins to connect when the first one is sent."""

    def __init__(
        self,
        config: ConnectionConfig,
        addresses: AddressBook,
        serializer: str,
        *,
        chain: Sequence[Middleware] = (),
    ) -> None:
        self._config = config
        self._transport = plugins.load(
            plugins.TRANSPORTS,
            config.scheme,
            Transport,  # type: ignore[type-abstract]
        )
        self._transport.check(config)
        self._addresses = addresses
        self._serializers = Serializers(serializer, ("json", "msgpack"))
        self._outgoing = Outgoing(chain, _Vitals(self, config.scheme)) if chain else None
        # A signal handler may send while its thread makes the connection: it makes one of its own.
        self._connecting = threading.RLock()
        self._process = os.getpid()
        self._goodbye: weakref.finalize[..., Any] | None = None
        self._link: _Link | None = None
        self._is_closed = False

    def _begin(self) -> _Link:
        """Return the connection, which may still be under way; waits for no broker."""
        link = self._link
        if link is not None and link.is_usable:
            return link
        if self._process != os.getpid():
            # Forked: a thread that is not here may have held the lock.
            self._connecting, self._process = threading.RLock(), os.getpid()
        with self._connecting:
            if self._is_closed:
                raise exceptions.ConnectionFailed("this client was closed: make a new one")
            if self._link is not None and not self._link.is_usable:
                self._link.close()
                self._link = None
                if self._goodbye is not None:
                    self._goodbye.detach()
            if self._link is None:
                # In nobody's context: what it does later is not part of what happens now.
                self._link = Context().run(_Link, self._transport, self._config, self._serializers)
                # Programs that forget to close still say goodbye to the broker at their end.
                self._goodbye = weakref.finalize(self, self._link.close)
            return self._link

    def close(self) -> None:
        if self._process != os.getpid():
            self._connecting, self._process = threading.RLock(), os.getpid()
        with self._connecting:
            self._is_closed = True
            link, self._link = self._link, None
            if self._goodbye is not None:
                self._goodbye.detach()
        if link is not None:
            link.close()

    @property
    def link(self) -> _Link | None:
        """The connection, once a message began one."""
        return self._link

    def _address_of(self, message: Message) -> Address:
        if isinstance(message, Request):
            assert message.destination is not None
            return self._addresses.of_request(message.destination)
        assert message.source is not None
        return self._addresses.of_notification(message.source)


class _Vitals:
    """What a client tells its middleware of itself."""

    is_server = False

    def __init__(self, connector: _Connector, scheme: str) -> None:
        # Weak: middleware that lives on does not keep the client from saying goodbye.
        self._connector = weakref.ref(connector)
        self.scheme = scheme
        self.pages: dict[str, Page] = {}
        self.looks: list[Callable[[], None]] = []

    @property
    def _link(self) -> _Link | None:
        connector = self._connector()
        return None if connector is None else connector.link

    @property
    def is_ready(self) -> bool:
        """True while it is connected; a client that sent nothing yet is not."""
        link = self._link
        return link is not None and link.is_usable and link.transport.is_ready

    @property
    def late_answers(self) -> int:
        """Answers that nobody waited for any more, on this connection."""
        link = self._link
        return 0 if link is None else link.caller.late_answers


class _Sender(_Connector):
    """The Sender of a client's proxies."""

    def send(self, message: Message, telling: Telling | None = None) -> None:
        if self._outgoing is not None and telling is None:
            # Around all of this: middleware hears also that there is no broker.
            with self._outgoing.publishing(message) as sending:
                self.send(sending.message, sending.telling)
            return
        pipeline = _open_pipeline()
        if pipeline is None:
            _may_wait(self._link)
        link = self._begin()
        if not link.is_open:
            self._wait_until_open(link)
        address = self._address_of(message)
        if isinstance(message, Notification) and address.exchange not in link.exchanges:
            link.loop.run(link.declare(address.exchange, self._config.publish_timeout))
        if pipeline is not None:
            ending = _Ending(pipeline, message)
            done: Done = ending if telling is None else telling(ending)
            try:
                pipeline.awaited.add(ending)
                link.publisher.send(message, address, self._serializers.default, done)
            except exceptions.TavridaError as error:
                done(error)
            except BaseException:
                done(exceptions.PublishFailed("it was interrupted, and may be sent all the same"))
                raise
            return
        confirmed: Waiting[None] = Waiting()
        end: Done = functools.partial(_confirm, confirmed)
        if telling is not None:
            link.publisher.send(message, address, self._serializers.default, telling(end))
            confirmed.result()
        else:
            link.publisher.send(message, address, self._serializers.default, end)
            link.wait(confirmed, message, link.transport.read_confirm)

    def _wait_until_open(self, link: _Link) -> None:
        timeout = self._config.publish_timeout
        try:
            link.opened.result(timeout)
        except TimeoutError:
            if link.opened.done():  # the connecting's own
                raise
            raise link.not_connected(timeout) from None

    def call(self, request: Request, timeout: float | None) -> IncomingResponse:
        if request.reply_to:
            raise exceptions.CallError(
                f"a client cannot receive what goes to reply_to={request.reply_to!r}: leave it "
                "out to wait for the answer here, or cast()"
            )
        _may_wait(self._link)
        if self._outgoing is not None:
            return self.ask(request, timeout).result()
        answer: Waiting[IncomingResponse] = Waiting()
        link = self._ask(request, timeout, answer)
        if request.raises:  # classes whose objects are made where the answer is read
            return answer.result()
        return link.wait(answer, request, link.transport.read_answer)

    wait = call

    async def wait_async(self, request: Request) -> IncomingResponse:
        return await asyncio.wrap_future(self.ask(request, None))

    def ask(self, request: Request, timeout: float | None) -> Future[IncomingResponse]:
        answer: Future[IncomingResponse] = Future()
        if self._outgoing is None:
            self._ask(request, timeout, answer)
        else:
            with self._outgoing.called(request, answer):
                self._ask(request, timeout, answer)
        return answer

    def _ask(
        self,
        request: Request,
        timeout: float | None,
        answer: Waiting[IncomingResponse] | Future[IncomingResponse],
    ) -> _Link:
        link = self._begin()
        address = self._address_of(request)
        if isinstance(answer, Future):
            # Not once it is sent: the loop would wait for a lock that is taken for this.
            forget_cancelled(answer, link.caller, request)

        def send(message: Message, done: Done) -> None:
            link.publisher.send(message, address, self._serializers.default, done)

        through = send if self._outgoing is None else self._outgoing.through(send)
        link.caller.ask(request, timeout, None, through, answer)
        return link


class _Distant(Generic[Result]):
    """The future of an event loop, for those who end it in another thread."""

    __slots__ = ("_future", "_mailbox")

    def __init__(self, future: asyncio.Future[Result], mailbox: Mailbox) -> None:
        self._future = future
        self._mailbox = mailbox

    def set_result(self, result: Result, /) -> None:
        self._mailbox.put(functools.partial(self._end, self._future.set_result, result))

    def set_exception(self, exception: BaseException, /) -> None:
        self._mailbox.put(functools.partial(self._end, self._future.set_exception, exception))

    def _end(self, end: Callable[[Any], None], outcome: Any) -> None:
        if not self._future.done():
            end(outcome)

    def cancelled(self) -> bool:
        return self._future.cancelled()


class _AsyncSender(_Connector):
    """The AsyncSender of a client's proxies. Of an event loop it has only its last mailbox."""

    _mailbox: Mailbox | None = None

    def _future(self) -> tuple[asyncio.Future[Any], _Distant[Any]]:
        """Return a future of this event loop, and how another thread ends it."""
        loop = asyncio.get_running_loop()
        mailbox = self._mailbox
        if mailbox is None or mailbox.loop is not loop:
            mailbox = self._mailbox = Mailbox(loop)
        future = loop.create_future()
        return future, _Distant(future, mailbox)

    async def _begun(self) -> _Link:
        """As _begin, which may have to close a link that is not usable any more."""
        link = self._link
        if link is not None and link.is_usable:
            return link
        return await asyncio.to_thread(self._begin)

    async def send(self, message: Request | Notification) -> None:
        if self._outgoing is None:
            sent = await self._send(message, None)
        else:
            with self._outgoing.publishing(message) as sending:
                sent = await self._send(sending.message, sending.telling)
        if sent is not None:
            await sent

    async def _send(self, message: Message, telling: Telling | None) -> Awaitable[None] | None:
        """Hand a message over; return what ends with its confirm, or its begin in a pipeline."""
        link = await self._begun()
        if not link.is_open:
            timeout = self._config.publish_timeout
            try:
                async with asyncio.timeout(timeout):
                    # Shielded: who gives up waiting does not end it for others.
                    await watched(link.opened)
            except TimeoutError:
                raise link.not_connected(timeout) from None
        address = self._address_of(message)
        if isinstance(message, Notification) and address.exchange not in link.exchanges:
            declaring = link.declare(address.exchange, self._config.publish_timeout)
            await asyncio.wrap_future(link.loop.start(declaring))
        pipeline = _open_pipeline()
        if pipeline is not None:
            begun: Future[None] = Future()
            ending = _Ending(pipeline, message)
            done: Done = ending if telling is None else telling(ending)
            try:
                pipeline.awaited.add(ending)
                link.loop.submit(link.window.send, message, address, done, begun)
            except exceptions.TavridaError as error:
                done(error)
                return None
            return asyncio.wrap_future(begun)
        future, confirmed = self._future()
        end: Done = functools.partial(_confirm, confirmed)
        if telling is not None:
            end = telling(end)
        link.loop.submit(link.window.send, message, address, end)
        return future

    async def ask(self, request: Request, timeout: float | None) -> IncomingResponse:
        future, answer = self._future()
        if self._outgoing is None:
            caller = await self._ask(request, timeout, answer)
        else:
            with self._outgoing.called(request, future):
                caller = await self._ask(request, timeout, answer)
        try:
            response: IncomingResponse = await future
        finally:
            if future.cancelled():
                caller.forget(request)
        return response

    async def _ask(
        self, request: Request, timeout: float | None, answer: _Distant[IncomingResponse]
    ) -> Caller:
        link = await self._begun()
        address = self._address_of(request)

        def send(message: Message, done: Done) -> None:
            link.loop.submit(link.window.send, message, address, done)

        through = send if self._outgoing is None else self._outgoing.through(send)
        link.caller.ask(request, timeout, None, through, answer)
        return link.caller


def _confirm(confirmed: Waiting[None] | _Distant[None], error: Exception | None) -> None:
    with contextlib.suppress(InvalidStateError):  # who waited cancelled it
        if error is None:
            confirmed.set_result(None)
        else:
            confirmed.set_exception(error)


def _may_wait(link: _Link | None) -> None:
    """Raise CallError where waiting would block the event loop of a server or client."""
    if link is not None:
        link.loop.check_free()
    if is_on_a_loop():
        raise exceptions.CallError(
            "this runs on an event loop and would block it: in an async def handler, await a call "
            "of its proxy or use AsyncRPCClient; in a callback of a future, use .future() or hand "
            "over to another thread"
        )
