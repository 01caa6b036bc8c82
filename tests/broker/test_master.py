# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""``[server] workers``: several processes under a master, and what signals do to them."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest

from tavrida.cli.master import ECHO, SHORT_LIFE, Worker
from tavrida.config import ServerSettings
from tavrida.exceptions import ConfigError
from tests import commands
from tests.broker.conftest import Connect
from tests.packages import Packages
from tests.processes import Program, TerminalProgram, children_of, is_alive
from tests.rabbitmq import free_port
from tests.waiting import DEADLINE, eventually

ROOT = Path(__file__).parent.parent.parent

#: Nothing listens there.
CLOSED = "amqp://guest:guest@127.0.0.1:1/%2F"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Where servers find the controller ``crew``."""
    folder = tmp_path_factory.mktemp("site")
    packages = Packages(folder)
    packages.add("acme-crew", {"tavrida.controllers": {"crew": "tests.broker.crew:Crew"}})
    packages.remove()
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


class Crew:
    """A running ``tavrida-server`` with workers."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.pid = program.process.pid

    @property
    def workers(self) -> set[int]:
        return set(children_of(self.pid))

    def next_worker(self) -> int:
        """Return the pid of the next worker that serves."""
        found = re.search(r"pid (\d+)", self.program.line(") serves."))
        assert found
        return int(found[1])

    def is_gone(self) -> bool:
        """Tell whether nothing is left of it."""
        return self.program.process.poll() is not None and not children_of(self.pid)


Ini = Callable[..., Path]
Start = Callable[..., Crew]


@pytest.fixture
def ini(tmp_path: Path) -> Ini:
    """Write the ini of ``workers`` processes at a url; more options of [server] and of [crew]."""

    def write(
        url: str, workers: int = 2, more: str = "", crew: str = "", connection: str = ""
    ) -> Path:
        path = tmp_path / "crew.conf"
        path.write_text(
            f"[connection]\nurl = {url.replace('$', '$$')}\nretry_delay = 0.1\n{connection}\n"
            f"[server]\nservices = crew\nqueue_type = classic\nworkers = {workers}\n{more}\n"
            f"[service:crew]\nexchange = test_exchange\n{crew}\n"
        )
        return path

    return write


@pytest.fixture
def bus(tmp_path: Path) -> str:
    """A place for tests to which it is all the same which transport they run on."""
    return f"sqlite://{tmp_path}/bus.db"


@pytest.fixture
def launch(environment: dict[str, str]) -> Iterator[Start]:
    """Start ``tavrida-server`` with an ini; its workers may not serve yet."""
    with ExitStack() as running:

        def start(path: Path, **more: str) -> Crew:
            arguments: list[str | Path] = [commands.SCRIPTS / "tavrida-server", "--config-file"]
            program = Program([*arguments, path], environment=environment | more)
            crew = Crew(running.enter_context(program))
            running.callback(_kill_all, crew)
            return crew

        yield start


def _kill_all(crew: Crew) -> None:
    for pid in {crew.pid, *crew.workers}:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def start(launch: Start, ini: Ini, url: str) -> Start:
    """Start ``tavrida-server`` at the test's place, and return it when all of its workers serve."""

    def run(workers: int = 2, more: str = "", **settings: Any) -> Crew:
        crew = launch(ini(url, workers, more, **settings))
        crew.program.line(f"All {workers} workers serve.")
        return crew

    return run


# -- serving -------------------------------------------------------------------------------------


def test_all_workers_serve_with_controllers_of_their_own(start: Start, connect: Connect) -> None:
    """The plugin is imported once, in the master, which serves nothing."""
    crew = start(3, "concurrency = 1")
    client = connect("crew")
    answers = [client.crew.who(seconds=0.1).future() for _ in range(12)]
    payloads = [answer.result(DEADLINE).payload for answer in answers]
    assert crew.workers == {payload["pid"] for payload in payloads}
    assert 3 == len(crew.workers)
    assert all(payload["made_in"] == payload["pid"] for payload in payloads)
    assert {crew.pid} == {payload["imported_in"] for payload in payloads}
    assert 0 == crew.program.end()
    assert crew.is_gone()


def test_one_worker_is_the_process_itself(ini: Ini, launch: Start, bus: str) -> None:
    """So that a debugger finds the handlers where they are."""
    crew = launch(ini(bus, 1))
    crew.program.line("is serving")
    assert set() == crew.workers
    assert 0 == crew.program.end()


