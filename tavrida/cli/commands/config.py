# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""``tavrida config check`` and ``tavrida config show``."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from cliff.columns import FormattableColumn

from tavrida import exceptions
from tavrida.cli.application import ERROR, Configured, Connected, note
from tavrida.cli.tables import Listing

if TYPE_CHECKING:
    from tavrida.inifiles import Source
    from tavrida.options import Setting


class Value(FormattableColumn[Any]):
    """A value: as the ini writes it for people, as it is for programs."""

    def human_readable(self) -> str:
        return _written(self._value)


class From(FormattableColumn[Any]):
    """Who gave a value, and over whom: ``b.conf:2, over a.conf:7``."""

    def human_readable(self) -> str:
        first, *others = self._value
        return f"{first}, over {', '.join(map(str, others))}" if others else str(first)

    def machine_readable(self) -> Any:
        first, *others = map(_plain, self._value)
        return first | ({"over": others} if others else {})


def _written(value: Any) -> str:
    """Return a value as it stands in an ini."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ", ".join(map(_written, value))
    if isinstance(value, dict):
        return ", ".join(f"{key}:{_written(each)}" for key, each in value.items())
    return exceptions.printable(str(value))


def _plain(source: Source) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(source).items() if value}


class ConfigCheck(Configured):
    """Check the files, the environment and every plugin they name; connects to nothing"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--client",
            action="store_true",
            help="as clients and commands read them: no services need be named or installed",
        )
        return parser

    def take_action(self, args: argparse.Namespace) -> None:
        from tavrida import assembly, options

        conf = self.parsed(args)
        if args.client:
            _, _, makers = options.read_clients(conf)
            options.made(makers)  # some faults of their options are found in no other way
            _, _, names = options.read_services(conf)
        else:
            server, _ = assembly.load(conf)
            names = tuple(each.dispatcher.service for each in server.placements)
        where = ", ".join(map(str, conf.files)) or "the environment: there is no file"
        print(f"nothing is wrong in {where}; services: {', '.join(names) or 'none'}")


class ConfigShow(Connected, Listing):
    """Show the value of every option, and which file, variable or default gave it"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "wanted",
            nargs="*",
            metavar="SECTION[.OPTION]",
            help="only these, such as connection or server.concurrency",
        )
        parser.add_argument(
            "--changed", action="store_true", help="only what is not left to the default"
        )
        return parser

    def take_action(self, args: argparse.Namespace) -> tuple[tuple[str, ...], list[Any]]:
        from tavrida import options

        conf = self.parsed(args)
        settings, faults = options.show(conf)
        if args.url:
            settings = [_with_url(each, args.url) for each in settings]
        settings = _chosen(settings, args.wanted)
        if args.changed:
            settings = [each for each in settings if each.source.kind != "default"]
        note(
            f"files, of which the last one wins: {', '.join(map(str, conf.files))}"
            if conf.files
            else "there is no file; --config-file names one"
        )
        try:
            faults.check()
        except exceptions.ConfigError as error:
            self.verdict = ERROR
            for fault in error.faults:
                note(fault)
        # What has no objects and lists gets the words for people.
        is_flat = args.formatter in ("value", "csv")
        return ("Section", "Option", "Value", "From"), [
            (
                each.section,
                each.name,
                *(
                    cell.human_readable() if is_flat else cell
                    for cell in (Value(each.value), From((each.source, *each.others)))
                ),
            )
            for each in settings
        ]


def _with_url(setting: Setting, url: str) -> Setting:
    from tavrida.config import ConnectionConfig, redact
    from tavrida.inifiles import Source

    if (setting.section, setting.name) != ("connection", "url"):
        return setting
    others = [each for each in (setting.source, *setting.others) if each.kind != "default"]
    return dataclasses.replace(
        setting,
        value=[redact(each) for each in ConnectionConfig(url=(url,)).url],
        source=Source("command line", "--url"),
        others=tuple(others),
    )


def _chosen(settings: Sequence[Setting], wanted: Iterable[str]) -> list[Setting]:
    """Return the settings of those sections and options; all where none is named.

    Raises:
        TavridaError: one is not there; names the nearest.
    """
    names = {each.section for each in settings} | {
        f"{each.section}.{each.name}" for each in settings
    }
    for name in wanted:
        if name not in names:
            raise exceptions.TavridaError(
                f"there is no section or option {name!r}{exceptions.did_you_mean(name, names)}"
            )
    return [
        each
        for each in settings
        if not wanted or {each.section, f"{each.section}.{each.name}"} & set(wanted)
    ]
