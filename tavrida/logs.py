# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The log of a program: standard logging, written as ``[log]`` says, without secrets."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

import msgspec

from tavrida import context, exceptions, masks
from tavrida.config import TEXT_FORMAT, LogSettings
from tavrida.masks import MASKED

#: Characters of a value beside the message, such as a payload, at most.
MAX_VALUE = 16_384

#: What logging itself gives every record; all else came as ``extra``, or from our filter.
_STANDARD = vars(logging.makeLogRecord({})).keys() | {"message", "asctime", "taskName"}

_COLORS = {
    logging.DEBUG: "2",
    logging.INFO: "32",
    logging.WARNING: "33",
    logging.ERROR: "31",
    logging.CRITICAL: "35",
}


def begin(settings: LogSettings, secrets: Iterable[str] = (), stream: TextIO | None = None) -> None:
    """Have the root logger write to stderr, or elsewhere, as the settings say.

    ``secrets`` are passwords, and urls that have some: none of them is written that has six
    characters or more, nor any that tavrida used to log in. A log that cannot be written, for a
    full disk for instance, is nothing that its program hears of.
    """
    masks.learn(secrets)
    handler = _Handler(stream or _Unbuffered(sys.stderr))
    handler.addFilter(context.LogFilter())
    is_colorful = handler.stream.isatty()
    inner: logging.Formatter
    if settings.format == "json":
        inner = JSON(settings.mask)
    elif settings.format == "pretty":
        inner = Pretty(settings.mask, is_colorful=is_colorful)
    else:
        text = TEXT_FORMAT if settings.format == "text" else settings.format
        inner = logging.Formatter(text)
    handler.setFormatter(Discreet(inner))
    root = logging.getLogger()
    for each in list(root.handlers):
        root.removeHandler(each)
    root.addHandler(handler)
    root.setLevel(settings.level)


class _Unbuffered:
    """Writes to where a stream goes, at once: what a full disk refuses is kept nowhere."""

    def __init__(self, stream: TextIO) -> None:
        self._file = stream.fileno()

    def write(self, text: str) -> None:
        left = text.encode("utf-8", "backslashreplace")
        while left:
            left = left[os.write(self._file, left) :]

    def flush(self) -> None:
        """Do nothing: all is written."""

    def isatty(self) -> bool:
        """Tell whether it goes to a screen."""
        return os.isatty(self._file)


class _Handler(logging.StreamHandler[Any]):
    """Says nothing where it cannot write: there is no better place to say so."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


class Discreet(logging.Formatter):
    """Writes as another formatter does, without the secrets."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        return masks.hide(self._inner.format(record))


class JSON(logging.Formatter):
    """One line of JSON for each record, with all that was given along with it."""

    def __init__(self, mask: Collection[str] = ()) -> None:
        super().__init__()
        self._mask = mask

    def format(self, record: logging.LogRecord) -> str:
        told = {
            "time": _moment(record).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **fields_of(record, self._mask),
        }
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            told["stack"] = self.formatStack(record.stack_info)
        return written(told)


class Pretty(logging.Formatter):
    """A line for people: time, level, text, and what was given along with it."""

    def __init__(self, mask: Collection[str] = (), *, is_colorful: bool = False) -> None:
        super().__init__()
        self._mask = mask
        self._is_colorful = is_colorful

    def format(self, record: logging.LogRecord) -> str:
        moment = _moment(record).astimezone().strftime("%H:%M:%S.%f")[:-3]
        level = self._in(_COLORS.get(record.levelno, "0"), f"{record.levelname:<7}")
        fields = fields_of(record, self._mask)
        pairs = " ".join(
            f"{name}={value if isinstance(value, str) else written(value)}"
            for name, value in fields.items()
        )
        line = f"{self._in('2', moment)} {level} {record.getMessage()}"
        if pairs:
            line += "  " + self._in("2", exceptions.printable(pairs))
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line

    def _in(self, color: str, text: str) -> str:
        return f"\x1b[{color}m{text}\x1b[0m" if self._is_colorful else text


def _moment(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


def fields_of(record: logging.LogRecord, mask: Collection[str] = ()) -> dict[str, Any]:
    """Return what a record has beside its text: what is handled, and what ``extra`` gave.

    The value of a name that has a word of ``mask`` in it is not shown, however deep it is.
    """
    words = tuple(word.lower() for word in mask)
    return {
        name: _shown(name, value, words)
        for name, value in vars(record).items()
        if name not in _STANDARD and not _is_nothing(value)
    }


def _is_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value in ("", context.NOTHING))


def _shown(name: str, value: Any, words: tuple[str, ...]) -> Any:
    shown = masked(value, words, name)
    if isinstance(shown, str | int | float | bool):
        return shown if not isinstance(shown, str) else shown[:MAX_VALUE]
    text = written(shown)
    return shown if len(text) <= MAX_VALUE else text[:MAX_VALUE] + "..."


def masked(value: Any, words: tuple[str, ...], name: object = "", depth: int = 0) -> Any:
    """Return a copy of a value in which no name that has one of the words shows its own."""
    if words and any(word in str(name).lower() for word in words):
        return MASKED
    if depth > 20:  # deeper than what anybody reads
        return "..."
    if isinstance(value, Mapping):
        return {str(key): masked(each, words, key, depth + 1) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [masked(each, words, "", depth + 1) for each in value]
    return value


def written(value: Any) -> str:
    """Return a value as JSON; what JSON has no word for is written as Python shows it."""
    try:
        return msgspec.json.encode(value, enc_hook=repr).decode()
    except Exception:
        if isinstance(value, Mapping):  # one odd value does not hide the others
            pairs = (f"{written(str(key))}:{written(each)}" for key, each in value.items())
            return "{" + ",".join(pairs) + "}"
    return _plain(value)


def _plain(value: Any) -> str:
    try:
        text = value if isinstance(value, str) else repr(value)
    except Exception:
        text = f"(a {type(value).__name__} that cannot be shown)"
    return msgspec.json.encode(text.encode("utf-8", "backslashreplace").decode()).decode()
