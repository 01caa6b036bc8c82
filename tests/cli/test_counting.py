# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Prometheus with several workers, and nothing set: any of them answers for all."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tavrida import discovery
from tavrida.cli import counting
from tavrida.client import RPCClient
from tavrida.config import ConnectionConfig
from tavrida.exceptions import ConfigError
from tavrida.plugins.middleware.prometheus import ENVIRONMENT
from tests import commands
from tests.packages import Packages
from tests.processes import Program, children_of, is_alive
from tests.rabbitmq import free_port
from tests.scrapes import Scrape
from tests.waiting import DEADLINE, eventually

#: It imports prometheus_client by itself, before the middleware does.
SHOP = """
    import os
    import time
    from pathlib import Path

    import prometheus_client

    from tavrida import dispatcher, service

    SOLD = prometheus_client.Counter("shop_sold", "What was sold.")


    @dispatcher.rpc_service("shop")
    class Shop(service.ServiceController):
        @dispatcher.rpc_method(service="shop", method="buy")
        def buy(self, request, proxy):
            SOLD.inc()
            time.sleep(0.02)
            return {"pid": os.getpid()}

        @dispatcher.rpc_method(service="shop", method="until")
        def until(self, request, proxy, path: str):
            Path(f"{path}.begun").write_text(str(os.getpid()))
            while not Path(path).exists():
                time.sleep(0.01)
"""

#: What gives that controller the middleware.
OWN = """
    from tavrida.plugins.middleware.prometheus import Prometheus


    def begin(self, options=None, begin=Shop.__init__):
        begin(self, options)
        self.add_incoming_middleware(Prometheus())


    Shop.__init__ = begin
"""

LABELS = {"service": "shop", "kind": "request"}


class Shop:
    """A server with workers, its metrics, and a client of it."""

    def __init__(self, program: Program, port: int, client: RPCClient, temporary: Path) -> None:
        self.program, self.port, self.client = program, port, client
        self._temporary = temporary

    @property
    def workers(self) -> set[int]:
        return set(children_of(self.program.process.pid))

    @property
    def folders(self) -> list[Path]:
        return sorted(self._temporary.glob(f"{counting.PREFIX}*"))

    def value(self, name: str, **labels: str) -> float:
        return Scrape(self.port).value(name, **labels)

    def reaches(self, value: float, name: str, **labels: str) -> None:
        eventually(lambda: self.value(name, **labels) == value)

    def buy(self, times: int) -> set[int]:
        """Have so much handled, and return the ids of who did it."""
        asked = [self.client.shop.buy().future() for _ in range(times)]
        return {answer.result(DEADLINE).payload["pid"] for answer in asked}


