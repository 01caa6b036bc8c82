# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""``tavrida``: talks to services from the command line. Commands are plugins (tavrida.commands).

Exit codes: 0 done; 1 an error, remote or local; 2 no answer in time; 3 the broker cannot be
reached; 64 wrong usage.
"""

from __future__ import annotations

import sys


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    try:
        return _main(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        return 130  # as shells have it; while it is loaded, nobody else takes it


def _main(arguments: list[str]) -> int:
    from tavrida import plugins
    from tavrida.cli import streams

    streams.open_all()
    try:
        from tavrida.cli import application
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "cliff":
            raise
        print(
            "tavrida: this command needs the extra 'cli': pip install 'tavrida[cli]'",
            file=sys.stderr,
        )
        return 1
    return application.run(arguments, plugins.version())
