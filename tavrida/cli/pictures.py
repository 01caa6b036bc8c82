# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures of a topology: ``tavrida topology show -f mermaid``, ``dot`` and ``svg``.

All three are made from the rows that the command shows. The svg has a layout of its own, so that
nothing else need be installed: publishers, exchanges, queues and their readers from left to
right, in which every arrow points to the right.
"""

from __future__ import annotations

import argparse
import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from cliff.formatters.base import ListFormatter

from tavrida.cli.application import WrongUsage

#: The columns of the rows, by which a picture is made.
COLUMNS = ("Kind", "Name", "Type", "Settings")


@dataclass(slots=True)
class Node:
    """A thing of a topology. Its kinds are service, exchange, queue, delay and dead."""

    kind: str
    name: str
    #: What stands below the name.
    notes: list[str] = field(default_factory=list)

    @property
    def lines(self) -> list[str]:
        """What is written into the box."""
        return [self.name, *self.notes]


@dataclass(slots=True)
class Edge:
    """An arrow between two nodes, by their keys."""

    start: str
    end: str
    labels: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Graph:
    """Nodes by key, and the arrows between them."""

    nodes: dict[str, Node] = field(default_factory=dict)
    edges: list[Edge] = field(default_factory=list)

    def add(self, node: Node) -> str:
        """Add a node where it is not there, and return its key."""
        key = f"{node.kind} {node.name}"
        self.nodes.setdefault(key, node)
        return key

    def join(self, start: str, end: str, label: str) -> None:
        """Add an arrow; a second one between the same nodes is another label of the first."""
        for edge in self.edges:
            if (edge.start, edge.end) == (start, end):
                edge.labels.append(label)
                return
        self.edges.append(Edge(start, end, [label]))


#: What a row says of a thing beside its kind and name.
Said = Mapping[str, Any]


def graph_of(rows: Iterable[Sequence[Any]]) -> Graph:
    """Return the graph of the rows of ``tavrida topology show``."""
    things: dict[str, list[tuple[str, Said]]] = {kind: [] for kind in _DRAW}
    for kind, name, type_, cell in rows:
        said = cell.machine_readable() if hasattr(cell, "machine_readable") else cell
        drawn_as = "delay" if "message_ttl" in said else kind
        things[drawn_as].append((name, {**said, "type": type_}))
    dead = {said.get("dead_letter_to") for _, said in things["queue"]}
    graph = Graph()
    for kind, draw in _DRAW.items():
        for name, said in things[kind]:
            if kind != "queue" or name not in dead:
                draw(graph, name, said)
    return graph


def _draw_exchange(graph: Graph, name: str, said: Said) -> None:
    graph.add(Node("exchange", name))


def _draw_queue(graph: Graph, name: str, said: Said) -> None:
    queue = graph.add(Node("queue", name, [said["type"]]))
    if "dead_letter_to" in said:
        graph.join(queue, graph.add(Node("dead", said["dead_letter_to"])), "given up")


def _draw_binding(graph: Graph, name: str, said: Said) -> None:
    graph.join(f"exchange {said['exchange']}", f"queue {name}", said["routing_key"])


def _draw_service(graph: Graph, name: str, said: Said) -> None:
    service = graph.add(Node("service", name))
    graph.join(f"queue {said['queue']}", service, "read by")
    if "publishes_to" in said:
        graph.join(service, graph.add(Node("exchange", said["publishes_to"])), "publishes")


def _draw_delay(graph: Graph, name: str, said: Said) -> None:
    """Draw all queues in which retries of another one wait as one, with the seconds of each."""
    queue = said["dead_letter_to"]
    key = graph.add(Node("delay", f"{queue}.retry.*"))
    if not graph.nodes[key].notes:
        graph.join(f"queue {queue}", key, "failed")
    graph.nodes[key].notes.append(f"again after {said['message_ttl'] / 1000:g} s")


#: How each kind of row is drawn, in the order in which that is done.
_DRAW = {
    "exchange": _draw_exchange,
    "queue": _draw_queue,
    "binding": _draw_binding,
    "service": _draw_service,
    "delay": _draw_delay,
}


# -- mermaid and dot -----------------------------------------------------------------------------

#: What encloses a label in mermaid, by the kind of the node.
_MERMAID = {
    "service": ("[[", "]]"),
    "exchange": ("{{", "}}"),
    "queue": ("[(", ")]"),
    "delay": ("[(", ")]"),
    "dead": ("[(", ")]"),
}

_DOT = {
    "service": "shape=component",
    "exchange": "shape=hexagon",
    "queue": "shape=cylinder",
    "delay": "shape=cylinder, style=dashed",
    "dead": 'shape=cylinder, style=filled, fillcolor="#f6dddd"',
}


def mermaid(graph: Graph) -> str:
    """Return the graph as Mermaid, which GitHub and GitLab draw in Markdown."""

    def text(lines: Iterable[str]) -> str:
        # Its strings know no escapes but entities, which begin with a hash sign.
        escaped = (html.escape(line, quote=True).replace("&", "#") for line in lines)
        return f'"{"<br>".join(escaped)}"'

    ids = {key: f"n{number}" for number, key in enumerate(graph.nodes)}
    lines = ["flowchart LR"]
    for key, node in graph.nodes.items():
        left, right = _MERMAID[node.kind]
        lines.append(f"    {ids[key]}{left}{text(node.lines)}{right}")
    lines += [
        f"    {ids[edge.start]} -->|{text(edge.labels)}| {ids[edge.end]}" for edge in graph.edges
    ]
    return "\n".join(lines)


def dot(graph: Graph) -> str:
    """Return the graph in the language of Graphviz."""

    def text(lines: Iterable[str]) -> str:
        escaped = "\\n".join(line.replace("\\", "\\\\").replace('"', '\\"') for line in lines)
        return f'"{escaped}"'

    ids = {key: f"n{number}" for number, key in enumerate(graph.nodes)}
    lines = ["digraph topology {", "    rankdir=LR;"]
    for key, node in graph.nodes.items():
        lines.append(f"    {ids[key]} [label={text(node.lines)}, {_DOT[node.kind]}];")
    lines += [
        f"    {ids[edge.start]} -> {ids[edge.end]} [label={text(edge.labels)}];"
        for edge in graph.edges
    ]
    return "\n".join([*lines, "}"])


# -- svg -----------------------------------------------------------------------------------------

#: Pixels: of a letter and a line of the font, around a text, between boxes, and at the rim.
LETTER, LINE, PAD, GAP, RIM = 7.3, 16, 10, 14, 20

#: Pixels between two columns at least; labels of arrows want more.
CHANNEL = 60

#: The fill and the rim of a box, by the kind of its node.
_COLOURS = {
    "service": ("#dcebf7", "#3b6ea5"),
    "exchange": ("#fdf0d0", "#b58a2b"),
    "queue": ("#e2f3e2", "#4b8b4b"),
    "delay": ("#f2f2f2", "#8a8a8a"),
    "dead": ("#f6dddd", "#a94f4f"),
}

_HEAD = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
    'width="{width:g}" height="{height:g}" font-family="monospace" font-size="12" '
    'text-anchor="middle">\n'
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" '
    'orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="#555"/></marker></defs>'
)

_HEADINGS = ("publishers", "exchanges", "queues", "readers, retries, dead letters")


@dataclass(slots=True)
class _Box:
    """A node in its place; a service that publishes and reads has two."""

    node: Node
    column: int
    x: float = 0
    y: float = 0

    @property
    def width(self) -> float:
        return max(map(len, self.node.lines)) * LETTER + 2 * PAD

    @property
    def height(self) -> float:
        return len(self.node.lines) * LINE + PAD

    @property
    def middle(self) -> float:
        return self.y + self.height / 2


def svg(graph: Graph) -> str:
    """Return the graph as a picture for a browser, with a layout of its own."""
    boxes, arrows = _boxed(graph)
    columns = [[box for box in boxes if box.column == n] for n in range(len(_HEADINGS))]
    _order(columns, arrows)
    width, height = _place(columns, arrows)
    body = [
        _HEAD.format(width=width, height=height),
        f'<rect width="{width:g}" height="{height:g}" fill="white"/>',
        *(_heading(column, text) for column, text in zip(columns, _HEADINGS, strict=True)),
        *(_arrow(*arrow) for arrow in arrows),
        *map(_box, boxes),
        *(_label(*arrow) for arrow in arrows),
    ]
    return "\n".join(filter(None, [*body, "</svg>"]))


_Arrow = tuple[_Box, _Box, Sequence[str]]


def _boxed(graph: Graph) -> tuple[list[_Box], list[_Arrow]]:
    """Return the boxes of all nodes, and the arrows between boxes."""
    columns = {"exchange": 1, "queue": 2, "service": 3, "delay": 3, "dead": 3}
    boxes = {key: _Box(node, columns[node.kind]) for key, node in graph.nodes.items()}
    publishers: dict[str, _Box] = {}
    arrows: list[_Arrow] = []
    for edge in graph.edges:
        start = boxes[edge.start]
        if start.node.kind == "service":
            start = publishers.setdefault(edge.start, _Box(start.node, 0))
        # What the other arrows mean is said by their ends, and above the columns.
        labels = edge.labels if start.node.kind == "exchange" else ()
        arrows.append((start, boxes[edge.end], labels))
    return [*publishers.values(), *boxes.values()], arrows


def _order(columns: list[list[_Box]], arrows: Sequence[_Arrow]) -> None:
    """Sort each column so that arrows cross little: by the mean place of what it is joined to."""

    def sort(column: list[_Box], known: list[_Box]) -> None:
        places = {id(box): place for place, box in enumerate(known)}

        def mean(box: _Box) -> float:
            near = [
                places[id(other)]
                for start, end, _ in arrows
                for one, other in ((start, end), (end, start))
                if one is box and id(other) in places
            ]
            return sum(near) / len(near) if near else len(known)

        column.sort(key=mean)

    publishers, exchanges, queues, readers = columns
    sort(exchanges, queues)
    sort(queues, exchanges)
    sort(exchanges, queues)
    sort(publishers, exchanges)
    sort(readers, queues)


def _place(columns: Sequence[Sequence[_Box]], arrows: Sequence[_Arrow]) -> tuple[float, float]:
    """Give every box its place, and return the width and height of the picture."""
    top = RIM + 2 * LINE
    heights = [sum(box.height + GAP for box in column) - GAP for column in columns]
    tallest = max(heights)
    x: float = RIM
    for number, (column, height) in enumerate(zip(columns, heights, strict=True)):
        heading = len(_HEADINGS[number]) * LETTER if column else 0
        width = max([heading, *(box.width for box in column)])
        spare = (tallest - height) / max(1, len(column))
        y = top + spare / 2
        for box in column:
            box.x, box.y = x + (width - box.width) / 2, y
            y += box.height + GAP + spare
        x += width + (_channel(number, arrows) if column else 0)
    return x + RIM, top + tallest + RIM


def _channel(column: int, arrows: Sequence[_Arrow]) -> float:
    """Return how much room the arrows that begin in a column, and their labels, want."""
    labels = [
        len(label) * LETTER + 4 * PAD
        for start, _, texts in arrows
        for label in texts
        if start.column == column
    ]
    return max([CHANNEL, *labels]) if column < len(_HEADINGS) - 1 else 0


def _heading(column: Sequence[_Box], text: str) -> str:
    if not column:
        return ""
    middle = column[0].x + column[0].width / 2
    return f'<text x="{middle:g}" y="{RIM + 4}" fill="#555">{text}</text>'


def _box(box: _Box) -> str:
    fill, rim = _COLOURS[box.node.kind]
    dash = ' stroke-dasharray="4 3"' if box.node.kind == "delay" else ""
    middle = box.x + box.width / 2
    lines = "".join(
        f'<text x="{middle:g}" y="{box.y + PAD / 2 + LINE * n - 4:g}">{html.escape(line)}</text>'
        for n, line in enumerate(box.node.lines, 1)
    )
    return (
        f"<g><title>{box.node.kind} {html.escape(box.node.name)}</title>"
        f'<rect x="{box.x:g}" y="{box.y:g}" width="{box.width:g}" height="{box.height:g}" '
        f'rx="5" fill="{fill}" stroke="{rim}"{dash}/>{lines}</g>'
    )


def _ends(start: _Box, end: _Box) -> tuple[float, float, float, float]:
    return start.x + start.width, start.middle, end.x, end.middle


def _arrow(start: _Box, end: _Box, labels: Sequence[str]) -> str:
    x1, y1, x2, y2 = _ends(start, end)
    bend = (x2 - x1) / 2
    return (
        f'<path d="M{x1:g},{y1:g} C{x1 + bend:g},{y1:g} {x2 - bend:g},{y2:g} {x2:g},{y2:g}" '
        'fill="none" stroke="#555" marker-end="url(#tip)"/>'
    )


def _label(start: _Box, end: _Box, labels: Sequence[str]) -> str:
    """Return the labels in the middle of an arrow, on white, so that they can be read."""
    x1, y1, x2, y2 = _ends(start, end)
    x, y = (x1 + x2) / 2, (y1 + y2) / 2 - LINE * (len(labels) - 1) / 2 + 4
    # Twice, and not with a paint-order, which not every program knows that shows pictures.
    return "".join(
        f'<text x="{x:g}" y="{y + LINE * n:g}" {look}>{html.escape(label)}</text>'
        for n, label in enumerate(labels)
        for look in ('stroke="white" stroke-width="4" aria-hidden="true"', 'fill="#333"')
    )


# -- formats of cliff ----------------------------------------------------------------------------


class _Picture(ListFormatter):
    """A format of ``tavrida topology show``."""

    def add_argument_group(self, parser: argparse.ArgumentParser) -> None:
        """It has no options."""

    def emit_list(
        self,
        column_names: Sequence[str],
        data: Iterable[Sequence[Any]],
        stdout: TextIO,
        parsed_args: argparse.Namespace,
    ) -> None:
        if tuple(column_names) != COLUMNS:
            raise WrongUsage(f"-f {parsed_args.formatter} draws everything: leave -c out")
        stdout.write(f"{self.draw(graph_of(data))}\n")

    def draw(self, graph: Graph) -> str:
        """Return the picture as text."""
        raise NotImplementedError


class Mermaid(_Picture):
    """``-f mermaid``."""

    def draw(self, graph: Graph) -> str:
        return mermaid(graph)


class Dot(_Picture):
    """``-f dot``."""

    def draw(self, graph: Graph) -> str:
        return dot(graph)


class Svg(_Picture):
    """``-f svg``."""

    def draw(self, graph: Graph) -> str:
        return svg(graph)
