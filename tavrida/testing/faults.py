# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Faults: what goes wrong between a program and its broker, and when.

A fault is a small value: ``lose_connection("publish", at=3)``. A ``Faults`` object holds those of
one test and wraps the real broker: whatever connects to its ``url`` (a server, a client, an app)
reaches that broker, and its faults strike on the way. This module knows those of the process by
their names, since a url is all that a transport is given.
"""

from __future__ import annotations

import random
import re
import secrets
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, TypedDict, Unpack

from tavrida import exceptions, messages, plugins
from tavrida.config import ConnectionConfig
from tavrida.plugins.transports import Transport

#: What a transport does, step by step, as faults and ``Operation.name`` have it. A publication is
#: published and confirmed, or refused; a delivery is delivered, then settled in one of three ways.
PUBLISH, CONFIRM, REFUSE = "publish", "confirm", "refuse"
DELIVER, ACK, REQUEUE, REJECT = "deliver", "ack", "requeue", "reject"

#: The operations at which a fault may strike.
OPERATIONS = (PUBLISH, CONFIRM, DELIVER, ACK, REQUEUE, REJECT)

#: The same as nouns.
_NOUNS = {
    PUBLISH: "publishing",
    CONFIRM: "confirm",
    REFUSE: "refusal",
    DELIVER: "delivery",
    ACK: "acknowledgement",
    REQUEUE: "giving back",
    REJECT: "rejection",
}

#: What a name may consist of, so that it can stand in a url.
_NAME = re.compile(r"[A-Za-z0-9_-]+")


class Carried(Protocol):
    """A publication or a delivery."""

    @property
    def body(self) -> bytes: ...
    @property
    def exchange(self) -> str: ...
    @property
    def routing_key(self) -> str: ...
    @property
    def properties(self) -> Any: ...


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """One step of one message between a program and its broker."""

    #: One of ``OPERATIONS``, or "refuse".
    name: str
    #: The name of the connection, as an operator of the broker sees it.
    connection: str
    #: The publication or delivery: ``body``, ``properties``, ``exchange``, ``routing_key``.
    message: Carried
    #: Where it was delivered from; "" for what is published.
    queue: str = ""
    #: Why the broker refused it.
    error: Exception | None = None

    @property
    def kind(self) -> str:
        """The kind of message: "request", "response", "error" or "notification"."""
        return str(self.message.properties.type or messages.REQUEST)

    @property
    def entry_point(self) -> str:
        """Whom a request is for, who answers, or the topic of a notification."""
        properties = self.message.properties
        if self.kind == messages.REQUEST:
            headers = properties.headers or {}
            found = [headers[name] for name in _DESTINATIONS if headers.get(name)]
            return str(found[0] if found else self.message.routing_key)
        return str(properties.app_id or self.message.routing_key)

    def __str__(self) -> str:
        return f"{_NOUNS[self.name]} of {self.kind} {self.entry_point}"


#: What says whom a request is for, before its routing key: copies go to queues by their names.
_DESTINATIONS = ("destination", "retry_routing_key", "dead_routing_key")

Where = Callable[[Operation], bool]


class When(TypedDict, total=False):
    """At which operations a fault strikes; the keyword arguments of all faults.

    The fault looks at the operations that match, of all connections, from when it was added on.
    """

    #: The first matching operation that it strikes at; 1 is the very next one.
    at: int
    #: How many times it strikes, one matching operation after the other; None: without an end.
    times: int | None
    #: Only messages of these kinds: "request", "response", "error", "notification".
    kind: str | tuple[str, ...]
    #: Only messages to "service.method"; answers are those *from* it, notifications its topic.
    entry_point: str
    #: Only operations for which this returns True.
    where: Where
    #: From 0 to 1: it strikes at a matching operation with this chance, as the seed decides.
    chance: float


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong, and when. Made by the functions below, which say what each one means."""

    name: str
    on: tuple[str, ...]
    seconds: float = 0.0
    at: int = 1
    times: int | None = 1
    kind: str | tuple[str, ...] = ()
    entry_point: str = ""
    where: Where | None = None
    chance: float = 1.0

    def __post_init__(self) -> None:
        wrong = exceptions.Faults()
        for kind in _several(self.kind):
            if kind not in messages.KINDS:
                wrong.add(
                    f"{self.name}(kind={kind!r}) should be one of {', '.join(messages.KINDS)}"
                    f"{exceptions.did_you_mean(str(kind), messages.KINDS)}"
                )
        if self.at < 1:
            wrong.add(f"{self.name}(at={self.at!r}) should be 1 or more: the first is number 1")
        if self.times is not None and self.times < 1:
            wrong.add(f"{self.name}(times={self.times!r}) should be 1 or more, or None for always")
        if not 0 < self.chance <= 1:
            wrong.add(f"{self.name}(chance={self.chance!r}) should be more than 0, and 1 at most")
        if self.seconds < 0:
            wrong.add(f"{self.name}(seconds={self.seconds!r}) should be 0 or more")
        wrong.check()

    def matches(self, operation: Operation) -> bool:
        """Tell whether the operation is one that this fault looks at."""
        return (
            operation.name in self.on
            and (not self.kind or operation.kind in _several(self.kind))
            and (not self.entry_point or operation.entry_point == self.entry_point)
            and (self.where is None or self.where(operation))
        )

    def __str__(self) -> str:
        """As it was written, but for what is left out anyway."""
        told = [
            f"{each.name}={getattr(self, each.name)!r}"
            for each in fields(self)
            if each.name not in ("name", "on") and getattr(self, each.name) != each.default
        ]
        return f"{self.name}({', '.join([' or '.join(map(repr, self.on)), *told])})"


