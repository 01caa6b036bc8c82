# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The ``file`` backend: a ``.ds`` file that all services of an installation share.

One section a service::

    [test_hello]
    exchange = test_exchange
    notifications = test_notification_exchange

    [test_world]
    exchange = test_world_exchange

``exchange`` takes the requests and is required; ``notifications`` carries what the service
publishes and is for those that do. The file is read once, when the server is built.
"""

from __future__ import annotations

import configparser
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from tavrida import exceptions
from tavrida.discovery import Discovery
from tavrida.entry_point import EntryPoint

_KEYS = ("exchange", "notifications")


class FileDiscovery(Discovery):
    """Discovery by a ``.ds`` file.

    Raises:
        ConfigError: the file cannot be read, or something in it is wrong; each fault names the
            file and the line.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise exceptions.ConfigError(
                f"cannot read the discovery file {path}: {error}"
            ) from None
        faults = []
        for service, keys in _sections(path, text).items():
            faults += _faults(path, text, service, keys)
            if "exchange" in keys:
                self.register_remote_service(service, keys["exchange"])
            if "notifications" in keys:
                self.register_remote_publisher(service, keys["notifications"])
                self.register_local_publisher(service, keys["notifications"])
        if faults:
            raise exceptions.ConfigError(*faults)

    @classmethod
    def list_opts(cls) -> list[Any]:
        from oslo_config import cfg

        return [cfg.StrOpt("file", help="The .ds file with the exchanges of all services.")]

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        if not options["file"]:
            raise exceptions.ConfigError("file is missing: name the .ds file to read")
        return cls(options["file"])


def _sections(path: Path, text: str) -> dict[str, dict[str, str]]:
    parser = configparser.ConfigParser(
        inline_comment_prefixes=("#", ";"), interpolation=None, default_section="\0none"
    )
    try:
        parser.read_string(text, source=str(path))
    except configparser.Error as error:
        # configparser names file and line, over several lines of text
        raise exceptions.ConfigError(" ".join(str(error).split())) from None
    return {section: dict(parser[section]) for section in parser.sections()}


def _faults(path: Path, text: str, service: str, keys: dict[str, str]) -> list[str]:
    heading = _line(text, rf"\[{re.escape(service)}\]")
    faults = []
    try:
        EntryPoint(service)
    except exceptions.WrongEntryPoint as error:
        faults.append(f"{path}:{heading}: {error}")
    if not keys.get("exchange"):
        faults.append(f"{path}:{heading}: [{service}] has no exchange: add 'exchange = NAME' to it")
    for key, value in keys.items():
        line = _line(text, rf"(?i){re.escape(key)}\s*[=:]", after=heading)
        if key not in _KEYS:
            near = exceptions.did_you_mean(key, _KEYS)
            faults.append(f"{path}:{line}: [{service}] {key} is no key of a .ds file{near}")
        elif "\n" in value:
            faults.append(
                f"{path}:{line}: [{service}] {key} has several lines: an indented line goes on "
                "with the one before it"
            )
        elif not value and key != "exchange":
            faults.append(f"{path}:{line}: [{service}] {key} is empty: name an exchange")
    return faults


def _line(text: str, pattern: str, after: int = 0) -> int:
    """Return the number of the first line after a given one that starts with the pattern."""
    lines = text.splitlines()
    return next(
        (n for n, line in enumerate(lines, 1) if n > after and re.match(pattern, line)), after
    )
