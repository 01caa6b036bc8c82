# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""What nobody means to do and somebody does at night: odd words, files, variables and streams."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tavrida import masks, options, plugins
from tavrida.cli import main as tavrida
from tavrida.cli import server, streams
from tests import commands
from tests.cli.conftest import Site, failed
from tests.cli.test_every_command import MEEK
from tests.commands import SCRIPTS, Ended
from tests.packages import Packages
from tests.transports.bench import Bench
from tests.waiting import DEADLINE

# -- words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("dead", "purge", "--all", "--yes", "--url", ""), "--url"),
        (("dead", "purge", "--reason", "KeyError", "--service=", "--yes"), "--service"),
        (("call", "a.b", "--config-file", ""), "--config-file"),
        (("dead", "requeue", ""), "an argument"),
    ],
)
def test_an_empty_argument_is_refused(arguments: tuple[str, ...], name: str) -> None:
    """It is a variable that is not set: without it, the command would do something else."""
    ended = commands.run("tavrida", *arguments)
    assert (64, "") == (ended.code, ended.stdout)
    assert f"{name} is empty; is the variable set" in ended.stderr.splitlines()[-1]


@pytest.mark.parametrize("option", ["--log-file", "--verbose", "-q"])
def test_what_would_do_nothing_is_no_option(option: str) -> None:
    """Cliff itself has some that are about its own log."""
    failed(commands.run("tavrida", option, "status"), 64, f"no command {option!r}")


def test_options_may_stand_between_the_values() -> None:
    """As people add one more value at the end of a line."""
    ended = commands.run("tavrida", "call", "a.b", "n=1", "--timeout", "5", "more")
    failed(ended, 64, "'more' is no KEY=VALUE")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": NaN}', "NaN is no number that JSON can write"),
        ('{"a": -1e999}', "-1e999 is no number that JSON can write"),
        ('{"a": ' + 5000 * "[" + "1" + 5000 * "]" + "}", "it is nested too deep"),
    ],
)
def test_json_that_would_arrive_as_something_else_is_refused(text: str, says: str) -> None:
    """As a value it is a string, since it is no JSON."""
    failed(commands.run("tavrida", "call", "a.b", "--json", text), 64, "--json is no JSON", says)


def test_a_terminal_takes_nothing_of_strangers_for_its_own(site: Site) -> None:
    """Neither keys nor values of an answer, but lines; scripts get all as it is."""
    payload = json.dumps({"a": "\x1b[31mred\nnext", "\x1b[2Jk": 1})
    table = site.tavrida("call", "echo.echo", "--json", payload)
    assert 0 == table.code
    assert "\x1b" not in table.stdout
    assert {r"\x1b[31mred", "next", r"\x1b[2Jk"} <= set(table.stdout.split())
    raw = site.tavrida("call", "echo.echo", "--json", payload, "-f", "value", "-c", "a")
    assert "\x1b[31mred\nnext\n" == raw.stdout


def test_a_shell_runs_nothing_of_an_answer(site: Site) -> None:
    """``eval "$(tavrida call ... -f shell)"`` sets variables, whatever their names and values."""
    payload = json.dumps({"a": "$(echo ran) `echo ran`'\"\n", "b;echo ran;": 1, "1x": None})
    ended = site.tavrida("call", "echo.echo", "--json", payload, "-f", "shell")
    assert 0 == ended.code
    script = f'{ended.stdout}\nprintf %s "$a|$b_echo_ran_|$_1x"'
    shell = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert ("$(echo ran) `echo ran`'\"\n|1|None", "") == (shell.stdout, shell.stderr)


def test_a_row_of_values_is_a_line(site: Site) -> None:
    """Whatever a stranger calls a message."""
    with Bench(site.url) as bench:
        bench.drain("echo_queue.dead")
        bench.connect().put("echo_queue.dead", b"{}", message_id="one\ntwo\x1b", type="request")
        ended = site.tavrida("dead", "list", "-f", "value", "-c", "Id")
        bench.drain("echo_queue.dead")
    assert "one\\ntwo\\x1b\n" == ended.stdout


