# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""What the commands write to: stdout and stderr, also where they are closed, full or a terminal."""

from __future__ import annotations

import contextlib
import io
import os
import sys

from tavrida import exceptions, masks


def open_all() -> None:
    """Have stdin, stdout and stderr, where a parent closed some; they take any character.

    Else the next file that is opened would be one of them: a database, into which somebody's
    warning is written. And a call that was done would fail, where its answer has a character that
    the encoding of a terminal has not.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w", closefd=False))
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def in_one_line(text: str) -> str:
    """Return a text without secrets, line ends and what a terminal takes for its own."""
    return exceptions.printable(" ".join(masks.hide(text).split()))


def say(program: str, text: str) -> None:
    """Write a line to stderr.

    A stderr that takes no more is no reason to fail; one that nobody reads is.
    """
    try:
        print(f"{program}: {in_one_line(text)}", file=sys.stderr, flush=True)
    except BrokenPipeError:
        raise
    except OSError:
        forget(2)


def forget(stream: int = 1) -> None:
    """Drop what is still to be written to a stream whose reader went away, or that is full.

    Else it fails once more when Python ends, which has an exit code of its own then.
    """
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream)
        os.close(nowhere)
