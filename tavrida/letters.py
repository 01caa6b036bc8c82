# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Letters: dead letters as operators see them, which of them are meant, and what goes back.

``dead_letters`` writes them; docs/wire-format.md defines the headers. What a broker or a stranger
put into a dead-letter queue is a letter too: nothing that is in its headers can break this.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tavrida import copies, envelope, exceptions, messages
from tavrida.envelope import Codec, Properties
from tavrida.plugins.transports import Delivery, Publication

#: How the name of a dead-letter queue ends.
_SUFFIX = ".dead"

#: How headers begin that tell how a message died: its next life has none.
_OF_THE_DEAD = ("dead_", "retry_")


@dataclass(frozen=True, slots=True)
class Letter:
    """What a dead letter says about itself, without its body. Unknown texts are empty."""

    #: The message id; for a message without one, "body-" and a digest of its body.
    id: str
    #: Where it lies now, and where it died.
    queue: str
    died_in: str
    #: With which it was published at first.
    exchange: str
    routing_key: str
    kind: str
    #: What the mark of its handler would name: for an answer, who gave it.
    entry_point: str
    #: The service that should have handled it; empty for a notification, which does not say.
    service: str
    #: The class of what went wrong, or the broker's word for it; and the whole text.
    error: str
    reason: str
    attempts: int | None
    #: Seconds since the epoch: when the first attempt failed, and when it died.
    first_at: int | None
    at: int | None
    #: Seconds since the epoch after which nobody waits for its answer any more.
    deadline: float | None
    #: Bytes of the body.
    size: int


def read(delivery: Delivery) -> Letter:
    """Return what a delivery of a dead-letter queue says about itself."""
    properties = delivery.properties
    headers = properties.headers or {}
    death = _last_death(headers)
    if death:
        headers = {n: v for n, v in headers.items() if not n.startswith("dead_")}
    queue, exchange, routing_key = _origin(delivery, headers, death)
    kind = properties.type or messages.REQUEST
    asked = _text(headers, "destination")
    entry_point, service = properties.app_id or "", asked.partition(".")[0]
    if kind == messages.REQUEST:
        entry_point = asked or routing_key
        service = entry_point.partition(".")[0]
    elif kind == messages.NOTIFICATION:
        entry_point, service = entry_point or routing_key, ""
    word = _text(death, "reason")
    reason = _text(headers, "dead_reason") or word
    attempt = _number(headers, "retry_attempt") if word else None
    deadline = _number(headers, "deadline")
    return Letter(
        properties.message_id or f"body-{hashlib.sha256(delivery.body).hexdigest()[:12]}",
        delivery.queue,
        queue,
        exchange,
        routing_key,
        kind,
        entry_point,
        service,
        _text(headers, "dead_error") or reason.partition(":")[0],
        reason,
        _number(headers, "dead_attempts") or attempt,
        _number(headers, "dead_first_at") or _number(headers, "retry_since"),
        _number(headers, "dead_at") or _seconds(death.get("time")),
        None if deadline is None else deadline / 1000,
        len(delivery.body),
    )


def _text(table: Mapping[str, Any], name: str) -> str:
    value = table.get(name)
    return value if isinstance(value, str) else ""


def _number(table: Mapping[str, Any], name: str) -> int | None:
    value = table.get(name)
    return value if type(value) is int else None


