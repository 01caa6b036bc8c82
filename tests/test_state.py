# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The state folder, and the bus in it that serves where no url is set."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from tavrida import exceptions, options, state
from tests import commands
from tests.packages import Packages
from tests.processes import Program

HELLO = """
    from tavrida import dispatcher, service


    @dispatcher.rpc_service("hello")
    class Hello(service.ServiceController):
        @dispatcher.rpc_method(service="hello", method="greet")
        def greet(self, request, proxy, name: str):
            return {"greeting": f"Hello, {name}!"}
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A state folder of the test's own, and a controller that is installed."""
    folder = tmp_path / "packages"
    folder.mkdir()
    packages = Packages(folder)
    packages.add(
        "acme-greeter", {"tavrida.controllers": {"hello": "acme_hello:Hello"}}, acme_hello=HELLO
    )
    packages.remove()
    return {"PYTHONPATH": str(folder), "XDG_STATE_HOME": str(tmp_path / "state")}


def test_the_folder_is_that_of_the_xdg_specification(monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path in the variable does not count, as the specification says."""
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert Path("/home/me/.local/state/tavrida") == state.folder()
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert Path("/home/me/.local/state/tavrida") == state.folder()
    monkeypatch.setenv("XDG_STATE_HOME", "/var/state of me")
    assert Path("/var/state of me/tavrida") == state.folder()
    assert "sqlite:///var/state%20of%20me/tavrida/bus.db" == state.default_url()


def test_a_configuration_without_url_is_the_embedded_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For servers and for the commands alike; so they meet."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    (tmp_path / "a.conf").write_text("[log]\nlevel = DEBUG\n")
    conf = options.parse([f"--config-file={tmp_path}/a.conf"], "test")
    config, *_ = options.read_client(conf, "hello")
    assert (f"sqlite://{tmp_path}/tavrida/bus.db",) == config.urls
    assert not (tmp_path / "tavrida").exists()


def test_the_folder_is_made_for_the_default_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With rights for this user alone."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert not state.prepare(("sqlite:///elsewhere/bus.db",))
    assert not (tmp_path / "state").exists()
    assert state.prepare((state.default_url(),))
    assert 0o700 == stat.S_IMODE(state.folder().stat().st_mode)
    assert state.prepare((state.default_url(),))


def test_a_folder_that_cannot_be_made_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to set instead."""
    monkeypatch.setenv("XDG_STATE_HOME", "/proc")
    with pytest.raises(exceptions.ConfigError) as caught:
        state.prepare((state.default_url(),))
    assert "the folder of the default cannot be made" in str(caught.value)
    assert "Set url, or XDG_STATE_HOME" in str(caught.value)


def test_a_user_without_home_is_told_to_set_the_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Together with the other faults of the section."""

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    (tmp_path / "a.conf").write_text("[connection]\nheartbeat = often\n")
    conf = options.parse([f"--config-file={tmp_path}/a.conf"], "test")
    with pytest.raises(exceptions.ConfigError) as caught:
        options.read_client(conf, "hello")
    assert 2 == len(caught.value.faults)
    assert "[connection] url is not set" in caught.value.faults[1]


def test_a_server_and_a_call_without_url_meet_on_the_embedded_bus(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """The server says in its log where that is; nothing had to be installed or started."""
    path = tmp_path / "hello.conf"
    path.write_text("[server]\nservices = hello\n")
    arguments = ["--config-file", str(path)]
    with Program(
        [commands.SCRIPTS / "tavrida-server", *arguments], environment=environment
    ) as server:
        line = server.line("No [connection] url is set")
        assert f"using the embedded sqlite://{tmp_path}/state/tavrida/bus.db." in line
        server.line("is serving hello")
        ended = commands.run(
            "tavrida", "call", "hello.greet", "name=Ann", *arguments, environment=environment
        )
        assert (0, "") == (ended.code, ended.stderr)
        assert "Hello, Ann!" in ended.stdout
        assert 0 == server.end()


def test_a_server_whose_folder_cannot_be_made_ends_with_one_line(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """Exit code 1: it is the set-up that is wrong."""
    path = tmp_path / "hello.conf"
    path.write_text("[server]\nservices = hello\n")
    ended = commands.run(
        "tavrida-server",
        "--config-file",
        path,
        environment=environment | {"XDG_STATE_HOME": "/proc"},
    )
    assert 1 == ended.code
    assert 1 == len(ended.stderr.splitlines())
    assert "Set url, or XDG_STATE_HOME" in ended.stderr