def _several(given: str | tuple[str, ...]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) and given else tuple(given)


def lose_connection(on: str | tuple[str, ...] = OPERATIONS, **when: Unpack[When]) -> Fault:
    """The connection is lost instead of the operation; it is made anew at once.

    At "publish" the message was not written, at "confirm" the broker has it and the sender never
    hears; both are sent again. At "deliver" the handler has not begun, at "ack" it has ended;
    both are delivered again. Calls that wait end with CallInterrupted. ``on`` is one of
    ``OPERATIONS``, or several; all of them if it is left out.
    """
    return Fault("lose_connection", _checked("lose_connection", on, OPERATIONS), **when)


def lose_confirm(**when: Unpack[When]) -> Fault:
    """The broker has the message, and its confirm never arrives.

    The sender gets PublishTimeout after ``publish_timeout``; or the connection is lost before
    that, and the message is sent again, so that it arrives twice.
    """
    return Fault("lose_confirm", (CONFIRM,), **when)


def lose_message(**when: Unpack[When]) -> Fault:
    """The broker took the message, and it never arrives, nor comes again.

    RabbitMQ does so to messages that were only in the memory of a node that died.
    """
    return Fault("lose_message", (DELIVER,), **when)


def lose_answer(**when: Unpack[When]) -> Fault:
    """``lose_message`` for responses and errors: a call that waits ends with CallTimeout."""
    when.setdefault("kind", (messages.RESPONSE, messages.ERROR))
    return Fault("lose_message", (DELIVER,), **when)


def deliver_twice(**when: Unpack[When]) -> Fault:
    """The message is delivered, and once acknowledged it is delivered again, ``redelivered``.

    So a broker does that did not hear the acknowledgement. To waiting callers, whose answers need
    none, the second one comes right after the first.
    """
    return Fault("deliver_twice", (DELIVER,), **when)


def delay(seconds: float, on: str = DELIVER, **when: Unpack[When]) -> Fault:
    """The message ("deliver") or its confirm ("confirm") comes later; others overtake it."""
    return Fault("delay", _checked("delay", on, (DELIVER, CONFIRM)), seconds, **when)


def full_disk(**when: Unpack[When]) -> Fault:
    """The broker refuses what is published, with PublishFailed, until the fault is removed."""
    when.setdefault("times", None)
    return Fault("full_disk", (PUBLISH,), **when)


def _checked(name: str, on: str | tuple[str, ...], known: tuple[str, ...]) -> tuple[str, ...]:
    given = _several(on)
    for each in given:
        if each not in known:
            raise exceptions.ConfigError(
                f"{name}({each!r}) is no operation that it could strike at"
                f"{exceptions.did_you_mean(str(each), known)}: use {', '.join(known)}"
            )
    return given


@dataclass(slots=True, eq=False)
class _Armed:
    """A fault that was added, and what it has seen since."""

    fault: Fault
    number: int
    is_on: bool = True
    seen: int = 0
    struck: int = 0
    #: How many operations of the same name, kind and entry point it has seen.
    alike: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    def strikes(self, operation: Operation, seed: int) -> bool:
        """Count the operation, and tell whether the fault's time has come."""
        fault = self.fault
        if not self.is_on or not fault.matches(operation):
            return False
        self.seen += 1
        sort = (operation.name, operation.kind, operation.entry_point)
        self.alike[sort] += 1
        if self.seen < fault.at or self.struck == fault.times:
            return False
        if fault.chance < 1:
            # Not one generator for all: threads would draw from it in another order each time.
            lot = random.Random(f"{seed} {self.number} {sort} {self.alike[sort]}")  # noqa: S311
            drawn = lot.random()
            if drawn >= fault.chance:
                return False
        return True