def test_what_is_said_is_one_line_without_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever said it first."""
    masks.learn(["hunter-22"])
    streams.say("tavrida", "ValueError:\n  \x1b[31mhunter-22 is\twrong; amqp://USER:PASSWORD@HOST")
    says = "tavrida: ValueError: \\x1b[31m*** is wrong; amqp://USER:PASSWORD@HOST\n"
    assert says == capsys.readouterr().err


# -- commands of strangers ------------------------------------------------------------------------

ODD = """
    import argparse

    from tavrida.cli.application import TavridaCommand

    five = 5


    class Raises(TavridaCommand):
        def take_action(self, args):
            raise KeyError("no\\x1b such")


    class Rest(TavridaCommand):
        def get_parser(self, prog_name):
            parser = super().get_parser(prog_name)
            parser.add_argument("rest", nargs=argparse.REMAINDER)
            return parser

        def take_action(self, args):
            print(*args.rest)
"""


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which a package with odd commands is installed."""
    folder = tmp_path_factory.mktemp("strangers")
    points = {
        "ghost": "acme_ghost:Ghost",
        "five": "acme_odd:five",
        "raises": "acme_odd:Raises",
        "rest": "acme_odd:Rest",
        "status": "acme_odd:Raises",
    }
    packages = Packages(folder)
    packages.add("acme-odd", {"tavrida.commands": points}, acme_odd=ODD)
    packages.remove()
    return {"PYTHONPATH": str(folder)}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ghost", "cannot be loaded: ModuleNotFoundError: No module named 'acme_ghost'"),
        ("five", "'five' is not derived from cliff.command.Command"),
        ("raises", r"KeyError: 'no\x1b such' (a mistake in the command: --debug shows where)"),
        ("status", "give a command 'status' each: uninstall all but one"),
    ],
)
def test_a_command_that_cannot_work_is_one_line(
    strangers: dict[str, str], name: str, says: str
) -> None:
    """And none of a stranger's takes the place of ours."""
    failed(commands.run("tavrida", name, environment=strangers), 1, says)


def test_a_command_may_take_all_the_rest_as_it_is(strangers: dict[str, str]) -> None:
    """Options among it too."""
    ended = commands.run("tavrida", "rest", "a", "--b", "c", environment=strangers)
    assert Ended(0, "a --b c\n", "") == ended


# -- files ---------------------------------------------------------------------------------------


Check = Callable[..., Ended]


@pytest.fixture
def check(tmp_path: Path, packages: dict[str, str]) -> Check:
    """Run ``tavrida config check`` with places below the folder of the test."""

    def run(*places: str, is_meek: bool = False, **variables: str) -> Ended:
        paths = [word if word.startswith("-") else str(tmp_path / word) for word in places]
        words = [str(SCRIPTS / "tavrida"), "config", "check", *paths]
        meek = [sys.executable, "-c", MEEK] if is_meek else []
        return commands.run(*meek, *words, environment=packages | variables)

    return run


def test_a_file_that_is_given_as_a_folder_is_told(tmp_path: Path, check: Check) -> None:
    """oslo.config finds no files in it, and goes on with defaults."""
    (tmp_path / "a.conf").touch()
    failed(check("--config-dir", "a.conf"), 1, f"{tmp_path}/a.conf is no folder: --config-file")
    failed(check("--config-dir", "none"), 1, f"there is no folder {tmp_path}/none")


@pytest.mark.parametrize("places", [("--config-file", "d"), ("--config-dir", ".")])
def test_a_folder_that_is_given_as_a_file_is_told(
    tmp_path: Path, check: Check, places: tuple[str, ...]
) -> None:
    """Or has the name of one."""
    (tmp_path / "d").mkdir()
    (tmp_path / "sub.conf").mkdir()
    failed(check(*places), 1, "is a folder, and no file: --config-dir takes a folder")


