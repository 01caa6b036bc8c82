# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""What is being handled right now, for code that has no message at hand, and for log records.

Handlers of both kinds and middleware see it, and so do the asyncio tasks that they start, and
threads that they start with ``contextvars.copy_context().run``.
"""

from __future__ import annotations

import logging
import time
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

from tavrida import exceptions
from tavrida.dispatcher import Handler
from tavrida.entry_point import EntryPoint
from tavrida.messages import IncomingMessage

#: What a log record says that was not written while handling a message.
NOTHING = "-"


class Handled(Protocol):
    """A message while it is handled."""

    message: IncomingMessage
    handler: Handler | None


#: Set by who handles a message; ``current`` reads it.
handled: ContextVar[Handled | None] = ContextVar("tavrida_handled", default=None)


@dataclass(frozen=True, slots=True)
class Context:
    """The message that is being handled, as ``messages.Message`` explains its identifiers."""

    correlation_id: str
    request_id: str
    message_id: str
    #: The service whose handler runs.
    service: str
    #: What the handler handles: its own entry point for a request, else whom the message is from.
    entry_point: EntryPoint | None
    #: Seconds since the epoch; None where nobody waits.
    deadline: float | None

    @property
    def time_left(self) -> float | None:
        """Seconds until the deadline, never below 0; None where there is no deadline."""
        return None if self.deadline is None else max(0.0, self.deadline - time.time())


def current() -> Context | None:
    """Return the context of the message that this code handles; None where it handles none."""
    it = handled.get()
    if it is None:
        return None
    message, handler = it.message, it.handler
    return Context(
        message.correlation_id,
        message.request_id,
        message.message_id,
        handler.service if handler else "",
        handler.mark.entry_point if handler else message.destination,
        message.deadline,
    )


def names_of(it: Handled | None) -> tuple[str, str]:
    """Return service and method of the handler of a message, for metrics, traces and logs.

    Where the handler hears what another service did, the method has the name of that before it.
    Both are empty for what no handler handles, whatever its sender calls it.
    """
    handler = it.handler if it is not None else None
    if handler is None:
        return "", ""
    entry_point = handler.mark.entry_point
    is_own = entry_point.service == handler.service
    return handler.service, entry_point.method if is_own else str(entry_point)


class LogFilter(logging.Filter):
    """Gives every record what is being handled, for the format of a log.

    That are ``correlation_id``, ``entry_point``, ``service``, ``request_id`` and ``message_id``.
    Add it to what writes the log, ``logging.getLogger().handlers[0].addFilter(LogFilter())``, or
    to its ``filters`` in a ``logging.config`` dict. It passes every record and keeps attributes
    that are there already; ``-`` stands for records outside of handlers.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Fill the record in; return True."""
        context = current()
        for name in ("correlation_id", "entry_point", "service", "request_id", "message_id"):
            if not hasattr(record, name):
                told = str((context and getattr(context, name)) or NOTHING)
                setattr(record, name, exceptions.printable(told))
        return True
