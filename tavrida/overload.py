# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Overload as data: which handlers have limits of their own, and what is taken in for them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from tavrida import exceptions
from tavrida.dispatcher import Handler


@dataclass(frozen=True, slots=True)
class Threshold:
    """When a queue is paused: ``share`` of its last ``window`` messages failed.

    ``pause`` is in seconds. With a share of 0 it never is.
    """

    share: float
    window: int
    pause: float

    @property
    def failures(self) -> float:
        """How many of the window are too many."""
        return self.share * self.window


#: The threshold of queues that are never paused.
NEVER = Threshold(0.0, 1, 0.0)


def limits_of(handlers: Collection[Handler], said: Sequence[str]) -> dict[Handler, int]:
    """Return how many may run at a time, of the handlers that have a limit of their own.

    That is what the decorator says (``concurrency=``), unless ``said``, which is the option
    ``handler_concurrency`` ("service.method:2"), names the entry point.

    Raises:
        ConfigError: the option names no handler, or says no number.
    """
    by_name: dict[str, list[Handler]] = {}
    for handler in handlers:
        by_name.setdefault(str(handler.mark.entry_point), []).append(handler)
    limits = {each: each.mark.concurrency for each in handlers if each.mark.concurrency}
    faults = exceptions.Faults()
    for text in said:
        name, _, number = text.partition(":")
        if not number.isdecimal() or int(number) < 1:
            faults.add(
                f"handler_concurrency: {text!r} should be SERVICE.METHOD:NUMBER, with a number "
                "from 1"
            )
        elif name not in by_name:
            near = exceptions.did_you_mean(name, by_name)
            faults.add(f"handler_concurrency: there is no handler of {name!r} here{near}")
        else:
            limits |= dict.fromkeys(by_name[name], int(number))
    faults.check()
    return limits


def prefetch_of(
    handlers: Collection[Handler], limits: Mapping[Handler, int], concurrency: int
) -> int:
    """Return how many messages of the handlers' queue to take ahead: as many as may run.

    What could not begin here is left to other processes.
    """
    if any(handler not in limits for handler in handlers):
        return concurrency
    return min(concurrency, sum(limits[handler] for handler in handlers))
