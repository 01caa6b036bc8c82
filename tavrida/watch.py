# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The watch over handlers that run for so long that the broker is about to take their message back.

RabbitMQ closes the channel of a consumer that does not settle a message within its
``consumer_timeout``: all that this connection has in hand is delivered again, while handlers still
work on it, and so on each time that the long one runs.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Collection

from tavrida.handling import Handling

LOG = logging.getLogger(__name__)

#: The part of the consumer timeout after which a handler is warned of.
SHARE = 0.5

#: How often to look within one consumer timeout.
LOOKS = 30

#: Since when, in the loop's time, a delivery has been open; infinity when it was warned of.
Since = dict[Handling, float]


async def watch(
    open_handlings: Callable[[], Collection[Handling]], consumer_timeout: float
) -> None:
    """Warn once of each delivery that is open for long; seconds. Runs until it is cancelled."""
    since: Since = {}
    while True:
        await asyncio.sleep(consumer_timeout / LOOKS)
        now = asyncio.get_running_loop().time()
        since = look(open_handlings(), since, now, consumer_timeout)


def look(
    open_handlings: Collection[Handling], since: Since, now: float, consumer_timeout: float
) -> Since:
    """Warn of what has been open for too long; return what to hand in at the next look.

    A delivery counts from the look that saw it first, the broker from when it sent the message:
    the difference is small enough for a warning, and no message pays for a time of its own.
    """
    seen: Since = {}
    for handling in open_handlings:
        began = since.get(handling, now)
        if now - began >= consumer_timeout * SHARE:
            _warn(handling, now - began, consumer_timeout)
            began = math.inf
        seen[handling] = began
    return seen


def _warn(handling: Handling, seconds: float, consumer_timeout: float) -> None:
    LOG.warning(
        "%s has had a message of queue %s for %.0f s. After %.0f s (consumer_timeout) RabbitMQ "
        "takes it back, with all that this process has in hand, and delivers it again while it is "
        "still being handled. Split the work into several messages, or raise consumer_timeout in "
        "rabbitmq.conf and in [server].",
        handling.handler.place if handling.handler else handling.message.destination,
        handling.delivery.queue,
        seconds,
        consumer_timeout,
    )