def test_workers_share_the_port_of_health(launch: Start, ini: Ini, url: str) -> None:
    """Whichever takes the connection answers for all; it is taken once, by the master."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        health = f"[health]\nport = {port}\n"
        refused = launch(ini(url, 2, connection=health))
        assert 1 == refused.program.process.wait(DEADLINE)
        assert str(port) in refused.program.line("[health]")
    crew = launch(ini(url, 2, connection=health))
    crew.program.line("All 2 workers serve.")

    probe = Probe(port)
    for _ in range(6):
        status, told = probe.ask("/ready")
        assert (200, True, [], [], []) == (
            status,
            *(told[name] for name in ("ready", "reasons", "paused_queues", "stuck_handlers")),
        )
        assert [1, 2] == [each["worker"] for each in told["workers"]]
        assert crew.workers == {each["pid"] for each in told["workers"]}
        for each in told["workers"]:
            assert (True, "serving", True) == (
                each["ready"],
                each["state"],
                each["connections"]["incoming"]["ready"],
            )
        status, told = probe.ask("/live")
        assert (200, True, []) == (status, told["live"], told["reasons"])
        assert [True, True] == [each["live"] for each in told["workers"]]
    assert 0 == crew.program.end()
    assert (0, {}) == probe.ask("/ready")


class Probe:
    """Asks for the health of a crew."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, path: str) -> tuple[int, dict[str, Any]]:
        """Return status and JSON; 0 where nobody answers: who took it is killed, or stopped."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, json.load(answer)
        except (OSError, http.client.HTTPException):
            return 0, {}
        finally:
            connection.close()

    def told(self, path: str, status: int, times: int = 1) -> dict[str, Any]:
        """Return what is told as soon as so many answers in a row have that status."""
        answers: list[dict[str, Any]] = []

        def has_come() -> bool:
            found, told = self.ask(path)
            answers[:] = [*answers, told] if found == status else []
            return len(answers) >= times

        eventually(has_come)
        return answers[-1]


@pytest.fixture
def healthy(start: Start) -> Callable[..., tuple[Crew, Probe]]:
    """Start workers with [health], and return what asks for it too."""

    def run(workers: int, more: str = "", **settings: Any) -> tuple[Crew, Probe]:
        port = free_port()
        more = f"{more}\n[health]\nport = {port}\n" + settings.pop("health", "")
        return start(workers, more, **settings), Probe(port)

    return run


Healthy = Callable[..., tuple[Crew, Probe]]


def test_ready_turns_within_a_second_when_one_of_many_is_killed_and_comes_back(
    healthy: Healthy,
) -> None:
    """Whoever answers; and all of them live all the time."""
    crew, probe = healthy(4)
    serving_since = time.monotonic()
    eventually(lambda: time.monotonic() > serving_since + SHORT_LIFE)
    for victim in sorted(crew.workers)[:2]:
        killed_at = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        told = probe.told("/ready", 503)
        assert time.monotonic() - killed_at < 1
        assert probe.ask("/live")[0] in (0, 200)
        (wrong,) = [each for each in told["workers"] if not each["ready"]]
        assert wrong["pid"] != victim
        assert wrong["state"] in ("gone", "starting")
        assert all(f"worker {wrong['worker']} (pid " in reason for reason in told["reasons"])
        crew.next_worker()
        told = probe.told("/ready", 200, times=8)
        assert time.monotonic() - killed_at < 5
        assert crew.workers == {each["pid"] for each in told["workers"]}


def test_a_worker_that_dies_at_once_keeps_all_unready(healthy: Healthy, tmp_path: Path) -> None:
    """An orchestrator shall not restart the others for that."""
    trouble = tmp_path / "trouble"
    crew, probe = healthy(2, crew=f"dies_if = {trouble}")
    trouble.touch()
    os.kill(max(crew.workers), signal.SIGKILL)
    for _ in range(2):
        crew.program.line("; failure ")
        told = probe.told("/ready", 503, times=3)
        assert 1 == sum(each["ready"] for each in told["workers"])
    assert ["worker 2 (pid none): it does not run, or not yet"] == told["reasons"]
    assert 200 == probe.ask("/live")[0]
    trouble.unlink()
    probe.told("/ready", 200, times=3)


def test_a_handler_that_is_stuck_is_told_by_whoever_answers(
    healthy: Healthy, connect: Connect, tmp_path: Path
) -> None:
    """With its worker; that does not make anybody unready."""
    _, probe = healthy(2, health="stuck_handler = 0.2\n")
    gate = tmp_path / "gate"
    answer = connect("crew").crew.until(path=str(gate)).future()

    def stuck() -> list[list[dict[str, Any]]]:
        return [probe.told("/ready", 200)["stuck_handlers"] for _ in range(8)]

    answers = eventually(lambda: all(found := stuck()) and found)
    assert answers
    for (handler,) in answers:
        assert ("crew", "until") == (handler["service"], handler["method"])
    gate.touch()
    assert answers[0][0]["pid"] == answer.result(DEADLINE).payload["pid"]
    eventually(lambda: not any(stuck()))


def test_a_process_that_is_stopped_is_told_by_the_others(healthy: Healthy) -> None:
    """It cannot tell so itself; nor does it live, after stuck_loop."""
    crew, probe = healthy(2, health="stuck_loop = 4\n")
    stopped = max(crew.workers)
    os.kill(stopped, signal.SIGSTOP)
    try:
        told = probe.told("/ready", 503)
        (reason,) = told["reasons"]
        assert reason.startswith(f"worker 2 (pid {stopped}): it has told nothing for ")
        assert 200 == probe.ask("/live")[0]
        told = probe.told("/live", 503)
        assert reason[:30] in told["reasons"][0]
        assert [True, False] == [each["live"] for each in told["workers"]]
    finally:
        os.kill(stopped, signal.SIGCONT)
    probe.told("/live", 200, times=3)
    probe.told("/ready", 200, times=3)


def test_an_event_loop_that_is_stuck_makes_live_fail_whoever_answers(
    healthy: Healthy, connect: Connect, tmp_path: Path
) -> None:
    """With the worker whose it is."""
    _, probe = healthy(2, health="stuck_loop = 0.3\n")
    gate = tmp_path / "gate"
    connect("crew").crew.block(path=str(gate)).cast()
    told = probe.told("/live", 503, times=6)
    (reason,) = told["reasons"]
    assert "the event loop has been held up for" in reason
    assert 1 == sum(each["live"] for each in told["workers"])
    assert told["loop_seconds"] >= 0.3
    assert "the event loop has been held up" in probe.told("/ready", 503)["reasons"][0]
    gate.touch()
    probe.told("/live", 200, times=6)


def test_ready_is_not_before_all_workers_serve(launch: Start, ini: Ini) -> None:
    """The first one goes ahead, and waits for its broker here."""
    port = free_port()
    crew = launch(ini(CLOSED, 3, f"[health]\nport = {port}\n"))
    crew.program.line("Trying again")
    told = Probe(port).told("/ready", 503)
    assert ["starting", "gone", "gone"] == [each["state"] for each in told["workers"]]
    assert "worker 3 (pid none): it does not run, or not yet" in told["reasons"]
    assert 200 == Probe(port).ask("/live")[0]


# -- workers that die ----------------------------------------------------------------------------


def test_a_worker_that_is_killed_comes_back_at_once(start: Start, connect: Connect) -> None:
    """What it had goes to others, and nothing is left of it, no zombie either."""
    crew = start(2)
    client = connect("crew")
    client.crew.who().call()
    victim = next(iter(crew.workers))
    serving_since = time.monotonic()
    eventually(lambda: time.monotonic() > serving_since + SHORT_LIFE)
    os.kill(victim, signal.SIGKILL)
    killed_at = time.monotonic()
    crew.program.line(f"(pid {victim}) was killed by SIGKILL")
    successor = crew.next_worker()
    assert 1.0 > time.monotonic() - killed_at
    assert successor in crew.workers
    assert 2 == len(crew.workers)
    assert victim not in crew.workers
    assert "Z" not in children_of(crew.pid).values()
    assert client.crew.who().call().payload["pid"] in crew.workers
    assert 0 == crew.program.end()


def test_a_worker_that_a_nameless_signal_kills_comes_back_too(
    launch: Start, ini: Ini, bus: str
) -> None:
    """Those from 35 to 63 are for programs' own use."""
    crew = launch(ini(bus, 2))
    crew.program.line("All 2 workers serve.")
    victim = min(crew.workers)
    os.kill(victim, signal.SIGRTMIN + 3)
    assert f"was killed by signal {signal.SIGRTMIN + 3} after" in crew.program.line(f"pid {victim}")
    assert victim != crew.next_worker()
    assert 0 == crew.program.end()