class Faults:
    """The faults of one test, and the broker that they stand before. Thread-safe.

    ``broker`` is the url of the real one, or several of a cluster, of whatever scheme. Servers and
    clients of this process that connect to ``url`` reach it. The object has to be kept as long as
    they run. ``name`` makes the url one that can be written down, ``faulty://NAME``.

    Faults with a ``chance`` follow ``seed``, which ``repr`` shows: with the same seed the n-th
    request to an entry point meets the same fate, however the threads of the program run.

    Raises:
        ConfigError: a url cannot work, a name cannot stand in a url or is taken.
    """

    def __init__(
        self,
        broker: str | Sequence[str],
        *faults: Fault,
        name: str | None = None,
        seed: int | None = None,
    ) -> None:
        urls = broker.split(",") if isinstance(broker, str) else broker
        inner = ConnectionConfig(url=tuple(url.strip() for url in urls))
        #: The urls of the real broker, and the transport that reaches it.
        self.broker = inner.urls
        self.transport: type[Transport] = plugins.load(
            plugins.TRANSPORTS,
            inner.scheme,
            Transport,  # type: ignore[type-abstract]
        )
        for url in self.broker:
            self.transport.check_url(url)
        self.name = secrets.token_hex(6) if name is None else name
        self.seed = secrets.randbelow(2**32) if seed is None else seed
        self._lock = threading.Lock()
        self._armed: list[_Armed] = []
        self._watchers: list[Callable[[Operation, Fault | None], None]] = []
        self.add(*faults)
        _register(self)

    @property
    def url(self) -> str:
        """What a server or client connects to: ``ConnectionConfig(url=faults.url)``."""
        return f"faulty://{self.name}"

    def add(self, *faults: Fault) -> None:
        """Let these faults strike, too, at operations from now on."""
        with self._lock:
            for fault in faults:
                self._armed.append(_Armed(fault, len(self._armed)))

    def remove(self, fault: Fault) -> None:
        """Let a fault strike no more: what was a full disk has room again.

        Raises:
            ConfigError: it was not added, or removed already.
        """
        with self._lock:
            for armed in self._armed:
                if armed.is_on and armed.fault == fault:
                    armed.is_on = False
                    return
        raise exceptions.ConfigError(f"{fault} cannot be removed: it was not added")

    def struck(self, fault: Fault) -> int:
        """Return how many times a fault has struck so far."""
        with self._lock:
            return sum(armed.struck for armed in self._armed if armed.fault == fault)

    def idle(self) -> list[str]:
        """Return one sentence for each fault that never struck: its test has proved nothing.

        Those with a ``chance`` are left out, since theirs is to strike or not.
        """
        with self._lock:
            return [
                f"{armed.fault} never struck: {armed.seen} operations matched it"
                for armed in self._armed
                if not armed.struck and armed.fault.chance == 1
            ]

    def watch(self, watcher: Callable[[Operation, Fault | None], None]) -> None:
        """Have the watcher called for each operation, with the fault that strikes at it, if any.

        It is called on the event loops of the program, before the operation is carried out.
        """
        self._watchers.append(watcher)

    def strike(self, operation: Operation) -> Fault | None:
        """Return the fault that strikes at this operation: the first that was added wins."""
        with self._lock:
            ready = [armed for armed in self._armed if armed.strikes(operation, self.seed)]
            struck = ready[0] if ready else None
            if struck:
                struck.struck += 1
        fault = struck.fault if struck else None
        self.note(operation, fault)
        return fault

    def note(self, operation: Operation, fault: Fault | None = None) -> None:
        """Tell the watchers of an operation."""
        for watcher in self._watchers:
            watcher(operation, fault)

    def __repr__(self) -> str:
        with self._lock:
            faults = ", ".join(str(armed.fault) for armed in self._armed if armed.is_on)
        return f"<Faults {self.url} seed={self.seed}: {faults or 'none'}>"


# By name. Weak, so that it keeps none alive and cannot fill up.
_names: weakref.WeakValueDictionary[str, Faults] = weakref.WeakValueDictionary()
_registering = threading.Lock()


def _register(faults: Faults) -> None:
    if not _NAME.fullmatch(faults.name):
        raise exceptions.ConfigError(
            f"Faults(name={faults.name!r}) cannot stand in a url: use letters, digits, - and _"
        )
    with _registering:
        if faults.name in _names:
            raise exceptions.ConfigError(
                f"Faults(name={faults.name!r}): there is another one of that name in this "
                "process: leave the name out, or choose a new one"
            )
        _names[faults.name] = faults


def named(url: str) -> Faults:
    """Return the Faults object of this process that a url ``faulty://NAME`` means.

    Raises:
        ConfigError: there is none; names those that are there.
    """
    name = url.partition("://")[2]
    with _registering:
        faults = _names.get(name)
        known = sorted(_names)
    if faults is None:
        raise exceptions.ConfigError(
            f"[connection] url {url}: this process has no Faults of the name {name!r}"
            f"{exceptions.did_you_mean(name, known)}. Make one with "
            f"tavrida.testing.faults.Faults(BROKER_URL, name={name!r}) and keep it as long as it "
            f"is used. There are: {', '.join(known) or 'none'}."
        )
    return faults
