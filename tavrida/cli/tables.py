# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Tables that fit the terminal: cells are folded where a reader would, not in the middle of words.

cliff itself gives all wide columns the same width and cuts what is longer at any letter.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, TextIO

from cliff import utils
from cliff.columns import FormattableColumn
from cliff.display import DisplayCommandBase
from cliff.lister import Lister
from cliff.show import ShowOne

from tavrida import exceptions, plugins

#: After these a line may end, and where there is no room otherwise.
_PIECES = re.compile(r"(?<=[\s./:,;@-])|(?<=[a-z])(?=[A-Z])")
_SMALLER = re.compile(rf"{_PIECES.pattern}|(?<=_)")

#: Characters of a column at least, where not all fit.
_NARROWEST = 8

#: Characters of a cell at most: all lines of a table are as wide as the widest.
MAX_CELL = 8_000

Rows = list[list[Any]]


def fold(text: str, width: int) -> str:
    """Return the text in lines of at most ``width`` characters, broken behind punctuation."""
    lines = []
    for line in text.splitlines():
        current = ""
        for piece in _pieces_of(line, width):
            if current and len((current + piece).rstrip()) > width:
                lines.append(current.rstrip())
                current = ""
            current += piece
            while len(current.rstrip()) > width:
                lines.append(current[:width])
                current = current[width:]
        lines.append(current.rstrip())
    return "\n".join(lines)


def _pieces_of(line: str, width: int) -> Iterator[str]:
    for piece in _PIECES.split(line):
        yield from (piece,) if len(piece.rstrip()) <= width else _SMALLER.split(piece)


def widths_for(columns: Sequence[Sequence[str]], available: int) -> list[int]:
    """Return a width for each column of cells, which together are no more than is available.

    The first cell of each is its heading, which stays whole. The widest give first; words stay
    whole as long as that is possible.
    """
    headings = [len(column[0]) for column in columns]
    lines = [[line for cell in column for line in cell.splitlines()] for column in columns]

    def longest(split: Callable[[str], Iterable[str]], most: int = sys.maxsize) -> list[int]:
        """Return of each column the length of its longest piece, or that of its heading."""
        pieces = [[len(piece.rstrip()) for line in each for piece in split(line)] for each in lines]
        return [
            max(heading, min(most, max(each, default=0)))
            for heading, each in zip(headings, pieces, strict=True)
        ]

    least = longest(_SMALLER.split, _NARROWEST)
    for split in (_PIECES.split, _SMALLER.split):
        if sum(longest(split)) <= available:
            least = longest(split)
            break
    widths = longest(lambda line: [line], max(available, _NARROWEST))
    while sum(widths) > available:
        wide = [(width, n) for n, width in enumerate(widths) if width > least[n]]
        if not wide:
            break
        widths[max(wide)[1]] -= 1
    return widths


def fitted(
    names: Sequence[str], rows: Iterable[Sequence[Any]], width: int
) -> tuple[list[str], Rows]:
    """Return the names of columns, and the rows folded for a table of that width; 0 for any.

    Whatever strangers called something, a terminal takes nothing of it for its own.
    """
    heads = [exceptions.printable(str(name)) for name in names]
    texts = [[_text(cell) for cell in row] for row in rows]
    if not width:
        return heads, texts
    columns = [[str(cell) for cell in column] for column in zip(heads, *texts, strict=True)]
    room = width - 3 * len(heads) - 1
    widths = widths_for(columns, max(room, len(heads)))
    return heads, [
        [
            fold(cell, most) if isinstance(cell, str) else cell
            for cell, most in zip(row, widths, strict=True)
        ]
        for row in texts
    ]


def _text(cell: Any) -> Any:
    text = cell.human_readable() if isinstance(cell, FormattableColumn) else cell
    if isinstance(text, list | tuple | dict):
        text = str(text)
    if not isinstance(text, str):
        return text
    rest = len(text) - MAX_CELL
    if rest > 0:
        text = f"{text[:MAX_CELL]}\n... {rest} more characters: -f json"
    return exceptions.printable(text, keep="\n\t")


