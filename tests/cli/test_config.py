# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""``tavrida config check`` and ``show``: what is wrong, and where each value comes from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tavrida import options
from tests import commands
from tests.cli.conftest import failed
from tests.commands import Ended

ROOT = Path(__file__).parent.parent.parent
SAMPLES = [
    *sorted((ROOT / "examples").rglob("*.conf")),
    *sorted(path for path in (ROOT / "etc").rglob("*.conf*") if "generator" not in path.name),
]

Tavrida = Callable[..., Ended]


@pytest.fixture
def config(packages: dict[str, str], tmp_path: Path) -> Tavrida:
    """Run ``tavrida config`` in a home of its own."""

    def run(*arguments: str | Path, **variables: str) -> Ended:
        environment = packages | {"HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}
        return commands.run("tavrida", "config", *arguments, environment=environment | variables)

    return run


@pytest.fixture
def ini(tmp_path: Path) -> Callable[[str, str], Path]:
    """Write a file."""

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


def rows_of(ended: Ended) -> dict[str, dict[str, Any]]:
    """Return the rows of ``config show -f json`` by section and option."""
    return {f"{row['Section']}.{row['Option']}": row for row in json.loads(ended.stdout)}


# -- check ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.name)
def test_every_sample_is_right(config: Tavrida, sample: Path) -> None:
    """What people copy has no faults; the commented one names no services."""
    client = ("--client",) if sample.suffix == ".sample" else ()
    ended = config("check", *client, "--config-file", sample)
    assert (0, "") == (ended.code, ended.stderr)
    assert f"nothing is wrong in {sample}; services: " in ended.stdout


def test_every_fault_of_all_files_is_told(config: Tavrida, ini: Callable[..., Path]) -> None:
    """One line each, with file and line, or the variable."""
    one = ini("one.conf", "[server]\nservices = echo, ecko\nconcurrency = lots\n")
    ini("conf.d/two.conf", "[conection]\nurl = x\n[service:echo]\nexchagne = e\n")
    ended = config(
        *("check", "--config-file", one, "--config-dir", one.parent / "conf.d"),
        OS_SERVER__PREFETSH="1",
        OS_SEVER__PREFETCH="1",
        OS_UNRELATED__THING="1",
        OS_LOG__LEVEL="LOUD",
    )
    assert (1, "") == (ended.code, ended.stdout)
    told = ended.stderr.splitlines()
    for words in (
        f"{one}:3: [server] concurrency: should be a number, not 'lots'",
        "two.conf:1: section [conection] is unknown (did you mean 'connection'?)",
        "two.conf:4: [service:echo] exchagne is unknown (did you mean 'exchange'?)",
        "no plugin 'ecko' in tavrida.controllers (did you mean 'echo'?)",
        "OS_SERVER__PREFETSH: [server] prefetsh is unknown (did you mean 'prefetch'?)",
        "OS_SEVER__PREFETCH: section [sever] is unknown (did you mean 'server'?)",
        "OS_LOG__LEVEL: [log] level: ",
    ):
        assert 1 == len([line for line in told if words in line]), (words, told)
    assert 7 == len(told)
    assert {"tavrida:"} == {line.split()[0] for line in told}


def test_a_missing_file_is_told(config: Tavrida) -> None:
    """One sentence."""
    failed(config("check", "--config-file", "/nowhere.conf"), 1, "cannot read /nowhere.conf")


def test_a_file_of_a_client_names_no_services(config: Tavrida, ini: Callable[..., Path]) -> None:
    """Nor need the controllers be installed."""
    place = ("--config-file", ini("client.conf", "[service:far]\nexchange = e\nany = 1\n"))
    ended = config("check", "--client", *place)
    assert (0, "") == (ended.code, ended.stderr)
    assert ended.stdout.endswith("client.conf; services: far\n")
    failed(config("check", *place), 1, "[server] services names none")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[client]\noutgoing_middleware = prometeus\n", "did you mean 'prometheus'?"),
        (
            "[client]\noutgoing_middleware = prometheus\n[middleware:prometheus]\nbuckets = 3, 2\n",
            "buckets 3.0, 2.0: name growing numbers",
        ),
        (
            "[client]\noutgoing_middleware=opentelemetry\n[middleware:opentelemetry]\nexporter=otpl",
            "there is no exporter 'otpl'",
        ),
    ],
)
def test_middleware_of_clients_is_checked(
    config: Tavrida, ini: Callable[..., Path], text: str, words: str
) -> None:
    """It is made with its options, as "tavrida call" would."""
    failed(config("check", "--client", "--config-file", ini("shop.conf", text)), 1, words)


# -- show ----------------------------------------------------------------------------------------


def test_each_value_tells_who_gave_it_and_over_whom(
    config: Tavrida, ini: Callable[..., Path]
) -> None:
    """Command line, environment, folder, files in their order, default."""
    one = ini("one.conf", "[server]\nconcurrency = 1\n\nprefetch = 1\n")
    two = ini(
        "two.conf", "[server]\nprefetch = 2\nconcurrency = 2\n[connection]\nurl = sqlite://\n"
    )
    three = ini("conf.d/three.conf", "[server]\nconcurrency = 3\nprefetch = 3\n")
    ended = config(
        *("show", "--config-file", one, "--config-file", two, "--config-dir", three.parent),
        *("--url", "sqlite:///x.db", "-f", "json"),
        OS_SERVER__CONCURRENCY="4",
    )
    assert 0 == ended.code
    assert f"the last one wins: {one}, {two}, {three}" in ended.stderr
    rows = rows_of(ended)

    def line(path: Path, number: int) -> dict[str, object]:
        return {"kind": "file", "name": str(path), "line": number}

    row = rows["server.concurrency"]
    assert 4 == row["Value"]
    assert {
        "kind": "environment",
        "name": "OS_SERVER__CONCURRENCY",
        "over": [line(three, 2), line(two, 3), line(one, 2)],
    } == row["From"]
    row = rows["server.prefetch"]
    assert 3 == row["Value"]
    assert line(three, 3) | {"over": [line(two, 2), line(one, 4)]} == row["From"]
    row = rows["connection.url"]
    assert ["sqlite:///x.db"] == row["Value"]
    assert {"kind": "command line", "name": "--url", "over": [line(two, 5)]} == row["From"]
    row = rows["connection.heartbeat"]
    assert (15, {"kind": "default"}) == (row["Value"], row["From"])


