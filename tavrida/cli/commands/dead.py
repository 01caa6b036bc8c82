# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""``tavrida dead list``, ``show``, ``requeue`` and ``purge``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tavrida import exceptions
from tavrida.cli.application import ERROR, INTERRUPTED, OK, Connected, WrongUsage, note
from tavrida.cli.progress import Bar
from tavrida.cli.tables import Listing, Showing

# The library itself is imported by the command that runs: all of them are loaded for --help.
if TYPE_CHECKING:
    from tavrida.config import ConnectionConfig
    from tavrida.letters import Letter, Selection
    from tavrida.plugins.transports import Delivery
    from tavrida.recovery import Recovery, Tally

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}

#: Characters of a reason in the table.
_REASON = 60

#: Lines of a traceback, of the payload and so on that a table shows at most.
_LINES = 60


def _add_queue(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--queue",
        help="the queue to look into, by its whole name, such as test_service.dead; default: "
        "those of all services of the ini",
    )


def _add_selection(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("which dead letters", "All that is given has to hold.")
    group.add_argument("--service", default="", help="those of this service")
    group.add_argument(
        "--method", default="", help="of this METHOD, or SERVICE.METHOD as the list shows it"
    )
    group.add_argument(
        "--reason",
        default="",
        metavar="TEXT",
        help="the class of the exception, or a part of its text, in upper or lower case",
    )
    for name, what in (("older", "more"), ("newer", "less")):
        group.add_argument(
            f"--{name}-than",
            metavar="TIME",
            type=_duration,
            help=f"died {what} than this ago: 45s, 30m, 2h, 3d, 1w",
        )
    group.add_argument(
        "--limit", type=_positive, metavar="N", help="the N oldest of them in each queue at most"
    )


def _duration(text: str) -> int:
    """Return the seconds of a text such as "30m"."""
    found = re.fullmatch(r"(\d+)([smhdw])", text)
    if found is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no time: write a number and s, m, h, d or w, such as 30m or 3d"
        )
    return int(found[1]) * _UNITS[found[2]]


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} should be a number from 1")
    return int(text)


def _age(seconds: float) -> str:
    """Return a time as the largest unit that fits: "3d"."""
    for unit, length in reversed(_UNITS.items()):
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return "0s"


