# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The proxies: ``proxy.service.method(**payload).call()`` reads as the sentence it is.

They only build messages; a Sender takes them on their way.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from concurrent.futures import Future
from types import MappingProxyType
from typing import Any, Protocol, Self

import msgspec

from tavrida import envelope, exceptions
from tavrida.entry_point import EntryPoint
from tavrida.messages import IncomingRequest, IncomingResponse, Notification, Request


class Sender(Protocol):
    """What takes the messages of proxies: a client, or the delivery that is being handled."""

    def send(self, message: Request | Notification) -> None:
        """Send a message that nobody answers here."""

    def call(self, request: Request, timeout: float | None) -> IncomingResponse | None:
        """Send a request in the way that ``.call()`` means here."""

    def wait(self, request: Request, timeout: float | None) -> IncomingResponse:
        """Send a request and return its answer."""

    async def wait_async(self, request: Request) -> IncomingResponse:
        """Send a request and return its answer, without blocking the event loop."""

    def ask(self, request: Request, timeout: float | None) -> Future[IncomingResponse]:
        """Send a request; the future ends with its answer or with why there is none."""


class Unsent:
    """A request that was put together and not yet sent."""

    __slots__ = ("_destination", "_origin", "_payload", "_raises")

    def __init__(
        self,
        origin: Origin,
        destination: EntryPoint,
        payload: dict[str, Any],
        raises: Mapping[str, type[Exception]] = MappingProxyType({}),
    ) -> None:
        self._origin = origin
        self._destination = destination
        self._payload = payload
        self._raises = raises

    def raises(self, /, *classes: type[Exception], **named: type[Exception]) -> Self:
        """Return the same call, whose remote errors are raised as these local classes.

        ``shop.buy(id=1).raises(OutOfStock, NotFound=LookupError).call()`` goes by the name of the
        remote class, for every way to wait. A class is made from the remote message; its
        ``__cause__`` is the RemoteError, which is raised itself for any other name and where the
        class takes no message.

        Raises:
            TypeError: one is no class of exceptions.
        """
        raises = {**self._raises, **exceptions.raises_of(classes, named)}
        return type(self)(self._origin, self._destination, self._payload, raises)

    def _request(
        self,
        correlation_id: str | None = None,
        context: Mapping[str, Any] | None = None,
        source: str | EntryPoint | None = None,
        reply_to: str = "",
    ) -> Request:
        origin = self._origin
        chain = correlation_id or origin.correlation_id
        message_id = envelope.new_id()
        return Request(
            dict(self._payload),
            {**origin.context, **(context or {}), **self._payload},
            dict(origin.headers),
            chain or message_id,
            envelope.new_id() if chain else message_id,
            message_id,
            EntryPoint.parse_source(source) if source else origin.source,
            self._destination,
            reply_to,
            raises=self._raises,
        )

    def __repr__(self) -> str:
        return f"<Call of {self._destination}: not sent until .call() or .cast()>"


class Call(Unsent):
    """A request that was put together. Each of its methods, but ``raises``, sends it once more."""

    __slots__ = ()

    def cast(
        self,
        correlation_id: str | None = None,
        context: Mapping[str, Any] | None = None,
        source: str | EntryPoint | None = None,
    ) -> None:
        """Send the request one way.

        A client returns when the broker has confirmed it. A handler goes on at once: what it
        sent belongs to the delivery that it handles, which is acknowledged only after.

        Raises:
            ServiceUnknown, ServiceUnavailable, MessageError, TransportError: nothing was sent,
                or (PublishTimeout) the broker did not say that it took the message.
        """
        self._origin.sender.send(self._request(correlation_id, context, source))

    def call(
        self,
        correlation_id: str | None = None,
        context: Mapping[str, Any] | None = None,
        source: str | EntryPoint | None = None,
        reply_to: str = "",
        *,
        timeout: float | None = None,
    ) -> IncomingResponse | None:
        """Send the request and, from a client, return its answer.

        From a controller's handler it returns None at once; the answer comes to the handler that
        ``rpc_response_method`` or ``rpc_error_method`` marks, in any process of the service.
        ``reply_to`` sends it to another service or queue instead. ``timeout`` is in seconds and
        for clients; the default is the option ``call_timeout``.

        Raises:
            RemoteError: the answer is an error.
            CallTimeout, CallInterrupted, ServiceUnavailable: there is no answer.
            ServiceUnknown, MessageError, TransportError: the request could not be sent.
        """
        request = self._request(correlation_id, context, source, reply_to)
        sender: Sender = self._origin.sender
        return sender.call(request, timeout)

    def wait(self, timeout: float | None = None) -> IncomingResponse:
        """Send the request and return its answer, blocking this thread; raises as ``call``."""
        sender: Sender = self._origin.sender
        return sender.wait(self._request(), timeout)

    def future(self, timeout: float | None = None) -> Future[IncomingResponse]:
        """Send the request; the future ends with its answer or with what ``wait`` would raise."""
        sender: Sender = self._origin.sender
        return sender.ask(self._request(), timeout)

    def __await__(self) -> Generator[Any, None, IncomingResponse]:
        """``await`` in an ``async def`` handler does what ``wait`` does, without blocking."""
        sender: Sender = self._origin.sender
        return sender.wait_async(self._request()).__await__()

    def transfer(
        self,
        request: IncomingRequest,
        correlation_id: str | None = None,
        context: Mapping[str, Any] | None = None,
        source: str | EntryPoint | None = None,
    ) -> None:
        """Hand a request on: whoever handles this one answers the original caller.

        Context, identifiers of the chain and pair, and the deadline are the original's. The
        handler that transfers a request gives no answer of its own.

        Raises:
            CallTimeout: the deadline has passed; nothing was sent.
        """
        message = self._request(
            correlation_id or request.correlation_id,
            {**request.context, **(context or {})},
            source,
            request.reply_to,
        )
        message.request_id = request.request_id
        message.deadline = request.deadline
        if request.time_left == 0:
            raise exceptions.CallTimeout(
                f"no time is left to transfer the request to {self._destination}: its deadline "
                "has passed; nothing was sent"
            )
        self._origin.sender.send(message)
        request.reply_to = ""


