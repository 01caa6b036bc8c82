# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The cliff application behind ``tavrida``."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import re
import sys
from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any, NoReturn

from cliff.app import App
from cliff.command import Command
from cliff.commandmanager import CommandManager

from tavrida import exceptions, masks, plugins
from tavrida.cli import streams

# The library itself is imported by the command that runs: all of them are loaded for --help.
if TYPE_CHECKING:
    from tavrida.config import ConnectionConfig
    from tavrida.options import Parsed

OK, ERROR, NO_ANSWER, NO_BROKER, TO_DO, WRONG_USAGE = 0, 1, 2, 3, 4, 64

LOG = logging.getLogger(__name__)

#: As shells have it: ended by Ctrl-C, and by whoever read the output and had enough.
INTERRUPTED, UNREAD = 130, 141


#: What no command means to raise.
_MISTAKES = (AssertionError, AttributeError, LookupError, NameError, RuntimeError, TypeError)


class WrongUsage(Exception):
    """Raised when the command line cannot be meant as it stands."""


class _Line(logging.Formatter):
    """Writes no secrets, as ``tavrida.logs`` does, which would take longer to load."""

    def format(self, record: logging.LogRecord) -> str:
        if record.exc_info:
            return masks.hide(super().format(record))
        return streams.in_one_line(super().format(record))


class LazyCommands(CommandManager):
    """Finds commands without importing them; cliff's own manager imports every one at start."""

    def load_commands(self, namespace: str) -> None:
        self.group_list.append(namespace)
        #: The packages by the name that several of them give.
        self.givers: dict[str, list[str]] = {}
        for point in plugins.installed(namespace):
            name = point.name.replace("_", " ")
            self.commands.setdefault(name, point)
            self.givers.setdefault(name, []).append(point.dist.name if point.dist else "?")


class Application(App):
    """The application: its own parser knows nothing but what all commands share."""

    def __init__(self, version: str) -> None:
        self._known = LazyCommands(plugins.COMMANDS)
        super().__init__(
            "Talk to services over RabbitMQ, and look after them.",
            version,
            self._known,
            deferred_help=True,
        )
        # cliff's own would be a second one beside ours.
        self.command_manager.commands.pop("complete", None)

    def build_option_parser(
        self,
        description: str | None,
        version: str | None,
        argparse_kwargs: dict[str, Any] | None = None,
    ) -> argparse.ArgumentParser:
        """Return a parser without cliff's -v, -q and --log-file, which would do nothing here."""
        parser = argparse.ArgumentParser(
            description=description, add_help=False, **(argparse_kwargs or {})
        )
        parser.add_argument("--version", action="version", version=f"%(prog)s {version}")
        parser.add_argument(
            "-h", "--help", dest="deferred_help", action="store_true", help="show this and exit"
        )
        parser.add_argument(
            "--debug", action="store_true", help="show tracebacks, and what the library logs"
        )
        parser.set_defaults(verbose_level=1, log_file=None)
        return parser

    def interact(self) -> None:
        """Show the help: without a command, cliff would begin a shell of its own."""
        self.run(["--help"])

    def configure_logging(self) -> None:
        """Warnings of the library go to stderr, one line each; --debug shows everything."""
        level = logging.DEBUG if self.options.debug else logging.WARNING
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_Line("tavrida: %(message)s"))
        logging.basicConfig(handlers=[handler], level=level)

    def run_subcommand(self, argv: list[str]) -> int:
        """Run a command; an unknown one is wrong usage, where cliff itself returns 2."""
        try:
            command, name, _ = self.command_manager.find_command(argv)
        except ValueError:
            note(self._why_unknown(argv))
            return WRONG_USAGE
        except Exception as error:  # code of strangers does anything
            LOG.debug("It cannot be loaded.", exc_info=error)
            why = f"{type(error).__name__}: {exceptions.text_of(error)}"
            note(f"this command cannot be loaded: {why}; tavrida plugin list commands tells whose")
            return ERROR
        givers = self._known.givers.get(name, [])
        if len(givers) > 1:
            note(f"{' and '.join(givers)} give a command {name!r} each: uninstall all but one")
            return ERROR
        if not (isinstance(command, type) and issubclass(command, Command)):
            note(f"{name!r} is not derived from {Command.__module__}.{Command.__qualname__}")
            return ERROR
        return int(super().run_subcommand(argv))

    def _why_unknown(self, argv: list[str]) -> str:
        words = " ".join(takewhile(lambda word: not word.startswith("-"), argv)) or argv[0]
        known = self.command_manager.commands
        group = [name.removeprefix(f"{words} ") for name in known if name.startswith(f"{words} ")]
        if group:
            return f"{words!r} wants a word more: {', '.join(sorted(group))}"
        return f"no command {words!r}{exceptions.did_you_mean(words, known)}; see tavrida --help"


