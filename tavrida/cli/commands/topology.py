# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""``tavrida topology show``, ``plan`` and ``apply``: what the services need, and what is there."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from cliff.columns import FormattableColumn

from tavrida import exceptions
from tavrida.cli.application import TO_DO, Connected, WrongUsage
from tavrida.cli.tables import Listing

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


class Assembled(Connected):
    """What the three commands share: whose topology."""

    def server(self, args: argparse.Namespace) -> Any:
        """Return the server that the files describe."""
        from tavrida import assembly

        server, _ = assembly.load(self.parsed(args))
        server.config = self.place(server.config, args)
        return server


class TopologyShow(Assembled, Listing):
    """Show the services, exchanges, queues and bindings, also as a picture; asks no broker"""

    @property
    def formatter_namespace(self) -> str:
        return "tavrida.topology_formats"

    def take_action(self, args: argparse.Namespace) -> tuple[tuple[str, ...], list[Any]]:
        server = self.server(args)
        topology = server.topology
        things = (*topology.exchanges, *topology.queues, *topology.bindings)
        rows = [*map(_service_row, server.placements), *map(_row, things)]
        return ("Kind", "Name", "Type", "Settings"), rows


def _service_row(placement: Any) -> tuple[Any, ...]:
    service = placement.dispatcher.service
    settings = {"queue": placement.queue, "exchange": placement.exchange}
    # Unknown: it publishes nothing, or is told so when it tries.
    with contextlib.suppress(exceptions.ServiceUnknown):
        settings["publishes_to"] = placement.addresses.local_publisher(service)
    return "service", service, "", Settings(settings)


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


class TopologyPlan(Assembled, Listing):
    """Say what apply would do; exit code 4 if that is anything"""

    def take_action(self, args: argparse.Namespace) -> tuple[tuple[str, ...], list[Any]]:
        from tavrida import migration
        from tavrida.cli.broker import at_broker

        server = self.server(args)
        topology = server.topology
        items = at_broker(server.config, "topology", lambda it: migration.plan(it, topology))
        if any(item.action not in migration.IDLE for item in items):
            self.verdict = TO_DO
        services = _services(server)
        columns = ("Kind", "Name", "Action", "Changes", "Messages", "Consumers", "How")
        return columns, [_plan_row(item, services) for item in items]


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


class TopologyApply(Assembled):
    """Make what is missing, and change queues that differ without losing their messages"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument("--yes", action="store_true", help="move messages without asking")
        return parser

    def take_action(self, args: argparse.Namespace) -> None:
        from tavrida import migration
        from tavrida.cli.broker import at_broker

        server = self.server(args)
        topology = server.topology
        items = at_broker(server.config, "topology", lambda it: migration.plan(it, topology))
        moves = [item for item in items if item.action in migration.MOVING]
        if moves and not args.yes:
            _ask(moves, _services(server))
        try:
            at_broker(server.config, "topology", lambda it: migration.apply(it, topology, _say))
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
    print("Go on? Only 'yes' does: ", end="", flush=True)
    if sys.stdin.readline().strip() != "yes":
        raise exceptions.TavridaError("nothing was changed")
