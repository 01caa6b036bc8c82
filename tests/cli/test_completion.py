# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""``tavrida completion`` prints what makes a shell complete commands."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests import commands
from tests.waiting import DEADLINE


@pytest.fixture(scope="module", params=["bash", "zsh"])
def shell(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command line of a shell that has read the script, up to what it shall run."""
    name = str(request.param)
    if shutil.which(name) is None:
        pytest.skip(f"there is no {name}")
    ended = commands.run("tavrida", "completion", name)
    assert (0, "") == (ended.code, ended.stderr)
    path = tmp_path_factory.mktemp("completion") / name
    path.write_text(ended.stdout)
    flags = {"bash": ["--norc"], "zsh": ["-f", "-o", "ksharrays"]}[name]
    return [name, *flags, "-c", f'source "{path}"; eval "$1"', "shell"]


def completed(shell: list[str], line: str, folder: Path) -> set[str]:
    """What the shell offers for the last word of a line."""
    words = line.split(" ")
    quoted = " ".join(f"'{word}'" for word in words)
    script = (
        f"COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _tavrida; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        [*shell, script], cwd=folder, capture_output=True, text=True, timeout=DEADLINE, check=True
    )
    assert "" == done.stderr
    # zsh itself takes those that begin so, after its compgen.
    return {each for each in done.stdout.splitlines() if each.startswith(words[-1] or each[:1])}


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("tavrida ca", {"call", "cast"}),
        ("tavrida topology ", {"apply", "plan", "show"}),
        ("tavrida --debug dead re", {"requeue"}),
        ("tavrida dead requeue --to", {"--to-exchange"}),
        ("tavrida topology show -f m", {"mermaid"}),
        ("tavrida dead list --config-file here.conf -f y", {"yaml"}),
        ("tavrida completion ", {"bash", "zsh"}),
        ("tavrida call --config-file here", {"here.conf"}),
        ("tavrida call --config-dir ", {"there"}),
        ("tavrida nonsense", set()),
    ],
)
def test_words_are_completed(
    shell: list[str], line: str, offered: set[str], tmp_path: Path
) -> None:
    """Commands, options, choices and paths."""
    (tmp_path / "here.conf").touch()
    (tmp_path / "there").mkdir()
    found = completed(shell, line, tmp_path)
    assert offered == {each for each in found if each in offered or not each.startswith("-")}


def test_every_command_is_offered(shell: list[str], tmp_path: Path) -> None:
    """By its first word."""
    found = completed(shell, "tavrida ", tmp_path)
    assert {"call", "cast", "config", "dead", "listen", "plugin", "service", "status"} <= found


def test_another_shell_has_exit_code_64() -> None:
    """With those that are there."""
    ended = commands.run("tavrida", "completion", "fish")
    assert (64, "") == (ended.code, ended.stdout)
    assert "'bash', 'zsh'" in ended.stderr
