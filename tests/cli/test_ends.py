# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""How any command ends when somebody has had enough of it, and what it costs to begin."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from signal import SIGINT

import pytest

from tests import commands
from tests.cli.conftest import Site, failed
from tests.commands import SCRIPTS
from tests.waiting import DEADLINE


@pytest.mark.parametrize(
    "arguments", [("plugin", "list", "--no-load"), ("topology", "show", "-f", "csv")]
)
def test_a_reader_that_goes_away_ends_it_quietly(site: Site, arguments: tuple[str, ...]) -> None:
    """As in ``tavrida ... | head``; no traceback, whatever was still to be written."""
    place = site.place if arguments[0] == "topology" else ()
    process = subprocess.Popen(
        [SCRIPTS / "tavrida", *arguments, *place],
        env=os.environ | site.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate(timeout=DEADLINE)
    assert (141, b"") == (process.returncode, errors)


def test_ctrl_c_ends_a_call_quietly(site: Site) -> None:
    """While its answer is awaited."""
    with site.program("call", "echo.slow") as calling:
        site.server.line("is slow")
        assert 130 == calling.end(SIGINT)
        with pytest.raises(AssertionError, match="no 'anything'"):
            calling.line("anything")
        assert [] == calling.output


def test_debug_shows_the_traceback_and_changes_no_exit_code(nowhere: Path) -> None:
    """A script that looks for a fault is still told what it was."""
    ended = commands.run("tavrida", "--debug", "listen", "a.b", "--config-file", nowhere)
    assert (3, "") == (ended.code, ended.stdout)
    assert "Traceback (most recent call last):" in ended.stderr
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("tavrida: cannot reach RabbitMQ at 127.0.0.1:1: connection refused.")


def test_without_a_command_the_help_is_shown() -> None:
    """And no shell of cliff's is begun."""
    ended = commands.run("tavrida")
    assert (0, "") == (ended.code, ended.stderr)
    assert "\n  call " in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("dead",), ("'dead' wants a word more: list, purge, requeue, show",)),
        (("config", "--config-file", "x"), ("'config' wants a word more: check, show",)),
        (("plugin", "lst", "-f", "json"), ("no command 'plugin lst'", "'plugin list'")),
        (("stauts", "--bogus"), ("no command 'stauts'", "did you mean 'status'?")),
        (("--bogus",), ("no command '--bogus'",)),
    ],
)
def test_an_unknown_command_is_told_with_the_nearest(
    arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    """Or, for the first word of several, with those that may follow."""
    failed(commands.run("tavrida", *arguments), 64, *words)


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("call", {"pika", "oslo_config", "yaml", "rich", "tavrida.client", "tavrida.server"}),
        ("listen", {"pika", "oslo_config", "yaml", "tavrida.plugins.transports"}),
        ("service", {"pika", "oslo_config", "yaml", "tavrida.client"}),
        ("status", {"pika", "oslo_config", "tavrida.options"}),
        ("config", {"pika", "oslo_config", "tavrida.options"}),
        ("topology", {"pika", "oslo_config", "tavrida.server"}),
        ("completion", {"pika", "oslo_config", "tavrida.options"}),
    ],
)
def test_a_command_is_light_to_load(module: str, absent: set[str]) -> None:
    """The help and the completion load all of them."""
    code = f"import sys, tavrida.cli.commands.{module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert f"tavrida.cli.commands.{module}" in loaded
    assert set() == loaded & absent
