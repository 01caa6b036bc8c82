# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Every command as its user has it, on each transport: a good run, and all that is bad for it.

A command that is registered has to be in ``LINES``; what can be bad for it follows from its class:
whether it reads an ini, and whether it connects.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import connect
from typing import Any

import pytest

from tavrida import plugins
from tavrida.cli.application import Configured, Connected
from tavrida.outbox import table
from tests import commands
from tests.cli.conftest import VHOST, Site
from tests.commands import SCRIPTS, Ended
from tests.processes import Program
from tests.transports.bench import Bench
from tests.waiting import DEADLINE

CLASSES: dict[str, type] = {
    point.name: point.load() for point in plugins.installed(plugins.COMMANDS)
}

STRANGE = "no plugin 'ecko' in tavrida.controllers (did you mean 'echo'?)"
NOBODY = "nobody serves 'nobody': exchange 'nobody' (routing key 'nobody."


@dataclass(frozen=True)
class Stranger:
    """How a command ends that is asked for a service which is not there."""

    words: str
    code: int
    #: On stderr where that is all; ``prints`` is on stdout.
    says: str = ""
    prints: str = ""


@dataclass(frozen=True)
class Line:
    """What a command is given, and what it does then."""

    words: str
    prints: str
    #: What a service is named by, that is not there; None for what has nothing to do with services.
    stranger: Stranger | None
    says: str = ""
    #: How many lines it says where it says something.
    notes: int = 1
    #: What it waits for, and the command that ends that; or the signal.
    until: str = ""
    then: str | signal.Signals = ""
    #: It connects to nothing, wherever it might.
    is_alone: bool = False
    #: The user needs no more rights than to connect.
    needs_rights: bool = True
    is_sending: bool = False
    #: In a run with a wrong ini it shows all the same what there is.
    shows_all: bool = False


#: By the name of the plugin. The queue of dead letters has one, whose id is "letter-1".
LINES = {
    "call": Line(
        "echo.add a=1",
        "| sum   | 2     |",
        Stranger("nobody.add a=1", 1, NOBODY),
        is_sending=True,
    ),
    "cast": Line("echo.echo n=1", "", Stranger("nobody.echo n=1", 1, NOBODY), is_sending=True),
    "completion": Line("bash", "complete -F _tavrida tavrida", None),
    "config_check": Line(
        "",
        "nothing is wrong in {ini}; services: echo",
        Stranger("--config-file {strange}", 1, STRANGE),
    ),
    "config_show": Line(
        "server.queue_type -f json",
        '"Value": "classic"',
        Stranger(
            "server.services --config-file {strange} -f value", 1, STRANGE, prints="server services"
        ),
        says="files, of which the last one wins: {ini}",
        is_alone=True,
        shows_all=True,
    ),
    "dead_list": Line(
        "-f json",
        '"Id": "letter-1"',
        Stranger("--service ecko", 1, "no service 'ecko' (did you mean 'echo'?)"),
        says="1 of 1 dead letters in echo_queue.dead",
    ),
    "dead_purge": Line(
        "--all --yes",
        "1 of 1 dead letters deleted",
        Stranger("--service ecko --yes", 1, "no service 'ecko' (did you mean 'echo'?)"),
    ),
    "dead_requeue": Line(
        "--all",
        "1 of 1 dead letters sent back",
        Stranger("--service ecko", 1, "no service 'ecko' (did you mean 'echo'?)"),
    ),
    "dead_show": Line(
        "letter -f value -c reason",
        "ValueError: on purpose",
        Stranger("letter --queue ecko.dead", 1, "there is no queue 'ecko.dead'"),
    ),
    "listen": Line(
        "echo.news --count 1 -f value",
        '{"n": 1}',
        Stranger("nobody.news --timeout 0.1", 2, "no notifications of nobody.news in 0.1 s"),
        says="listening to echo.news at exchange 'echo_news'; Ctrl-C ends it",
        until="listening to ",
        then="publish echo.news n=1",
    ),
    "outbox_relay": Line(
        "",
        "",
        None,
        says="INFO tavrida.cli.commands.outbox: The relay is publishing.",
        until="The relay is publishing.",
        then=signal.SIGTERM,
        needs_rights=False,
    ),
    "outbox_sql": Line("postgresql", "BIGINT GENERATED ALWAYS AS IDENTITY", None),
    "plugin_list": Line("commands -f value", "tavrida.commands call tavrida.cli.", None),
    "publish": Line("echo.news n=1", "", Stranger("nobody.news n=1", 0), is_sending=True),
    "service_list": Line(
        "echo -f json",
        '"State": "running"',
        Stranger("nobody -f value", 4, prints="nobody never started"),
    ),
    "service_show": Line("echo -f value -c name", "echo", Stranger("nobody", 1, NOBODY)),
    "status": Line(
        "-f value -c Queue -c Services -c State",
        "echo_queue echo ok",
        Stranger("ecko", 1, "no service 'ecko' (did you mean 'echo'?)"),
        says="the broker is reachable: ",
        notes=2,
        needs_rights=False,
    ),
    "topology_apply": Line(
        "",
        "done: everything is as the services need it",
        Stranger("--config-file {strange}", 1, STRANGE),
    ),
    "topology_plan": Line(
        "-f value -c Name -c Action",
        "echo_queue keep",
        Stranger("--config-file {strange}", 1, STRANGE),
    ),
    "topology_show": Line(
        "-f value -c Kind -c Name",
        "queue echo_queue.dead",
        Stranger("--config-file {strange}", 1, STRANGE),
        is_alone=True,
    ),
}


