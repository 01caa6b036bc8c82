# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Server: runs controllers on the queues of a broker."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from types import FrameType, TracebackType
from typing import Any, Self

from tavrida import description, dispatcher, exceptions, plugins
from tavrida.addresses import AddressBook
from tavrida.board import Seat
from tavrida.calls import Caller
from tavrida.config import ConnectionConfig, HealthSettings, ServerSettings
from tavrida.discovery import LocalDiscovery
from tavrida.dispatcher import Dispatcher, Handler
from tavrida.health import SERVING, STOPPING, Health, Vitals
from tavrida.loop import SLICE, LoopThread
from tavrida.messages import Error
from tavrida.middleware import Middleware
from tavrida.overload import Threshold, limits_of, prefetch_of
from tavrida.plugins.serializers import Serializers
from tavrida.plugins.transports import Events, OnDelivery, Transport
from tavrida.processing import Processor
from tavrida.publishing import Publisher
from tavrida.retries import Policy, Retries, Said, levels_of, said
from tavrida.router import Router
from tavrida.service import ServiceController
from tavrida.summary import summary_of, text_of
from tavrida.topology import Placement, Topology, topology_of
from tavrida.watch import watch

LOG = logging.getLogger(__name__)


class Server:
    """Serves controllers until it is stopped. Building it connects to nothing.

    ``Server(config, queue_name, exchange_name, [HelloController])`` has all controllers of the
    list share one queue and one exchange; other keyword arguments are the options of the ini's
    ``[server]`` section, such as ``queue_type="classic"``. One handler runs at a time, in the
    order of the queue, unless ``config.async_engine`` is True. ``retry`` (a ``Retry``, a number of
    attempts, or False) holds for all handlers whose decorators do not say otherwise. ``health`` is
    the ini's ``[health]``.

    Raises:
        ConfigError: the controllers, the options or a plugin cannot work (HandlerConflict,
            InvalidHandler, PluginError among others); says which and what to do.
    """

    def __init__(
        self,
        config: ConnectionConfig,
        queue_name: str,
        exchange_name: str,
        service_list: Sequence[type[ServiceController]],
        *,
        retry: Said | None = None,
        health: HealthSettings = HealthSettings(),  # noqa: B008 - it is frozen
        **settings: Any,
    ) -> None:
        chosen = ServerSettings.from_keywords(
            settings if config.async_engine else {"concurrency": 1, **settings}
        )
        if not config.async_engine and chosen.concurrency != 1:
            raise exceptions.ConfigError(
                f"concurrency={chosen.concurrency} has no effect with async_engine=False, which "
                "runs one handler at a time: set ConnectionConfig(async_engine=True)"
            )
        if not service_list:
            raise exceptions.ConfigError("service_list is empty: name at least one controller")
        faults = exceptions.Faults()
        dispatchers = []
        for cls in service_list:
            with faults.collected():
                dispatchers.append(Dispatcher(_controller(cls)))
        faults.check()
        exchanges = {each.service: exchange_name for each in dispatchers}
        self._build(
            config,
            [
                Placement(
                    each,
                    queue_name,
                    exchange_name,
                    AddressBook(each.controller.get_discovery() or LocalDiscovery(), exchanges),
                    None,
                    tuple(each.controller.incoming_middleware),
                    tuple(each.controller.outgoing_middleware),
                )
                for each in dispatchers
            ],
            chosen,
            Retries() if retry is None else Retries(said(retry)),
            health,
        )

    @classmethod
    def from_placements(
        cls,
        config: ConnectionConfig,
        placements: Sequence[Placement],
        settings: ServerSettings,
        retries: Retries = Retries(),  # noqa: B008 - it is frozen
        *,
        health: HealthSettings = HealthSettings(),  # noqa: B008 - the same
    ) -> Self:
        """Return a server whose controllers have queues, exchanges and discovery of their own."""
        server = cls.__new__(cls)
        server._build(config, placements, settings, retries, health)  # noqa: SLF001 - the other constructor
        return server

    def _build(
        self,
        config: ConnectionConfig,
        placements: Sequence[Placement],
        settings: ServerSettings,
        retries: Retries,
        health: HealthSettings,
    ) -> None:
        self.config = config
        self.settings = settings
        self.health_settings = health
        faults = exceptions.Faults()
        with faults.collected():
            placements = _with_middleware(placements, settings)
        self.placements = tuple(placements)
        self._policies: dict[Handler, Policy] = {}
        levels: dict[str, tuple[int, ...]] = {}
        with faults.collected():
            self._policies = _policies_of(placements, retries)
            levels = _levels_of(placements, self._policies)
        self._limits: dict[Handler, int] = {}
        with faults.collected():
            self._limits = limits_of(_handlers_of(placements), settings.handler_concurrency)
        with faults.collected():
            self.topology = topology_of(
                placements, settings.queue_type, settings.delivery_limit, levels
            )
        with faults.collected():
            self._serializers = Serializers(settings.serializer, settings.accept)
        with faults.collected():
            self._transport_class = plugins.load(
                plugins.TRANSPORTS,
                config.scheme,
                Transport,  # type: ignore[type-abstract]
            )
            self._transport_class.check(config)
        shared: dict[str, list[Placement]] = {}
        for placement in placements:
            shared.setdefault(placement.queue, []).append(placement)
        self._queues: list[tuple[str, Router, dict[str, Placement]]] = []
        for queue, sharing in shared.items():
            with faults.collected():
                dispatchers = [each.dispatcher for each in sharing]
                described = dispatchers if settings.describe else ()
                router = Router(dispatchers, map(description.handler_of, described))
                self._queues.append(
                    (queue, router, {each.dispatcher.service: each for each in sharing})
                )
        faults.check()
        self._loop: LoopThread | None = None
        self._health: Health | None = None
        #: Where this is one of several processes with one port for ``health``.
        self.health_seat: Seat | None = None
        # Not an Event: a signal handler may run inside its methods, and would wait for itself.
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._jobs: deque[Callable[[], None]] = deque()
        self._is_stop_requested = False
        self._has_stopped = False
        self._failure: Exception | None = None
        self._signals = 0

    def start(self) -> None:
        """Connect, declare and serve in the background; return when messages are coming in.

        Waits for a broker that is not up yet, as long as ``reconnect_attempts`` allows.

        Raises:
            ConnectionFailed: the broker cannot be reached, or refuses the user or virtual host.
            TopologyConflict: a queue or exchange exists with other properties.
            ConfigError: the port of ``health`` is taken, or a middleware cannot observe.
        """
        if self._loop is not None:
            raise exceptions.ConfigError("this server was started already")
        if self._has_stopped:  # what asked for that asked for nothing more
            self._is_stop_requested = self._has_stopped = False
        self._failure = None
        if self.health_settings.port:
            self._health = Health(self.health_settings, self.health_seat)
        self._loop = loop = LoopThread("tavrida-server")
        try:
            self._assemble(loop)
        except BaseException:
            self._loop = None
            loop.stop()
            self._close_health()
            raise
        if self._health is not None:
            self._health.start(loop, self._vitals)
        starting = loop.start(self._start())
        starting.add_done_callback(lambda future: self._wake.put(None))
        # Not starting.result(): request_stop() shall end this waiting, which may be long.
        while not (starting.done() or self._is_stop_requested or self._failure):
            self._wait()
        error = self._failure
        if error is None and starting.done() and not starting.cancelled():
            error = starting.exception()
            if error is None:
                self._tell_others()
                self._log_that_it_serves()
                return
        self._abandon(starting)
        if error is not None:
            raise error

    def _log_that_it_serves(self) -> None:
        # Here and not on the loop: from now on, a signal is a graceful stop.
        summary = summary_of(self.config, self.settings, self.placements, self.health_settings)
        LOG.info("%s", text_of(summary), extra={"summary": summary})

    def _wait(self) -> None:
        """Wait until something that this object's owner waits for may have happened."""
        # In slices: a signal that comes just before the waiting begins does not end it.
        with contextlib.suppress(Empty):
            self._wake.get(timeout=SLICE)

    def _assemble(self, loop: LoopThread) -> None:
        """Make what one run of the server consists of."""
        names = ",".join(p.dispatcher.service for p in self.placements)
        name = f"tavrida {names[:150]}@{socket.gethostname()} {os.getpid()}"
        # A broker that blocks publishers blocks their whole connection, so consuming has its own.
        self._consuming = self._transport_class(
            self.config, loop, f"{name} in", Events(self._lost, self._failed)
        )
        self._publishing = self._transport_class(
            self.config,
            loop,
            f"{name} out",
            Events(lambda reason: None, self._failed),
        )
        self._caller = Caller(loop, self._consuming, self._serializers)
        self._processor = Processor(
            loop,
            Publisher(loop, self._publishing),
            self._caller,
            self._serializers,
            self.settings.concurrency,
            lambda: self._consuming.declare(self.topology),
            Error.with_traceback if self.settings.debug_tracebacks else Error.from_exception,
            self._policies,
            # Quorum queues count how often they deliver, and move the message themselves.
            self.settings.delivery_limit if self.settings.queue_type == "classic" else None,
            self._limits,
            _threshold_of(self.settings),
            _unique(each.incoming for each in self.placements),
        )
        self._vitals = Vitals(self._consuming, self._publishing, self._processor, self._caller)
        chains = (chain for each in self.placements for chain in (each.incoming, each.outgoing))
        for middleware in _unique(chains):
            _let_observe(middleware, self._vitals)

    async def _start(self) -> None:
        settings = self.settings
        await self._consuming.open(self.config.reconnect_attempts)
        await self._publishing.open(self.config.reconnect_attempts)
        await self._consuming.declare(self.topology)
        for queue, router, services in self._queues:
            receive = functools.partial(self._processor.receive, router=router, placements=services)
            prefetch = _prefetch_of(services.values(), settings, self._limits)
            await self._consuming.consume(queue, prefetch, receive)
            self._watch(queue, services, prefetch, receive)
        if settings.consumer_timeout and self._consuming.has_consumer_timeout:
            processor = self._processor
            processor.start_task(watch(lambda: processor.open_handlings, settings.consumer_timeout))
        self._vitals.state = SERVING

    def _watch(
        self, queue: str, services: Iterable[str], prefetch: int, receive: OnDelivery
    ) -> None:
        for service in services:
            self._processor.standstill.watch(service, self._consuming, queue, prefetch, receive)

    def reload(self, settings: ServerSettings, retries: Retries) -> bool:
        """Go on with other settings: the options marked mutable and the retries take effect.

        Connections stay, and so does what runs. Waits while there is no connection; False says that
        a stop was requested before there was one. To be called by the thread that starts and stops
        the server.

        Raises:
            ConfigError: they cannot work; nothing is changed.
            TransportError: the broker refuses what they need, such as queues of new retries; a part
                may have taken effect.
        """
        faults = exceptions.Faults()
        policies, levels, limits = self._policies, {}, self._limits
        with faults.collected():
            policies = _policies_of(self.placements, retries)
            levels = _levels_of(self.placements, policies)
        with faults.collected():
            limits = limits_of(_handlers_of(self.placements), settings.handler_concurrency)
        faults.check()
        topology = topology_of(
            self.placements, self.settings.queue_type, self.settings.delivery_limit, levels
        )
        if self._loop is not None:
            changing = self._loop.start(self._change(settings, policies, limits, topology))
            changing.add_done_callback(lambda future: self._wake.put(None))
            while not (changing.done() or self._is_stop_requested or self._failure):
                self._wait()
            if not changing.done():
                changing.cancel()
                return False
            changing.result()
        self.settings, self.topology = settings, topology
        self._policies, self._limits = policies, limits
        return True

    async def _change(
        self,
        settings: ServerSettings,
        policies: Mapping[Handler, Policy],
        limits: Mapping[Handler, int],
        topology: Topology,
    ) -> None:
        if topology != self.topology:
            await self._consuming.declare(topology)
        self._processor.change(settings.concurrency, policies, limits, _threshold_of(settings))
        for queue, router, services in self._queues:
            before = _prefetch_of(services.values(), self.settings, self._limits)
            prefetch = _prefetch_of(services.values(), settings, limits)
            if prefetch != before:
                await self._consuming.change_prefetch(queue, prefetch)
                receive = functools.partial(
                    self._processor.receive, router=router, placements=services
                )
                self._watch(queue, services, prefetch, receive)

    def _lost(self, reason: str) -> None:
        self._processor.lost()
        self._caller.interrupt()

    def _failed(self, error: Exception) -> None:
        self._failure = error
        self._wake.put(None)

    def stop(self) -> None:
        """Stop gracefully: finish what runs, for ``graceful_timeout`` at most, then disconnect.

        Deliveries that did not end by then go back to their queues. Thread-safe, idempotent;
        from inside a handler, use ``request_stop``.
        """
        if self._loop is not None and self._loop.is_current:
            raise RuntimeError("stop() in an async handler would wait for itself: request_stop()")
        loop, self._loop = self._loop, None
        if loop is None:
            return
        self._has_stopped = True
        try:
            left = loop.run(self._stop())
        finally:
            loop.stop()
            self._close_health()
            self.request_stop()
        if left:
            LOG.warning(
                "Stopped with %d handlers still running after %s s (graceful_timeout); their "
                "messages go back to the queue.",
                left,
                self.settings.graceful_timeout,
            )
        LOG.info("tavrida stopped.")

    def _tell_others(self) -> None:
        if self._health is not None:
            self._health.tell()

    def _close_health(self) -> None:
        if self._health is not None:
            self._health.close()

    async def _stop(self) -> int:
        self._vitals.state = STOPPING
        self._tell_others()
        self._processor.standstill.stop()
        await self._consuming.cancel()
        left = await self._processor.drain(self.settings.graceful_timeout)
        await self._disconnect()
        # Not before: handlers that wait fail of it, and their messages go back and not to .dead.
        self._caller.interrupt()
        return left

    async def _disconnect(self) -> None:
        # Acknowledgements are on the first; they are written before it closes.
        await self._consuming.close()
        await self._publishing.close()

    def _abandon(self, starting: Future[None]) -> None:
        """Stop at once, without waiting for handlers."""
        starting.cancel()
        self._has_stopped = True
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.run(self._disconnect())
            loop.stop()
        self._close_health()

    def request_stop(self) -> None:
        """Make ``run`` return soon. May be called from handlers and signal handlers."""
        self._is_stop_requested = True
        self._wake.put(None)

    def request(self, job: Callable[[], None]) -> None:
        """Have ``run`` call something in its thread, as soon as messages are coming in.

        May be called from signal handlers, also before ``run``; what ``run`` does not come to any
        more is not called. An exception of the job is logged.
        """
        self._jobs.append(job)
        self._wake.put(None)

    def run(self, *, before_stop: Callable[[], None] = lambda: None) -> None:
        """Serve until SIGTERM, SIGINT or ``request_stop``, then stop gracefully.

        ``before_stop`` is called when that begins, unless nothing was served until then. In the
        main thread it takes the two signals over while it runs; a second one stops at once. Raises
        as ``start``, and ConnectionFailed when the broker was lost for good.
        """
        previous = self._take_signals()
        try:
            self.start()
            if self._loop is None:  # a signal came while it was starting
                LOG.info("tavrida stopped.")
                return
            while not self._is_stop_requested and self._failure is None:
                if self._jobs:
                    self._do(self._jobs.popleft())
                else:
                    self._wait()
            before_stop()
            self.stop()
            if self._failure is not None:
                raise self._failure
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    @staticmethod
    def _do(job: Callable[[], None]) -> None:
        try:
            job()
        except Exception:
            LOG.exception("A job failed: %r.", job)

    def _take_signals(self) -> Mapping[int, Any]:
        if threading.current_thread() is not threading.main_thread():
            return {}
        return {n: signal.signal(n, self._on_signal) for n in (signal.SIGTERM, signal.SIGINT)}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals > 1:
            # Handlers may be stuck, and their threads with them: nothing more to wait for.
            os._exit(128 + number)
        LOG.info("Got %s: stopping. A second one stops at once.", signal.Signals(number).name)
        self.request_stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def _controller(cls: type[ServiceController]) -> ServiceController:
    if not (isinstance(cls, type) and issubclass(cls, ServiceController)):
        raise exceptions.ConfigError(
            f"{cls!r} in service_list is no controller: name a class that derives from "
            "tavrida.service.ServiceController"
        )
    dispatcher.service_of(cls)
    return cls()


