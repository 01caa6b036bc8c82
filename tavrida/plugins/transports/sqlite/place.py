# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Where a bus is kept and how carefully: what a ``sqlite://`` url says."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote_to_bytes, urlsplit

from tavrida import exceptions

#: When a confirm is given, by the value of ``synchronous``: after the disk has the message; after
#: the operating system has it, which outlives ``kill -9`` but not a power failure; and the same
#: without any care for the file's structure in a power failure.
SYNCHRONOUS = ("full", "normal", "off")


@dataclass(frozen=True, slots=True)
class Place:
    """A database file, or with an empty ``path`` the store called ``memory`` of this process."""

    path: str = ""
    memory: str = ""
    synchronous: str = "full"
    #: Seconds to wait for other processes that use the file before it counts as a failure.
    lock_timeout: float = 10.0

    @classmethod
    def parse(cls, url: str) -> Place:
        """Return the place that a url names.

        Raises:
            ConfigError: it names none, or has options that do not exist.
        """
        parts = urlsplit(url)
        if parts.netloc:
            raise _wrong(url, f"{parts.netloc!r} stands where the path should begin")
        path = os.fsdecode(unquote_to_bytes(parts.path))
        if parts.fragment:
            raise _wrong(url, "a # begins what is no part of the path: write it %23")
        if path and not path.startswith("/"):
            raise _wrong(url, "its path is relative")
        if path and (path.endswith("/") or "\0" in path):
            raise _wrong(url, "it names no file")
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        known = {"synchronous", "lock_timeout"} if path else {"memory"}
        for name in options:
            if name not in known:
                raise _wrong(
                    url,
                    f"it has no option {name!r}{exceptions.did_you_mean(name, known)}; there is "
                    f"{' and '.join(sorted(known))}",
                )
        synchronous = options.get("synchronous", SYNCHRONOUS[0])
        if synchronous not in SYNCHRONOUS:
            raise _wrong(
                url, f"synchronous={synchronous!r} should be one of {', '.join(SYNCHRONOUS)}"
            )
        try:
            # The real one: all processes have to meet beside the same file.
            real = str(Path(path).resolve()) if path else ""
        except (OSError, RuntimeError) as error:
            raise _wrong(url, f"its path leads nowhere ({error})") from None
        return cls(
            real,
            options.get("memory", ""),
            synchronous,
            _seconds(url, options.get("lock_timeout", "10")),
        )

    def __str__(self) -> str:
        return self.path or f"the bus {self.memory!r} in the memory of this process"


def _seconds(url: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds < 86400:
        raise _wrong(url, f"lock_timeout={text!r} should be a number of seconds")
    return seconds


def _wrong(url: str, why: str) -> exceptions.ConfigError:
    return exceptions.ConfigError(
        f"[connection] url {url} cannot be used: {why}. Write sqlite:///PATH/bus.db, the path from "
        "the root with three slashes in all, or sqlite:// for the memory of one process"
    )
