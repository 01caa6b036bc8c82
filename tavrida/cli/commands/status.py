# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""``tavrida status``: what waits in the queues of services, who reads it, who is connected."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tavrida import exceptions
from tavrida.cli.application import TO_DO, Connected, WrongUsage, note
from tavrida.cli.tables import Listing, Since

if TYPE_CHECKING:
    from tavrida.config import ConnectionConfig
    from tavrida.plugins.transports import ConnectionState, QueueState, Transport

#: The state of a queue with which nothing is wrong.
WELL = "ok"

COLUMNS = ("Queue", "Services", "Ready", "Unacked", "Consumers", "Delayed", "Dead", "State")
CONNECTION_COLUMNS = ("Connection", "User", "From", "Since", "State", "Unacked", "Queues")

#: How the queues of answers begin, of which every client has one.
REPLIES = "tavrida.reply."

UNTOLD = (
    "AMQP does not tell them; set [connection] management_url, or beside --url the option "
    "--management-url, to RabbitMQ's management, as in http://HOST:15672"
)


@dataclass(slots=True)
class Place:
    """A queue, the services that read it, and the queues beside it."""

    queue: str
    dead: str
    services: list[str] = field(default_factory=list)
    #: The queues where its retries wait; None where nobody knows.
    delays: list[str] | None = None


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the broker tells."""

    states: dict[str, QueueState | None]
    connections: list[ConnectionState] = field(default_factory=list)
    #: Why there are no connections, nor unacknowledged messages; "" where they are told.
    untold: str = ""


class Status(Connected, Listing):
    """Show queues, or who is connected; exit code 4 if a queue needs a look"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "services",
            nargs="*",
            metavar="SERVICE",
            help="only the queues of these; default: all that the ini speaks of",
        )
        parser.add_argument(
            "--connections",
            action="store_true",
            help="list who is connected instead; with services, those that read their queues",
        )
        parser.add_argument(
            "--management-url",
            metavar="URL",
            help="where RabbitMQ's management is, instead of [connection] management_url",
        )
        return parser

    def take_action(self, args: argparse.Namespace) -> tuple[tuple[str, ...], list[Any]]:
        from tavrida.cli.broker import at_broker
        from tavrida.config import redact

        config, places = self.places(args)
        config = self.place(config, args)

        async def ask(broker: Transport) -> _Seen:
            names = [
                name
                for place in places
                for name in (place.queue, place.dead, *(place.delays or ()))
            ]
            states = {name: await broker.inspect(name) for name in names}
            return await _with_connections(_Seen(states), broker, config)

        seen = at_broker(config, "status", ask)
        note(f"the broker is reachable: {', '.join(map(redact, config.urls))}")
        if args.connections:
            columns: tuple[str, ...] = CONNECTION_COLUMNS
            rows = _listed(seen, {place.queue for place in places if args.services})
        else:
            columns, rows = COLUMNS, [_row(place, seen) for place in places]
            if any(row[-1] != WELL for row in rows):
                self.verdict = TO_DO
            for line in _notes_on(seen, places):
                note(line)
        if args.formatter == "table":
            rows = [tuple("" if cell is None else cell for cell in row) for row in rows]
        return columns, rows

    def place(self, config: ConnectionConfig, args: argparse.Namespace) -> ConnectionConfig:
        """Return the connection as ``Connected`` does; the ini's management is not another's."""
        management_url = args.management_url or ("" if args.url else config.management_url)
        try:
            config = dataclasses.replace(config, management_url=management_url)
        except exceptions.ConfigError as error:
            raise WrongUsage("; ".join(error.faults)) from None
        return super().place(config, args)

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
        delays = {} if args.connections else self.delays(args)
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


async def _with_connections(seen: _Seen, broker: Transport, config: ConnectionConfig) -> _Seen:
    """Return what was seen with what the transport tells beside it, or RabbitMQ's management."""
    others = await broker.connections()
    if others is not None:
        return dataclasses.replace(seen, connections=_without(broker.name, others))
    if not config.management_url:
        return dataclasses.replace(seen, untold=UNTOLD)
    from tavrida.cli import management

    try:
        survey = await management.survey(config)
    except exceptions.TransportError as error:
        return dataclasses.replace(seen, untold=str(error))
    states = {
        name: state and dataclasses.replace(state, unacknowledged=survey.unacknowledged.get(name))
        for name, state in seen.states.items()
    }
    return _Seen(states, _without(broker.name, survey.connections))


def _without(name: str, connections: list[ConnectionState]) -> list[ConnectionState]:
    """Return the connections but for that which asks."""
    others = [each for each in connections if each.name != name]
    return sorted(others, key=lambda each: (each.name, each.peer))


def _listed(seen: _Seen, queues: set[str]) -> list[tuple[Any, ...]]:
    """Return the rows of connections: those that read one of the queues, if there are some."""
    if seen.untold:
        raise exceptions.TransportError(f"connections are not shown: {seen.untold}")
    return [
        (
            *map(exceptions.printable, (each.name, each.user, each.peer)),
            Since(each.since and each.since.isoformat(timespec="seconds")),
            exceptions.printable(each.state),
            each.unacknowledged,
            exceptions.printable(", ".join(filter(_is_lasting, each.queues))),
        )
        for each in seen.connections
        if not queues or queues.intersection(each.queues)
    ]


def _notes_on(seen: _Seen, places: list[Place]) -> Iterator[str]:
    """Yield what is to be said beside the table of queues: why columns are empty."""
    if seen.untold:
        yield f"unacknowledged messages and connections are not shown: {seen.untold}"
        return
    yield f"{len(seen.connections)} connections to it: --connections lists them"
    states = {place.queue: seen.states[place.queue] for place in places}
    uncounted = [name for name, each in states.items() if each and each.unacknowledged is None]
    if uncounted:
        yield f"the management has not counted yet: {', '.join(uncounted)}"


def _is_lasting(queue: str) -> bool:
    """Tell whether a queue is not that of a client's answers."""
    return not queue.startswith(REPLIES)


def _row(place: Place, seen: _Seen) -> tuple[Any, ...]:
    states = seen.states
    queue, dead = states[place.queue], states[place.dead]
    delayed = None
    if place.delays is not None:
        waiting = [states[name] for name in place.delays]
        delayed = sum(each.messages for each in waiting if each is not None)
    return (
        place.queue,
        ", ".join(place.services),
        queue.messages if queue else None,
        queue.unacknowledged if queue else None,
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
