# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""App: controllers that run for one test, with a client beside them and an eye on all of it."""

from __future__ import annotations

import contextlib
import secrets
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from operator import methodcaller
from types import TracebackType
from typing import Any, Protocol, Self

from tavrida import exceptions
from tavrida.addresses import AddressBook
from tavrida.client import RPCClient
from tavrida.config import ConnectionConfig, ServerSettings
from tavrida.discovery import Discovery
from tavrida.dispatcher import Dispatcher, service_of
from tavrida.plugins.discovery.convention import ConventionDiscovery, publish_exchange
from tavrida.plugins.serializers import Serializers
from tavrida.retries import Retries, Retry, Said, said
from tavrida.server import Server
from tavrida.service import ServiceController
from tavrida.testing import controllers
from tavrida.testing.faults import Fault, Faults
from tavrida.testing.recording import TIMEOUT, DeadLetter, Handled, Recording, Sent, WaitFailed
from tavrida.testing.wanted import Record, Wanted
from tavrida.topology import Placement

#: Seconds that handlers which still run get when the app stops, unless the test says otherwise.
GRACEFUL_TIMEOUT = 5.0

#: Seconds before a handler is run again, whatever its retry says: a test does not wait.
RETRY_DELAY = 0.01

#: The connection of an app, unless the test gives one: what a broker does not do soon, it does not
#: do at all.
CONNECTION = ConnectionConfig(
    url=("sqlite://",),
    async_engine=True,
    retry_delay=0.05,
    max_retry_delay=0.5,
    publish_timeout=5.0,
    call_timeout=5.0,
)


class UnseenFailures(AssertionError):
    """Raised at the end of an app whose handlers failed without anybody looking."""


class StartApp(Protocol):
    """The fixture ``tavrida_app``: starts an app for this test; see ``App`` for the arguments."""

    def __call__(
        self,
        *classes: type[ServiceController],
        faults: Sequence[Fault] = (),
        options: Mapping[str, Mapping[str, Any]] | None = None,
        queue: str | None = None,
        config: ConnectionConfig | None = None,
        seed: int | None = None,
        retry: Said | None = None,
        **settings: Any,
    ) -> App:
        """Return a running app, which is stopped and checked at the end of the test."""