Open = Callable[..., Shop]


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """Where temporary folders of the servers go."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    return folder


@pytest.fixture
def environment(tmp_path: Path, temporary: Path) -> dict[str, str]:
    """Where servers find the package acme-shop, and room for what is temporary."""
    packages = Packages(tmp_path)
    packages.add(
        "acme-shop", {"tavrida.controllers": {"shop": "acme_counting:Shop"}}, acme_counting=SHOP
    )
    packages.remove()
    return {"PYTHONPATH": str(tmp_path), "TMPDIR": str(temporary)}


def ini(folder: Path, port: int, more: str = "", workers: int = 2) -> Path:
    path = folder / "shop.conf"
    path.write_text(
        f"[connection]\nurl = sqlite://{folder}/bus.db\n[health]\nport = {port}\n"
        f"[server]\nservices = shop\nworkers = {workers}\nconcurrency = 1\n"
        f"incoming_middleware = prometheus\noutgoing_middleware = prometheus\n{more}\n"
    )
    return path


@pytest.fixture
def serve(environment: dict[str, str], tmp_path: Path, temporary: Path) -> Iterator[Open]:
    """Start a server with two workers, and return it when both serve."""
    with ExitStack() as running:

        def start(more: str = "", **variables: str) -> Shop:
            port = free_port()
            program = running.enter_context(
                Program(
                    [
                        *(commands.SCRIPTS / "tavrida-server", "--config-file"),
                        ini(tmp_path, port, more),
                    ],
                    environment=environment | variables,
                )
            )
            running.callback(_kill_children, program)
            program.line("All 2 workers serve.")
            known = discovery.LocalDiscovery()
            known.register_remote_service("shop", "shop")
            config = ConnectionConfig(url=(f"sqlite://{tmp_path}/bus.db",))
            client = running.enter_context(RPCClient(config, discovery=known))
            return Shop(program, port, client, temporary)

        yield start


def _kill_children(program: Program) -> None:
    for pid in children_of(program.process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_all_workers_count_together_and_leave_nothing_behind(serve: Open) -> None:
    """Also what a controller counts that imports prometheus_client before anything else."""
    shop = serve()
    assert shop.workers == shop.buy(40)
    for _ in range(6):  # whoever answers
        shop.reaches(40, "tavrida_handler_seconds_count", **LABELS, method="buy", outcome="ok")
        shop.reaches(40, "shop_sold_total")
        shop.reaches(2, "tavrida_connected")
    (folder,) = shop.folders
    assert 0o700 == folder.stat().st_mode & 0o777
    for pid in shop.workers:
        assert 1 << 20 <= (folder / f"counter_{pid}.db").stat().st_size
    assert 0 == shop.program.end()
    assert [] == shop.folders


def test_what_a_killed_worker_counted_stays_and_what_it_had_goes(
    serve: Open, tmp_path: Path
) -> None:
    """Its successor counts on; and no room stays set aside for the dead."""
    shop = serve()
    shop.buy(40)
    gate = tmp_path / "gate"
    answer = shop.client.shop.until(path=str(gate)).future()
    eventually(lambda: (tmp_path / "gate.begun").exists() and (tmp_path / "gate.begun").read_text())
    victim = int((tmp_path / "gate.begun").read_text())
    shop.reaches(1, "tavrida_in_flight_messages", **LABELS, method="until")
    (folder,) = shop.folders
    os.kill(victim, signal.SIGKILL)
    shop.program.line(f"(pid {victim}) was killed")
    shop.program.line(") serves.")
    shop.reaches(2, "tavrida_connected")
    # The other one has the message now.
    shop.reaches(1, "tavrida_in_flight_messages", **LABELS, method="until")
    assert [] == list(folder.glob(f"gauge_live*_{victim}.db"))
    for path in folder.glob(f"*_{victim}.db"):
        assert path.stat().st_size < 65536
    gate.touch()
    answer.result(DEADLINE)
    shop.reaches(0, "tavrida_in_flight_messages", **LABELS, method="until")
    assert shop.workers == shop.buy(40)
    shop.reaches(80, "tavrida_handler_seconds_count", **LABELS, method="buy", outcome="ok")
    shop.reaches(80, "shop_sold_total")


def test_a_controller_that_counts_by_itself_is_told_that_its_workers_do_not_add_up(
    tmp_path: Path, temporary: Path
) -> None:
    """Its middleware is found too late to have them count together."""
    packages = Packages(tmp_path)
    packages.add(
        "acme-own", {"tavrida.controllers": {"shop": "acme_own:Shop"}}, acme_own=SHOP + OWN
    )
    packages.remove()
    path = tmp_path / "own.conf"
    path.write_text(
        f"[connection]\nurl = sqlite://{tmp_path}/bus.db\n[server]\nservices = shop\nworkers = 2\n"
    )
    arguments: list[str | Path] = [commands.SCRIPTS / "tavrida-server", "--config-file", path]
    environment = {"PYTHONPATH": str(tmp_path), "TMPDIR": str(temporary)}
    with Program(arguments, environment=environment) as program:
        assert "outgoing_middleware of [server] instead" in program.line("counts for itself")
        program.line("All 2 workers serve.")
        assert 0 == program.end()
    environment[ENVIRONMENT] = str(temporary)
    with Program(arguments, environment=environment) as program:
        program.line("All 2 workers serve.")
        assert 0 == program.end()
        assert "counts for itself" not in "\n".join(program.rest())


def test_a_reload_keeps_the_numbers(serve: Open) -> None:
    """And so does a worker that starts after it."""
    shop = serve()
    shop.buy(10)
    shop.program.process.send_signal(signal.SIGHUP)
    shop.program.line("Reloaded")
    os.kill(min(shop.workers), signal.SIGTERM)
    shop.program.line(") serves.")
    shop.buy(10)
    shop.reaches(20, "tavrida_handler_seconds_count", **LABELS, method="buy", outcome="ok")
    shop.reaches(2, "tavrida_connected")


@pytest.mark.parametrize("by", ["option", "variable"])
def test_a_folder_that_is_named_wins(serve: Open, tmp_path: Path, by: str) -> None:
    """It is not removed; a worker that is killed is forgotten there too."""
    named = tmp_path / "metrics"
    named.mkdir()
    if by == "option":
        shop = serve(f"[middleware:prometheus]\nmultiprocess_dir = {named}")
    else:
        shop = serve(PROMETHEUS_MULTIPROC_DIR=str(named))
    assert [] == shop.folders
    shop.buy(10)
    victim = min(shop.workers)
    assert (named / f"gauge_livesum_{victim}.db").exists()
    os.kill(victim, signal.SIGKILL)
    shop.program.line(") serves.")
    assert not (named / f"gauge_livesum_{victim}.db").exists()
    shop.reaches(10, "tavrida_handler_seconds_count", **LABELS, method="buy", outcome="ok")
    assert 0 == shop.program.end()
    assert list(named.glob("counter_*.db"))


def test_what_a_killed_master_left_behind_goes_with_the_next_start(
    serve: Open, tmp_path: Path
) -> None:
    """But not as long as one of its workers runs."""
    first = serve()
    gate = tmp_path / "gate"
    answer = first.client.shop.until(path=str(gate)).future()
    eventually((tmp_path / "gate.begun").exists)
    workers = first.workers
    first.program.process.kill()
    (left,) = first.folders
    with counting.together():
        pass  # a sweep elsewhere is none of ours
    eventually(lambda: 1 == sum(map(is_alive, workers)))
    second = serve()
    assert left in second.folders
    assert 2 == len(second.folders)
    gate.touch()
    answer.result(DEADLINE)
    eventually(lambda: not any(map(is_alive, workers)))
    assert 0 == second.program.end()
    third = serve()
    assert left not in third.folders
    assert 1 == len(third.folders)


def test_a_folder_of_others_is_left_alone(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link is not followed, and a file is no folder."""
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    precious = temporary / "precious"
    precious.mkdir()
    (temporary / f"{counting.PREFIX}link").symlink_to(precious)
    (temporary / f"{counting.PREFIX}file").touch()
    (temporary / f"{counting.PREFIX}stale").mkdir()
    with counting.together():
        mine = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
        with counting.together():  # another master of this user
            assert mine.is_dir()
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(mine)
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(mine)
    left = {path.name.removeprefix(counting.PREFIX) for path in temporary.iterdir()}
    assert {"precious", "link", "file"} == left


