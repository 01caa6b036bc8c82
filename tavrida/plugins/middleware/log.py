# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""``log``: one record for each message that is handled, and at DEBUG for each that is sent."""

from __future__ import annotations

import logging
import math
import time
from typing import Any

from tavrida import context
from tavrida.messages import IncomingMessage, Message
from tavrida.middleware import Middleware
from tavrida.plugins.middleware.harmless import harmless

LOG = logging.getLogger(__name__)


class Log(Middleware):
    """Writes what was handled, by whom, for how long, and how it ended.

    Headers and payload go along at DEBUG only, as fields of the record: ``[log] format = json``
    and ``pretty`` show them, without what ``[log] mask`` names.
    """

    def __init__(self) -> None:
        self.complained_at = -math.inf
        self._began: dict[context.Handled | None, float] = {}

    @harmless
    def before_handle(self, message: Message) -> None:
        if LOG.isEnabledFor(logging.INFO):
            self._began[context.handled.get()] = time.perf_counter()

    @harmless
    def after_handle(self, message: Message, error: BaseException | None) -> None:
        it = context.handled.get()
        began = self._began.pop(it, None)
        if began is None:
            return
        service, method = context.names_of(it)
        seconds = time.perf_counter() - began
        fields: dict[str, Any] = {
            "event": "handled",
            "service": service,
            "method": method,
            "kind": message.message_type,
            "source": str(message.source or ""),
            "outcome": "ok" if error is None else type(error).__name__,
            "seconds": round(seconds, 6),
        }
        if isinstance(message, IncomingMessage) and message.attempt > 1:
            fields["attempt"] = message.attempt
        LOG.info(
            "Handled the %s %s.%s in %.3f s: %s.",
            message.message_type,
            service,
            method,
            seconds,
            fields["outcome"],
            extra={**fields, **_content(message)},
        )

    @harmless
    def after_publish(self, message: Message, error: BaseException | None) -> None:
        if not LOG.isEnabledFor(logging.DEBUG):
            return
        outcome = "confirmed" if error is None else type(error).__name__
        LOG.debug(
            "Sent the %s %s: %s.",
            message.message_type,
            message.destination or message.source or "",
            outcome,
            extra={
                "event": "sent",
                "kind": message.message_type,
                "source": str(message.source or ""),
                "destination": str(message.destination or ""),
                "outcome": outcome,
                **_content(message),
            },
        )


def _content(message: Message) -> dict[str, Any]:
    if not LOG.isEnabledFor(logging.DEBUG):
        return {}
    return {"headers": message.headers, "payload": message.payload}
