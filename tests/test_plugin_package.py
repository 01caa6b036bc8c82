# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""A stranger's package, installed by pip beside tavrida in an environment of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests import commands
from tests.processes import Program

CHECKOUT = Path(__file__).parent.parent

#: Seconds. Everything that tavrida needs comes from the package index, or from pip's cache.
INSTALL_TIMEOUT = 120.0

PROJECT = """
[build-system]
requires = ["setuptools>=64"]
build-backend = "setuptools.build_meta"

[project]
name = "acme-greeter"
version = "1.2"
dependencies = ["tavrida"]

[project.entry-points."tavrida.controllers"]
greeter = "acme_greeter:Greeter"

[tool.setuptools]
py-modules = ["acme_greeter"]
"""

MODULE = """
from oslo_config import cfg

from tavrida import dispatcher, service


@dispatcher.rpc_service("greeter")
class Greeter(service.ServiceController):
    @classmethod
    def list_opts(cls):
        return [cfg.StrOpt("word", default="Hello")]

    @dispatcher.rpc_method(service="greeter", method="greet")
    def greet(self, request, proxy, name: str):
        return {"text": f"{self.options['word']}, {name}"}
"""


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    """Where the commands are of an environment with tavrida and acme-greeter, and nothing else."""
    package = tmp_path / "acme-greeter"
    package.mkdir()
    (package / "pyproject.toml").write_text(PROJECT)
    (package / "acme_greeter.py").write_text(MODULE)
    # pip builds where the sources are; the checkout shall stay clean, and give what it has now.
    source = tmp_path / "tavrida"
    shutil.copytree(
        CHECKOUT,
        source,
        ignore=shutil.ignore_patterns(".*", "*.egg-info", "build", "dist", "__pycache__"),
    )
    target = tmp_path / "venv"
    venv.create(target, symlinks=True)
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--python", target / "bin" / "python"),
            *("install", "--quiet", "--disable-pip-version-check"),
            *(f"{source}[cli]", package),
        ],
        check=True,
        timeout=INSTALL_TIMEOUT,
    )
    return target / "bin"


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_an_installed_package_is_served_and_called(
    scripts: Path, amqp_url: str, tmp_path: Path
) -> None:
    """An ini, tavrida-server and tavrida call: nothing of it needs the checkout."""
    config = tmp_path / "greeter.conf"
    config.write_text(
        f"[connection]\nurl = {amqp_url}\n[server]\nservices = greeter\n"
        "[service:greeter]\nword = Good morning\n"
    )
    listed = commands.run(scripts / "tavrida", "plugin", "list", "-f", "json")
    assert listed.code == 0, listed
    controllers = [x for x in json.loads(listed.stdout) if x["Namespace"] == "tavrida.controllers"]
    assert [(x["Name"], x["Distribution"], x["Version"]) for x in controllers] == [
        ("greeter", "acme-greeter", "1.2")
    ]
    # exec, because the command's own Python is that of the other environment.
    execute = "import os, sys; os.execv(sys.argv[1], sys.argv[1:])"
    with Program(["-c", execute, scripts / "tavrida-server", "--config-file", config]) as server:
        server.line("is serving greeter")
        called = commands.run(
            scripts / "tavrida",
            *("call", "greeter.greet", "name=Ann", "--config-file", config, "-f", "json"),
        )
        assert (called.code, called.stderr) == (0, "")
        assert json.loads(called.stdout) == {"text": "Good morning, Ann"}
        assert server.end() == 0
