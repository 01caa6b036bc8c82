# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""RPCClient: calls services, casts and publishes from programs that serve nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
import weakref
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Self

from tavrida import envelope, exceptions, plugins, proxies
from tavrida.addresses import Address, AddressBook
from tavrida.calls import Caller
from tavrida.config import ConnectionConfig
from tavrida.discovery import Discovery
from tavrida.entry_point import EntryPoint
from tavrida.loop import LoopThread
from tavrida.messages import IncomingResponse, Message, Notification, Request
from tavrida.plugins.serializers import Serializers
from tavrida.plugins.transports import Done, Events, Transport
from tavrida.publishing import Publisher
from tavrida.topology import Exchange, Topology

LOG = logging.getLogger(__name__)


class RPCClient:
    """Sends requests and notifications; thread-safe, one connection for all threads.

    With ``service`` its attributes are the methods of that service, ``client.hello(param=1)``;
    without, they are services, ``client.test_hello.hello(param=1)``. ``client["close"]`` takes
    any name. It connects at the first message, and in a forked child once more.

    ``source`` says who sends, for those who look into a message later, and is the topic of what
    ``publish`` sends. Without ``discovery`` every service is assumed at the exchange of its own
    name. Close the client or use it in a ``with``; a program that forgets still ends.

    Raises:
        WrongEntryPoint: ``service`` or ``source`` is no name.
        PluginError: there is no such serializer, or no transport for the scheme of the url.
    """

    def __init__(
        self,
        config: ConnectionConfig,
        service: str | None = None,
        discovery: Discovery | None = None,
        source: str | EntryPoint = "client",
        *,
        headers: Mapping[str, Any] | None = None,
        serializer: str = "json",
    ) -> None:
        envelope.check_headers(headers or {})
        if discovery is None:
            discovery = plugins.load(plugins.DISCOVERY, "convention", Discovery)()
        self._sender = _Sender(config, AddressBook(discovery), serializer)
        origin = proxies.Origin(
            self._sender,
            EntryPoint.parse_source(source),
            headers=dict(headers or {}),
        )
        self._origin = origin
        self._proxy: proxies.RPCProxy | proxies.ServiceProxy = proxies.RPCProxy(origin)
        if service is not None:
            EntryPoint(service)
            self._proxy = proxies.ServiceProxy(origin, service)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._proxy[name]

    def __getitem__(self, name: str) -> Any:
        return self._proxy[name]

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
        pipeline = _Pipeline()
        token = _pipeline.set(pipeline)
        try:
            yield
        finally:
            _pipeline.reset(token)
            pipeline.wait()
        if pipeline.failures:
            raise exceptions.PipelineFailed(pipeline.failures)

    def close(self) -> None:
        """Close the connection. Calls that wait end with CallInterrupted. Idempotent."""
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


class _Pipeline:
    """Counts the confirms that a block of code waits for."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._awaited = 0
        self.failures: list[tuple[Message, Exception]] = []

    def add(self, message: Message) -> Done:
        with self._changed:
            self._awaited += 1

        def confirmed(error: Exception | None) -> None:
            with self._changed:
                self._awaited -= 1
                if error is not None:
                    self.failures.append((message, error))
                self._changed.notify()

        return confirmed

    def wait(self) -> None:
        with self._changed:
            # Each confirm has its own deadline, so that this ends.
            self._changed.wait_for(lambda: not self._awaited)


_pipeline: ContextVar[_Pipeline | None] = ContextVar("tavrida_pipeline", default=None)


class _Link:
    """An open connection, and what needs one."""

    def __init__(self, config: ConnectionConfig, serializers: Serializers) -> None:
        cls = plugins.load(plugins.TRANSPORTS, config.scheme, Transport)  # type: ignore[type-abstract]
        for url in config.urls:
            cls.check_url(url)
        self.loop = LoopThread("tavrida-client")
        name = f"tavrida client@{socket.gethostname()} {os.getpid()}"
        events = Events(self._lost, self._failed)
        self._is_given_up = False
        self._process = os.getpid()
        self.transport = cls(config, self.loop, name, events)
        self.publisher = Publisher(self.loop, self.transport)
        self.caller = Caller(self.loop, self.transport, serializers)
        self.exchanges: set[str] = set()
        try:
            self.loop.run(self.transport.open(config.connection_attempts))
        except BaseException:
            self.close()
            raise

    def _lost(self, reason: str) -> None:
        self.caller.interrupt()

    def _failed(self, error: Exception) -> None:
        self._is_given_up = True

    @property
    def is_mine(self) -> bool:
        """False in a forked child: the connection and its thread are the parent's."""
        return self._process == os.getpid()

    @property
    def is_usable(self) -> bool:
        """False when it is of another process, or gave up reconnecting."""
        return self.is_mine and not self._is_given_up

    def close(self) -> None:
        if not self.is_mine:
            return
        with contextlib.suppress(exceptions.ConnectionFailed):
            self.loop.run(self._close())
        self.loop.stop()

    async def _close(self) -> None:
        self.caller.interrupt()
        await self.transport.close()