class AsyncSender(Protocol):
    """What takes the messages of proxies in an asyncio program."""

    async def send(self, message: Request | Notification) -> None:
        """Send a message that nobody answers here."""

    async def ask(self, request: Request, timeout: float | None) -> IncomingResponse:
        """Send a request and return its answer."""


class AsyncCall(Unsent):
    """A request that was put together in an asyncio program. Awaiting a method sends it."""

    __slots__ = ()

    async def cast(
        self,
        correlation_id: str | None = None,
        context: Mapping[str, Any] | None = None,
        source: str | EntryPoint | None = None,
    ) -> None:
        """Send the request one way; it returns when the broker has confirmed it.

        Inside of ``async with client.pipeline():`` it returns when the message is on its way.
        Raises as ``Call.cast``.
        """
        sender: AsyncSender = self._origin.sender
        await sender.send(self._request(correlation_id, context, source))

    async def call(
        self,
        correlation_id: str | None = None,
        context: Mapping[str, Any] | None = None,
        source: str | EntryPoint | None = None,
        *,
        timeout: float | None = None,
    ) -> IncomingResponse:
        """Send the request and return its answer; ``timeout`` is in seconds.

        The default is the option ``call_timeout``. Who cancels the task that awaits it is told
        nothing more; the request may still be handled. Raises as ``Call.call``.
        """
        sender: AsyncSender = self._origin.sender
        return await sender.ask(self._request(correlation_id, context, source), timeout)

    def __await__(self) -> Generator[Any, None, IncomingResponse]:
        """``await client.service.method(...)`` is short for its ``call()``."""
        return self.call().__await__()


class Origin(msgspec.Struct, eq=False):
    """Where messages come from, and what they carry on from the message that set them off."""

    #: A Sender; that of an AsyncCall is an AsyncSender.
    sender: Any
    source: EntryPoint
    correlation_id: str = ""
    context: Mapping[str, Any] = msgspec.field(default_factory=dict)
    headers: dict[str, Any] = msgspec.field(default_factory=dict)
    #: What the methods of proxies make when they are called.
    call_class: type[Any] = Call


class MethodProxy:
    """``proxy.service.method``; calling it with the payload gives a Call."""

    __slots__ = ("_destination", "_origin")

    def __init__(self, origin: Origin, destination: EntryPoint) -> None:
        self._origin = origin
        self._destination = destination

    def __call__(self, /, **payload: Any) -> Call:
        call: Call = self._origin.call_class(self._origin, self._destination, payload)
        return call


class ServiceProxy:
    """``proxy.service``; its attributes are methods. ``proxy.service["x"]`` takes any name."""

    __slots__ = ("_origin", "_service")

    def __init__(self, origin: Origin, service: str) -> None:
        self._origin = origin
        self._service = service

    def __getitem__(self, method: str) -> MethodProxy:
        if not method:
            raise exceptions.WrongEntryPoint(f"{method!r} is no name of a method")
        return MethodProxy(self._origin, EntryPoint.of(self._service, method))

    def __getattr__(self, method: str) -> MethodProxy:
        # copy, pickle and debuggers ask for attributes of this form and take any answer for a yes
        if method.startswith("_"):
            raise AttributeError(method)
        return self[method]


class RPCProxy:
    """What handlers get: its attributes are services. ``proxy["publish"]`` takes any name.

    It belongs to one delivery; the threads of one handler may share it.
    """

    __slots__ = ("_origin",)

    def __init__(self, origin: Origin) -> None:
        self._origin = origin

    def __getitem__(self, service: str) -> ServiceProxy:
        return ServiceProxy(self._origin, service)

    def __getattr__(self, service: str) -> ServiceProxy:
        if service.startswith("_"):
            raise AttributeError(service)
        return self[service]

    def add_headers(self, headers: Mapping[str, Any]) -> None:
        """Add headers to every message that is sent through this proxy from now on.

        Raises:
            MessageError: a name is tavrida's own, or a value cannot go on the wire.
        """
        envelope.check_headers(headers)
        self._origin.headers.update(headers)

    def publish(self, /, **payload: Any) -> None:
        """Publish a notification; its topic is the entry point that handles the message.

        Raises as ``Call.cast``; that nobody subscribed is no error.
        """
        self._origin.sender.send(notification(self._origin, payload))

    def publish_as(self, method: str, /, **payload: Any) -> None:
        """Publish a notification with another method of the same service as its topic."""
        source = EntryPoint.parse(f"{self._origin.source.service}.{method}")
        self._origin.sender.send(
            notification(msgspec.structs.replace(self._origin, source=source), payload)
        )


def notification(origin: Origin, payload: dict[str, Any]) -> Notification:
    """Return the notification of an origin, whose source is the topic.

    Raises:
        WrongEntryPoint: the source names no method.
    """
    if not origin.source.method:
        raise exceptions.WrongEntryPoint(
            f"source {str(origin.source)!r} names no method, so it is no topic: publish with a "
            "source such as 'test_hello.hello'"
        )
    chain = origin.correlation_id
    message_id = envelope.new_id()
    return Notification(
        payload,
        {**origin.context, **payload},
        dict(origin.headers),
        chain or message_id,
        envelope.new_id() if chain else message_id,
        message_id,
        origin.source,
    )
