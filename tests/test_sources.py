# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""``tavrida-server --reload``: what a developer sees who changes files while it serves."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tavrida.cli.sources import fault_of
from tavrida.client import RPCClient
from tavrida.config import ConnectionConfig
from tests import commands
from tests.packages import Packages
from tests.processes import Program, TerminalProgram, children_of, is_alive
from tests.waiting import DEADLINE, eventually

SOURCE = """
import os
import pathlib
import time

from tavrida import dispatcher, service

@dispatcher.rpc_service("live")
class Live(service.ServiceController):
    @dispatcher.rpc_method(service="live", method="version")
    def version(self, request, proxy):
        return {"version": VERSION, "pid": os.getpid()}

    @dispatcher.rpc_method(service="live", method="until")
    def until(self, request, proxy, path):
        pathlib.Path(f"{path}.begun").touch()
        while not pathlib.Path(path).exists():
            time.sleep(0.01)
"""


class Project:
    """A package under development, and the server that runs it."""

    def __init__(self, folder: Path, is_package: bool) -> None:
        self.folder = folder
        site = folder / "site"
        site.mkdir()
        packages = Packages(site)
        packages.add("acme-live", {"tavrida.controllers": {"live": "acme_live:Live"}})
        packages.remove()
        self.source = site / "acme_live.py"
        if is_package:
            (site / "acme_live").mkdir()
            self.source = site / "acme_live" / "controllers.py"
            (site / "acme_live" / "__init__.py").write_text("from acme_live.controllers import *")
        self.ini = folder / "live.conf"
        self.url = f"sqlite://{folder}/bus.db"
        self.configure()
        self.write("VERSION = 1")
        self.environment = {"PYTHONPATH": str(site)}
        self.program: Program

    def write(self, line: str) -> None:
        """Save the source as most editors do: another file takes its place."""
        draft = self.source.with_suffix(".draft")
        draft.write_text(f"{line}\n{SOURCE}")
        draft.replace(self.source)

    def configure(self, more: str = "") -> None:
        self.ini.write_text(
            f"[connection]\nurl = {self.url}\n[server]\nservices = live\n"
            f"queue_type = classic\n{more}\n"
        )

    def ask(self) -> tuple[int, int]:
        """The version that serves, and its process."""
        with RPCClient(ConnectionConfig(url=(self.url,)), "live") as client:
            payload = client.version().call(timeout=DEADLINE).payload
        return payload["version"], payload["pid"]


Make = Callable[..., Project]


@pytest.fixture(params=["package", "module"])
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Project:
    """A package, or a single module."""
    return Project(tmp_path, request.param == "package")


@pytest.fixture
def start(project: Project) -> Iterator[Callable[[], Program]]:
    """Run the project with ``--reload``; the children do not outlive the test."""
    with ExitStack() as running:

        def run() -> Program:
            program = Program(
                [commands.SCRIPTS / "tavrida-server", "--reload", "--config-file", project.ini],
                environment=project.environment,
            )

            def kill_children() -> None:
                for pid in children_of(program.process.pid):
                    os.kill(pid, signal.SIGKILL)

            running.enter_context(program)
            running.callback(kill_children)
            return program

        yield run


def test_a_changed_source_is_served_at_once(project: Project, start: Callable[[], Program]) -> None:
    """By a process of its own; the one before has ended."""
    program = start()
    program.line("is serving")
    version, first = project.ask()
    assert 1 == version
    assert {first} == set(children_of(program.process.pid))
    for number in (2, 3):
        project.write(f"VERSION = {number}")
        program.line(f"{project.source.name} changed: starting again.")
        program.line("tavrida stopped")
        program.line("is serving")
        assert number == project.ask()[0]
    assert 1 == len(children_of(program.process.pid))
    assert not is_alive(first)
    assert 0 == program.end()


def test_a_source_that_does_not_parse_is_shown_and_the_old_one_goes_on(
    project: Project, start: Callable[[], Program]
) -> None:
    """Python's words with file and line; then it waits for the next change."""
    program = start()
    program.line("is serving")
    before = project.ask()
    project.write("VERSION = (")
    program.line("a source does not parse, so that nothing is restarted until the next change")
    assert f'{project.source}", line 1' in program.line("File")
    program.line("SyntaxError: '(' was never closed")
    assert before == project.ask()
    project.write("VERSION = 2")
    program.line("is serving")
    assert 2 == project.ask()[0]
    assert 0 == program.end()


def test_a_source_that_cannot_be_imported_is_told_and_waited_for(
    project: Project, start: Callable[[], Program]
) -> None:
    """Also where it was so from the start."""
    project.write("VERSION = 1 / 0")
    program = start()
    program.line("cannot be imported: ZeroDivisionError")
    program.line("ended with exit code 1; waiting for the next change.")
    project.write("VERSION = 2")
    program.line("is serving")
    assert 2 == project.ask()[0]
    assert 0 == program.end()


