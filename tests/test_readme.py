# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Every command and code block of README, run as a newcomer would."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
import subprocess
import venv
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.processes import Program
from tests.rabbitmq import Node
from tests.waiting import DEADLINE, eventually

CHECKOUT = Path(__file__).parent.parent
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.removeprefix("$ ")
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]
PROGRAMS = re.findall(r"`(\w+\.py)`.*?```python\n(.*?)```", README, re.DOTALL)

#: How long installing from the package index may take, in seconds.
INSTALL_TIMEOUT = 150.0


def test_every_command_of_readme_is_run_below() -> None:
    """Whoever adds one finds this test failing, and adds it to the others."""
    assert COMMANDS == [
        "./dev demo",
        "./dev test",
        "pip install '.[cli]' ./examples/hello_world",
        "tavrida-server --check --config-file examples/hello_world/etc/hello.conf",
        "tavrida-server --config-file examples/hello_world/etc/hello.conf",
        "tavrida call test_hello.hello param=123 --config-file examples/hello_world/etc/hello.conf",
    ]
    assert ["hello_service.py", "hello_client.py"] == [name for name, _ in PROGRAMS]


def test_links_of_readme_lead_somewhere() -> None:
    """Each relative link is a file that is there."""
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert [] == [link for link in links if not (CHECKOUT / link).exists()]


def test_service_and_client_of_readme_run_as_they_stand(
    rabbitmq: Node, vhost: str, tmp_path: Path
) -> None:
    """Apart from the broker's port and virtual host, which are this test's."""
    broker = urlsplit(rabbitmq.url(vhost))
    for name, text in PROGRAMS:
        reached = text.replace(
            'ConnectionConfig("localhost",',
            f'ConnectionConfig("localhost", port={broker.port}, virtual_host={vhost!r},',
        )
        assert reached != text
        (tmp_path / name).write_text(reached, encoding="utf-8")
    with Program([tmp_path / "hello_service.py"]) as service:
        # It prints nothing until it is called.
        eventually(lambda: "test_service" in rabbitmq.ctl("list_consumers", "-p", vhost))
        with Program([tmp_path / "hello_client.py"]) as client:
            client.line("125")
            assert 0 == client.process.wait(DEADLINE)
        both_are_printed(service)
        assert 0 == service.end()


def test_service_and_client_of_readme_run_without_a_broker(tmp_path: Path) -> None:
    """With the configuration that README names for that, in both."""
    (configuration,) = re.findall(r"`(config\.ConnectionConfig\(url=.*?\))`", README)
    own = configuration.replace("/tmp/bus.db", f"{tmp_path}/bus.db")
    for name, text in PROGRAMS:
        changed = re.sub(r"^conf = .*$", f"conf = {own}", text, flags=re.MULTILINE)
        assert own in changed
        (tmp_path / name).write_text(changed, encoding="utf-8")
    with Program([tmp_path / "hello_service.py"]) as service:
        eventually(lambda: queue_is_served(tmp_path / "bus.db"))
        with Program([tmp_path / "hello_client.py"]) as client:
            client.line("125")
            assert 0 == client.process.wait(DEADLINE)
        both_are_printed(service)
        assert 0 == service.end()


def both_are_printed(service: Program) -> None:
    """By handlers that run side by side, so that it may be in one line, or in the other order."""
    missing = {"123", "124"}
    while missing:
        line = service.line("12")
        missing = {each for each in missing if each not in line}


def queue_is_served(path: Path) -> bool:
    """Tell whether somebody consumes a queue of an embedded bus."""
    if not path.exists():
        return False
    with contextlib.closing(sqlite3.connect(path)) as bus:
        try:
            return bool(bus.execute("SELECT 1 FROM consumers").fetchone())
        except sqlite3.OperationalError:  # its tables are being made
            return False


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_dev_demo_shows_the_answer(tmp_path: Path) -> None:
    """It ends by itself, with exit code 0, and what it started has ended too."""
    done = subprocess.run(
        ["./dev", "demo"],
        cwd=CHECKOUT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert 0 == done.returncode, done.stdout + done.stderr
    assert "Hello, 123!" in done.stdout
    assert "notification from hello" in done.stdout
    assert "the world has no place for -1" in done.stdout + done.stderr
    assert "what to try next" in done.stdout


def test_dev_test_hands_its_arguments_to_pytest() -> None:
    """This test is run by it; so here it only collects."""
    done = subprocess.run(
        ["./dev", "test", "--collect-only", "-q", "tests/test_entry_point.py"],
        cwd=CHECKOUT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert 0 == done.returncode, done.stdout + done.stderr
    assert "tests/test_entry_point.py::" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_example_is_installed_checked_served_and_called(tmp_path: Path) -> None:
    """In a copy of the checkout, in an environment with nothing but what the commands install."""
    source = tmp_path / "tavrida"
    ignored = shutil.ignore_patterns(".*", "*.egg-info", "build", "dist", "__pycache__")
    shutil.copytree(CHECKOUT, source, ignore=ignored)
    venv.create(tmp_path / "venv", with_pip=True)
    scripts = tmp_path / "venv" / "bin"
    environment = os.environ | {
        "PATH": f"{scripts}:{os.environ['PATH']}",
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    install, check, serve, call = COMMANDS[2:]

    def run(command: str) -> str:
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=source,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=INSTALL_TIMEOUT,
            check=False,
        )
        assert 0 == done.returncode, done.stdout + done.stderr
        return done.stdout

    run(install)
    assert "test_world.world" in run(check)
    # exec: the signal shall reach the command, not a shell.
    execute = "import os, sys; os.chdir(sys.argv[1]); os.execvp('sh', ['sh', '-c', sys.argv[2]])"
    with Program(["-c", execute, source, f"exec {serve}"], environment=dict(environment)) as server:
        server.line("is serving test_hello")
        assert "Hello, 123!" in run(call)
        server.line("world response")
        assert 0 == server.end()