def _width(args: argparse.Namespace) -> int:
    """Return how wide a table may be; 0 where that does not matter, as in a pipe."""
    if args.max_width > 0:
        return int(args.max_width)
    return (utils.terminal_width() or 0) if sys.stdout.isatty() else 0


class _Folded:
    """cliff's formatter of tables, with cells that are folded before it sees them."""

    def __init__(self, formatter: Any) -> None:
        self._formatter = formatter

    def emit_list(
        self, names: Sequence[str], rows: Iterable[Any], stdout: TextIO, args: argparse.Namespace
    ) -> None:
        names, rows = fitted(names, rows, _width(args))
        self._formatter.emit_list(names, rows, stdout, _unbounded(args))

    def emit_one(
        self, names: Sequence[str], values: Sequence[Any], stdout: TextIO, args: argparse.Namespace
    ) -> None:
        pairs = zip(names, values, strict=True)
        _, rows = fitted(("Field", "Value"), list(pairs), _width(args))
        names, values = [name for name, _ in rows], [value for _, value in rows]
        self._formatter.emit_one(names, values, stdout, _unbounded(args))


def _unbounded(args: argparse.Namespace) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(args), "max_width": 0, "fit_width": False})


class _Lines:
    """cliff's formatter of bare values, with each row in a line of its own."""

    def __init__(self, formatter: Any) -> None:
        self._formatter = formatter

    def emit_list(
        self, names: Sequence[str], rows: Iterable[Any], stdout: TextIO, args: argparse.Namespace
    ) -> None:
        lines = [
            [exceptions.printable(cell) if isinstance(cell, str) else cell for cell in row]
            for row in rows
        ]
        self._formatter.emit_list(names, lines, stdout, args)


class _Variables:
    """Values as assignments that a shell may evaluate, whoever gave the names and the values.

    cliff's own puts them between double quotes, in which a shell runs ``$(...)``.
    """

    def emit_one(
        self, names: Sequence[str], values: Sequence[Any], stdout: TextIO, args: argparse.Namespace
    ) -> None:
        for name, value in zip(names, values, strict=True):
            word = re.sub(r"\W", "_", f"{args.prefix}{name}", flags=re.ASCII)
            word = f"_{word}" if word[:1].isdigit() else word
            stdout.write(f"{word}={shlex.quote(str(value))}\n")


class _Fitting(DisplayCommandBase[Any]):
    """A command whose table fits the terminal."""

    def _load_formatter_plugins(self) -> Any:
        plugins.refresh(self.formatter_namespace)
        return super()._load_formatter_plugins()

    def produce_output(self, parsed_args: argparse.Namespace, column_names: Any, data: Any) -> int:
        if parsed_args.formatter == "table":
            self.formatter = _Folded(self.formatter)
        return super().produce_output(parsed_args, column_names, data)  # type: ignore[safe-super]


class Listing(_Fitting, Lister):
    """Base of the commands that list; with ``--max-width`` as cliff has it."""

    def produce_output(self, parsed_args: argparse.Namespace, column_names: Any, data: Any) -> int:
        if parsed_args.formatter == "value":
            self.formatter = _Lines(self.formatter)
        return super().produce_output(parsed_args, column_names, data)


class Showing(_Fitting, ShowOne):
    """Base of the commands that show one thing."""

    def produce_output(self, parsed_args: argparse.Namespace, column_names: Any, data: Any) -> int:
        if parsed_args.formatter == "shell":
            self.formatter = _Variables()
        return super().produce_output(parsed_args, column_names, data)


class Since(FormattableColumn[Any]):
    """A moment, as ISO 8601 has it; how long ago that was, for people."""

    def human_readable(self) -> str:
        if not self._value:
            return ""
        try:
            seconds = (datetime.now(UTC) - datetime.fromisoformat(self._value)).total_seconds()
        except (ValueError, TypeError):  # whatever a service calls so
            return exceptions.printable(str(self._value))
        return f"{age(max(0, seconds))} ago"


def age(seconds: float) -> str:
    """Return a time as the largest unit that fits: "3d"."""
    for unit, length in (("w", 604_800), ("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return f"{int(seconds)}s"
