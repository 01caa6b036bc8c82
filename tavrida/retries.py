# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Retries as data: what may be said about trying again, and what then holds for one handler.

Four places say something: the built-in default, the server (``[retry]``, ``Server(retry=)``), the
decorator of the handler, and the operator about the service (``[retry:SERVICE]``) and about the
entry point (``[retry:SERVICE.METHOD]``). Each may say a part; a later one goes before.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from tavrida import exceptions

#: What a message itself is wrong with: trying again changes nothing.
_OWN_FAULT = "tavrida.exceptions.MessageError"

#: Different delays of one queue at most, because each one is a queue of its own.
MAX_LEVELS = 20

#: Seconds. What RabbitMQ takes as the time-out of a queue's messages.
MAX_DELAY = 4_294_967.0


@dataclass(frozen=True, slots=True)
class Retry:
    """What somebody says about trying again; None is left to whoever else says something.

    ``attempts`` is how often a handler is run in all, so that 1 is "never again". The second
    attempt comes ``first_delay`` seconds after the first has failed, each further one after
    ``factor`` times as long as the one before, but at most ``max_delay`` seconds. Each delay is
    shortened by a random part of itself, of up to ``jitter``. ``on`` and ``never`` are exceptions,
    as classes or by name (``ValueError``, ``package.module.Error``); subclasses count too.

    Raises:
        ConfigError: a value cannot be meant; names all of them.
    """

    attempts: int | None = None
    first_delay: float | None = None
    factor: float | None = None
    max_delay: float | None = None
    jitter: float | None = None
    on: tuple[str, ...] | None = None
    never: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        faults = exceptions.Faults()
        for name, (kinds, least, most, wanted) in _LIMITS.items():
            value = getattr(self, name)
            if value is not None and not (
                isinstance(value, kinds) and not isinstance(value, bool) and least <= value <= most
            ):
                faults.add(f"{name}={value!r} should be {wanted}")
        for name in ("on", "never"):
            with faults.collected(f"{name}="):
                object.__setattr__(self, name, _names(getattr(self, name)))
        faults.check()


_NUMBER = (int, float)

#: Of each number: its types, the least and the most, and that in words.
_LIMITS: dict[str, tuple[Any, float, float, str]] = {
    "attempts": (int, 1, 10_000, "a number from 1 (never tried again) to 10000"),
    "first_delay": (_NUMBER, 0.001, MAX_DELAY, f"seconds, from 0.001 to {MAX_DELAY:.0f}"),
    "factor": (_NUMBER, 1, 1000, "a number from 1 to 1000"),
    "max_delay": (_NUMBER, 0.001, MAX_DELAY, f"seconds, from 0.001 to {MAX_DELAY:.0f}"),
    "jitter": (_NUMBER, 0, 1, "a number from 0 to 1"),
}


def _names(value: Any) -> tuple[str, ...] | None:
    """Return exceptions by name: as they stand in a file, or "module.Class" of a class."""
    if value is None:
        return None
    found = []
    for each in value if isinstance(value, tuple | list) else (value,):
        if isinstance(each, type) and issubclass(each, BaseException):
            found.append(_full_name(each))
        elif isinstance(each, str) and each.replace(".", "").isidentifier():
            found.append(each)
        else:
            raise exceptions.ConfigError(
                f"{each!r} is no exception: write its class, or its name such as 'ValueError' or "
                "'package.module.Error'"
            )
    return tuple(found)


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


#: What a decorator or ``Server(retry=)`` takes: True is "as configured, calls too", False "never",
#: a number that of the attempts.
Said = Retry | bool | int


def said(value: Said) -> Retry:
    """Return what a ``retry=`` means.

    Raises:
        ConfigError: it means nothing.
    """
    if isinstance(value, Retry):
        return value
    if isinstance(value, bool):
        return Retry() if value else Retry(attempts=1)
    if isinstance(value, int):
        return Retry(attempts=value)
    raise exceptions.ConfigError(
        f"retry={value!r} should be a Retry(...), a number of attempts, True or False"
    )


