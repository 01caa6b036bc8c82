# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Writes topology.svg, the picture of the example's topology: ``python -m docs.picture``."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from pathlib import Path

FILE = Path(__file__).parent / "topology.svg"
CONFIG = Path(__file__).parent.parent / "examples" / "hello_world" / "etc" / "exchanges.conf"


def picture() -> str:
    """Return what ``tavrida topology show -f svg`` prints for the example."""
    command = Path(sysconfig.get_path("scripts")) / "tavrida"
    return subprocess.run(
        [command, "topology", "show", "-f", "svg", "--config-file", CONFIG],
        env={name: value for name, value in os.environ.items() if not name.startswith("OS_")},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


if __name__ == "__main__":
    FILE.write_text(picture(), encoding="utf-8")