def test_the_value_is_the_one_in_force(config: Tavrida, ini: Callable[..., Path]) -> None:
    """What tavrida makes of an option that says nothing; the controller's own options too."""
    place = ("--config-file", ini("one.conf", "[server]\nservices = echo\n"))
    rows = rows_of(config("show", *place, "-f", "json"))
    assert ["echo"] * 3 == [
        rows[f"service:echo.{name}"]["Value"] for name in ("controller", "exchange", "queue")
    ]
    (url,) = rows["connection.url"]["Value"]
    assert url.startswith("sqlite:///")
    assert url.endswith("/tavrida/bus.db")


@pytest.mark.parametrize("form", ["table", "json", "yaml", "value"])
def test_secrets_are_masked(config: Tavrida, ini: Callable[..., Path], form: str) -> None:
    """Of a url all but the password is shown."""
    path = ini(
        "secret.conf",
        "[connection]\nurl = amqp://ann:s3cret@one/,amqp://ann:s3cret@two/\n"
        "password_command = print s3cret\n"
        "[outbox]\nurl = postgresql://bob@db/x?password=s3cret&sslmode=require\n"
        "[server]\nservices = echo\n[service:echo]\ntoken = s3cret\npeer = http://u:abc@peer/\n",
    )
    ended = config("show", "--config-file", path, "-f", form)
    assert 0 == ended.code
    assert "s3cret" not in ended.stdout + ended.stderr
    assert "amqp://ann:***@two/" in ended.stdout
    assert "http://u:***@peer/" in ended.stdout  # also of an option that is none
    assert "postgresql://bob@db/x?password=***&sslmode=require" in ended.stdout


def test_only_what_is_asked_for(config: Tavrida, ini: Callable[..., Path]) -> None:
    """Sections, options, and what is not left to the default."""
    place = ("--config-file", ini("one.conf", "[server]\nprefetch = 7\n"), "-f", "json")
    chosen = rows_of(config("show", "log", "server.prefetch", *place))
    assert {"log.level", "log.format", "server.prefetch"} <= chosen.keys()
    assert {"log", "server"} == {row["Section"] for row in chosen.values()}
    assert {"server.prefetch"} == rows_of(config("show", "--changed", *place)).keys()


def test_an_unknown_option_is_told_with_the_nearest(config: Tavrida) -> None:
    """Nothing is shown."""
    failed(config("show", "server.prefech"), 1, "'server.prefech'", "'server.prefetch'")


def test_faults_are_told_beside_what_could_be_read(
    config: Tavrida, ini: Callable[..., Path]
) -> None:
    """The default stands for a wrong value; the exit code is that of an error."""
    path = ini("one.conf", "[server]\nprefetch = lots\n")
    ended = config("show", "server.prefetch", "--config-file", path, "-f", "json")
    assert 1 == ended.code
    assert 0 == rows_of(ended)["server.prefetch"]["Value"]
    assert f"tavrida: {path}:2: [server] prefetch: should be a number, not 'lots'" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "files"),
    [
        ((), ["tavrida.conf", "tavrida-server.conf", "x.conf"]),
        (("--config-file", "f.conf"), ["x.conf", "f.conf"]),
        (("--config-file=f.conf",), ["x.conf", "f.conf"]),
        (("--config-dir", "d"), ["tavrida.conf", "tavrida-server.conf", "d.conf"]),
        (("--config-file", "f.conf", "--config-dir", "d"), ["f.conf", "d.conf"]),
        (("--config-dir", "d", "--config-file", "f.conf"), ["d.conf", "f.conf"]),
    ],
)
def test_the_order_of_files_is_that_of_oslo_config(
    ini: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: tuple[str, ...],
    files: list[str],
) -> None:
    """The one that it takes the value of is the last one in ours."""
    numbers = {}
    for number, name in enumerate(
        (
            ".tavrida/tavrida.conf",
            ".tavrida/tavrida-server.conf",
            ".tavrida/tavrida.conf.d/x.conf",
            "f.conf",
            "d/d.conf",
        )
    ):
        numbers[Path(name).name] = number
        ini(name, f"[server]\nprefetch = {number}\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    conf = options.parse(list(arguments), "tavrida-server")
    assert files == [path.name for path in conf.files]
    assert numbers[files[-1]] == conf.server.prefetch


def test_default_files_are_those_of_the_server(config: Tavrida, ini: Callable[..., Path]) -> None:
    """Where none is named, as tavrida-server finds them."""
    path = ini(".tavrida/tavrida-server.conf", "[server]\nprefetch = 9\n")
    ended = config("show", "--changed", "-f", "json")
    assert 9 == rows_of(ended)["server.prefetch"]["Value"]
    assert str(path) in ended.stderr