def _size(count: int) -> str:
    for unit in ("B", "kB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000  # type: ignore[assignment]
    return f"{count:.3g} MB"


class Dead(Connected):
    """What the four commands share: where to look, and for which letters."""

    #: It takes letters away, and not from a queue that a service reads.
    takes_away = False

    def run(self, parsed_args: argparse.Namespace) -> int:
        try:
            return super().run(parsed_args)
        except KeyboardInterrupt:
            note("interrupted; what was not sent back or deleted is where it was")
            return INTERRUPTED

    def places(self, args: argparse.Namespace) -> tuple[ConnectionConfig, dict[str, str]]:
        """Return the connection, and by service the queue that it reads."""
        from tavrida import options

        config, services = options.read_queues(self.parsed(args))
        if not services and not args.queue:
            raise WrongUsage(
                "say where to look: --config-file with the services, or --queue NAME.dead"
            )
        return self.place(config, args), services

    def queues(
        self, args: argparse.Namespace, services: dict[str, str], recovery: Recovery
    ) -> dict[str, int]:
        """Return the queues to look into, and how many letters wait in each."""
        from tavrida.topology import dead_letter_queue

        service = getattr(args, "service", "")
        if service and services and service not in services:
            near = exceptions.did_you_mean(service, services)
            raise exceptions.TavridaError(
                f"the ini has no service {service!r}{near}; it has {', '.join(services)}"
            )
        known = {name: dead_letter_queue(queue) for name, queue in services.items()}
        for name, queue in services.items():
            if self.takes_away and queue == args.queue:
                raise exceptions.TavridaError(
                    f"queue {queue!r} has no dead letters, but what service {name!r} is to handle: "
                    f"say --queue {known[name]}"
                )
        asked = [args.queue] if args.queue else [known[service]] if service else known.values()
        found = {queue: recovery.inspect(queue) for queue in dict.fromkeys(asked)}
        missing = [queue for queue, state in found.items() if state is None]
        if len(missing) == len(found):
            near = exceptions.did_you_mean(missing[0], set(known.values()) - {missing[0]})
            raise exceptions.TavridaError(
                f"there is no queue {', '.join(map(repr, missing))}{near}: did its service ever "
                "run, and at this broker?"
            )
        for queue in missing:
            note(f"there is no queue {queue!r} yet: its service never ran")
        counts = {queue: state.messages for queue, state in found.items() if state is not None}
        for queue, state in found.items():
            if state is not None and state.consumers:
                note(
                    f"somebody else looks into {queue} just now: what they hold is not seen here; "
                    "run this again when they have ended"
                )
        return counts

    @contextmanager
    def opened(
        self, args: argparse.Namespace, what: str
    ) -> Iterator[tuple[Recovery, dict[str, int], Selection, Bar]]:
        """Give the connection, the queues, what is selected there, and the bar of progress."""
        from tavrida import letters
        from tavrida.recovery import Recovery

        config, services = self.places(args)
        with Bar(what) as bar, Recovery(config, bar.advance) as recovery:
            queues = self.queues(args, services, recovery)
            bar.total = sum(queues.values()) * (2 if args.ids else 1)
            selection = letters.Selection()
            if "service" in args:
                now = time.time()
                selection = letters.Selection(
                    service=args.service,
                    service_queue=services.get(args.service, args.service),
                    method=args.method,
                    reason=args.reason,
                    died_before=None if args.older_than is None else now - args.older_than,
                    died_after=None if args.newer_than is None else now - args.newer_than,
                )
            if args.ids:
                ids = letters.resolve(args.ids, _ids_in(recovery, queues))
                selection = dataclasses.replace(selection, ids=ids)
            yield recovery, queues, selection, bar


def _ids_in(recovery: Recovery, queues: dict[str, int]) -> set[str]:
    """Return the ids of all letters, so that a beginning of one can be told from that of two."""
    ids: set[str] = set()

    def see(letter: Letter, delivery: Delivery) -> bool:
        ids.add(letter.id)
        return True

    for queue in queues:
        recovery.look(queue, see)
    return ids


def _found(
    recovery: Recovery, queues: dict[str, int], selection: Selection, limit: int | None
) -> tuple[list[Letter], set[str]]:
    """Return the selected letters of all queues, the newest last, and the ids of all seen."""
    found: list[Letter] = []
    ids: set[str] = set()
    for queue in queues:
        here: list[Letter] = []

        def see(letter: Letter, delivery: Delivery, here: list[Letter] = here) -> bool:
            ids.add(letter.id)
            if selection.takes(letter):
                here.append(letter)
            return len(here) != limit

        recovery.look(queue, see)
        found += here
    return sorted(found, key=lambda letter: letter.at or 0), ids


class DeadList(Dead, Listing):
    """List dead letters, the newest last"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        _add_queue(parser)
        _add_selection(parser)
        parser.add_argument(
            "--id", action="append", default=[], dest="ids", help="this one; a beginning will do"
        )
        return parser

    def take_action(self, args: argparse.Namespace) -> tuple[tuple[str, ...], list[Any]]:
        from tavrida import letters

        with self.opened(args, "looking") as (recovery, queues, selection, _):
            found, ids = _found(recovery, queues, selection, args.limit)
        cut = f", the first {args.limit} of each (--limit)" if args.limit else ""
        note(f"{len(found)} of {sum(queues.values())} dead letters in {', '.join(queues)}{cut}")
        now = time.time()
        if args.formatter == "table":
            length = letters.shortest(ids)
            rows = [_row_for_people(letter, now, length) for letter in found]
        else:
            rows = [_row(letter, now) for letter in found]
        return ("Id", "Age", "Queue", "Entry point", "Kind", "Reason", "Attempts", "Size"), rows


def _row(letter: Letter, now: float) -> tuple[Any, ...]:
    return (
        letter.id,
        None if letter.at is None else max(0, int(now - letter.at)),
        letter.queue,
        letter.entry_point,
        letter.kind,
        letter.reason,
        letter.attempts,
        letter.size,
    )


def _row_for_people(letter: Letter, now: float, id_length: int) -> tuple[Any, ...]:
    """Return what fits into a line; the other formats are for programs, and complete."""
    id_, age, queue, entry_point, kind, reason, attempts, size = _row(letter, now)
    reason = exceptions.printable(" ".join(reason.split()))
    return (
        exceptions.printable(id_[:id_length]),
        "" if age is None else _age(age),
        queue,
        exceptions.printable(entry_point),
        exceptions.printable(kind),
        reason if len(reason) <= _REASON else f"{reason[: _REASON - 3]}...",
        "" if attempts is None else attempts,
        _size(size),
    )


class DeadShow(Dead, Showing):
    """Show one dead letter: why it died, where it came from, what is in it"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "ids", nargs=1, metavar="ID", help="its id, or a beginning that no other one has"
        )
        _add_queue(parser)
        return parser

    def take_action(self, args: argparse.Namespace) -> tuple[list[str], list[Any]]:
        fields: dict[str, Any] = {}
        with self.opened(args, "looking") as (recovery, queues, selection, _):

            def see(letter: Letter, delivery: Delivery) -> bool:
                if selection.takes(letter):
                    fields.update(_fields(letter, delivery))
                return not fields

            for queue in queues:
                if not fields:
                    recovery.look(queue, see)
        if not fields:
            raise exceptions.TavridaError(f"dead letter {args.ids[0]!r} was taken meanwhile")
        show = _laid_out if args.formatter == "table" else _as_it_is
        return list(fields), [show(value) for value in fields.values()]


