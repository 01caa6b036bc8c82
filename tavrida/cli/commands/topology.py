# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""``tavrida topology show``, ``plan`` and ``apply``: what the services need, and what is there."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeVar

from cliff.columns import FormattableColumn
from cliff.lister import Lister

from tavrida import exceptions
from tavrida.cli.application import OK, TavridaCommand, WrongUsage

Result = TypeVar("Result")

#: The exit code of ``plan`` where ``apply`` would do something.
TO_DO = 4

#: What a plan's action means, for people.
_HOW = {
    "keep": "",
    "create": "apply makes it",
    "declare": "apply makes it where it is missing; a broker does not tell",
    "move": "apply moves {messages} messages through {stand_in}",
    "move aside": "apply keeps {messages} messages in {stand_in}, while its dead-letter queue "
    "is changed",
    "move back": "an apply was interrupted: the next one moves {messages} messages back from "
    "{stand_in}",
    "none possible": "apply cannot change it: use another name, or delete it when nobody uses it",
}


class Settings(FormattableColumn[Any]):
    """A cell with several values by name: text for people, an object for programs."""

    def human_readable(self) -> str:
        return "\n".join(f"{name}: {value}" for name, value in self._value.items())


class Changes(FormattableColumn[Any]):
    """A cell that says for each name what it is and what it should be."""

    def human_readable(self) -> str:
        return "\n".join(f"{name}: {old!r} -> {new!r}" for name, (old, new) in self._value.items())

    def machine_readable(self) -> Any:
        return {name: {"old": old, "new": new} for name, (old, new) in self._value.items()}


