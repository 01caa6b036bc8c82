# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The user's state folder, where the bus is when no configuration says otherwise."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

from tavrida import exceptions


def folder() -> Path:
    """Return tavrida's folder in ``XDG_STATE_HOME``, by default ``~/.local/state``.

    The XDG Base Directory Specification says that a relative path there is to be ignored.
    """
    home = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not home.is_absolute():
        try:
            home = Path.home() / ".local" / "state"
        except RuntimeError as error:
            raise exceptions.ConfigError(
                f"url is not set, and this user has no home folder for the default: {error}. Set "
                "url, or XDG_STATE_HOME"
            ) from None
    return home / "tavrida"


def default_url() -> str:
    """Return the url of the embedded bus in the state folder."""
    return f"sqlite://{quote(os.fsencode(folder()))}/bus.db"


def prepare(urls: tuple[str, ...]) -> bool:
    """Make the state folder if the default url is what is used; tell whether it is.

    Raises:
        ConfigError: the folder cannot be made.
    """
    if urls != (default_url(),):
        return False
    try:
        folder().mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise exceptions.ConfigError(
            f"[connection] url is not set, and the folder of the default cannot be made: {error}. "
            "Set url, or XDG_STATE_HOME"
        ) from None
    return True
