# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Play rows of the fault laboratory and print their table; without names, all of them."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.faults.rows import ROWS, Bench, NotHereError, Row
from tests.faults.table import HEADER, line_of
from tests.rabbitmq import NodeError


def _play(bench: Bench, row: Row, *, is_short: bool) -> Iterator[str]:
    """Print the lines of a row; give what did not hold."""
    for variant in row.short_variants if is_short else row.variants:
        try:
            verdict = row.play(bench, variant, row.short if is_short else row.full)
        except NotHereError as reason:
            print(f"| {row.name} | {variant} | not played: {reason} |", flush=True)
            continue
        except (AssertionError, NodeError) as error:
            yield f"{row.name} ({variant}): {error!r}"
            continue
        print(line_of(row, variant, verdict), flush=True)
        for complaint in verdict.complaints:
            yield f"{row.name} ({variant}): {complaint}"


def main() -> int:
    """Run the command line; the exit code is 1 when something did not hold."""
    parser = argparse.ArgumentParser(prog="./dev faults", description=__doc__)
    parser.add_argument("--short", action="store_true", help="as seldom as in the tests")
    parser.add_argument("row", nargs="*", help=", ".join(row.name for row in ROWS))
    chosen = parser.parse_args()
    if unknown := set(chosen.row) - {row.name for row in ROWS}:
        parser.error(f"there is no row {', '.join(sorted(unknown))}")
    root = Path(tempfile.mkdtemp(prefix="tavrida-faults-"))
    began = time.monotonic()
    complaints: list[str] = []
    print(HEADER, flush=True)
    with Bench(root) as bench:
        for row in ROWS:
            if not chosen.row or row.name in chosen.row:
                complaints += _play(bench, row, is_short=chosen.short)
    print(
        f"\n{time.monotonic() - began:.0f} s, {os.cpu_count()} cores, load average "
        f"{os.getloadavg()[2]:.1f}, Python {platform.python_version()}"
    )
    for complaint in complaints:
        print(f"DOES NOT HOLD: {complaint}")
    if complaints:
        print(f"Journals and logs are in {root}")
        return 1
    shutil.rmtree(root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
