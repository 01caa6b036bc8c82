# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""``tavrida dead`` as people and scripts use it: what it prints, what it asks, its exit codes.

0 done, 1 an error or something stays, 3 no broker, 64 wrong usage. What it does to the queues of
each transport is in tests/broker/test_dead.py.
"""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tavrida import plugins, topology
from tavrida.cli import application, progress
from tests import commands
from tests.commands import Ended
from tests.transports.bench import Bench, Connection, new_name
from tests.waiting import DEADLINE

Tavrida = Callable[..., Ended]

DEAD = "shop_queue.dead"
INI = """[server]
services = shop, bar
[service:shop]
controller = not_installed
queue = shop_queue
price = 7
"""


@pytest.fixture
def url() -> str:
    """A bus in memory, of the test's own."""
    return f"sqlite://?memory={new_name('dead').replace('.', '-')}"


@pytest.fixture
def connection(url: str) -> Iterator[Connection]:
    """Keeps the bus, on which there is the dead-letter queue of a shop."""
    with Bench(url) as bench:
        connection = bench.connect()
        connection.declare(topology.Queue("shop_queue", "classic"), topology.Queue(DEAD, "classic"))
        yield connection


@pytest.fixture
def ini(tmp_path: Path) -> Path:
    """The ini of two services, of which one ran."""
    path = tmp_path / "shop.conf"
    path.write_text(INI)
    return path


@pytest.fixture
def tavrida(
    url: str, connection: Connection, capfd: pytest.CaptureFixture[str], ini: Path
) -> Tavrida:
    """Run ``tavrida dead`` in this process with the ini."""

    def run(*arguments: str, place: tuple[str | Path, ...] = ("--config-file", ini)) -> Ended:
        capfd.readouterr()
        words = ["dead", *arguments, *map(str, place), "--url", url]
        try:
            code = application.run(words, plugins.version())
        except SystemExit as end:  # of argparse, which has printed the usage
            code = int(end.code or 0)
        return Ended(code, *capfd.readouterr())

    return run


def bury(
    connection: Connection,
    name: str,
    *,
    ago: float = 0,
    kind: str = "request",
    app_id: str = "",
    **headers: object,
) -> None:
    """Put a dead letter with that message id."""
    died = int(time.time() - ago)
    known = {
        **({"destination": "shop.buy"} if kind == "request" else {}),
        "dead_reason": "ValueError: no such article",
        "dead_error": "ValueError",
        "dead_queue": "shop_queue",
        "dead_exchange": "shop",
        "dead_routing_key": "shop.buy",
        "dead_attempts": 5,
        "dead_at": died,
    }
    connection.put(
        DEAD, b'{"n": 1}', message_id=name, type=kind, app_id=app_id, headers=known | headers
    )


def failed(ended: Ended, code: int, *words: str) -> None:
    """Check that a command failed with one line on stderr and nothing on stdout."""
    assert (code, "") == (ended.code, ended.stdout), ended
    (line,) = ended.stderr.splitlines()
    assert line.startswith("tavrida: ")
    for word in words:
        assert word in line


def ids(ended: Ended) -> list[str]:
    """Return the ids that ``list -f json`` printed."""
    assert 0 == ended.code, ended
    return [row["Id"] for row in json.loads(ended.stdout)]


# -- list ----------------------------------------------------------------------------------------


def test_the_list_is_a_table_for_people(tavrida: Tavrida, connection: Connection) -> None:
    """Ids are as short as they can be, times and sizes rounded, long reasons cut."""
    bury(connection, "abcdefgh0000", ago=200, dead_reason="ValueError: " + 30 * "no\n such ")
    bury(connection, "abcdefgh0001", ago=90000)
    ended = tavrida("list")
    assert 0 == ended.code
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in ended.stdout.splitlines()
        if "|" in line
    ]
    reason = ("ValueError: " + 30 * "no such ")[:57] + "..."
    assert [
        ["Id", "Age", "Queue", "Entry point", "Kind", "Reason", "Attempts", "Size"],
        [
            "abcdefgh0001",
            "1d",
            DEAD,
            "shop.buy",
            "request",
            "ValueError: no such article",
            "5",
            "8 B",
        ],
        ["abcdefgh0000", "3m", DEAD, "shop.buy", "request", reason, "5", "8 B"],
    ] == rows
    said, missing = sorted(ended.stderr.splitlines())
    assert f"tavrida: 2 of 2 dead letters in {DEAD}" == said
    assert "there is no queue 'bar.dead' yet" in missing