def test_a_worker_that_is_terminated_drains_and_comes_back(
    start: Start, connect: Connect, tmp_path: Path
) -> None:
    """SIGTERM to one worker renews that one."""
    crew = start(2)
    gate = tmp_path / "gate"
    answer = connect("crew").crew.until(path=str(gate)).future()
    eventually(Path(f"{gate}.begun").exists)
    before = crew.workers
    for pid in before:
        os.kill(pid, signal.SIGTERM)
    assert not answer.done()
    gate.touch()
    assert answer.result(DEADLINE).payload["pid"] in before
    assert before.isdisjoint({crew.next_worker(), crew.next_worker()})
    assert 0 == crew.program.end()


def test_a_worker_that_dies_at_once_is_started_with_growing_pauses(
    start: Start, tmp_path: Path
) -> None:
    """It does not spin, each line says what happened and what comes, and the other one serves."""
    trouble = tmp_path / "trouble"
    crew = start(2, crew=f"dies_if = {trouble}")
    first, other = sorted(crew.workers)
    trouble.touch()
    os.kill(first, signal.SIGKILL)
    killed_at = time.monotonic()
    told = [crew.program.line("; failure ") for _ in range(3)]
    for number, line in enumerate(told, int(told[0].partition("failure ")[2].split()[0])):
        assert "was killed by SIGKILL after " in line
        assert f"; failure {number} in a row. Starting it again in " in line
    pauses = [float(line.rpartition(" in ")[2].removesuffix(" s.")) for line in told]
    assert pauses == sorted(set(pauses)), pauses
    assert sum(pauses[:-1]) <= time.monotonic() - killed_at
    assert other in crew.workers
    trouble.unlink()
    crew.next_worker()
    assert 0 == crew.program.end()


