# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The commands as a user has them: run to their end, or serving beside the test."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from tests.processes import Program
from tests.waiting import DEADLINE

#: Where the commands of the environment that runs the tests are.
SCRIPTS = Path(sysconfig.get_path("scripts"))


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended, and what it printed."""

    code: int
    stdout: str
    stderr: str


def run(
    command: str | Path, *arguments: str | Path, environment: dict[str, str] | None = None
) -> Ended:
    """Run a command to its end: one of tavrida's by its name, or any by its path."""
    done = subprocess.run(
        [SCRIPTS / command, *arguments],
        env=os.environ | {"COLUMNS": "200"} | (environment or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def serve(*arguments: str | Path, environment: dict[str, str] | None = None) -> Program:
    """Start ``tavrida-server`` and return it when it serves."""
    server = Program([SCRIPTS / "tavrida-server", *arguments], environment=environment)
    try:
        server.line("is serving")
    except BaseException:
        server.__exit__()
        raise
    return server