def test_a_short_id_is_unambiguous_among_those_that_are_not_listed_too(
    tavrida: Tavrida, connection: Connection
) -> None:
    """So that it can be given to the other commands."""
    bury(connection, "abcdefgh0000")
    bury(connection, "abcdefgh0001", dead_reason="KeyError: 'x'", dead_error="KeyError")
    assert "| abcdefgh0001 |" in tavrida("list", "--reason", "KeyError").stdout


def test_the_list_is_complete_for_programs(tavrida: Tavrida, connection: Connection) -> None:
    """Seconds, bytes and whole texts, in each format."""
    bury(connection, "abcdefghijkl", ago=200, dead_reason="ValueError: " + 100 * "x")
    (row,) = json.loads(tavrida("list", "-f", "json").stdout)
    assert 200 <= row.pop("Age") < 200 + DEADLINE
    assert {
        "Id": "abcdefghijkl",
        "Queue": DEAD,
        "Entry point": "shop.buy",
        "Kind": "request",
        "Reason": "ValueError: " + 100 * "x",
        "Attempts": 5,
        "Size": 8,
    } == row
    (line,) = csv.DictReader(io.StringIO(tavrida("list", "-f", "csv").stdout))
    assert ("abcdefghijkl", "5") == (line["Id"], line["Attempts"])
    assert "abcdefghijkl 8\n" == tavrida("list", "-f", "value", "-c", "Id", "-c", "Size").stdout
    assert "Entry point: shop.buy" in tavrida("list", "-f", "yaml").stdout


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ((), ["old", "key", "event", "odd", "new"]),
        (("--older-than", "2h"), ["old"]),
        (("--newer-than", "30m"), ["new"]),
        (("--older-than", "5m", "--newer-than", "2h"), ["key", "event", "odd"]),
        (("--reason", "KeyError"), ["key"]),
        (("--reason", "keyerror"), []),
        (("--reason", "Error"), []),
        (("--reason", "SUCH article"), ["old", "event", "odd", "new"]),
        (("--reason", "ValueError: no such article"), ["old", "event", "odd", "new"]),
        (("--method", "buy"), ["old", "key", "new"]),
        (("--method", "world.buy"), []),
        (("--method", "world.event"), ["event"]),
        (("--service", "shop"), ["old", "key", "event", "new"]),
        (("--limit", "2"), ["old", "key"]),
        (("--id", "k", "--id", "new"), ["key", "new"]),
        (("--id", "k", "--reason", "ValueError"), []),
    ],
)
def test_letters_are_selected_by_what_is_known_of_them(
    tavrida: Tavrida, connection: Connection, selection: tuple[str, ...], expected: list[str]
) -> None:
    """All that is given has to hold; the newest is the last."""
    bury(connection, "old", ago=3 * 3600)
    bury(connection, "key", ago=3600, dead_reason="KeyError: 'x'", dead_error="KeyError")
    # A notification does not say which service should have handled it; its queue does.
    bury(connection, "event", ago=3500, kind="notification", app_id="world.event")
    bury(connection, "odd", ago=3400, destination="pub.drink")
    bury(connection, "new")
    assert expected == ids(tavrida("list", "-f", "json", *selection))


def test_an_empty_list_is_a_list(tavrida: Tavrida) -> None:
    """A script that reads JSON gets JSON."""
    ended = tavrida("list", "-f", "json", place=("--queue", DEAD))
    assert Ended(0, "[]\n", f"tavrida: 0 of 0 dead letters in {DEAD}\n") == ended


def test_headers_of_any_type_do_not_break_the_list(
    tavrida: Tavrida, connection: Connection
) -> None:
    """Whoever put it there, it has to be seen to be got rid of."""
    names = [
        "destination",
        "deadline",
        "x-death",
        *("dead_" + name for name in ("reason", "error", "at", "first_at", "attempts", "queue")),
        *("dead_exchange", "dead_routing_key", "dead_traceback", "retry_exchange"),
    ]
    strange = (None, 7, -(2**63), "x", [{"queue": 1, "time": "x"}], {"a": [1]}, b"\xff", True)
    for number, value in enumerate(strange):
        headers = dict.fromkeys(names, value)
        connection.put(DEAD, b"\xff", message_id=f"odd{number}", headers=headers)
    found = ids(tavrida("list", "-f", "json", place=("--queue", DEAD)))
    assert sorted(found) == [f"odd{number}" for number in range(len(strange))]
    for name in found:
        shown = tavrida("show", name, "-f", "json", place=("--queue", DEAD))
        assert (0, "") == (shown.code, shown.stderr)
        assert name == json.loads(shown.stdout)["id"]
        assert 0 == tavrida("show", name, place=("--queue", DEAD)).code


