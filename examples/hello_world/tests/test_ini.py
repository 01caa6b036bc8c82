# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The ini files: tavrida-server --check finds what an operator would stumble over."""

from pathlib import Path

import pytest

from tavrida.cli import server

ETC = Path(__file__).parent.parent / "etc"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hello.conf", ["queue test_hello", "queue test_world", "notification test_hello.hello"]),
        ("simple.conf", ["hello_world.simple.HelloController"]),
        ("exchanges.conf", ["exchange test_exchange", "queue test_world_service"]),
    ],
)
def test_the_ini_files_can_be_served(name, expected, capsys):
    """It says what would run, and connects to nothing."""
    assert server.main(["--config-file", str(ETC / name), "--check"]) == 0
    described = capsys.readouterr().out
    for words in expected:
        assert words in described
