# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Draws what was measured into docs/images: ``./dev bench plots``.

From the same data files as report.py; needs matplotlib, which is in .venv-peers.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import scale
from benchmarks._measuring import ROOT, say
from benchmarks.comparison import REFERENCE, rate_of

DATA = ROOT / "benchmarks/data"
IMAGES = ROOT / "docs/images"

TAVRIDA, OTHERS = "#c0392b", "#7f8c8d"


def _bars(axes: Axes, title: str, values: dict[str, list[float]]) -> None:
    """Draw medians as bars, from least to most as a line."""
    names = list(reversed(values))
    middle = [statistics.median(values[name]) for name in names]
    below = [m - min(values[name]) for m, name in zip(middle, names, strict=True)]
    above = [max(values[name]) - m for m, name in zip(middle, names, strict=True)]
    colors = [TAVRIDA if name.startswith("tavrida") else OTHERS for name in names]
    axes.barh(names, middle, xerr=[below, above], color=colors, ecolor="black", capsize=2)
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def comparison(result: dict[str, Any]) -> Figure:
    """Draw the three workloads side by side."""
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    panels: list[tuple[str, str, Callable[[Any], float]]] = [
        ("W1: p50 of a call, ms (less is better)", "W1", lambda each: 1000 * float(each["p50"])),
        ("W2: calls/s, 64 in flight", "W2", rate_of),
        ("W3: confirmed events/s", "W3", rate_of),
    ]
    for axes, (title, workload, figure_of) in zip(figure.subplots(1, 3), panels, strict=True):
        values = {
            name: [figure_of(each[workload]) for each in peer["rounds"] if workload in each]
            for name, peer in result["peers"].items()
        }
        _bars(axes, title, {name: found for name, found in values.items() if found})
    return figure


def _line(axes: Axes, label: str, values: dict[str, list[float]], color: str) -> None:
    """Draw medians over numbers, with least and most as a band."""
    at = [int(number) for number in values]
    axes.plot(at, [statistics.median(v) for v in values.values()], "o-", color=color, label=label)
    least, most = [min(v) for v in values.values()], [max(v) for v in values.values()]
    axes.fill_between(at, least, most, color=color, alpha=0.2, linewidth=0)
    axes.margins(y=0.15)
    axes.spines[["top", "right"]].set_visible(False)


def sizes(rounds: Sequence[Any]) -> Figure:
    """Draw rates against the size of a body."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    found = [each["sizes"] for each in rounds]
    panels = (("W2", "calls/s, 64 in flight"), ("W3", "confirmed events/s"))
    for axes, (workload, title) in zip(figure.subplots(1, 2), panels, strict=True):
        for name, color in ((REFERENCE, OTHERS), ("tavrida", TAVRIDA)):
            rates = {size: scale.rates_of(found, size, name, workload) for size in found[0]}
            _line(axes, name, rates, color)
        axes.set(title=title, xlabel="bytes of a body", xscale="log", yscale="log")
        axes.legend(frameon=False)
    return figure


def more(rounds: Sequence[Any]) -> Figure:
    """Draw calls a second against the number of everything."""
    figure = Figure(figsize=(11, 2.8), layout="constrained")
    for axes, part in zip(figure.subplots(1, len(scale.PARTS)), scale.PARTS, strict=True):
        counts = rounds[0][part]
        rates = {n: [each[part][n]["rate"] for each in rounds] for n in counts}
        _line(axes, part, rates, TAVRIDA)
        axes.set(xlabel=part, xscale="log", ylim=(0, None))
        axes.set_xticks([int(n) for n in counts], [f"{int(n):,}" for n in counts])
        axes.minorticks_off()
    figure.axes[0].set_ylabel("calls/s")
    return figure


def growth(steps: Sequence[dict[str, float]]) -> Figure:
    """Draw memory against messages."""
    figure = Figure(figsize=(6, 2.8), layout="constrained")
    axes = figure.subplots()
    for who, color in (("server", TAVRIDA), ("client", OTHERS)):
        values = {str(int(each["messages"])): [each[who]] for each in steps}
        _line(axes, who, values, color)
    axes.set(xlabel="messages", ylabel="resident MB", ylim=(0, None))
    axes.legend(frameon=False)
    return figure


def main() -> int:
    """Draw all."""
    # The same data makes the same file.
    mpl.rcParams["svg.hashsalt"] = "tavrida"

    def data(name: str) -> Any:
        return json.loads((DATA / f"{name}.json").read_text())

    rounds = data("scale")["rounds"]
    figures = {
        "comparison": comparison(data("comparison")),
        "sizes": sizes(rounds),
        "scale": more(rounds),
        "growth": growth(data("growth")["steps"]),
    }
    IMAGES.mkdir(exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(IMAGES / f"{name}.svg", metadata={"Date": None})
    say(f"drew {', '.join(figures)} into {IMAGES.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