# -- show ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content_type", "body", "payload"),
    [
        ("application/json", b'{"n": 1}', {"n": 1}),
        ("", b'{"context": {"a": 1}, "payload": {"n": 1}}', {"n": 1}),
        ("application/x-msgpack", b"\x81\xa1n\xc4\x02\xff\x00", {"n": "/wA="}),
        ("text/plain", "schön".encode(), "schön"),
        ("application/json", b'{"n": \n', '{"n": \n'),
        ("application/json", b"\xff\xfe\x00\x01\x02", "fffe0001 02"),
        ("application/json", b"", {}),
    ],
)
def test_a_body_is_shown_as_what_it_is(
    tavrida: Tavrida, connection: Connection, content_type: str, body: bytes, payload: object
) -> None:
    """Decoded, or as text, or as hexadecimal digits with the reason."""
    connection.put(DEAD, body, message_id="m", content_type=content_type)
    shown = json.loads(tavrida("show", "m", "-f", "json", place=("--queue", DEAD)).stdout)
    assert payload == shown["payload"]
    assert isinstance(payload, str) == ("undecodable" in shown)


def test_a_letter_is_shown_to_people(tavrida: Tavrida, connection: Connection) -> None:
    """Objects have a line for each key; what is endless is cut."""
    bury(connection, "m1", dead_traceback="\n".join(f"line {n}" for n in range(99)))
    ended = tavrida("show", "m1", place=("--queue", DEAD))
    assert (0, "") == (ended.code, ended.stderr)
    assert any('|   "n": 1 ' in line for line in ended.stdout.splitlines())
    assert "... 39 more lines: -f json" in ended.stdout
    assert "line 98" not in ended.stdout


# -- where and which -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("list", "--service", "shp"), 1, ("no service 'shp'", "did you mean 'shop'?")),
        (("list", "--service", "bar"), 1, ("there is no queue 'bar.dead'", "ever run")),
        (("list", "--queue", "shop_queue.daed"), 1, ("there is no queue", f"did you mean '{DEAD}")),
        (("list", "--id", "zz"), 1, ("no dead letter has the id 'zz'",)),
        (("show", "m"), 1, ("id 'm' is ambiguous, 2 dead letters begin so (m1, m2)",)),
        (("requeue", "m1", "x"), 1, ("no dead letter has the id 'x'",)),
        (("requeue",), 64, ("say which: IDs",)),
        (("purge", "--limit", "1", "--yes"), 64, ("say which: IDs", "or --all; --limit cuts")),
        (("purge", "m1", "--all", "--yes"), 64, ("--all",)),
        (("purge", "--all"), 64, ("nobody is there to ask", "--yes")),
    ],
)
def test_what_cannot_be_meant_is_one_line(
    tavrida: Tavrida,
    connection: Connection,
    arguments: tuple[str, ...],
    code: int,
    words: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And nothing is changed."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    bury(connection, "m1")
    bury(connection, "m2")
    ended = tavrida(*arguments)
    lines = [
        line for line in ended.stderr.splitlines() if "there is no queue 'bar.dead' yet" not in line
    ]
    failed(Ended(ended.code, ended.stdout, "\n".join(lines)), code, *words)
    assert 2 == len(connection.bench.drain(DEAD))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("list", "--older-than", "soon"), "'soon' is no time: write a number and s, m, h, d or w"),
        (("list", "--newer-than", "-5m"), "--newer-than"),
        (("list", "--limit", "0"), "'0' should be a number from 1"),
        (("show",), "ID"),
        (("list", "--bogus"), "--bogus"),
    ],
)
def test_wrong_arguments_have_exit_code_64(
    tavrida: Tavrida, arguments: tuple[str, ...], words: str
) -> None:
    """The usage is shown, and what is wrong."""
    ended = tavrida(*arguments)
    assert (64, "") == (ended.code, ended.stdout)
    assert "usage: " in ended.stderr
    assert words in ended.stderr


@pytest.mark.parametrize("command", ["purge", "requeue"])
def test_what_a_service_is_to_handle_is_not_taken_away(
    tavrida: Tavrida, connection: Connection, command: str
) -> None:
    """A name that is cut short is not all the work of a service; a look does no harm."""
    connection.put("shop_queue", b"{}", message_id="work")
    yes = ("--yes",) if command == "purge" else ()
    ended = tavrida(command, "--all", "--queue", "shop_queue", *yes)
    failed(ended, 1, "'shop_queue' has no dead letters, but what service 'shop' is to handle", DEAD)
    assert ["work"] == ids(tavrida("list", "--queue", "shop_queue", "-f", "json"))


def test_it_has_to_be_said_where_to_look(tavrida: Tavrida) -> None:
    """Neither an ini with services nor a queue: there is no telling."""
    failed(tavrida("list", place=()), 64, "--config-file", "--queue")


