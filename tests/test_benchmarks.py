# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The benchmarks run, and ``./dev bench`` finds them."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import comparison, growth, guarantees, report, scale
from tests.rabbitmq import Node
from tests.waiting import DEADLINE, eventually

CHECKOUT = Path(__file__).parent.parent


def dev_bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["./dev", "bench", *arguments],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


NAMES = [
    "comparison",
    "dedup",
    "embedded",
    "growth",
    "guarantees",
    "micro",
    "plots",
    "report",
    "scale",
]


def test_dev_bench_lists_the_benchmarks() -> None:
    """Those that are there, and not the programs that they start."""
    done = dev_bench("list")
    assert (0, NAMES) == (done.returncode, done.stdout.split())


def test_dev_bench_names_what_there_is_instead_of_an_unknown_benchmark() -> None:
    """On the error output, with the exit code of a wrong command line."""
    done = dev_bench("embeded")
    assert (2, "") == (done.returncode, done.stdout)
    assert f"there is no benchmark embeded; there is: {' '.join(NAMES)}" in done.stderr


def test_every_benchmark_is_in_the_readme() -> None:
    """With what its figures mean."""
    readme = (CHECKOUT / "benchmarks/README.md").read_text()
    assert [] == [name for name in NAMES if f"\n## {name}\n" not in readme]


def test_the_page_says_what_the_data_files_have() -> None:
    """So that nobody corrects a figure by hand: ``./dev bench report`` writes them."""
    page = report.PAGE.read_text()
    assert page == report.filled(page)
    for name in report.SECTIONS:
        assert f"<!-- begin {name} -->" in page


def test_links_and_images_of_the_page_lead_somewhere() -> None:
    """Each relative link is a file that is there."""
    links = re.findall(r"\]\(([^)#:]+)\)", report.PAGE.read_text())
    assert links
    assert [] == [link for link in links if not (report.PAGE.parent / link).exists()]


def test_every_peer_has_its_program() -> None:
    """And its package is in the requirements, so that ``./dev peers`` installs it."""
    requirements = (CHECKOUT / "benchmarks/requirements.txt").read_text().replace(".", "-")
    for peer in comparison.PEERS.values():
        assert (CHECKOUT / f"benchmarks/peers/{peer.program}.py").exists()
        assert peer.package == "tavrida" or f"\n{peer.package}" in requirements


def test_an_unknown_peer_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """With those that there are, as a wrong command line."""
    with pytest.raises(SystemExit):
        comparison.main(["--peers", "pika"])
    assert "there is no pika; there is: pika-select, pika-confirmed" in capsys.readouterr().err


def test_ratios_are_of_what_was_measured_in_the_same_round() -> None:
    """A machine that is slow for a while does not favour who ran just then."""

    def peer(*seconds: float) -> dict[str, Any]:
        sides = ("client_cpu", "server_cpu", "broker_cpu")
        rounds = [
            {
                "machine": 1,
                "failures": [],
                "W3": {"count": 1000, "seconds": each, **dict.fromkeys(sides, each)},
            }
            for each in seconds
        ]
        return {"rounds": rounds, "import": 0}

    peers = {"pika-select": peer(1, 4, 2), "tavrida": peer(2, 4, 1)}
    lines = comparison.report({"about": {}, "peers": peers})
    (row,) = [line.split("|") for line in lines if line.startswith("| tavrida ")]
    assert ["1.00", "1.00"] == [row[3].strip(), row[8].strip()]
    del peers["pika-select"]["rounds"][1:]
    lines = comparison.report({"about": {}, "peers": peers})
    (row,) = [line.split("|") for line in lines if line.startswith("| tavrida ")]
    assert ["0.50", "2.00"] == [row[3].strip(), row[8].strip()]


def test_no_peer_has_to_follow_the_same_one_in_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would bear what that one leaves of the machine."""

    class Noting(comparison.Bench):
        def __init__(self) -> None:
            self.order: list[str] = []

        def round(self, name: str, number: int) -> dict[str, Any]:
            self.order.append(name)
            return {"failures": []}

    monkeypatch.setattr(comparison, "import_seconds", lambda peer: 0.0)
    names, bench = ["pika-select", "pika-confirmed", "tavrida"], Noting()
    results = comparison.measure(names, bench, 100)
    assert [100] * 3 == [len(results[name]["rounds"]) for name in names]
    assert {(a, b) for a in names for b in names if a != b} <= set(itertools.pairwise(bench.order))


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_comparison_measures_what_it_promises(
    amqp_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Small, with both programs of pika, two ways to use tavrida, and one without a broker."""
    names = ["pika-select", "pika-confirmed", "tavrida", "tavrida-def", "tavrida-embedded"]
    out = tmp_path / "out.json"
    command = ["--quick", "--scale", "0.01", "--peers", ",".join(names)]
    assert 0 == comparison.main([*command, "--url", amqp_url, "--json", str(out)])
    printed = capsys.readouterr().out
    result = json.loads(out.read_text())
    assert names == list(result["peers"])
    for name, peer in result["peers"].items():
        (figures,) = peer["rounds"]
        assert {"W1", "W2", "W3", "ready", "rss", "first"} <= figures.keys()
        assert [] == figures["failures"]
        assert f"| {name} " in printed
    assert 0 == comparison.main(["--show", str(out)])
    assert printed == capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(120)  # it starts a broker, twice
