# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The cliff application behind ``tavrida``."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import Any, NoReturn

from cliff.app import App
from cliff.command import Command
from cliff.commandmanager import CommandManager

from tavrida import exceptions, plugins

OK, ERROR, NO_ANSWER, NO_BROKER, WRONG_USAGE = 0, 1, 2, 3, 64


class WrongUsage(Exception):
    """Raised when the command line cannot be meant as it stands."""


class LazyCommands(CommandManager):
    """Finds commands without importing them; cliff's own manager imports every one at start."""

    def load_commands(self, namespace: str) -> None:
        self.group_list.append(namespace)
        for point in plugins.installed(namespace):
            self.commands.setdefault(point.name.replace("_", " "), point)


class Application(App):
    """The application: its own parser knows nothing but what all commands share."""

    def __init__(self, version: str) -> None:
        super().__init__(
            "Call, cast and publish to services over RabbitMQ.",
            version,
            LazyCommands(plugins.COMMANDS),
            deferred_help=True,
        )

    def configure_logging(self) -> None:
        """Warnings of the library go to stderr, one line each; --debug shows everything."""
        level = logging.DEBUG if self.options.debug else logging.WARNING
        logging.basicConfig(stream=sys.stderr, level=level, format="tavrida: %(message)s")

    def run_subcommand(self, argv: list[str]) -> int:
        """Run a command; an unknown one is wrong usage, where cliff itself returns 2."""
        try:
            self.command_manager.find_command(argv)
        except ValueError:
            words = " ".join(argv)
            near = exceptions.did_you_mean(words, self.command_manager.commands)
            print(f"tavrida: no command {words!r}{near}; see tavrida --help", file=sys.stderr)
            return WRONG_USAGE
        return int(super().run_subcommand(argv))


class TavridaCommand(Command):
    """Base of tavrida's commands: turns errors into one line on stderr and an exit code."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = super().get_parser(prog_name)

        # argparse's own exit code, 2, is taken: "no answer in time".
        def wrong_usage(message: str) -> NoReturn:
            parser.print_usage(sys.stderr)
            parser.exit(WRONG_USAGE, f"{parser.prog}: {message}\n")

        parser.error = wrong_usage  # type: ignore[method-assign]
        return parser

    def run(self, parsed_args: Any) -> int:
        try:
            return super().run(parsed_args) or OK
        except WrongUsage as error:
            return self._fail(error, WRONG_USAGE)
        except exceptions.CallTimeout as error:
            return self._fail(error, NO_ANSWER)
        except exceptions.ConnectionFailed as error:
            return self._fail(error, NO_BROKER)
        except exceptions.ConfigError as error:
            for fault in error.faults:
                print(f"tavrida: {fault}", file=sys.stderr)
            return ERROR
        except exceptions.TavridaError as error:
            return self._fail(error, ERROR)

    def _fail(self, error: Exception, code: int) -> int:
        if self.app.options.debug:
            raise error
        # A remote message may have several lines; scripts and people want one.
        print(f"tavrida: {' '.join(str(error).split())}", file=sys.stderr)
        return code


def run(arguments: list[str], version: str) -> int:
    """Run ``tavrida`` with these arguments and return its exit code."""
    return int(Application(version).run(arguments))