#: What holds where nobody says anything: tried after 1, 4, 16 and 64 seconds.
DEFAULT = Retry(5, 1.0, 4.0, 300.0, 0.2, (), ())


@dataclass(frozen=True, slots=True)
class Policy:
    """What holds for one handler. ``delays`` are in milliseconds, one before each new attempt."""

    delays: tuple[int, ...] = ()
    jitter: float = 0.0
    on: frozenset[str] = frozenset()
    never: frozenset[str] = frozenset()
    #: Whether requests whose caller waits for the answer are tried again too.
    has_calls: bool = False

    @property
    def attempts(self) -> int:
        """How often the handler is run in all."""
        return len(self.delays) + 1

    def takes(self, error: BaseException) -> bool:
        """Tell whether a handler that failed so may be run again.

        What ``never`` names is not, then what ``on`` names is. Where ``on`` names nothing,
        everything is, but what is wrong with the message itself (MessageError).
        """
        names: set[str] = set()
        for cls in type(error).__mro__:
            names.update((cls.__name__, _full_name(cls)))
        if names & self.never:
            return False
        return bool(names & self.on) if self.on else _OWN_FAULT not in names

    def jittered(self, delay: int) -> int:
        """Return a delay shortened at random, in milliseconds, at least 1."""
        return max(1, round(delay * (1 - self.jitter * random.random())))  # noqa: S311


def policy_of(*layers: Retry | None, has_calls: bool = False) -> Policy:
    """Return the policy that the layers make; later ones go before.

    Raises:
        ConfigError: values of several layers do not go together.
    """
    values: dict[str, Any] = {}
    for layer in (DEFAULT, *layers):
        for each in fields(Retry):
            value = getattr(layer, each.name, None)
            values[each.name] = values.get(each.name) if value is None else value
    first, most = values["first_delay"], values["max_delay"]
    if first > most and values["attempts"] > 1:
        raise exceptions.ConfigError(
            f"first_delay={first} is longer than max_delay={most}: set max_delay too"
        )
    return Policy(
        _delays(values["attempts"], first, values["factor"], most),
        values["jitter"],
        frozenset(values["on"]),
        frozenset(values["never"]),
        has_calls,
    )


def _delays(attempts: int, first: float, factor: float, most: float) -> tuple[int, ...]:
    """Return the milliseconds before the second attempt, the third, and so on."""
    found = []
    delay = first
    for _ in range(attempts - 1):
        found.append(max(1, round(1000 * min(delay, most))))
        delay = min(delay * factor, most)
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Retries:
    """What a server was told: about all handlers, and by name of service or entry point.

    What ``above`` says goes before everything else.
    """

    default: Retry = Retry()
    named: Mapping[str, Retry] = field(default_factory=dict)
    above: Retry = Retry()

    def policy_of(self, service: str, entry_point: str, decorated: Retry | None) -> Policy:
        """Return the policy of a handler.

        A call is tried again only where somebody speaks of this handler or its service.

        Raises:
            ConfigError: what was said does not go together.
        """
        own = (decorated, self.named.get(service), self.named.get(entry_point))
        has_calls = any(each is not None for each in own)
        return policy_of(self.default, *own, self.above, has_calls=has_calls)


def levels_of(policies: Iterable[Policy], queue: str) -> tuple[int, ...]:
    """Return the different delays of a queue's handlers, in milliseconds, the shortest first.

    Raises:
        ConfigError: there are too many.
    """
    levels = sorted({delay for policy in policies for delay in policy.delays})
    if len(levels) > MAX_LEVELS:
        raise exceptions.ConfigError(
            f"the handlers of queue {queue!r} have {len(levels)} different delays, each of which "
            f"needs a queue, and {MAX_LEVELS} are the most: give them the same retry, or a larger "
            "factor"
        )
    return tuple(levels)