def _seconds(value: object) -> int | None:
    if not isinstance(value, datetime):
        return None
    return int((value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp())


def _last_death(headers: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what the broker says of its last death; nothing of what tavrida moved itself.

    It goes before what tavrida's headers say: who published the message may have written these.
    """
    deaths = headers.get("x-death")
    if not (isinstance(deaths, list) and deaths):
        return {}
    return deaths[0] if isinstance(deaths[0], dict) else {}


def _origin(
    delivery: Delivery, headers: Mapping[str, Any], death: Mapping[str, Any]
) -> tuple[str, str, str]:
    """Return the queue in which it died, and exchange and routing key of its publication."""
    if "dead_queue" in headers and not death:
        queue, exchange, key = (
            _text(headers, f"dead_{part}") for part in ("queue", "exchange", "routing_key")
        )
        return queue, exchange, key
    queue = _text(death, "queue")
    exchange = _text(death, "exchange")
    keys = death.get("routing-keys")
    key = keys[0] if isinstance(keys, list) and keys and isinstance(keys[0], str) else ""
    if not queue and delivery.queue.endswith(_SUFFIX):
        # Somebody put it here by hand, for the queue that this one belongs to.
        queue = key = delivery.queue.removesuffix(_SUFFIX)
    if copies.MARK in headers:
        exchange, key = _text(headers, copies.MARK), _text(headers, "retry_routing_key")
    return queue, exchange, key


# -- selecting


@dataclass(frozen=True, slots=True)
class Selection:
    """Which letters are meant: those for which everything holds that is given."""

    ids: frozenset[str] = frozenset()
    service: str = ""
    #: The queue of that service, for the letters that do not say which one they were for.
    service_queue: str = ""
    method: str = ""
    reason: str = ""
    #: Seconds since the epoch; a letter that does not say when it died is outside of both.
    died_before: float | None = None
    died_after: float | None = None

    def takes(self, letter: Letter) -> bool:
        """Tell whether a letter is meant."""
        service = letter.service or (letter.died_in == self.service_queue and self.service)
        method = letter.entry_point.partition(".")[2]
        return (
            (not self.ids or letter.id in self.ids)
            and (not self.service or service == self.service)
            and (not self.method or self.method in (method, letter.entry_point))
            and (not self.reason or _is_of(letter, self.reason))
            and (self.died_before is None or (letter.at or self.died_before) < self.died_before)
            and (self.died_after is None or (letter.at or 0) > self.died_after)
        )


def _is_of(letter: Letter, reason: str) -> bool:
    """Tell whether a letter died of that: the class by its name, or any part of the text after."""
    if reason in (letter.error, letter.reason):
        return True
    text = letter.reason.removeprefix(f"{letter.error}: ")
    return text != letter.error and reason.lower() in text.lower()


def resolve(wanted: Iterable[str], known: Collection[str]) -> frozenset[str]:
    """Return the whole ids for what an operator typed: ids, or beginnings of one only.

    Raises:
        TavridaError: one is unknown, or the beginning of several.
    """
    found = set()
    for text in wanted:
        if not text:  # of a script, whose variable is not set
            raise exceptions.TavridaError("an id is empty: give one, or the beginning of one")
        fitting = {text} if text in known else {each for each in known if each.startswith(text)}
        if not fitting:
            raise exceptions.TavridaError(
                f"no dead letter has the id {text!r}, or one that begins so; what another "
                "operator looks at just now is not seen"
            )
        if len(fitting) > 1:
            some = ", ".join(sorted(fitting)[:3])
            raise exceptions.TavridaError(
                f"id {text!r} is ambiguous, {len(fitting)} dead letters begin so ({some}): give "
                "more of it"
            )
        found |= fitting
    return frozenset(found)


def shortest(ids: Collection[str], least: int = 8) -> int:
    """Return how many first characters tell all of these ids apart, at least ``least``."""
    ordered = sorted(set(ids))
    for first, second in itertools.pairwise(ordered):
        while first[:least] == second[:least] and least < len(second):
            least += 1
    return least


# -- going back


@dataclass(frozen=True, slots=True)
class Return:
    """How letters go back; the default is to the very queue in which they died."""

    #: To the exchange where they were published, and so to all queues that are bound there now.
    to_exchange: bool = False
    #: Each gets a new message id.
    is_renewed: bool = False
    #: Also requests for whose answers nobody waits any more: as casts.
    is_forced: bool = False


def obstacle(letter: Letter, how: Return) -> str:
    """Return why a letter cannot go back; nothing if it can."""
    if letter.deadline is not None and letter.deadline < time.time() and not how.is_forced:
        return (
            "the deadline has passed, so it would not be run (--force: without deadline, as a cast)"
        )
    if how.to_exchange:
        if not letter.exchange and not letter.routing_key:
            return "it does not say to which exchange it was published"
        place = "" if letter.exchange else letter.routing_key
    else:
        place = letter.died_in
        if not place:
            return "it does not say in which queue it died (--to-exchange may help)"
    if place == letter.queue:
        return f"it would go to {place!r}, where it is already"
    return ""


def returned(delivery: Delivery, letter: Letter, how: Return) -> Publication:
    """Return what goes back: the original message, as if nobody had tried to handle it."""
    original = delivery.properties
    headers = {
        name: value
        for name, value in copies.plain_headers(original.headers or {}).items()
        if not name.startswith(_OF_THE_DEAD) and name not in copies.BESIDES
    }
    exchange, routing_key = letter.exchange, letter.routing_key
    if not how.to_exchange:
        if (exchange, routing_key) != ("", letter.died_in):
            headers |= {copies.MARK: exchange, "retry_routing_key": routing_key}
        exchange, routing_key = "", letter.died_in
    reply_to = original.reply_to or ""
    if letter.deadline is not None and letter.deadline < time.time():
        # A call would be answered to nobody if it failed again, and be lost. A cast comes back.
        headers.pop("deadline", None)
        reply_to = ""
    correlation_id, message_id = original.correlation_id or "", original.message_id
    if how.is_renewed:
        # The old one may name the chain.
        correlation_id, message_id = correlation_id or envelope.own_chain(original), None
    return Publication(
        exchange,
        routing_key,
        delivery.body,
        Properties(
            original.content_type or "",
            headers,
            correlation_id,
            reply_to,
            message_id or envelope.new_id(),
            original.type or "",
            original.app_id or "",
            int(time.time()),
        ),
        is_mandatory=True,
    )


# -- showing


def content_of(
    delivery: Delivery, codecs: Mapping[str, Codec], default: Codec
) -> tuple[Any, Any, str]:
    """Return context, payload and nothing; or None, the bytes as text and why they are that.

    Bytes that are no text are in hexadecimal digits.
    """
    body = delivery.body
    try:
        # Only what the body says: headers of a dead letter may be all wrong.
        plain: Any = Properties(delivery.properties.content_type or "")
        message = envelope.decode(plain, body, "body.only", codecs, default=default)
    except exceptions.MalformedMessage as error:
        text = body.decode("utf-8", "replace")
        is_text = "\ufffd" not in text and (text.isprintable() or text.isascii())
        return None, text if is_text and "\0" not in text else body.hex(" ", -4), str(error)
    return message.context, message.payload, ""