def test_a_controller_that_is_not_installed_is_no_obstacle(
    tavrida: Tavrida, connection: Connection
) -> None:
    """The ini of another machine tells the names of the queues."""
    bury(connection, "m1")
    assert ["m1"] == ids(tavrida("list", "--service", "shop", "-f", "json"))


def test_nothing_selected_is_no_error(tavrida: Tavrida, connection: Connection) -> None:
    """A script may run it every hour."""
    bury(connection, "m1")
    for command in (("requeue",), ("purge", "--yes")):
        ended = tavrida(*command, "--reason", "OSError", "--service", "shop")
        assert (0, "") == (ended.code, ended.stderr)
        assert ended.stdout.startswith("0 of 1 dead letters ")


# -- as a process --------------------------------------------------------------------------------


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Connection]:
    """The same, on a bus for several processes."""
    with Bench(f"sqlite://{tmp_path}/bus.db") as bench:
        connection = bench.connect()
        connection.declare(topology.Queue(DEAD, "classic"))
        yield connection


def test_the_commands_work_by_themselves(shop: Connection, ini: Path) -> None:
    """As a shell runs them."""
    bury(shop, "m1")
    place = ("--config-file", ini, "--service", "shop")
    environment = {"OS_CONNECTION__URL": shop.bench.url}
    ended = commands.run("tavrida", "dead", "list", *place, "-f", "json", environment=environment)
    assert ["m1"] == ids(ended)
    ended = commands.run("tavrida", "dead", "purge", "--all", *place[:2], environment=environment)
    failed(ended, 64, "nobody is there to ask")
    ended = commands.run("tavrida", "dead", "purge", "--yes", *place, environment=environment)
    assert Ended(0, "1 of 1 dead letters deleted\n", "") == ended


def test_a_broker_that_cannot_be_reached_has_exit_code_3() -> None:
    """The message says where it was looked for."""
    place = ("--queue", "q.dead", "--url", "amqp://127.0.0.1:1/%2F")
    environment = {"OS_CONNECTION__CONNECTION_ATTEMPTS": "1"}
    ended = commands.run("tavrida", "dead", "list", *place, environment=environment)
    failed(ended, 3, "RabbitMQ at 127.0.0.1:1", "connection refused")


@pytest.mark.parametrize(("answer", "left"), [("y\n", 0), ("\n", 1), ("no\n", 1)])
def test_on_a_terminal_it_asks_before_it_deletes(shop: Connection, answer: str, left: int) -> None:
    """With the number and the queue; only "y" or "yes" is a yes."""
    bury(shop, "m1")
    ours, theirs = pty.openpty()
    arguments = ("dead", "purge", "m1", "--queue", DEAD, "--url", shop.bench.url)
    with subprocess.Popen(
        [commands.SCRIPTS / "tavrida", *arguments],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        os.close(theirs)
        os.write(ours, answer.encode())
        stdout, stderr = process.communicate(timeout=DEADLINE)
    os.close(ours)
    assert (0, f"{1 - left} of 1 dead letters deleted\n") == (process.returncode, stdout)
    assert f"Really delete these dead letters: 1 in {DEAD}? [y/N] " in stderr
    assert left == len(shop.bench.drain(DEAD))


def test_a_bar_shows_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal, after a moment; it is gone at the end."""
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        monkeypatch.setattr(progress, "MOMENT", 0.0)
        monkeypatch.setenv("TERM", "xterm")
        with progress.Bar("sending back") as bar:
            bar.total = 10
            for _ in range(5):
                bar.advance()
        terminal.flush()
        seen = b""
        while b"5/10" not in seen:  # a terminal hands over what it has by then
            seen += os.read(ours, 65536)
    os.close(ours)
    assert b"sending back" in seen


def test_without_a_terminal_there_is_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    """Logs of scripts stay readable."""
    with progress.Bar("sending back") as bar:
        for _ in range(1000):
            bar.advance()
    assert ("", "") == capsys.readouterr()


def test_ctrl_c_ends_it_with_one_line(shop: Connection) -> None:
    """As a shell has it, with exit code 130; here, while it asks."""
    bury(shop, "m1")
    ours, theirs = pty.openpty()
    arguments = ("dead", "purge", "--all", "--queue", DEAD, "--url", shop.bench.url)
    with subprocess.Popen(
        [commands.SCRIPTS / "tavrida", *arguments],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        os.close(theirs)
        assert process.stderr is not None
        said = b""
        while b"[y/N]" not in said:
            said += os.read(process.stderr.fileno(), 1000)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=DEADLINE)
    os.close(ours)
    assert (130, b"") == (process.returncode, stdout)
    assert b"tavrida: interrupted; what was not sent back or deleted is where it was" in stderr
    assert b"Traceback" not in stderr
    assert 1 == len(shop.bench.drain(DEAD))
