# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Topic patterns, as AMQP 0-9-1 (section 3.1.3.3) and RabbitMQ read them."""

from __future__ import annotations

from collections.abc import Sequence


def matches(pattern: str, routing_key: str) -> bool:
    """Tell whether a binding's pattern takes a routing key.

    Words are separated by dots: ``*`` stands for one word, ``#`` for any number of them. A word
    may be empty; an empty key has no word at all.
    """
    return _match(_words(pattern), _words(routing_key))


def _words(text: str) -> Sequence[str]:
    return text.split(".") if text else ()


def _match(pattern: Sequence[str], words: Sequence[str]) -> bool:
    # The set of positions in the pattern that the words so far can have led to.
    places = _with_skipped({0}, pattern)
    for word in words:
        reached = set()
        for place in places:
            if place == len(pattern):
                continue
            if pattern[place] == "#":
                reached.add(place)
            elif pattern[place] in ("*", word):
                reached.add(place + 1)
        places = _with_skipped(reached, pattern)
    return len(pattern) in places


def _with_skipped(places: set[int], pattern: Sequence[str]) -> set[int]:
    """Add the places behind every ``#``, which may stand for no word."""
    found = set(places)
    for place in places:
        while place < len(pattern) and pattern[place] == "#":
            place += 1  # noqa: PLW2901 - walks on from where it was
            found.add(place)
    return found
