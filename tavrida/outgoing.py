# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The outgoing middleware of a client: what it is made of, and how it hears of each message."""

from __future__ import annotations

import contextvars
import logging
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager

from tavrida import exceptions, middleware, plugins
from tavrida.messages import Message, Request
from tavrida.middleware import Answer, Middleware, Publishing, Vitals
from tavrida.plugins.transports import Done

LOG = logging.getLogger(__name__)

#: What puts a message on its way; ``Done`` is told how that ended.
Send = Callable[[Message, Done], None]

#: Makes a ``Done`` that tells the middleware first.
Telling = Callable[[Done], Done]


def made(wanted: Iterable[str | Middleware]) -> tuple[Middleware, ...]:
    """Return middleware: names stand for plugins with their defaults, objects for themselves.

    Raises:
        PluginError: there is no such plugin, or it is no middleware.
        ConfigError: the middleware cannot be made, or it is ``async def`` on the way out; or what
            is wanted are no names and objects.
    """
    faults = exceptions.Faults()
    chain = []
    if isinstance(wanted, str | Middleware) or not isinstance(wanted, Iterable):
        raise exceptions.ConfigError(
            f"outgoing_middleware={wanted!r} should be a list of plugin names and Middleware "
            "objects: put it in brackets"
        )
    for each in wanted:
        with faults.collected("outgoing_middleware: "):
            chain.append(_made(each))
    with faults.collected("outgoing_middleware: "):
        middleware.check_outgoing(chain)
    faults.check()
    return tuple(chain)


def _made(wanted: str | Middleware) -> Middleware:
    if isinstance(wanted, Middleware):
        return wanted
    if not isinstance(wanted, str):
        raise exceptions.ConfigError(
            f"{wanted!r} is neither the name of a plugin nor an object of a class that derives "
            "from tavrida.middleware.Middleware"
        )
    cls: type[Middleware] = plugins.load(plugins.MIDDLEWARE, wanted, Middleware)
    try:
        return cls()
    except exceptions.ConfigError:
        raise
    except Exception as error:
        raise exceptions.ConfigError(
            f"{cls.__name__} of plugin {wanted!r} cannot be made: {type(error).__name__}: {error}; "
            "give an object that was made with what it needs"
        ) from error


class Outgoing:
    """The outgoing middleware of a client. Thread-safe, and works in forked children."""

    def __init__(self, chain: Sequence[Middleware], vitals: Vitals) -> None:
        self._chain = chain
        self._calling = middleware.calling(chain)
        self._vitals = vitals
        self._lock = threading.Lock()
        self._process = os.getpid()
        #: The process in which the middleware observes.
        self._observed = 0

    def publishing(self, message: Message) -> Publishing:
        """Return the block that sends a message."""
        self._observe()
        return Publishing(self._chain, message)

    def called(self, request: Request, answer: Answer) -> AbstractContextManager[None]:
        """Return the block that sends a request and begins to wait: ``middleware.called``."""
        self._observe()
        return middleware.called(self._calling, request, answer)

    def through(self, send: Send) -> Send:
        """Return what sends through the middleware, wherever it runs, in the context of now."""

        def sent(message: Message, done: Done) -> None:
            with Publishing(self._chain, message) as sending:
                send(sending.message, sending.telling(done))

        here = contextvars.copy_context()
        return lambda message, done: here.run(sent, message, done)

    def _observe(self) -> None:
        """Call ``observe`` of all, once in each process: what exports may need a thread of it."""
        if self._observed == os.getpid():
            return
        if self._process != os.getpid():
            # Forked: a thread that is not here may have held the lock.
            self._lock, self._process = threading.Lock(), os.getpid()
        with self._lock:
            if self._observed == self._process:
                return
            for each in self._chain:
                try:
                    each.observe(self._vitals)
                except Exception:  # no message fails of what only watches
                    LOG.exception("%s.observe failed.", type(each).__name__)
            self._observed = self._process
