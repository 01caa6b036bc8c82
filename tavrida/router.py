# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The router of one queue: which handler takes a message."""

from __future__ import annotations

from collections.abc import Iterable

from tavrida import exceptions, messages
from tavrida.dispatcher import Dispatcher, Handler, Mark, is_reserved, place_of
from tavrida.messages import IncomingMessage

_COUNTERPARTS = {messages.RESPONSE: messages.ERROR, messages.ERROR: messages.RESPONSE}


class Router:
    """Built once from the controllers that share a queue; a dict look-up a message.

    Requests are found by their destination, notifications by their source. Answers go back to
    the controller that asked: by their destination's service and their source. ``builtins`` are
    handlers of tavrida's own.

    Raises:
        HandlerConflict: two controllers claim one service or one message; names both places.
    """

    def __init__(self, dispatchers: Iterable[Dispatcher], builtins: Iterable[Handler] = ()) -> None:
        self._services: dict[str, Dispatcher] = {}
        self._handlers: dict[tuple[str, str, str], Handler] = {}
        faults = exceptions.Faults()
        for dispatcher in dispatchers:
            with faults.collected():
                self._add_service(dispatcher)
                for mark, handler in dispatcher.handlers.items():
                    with faults.collected():
                        self._add(mark, handler)
        for handler in builtins:
            self._add(handler.mark, handler)
        faults.check()

    def _add_service(self, dispatcher: Dispatcher) -> None:
        other = self._services.setdefault(dispatcher.service, dispatcher)
        if other is not dispatcher:
            raise exceptions.HandlerConflict(
                f"{place_of(type(dispatcher.controller))} and "
                f"{place_of(type(other.controller))} both serve {dispatcher.service!r}: "
                "leave one of them out of the server, or rename it"
            )

    def _add(self, mark: Mark, handler: Handler) -> None:
        # Who asked tells answers apart; events have one reader a queue, or a failure of one
        # reader would make the other one handle the event again.
        asker = handler.service if mark.kind in (messages.RESPONSE, messages.ERROR) else ""
        other = self._handlers.setdefault((mark.kind, asker, str(mark.entry_point)), handler)
        if other is not handler:
            raise exceptions.HandlerConflict(
                f"{handler.place} and {other.place} both handle the {mark.kind} of "
                f"{mark.entry_point} from one queue: give each service a queue of its own"
            )

    def find(self, kind: str, entry_point: str, asker: str = "") -> Handler | None:
        """Return the handler of a kind of message of an entry point, or None."""
        return self._handlers.get((kind, asker, entry_point))

    def route(self, message: IncomingMessage) -> Handler:
        """Return the handler of a message.

        Raises:
            HandlerNotFound: there is none; names what does exist.
        """
        kind = message.message_type
        point, asker = message.source, ""
        if kind == messages.REQUEST:
            point = message.destination
        elif kind != messages.NOTIFICATION and message.destination:
            asker = message.destination.service
        wanted = point.text if point else ""
        handler = self._handlers.get((kind, asker, wanted))
        if handler is None:
            raise self._not_found(kind, asker, wanted)
        return handler

    def has_counterpart(self, message: IncomingMessage) -> bool:
        """Tell whether an answer without a handler has one for the other kind of answer."""
        other = _COUNTERPARTS.get(message.message_type)
        asker = message.destination.service if message.destination else ""
        return other is not None and self.find(other, str(message.source), asker) is not None

    def _not_found(self, kind: str, asker: str, wanted: str) -> exceptions.HandlerNotFound:
        known = sorted(
            point
            for k, a, point in self._handlers
            if (k, a) == (kind, asker) and not is_reserved(point.partition(".")[2])
        )
        near = exceptions.did_you_mean(wanted, known)
        service = wanted.partition(".")[0]
        if kind == messages.REQUEST and service in self._services:
            methods = ", ".join(p.partition(".")[2] for p in known if p.startswith(f"{service}."))
            return exceptions.HandlerNotFound(
                f"service {service!r} has no method {wanted!r}{near}. It has: {methods or 'none'}."
            )
        return exceptions.HandlerNotFound(
            f"no handler here for the {kind} of {wanted!r}{near}. "
            f"Handled: {', '.join(known) or 'none'}."
        )
