# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Dead letters: how what cannot be handled is written into ``QUEUE.dead``, and with which reason.

docs/wire-format.md defines the headers.
"""

from __future__ import annotations

import time
import traceback

from tavrida.copies import History, copy_of, reason_of
from tavrida.plugins.transports import Delivery, Publication
from tavrida.topology import dead_letter_queue

#: Lines of a traceback that go with a dead letter, and characters: its end, where the reason is.
TRACEBACK_LINES = 20
MAX_TRACEBACK = 8000


def dead_letter(delivery: Delivery, history: History, reason: BaseException) -> Publication:
    """Return the copy that goes to the dead-letter queue of the delivery's queue."""
    now = int(time.time())
    lines = _trace_of(reason).splitlines()[-TRACEBACK_LINES:]
    return copy_of(
        delivery,
        dead_letter_queue(delivery.queue),
        {
            "dead_reason": reason_of(reason),
            "dead_error": type(reason).__name__,
            "dead_traceback": "\n".join(lines)[-MAX_TRACEBACK:],
            "dead_attempts": history.attempt,
            "dead_first_at": history.since or now,
            "dead_at": now,
            "dead_queue": delivery.queue,
            "dead_exchange": delivery.exchange,
            "dead_routing_key": delivery.routing_key,
        },
    )


def _trace_of(error: BaseException) -> str:
    """Return the traceback as text, also of an exception whose own attributes stand against it."""
    try:
        return "".join(traceback.format_exception(error))
    except BaseException:
        return f"(the traceback of {type(error)!r} cannot be made)"