class Configured(TavridaCommand):
    """What the three commands share: whose topology."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--config-file", action="append", default=[], help="an ini; may be given repeatedly"
        )
        parser.add_argument("--config-dir", action="append", default=[], help="a folder of them")
        parser.add_argument("--url", help="where the broker is, instead of [connection] url")
        return parser

    def server(self, args: argparse.Namespace) -> Any:
        """Return the server that the files describe."""
        from tavrida import assembly, options

        files = [f"--config-file={path}" for path in args.config_file]
        folders = [f"--config-dir={path}" for path in args.config_dir]
        server, _ = assembly.load(options.parse([*files, *folders], "tavrida"))
        if args.url:
            server.config = dataclasses.replace(server.config, url=args.url)
        return server


def at_broker(config: Any, action: Callable[[Any], Awaitable[Result]]) -> Result:
    """Run an action with an open transport to the broker; give up when that is lost for good."""
    from tavrida import plugins, state
    from tavrida.loop import LoopThread
    from tavrida.plugins.transports import Events, Transport

    state.prepare(config.urls)
    # A server waits for its broker for ever; a person does not.
    config = dataclasses.replace(config, reconnect_attempts=config.connection_attempts)
    cls = plugins.load(plugins.TRANSPORTS, config.scheme, Transport)  # type: ignore[type-abstract]
    loop = LoopThread("tavrida-topology")

    async def run() -> Result:
        failed: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        events = Events(lambda reason: None, failed.set_result)
        name = f"tavrida topology@{socket.gethostname()} {os.getpid()}"
        transport = cls(config, loop, name, events)
        await transport.open(config.connection_attempts)
        acting = asyncio.ensure_future(action(transport))
        try:
            either: set[asyncio.Future[Any]] = {acting, failed}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not acting.done():
                raise failed.result()
            return acting.result()
        finally:
            acting.cancel()
            await transport.close()

    try:
        return loop.run(run())
    finally:
        loop.stop()


class TopologyShow(Configured, Lister):
    """Show the exchanges, queues and bindings that the services need; asks no broker"""

    def take_action(self, args: argparse.Namespace) -> tuple[tuple[str, ...], list[Any]]:
        topology = self.server(args).topology
        things = (*topology.exchanges, *topology.queues, *topology.bindings)
        return ("Kind", "Name", "Type", "Settings"), [_row(thing) for thing in things]


def _row(thing: Any) -> tuple[Any, ...]:
    """Return kind, name, type and everything else that is set."""
    settings = {
        name: value for name, value in dataclasses.asdict(thing).items() if value not in ("", None)
    }
    kind = type(thing).__name__.lower()
    name = settings.pop("queue" if kind == "binding" else "name")
    # All exchanges are topic exchanges.
    return (
        kind,
        name,
        settings.pop("type", "topic" if kind == "exchange" else ""),
        Settings(settings),
    )


class TopologyPlan(Configured, Lister):
    """Say what apply would do; exit code 4 if that is anything"""

    is_anything_to_do = False

    def take_action(self, args: argparse.Namespace) -> tuple[tuple[str, ...], list[Any]]:
        from tavrida import migration

        server = self.server(args)
        items = at_broker(server.config, lambda broker: migration.plan(broker, server.topology))
        self.is_anything_to_do = any(item.action not in migration.IDLE for item in items)
        services = _services(server)
        columns = ("Kind", "Name", "Action", "Changes", "Messages", "Consumers", "How")
        return columns, [_plan_row(item, services) for item in items]

    def run(self, parsed_args: Any) -> int:
        code = super().run(parsed_args)
        return TO_DO if code == OK and self.is_anything_to_do else code


def _services(server: Any) -> Mapping[str, str]:
    """Return by queue which services consume it."""
    found: dict[str, list[str]] = {}
    for placement in server.placements:
        found.setdefault(placement.queue, []).append(placement.dispatcher.service)
    return {queue: ", ".join(services) for queue, services in found.items()}


def _plan_row(item: Any, services: Mapping[str, str]) -> tuple[Any, ...]:
    kind, name, *_ = _row(item.thing)
    if kind == "binding":
        name = f"{item.thing.exchange} -> {name} ({item.thing.routing_key})"
    state = item.state
    return (
        kind,
        name,
        item.action,
        Changes(item.differences),
        state.messages if state else "",
        state.consumers if state else "",
        _how(item, services),
    )


def _how(item: Any, services: Mapping[str, str]) -> str:
    from tavrida import migration

    how = _HOW[item.action].format(
        messages=item.state.messages if item.state else 0,
        stand_in=migration.stand_in(item.thing.name) if item.state else "",
    )
    if item.action in migration.MOVING and item.state and item.state.consumers:
        who = services.get(item.thing.name, "whatever consumes it")
        how += f"; stop first: {who} ({item.state.consumers} consumers)"
    return how


class TopologyApply(Configured):
    """Make what is missing, and change queues that differ without losing their messages"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument("--yes", action="store_true", help="move messages without asking")
        return parser

    def take_action(self, args: argparse.Namespace) -> None:
        from tavrida import migration

        server = self.server(args)
        topology = server.topology
        items = at_broker(server.config, lambda broker: migration.plan(broker, topology))
        moves = [item for item in items if item.action in migration.MOVING]
        if moves and not args.yes:
            _ask(moves, _services(server))
        try:
            at_broker(server.config, lambda broker: migration.apply(broker, topology, _say))
        except exceptions.ConnectionFailed as error:
            raise exceptions.ConnectionFailed(
                f"{error}. No message is lost: run this again, it goes on where it was"
            ) from error
        _say("done: everything is as the services need it")


def _say(text: str) -> None:
    print(text, flush=True)


def _ask(moves: Iterable[Any], services: Mapping[str, str]) -> None:
    for item in moves:
        told = ", ".join(f"{n} {old!r} -> {new!r}" for n, (old, new) in item.differences.items())
        _say(f"queue {item.thing.name}: {told + '; ' if told else ''}{_how(item, services)}")
    if not sys.stdin.isatty():
        raise WrongUsage("queues are to be moved: say --yes, since there is nobody to ask")
    if input("Go on? Only 'yes' does: ").strip() != "yes":
        raise exceptions.TavridaError("nothing was changed")
