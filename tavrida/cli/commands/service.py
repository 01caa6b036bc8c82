# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""``tavrida service list`` and ``show``: what running services say of themselves."""

from __future__ import annotations

import argparse
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from tavrida import exceptions
from tavrida.calls import MAX_TIMEOUT
from tavrida.cli import schema
from tavrida.cli.application import TO_DO, Connected, WrongUsage
from tavrida.cli.tables import Listing, Showing, Since
from tavrida.entry_point import EntryPoint

if TYPE_CHECKING:
    from tavrida.client import RPCClient
    from tavrida.messages import IncomingResponse

    Answer = Future[IncomingResponse]

#: Seconds that services get to answer, where ``--timeout`` says nothing else.
PATIENCE = 5.0

#: The state of a service that answers, and of one whose ini has ``describe = false``.
RUNNING, SILENT = "running", "running, does not describe itself"


class Asking(Connected):
    """What both commands share: asking services to describe themselves."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--timeout",
            type=float,
            default=PATIENCE,
            metavar="SECONDS",
            help=f"how long to wait for the answers; default: {PATIENCE:g}",
        )
        return parser

    def ask(self, args: argparse.Namespace, names: list[str]) -> dict[str, Answer]:
        """Return by service the future of its description; all have ended.

        Without names, all services that the ini speaks of are asked.

        Raises:
            ConnectionFailed: the broker cannot be reached.
        """
        from tavrida import options
        from tavrida.client import RPCClient

        if not 0 < args.timeout <= MAX_TIMEOUT:
            raise WrongUsage(
                f"--timeout {args.timeout:g} should be above 0, and at most {MAX_TIMEOUT} seconds"
            )
        for name in names:
            try:
                EntryPoint(name)
            except exceptions.WrongEntryPoint as error:
                raise WrongUsage(str(error)) from None
        config, discovery, known = options.read_services(self.parsed(args))
        self.known = known
        names = names or list(known)
        if not names:
            raise WrongUsage(
                "say which services: their names, or --config-file with an ini that names them"
            )
        with RPCClient(
            self.place(config, args), discovery=discovery, source="tavrida_cli"
        ) as client:
            asked = {name: _ask(client, name, args.timeout) for name in dict.fromkeys(names)}
            for answer in asked.values():
                if isinstance(answer.exception(), exceptions.ConnectionFailed):
                    answer.result()
        return asked


def _ask(client: RPCClient, service: str, timeout: float) -> Answer:
    answer: Answer = client[service]["__describe__"]().future(timeout=timeout)
    return answer


def _is_silent(error: BaseException | None) -> bool:
    """Tell whether a service answered, but not what was asked."""
    code = exceptions.HandlerNotFound.code
    return isinstance(error, exceptions.RemoteError) and error.code == code


def _state(error: BaseException | None) -> str:
    """Return in a few words how a service answered."""
    if error is None:
        return RUNNING
    if _is_silent(error):
        return SILENT
    if isinstance(error, exceptions.CallTimeout):
        return "no answer"
    if isinstance(error, exceptions.ServiceUnavailable):
        return "never started"
    return exceptions.printable(" ".join(str(error).split()))


class ServiceList(Asking, Listing):
    """List services and whether they answer; exit code 4 if one does not"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "names", nargs="*", metavar="NAME", help="these; default: all that the ini speaks of"
        )
        return parser

    def take_action(self, args: argparse.Namespace) -> tuple[tuple[str, ...], list[Any]]:
        answers = self.ask(args, args.names)
        rows: list[Any] = []
        for name, answer in sorted(answers.items()):
            error = answer.exception()
            if error is not None and not _is_silent(error):
                self.verdict = TO_DO
            said = answer.result().payload if error is None else {}
            rows.append(
                (
                    name,
                    _state(error),
                    len(said["methods"]) if isinstance(said.get("methods"), dict) else None,
                    said.get("host"),
                    said.get("pid"),
                    Since(said.get("started")),
                    said.get("tavrida"),
                )
            )
        if args.formatter == "table":
            rows = [tuple("" if cell is None else cell for cell in row) for row in rows]
        return ("Service", "State", "Methods", "Host", "Pid", "Started", "Tavrida"), rows


class ServiceShow(Asking, Showing):
    """Show what a running service offers: methods, parameters, subscriptions"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument("name", metavar="NAME", help="the service")
        return parser

    def take_action(self, args: argparse.Namespace) -> tuple[list[str], list[Any]]:
        ((name, answer),) = self.ask(args, [args.name]).items()
        error = answer.exception()
        if _is_silent(error):
            raise exceptions.TavridaError(
                f"service {name!r} runs, but does not describe itself: its ini has [server] "
                "describe = false, or it is not made with tavrida"
            )
        if error is not None:
            near = exceptions.did_you_mean(name, set(self.known) - {name})
            if near and isinstance(error, exceptions.ServiceUnavailable):
                raise exceptions.ServiceUnavailable(f"{error}{near}")
            raise error
        said = answer.result().payload
        if args.formatter == "table":
            said = {field: _for_people(field, value) for field, value in said.items() if value}
        return list(said), list(said.values())


def _for_people(field: str, value: Any) -> Any:
    if field == "started":
        return Since(value)
    if field == "methods" and isinstance(value, dict):
        return "\n".join(_lines_of(name, method) for name, method in value.items())
    if isinstance(value, list):
        return "\n".join(map(str, value))
    if isinstance(value, dict):
        return "\n".join(
            f"{key}: {', '.join(map(str, each)) if isinstance(each, list) else each}"
            for key, each in value.items()
            if each
        )
    return value


def _lines_of(name: str, method: Any) -> str:
    """Return the signature of a method, and its summary below."""
    if not isinstance(method, dict):
        return name
    summary = method.get("summary")
    try:
        text = schema.signature(name, method)
    except (AttributeError, TypeError):  # a service in another language may say anything
        text = f"{name} (its schema cannot be read: -f json)"
    return exceptions.printable(f"{text}\n    {summary}" if summary else text, keep="\n")