def test_workers_end_when_their_master_is_killed(
    start: Start, connect: Connect, tmp_path: Path
) -> None:
    """Nobody is left that serves without being asked, and what runs is finished."""
    crew = start(2)
    gate = tmp_path / "gate"
    answer = connect("crew").crew.until(path=str(gate)).future()
    eventually(Path(f"{gate}.begun").exists)
    workers = crew.workers
    crew.program.process.kill()
    for _ in workers:
        crew.program.line("The master is gone")
    eventually(lambda: 1 == sum(map(is_alive, workers)))
    gate.touch()
    assert answer.result(DEADLINE).payload["pid"] in workers
    eventually(lambda: not any(map(is_alive, workers)))


# -- stopping ------------------------------------------------------------------------------------


@pytest.mark.parametrize("reaches", ["the master", "all"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_a_signal_lets_all_workers_finish(
    start: Start, connect: Connect, tmp_path: Path, number: signal.Signals, reaches: str
) -> None:
    """Also where all processes get it, as from Ctrl-C on a terminal: that is no second one."""
    crew = start(2)
    gate = tmp_path / "gate"
    answer = connect("crew").crew.until(path=str(gate)).future()
    eventually(Path(f"{gate}.begun").exists)
    workers = crew.workers
    crew.program.process.send_signal(number)
    for pid in workers if reaches == "all" else ():
        os.kill(pid, number)
    crew.program.line(f"Got {number.name}: stopping")
    crew.program.line("tavrida stopped")  # the worker that is idle
    assert not answer.done()
    gate.touch()
    assert answer.result(DEADLINE).payload["pid"] in workers
    assert 0 == crew.program.process.wait(DEADLINE)
    assert crew.is_gone()


def test_ctrl_c_on_a_terminal_lets_all_workers_finish(
    ini: Ini, environment: dict[str, str], connect: Connect, url: str, tmp_path: Path
) -> None:
    """The terminal sends it to the master and to all workers."""
    arguments = (commands.SCRIPTS / "tavrida-server", "--config-file", ini(url, 2))
    gate = tmp_path / "gate"
    with TerminalProgram(arguments, environment=environment) as program:
        program.line("All 2 workers serve.")
        answer = connect("crew").crew.until(path=str(gate)).future()
        eventually(Path(f"{gate}.begun").exists)
        program.press(b"\x03")
        program.line("Got SIGINT: stopping all workers")
        program.line("tavrida stopped")
        assert not answer.done()
        gate.touch()
        answer.result(DEADLINE)
        assert 0 == program.process.wait(DEADLINE)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_each_process_does_at_its_end_what_it_has_registered(
    ini: Ini, launch: Start, bus: str, tmp_path: Path, number: signal.Signals
) -> None:
    """With atexit, and once: an exporter of traces sends its last ones so."""
    farewell = tmp_path / "farewell"
    crew = launch(ini(bus, 2, crew=f"farewell = {farewell}"))
    crew.program.line("All 2 workers serve.")
    processes = {crew.pid, *crew.workers}
    assert 0 == crew.program.end(number)
    written = farewell.read_text().split()
    assert processes == set(map(int, written))
    assert 3 == len(written)


def test_handlers_that_do_not_end_hold_nothing_up_for_longer_than_graceful_timeout(
    start: Start, connect: Connect, tmp_path: Path
) -> None:
    """Their messages go back to the queue, and the exit code is 0."""
    crew = start(2, "graceful_timeout = 0.5")
    never = tmp_path / "never"
    connect("crew").crew.until(path=str(never)).cast()
    eventually(Path(f"{never}.begun").exists)
    began = time.monotonic()
    assert 0 == crew.program.end()
    assert 0.5 <= time.monotonic() - began < 5
    assert crew.is_gone()


@pytest.mark.slow
def test_a_worker_that_does_not_even_disconnect_is_killed_in_the_end(
    launch: Start, ini: Ini, bus: str
) -> None:
    """One whose event loop hangs, say. The others have ended in good order long before."""
    crew = launch(ini(bus, 2, "graceful_timeout = 1"))
    crew.program.line("All 2 workers serve.")
    stuck = min(crew.workers)
    os.kill(stuck, signal.SIGSTOP)
    crew.program.process.terminate()
    crew.program.line("tavrida stopped")
    eventually(lambda: crew.workers == {stuck})
    crew.program.line(f"(pid {stuck}) is killed; its messages go back to their queues.")
    assert 0 == crew.program.process.wait(DEADLINE)
    assert crew.is_gone()


def test_a_second_signal_stops_all_at_once(start: Start, connect: Connect, tmp_path: Path) -> None:
    """Handlers that never end do not hold the processes for ever."""
    crew = start(2)
    never = tmp_path / "never"
    connect("crew").crew.until(path=str(never)).cast()
    eventually(Path(f"{never}.begun").exists)
    workers = crew.workers
    crew.program.process.terminate()
    crew.program.process.terminate()  # as from timeout(1), which is no second one
    crew.program.line("Got SIGTERM: stopping all workers")
    stopping_since = time.monotonic()
    eventually(lambda: time.monotonic() > stopping_since + ECHO)
    assert 128 + signal.SIGTERM == crew.program.end()
    eventually(lambda: not any(map(is_alive, workers)))


def test_workers_that_wait_for_their_broker_can_be_stopped(launch: Start, ini: Ini) -> None:
    """Only one waits: the others would say the same."""
    crew = launch(ini(CLOSED, 3))
    crew.program.line("Trying again")
    assert 1 == len(crew.workers)
    assert 0 == crew.program.end()
    assert crew.is_gone()


# -- what is wrong is told once ------------------------------------------------------------------


def test_a_bus_in_memory_is_refused(ini: Ini, environment: dict[str, str]) -> None:
    """Each worker would have one of its own; --check knows it too."""
    path = ini("sqlite://", 2)
    for more in ([], ["--check"]):
        ended = commands.run(
            "tavrida-server", "--config-file", path, *more, environment=environment
        )
        assert (1, "") == (ended.code, ended.stdout)
        assert ended.stderr == (
            "tavrida-server: [server] workers = 2 cannot share [connection] url sqlite://, which "
            "is in the memory of one process: name a file, sqlite:///PATH/bus.db, or a broker, or "
            "leave workers at 1\n"
        )


@pytest.mark.parametrize("value", ["0", "-3", "many", "2000", "1.5"])
def test_a_number_of_workers_that_is_none_is_told(
    ini: Ini, environment: dict[str, str], value: str
) -> None:
    """With file and line."""
    path = ini("sqlite:///nowhere/bus.db", value)
    ended = commands.run("tavrida-server", "--config-file", path, environment=environment)
    assert (1, "") == (ended.code, ended.stdout)
    (line,) = ended.stderr.splitlines()
    assert "crew.conf:8: [server] workers: " in line


def test_a_fault_is_told_before_any_worker_is_forked(ini: Ini, environment: dict[str, str]) -> None:
    """And once, whatever the number of workers."""
    path = ini("sqlite:///nowhere/bus.db", 4, more="serializer = jsn")
    ended = commands.run("tavrida-server", "--config-file", path, environment=environment)
    assert 1 == ended.code
    (line,) = ended.stderr.splitlines()
    assert "did you mean 'json'?" in line


def test_a_broker_that_is_not_there_is_told_once(ini: Ini, environment: dict[str, str]) -> None:
    """With the exit code that a single process has."""
    path = ini(CLOSED, 4, connection="reconnect_attempts = 0")
    ended = commands.run("tavrida-server", "--config-file", path, environment=environment)
    assert 3 == ended.code
    (line,) = [x for x in ended.stderr.splitlines() if x.startswith("tavrida-server: ")]
    assert "Is RabbitMQ running there?" in line
    assert "Traceback" not in ended.stderr


def test_a_controller_that_cannot_be_made_in_a_worker_is_told_once(
    ini: Ini, environment: dict[str, str], bus: str
) -> None:
    """Though it could be in the master: one line, and the exit code of a wrong configuration."""
    path = ini(bus, 4, crew="only_in_the_master = true")
    ended = commands.run("tavrida-server", "--config-file", path, environment=environment)
    assert 1 == ended.code
    (line,) = [x for x in ended.stderr.splitlines() if x.startswith("tavrida-server: ")]
    assert "[service:crew]" in line
    assert "RuntimeError: there is one seat" in line
    assert "Traceback" not in ended.stderr


def test_a_server_in_a_program_has_no_workers() -> None:
    """Only tavrida-server can fork before everything else."""
    with pytest.raises(ConfigError, match="Server\\(\\) has no argument 'workers'"):
        ServerSettings.from_keywords({"workers": 2})


# -- systemd -------------------------------------------------------------------------------------


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket that systemd reads."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.settimeout(DEADLINE)
        listener.bind(f"{tmp_path}/notify")
        yield listener


@pytest.mark.parametrize("workers", [1, 3])
def test_systemd_is_told_when_all_consume_and_when_it_stops(
    ini: Ini, launch: Start, bus: str, tmp_path: Path, listener: socket.socket, workers: int
) -> None:
    """READY=1 is the first word, and comes once, when each process has told that it serves."""
    crew = launch(ini(bus, workers), NOTIFY_SOCKET=f"{tmp_path}/notify")
    assert b"READY=1" == listener.recv(1000).splitlines()[0]
    assert workers == (len(crew.workers) or 1)
    crew.program.process.terminate()
    assert b"STOPPING=1" == listener.recv(1000).splitlines()[0]
    assert 0 == crew.program.process.wait(DEADLINE)
    listener.settimeout(0)
    with pytest.raises(BlockingIOError):
        listener.recv(1000)
    serving = [line for line in crew.program.rest() if "is serving" in line]
    assert workers == len(serving)


@pytest.mark.parametrize("workers", [1, 2])
def test_systemd_is_not_told_to_go_on_before_anybody_consumes(
    ini: Ini, launch: Start, tmp_path: Path, listener: socket.socket, workers: int
) -> None:
    """A broker that is away: what comes after this unit shall not start yet."""
    crew = launch(ini(CLOSED, workers), NOTIFY_SOCKET=f"{tmp_path}/notify")
    crew.program.line("Trying again")
    assert 0 == crew.program.end()
    listener.settimeout(0)
    told = []
    with contextlib.suppress(BlockingIOError):
        while True:
            told.append(listener.recv(1000).splitlines()[0])
    assert b"READY=1" not in told


# -- reloading -----------------------------------------------------------------------------------


def holding(crew: Crew, connect: Connect, tmp_path: Path, count: int) -> Callable[[], int]:
    """Cast messages that are held until their files are there; return what counts the begun."""
    client = connect("crew")
    with client.pipeline():
        for n in range(count):
            gate = tmp_path / f"gate{n}"
            client.crew.until(path=str(gate)).cast()
    return lambda: len(list(tmp_path.glob("gate*.begun")))


@pytest.mark.parametrize("workers", [1, 2])
def test_sighup_lets_changes_take_effect_in_all_processes(
    ini: Ini, launch: Start, connect: Connect, url: str, tmp_path: Path, workers: int
) -> None:
    """Nobody is replaced; what needs a restart is named, and only that."""
    crew = launch(ini(url, workers, "concurrency = 1"))
    crew.program.line("is serving" if workers == 1 else "workers serve")
    processes = crew.workers
    # More than may run: what a process has already does not count when it takes more.
    begun = holding(crew, connect, tmp_path, 6 * workers)
    eventually(lambda: begun() == workers)
    ini(url, workers, "concurrency = 3\n[log]\nlevel = WARNING", crew="greeting = Hi")
    crew.program.process.send_signal(signal.SIGHUP)
    crew.program.line("[service:crew] greeting was changed, which needs a restart.")
    eventually(lambda: begun() == 3 * workers)
    assert processes == crew.workers
    for n in range(6 * workers):
        (tmp_path / f"gate{n}").touch()
    ini(url, workers, "concurrency = 3\n[log]\nlevel = INFO")
    crew.program.process.send_signal(signal.SIGHUP)
    crew.program.line("Reloaded: [log] level: WARNING -> INFO.")
    assert 0 == crew.program.end()
    assert not [line for line in crew.program.rest() if "concurrency:" in line]


#: What an ini may have added to it, and a part of what is said of it.
WRONG = {
    "concurency = 5": "crew.conf:9: [server] concurency is unknown (did you mean",
    "concurrency = none": "crew.conf:9: [server] concurrency: should be a number, not 'none'",
    "concurrency = 0": "crew.conf:9: [server] concurrency: Should be greater than or equal",
    "handler_concurrency = crew.wo:3": "there is no handler of 'crew.wo' here (did you mean",
    "nonsense": "crew.conf:9",
    "[service:crew]\ncontroller = crow": "no plugin 'crow' in tavrida.controllers",
    "[retry:crew.until]\nfirst_delay = 900": "first_delay=900.0 is longer than max_delay=300.0",
    "[retry]\nattempts = 0": "crew.conf:10: [retry] attempts: Should be greater than or equal",
}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_file_that_is_wrong_is_refused_with_its_reason(
    ini: Ini, launch: Start, bus: str, workers: int
) -> None:
    """One line; the old values stay, and a file that is right takes effect later."""
    crew = launch(ini(bus, workers))
    crew.program.line("is serving" if workers == 1 else "workers serve")
    for wrong, reason in WRONG.items():
        ini(bus, workers, wrong)
        crew.program.process.send_signal(signal.SIGHUP)
        assert reason in crew.program.line("Not reloaded, all stays as it was: ")
    path = ini(bus, workers, "concurrency = 4")
    path.rename(path.with_suffix(".away"))
    crew.program.process.send_signal(signal.SIGHUP)
    assert "cannot read" in crew.program.line("Not reloaded, all stays as it was: ")
    path.with_suffix(".away").rename(path)
    crew.program.process.send_signal(signal.SIGHUP)
    crew.program.line("Reloaded: [server] concurrency: 10 -> 4.")
    assert 0 == crew.program.end()
    told = crew.program.rest()
    assert len(WRONG) + 1 == sum("Not reloaded" in line for line in told)
    assert "Traceback" not in "\n".join(told)


def test_a_worker_that_comes_later_has_what_runs_and_not_what_the_file_says(
    start: Start, ini: Ini, connect: Connect, url: str, tmp_path: Path
) -> None:
    """The file was changed once well and once badly; the latter stands in it now."""
    crew = start(2, "concurrency = 1")
    ini(url, 2, "concurrency = 2")
    crew.program.process.send_signal(signal.SIGHUP)
    crew.program.line("Reloaded: [server] concurrency: 1 -> 2.")
    ini(url, 2, "concurrency = several\nqueue_type = quorum")
    crew.program.process.send_signal(signal.SIGHUP)
    crew.program.line("Not reloaded")
    for pid in crew.workers:
        os.kill(pid, signal.SIGKILL)
    crew.next_worker()
    crew.next_worker()
    begun = holding(crew, connect, tmp_path, 9)
    eventually(lambda: begun() == 4)
    for n in range(9):
        (tmp_path / f"gate{n}").touch()
    assert 0 == crew.program.end()


def test_sighup_to_a_worker_does_nothing(start: Start, connect: Connect) -> None:
    """A terminal that goes sends it to all of its processes."""
    crew = start(2)
    workers = crew.workers
    for pid in workers:
        os.kill(pid, signal.SIGHUP)
    connect("crew").crew.who().call()
    assert workers == crew.workers
    assert 0 == crew.program.end()


def test_a_worker_that_reloads_is_told_only_the_last_of_what_comes_meanwhile() -> None:
    """And nothing of it any more when it has ended: its successor starts with it."""
    ours, theirs = Pipe()
    with ours, theirs:
        worker = Worker(1)
        worker.pipe = ours
        for message in ("a", "b", "c"):
            worker.reload(message)
        assert "a" == theirs.recv()
        assert not theirs.poll()
        worker.has_reloaded()
        assert "c" == theirs.recv()
        worker.reload("d")
        worker.close()
        worker.has_reloaded()
        assert not worker.is_reloading


def test_a_process_that_is_stopped_does_not_hold_the_master_up(
    ini: Ini, launch: Start, bus: str
) -> None:
    """However often all are told to reload: it reads nothing."""
    # As much as a pipe holds is not much more than this.
    much = f"[log]\nmask = {'x' * 100_000}"
    crew = launch(ini(bus, 2, much))
    crew.program.line("All 2 workers serve.")
    stopped = min(crew.workers)
    os.kill(stopped, signal.SIGSTOP)
    try:
        for level in ("DEBUG", "INFO") * 3:
            ini(bus, 2, f"{much}\nlevel = {level}")
            crew.program.process.send_signal(signal.SIGHUP)
            crew.program.line("Reloaded: ")
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert 0 == crew.program.end()


#: A plugin that takes its time to be imported.
SLOW = """
    import os
    import signal
    import time
    from pathlib import Path

    from tests.broker.crew import Crew

    # Tests that a shell runs in the background begin with it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    Path(os.environ["GATE"] + ".begun").touch()
    while not Path(os.environ["GATE"]).exists():
        time.sleep(0.01)
"""


@pytest.fixture
def loading(
    request: pytest.FixtureRequest, ini: Ini, launch: Start, bus: str, tmp_path: Path
) -> Crew:
    """A server with workers that imports a plugin until the file ``gate`` is there."""
    packages = Packages(tmp_path)
    packages.add("acme-slow", {"tavrida.controllers": {"crew": "acme_slow:Crew"}}, acme_slow=SLOW)
    packages.remove()
    path, gate = os.pathsep.join([str(tmp_path), str(ROOT)]), tmp_path / "gate"
    crew = launch(ini(bus, request.param), PYTHONPATH=path, GATE=str(gate))
    eventually((tmp_path / "gate.begun").exists)
    return crew


@pytest.mark.parametrize("loading", [1, 2], indirect=True)
def test_sighup_while_plugins_are_imported_waits_until_it_can_be_done(
    loading: Crew, tmp_path: Path
) -> None:
    """It does not end the server, as it would any program."""
    loading.program.process.send_signal(signal.SIGHUP)
    (tmp_path / "gate").touch()
    loading.program.line("Reloaded: nothing was changed")
    assert 0 == loading.program.end()


@pytest.mark.parametrize("loading", [1, 2], indirect=True)
def test_ctrl_c_while_plugins_are_imported_is_no_fault(loading: Crew) -> None:
    """There is nothing to finish."""
    assert 128 + signal.SIGINT == loading.program.end(signal.SIGINT)
    assert [] == loading.program.rest()


@pytest.mark.parametrize("workers", [1, 2])
def test_sighup_before_it_serves_waits_until_it_does(launch: Start, ini: Ini, workers: int) -> None:
    """It does not end a server that waits for its broker."""
    crew = launch(ini(CLOSED, workers))
    crew.program.line("Trying again")
    crew.program.process.send_signal(signal.SIGHUP)
    if workers > 1:
        crew.program.line("Reloaded: nothing was changed")
    assert 0 == crew.program.end()


@pytest.mark.parametrize("workers", [1, 2])
def test_systemd_is_told_when_a_reload_begins_and_when_it_is_over(
    ini: Ini, launch: Start, bus: str, tmp_path: Path, listener: socket.socket, workers: int
) -> None:
    """Also when the file is refused: it runs on."""
    crew = launch(ini(bus, workers), NOTIFY_SOCKET=f"{tmp_path}/notify")

    def told() -> bytes:
        return listener.recv(1000).splitlines()[0]

    assert b"READY=1" == told()
    for more in ("concurrency = 3", "concurrency = 0"):
        ini(bus, workers, more)
        crew.program.process.send_signal(signal.SIGHUP)
        assert [b"RELOADING=1", b"READY=1"] == [told(), told()]
    crew.program.process.terminate()
    assert b"STOPPING=1" == told()
    assert 0 == crew.program.process.wait(DEADLINE)


def test_a_worker_that_dies_while_it_reloads_does_not_leave_systemd_waiting(
    ini: Ini, launch: Start, bus: str, tmp_path: Path, listener: socket.socket
) -> None:
    """READY=1 comes when those that are left have done it; the next one has it from the start."""
    crew = launch(ini(bus, 2), NOTIFY_SOCKET=f"{tmp_path}/notify")

    def told() -> bytes:
        return listener.recv(1000).splitlines()[0]

    assert b"READY=1" == told()
    stuck = min(crew.workers)
    os.kill(stuck, signal.SIGSTOP)
    ini(bus, 2, "concurrency = 3")
    crew.program.process.send_signal(signal.SIGHUP)
    assert b"RELOADING=1" == told()
    crew.program.line("Reloaded: [server] concurrency: 10 -> 3.")
    os.kill(stuck, signal.SIGKILL)
    crew.program.line(f"(pid {stuck}) was killed")
    assert b"READY=1" == told()
    assert ", 3 at a time" in crew.program.line("is serving")
    assert 0 == crew.program.end()
