# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Objections: what a broker has against a publication, for which it closes the channel."""

from __future__ import annotations

import re

import pika.exceptions

from tavrida import exceptions
from tavrida.plugins.transports import Publication, no_exchange

#: 404 NOT_FOUND, of AMQP 0-9-1: here, an exchange that does not exist.
NOT_FOUND = 404
ACCESS_REFUSED = 403
PRECONDITION_FAILED = 406

#: What to do where a user may not do something.
RIGHTS = (
    "Who administers the broker gives rights, with 'rabbitmqctl set_permissions': to configure "
    "what is declared, to write where messages are sent, to read where they are received"
)

_TOO_LARGE = re.compile(r"message size \d+ is larger than configured max size (?P<limit>\d+)")


def text_of(reason: BaseException) -> str:
    """One line for any of pika's exceptions."""
    if isinstance(reason, pika.exceptions.ConnectionClosed | pika.exceptions.ChannelClosed):
        return f"{reason.reply_code} {reason.reply_text}"
    return f"{type(reason).__name__} {reason}".strip()


def is_denial(reason: BaseException) -> bool:
    """Tell whether the broker does not let this user do what was asked."""
    return getattr(reason, "reply_code", 0) == ACCESS_REFUSED


def refused(reason: BaseException, what: str = "the broker refused") -> exceptions.TransportError:
    """Return the error for what the broker refused, with the remedy where a right is missing."""
    text = f"{what}: {text_of(reason)}"
    if not is_denial(reason):
        return exceptions.TransportError(text)
    return exceptions.TransportError(f"{text}. {RIGHTS}", is_denied=True)


def is_named_in(objection: str, publication: Publication) -> bool:
    """Tell whether what the broker says when it closes a channel is about this message."""
    too_large = _TOO_LARGE.search(objection)
    if too_large is not None:
        return len(publication.body) > int(too_large["limit"])
    return f"exchange '{publication.exchange}'" in objection


def objection_to(publication: Publication, reason: BaseException) -> Exception:
    """Why the broker closed the channel over a publication."""
    text = text_of(reason)
    if getattr(reason, "reply_code", 0) == NOT_FOUND:
        return no_exchange(publication)
    too_large = _TOO_LARGE.search(text)
    if too_large is not None:
        return exceptions.PublishFailed(
            f"the broker takes bodies of {too_large['limit']} bytes at most, that of the message "
            f"to {publication.routing_key!r} has {len(publication.body)}: set max_message_size to "
            "the same in [connection], so that it is refused before it is sent, or raise the "
            "broker's"
        )
    is_denied = is_denial(reason)
    return exceptions.PublishFailed(
        f"the broker refused a message to exchange {publication.exchange!r}, routing key "
        f"{publication.routing_key!r}: {text}{f'. {RIGHTS}' if is_denied else ''}",
        is_denied=is_denied,
    )