def test_a_changed_ini_is_served_too(project: Project, start: Callable[[], Program]) -> None:
    """A fault in it is told by the server itself."""
    program = start()
    program.line("is serving")
    project.configure("concurency = 3")
    program.line("live.conf changed: starting again.")
    program.line("[server] concurency is unknown (did you mean 'concurrency'?)")
    program.line("waiting for the next change")
    project.configure("concurrency = 3")
    assert ", 3 at a time" in program.line("is serving")
    assert 0 == program.end()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_both_processes_gracefully(
    project: Project, start: Callable[[], Program], number: signal.Signals, tmp_path: Path
) -> None:
    """What runs is finished, and the exit code is that of the server."""
    program = start()
    program.line("is serving")
    gate = tmp_path / "gate"
    with RPCClient(ConnectionConfig(url=(project.url,)), "live") as client:
        answer = client.until(path=str(gate)).future()
        eventually(Path(f"{gate}.begun").exists)
        (child,) = children_of(program.process.pid)
        program.process.send_signal(number)
        program.line("Got SIGTERM: stopping")
        assert not answer.done()
        gate.touch()
        assert {} == answer.result(DEADLINE).payload
    assert 0 == program.process.wait(DEADLINE)
    assert not is_alive(child)


def test_ctrl_c_on_a_terminal_ends_both_gracefully(project: Project, tmp_path: Path) -> None:
    """Both get it, which must not count as twice."""
    arguments = (commands.SCRIPTS / "tavrida-server", "--reload", "--config-file", project.ini)
    gate = tmp_path / "gate"
    with (
        TerminalProgram(arguments, environment=project.environment) as program,
        RPCClient(ConnectionConfig(url=(project.url,)), "live") as client,
    ):
        program.line("is serving")
        answer = client.until(path=str(gate)).future()
        eventually(Path(f"{gate}.begun").exists)
        program.press(b"\x03")
        program.line("Got SIGINT: stopping")
        assert not answer.done()
        gate.touch()
        assert {} == answer.result(DEADLINE).payload
        assert 0 == program.process.wait(DEADLINE)


def test_a_second_signal_ends_both_at_once(
    project: Project, start: Callable[[], Program], tmp_path: Path
) -> None:
    """Handlers that never end hold up nothing."""
    program = start()
    program.line("is serving")
    with RPCClient(ConnectionConfig(url=(project.url,)), "live") as client:
        client.until(path=str(tmp_path / "never")).cast()
        eventually((tmp_path / "never.begun").exists)
    (child,) = children_of(program.process.pid)
    program.process.terminate()
    program.line("Got SIGTERM: stopping")
    assert 128 + signal.SIGTERM == program.end()
    assert not is_alive(child)


@pytest.mark.slow
def test_handlers_that_do_not_end_do_not_hold_up_a_restart(
    project: Project, start: Callable[[], Program], tmp_path: Path
) -> None:
    """Their messages come again, to the new code."""
    program = start()
    program.line("is serving")
    gate = tmp_path / "gate"
    with RPCClient(ConnectionConfig(url=(project.url,)), "live") as client:
        answer = client.until(path=str(gate)).future()
        eventually(Path(f"{gate}.begun").exists)
        project.write("VERSION = 2")
        program.line("handlers still run after 5 s; their messages come again.")
        program.line("is serving")
        gate.touch()
        assert {} == answer.result(DEADLINE).payload
    assert 0 == program.end()


def test_without_watchfiles_the_remedy_is_told(project: Project, tmp_path: Path) -> None:
    """One sentence, before anything is started."""
    (tmp_path / "site" / "watchfiles.py").write_text("raise ModuleNotFoundError(name='watchfiles')")
    ended = commands.run(
        *("tavrida-server", "--reload", "--config-file", project.ini),
        environment=project.environment,
    )
    assert (1, "") == (ended.code, ended.stdout)
    assert ended.stderr == (
        "tavrida-server: --reload needs the extra 'reload': pip install 'tavrida[reload]'\n"
    )


def test_check_goes_before_reload(project: Project) -> None:
    """It checks, and ends."""
    ended = commands.run(
        *("tavrida-server", "--reload", "--check", "--config-file", project.ini),
        environment=project.environment,
    )
    assert (0, "") == (ended.code, ended.stderr)


@pytest.mark.parametrize("source", [b"x = (", b"\0", b"\xff", b"# coding: nonsense\n", b"return"])
def test_any_source_that_is_none_is_one_fault(tmp_path: Path, source: bytes) -> None:
    """Whatever an editor has just saved."""
    path = tmp_path / "odd.py"
    path.write_bytes(source)
    assert "Error" in fault_of(path)


def test_a_source_that_is_gone_is_none(tmp_path: Path) -> None:
    """Whoever imports it will say so."""
    assert "" == fault_of(tmp_path / "gone.py")
