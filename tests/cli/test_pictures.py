# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""``tavrida topology show -f mermaid|dot|svg`` draws what the services need."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from tavrida.cli import pictures
from tests import commands
from tests.cli.conftest import failed


def rows_of(shop: str) -> list[tuple[str, str, str, Any]]:
    """The rows of the command for a service that hears a bank and publishes news."""
    queue, dead = f"{shop}_queue", f"{shop}_queue.dead"
    return [
        ("service", shop, "", {"queue": queue, "exchange": shop, "publishes_to": "news"}),
        ("exchange", "bank.notifications", "topic", {}),
        ("exchange", "news", "topic", {}),
        ("exchange", shop, "topic", {}),
        ("queue", dead, "quorum", {}),
        ("queue", queue, "quorum", {"dead_letter_to": dead}),
        ("queue", f"{shop}.1", "quorum", {"dead_letter_to": queue, "message_ttl": 1000}),
        ("queue", f"{shop}.2", "quorum", {"dead_letter_to": queue, "message_ttl": 2500}),
        ("binding", queue, "", {"exchange": "bank.notifications", "routing_key": "bank.paid"}),
        ("binding", queue, "", {"exchange": shop, "routing_key": shop}),
        ("binding", queue, "", {"exchange": shop, "routing_key": f"{shop}.*"}),
    ]


ROWS = rows_of("shop")


def parsed(text: str) -> ET.Element:
    return ET.fromstring(text)  # noqa: S314 - it is our own


def test_the_graph_has_a_node_for_each_thing_and_an_arrow_for_each_way() -> None:
    """All delays of a queue are one node, all keys between two nodes one arrow."""
    graph = pictures.graph_of(ROWS)
    assert {
        "exchange bank.notifications",
        "exchange news",
        "exchange shop",
        "queue shop_queue",
        "dead shop_queue.dead",
        "service shop",
        "delay shop_queue.retry.*",
    } == set(graph.nodes)
    assert ["again after 1 s", "again after 2.5 s"] == graph.nodes["delay shop_queue.retry.*"].notes
    assert {
        ("exchange bank.notifications", "queue shop_queue", ("bank.paid",)),
        ("exchange shop", "queue shop_queue", ("shop", "shop.*")),
        ("queue shop_queue", "service shop", ("read by",)),
        ("queue shop_queue", "dead shop_queue.dead", ("given up",)),
        ("queue shop_queue", "delay shop_queue.retry.*", ("failed",)),
        ("service shop", "exchange news", ("publishes",)),
    } == {(edge.start, edge.end, tuple(edge.labels)) for edge in graph.edges}


def test_mermaid_names_every_node_once_and_joins_known_ones() -> None:
    """What GitHub draws."""
    head, *lines = pictures.mermaid(pictures.graph_of(ROWS)).splitlines()
    assert "flowchart LR" == head
    nodes = [match[1] for line in lines if (match := re.match(r"    (n\d+)[\[{]", line))]
    arrows = [re.match(r'    (n\d+) -->\|".*"\| (n\d+)$', line) for line in lines]
    joined = [each.groups() for each in arrows if each]
    assert len(nodes) == len(set(nodes)) == 7
    assert 6 == len(joined)
    assert {each for pair in joined for each in pair} <= set(nodes)


def test_dot_has_the_same() -> None:
    """What Graphviz draws, where it is installed."""
    text = pictures.dot(pictures.graph_of(ROWS))
    assert text.startswith("digraph topology {")
    assert text.endswith("}")
    assert 7 == len(re.findall(r"^    n\d+ \[", text, re.MULTILINE))
    assert 6 == len(re.findall(r"^    n\d+ -> n\d+ ", text, re.MULTILINE))
    assert r'label="shop\nshop.*"' in text


@pytest.mark.parametrize("draw", [pictures.mermaid, pictures.dot, pictures.svg])
def test_no_name_breaks_the_picture(draw: Any) -> None:
    """A name of an exchange may have any characters."""
    name = 'a"b<c>&\\d'
    text = draw(pictures.graph_of([("exchange", name, "topic", {})]))
    if draw is pictures.svg:
        root = parsed(text)
        assert name in [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]
    elif draw is pictures.dot:
        assert r'label="a\"b<c>&\\d"' in text
    else:
        assert '{{"a#quot;b#lt;c#gt;#amp;\\d"}}' in text


def boxes_of(text: str) -> list[tuple[float, float, float, float]]:
    """Return the corners of all boxes of a picture, but for its background."""
    rects = parsed(text).iter("{http://www.w3.org/2000/svg}rect")
    found = []
    for each in rects:
        x, y = float(each.get("x", -1)), float(each.get("y", -1))
        if x >= 0:
            found.append((x, y, x + float(each.attrib["width"]), y + float(each.attrib["height"])))
    return found


@pytest.mark.parametrize("services", [1, 2, 7])
def test_no_two_boxes_of_the_svg_overlap(services: int) -> None:
    """And all are inside of the picture."""
    rows = [row for n in range(services) for row in rows_of(f"shop_{n}")]
    text = pictures.svg(pictures.graph_of(rows))
    boxes = boxes_of(text)
    # bank.notifications and news are shared; each service stands at both ends.
    assert 2 + 6 * services == len(boxes)
    root = parsed(text)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for number, (left, top, right, bottom) in enumerate(boxes):
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        for x1, y1, x2, y2 in boxes[:number]:
            assert right <= x1 or x2 <= left or bottom <= y1 or y2 <= top


@pytest.mark.parametrize(
    ("form", "head"), [("mermaid", "flowchart LR"), ("dot", "digraph"), ("svg", "<svg ")]
)
def test_the_command_draws_without_a_broker(
    nowhere: Path, packages: dict[str, str], form: str, head: str
) -> None:
    """The services of the ini."""
    with nowhere.open("a") as file:
        file.write("[server]\nservices = echo\n")
    ended = commands.run(
        "tavrida", "topology", "show", "-f", form, "--config-file", nowhere, environment=packages
    )
    assert (0, "") == (ended.code, ended.stderr)
    assert ended.stdout.startswith(head)
    assert "echo_queue" in ended.stdout


def test_a_picture_has_all_columns(nowhere: Path, packages: dict[str, str]) -> None:
    """A part of a row cannot be drawn."""
    with nowhere.open("a") as file:
        file.write("[server]\nservices = echo\n")
    arguments = ("topology", "show", "-f", "dot", "-c", "Name", "--config-file", nowhere)
    failed(commands.run("tavrida", *arguments, environment=packages), 64, "leave -c out")


def test_an_unknown_format_has_exit_code_64() -> None:
    """With those that there are."""
    ended = commands.run("tavrida", "topology", "show", "-f", "png")
    assert (64, "") == (ended.code, ended.stdout)
    assert "'svg'" in ended.stderr
