# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Middleware: what sees every message on its way in or out."""

from __future__ import annotations

from collections.abc import Sequence

from tavrida import exceptions, messages
from tavrida.messages import Error, IncomingMessage, Message, Response


class Middleware:
    """Base of all middleware; every method may be left as it is.

    One object serves all threads of a server. Around a ``def`` handler the methods run in its
    worker thread and may block; around an ``async def`` handler they run on the event loop and
    must not.
    """

    def process(self, message: Message) -> Message:
        """Return the message, changed or not, or another of its kind.

        On the way in, returning a Response or an Error answers the request at once: neither the
        handler nor later middleware sees it. An exception fails the message like one of the
        handler's own.
        """
        return message

    def before_handle(self, message: Message) -> None:
        """Called before a handler runs."""

    def after_handle(self, message: Message, error: BaseException | None) -> None:
        """Called after a handler ended, with its exception if it raised one."""

    def before_publish(self, message: Message) -> None:
        """Called before a message is encoded."""

    def after_publish(self, message: Message, error: BaseException | None) -> None:
        """Called on the event loop when the broker confirmed a message, or with why it did not."""


def incoming(chain: Sequence[Middleware], message: Message) -> Message:
    """Return what the chain makes of a message: one to handle, or the answer to give.

    Raises:
        UnknownResult: a middleware returned something else.
    """
    kind = type(message)
    for middleware in chain:
        message = middleware.process(message)
        if isinstance(message, Response | Error) and kind is messages.IncomingRequest:
            return message
        if not isinstance(message, IncomingMessage) or type(message) is not kind:
            answers = ", Response or Error" if kind is messages.IncomingRequest else ""
            raise _wrong(middleware, message, kind.__name__ + answers)
    return message


def outgoing(chain: Sequence[Middleware], message: Message) -> Message:
    """Return what the chain makes of a message that is about to be sent.

    Raises:
        UnknownResult: a middleware returned something that is no message of the same kind.
    """
    # A middleware may turn an answer into an error; nothing else changes its kind.
    kinds = (Response, Error) if isinstance(message, Response | Error) else (type(message),)
    for middleware in chain:
        message = middleware.process(message)
        if type(message) not in kinds:
            raise _wrong(middleware, message, " or ".join(k.__name__ for k in kinds))
    return message


def _wrong(middleware: Middleware, result: object, expected: str) -> exceptions.UnknownResult:
    return exceptions.UnknownResult(
        f"{type(middleware).__name__}.process() returned a {type(result).__name__}, "
        f"which should be {expected}"
    )