def _fields(letter: Letter, delivery: Delivery) -> dict[str, Any]:
    """Return all that there is to say about a letter, as JSON has it."""
    from tavrida import letters
    from tavrida.plugins.serializers import Serializers

    serializers = Serializers("json", ("json", "msgpack"))
    context, payload, fault = letters.content_of(
        delivery, serializers.by_content_type, serializers.default
    )
    properties, headers = delivery.properties, dict(delivery.properties.headers or {})
    trace = headers.pop("dead_traceback", "")
    said = {
        "id": letter.id,
        "queue": letter.queue,
        "kind": letter.kind,
        "entry_point": letter.entry_point,
        "reason": letter.reason,
        "attempts": letter.attempts,
        "first_failed": _when(letter.first_at),
        "died": _when(letter.at),
        "died_in": letter.died_in,
        "exchange": letter.exchange,
        "routing_key": letter.routing_key,
        "deadline": _when(letter.deadline),
        "traceback": trace,
        "properties": {
            name: getattr(properties, name)
            for name in (
                "content_type",
                "type",
                "app_id",
                "message_id",
                "correlation_id",
                "reply_to",
                "timestamp",
            )
            if getattr(properties, name, None)
        },
        "headers": headers,
        "size": letter.size,
        "context": context,
        "payload": payload,
    }
    if fault:
        said |= {"undecodable": fault}
        del said["context"]
    return {name: _plain(value) for name, value in said.items()}


def _when(seconds: float | None) -> str | None:
    from datetime import UTC, datetime

    if seconds is None:
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):  # anybody may have written the header
        return str(seconds)


def _plain(value: Any) -> Any:
    """Return what JSON can say of a value: dates and bytes as strings, the rest by its repr."""
    import msgspec

    try:
        return json.loads(msgspec.json.encode(value, enc_hook=repr))
    except (TypeError, ValueError, RecursionError):
        return repr(value)