class App:
    """Runs controllers on a broker, in memory by default, with a client beside them.

    Each controller has a queue of its own, as by default in an ini, unless all of them are to
    share ``queue``. Exchanges are those that the controllers' own discovery (``set_discovery``)
    tells, else those of the convention; a controller without one finds all others. ``options``
    has the options of controllers by the name of their service; ``settings`` are those of
    ``Server``, such as ``concurrency=1``. ``faults`` strike from the beginning; ``app.faults``
    takes more. ``url`` is the broker, ``config`` everything else about the connection.

    Handlers that fail are run again where ``retry`` or their decorators say so, a moment later
    instead of after the delays that these name.

    Use it in a ``with``. Leaving it stops the server and, unless an exception is on its way
    already, raises UnseenFailures for handlers that failed and nobody noticed, and for faults
    that never struck. The methods may be called from any thread but those of handlers.

    Raises:
        ConfigError: the controllers, options or settings cannot work; lists all faults.
    """

    def __init__(
        self,
        *classes: type[ServiceController],
        url: str | Sequence[str] | None = None,
        faults: Sequence[Fault] = (),
        options: Mapping[str, Mapping[str, Any]] | None = None,
        queue: str | None = None,
        config: ConnectionConfig | None = None,
        seed: int | None = None,
        retry: Said | None = None,
        **settings: Any,
    ) -> None:
        if not classes:
            raise exceptions.ConfigError("an app without controllers: name at least one")
        chosen = ServerSettings.from_keywords({"graceful_timeout": GRACEFUL_TIMEOUT, **settings})
        broker = url or f"sqlite://?memory=app-{secrets.token_hex(6)}"
        #: What goes wrong between the app and its broker: ``app.faults.add(...)``.
        self.faults = Faults(broker, *faults, seed=seed)
        self._config = replace(config or CONNECTION, url=(self.faults.url,))
        self._serializer = chosen.serializer
        self._recording = Recording(Serializers(chosen.serializer, chosen.accept))
        dispatchers = _dispatchers(classes, options or {})
        #: Finds every controller of the app, for clients and for other programs of the test.
        self.discovery = _discovery_of(dispatchers)
        placements = [self._place(each, queue) for each in dispatchers]
        #: The server; ``stop()`` and ``start()`` it to see what a restart does.
        self.server = Server.from_placements(
            self._config,
            placements,
            chosen,
            Retries(
                Retry(attempts=1) if retry is None else said(retry),
                above=Retry(first_delay=RETRY_DELAY, max_delay=RETRY_DELAY),
            ),
        )
        self._recording.know(self.server.topology, placements)
        self._entry_points = {str(m.entry_point) for each in dispatchers for m in each.handlers}
        self.faults.watch(self._recording.note)
        self._clients = contextlib.ExitStack()
        #: A client whose messages come from "test": ``app.client.service.method(a=1).call()``.
        self.client = self.client_as("test")

    def _place(self, dispatcher: Dispatcher, queue: str | None) -> Placement:
        controller = dispatcher.controller
        service = dispatcher.service
        exchange = self.discovery.get_remote(service)
        return Placement(
            dispatcher,
            queue or service,
            exchange,
            AddressBook(controller.get_discovery() or self.discovery, {service: exchange}),
            None,
            (self._recording.observe(dispatcher), *controller.incoming_middleware),
            tuple(controller.outgoing_middleware),
        )

    def client_as(self, source: str) -> RPCClient:
        """Return another client, whose messages come from ``source``; it is closed with the app.

        ``app.client_as("test_hello.hello").publish(a=1)`` publishes what that method would.
        """
        client = RPCClient(
            self._config, discovery=self.discovery, source=source, serializer=self._serializer
        )
        return self._clients.enter_context(client)

    # -- waiting

    def wait_handled(
        self,
        entry_point: str,
        *,
        kind: str | None = None,
        payload: Mapping[str, Any] | None = None,
        nth: int = 1,
        raises: type[BaseException] | None = None,
        timeout: float = TIMEOUT,
    ) -> Handled:
        """Return the nth run of a handler, now or as soon as it ended. What was, counts too.

        ``entry_point`` is what the handler's decorator says. ``kind`` tells apart the handlers of
        requests, responses, errors and notifications of one entry point. Only runs whose payload
        has all items of ``payload`` count. ``timeout`` is in seconds.

        Raises:
            WaitFailed: it did not run (so often) in time; or it raised, and ``raises`` does not
                say so; or it did not raise what ``raises`` says. Tells what happened instead.
            ConfigError: no controller of the app has a handler for the entry point.
        """
        __tracebackhide__ = True
        if entry_point not in self._entry_points:
            raise exceptions.ConfigError(
                f"no controller of this app handles {entry_point!r}"
                f"{exceptions.did_you_mean(entry_point, self._entry_points)}. "
                f"They handle: {', '.join(sorted(self._entry_points))}."
            )
        wanted = Wanted(self._recording.handled, entry_point, kind, payload, nth)
        run = self._wait(wanted, "handled", timeout)
        if run.error is not None:
            self._recording.look_at(run)
        if raises is None and run.error is not None:
            raise WaitFailed(
                f"the handler of {run.kind} {entry_point} raised {_told(run.error)}; if that is "
                f"right, say raises={type(run.error).__name__}"
            ) from run.error
        if raises is not None and not isinstance(run.error, raises):
            instead = (
                f"returned {run.result!r}" if run.error is None else f"raised {_told(run.error)}"
            )
            raise WaitFailed(
                f"the handler of {run.kind} {entry_point} should raise {raises.__name__}, "
                f"and {instead}"
            ) from run.error
        return run

    def wait_sent(
        self,
        entry_point: str,
        *,
        kind: str | None = None,
        payload: Mapping[str, Any] | None = None,
        nth: int = 1,
        timeout: float = TIMEOUT,
    ) -> Sent:
        """Return the nth message of that kind that a handler, the server or a client sent.

        ``entry_point`` is whom a request is for, who answers, or the topic of a notification. A
        message that is sent again after a lost connection counts once. Otherwise as
        ``wait_handled``.

        Raises:
            WaitFailed: there was none in time; tells what was sent instead.
        """
        __tracebackhide__ = True
        wanted = Wanted(self._recording.sent, entry_point, kind, payload, nth)
        return self._wait(wanted, "sent", timeout)

    def wait_dead_letter(
        self, entry_point: str | None = None, *, reason: str = "", timeout: float = TIMEOUT
    ) -> DeadLetter:
        """Return the first dead letter, of a message to ``entry_point`` and for that reason.

        ``reason`` is a part of the text that the broker's operators see: "ValueError". It only
        knows of what tavrida moves there, not of what the broker itself does.

        Raises:
            WaitFailed: there was none in time; tells what happened instead.
        """
        __tracebackhide__ = True
        letters = self._recording.dead_letters

        def found() -> DeadLetter | None:
            for letter in letters:
                if entry_point in (None, letter.entry_point) and reason in letter.reason:
                    return letter
            return None

        letter = self._recording.wait(found, timeout)
        if letter is None:
            what = f" of {entry_point}" if entry_point else ""
            why = f" with {reason!r} in its reason" if reason else ""
            raise self._failed(f"no dead letter{what}{why} within {timeout} s")
        self._recording.look_at(letter)
        return letter

    def wait_settled(self, timeout: float = TIMEOUT) -> None:
        """Wait until nothing is on its way any more: all queues of the app empty, all settled.

        It counts what the app and its clients sent, and what was delivered to the app. What other
        programs have sent and was not delivered yet cannot be known.

        Raises:
            WaitFailed: something was still on its way; tells what.
        """
        __tracebackhide__ = True
        unsettled = self._recording.unsettled
        if self._recording.wait(lambda: None if unsettled() else True, timeout) is None:
            raise self._failed(f"not all was settled within {timeout} s")

    def _wait(self, wanted: Wanted[Record], verb: str, timeout: float) -> Record:
        __tracebackhide__ = True
        record = self._recording.wait(wanted.find, timeout)
        if record is None:
            raise self._failed(wanted.lack(verb, timeout))
        return record

    def _failed(self, what: str) -> WaitFailed:
        return WaitFailed(f"{what}. What happened:\n{self.story()}")

    # -- what happened

    def story(self) -> str:
        """Return what happened so far, a line for each step; a failing test shows it by itself."""
        return self._recording.story()

    def failures(self) -> list[Handled | DeadLetter]:
        """Return what failed and nobody has noticed so far; now the test has noticed it."""
        unseen = self._recording.unseen()
        self._recording.look_at(*unseen)
        return unseen

    # -- life

    def start(self) -> Self:
        """Start the server; return when it takes messages. Raises as ``Server.start``."""
        self.server.start()
        return self

    def stop(self) -> None:
        """Stop the server, when its handlers have ended, and close the clients. Idempotent."""
        with self._clients:
            self.server.stop()

    def check(self) -> None:
        """Raise UnseenFailures for what failed and nobody noticed, and for idle faults.

        A handler has failed when it raised, or when its message could not be given to it. An
        answer that tells a waiting caller or an error handler so is notice enough; else the test
        has to look, by ``wait_handled(raises=...)``, ``wait_dead_letter`` or ``failures``.
        """
        __tracebackhide__ = True
        faults = self.faults.idle()
        failures = self.failures()
        if failures:
            faults += map(_report, failures)
            faults.append(
                "Nobody was told of these failures, and the test did not look: wait for them with "
                "app.wait_handled(..., raises=...) or app.wait_dead_letter(...), or take note of "
                "all with app.failures()."
            )
        if faults:
            raise UnseenFailures("\n\n".join(faults))

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        if error is None:
            self.check()

    def __repr__(self) -> str:
        services = ", ".join(each.dispatcher.service for each in self.server.placements)
        return f"<App of {services} with {self.faults!r}>"