def test_every_command_is_here() -> None:
    """A new one fails until it says what it does, and what it does when nothing is as it should."""
    assert CLASSES.keys() == LINES.keys()


def named(base: type, has: Callable[[Line], bool] = lambda line: True) -> list[str]:
    """Return the commands of a class whose lines have something."""
    return [name for name, line in LINES.items() if issubclass(CLASSES[name], base) and has(line)]


@dataclass(frozen=True)
class Place:
    """The inis for one transport: of the running service, and of all that can be wrong there."""

    site: Site
    folder: Path
    #: What is said where there is no broker, and where the user may not.
    missing: str
    denied: str

    def ini(self, name: str) -> Path:
        """Return the path of an ini: good, strange, nowhere or forbidden."""
        return self.folder / f"{name}.conf"

    def words(self, name: str, words: str, ini: str = "good") -> list[str | Path]:
        """Return a command line."""
        given = [word.format(strange=self.ini("strange")) for word in words.split()]
        return [*beginning(name, self.ini(ini)), *given]

    def run(self, name: str, words: str, ini: str = "good") -> Ended:
        """Run a command to its end."""
        return commands.run(*self.words(name, words, ini), environment=self.site.environment)

    @contextmanager
    def letter(self) -> Iterator[None]:
        """Have one dead letter, and no other."""
        with Bench(self.site.url) as bench:
            bench.drain("echo_queue.dead")
            bench.connect().put(
                "echo_queue.dead",
                b"{}",
                message_id="letter-1",
                type="request",
                headers={
                    "destination": "echo.echo",
                    "dead_reason": "ValueError: on purpose",
                    "dead_queue": "echo_queue",
                },
            )
            yield
            bench.drain("echo_queue.dead")


@pytest.fixture(scope="module")
def place(request: pytest.FixtureRequest, site: Site, tmp_path_factory: Any) -> Place:
    """Where the service runs, and the same with everything that can be wrong there."""
    folder = tmp_path_factory.mktemp("place")
    with closing(connect(folder / "orders.db")) as database:
        database.executescript(";".join(table.statements("sqlite")))
    if site.url.startswith("amqp"):
        node = request.getfixturevalue("rabbitmq")
        node.add_user("meek", "password")
        node.permit("meek", VHOST, configure="^$", write="^$", read="^$")
        nowhere = "amqp://guest:guest@127.0.0.1:1/"
        forbidden = node.url(VHOST, user="meek", password="password")
        missing = "cannot reach RabbitMQ at 127.0.0.1:1: connection refused. Is RabbitMQ running"
        denied = "Who administers the broker gives rights, with 'rabbitmqctl set_permissions'"
    else:
        nowhere = f"sqlite://{folder}/no/bus.db"
        forbidden = f"sqlite://{folder}/locked.db"
        (folder / "locked.db").touch(0o000)
        missing = f"there is no folder {folder}/no for the database: make it, or change the url"
        denied = "this user has to be allowed to read and write it, and to write to its folder"
    good = site.config.read_text() + f"[outbox]\nurl = sqlite://{folder}/orders.db\n"
    place = Place(site, folder, missing, denied)
    place.ini("good").write_text(good)
    place.ini("strange").write_text("[server]\nservices = ecko\n")
    place.ini("nowhere").write_text(good.replace(site.url, nowhere))
    place.ini("forbidden").write_text(good.replace(site.url, forbidden))
    return place