def _laid_out(value: Any) -> Any:
    """Return an object with a line for each key, and no more lines than a screen or two have."""
    if value is None:
        return ""
    text = value
    if isinstance(value, dict | list):
        text = json.dumps(value, indent=2, ensure_ascii=False)
    if not isinstance(text, str):
        return text
    text = exceptions.printable(text, keep="\n\t")
    lines = text.splitlines()
    rest = len(lines) - _LINES
    return "\n".join([*lines[:_LINES], f"... {rest} more lines: -f json"]) if rest > 0 else text


def _as_it_is(value: Any) -> Any:
    return value


class Acting(Dead):
    """What the commands share that change something."""

    takes_away = True

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "ids", nargs="*", default=[], metavar="ID", help="these; a beginning of each will do"
        )
        _add_queue(parser)
        _add_selection(parser)
        parser.add_argument("--all", action="store_true", help="all dead letters")
        return parser

    def check(self, args: argparse.Namespace) -> None:
        """Raise WrongUsage for a command line that may mean more than its author thinks of."""
        chosen = [args.service, args.method, args.reason, args.older_than, args.newer_than]
        is_chosen = bool(args.ids) or any(each not in ("", None) for each in chosen)
        if args.all and is_chosen:
            raise WrongUsage("--all goes with --limit and --queue only: leave the others out")
        if not args.all and not is_chosen:
            raise WrongUsage(
                "say which: IDs, --service, --method, --reason, --older-than, --newer-than, "
                "or --all; --limit cuts these"
            )


class DeadRequeue(Acting):
    """Send dead letters back to the queues in which they died"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--to-exchange",
            action="store_true",
            help="publish them where they were published at first, for all who are bound there",
        )
        parser.add_argument(
            "--new-id",
            action="store_true",
            help="give each a new message id, for a service that would take it for a duplicate",
        )
        parser.add_argument(
            "--force",
            action="store_true",
            help="also calls whose deadline has passed, as casts that nobody waits for",
        )
        return parser

    def take_action(self, args: argparse.Namespace) -> int:
        from tavrida.letters import Return

        self.check(args)
        how = Return(args.to_exchange, args.new_id, args.force)
        with self.opened(args, "sending back") as (recovery, queues, selection, _):
            tallies = [recovery.requeue(each, selection, how, args.limit) for each in queues]
        return _conclude("sent back", queues, tallies)


class DeadPurge(Acting):
    """Delete dead letters for good"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument("--yes", action="store_true", help="do not ask first")
        return parser

    def take_action(self, args: argparse.Namespace) -> int:
        self.check(args)
        if not args.yes and not sys.stdin.isatty():
            raise WrongUsage("nobody is there to ask whether to delete them: give --yes")
        with self.opened(args, "deleting") as (recovery, queues, selection, bar):
            limits = dict.fromkeys(queues, args.limit)
            if not args.yes:
                bar.total += sum(queues.values())
                found = {
                    queue: len(_found(recovery, {queue: count}, selection, args.limit)[0])
                    for queue, count in queues.items()
                }
                # What dies while we ask was not asked about.
                limits = {queue: count for queue, count in found.items() if count}
                bar.hide()
                if not limits or not _is_sure(limits):
                    return _conclude("deleted", queues, [])
            tallies = [recovery.purge(each, selection, limit) for each, limit in limits.items()]
        return _conclude("deleted", queues, tallies)


def _is_sure(counts: dict[str, int]) -> bool:
    """Ask whether so many letters of each queue shall be deleted."""
    what = ", ".join(f"{count} in {queue}" for queue, count in counts.items())
    print(f"Really delete these dead letters: {what}? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _conclude(done: str, queues: dict[str, int], tallies: Sequence[Tally]) -> int:
    """Say what was done, and what was not and why; return the exit code."""
    count = sum(tally.done for tally in tallies)
    print(f"{count} of {sum(queues.values())} dead letters {done}")
    for tally in tallies:
        for why, number in tally.kept.items():
            note(f"{number} stay: {why}")
    return ERROR if any(tally.kept for tally in tallies) else OK