def note(text: str) -> None:
    """Say something beside the result, in one line on stderr."""
    streams.say("tavrida", text)


class TavridaCommand(Command):
    """Base of tavrida's commands: turns errors into one line on stderr and an exit code."""

    #: The exit code where there is no error; a command that finds something to do changes it.
    verdict = OK

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = super().get_parser(prog_name)

        # argparse's own exit code, 2, is taken: "no answer in time".
        def wrong_usage(message: str) -> NoReturn:
            parser.print_usage(sys.stderr)
            parser.exit(WRONG_USAGE, f"{parser.prog}: {message}\n")

        # As people write them, options stand between the others too.
        def parse(argv: Sequence[str]) -> argparse.Namespace:
            refuse_empty(argv)
            try:
                return parser.parse_intermixed_args(argv)
            except TypeError:  # a plugin's command takes all the rest as it is (argparse.REMAINDER)
                return argparse.ArgumentParser.parse_args(parser, argv)

        # Mostly a variable that is not set: "--url $URL" is then not what was meant.
        def refuse_empty(argv: Sequence[str]) -> None:
            for before, word in zip(("", *argv), argv, strict=False):
                if word == "" or re.fullmatch(r"--[\w-]+=", word):
                    name = word[:-1] or (before if before.startswith("-") else "an argument")
                    parser.error(f"{name} is empty; is the variable set that it is taken from?")

        parser.error = wrong_usage  # type: ignore[method-assign]
        parser.parse_args = parse  # type: ignore[method-assign, assignment]
        return parser

    def get_epilog(self) -> str:
        # cliff looks through all packages for the one that gives the command, which takes longer
        # than many commands do. Of tavrida's own nobody has to be told.
        is_own = type(self).__module__.partition(".")[0] == "tavrida"
        return self._epilog or "" if is_own else super().get_epilog()

    def run(self, parsed_args: Any) -> int:
        try:
            return super().run(parsed_args) or self.verdict
        except WrongUsage as error:
            return self._fail(error, WRONG_USAGE)
        except exceptions.CallTimeout as error:
            return self._fail(error, NO_ANSWER)
        except exceptions.ConnectionFailed as error:
            return self._fail(error, NO_BROKER)
        except exceptions.ConfigError as error:
            for fault in error.faults:
                note(fault)
            return ERROR
        except exceptions.TavridaError as error:
            return self._fail(error, NO_BROKER if getattr(error, "is_denied", False) else ERROR)
        except _MISTAKES as error:
            text = (
                f"{type(error).__name__}: {error} (a mistake in the command: --debug shows where)"
            )
            return self._fail(error, ERROR, text)

    def _fail(self, error: Exception, code: int, text: str = "") -> int:
        LOG.debug("The command failed.", exc_info=error)  # seen with --debug
        note(text or str(error))
        return code


class Configured(TavridaCommand):
    """Base of the commands that read the ini."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--config-file",
            action="append",
            default=[],
            metavar="FILE",
            help="an ini; may be given repeatedly, the last one wins",
        )
        parser.add_argument(
            "--config-dir",
            action="append",
            default=[],
            metavar="DIR",
            help="a folder of them, read after the files: DIR/*.conf",
        )
        return parser

    def parsed(self, args: argparse.Namespace) -> Parsed:
        """Return what the files and the environment say; values are not checked yet.

        Where no file is named they are those of ``tavrida-server``.
        """
        from tavrida import options

        files = [f"--config-file={path}" for path in args.config_file]
        folders = [f"--config-dir={path}" for path in args.config_dir]
        return options.parse([*files, *folders], "tavrida-server")


class Connected(Configured):
    """Base of the commands that connect to where the ini says, or ``--url``."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument("--url", help="where the broker is, instead of [connection] url")
        return parser

    def place(self, config: ConnectionConfig, args: argparse.Namespace) -> ConnectionConfig:
        """Return the connection, to ``--url`` where that is given; its folder is there."""
        from tavrida import state

        if args.url:
            config = dataclasses.replace(config, url=args.url)
        state.prepare(config.urls)
        return config


def run(arguments: list[str], version: str) -> int:
    """Run ``tavrida`` with these arguments and return its exit code."""
    try:
        code = int(Application(version).run(arguments))
        sys.stdout.flush()
    except BrokenPipeError:
        code = UNREAD
    if code == UNREAD:
        streams.forget()  # else it fails once more when Python ends
    return code