#: Gives up root's right to any file (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH), and runs a command.
MEEK = """
import ctypes, os, sys
for capability in (1, 2):
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def beginning(name: str, ini: Path) -> list[str | Path]:
    """Return the beginning of a command line; only what reads an ini is given one."""
    is_configured = issubclass(CLASSES[name], Configured)
    return [
        SCRIPTS / "tavrida",
        *name.split("_"),
        *([f"--config-file={ini}"] if is_configured else []),
    ]


def check(ended: Ended, code: int, says: str, prints: str = "", notes: int = 1) -> None:
    """Check the exit code, that stdout has what it should, and stderr these lines or nothing."""
    assert code == ended.code, ended
    assert prints in ended.stdout, ended
    assert bool(prints) == bool(ended.stdout), ended
    lines = ended.stderr.splitlines()
    assert len(lines) == (notes if says else 0), ended
    assert says in ended.stderr, ended
    assert all(line.startswith("tavrida: ") for line in lines), ended


# -- with the running service --------------------------------------------------------------------


@pytest.mark.parametrize("name", named(object, lambda line: not line.until))
def test_a_good_run(place: Place, name: str) -> None:
    """Exit code 0; the result on stdout, and what is said beside it on stderr."""
    line, ini = LINES[name], place.ini("good")
    with place.letter() if name.startswith("dead") else nullcontext():
        ended = place.run(name, line.words)
    check(ended, 0, line.says.format(ini=ini), line.prints.format(ini=ini), line.notes)


@pytest.mark.parametrize("name", named(object, lambda line: bool(line.until)))
def test_a_good_run_of_what_waits(place: Place, name: str) -> None:
    """Until what it waits for has come, or until SIGTERM."""
    line = LINES[name]
    with Program(place.words(name, line.words), environment=place.site.environment) as program:
        assert line.says in program.line(line.until)
        if isinstance(line.then, signal.Signals):
            program.process.send_signal(line.then)
        else:
            command, _, words = line.then.partition(" ")
            assert 0 == place.run(command, words).code
        assert 0 == program.process.wait(DEADLINE)
        assert line.prints in "\n".join(program.rest())


@pytest.mark.parametrize("name", named(object, lambda line: line.stranger is not None))
def test_an_unknown_service(place: Place, name: str) -> None:
    """What is named is not there, or not installed."""
    stranger = LINES[name].stranger
    assert stranger is not None
    ended = place.run(name, stranger.words)
    assert stranger.code == ended.code, ended
    assert stranger.prints in ended.stdout
    assert bool(stranger.prints) == bool(ended.stdout)
    told = [line for line in ended.stderr.splitlines() if stranger.says in line]
    assert bool(stranger.says) == len(told), ended
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("name", named(Connected, lambda line: not line.is_alone))
def test_no_broker(place: Place, name: str) -> None:
    """Exit code 3, at once, with what was looked for."""
    check(place.run(name, LINES[name].words, "nowhere"), 3, place.missing)


@pytest.mark.parametrize("name", named(Connected, lambda line: not line.is_alone))
def test_no_permission(place: Place, name: str) -> None:
    """Exit code 3, and who can give what it needs."""
    line = LINES[name]
    words = place.words(name, line.words, "forbidden")
    if not place.site.url.startswith("amqp"):
        meek = (sys.executable, "-c", MEEK, *words)
        ended = commands.run(*meek, environment=place.site.environment)
    else:
        with place.letter():  # which this user may not look at
            ended = commands.run(*words, environment=place.site.environment)
        if not line.needs_rights:
            assert 4 == ended.code, ended
            return
    check(ended, 3, place.denied)


def test_a_relay_without_a_broker_waits_or_ends(place: Place) -> None:
    """It waits for one that may come, and ends where somebody has to change something."""
    words = place.words("outbox_relay", "", "nowhere")
    if not place.site.url.startswith("amqp"):
        check(place.run("outbox_relay", "", "nowhere"), 3, place.missing)
        return
    with Program(words) as relay:
        assert place.missing in relay.line("WARNING")
        relay.line("The relay is publishing.")
        assert 0 == relay.end()


# -- without any ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LINES)
def test_an_unknown_option(tmp_path: Path, name: str) -> None:
    """Exit code 64, the usage, and which one it was."""
    ended = commands.run(
        *beginning(name, tmp_path / "no.conf"), *LINES[name].words.split(), "--bogus"
    )
    command = f"tavrida {name.replace('_', ' ')}"
    assert (64, "") == (ended.code, ended.stdout), ended
    first, *_, last = ended.stderr.splitlines()
    assert first.startswith(f"usage: {command} ")
    assert f"{command}: unrecognized arguments: --bogus" == last


@pytest.mark.parametrize("name", named(Configured))
def test_a_missing_ini(tmp_path: Path, name: str) -> None:
    """Exit code 1, and its path."""
    path = tmp_path / "no.conf"
    ended = commands.run(*beginning(name, path), *words_of(name))
    check(ended, 1, f"cannot read {path}: is the path right?")


@pytest.mark.parametrize("name", named(Configured))
def test_a_wrong_ini(tmp_path: Path, name: str) -> None:
    """Exit code 1, and file, line, option and what it should be."""
    path = tmp_path / "bad.conf"
    path.write_text(f"[server]\nconcurrency = many\n[connection]\nurl = sqlite://{tmp_path}/b.db\n")
    ended = commands.run(*beginning(name, path), *words_of(name))
    says = f"tavrida: {path}:2: [server] concurrency: should be a number, not 'many'\n"
    assert 1 == ended.code, ended
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr
    if not LINES[name].shows_all:
        assert "" == ended.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--json {", "--json is no JSON: Expecting property name enclosed in double quotes"),
        ("--json [1]", '--json is no object: write it as {"key": ...}'),
        ("n", "'n' is no KEY=VALUE"),
    ],
)
@pytest.mark.parametrize("name", named(object, lambda line: line.is_sending))
def test_bad_json(name: str, words: str, says: str) -> None:
    """Exit code 64, before anything connects."""
    check(commands.run(SCRIPTS / "tavrida", name, "echo.echo", *words.split()), 64, says)


def words_of(name: str) -> list[str]:
    """Return what a command is given in a good run."""
    return LINES[name].words.split()
