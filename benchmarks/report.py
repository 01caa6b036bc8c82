# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Writes what was measured into docs/performance.md: ``./dev bench report``.

The data files are made by the commands that docs/performance.md names.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from typing import Any

from benchmarks import comparison, growth, guarantees, scale
from benchmarks._measuring import ROOT, say

DATA = ROOT / "benchmarks/data"
PAGE = ROOT / "docs/performance.md"

#: By the name of the data file: what makes Markdown of it.
SECTIONS: dict[str, Callable[[Any], list[str]]] = {
    "comparison": comparison.report,
    "ways": comparison.report,
    "guarantees": guarantees.report,
    "scale": scale.report,
    "growth": growth.report,
}

_SECTION = re.compile(r"(<!-- begin (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """Return the page with what the data files say between its marks."""

    def section(found: re.Match[str]) -> str:
        name = found[2]
        result = json.loads((DATA / f"{name}.json").read_text())
        return "\n".join([found[1], *SECTIONS[name](result), "", found[3]])

    return _SECTION.sub(section, text)


def main() -> int:
    """Write the page."""
    PAGE.write_text(filled(PAGE.read_text()))
    say(f"{PAGE.relative_to(ROOT)} says what {DATA.relative_to(ROOT)} has")
    return 0


if __name__ == "__main__":
    sys.exit(main())
