# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Draws trace.svg: a client and three servers on the embedded bus, and the spans they exported.

Run it in the project's folder: .venv/bin/python docs/images/trace.py
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from html import escape
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tavrida import dispatcher
from tavrida.client import RPCClient
from tavrida.config import ConnectionConfig
from tavrida.plugins.discovery.convention import ConventionDiscovery
from tavrida.plugins.middleware.opentelemetry import OpenTelemetry
from tavrida.server import Server
from tavrida.service import ServiceController

MEMORY = InMemorySpanExporter()

#: The spans of the picture.
COUNT = 8

WIDTH, ROW, LEFT, TOP = 900, 30, 250, 70
COLORS = {"web": "#7a5c99", "shop": "#3b6ea8", "bank": "#b8562b", "mail": "#4b8a4a"}


def tracing() -> OpenTelemetry:
    """Return what exports spans to memory."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(MEMORY))
    return OpenTelemetry(tracer_provider=provider)


class Traced(ServiceController):
    """Has its spans exported to memory, and sees where the others are by convention."""

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        middleware = tracing()
        self.add_incoming_middleware(middleware)
        self.add_outgoing_middleware(middleware)


@dispatcher.rpc_service("shop")
class Shop(Traced):
    """Sells, when the bank says yes."""

    @dispatcher.rpc_method(service="shop", method="buy")
    def buy(self, request: Any, proxy: Any) -> dict[str, bool]:
        time.sleep(0.004)
        proxy.bank.pay(amount=3).wait()
        time.sleep(0.002)
        proxy.publish_as("sold", n=1)
        return {"bought": True}


@dispatcher.rpc_service("bank")
class Bank(Traced):
    """Pays."""

    @dispatcher.rpc_method(service="bank", method="pay")
    def pay(self, request: Any, proxy: Any, amount: int) -> dict[str, int]:
        time.sleep(0.010)
        proxy.mail.send(text="paid").cast()
        return {"paid": amount}


@dispatcher.rpc_service("mail")
class Mail(Traced):
    """Writes to the customer."""

    @dispatcher.rpc_method(service="mail", method="send")
    def send(self, request: Any, proxy: Any, text: str) -> None:
        time.sleep(0.006)

    @dispatcher.subscription_method(service="shop", method="sold")
    def sold(self, event: Any, proxy: Any, n: int) -> None:
        time.sleep(0.005)


def run() -> list[ReadableSpan]:
    """Return the spans of one call, in the order of their beginning."""
    config = ConnectionConfig(url=("sqlite://?memory=trace",), async_engine=True)
    with ExitStack() as stack:
        for controller in (Mail, Bank, Shop):
            controller.set_discovery(ConventionDiscovery())
            name = dispatcher.service_of(controller)
            stack.enter_context(Server(config, name, name, [controller]))
        client = stack.enter_context(
            RPCClient(
                config,
                discovery=ConventionDiscovery(),
                source="web",
                outgoing_middleware=[tracing()],
            )
        )
        client.shop.buy().call()  # the first one makes the queue for answers
        _wait()
        MEMORY.clear()
        client.shop.buy().call()
        _wait()
    return _in_order(list(MEMORY.get_finished_spans()))


def _wait() -> None:
    while len(MEMORY.get_finished_spans()) < COUNT:
        time.sleep(0.01)


def _in_order(spans: list[ReadableSpan], parent: int | None = None) -> list[ReadableSpan]:
    """Return a tree of spans, each one before its children, these by their beginning."""
    known = {span.context.span_id for span in spans if span.context}
    found = []
    for span in sorted(spans, key=lambda each: each.start_time or 0):
        above = span.parent.span_id if span.parent and span.parent.span_id in known else None
        if above == parent and span.context:
            found += [span, *_in_order(spans, span.context.span_id)]
    return found


def service_of(span: ReadableSpan) -> str:
    """Return whose span it is: the handler's, or the sender's."""
    attributes = span.attributes or {}
    if attributes["messaging.operation.type"] == "process":
        return str(attributes["rpc.service"])
    return str(attributes["tavrida.source"]).partition(".")[0]


def draw(spans: list[ReadableSpan]) -> str:
    """Return the picture of a trace."""
    first = min(span.start_time or 0 for span in spans)
    last = max(span.end_time or 0 for span in spans)
    scale = (WIDTH - LEFT - 120) / (last - first)
    depth: dict[int, int] = {}
    height = TOP + ROW * len(spans) + 20
    trace = f"{spans[0].context.trace_id:032x}" if spans[0].context else ""
    size = f"{WIDTH} {height}"
    font = 'font-family="sans-serif" font-size="13"'
    title = f"One call of shop.buy: trace {trace}"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" {font}>',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="20" y="28" font-size="15" font-weight="bold">{title}</text>',
    ]
    for number, (service, color) in enumerate(COLORS.items()):
        x = 20 + 90 * number
        lines.append(f'<rect x="{x}" y="42" width="12" height="12" fill="{color}"/>')
        lines.append(f'<text x="{x + 17}" y="53">{service}</text>')
    for number, span in enumerate(spans):
        assert span.context and span.start_time and span.end_time
        level = depth.get(span.parent.span_id, -1) + 1 if span.parent else 0
        depth[span.context.span_id] = level
        y = TOP + ROW * number
        start, width = LEFT + (span.start_time - first) * scale, span.end_time - span.start_time
        milliseconds = f"{width / 1e6:.1f} ms"
        name = escape(span.name)
        kind = span.kind.name.lower()
        color = COLORS[service_of(span)]
        hollow = "" if kind in ("server", "consumer") else ' fill-opacity="0.45"'
        lines.append(f'<line x1="20" x2="{WIDTH - 20}" y1="{y}" y2="{y}" stroke="#e4e4e4"/>')
        lines.append(f'<text x="{20 + 14 * level}" y="{y + 20}">{name}</text>')
        lines.append(
            f'<rect x="{start:.1f}" y="{y + 7}" width="{max(2.0, width * scale):.1f}" height="16" '
            f'rx="2" fill="{color}"{hollow}/>'
        )
        right = start + max(2.0, width * scale) + 5
        lines += [
            f'<text x="{right:.1f}" y="{y + 20}" font-size="11" {look}>{kind} {milliseconds}</text>'
            for look in ('stroke="#ffffff" stroke-width="3" aria-hidden="true"', 'fill="#555555"')
        ]
    return "\n".join([*lines, "</svg>"]) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("trace.svg").write_text(draw(run()))
