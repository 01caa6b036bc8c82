# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""``tavrida plugin list``."""

from __future__ import annotations

import argparse
import importlib
from collections import Counter
from typing import TYPE_CHECKING, Any

from tavrida import exceptions, plugins
from tavrida.cli.application import TO_DO, TavridaCommand, WrongUsage
from tavrida.cli.tables import Listing

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

#: The class that the plugins of a namespace have to be derived from.
_BASES = {
    plugins.CONTROLLERS: "tavrida.service:ServiceController",
    plugins.DISCOVERY: "tavrida.discovery:Discovery",
    plugins.SERIALIZERS: "tavrida.plugins.serializers:Serializer",
    plugins.TRANSPORTS: "tavrida.plugins.transports:Transport",
    plugins.MIDDLEWARE: "tavrida.middleware:Middleware",
    plugins.DEDUP_STORES: "tavrida.plugins.middleware.stores:Store",
    plugins.COMMANDS: "cliff.command:Command",
}

#: What stands for a plugin that can be used.
LOADS = "yes"


class PluginList(TavridaCommand, Listing):
    """List the installed plugins and whether each can be loaded; exit code 4 if one cannot"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "namespaces",
            nargs="*",
            metavar="NAMESPACE",
            help="only these, such as tavrida.controllers, or controllers",
        )
        parser.add_argument(
            "--no-load", action="store_true", help="import nothing: it runs nobody's code"
        )
        return parser

    def take_action(self, args: argparse.Namespace) -> tuple[tuple[str, ...], list[Any]]:
        columns = ("Namespace", "Name", "Class", "Distribution", "Version")
        points = [
            (namespace, point)
            for namespace in _namespaces(args.namespaces)
            for point in plugins.installed(namespace)
        ]
        rows = [_row(namespace, point) for namespace, point in points]
        if args.no_load:
            return columns, rows
        givers = Counter((namespace, point.name) for namespace, point in points)
        told = [
            _whether_loads(namespace, point, givers[namespace, point.name])
            for namespace, point in points
        ]
        if any(each != LOADS for each in told):
            self.verdict = TO_DO
        return (*columns, "Loads"), [(*row, each) for row, each in zip(rows, told, strict=True)]


def _namespaces(wanted: list[str]) -> list[str]:
    """Return the full names of namespaces; all where none is wanted."""
    by_name = {namespace.rpartition(".")[2]: namespace for namespace in plugins.NAMESPACES}
    found = []
    for each in wanted:
        name = each.removeprefix("tavrida.")
        if name not in by_name:
            near = exceptions.did_you_mean(name, by_name)
            raise WrongUsage(f"there is no namespace {each!r}{near}; there is {', '.join(by_name)}")
        found.append(by_name[name])
    return found or list(plugins.NAMESPACES)


def _row(namespace: str, point: EntryPoint) -> tuple[str, ...]:
    dist = point.dist
    return (
        namespace,
        point.name,
        point.value,
        dist.name if dist else "",
        dist.version if dist else "",
    )


def _whether_loads(namespace: str, point: EntryPoint, givers: int) -> str:
    """Return whether a plugin can be used, or why not."""
    if givers > 1:
        return "no: several packages give this name; uninstall all but one of them"
    module, _, name = _BASES[namespace].partition(":")
    base = getattr(importlib.import_module(module), name)
    try:
        plugin = point.load()
    except (Exception, SystemExit) as error:  # code of strangers does anything
        return f"no: {type(error).__name__}: {exceptions.text_of(error)}"
    if not (isinstance(plugin, type) and issubclass(plugin, base)):
        return f"no: it is not derived from {module}.{name}"
    return LOADS
