# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""``tavrida call``, ``tavrida cast`` and ``tavrida publish``."""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

from tavrida import exceptions
from tavrida.calls import MAX_TIMEOUT
from tavrida.cli.application import Connected, WrongUsage
from tavrida.cli.tables import Showing
from tavrida.entry_point import EntryPoint


class Sending(Connected):
    """What the three commands share: where to send, and what."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument("entry_point", metavar="SERVICE.METHOD")
        parser.add_argument(
            "values",
            nargs="*",
            default=[],
            metavar="KEY=VALUE",
            help="a value of the payload: JSON where it reads as JSON, else a string",
        )
        parser.add_argument("--json", metavar="'{...}'", help="the whole payload instead")
        parser.add_argument("--exchange", help="where to send, instead of what discovery says")
        parser.add_argument("--serializer", default="json", help="the plugin that writes the body")
        return parser

    def client(self, args: argparse.Namespace, source: str = "tavrida_cli") -> Any:
        """Return a client for the service, and the payload."""
        from tavrida import options
        from tavrida.client import RPCClient

        target = target_of(args)
        config, discovery, makers = options.read_client(self.parsed(args), target.service)
        if args.exchange:
            discovery.register_remote_service(target.service, args.exchange)
            discovery.register_local_publisher(target.service, args.exchange)
        return RPCClient(
            self.place(config, args),
            discovery=discovery,
            source=source,
            serializer=args.serializer,
            outgoing_middleware=options.made(makers).values(),
        )

    def payload(self, args: argparse.Namespace) -> dict[str, Any]:
        """Return the payload that the command line gives."""
        if args.json is not None:
            if args.values:
                raise WrongUsage("give either KEY=VALUE or --json, not both")
            try:
                payload = _read(args.json)
            except ValueError as error:
                raise WrongUsage(f"--json is no JSON: {error}") from None
            if not isinstance(payload, dict):
                raise WrongUsage('--json is no object: write it as {"key": ...}')
            return payload
        return dict(map(_pair, args.values))


def target_of(args: argparse.Namespace) -> EntryPoint:
    """Return the entry point of the command line."""
    try:
        return EntryPoint.parse(args.entry_point)
    except exceptions.WrongEntryPoint as error:
        raise WrongUsage(str(error)) from None


def _pair(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise WrongUsage(f"{text!r} is no KEY=VALUE, such as name=Ann")
    try:
        return key, _read(value)
    except ValueError:
        return key, value


def _read(text: str) -> Any:
    """Return what JSON says; raise ValueError where it is none, or more than JSON has words for."""
    try:
        return json.loads(text, parse_float=_number, parse_constant=_number)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _number(text: str) -> float:
    # It would arrive as null.
    if not math.isfinite(float(text)):
        raise ValueError(f"{text} is no number that JSON can write")
    return float(text)


def _as_it_is(value: Any) -> Any:
    return value


def _laid_out(value: Any) -> Any:
    """Return an object with a line for each of its keys, and anything else as it is."""
    if not isinstance(value, dict):
        return value
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


class Call(Sending, Showing):
    """Send a request and show the payload of its answer"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--timeout",
            type=float,
            metavar="SECONDS",
            help="how long to wait for the answer; default: [connection] call_timeout",
        )
        return parser

    def take_action(self, args: argparse.Namespace) -> tuple[list[str], list[Any]]:
        payload = self.payload(args)
        target = target_of(args)
        if args.timeout is not None and not 0 < args.timeout <= MAX_TIMEOUT:
            raise WrongUsage(
                f"--timeout {args.timeout:g} should be above 0, and at most {MAX_TIMEOUT} seconds"
            )
        with self.client(args) as client:
            answer = client[target.service][target.method](**payload).call(timeout=args.timeout)
        # In a table a person reads it; the other formats have ways of their own.
        show = _laid_out if args.formatter == "table" else _as_it_is
        return list(answer.payload), [show(value) for value in answer.payload.values()]


class Cast(Sending):
    """Send a request one way; done when the broker has it"""

    def take_action(self, args: argparse.Namespace) -> None:
        payload = self.payload(args)
        target = target_of(args)
        with self.client(args) as client:
            client[target.service][target.method](**payload).cast()


class Publish(Sending):
    """Publish a notification; done when the broker has it"""

    def take_action(self, args: argparse.Namespace) -> None:
        payload = self.payload(args)
        with self.client(args, source=args.entry_point) as client:
            client.publish(**payload)
