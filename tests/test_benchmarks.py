# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The benchmarks run, and ``./dev bench`` finds them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import comparison
from tests.waiting import DEADLINE

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


NAMES = ["comparison", "dedup", "embedded"]


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
    assert "there is no pika; there is: pika-select, pika-blocking" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_comparison_measures_what_it_promises(
    amqp_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Small, with the reference, with two ways to use tavrida, and one without a broker."""
    names = ["pika-select", "tavrida", "tavrida-def", "tavrida-embedded"]
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
