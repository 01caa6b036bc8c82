# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The generated parts of docs/ are what would be generated now; `./dev docs` writes them."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

import pytest

from docs import picture, reference, transcripts
from tavrida import options

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.timeout(180)
def test_transcripts_are_what_the_commands_print() -> None:
    """But for ids, times, process ids and versions."""
    text = transcripts.PAGE.read_text(encoding="utf-8")
    now = transcripts.rewritten(text)
    if text != now:  # on a busy machine a letter may be listed before it is dead
        now = transcripts.rewritten(text)
    difference = difflib.unified_diff(text.splitlines(), now.splitlines(), "docs/cli.md", "now")
    assert text == now, "run ./dev docs:\n" + "\n".join(difference)


def test_the_picture_is_what_the_command_draws() -> None:
    """Of the example's exchanges.conf."""
    assert picture.FILE.read_text(encoding="utf-8") == picture.picture(), "run ./dev docs"


def test_the_reference_is_what_the_options_say() -> None:
    """Each option with its type, limits, default, variable and help."""
    assert reference.PAGE.read_text(encoding="utf-8") == reference.page(), "run ./dev docs"


def test_the_reference_has_every_option_with_a_help_text() -> None:
    """None is left out, or without a word."""
    page = reference.page()
    for section, opts in options.list_opts():
        assert f"## [{section}]\n" in page
        for opt in opts:
            assert f"\n### {opt.dest}\n" in page
            assert opt.help, f"[{section}] {opt.dest}"


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda path: path.name)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    """To a file that is there, and to a heading in it."""
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name) if name else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", each).lower().replace(" ", "-") for each in headings}
            assert anchor in slugs, target
