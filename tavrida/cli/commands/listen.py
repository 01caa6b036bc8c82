# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""``tavrida listen``: notifications as they come."""

from __future__ import annotations

import argparse
import json
import queue
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tavrida import exceptions
from tavrida.cli.application import Connected, WrongUsage, note
from tavrida.entry_point import EntryPoint

if TYPE_CHECKING:
    from tavrida.cli.subscription import Subscription
    from tavrida.plugins.transports import Delivery

#: What stands for every method of a service.
EVERY = "*"


class Listen(Connected):
    """Print notifications as they come, until Ctrl-C"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "topic",
            metavar="SERVICE.METHOD",
            help="what to hear; SERVICE or 'SERVICE.*' is all that the service publishes",
        )
        parser.add_argument(
            "--count", type=int, metavar="N", help="end when so many have come; exit code 0"
        )
        parser.add_argument(
            "--timeout",
            type=float,
            metavar="SECONDS",
            help="listen for so long; exit code 2 if fewer have come than --count says, or none",
        )
        parser.add_argument("--exchange", help="where to listen, instead of what discovery says")
        parser.add_argument(
            "-f",
            "--format",
            dest="formatter",
            choices=sorted(FORMATS),
            default="text",
            help="text: a line for each; json: an object a line; value: the payload, as JSON a "
            "line; yaml: a document for each",
        )
        return parser

    def take_action(self, args: argparse.Namespace) -> None:
        from tavrida import options
        from tavrida.cli.subscription import Subscription

        service, method = topic_of(args.topic)
        for name in ("count", "timeout"):
            value = getattr(args, name)
            if value is not None and not 0 < value < float("inf"):
                raise WrongUsage(f"--{name} {value} should be more than 0")
        config, discovery, _ = options.read_client(self.parsed(args), service)
        exchange = args.exchange or discovery.get_local_publisher(service)
        key = f"{service}.{method}"
        with Subscription(self.place(config, args), exchange, key) as subscription:
            subscription.wait()
            seconds = float("inf") if args.timeout is None else args.timeout
            deadline = time.monotonic() + seconds
            heard = print_all(subscription, FORMATS[args.formatter], args.count, deadline)
        if heard < (args.count or 1):
            raise exceptions.CallTimeout(
                f"{heard or 'no'} notifications of {key} in {args.timeout:g} s"
            )


def topic_of(text: str) -> tuple[str, str]:
    """Return the service and the method that a topic names; the method may be every one."""
    service, _, method = text.partition(".")
    try:
        if method in ("", EVERY):
            return EntryPoint(service).service, EVERY
        point = EntryPoint.parse(text)
    except exceptions.WrongEntryPoint as error:
        raise WrongUsage(str(error)) from None
    return point.service, point.method


def print_all(
    subscription: Subscription,
    text_of: Callable[[dict[str, Any]], str],
    count: int | None,
    deadline: float,
) -> int:
    """Print until so many were heard, or the deadline; return how many were."""
    from tavrida.loop import SLICE

    heard = 0
    while heard != count:
        left = deadline - time.monotonic()
        if left <= 0:
            break
        try:
            delivery = subscription.next(min(left, SLICE))
        except queue.Empty:
            continue
        said = read(delivery, subscription)
        if text_of is FORMATS["value"] and "undecodable" in said:
            note(f"{said['topic']} cannot be read, so null stands for it: {said['undecodable']}")
        print(text_of(said), flush=True)
        heard += 1
    return heard


def read(delivery: Delivery, subscription: Subscription) -> dict[str, Any]:
    """Return all that there is to say about a notification, as JSON has it."""
    from tavrida import envelope, messages

    said: dict[str, Any] = {"topic": delivery.routing_key}
    codecs = subscription.serializers
    try:
        message = envelope.decode(
            delivery.properties,
            delivery.body,
            delivery.routing_key,
            codecs.by_content_type,
            default=codecs.default,
            untyped=messages.NOTIFICATION,
        )
    except exceptions.MalformedMessage as error:
        return said | {"undecodable": str(error), "body": delivery.body.decode("utf-8", "replace")}
    said |= {
        "source": str(message.source or ""),
        "message_id": message.message_id,
        "correlation_id": message.correlation_id,
        "headers": message.extra_headers,
        "context": message.context,
        "payload": message.payload,
    }
    return {name: plain(value) for name, value in said.items()}


def plain(value: Any) -> Any:
    """Return what JSON can say of a value: dates and bytes as strings, the rest by its repr."""
    import msgspec

    try:
        return json.loads(msgspec.json.encode(value, enc_hook=repr))
    except (TypeError, ValueError, RecursionError):
        return repr(value)


def _one_line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _as_text(said: dict[str, Any]) -> str:
    moment = time.strftime("%H:%M:%S")
    if "undecodable" in said:
        what = f"cannot be read: {said['undecodable']}"
    else:
        what = _one_line(said["payload"])
    return exceptions.printable(f"{moment} {said['topic']} {what}")


def _as_yaml(said: dict[str, Any]) -> str:
    import yaml  # type: ignore[import-untyped]

    return f"---\n{yaml.safe_dump(said, allow_unicode=True, sort_keys=False)}".rstrip("\n")


FORMATS: dict[str, Callable[[dict[str, Any]], str]] = {
    "text": _as_text,
    "json": _one_line,
    "value": lambda said: _one_line(said.get("payload")),
    "yaml": _as_yaml,
}