def test_a_folder_that_may_not_be_read_is_told(tmp_path: Path, check: Check) -> None:
    """The settings in it would be missing, without a word."""
    folder = tmp_path / "conf.d"
    folder.mkdir()
    (folder / "a.conf").write_text("[server]\nservices = echo\n")
    folder.chmod(0)
    try:
        ended = check("--config-dir", "conf.d", is_meek=True)
    finally:
        folder.chmod(0o755)
    failed(ended, 1, f"may not read {folder}: check its permissions")


@pytest.mark.parametrize("places", [("--config-file", "a.conf"), ("--config-dir", ".")])
def test_a_file_in_another_encoding_is_told_with_its_line(
    tmp_path: Path, check: Check, places: tuple[str, ...]
) -> None:
    """Also one of a folder."""
    (tmp_path / "a.conf").write_bytes(b"[server]\n# caf\xe9\nservices = echo\n")
    failed(check(*places), 1, f"{tmp_path}/a.conf:2 is not UTF-8")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "[server]\nservices = echo\ndelivery_limit = 3000000000\n",
            ":3: [server] delivery_limit=",
        ),
        ("[server]\nservices = echo\ngraceful_timeout = nan\n", ":3: [server] graceful_timeout="),
        ("[server]\nservices = echo\n[connection]\nurl = x\n", ":4: [connection] url: "),
        ("[server]\nservices = echo\n[LOG]\nlevel = INFO\n", ":3: section [LOG] is unknown (did"),
    ],
)
def test_a_fault_is_told_once_and_with_its_line(
    tmp_path: Path, check: Check, text: str, says: str
) -> None:
    """One wrong value does not make others so: the services are named."""
    (tmp_path / "a.conf").write_text(text)
    failed(check("--config-file", "a.conf"), 1, f"{tmp_path}/a.conf{says}")


@pytest.mark.parametrize(
    ("text", "variables", "says"),
    [
        (
            "[connection]\nurl = amqp://rabbit/\n",
            {"OS_CONNECTION__URL": ""},
            "OS_CONNECTION__URL: [connection] url is empty: name the broker",
        ),
        ("[server]\nprefetch =\n", {}, "a.conf:2: [server] prefetch is empty: give it a value"),
        ("", {"OS_SERVER__WORKERS": ""}, "OS_SERVER__WORKERS: [server] workers is empty"),
        ("", {"OS_SERVER__DESCRIBE": ""}, "[server] describe: Unexpected boolean value ''"),
    ],
)
def test_an_empty_value_is_told(
    tmp_path: Path, check: Check, text: str, variables: dict[str, str], says: str
) -> None:
    """A variable that is not set does not lead to the embedded bus, which nobody else is on."""
    (tmp_path / "a.conf").write_text(text)
    failed(check("--client", "--config-file", "a.conf", **variables), 1, says)


def test_a_variable_in_small_letters_is_told(check: Check) -> None:
    """It would be read by nobody."""
    ended = check(os_server__services="echo", OS_SERVER__SERVICES="echo")
    failed(ended, 1, "os_server__services is not read: write it OS_SERVER__SERVICES")


def test_what_is_set_twice_in_a_file_is_shown(tmp_path: Path) -> None:
    """Also in two sections of the same name; the last one counts."""
    path = tmp_path / "a.conf"
    path.write_text("[server]\nprefetch = 1\nprefetch = 2\n[log]\n[server]\nprefetch = 3\n")
    words = ("server.prefetch", "--config-file", path, "-f", "value", "-c", "Value", "-c", "From")
    ended = commands.run("tavrida", "config", "show", *words)
    assert f"3 {path}:6, over {path}:3, {path}:2\n" == ended.stdout


def test_bare_values_are_as_an_ini_has_them() -> None:
    """A list is not Python's."""
    ended = commands.run("tavrida", "config", "show", "server.accept", "-f", "value", "-c", "Value")
    assert "json, msgpack\n" == ended.stdout


