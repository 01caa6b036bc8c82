# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Copies of a delivery that come back to its queue: what they carry, and what they came from.

A retry waits in a queue that nobody consumes. There it expires after its delay, and the broker
moves it back to the queue that it came from, over the default exchange. Headers remember the rest;
docs/wire-format.md defines them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tavrida import exceptions
from tavrida.envelope import Properties, new_id
from tavrida.plugins.transports import Delivery, Publication
from tavrida.topology import delay_queue

#: A delivery with this header is a copy.
MARK = "retry_exchange"

#: Characters of a reason in a header.
MAX_REASON = 1000

#: What a broker writes into headers: about a message's past, which would confuse its future.
#: RabbitMQ drops what seems to go round in circles.
_BROKERS = ("x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count")

#: Headers whose queues RabbitMQ sends a message to besides: once was enough.
BESIDES = ("CC", "BCC")


@dataclass(frozen=True, slots=True)
class History:
    """What became of a message before this delivery."""

    #: The number of the attempt that this delivery is for, from 1.
    attempt: int = 1
    #: Seconds since the epoch when the first attempt failed; 0 where none has.
    since: int = 0
    #: Text of the last failure.
    error: str = ""
    #: How often it was delivered again after nobody settled it, where the queue does not count.
    crashes: int = 0


#: The history of a message that comes for the first time.
NEW = History()


def restore(delivery: Delivery) -> History:
    """Make the delivery of a copy look like that of the original; return what became of that.

    What contradicts the wire format counts as absent: a header of anybody's stops nothing.
    """
    headers = dict(delivery.properties.headers or {})
    delivery.exchange = _take(headers, MARK, delivery.exchange)
    delivery.routing_key = _take(headers, "retry_routing_key", delivery.routing_key)
    history = History(
        max(1, _take(headers, "retry_attempt", 1)),
        max(0, _take(headers, "retry_since", 0)),
        _take(headers, "retry_error", ""),
        max(0, _take(headers, "retry_crashes", 0)),
    )
    delivery.properties.headers = plain_headers(headers)
    return history


def _take(headers: dict[str, Any], name: str, default: Any) -> Any:
    value = headers.pop(name, default)
    return value if type(value) is type(default) else default


def plain_headers(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the headers without what a broker wrote into them."""
    return {name: value for name, value in headers.items() if not name.startswith(_BROKERS)}


def copy_of(delivery: Delivery, queue: str, headers: Mapping[str, Any]) -> Publication:
    """Return a copy for a queue alone: the same bytes and properties, these headers on top."""
    original = delivery.properties
    own = plain_headers(original.headers or {})
    for name in BESIDES:
        own.pop(name, None)
    properties = Properties(
        original.content_type or "",
        {**own, **headers},
        original.correlation_id or "",
        original.reply_to or "",
        original.message_id or new_id(),
        original.type or "",
        original.app_id or "",
        int(time.time()),
    )
    return Publication("", queue, delivery.body, properties, is_mandatory=True)


def delayed(
    delivery: Delivery,
    history: History,
    error: BaseException,
    *,
    level: int,
    delay: int,
    deadline: float | None,
    more: Mapping[str, Any],
) -> Publication:
    """Return the copy that is tried again after ``delay`` milliseconds, by way of a delay queue.

    ``level`` is how long that queue keeps messages at most. Only what is first in a queue expires,
    so a message with a shorter delay waits for those before it, and longer than its own delay by
    no more than to its level: those before it came earlier, and have the same level. The
    ``deadline`` is that of the message, in seconds since the epoch, whoever set it; ``more`` are
    headers that the copy has besides.
    """
    headers = dict(more) | _remembered(
        delivery,
        History(history.attempt + 1, history.since or int(time.time()), reason_of(error)),
    )
    if deadline is not None:
        headers["deadline"] = int(1000 * deadline)
    publication = copy_of(delivery, delay_queue(delivery.queue, level), headers)
    publication.properties.expiration = delay
    return publication


def recounted(delivery: Delivery, history: History) -> Publication:
    """Return the copy that says that the message was delivered again, for the same queue."""
    headers = _remembered(
        delivery, History(history.attempt, history.since, history.error, history.crashes + 1)
    )
    return copy_of(delivery, delivery.queue, headers)


def _remembered(delivery: Delivery, history: History) -> dict[str, Any]:
    found = {
        MARK: delivery.exchange,
        "retry_routing_key": delivery.routing_key,
        "retry_attempt": history.attempt,
        "retry_since": history.since,
        "retry_error": history.error,
    }
    return found | ({"retry_crashes": history.crashes} if history.crashes else {})


def reason_of(error: BaseException) -> str:
    """Return class and text of what went wrong, fit for a header."""
    return f"{type(error).__name__}: {exceptions.text_of(error)}"[:MAX_REASON]
