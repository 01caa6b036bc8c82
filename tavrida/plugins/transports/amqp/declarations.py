# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Declarations: what pika is asked to declare, and what RabbitMQ says when it refuses."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import pika.exceptions

from tavrida import exceptions
from tavrida.plugins.transports import conflict
from tavrida.plugins.transports.amqp.channel import passing
from tavrida.plugins.transports.amqp.objections import (
    NOT_FOUND,
    PRECONDITION_FAILED,
    is_denial,
    refused,
    text_of,
)
from tavrida.plugins.transports.amqp.wire import PlainWire
from tavrida.topology import Exchange, Queue

_AMQP_VALUE = re.compile(r"the value '(.*?)' of type '(\w+)'")
_INTEGERS = ("signedint", "unsignedint", "long", "short", "byte")
_INEQUIVALENT = re.compile(
    r"inequivalent arg '(?P<name>[^']+)' for (?P<kind>queue|exchange) '(?P<thing>[^']+)'.*"
    r"received (?P<new>.+) but current is (?P<old>.+)"
)

#: What is called differently by RabbitMQ's refusals and by pika.
PARAMETERS = {"type": "exchange_type"}


async def missing_of(connection: PlainWire, exchanges: Iterable[str]) -> str | None:
    """Return the first of some exchanges that does not exist; None where all do."""
    # The answer that there is none closes the channel that asked; so it is a channel for this.
    async with passing(connection) as channel:
        for exchange in exchanges:
            try:
                await channel.ask(channel.pika.exchange_declare, exchange, passive=True)
            except pika.exceptions.ChannelClosedByBroker as error:
                if error.reply_code == NOT_FOUND:
                    return exchange
                raise
    return None


async def refusal_of(
    connection: PlainWire, thing: Queue | Exchange, settings: dict[str, Any]
) -> pika.exceptions.ChannelClosedByBroker | None:
    """Declare something; return why the broker does not, if it has none or a different one."""
    async with passing(connection) as channel:
        amqp = channel.pika
        declare = amqp.queue_declare if isinstance(thing, Queue) else amqp.exchange_declare
        try:
            await channel.ask(declare, thing.name, **settings)
        except pika.exceptions.ChannelClosedByBroker as error:
            if error.reply_code not in (NOT_FOUND, PRECONDITION_FAILED):
                raise
            return error
    return None


def settings_of(thing: Queue | Exchange) -> dict[str, Any]:
    """Return the arguments of pika's method that declares something."""
    if isinstance(thing, Exchange):
        return {"exchange_type": "topic", "durable": True}
    return {"durable": True, "arguments": arguments_of(thing)}


def difference_of(
    error: pika.exceptions.ChannelClosedByBroker, settings: dict[str, Any]
) -> tuple[str, object, object] | None:
    """Return name, old and new value of what a refusal to declare is about, if it says so."""
    found = _INEQUIVALENT.search(error.reply_text)
    if found is None:
        return None
    name = found["name"]
    wanted = settings.get("arguments", settings).get(name)
    return name, _value(found["old"], wanted), _value(found["new"], wanted)


def _value(text: str, wanted: object) -> object:
    """Read a value as RabbitMQ writes it, sometimes without its type: then it is the wanted's."""
    if text == "none":
        return None
    typed = _AMQP_VALUE.fullmatch(text)
    value = typed[1] if typed else text.strip("'")
    is_number = typed[2] in _INTEGERS if typed else type(wanted) is int
    if is_number and value.lstrip("-").isdecimal():
        return int(value)
    return {"true": True, "false": False}.get(value, value)


def arguments_of(queue: Queue) -> dict[str, Any]:
    """Return the arguments with which a queue is declared."""
    arguments: dict[str, Any] = {"x-queue-type": queue.type}
    if queue.dead_letter_to:
        arguments["x-dead-letter-exchange"] = ""
        arguments["x-dead-letter-routing-key"] = queue.dead_letter_to
        if queue.type == "quorum":
            # Kept until the other queue has confirmed it. That is asked for by two arguments, of
            # which the second has an effect only on queues with a limit on their length.
            arguments["x-dead-letter-strategy"] = "at-least-once"
            arguments["x-overflow"] = "reject-publish"
    if queue.delivery_limit is not None:
        arguments["x-delivery-limit"] = queue.delivery_limit
    if queue.message_ttl is not None:
        arguments["x-message-ttl"] = queue.message_ttl
    return arguments


def conflict_of(error: pika.exceptions.ChannelClosedByBroker) -> exceptions.TransportError:
    """Return the error of a refusal to declare."""
    if is_denial(error):
        return refused(error, "the broker does not let this user declare what is needed")
    if error.reply_code != PRECONDITION_FAILED:
        return exceptions.TransportError(f"cannot declare: {text_of(error)}")
    found = _INEQUIVALENT.search(error.reply_text)
    if found is None:
        return exceptions.TopologyConflict(f"cannot declare: {error.reply_text}")
    old, new = (_value(found[each], None) for each in ("old", "new"))
    return conflict(found["kind"], found["thing"], {found["name"]: (old, new)})
