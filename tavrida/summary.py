# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The summary of a server, which it logs when it begins to serve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tavrida import exceptions, plugins
from tavrida.config import ConnectionConfig, HealthSettings, ServerSettings, redact
from tavrida.messages import REQUEST
from tavrida.middleware import Middleware
from tavrida.topology import Placement


def summary_of(
    config: ConnectionConfig,
    settings: ServerSettings,
    placements: Sequence[Placement],
    health: HealthSettings,
) -> dict[str, Any]:
    """Return what a server is and serves, as plain data."""
    return {
        "version": plugins.version(),
        "transport": config.scheme,
        "hosts": [redact(url) for url in config.urls],
        "concurrency": settings.concurrency,
        "services": [_service(each, settings.queue_type) for each in placements],
        "serializer": settings.serializer,
        "middleware": {
            "incoming": _names(placements, "incoming"),
            "outgoing": _names(placements, "outgoing"),
        },
        "health": f"{health.host}:{health.port}" if health.port else "",
    }


def _service(placement: Placement, queue_type: str) -> dict[str, Any]:
    marks = list(placement.dispatcher.handlers)
    cls = type(placement.dispatcher.controller)
    return {
        "service": placement.dispatcher.service,
        "controller": f"{cls.__module__}.{cls.__qualname__}",
        "queue": placement.queue,
        "queue_type": queue_type,
        "exchange": placement.exchange,
        "methods": [mark.entry_point.method for mark in marks if mark.kind == REQUEST],
        "hears": sorted({str(mark.entry_point) for mark in marks if mark.kind != REQUEST}),
    }


def _names(placements: Sequence[Placement], way: str) -> list[str]:
    chains: list[Sequence[Middleware]] = [getattr(each, way) for each in placements]
    return list(dict.fromkeys(type(each).__name__ for chain in chains for each in chain))


def text_of(summary: dict[str, Any]) -> str:
    """Return a summary for people: what is served where, then a line a service, then plugins."""
    services = summary["services"]
    where = ", ".join(
        f"{each['service']} (queue {each['queue']}, exchange {each['exchange']})"
        for each in services
    )
    first = f"tavrida {summary['version']} is serving {where} on {', '.join(summary['hosts'])}"
    lines = [f"{first} (transport {summary['transport']}), {summary['concurrency']} at a time."]
    for each in services:
        heard = f"; hears {', '.join(each['hears'])}" if each["hears"] else ""
        methods = ", ".join(each["methods"]) or "none"
        lines.append(f"  {each['service']}: {each['controller']}, methods {methods}{heard}")
    used = [f"serializer {summary['serializer']}"]
    for way, names in summary["middleware"].items():
        used += [f"{way} middleware {', '.join(names)}"] if names else []
    used += [f"health at {summary['health']}"] if summary["health"] else []
    return exceptions.printable("\n".join([*lines, "  " + "; ".join(used)]), keep="\n")