def test_guarantees_and_recovery_are_measured(
    rabbitmq: Node, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Small, with one restart of a broker of its own."""
    out = tmp_path / "out.json"
    command = ["--peers", "tavrida,tavrida-untyped", "--quick", "--scale", "0.01"]
    assert 0 == guarantees.main([*command, "--restarts", "1", "--json", str(out)])
    result = json.loads(out.read_text())
    (seconds,) = result["recovery"]
    assert 0 < seconds < guarantees.TOO_LATE
    assert all(not each["rounds"][0]["failures"] for each in result["peers"].values())
    assert "of tavrida " in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_benchmark_that_is_stopped_leaves_nothing_behind(
    rabbitmq: Node, number: signal.Signals
) -> None:
    """No broker, no server, no client: all are in the session of the benchmark."""
    command = [sys.executable, "-m", "benchmarks.comparison", "--peers", "tavrida,pika-select"]
    with subprocess.Popen(
        command, cwd=CHECKOUT, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as bench:
        assert bench.stderr is not None
        while "round 1, tavrida" not in bench.stderr.readline():
            assert bench.poll() is None
        bench.send_signal(number)
        assert 130 == bench.wait(DEADLINE)
        eventually(lambda: not processes_of(bench.pid))


def processes_of(session: int) -> list[int]:
    """Return the processes that belong to a session."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(int(folder.name)) == session:
                found.append(int(folder.name))
    return found


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_more_of_everything_is_measured(
    amqp_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Small, but with several processes of each kind."""
    out = tmp_path / "out.json"
    command = ["--quick", "--scale", "0.02", "--only", "server processes,clients"]
    with pytest.MonkeyPatch.context() as patch:
        few = {n: scale.Setting(clients=n) for n in (1, 6)}
        patch.setitem(scale.PARTS, "clients", few)
        assert 0 == scale.main([*command, "--url", amqp_url, "--json", str(out)])
        printed = capsys.readouterr().out
    (figures,) = json.loads(out.read_text())["rounds"]
    assert ["1", "2", "4"] == list(figures["server processes"])
    assert ["1", "6"] == list(figures["clients"])
    assert all(
        value > 0 for part in figures.values() for row in part.values() for value in row.values()
    )
    assert "| server processes |" in printed


@pytest.mark.slow
def test_memory_is_looked_at_over_all_messages(
    amqp_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As many as were asked for, in steps."""
    out = tmp_path / "out.json"
    assert 0 == growth.main(["--messages", "400", "--url", amqp_url, "--json", str(out)])
    steps = json.loads(out.read_text())["steps"]
    assert list(range(0, 401, 20)) == [each["messages"] for each in steps]
    assert all(each["server"] > 10 and each["client"] > 10 for each in steps)
    assert "last less second" in capsys.readouterr().out


@pytest.mark.slow
def test_single_steps_are_measured() -> None:
    """One of them, quickly."""
    done = dev_bench("micro", "-k", "route", "--benchmark-disable")
    assert (0, "") == (done.returncode, done.stderr)
    assert "1 passed" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(120)  # it starts 16 processes, which a busy machine does slowly
@pytest.mark.parametrize("transport", ["sqlite", "amqp"])
def test_the_embedded_benchmark_measures_what_it_promises(
    transport: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Small, on either transport; only a file is measured against the disk."""
    more = [] if transport == "sqlite" else ["--url", request.getfixturevalue("amqp_url")]
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "benchmarks.embedded", "--quick", "--idle", "0.2"]
    done = subprocess.run(
        [*command, "--dir", str(tmp_path), "--json", str(out), *more],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    assert [out] == list(tmp_path.iterdir())  # the file of the bus is gone
    result = json.loads(out.read_text())
    (figures,) = result["rounds"]
    assert ("disk" in figures) == (transport == "sqlite")
    assert all(value > 0 for part in figures.values() for value in part.values())
    for part in figures:
        assert part in done.stdout
