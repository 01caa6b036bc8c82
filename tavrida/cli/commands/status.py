# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""``tavrida status``: what waits in the queues of the services, and who reads them."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tavrida import exceptions
from tavrida.cli.application import TO_DO, Connected, WrongUsage, note
from tavrida.cli.tables import Listing

if TYPE_CHECKING:
    from tavrida.config import ConnectionConfig
    from tavrida.plugins.transports import QueueState, Transport

#: The state of a queue with which nothing is wrong.
WELL = "ok"


@dataclass(slots=True)
class Place:
    """A queue, the services that read it, and the queues beside it."""

    queue: str
    dead: str
    services: list[str] = field(default_factory=list)
    #: The queues where its retries wait; None where nobody knows.
    delays: list[str] | None = None


class Status(Connected, Listing):
    """Show the queues: what waits, who reads, dead letters; exit code 4 if one needs a look"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "services",
            nargs="*",
            metavar="SERVICE",
            help="only the queues of these; default: all that the ini speaks of",
        )
        return parser

    def take_action(self, args: argparse.Namespace) -> tuple[tuple[str, ...], list[Any]]:
        from tavrida.cli.broker import at_broker
        from tavrida.config import redact

        config, places = self.places(args)
        config = self.place(config, args)

        async def ask(broker: Transport) -> dict[str, QueueState | None]:
            names = [
                name
                for place in places
                for name in (place.queue, place.dead, *(place.delays or ()))
            ]
            return {name: await broker.inspect(name) for name in names}

        states = at_broker(config, "status", ask)
        note(f"the broker is reachable: {', '.join(map(redact, config.urls))}")
        rows = [_row(place, states) for place in places]
        if any(row[-1] != WELL for row in rows):
            self.verdict = TO_DO
        if args.formatter == "table":
            rows = [tuple("" if cell is None else cell for cell in row) for row in rows]
        columns = ("Queue", "Services", "Messages", "Consumers", "Delayed", "Dead", "State")
        return columns, rows

    def places(self, args: argparse.Namespace) -> tuple[ConnectionConfig, list[Place]]:
        """Return the connection, and the queues to look into."""
        from tavrida import options, topology

        config, queues = options.read_queues(self.parsed(args))
        for name in args.services:
            if name not in queues:
                near = exceptions.did_you_mean(name, queues)
                has = f"it has {', '.join(queues)}" if queues else "it names none: --config-file"
                raise exceptions.TavridaError(f"the ini has no service {name!r}{near}; {has}")
        if not queues:
            raise WrongUsage("say whose queues: --config-file with an ini that names services")
        places: dict[str, Place] = {}
        for service in args.services or queues:
            queue = queues[service]
            place = places.setdefault(queue, Place(queue, topology.dead_letter_queue(queue)))
            place.services.append(service)
        delays = self.delays(args)
        for place in places.values():
            place.delays = delays.get(place.queue)
        return config, list(places.values())

    def delays(self, args: argparse.Namespace) -> dict[str, list[str]]:
        """Return by queue where its retries wait, which only the controllers tell."""
        from tavrida import assembly

        try:
            server, _ = assembly.load(self.parsed(args))
        except exceptions.ConfigError as error:
            note(f"what waits to be tried again is not counted: {error.faults[0]}")
            return {}
        found: dict[str, list[str]] = {place.queue: [] for place in server.placements}
        for queue in server.topology.queues:
            if queue.message_ttl is not None:
                found[queue.dead_letter_to].append(queue.name)
        return found


def _row(place: Place, states: dict[str, QueueState | None]) -> tuple[Any, ...]:
    queue, dead = states[place.queue], states[place.dead]
    delayed = None
    if place.delays is not None:
        waiting = [states[name] for name in place.delays]
        delayed = sum(each.messages for each in waiting if each is not None)
    return (
        place.queue,
        ", ".join(place.services),
        queue.messages if queue else None,
        queue.consumers if queue else None,
        delayed,
        dead.messages if dead else None,
        _state(queue, dead),
    )


def _state(queue: QueueState | None, dead: QueueState | None) -> str:
    """Return what an operator should look at, or that there is nothing."""
    if queue is None:
        return "never started"
    wrong = [
        what
        for what, is_so in (
            ("nobody reads it", not queue.consumers),
            ("dead letters", dead is not None and dead.messages > 0),
        )
        if is_so
    ]
    return ", ".join(wrong) or WELL