def test_without_room_for_a_folder_it_says_what_to_set(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container whose file system is read-only."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with (
        pytest.raises(ConfigError, match="there is no temporary folder") as told,
        counting.together(),
    ):
        pass
    assert "set [middleware:prometheus] multiprocess_dir, or TMPDIR" in str(told.value)


def test_a_file_that_is_none_of_prometheus_ends_nothing(tmp_path: Path) -> None:
    """What a master meets, it survives."""
    for name in ("counter_7.db", "gauge_livesum_7.db", "histogram_7.db"):
        (tmp_path / name).touch()
    (tmp_path / "summary_7.db").mkdir()
    for begun in ("gauge_max_7.db", "counter_7.new"):
        (tmp_path / begun).touch()
    counting.forget(tmp_path, 7)
    counting.forget(tmp_path / "missing", 7)
    for gone in ("gauge_livesum_7.db", "gauge_max_7.db", "counter_7.new"):
        assert not (tmp_path / gone).exists()


def test_a_missing_package_is_told_and_leaves_nothing(
    environment: dict[str, str], tmp_path: Path, temporary: Path
) -> None:
    """One sentence, with what to install."""
    (tmp_path / "prometheus_client.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'prometheus_client'\", name='x')"
    )
    (tmp_path / "acme_counting.py").write_text(
        re.sub(
            "(?m)^.*(prometheus_client|SOLD).*$", "", (tmp_path / "acme_counting.py").read_text()
        )
    )
    ended = commands.run(
        "tavrida-server", "--config-file", ini(tmp_path, 1), environment=environment
    )
    assert 1 == ended.code
    assert "pip install 'tavrida[prometheus]'" in ended.stderr
    assert [] == list(temporary.iterdir())


def test_a_check_makes_no_folder(
    environment: dict[str, str], tmp_path: Path, temporary: Path
) -> None:
    """Nor does a wrong number of workers, which is told as any fault."""
    path = ini(tmp_path, 1)
    arguments = ("tavrida-server", "--config-file", path)
    assert 0 == commands.run(*arguments, "--check", environment=environment).code
    named = ini(tmp_path, 1, f"[middleware:prometheus]\nmultiprocess_dir = {tmp_path}/metrics")
    assert 0 == commands.run(*arguments, "--check", environment=environment).code
    assert named == ini(tmp_path, 1)
    path.write_text(path.read_text().replace("workers = 2", "workers = two"))
    ended = commands.run(*arguments, environment=environment)
    assert (1, True) == (ended.code, "[server] workers" in ended.stderr)
    assert [] == list(temporary.iterdir())


def test_a_master_without_metrics_imports_nothing_of_them() -> None:
    """It stays as light as it was."""
    code = (
        "import sys, tavrida.cli.server, tavrida.cli.master;"
        "print(*{'prometheus_client', 'tavrida.cli.counting'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "" == done.stdout.strip()