class _Sender:
    """The Sender of a client's proxies; connects when the first message is sent."""

    def __init__(self, config: ConnectionConfig, addresses: AddressBook, serializer: str) -> None:
        self._config = config
        self._addresses = addresses
        self._serializers = Serializers(serializer, ("json", "msgpack"))
        self._connecting = threading.Lock()
        self._link: _Link | None = None
        self._is_closed = False

    def _linked(self) -> _Link:
        link = self._link
        if link is not None and link.is_usable:
            return link
        with self._connecting:
            if self._is_closed:
                raise exceptions.ConnectionFailed("this client was closed: make a new one")
            if self._link is not None and not self._link.is_usable:
                self._link.close()
                self._link = None
            if self._link is None:
                self._link = _Link(self._config, self._serializers)
                # Programs that forget to close still say goodbye to the broker at their end.
                weakref.finalize(self, self._link.close)
            return self._link

    def close(self) -> None:
        with self._connecting:
            self._is_closed = True
            link, self._link = self._link, None
        if link is not None:
            link.close()

    def send(self, message: Request | Notification) -> None:
        link = self._linked()
        if isinstance(message, Request):
            assert message.destination is not None
            address = self._addresses.of_request(message.destination)
        else:
            address = self._publisher_of(link, message)
        pipeline = _pipeline.get()
        if pipeline is not None:
            done = pipeline.add(message)
            try:
                link.publisher.send(message, address, self._serializers.default, done)
            except exceptions.TavridaError as error:
                done(error)
            return
        _may_wait(link)
        confirmed: Future[None] = Future()

        def end(error: Exception | None) -> None:
            if error is None:
                confirmed.set_result(None)
            else:
                confirmed.set_exception(error)

        link.publisher.send(message, address, self._serializers.default, end)
        confirmed.result()

    def _publisher_of(self, link: _Link, message: Notification) -> Address:
        assert message.source is not None
        address = self._addresses.of_notification(message.source)
        # Nobody may have subscribed yet, which is no error, so that the exchange may be missing.
        if address.exchange not in link.exchanges:
            declaring = link.transport.declare(Topology((Exchange(address.exchange),)))
            timeout = self._config.publish_timeout
            try:
                link.loop.run(asyncio.wait_for(declaring, timeout))
            except TimeoutError:
                raise exceptions.PublishTimeout(
                    f"exchange {address.exchange!r} could not be declared within {timeout} s: "
                    "there is no connection to the broker"
                ) from None
            link.exchanges.add(address.exchange)
        return address

    def call(self, request: Request, timeout: float | None) -> IncomingResponse:
        if request.reply_to:
            raise exceptions.CallError(
                f"a client cannot receive what goes to reply_to={request.reply_to!r}: leave it "
                "out to wait for the answer here, or cast()"
            )
        link = self._linked()
        _may_wait(link)
        return self.ask(request, timeout).result()

    wait = call

    def ask(self, request: Request, timeout: float | None) -> Future[IncomingResponse]:
        link = self._linked()
        assert request.destination is not None
        address = self._addresses.of_request(request.destination)

        def send(message: Request, done: Done) -> None:
            link.publisher.send(message, address, self._serializers.default, done)

        return link.caller.ask(request, timeout, None, send)


def _may_wait(link: _Link) -> None:
    """Raise CallError in a future's callback, which runs on the loop and would block it."""
    if link.loop.is_current:
        raise exceptions.CallError(
            "a callback of a future runs on the client's event loop and may not wait there: use "
            ".future(), or hand over to another thread"
        )