def _unique(chains: Iterable[Sequence[Middleware]]) -> list[Middleware]:
    """Return all middleware of some chains, each one once."""
    return list({id(each): each for chain in chains for each in chain}.values())


def _let_observe(middleware: Middleware, vitals: Vitals) -> None:
    try:
        middleware.observe(vitals)
    except exceptions.ConfigError:
        raise
    except Exception as error:
        raise exceptions.ConfigError(
            f"the middleware {type(middleware).__name__} cannot begin to observe: "
            f"{type(error).__name__}: {exceptions.printable(exceptions.text_of(error))}"
        ) from error


def _threshold_of(settings: ServerSettings) -> Threshold:
    return Threshold(settings.failure_threshold, settings.failure_window, settings.failure_pause)


def _prefetch_of(
    placements: Iterable[Placement], settings: ServerSettings, limits: Mapping[Handler, int]
) -> int:
    """Return how many messages of the placements' queue to take ahead."""
    return settings.prefetch or prefetch_of(_handlers_of(placements), limits, settings.concurrency)


def _handlers_of(placements: Iterable[Placement]) -> list[Handler]:
    return [handler for each in placements for handler in each.dispatcher.handlers.values()]


def _policies_of(placements: Sequence[Placement], retries: Retries) -> dict[Handler, Policy]:
    """Return how each handler is tried again; raise ConfigError with all that cannot be."""
    policies: dict[Handler, Policy] = {}
    faults = exceptions.Faults()
    for placement in placements:
        for mark, handler in placement.dispatcher.handlers.items():
            with faults.collected(f"retry of {handler.place}: "):
                policies[handler] = retries.policy_of(
                    handler.service, str(mark.entry_point), mark.retry
                )
    faults.check()
    return policies


def _levels_of(
    placements: Sequence[Placement], policies: Mapping[Handler, Policy]
) -> dict[str, tuple[int, ...]]:
    """Return the delays of retries by queue; raise ConfigError where there are too many."""
    found: dict[str, list[Policy]] = {}
    for placement in placements:
        own = [policies[handler] for handler in placement.dispatcher.handlers.values()]
        found.setdefault(placement.queue, []).extend(own)
    return {queue: levels_of(each, queue) for queue, each in found.items()}


def _with_middleware(placements: Sequence[Placement], settings: ServerSettings) -> list[Placement]:
    """Put the whole server's middleware, one object for each name, around the controllers'."""
    made: dict[str, Middleware] = {}
    for name in (*settings.incoming_middleware, *settings.outgoing_middleware):
        if name not in made:
            made[name] = plugins.load(plugins.MIDDLEWARE, name, Middleware)()
    incoming = [made[name] for name in settings.incoming_middleware]
    outgoing = [made[name] for name in settings.outgoing_middleware]
    return [
        dataclasses.replace(
            each, incoming=(*incoming, *each.incoming), outgoing=(*each.outgoing, *outgoing)
        )
        for each in placements
    ]