def _dispatchers(
    classes: Sequence[type[ServiceController]], options: Mapping[str, Mapping[str, Any]]
) -> list[Dispatcher]:
    faults = exceptions.Faults()
    found: list[Dispatcher] = []
    services = []
    for cls in classes:
        with faults.collected():
            service = service_of(cls)
            services.append(service)
            found.append(Dispatcher(controllers.make(cls, options.get(service))))
    for name in options:
        if name not in services:
            faults.add(
                f"options names {name!r}, which no controller of this app serves"
                f"{exceptions.did_you_mean(name, services)}"
            )
    faults.check()
    return found


def _discovery_of(dispatchers: Sequence[Dispatcher]) -> Discovery:
    """Return a discovery that knows where the controllers' own ones say that services are."""
    found = ConventionDiscovery()
    own = [each.controller.get_discovery() for each in dispatchers]
    known = [each for each in own if each is not None]
    for service in (each.service for each in dispatchers):
        exchange = _first(known, methodcaller("get_remote", service)) or service
        publisher = (
            _first(known, methodcaller("get_local_publisher", service))
            or _first(known, methodcaller("get_remote_publisher", service))
            or publish_exchange(service)
        )
        found.register_remote_service(service, exchange)
        found.register_remote_publisher(service, publisher)
        found.register_local_publisher(service, publisher)
    return found


def _first(known: Sequence[Discovery], ask: Callable[[Discovery], str]) -> str:
    """Return the answer of the first discovery that has one, or nothing."""
    for discovery in known:
        with contextlib.suppress(exceptions.ServiceUnknown):
            return ask(discovery)
    return ""


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {exceptions.text_of(error)}"


def _report(failure: Handled | DeadLetter) -> str:
    if isinstance(failure, DeadLetter):
        return f"{failure.traceback}\n{failure}"
    error = failure.error
    assert error is not None
    trace = error.__traceback__
    # From the handler on: who called it is no news.
    while trace is not None and trace.tb_frame.f_globals["__name__"].startswith("tavrida."):
        trace = trace.tb_next
    lines = traceback.format_exception(type(error), error, trace or error.__traceback__)
    return f"{''.join(lines)}{failure}"