def test_what_an_ini_names_is_no_part_of_a_log(tmp_path: Path, packages: dict[str, str]) -> None:
    """In what would run, in what does, and in what was read again."""
    ini = tmp_path / "a.conf"
    good = f"[connection]\nurl = sqlite://{tmp_path}/bus.db\n[service:echo]\nqueue = q\x1b[1m\n"
    good += "[server]\nservices = echo\n"
    ini.write_text(good)
    place = ("--config-file", ini)
    ended = commands.run("tavrida-server", "--check", *place, environment=packages)
    assert r"queue q\x1b[1m (quorum)" in ended.stdout
    with commands.serve(*place, environment=packages) as running:
        ini.write_text(f"{good}odd\x1b = 1\n")
        running.process.send_signal(signal.SIGHUP)
        assert r"odd\x1b is unknown" in running.line("Not reloaded, all stays as it was: ")
        assert 0 == running.end()
        assert r"(queue q\x1b[1m, exchange echo)" in running.output[0]
        assert "\x1b" not in "".join(running.output)


# -- streams -------------------------------------------------------------------------------------


def closed(*numbers: int) -> Callable[[], None]:
    """Return what closes streams, as ``>&-`` does in a shell."""

    def close() -> None:
        for number in numbers:
            os.close(number)

    return close


def run(words: list[Any], **how: Any) -> tuple[int, str, str]:
    """Run a command with streams of its own; return its exit code and what can be read."""
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | how
    process = subprocess.Popen([SCRIPTS / words[0], *words[1:]], text=True, **how)
    output, errors = process.communicate(timeout=DEADLINE)
    return process.returncode, output or "", errors or ""


@pytest.mark.parametrize("numbers", [(1,), (2,), (0, 1, 2)])
def test_a_closed_stream_is_as_good_as_none(site: Site, numbers: tuple[int, ...]) -> None:
    """What is opened next takes its place, and is written to: a database, for example."""
    words = ["tavrida", "call", "echo.add", "a=1", *site.place]
    environment = os.environ | site.environment
    code, output, errors = run(words, env=environment, preexec_fn=closed(*numbers))
    assert (0, "") == (code, errors)
    assert ("sum" in output) == (1 not in numbers)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_an_answer_can_be_written_in_any_encoding(site: Site, encoding: str) -> None:
    """The call is done: that its answer cannot be shown is no reason to say that it failed."""
    words = ["tavrida", "call", "echo.echo", "a=Öl €", "-f", "value", *site.place]
    environment = os.environ | site.environment | {"PYTHONIOENCODING": encoding}
    code, output, errors = run(words, env=environment, encoding=encoding)
    assert (0, "") == (code, errors)
    assert output == "Öl €\n".encode(encoding, "backslashreplace").decode(encoding)


def test_a_full_stderr_hides_no_result() -> None:
    """Notes are lost there, and nothing else."""
    with Path("/dev/full").open("w") as full:
        code, output, _ = run(["tavrida", "config", "show", "log.level"], stderr=full)
    assert 0 == code
    assert "INFO" in output


@pytest.mark.parametrize(
    ("stdout", "code", "says"),
    [
        ("/dev/full", 1, "tavrida-server: the result cannot be written: No space left"),
        ("", 141, ""),
    ],
)
def test_a_check_that_nobody_reads_ends_in_one_line(
    tmp_path: Path, packages: dict[str, str], stdout: str, code: int, says: str
) -> None:
    """As ``tavrida-server --check | head -1`` does."""
    ini = tmp_path / "a.conf"
    ini.write_text("[server]\nservices = echo\n")
    if stdout:
        out = os.open(stdout, os.O_WRONLY)
    else:
        reader, out = os.pipe()
        os.close(reader)
    words = ["tavrida-server", "--check", "--config-file", ini]
    found, _, errors = run(words, stdout=out, env=os.environ | packages)
    os.close(out)
    assert code == found
    assert errors.startswith(says)
    assert len(says.splitlines()) == len(errors.splitlines())


def test_ctrl_c_while_it_is_loaded_ends_it_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anybody is there to take it."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(plugins, "version", interrupted)
    assert 130 == tavrida.main(["status"])
    monkeypatch.setattr(options, "parse", interrupted)
    assert 130 == server.main([])
