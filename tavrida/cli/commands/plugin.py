# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""``tavrida plugin list``."""

from __future__ import annotations

import argparse
from typing import Any

from cliff.lister import Lister

from tavrida import plugins
from tavrida.cli.application import TavridaCommand


class PluginList(TavridaCommand, Lister):
    """List the installed plugins; nothing is imported"""

    def take_action(self, args: argparse.Namespace) -> tuple[tuple[str, ...], list[Any]]:
        return ("Namespace", "Name", "Class", "Distribution", "Version"), [
            (
                namespace,
                point.name,
                point.value,
                point.dist.name if point.dist else "",
                point.dist.version if point.dist else "",
            )
            for namespace in plugins.NAMESPACES
            for point in plugins.installed(namespace)
        ]
