# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""``tavrida-server``: serves what the ini names.

Exit codes: 0 stopped as asked (or, with ``--check``, nothing is wrong), 1 the configuration is
wrong, 2 the command line is wrong, 3 the broker cannot be reached or refuses us.
"""

from __future__ import annotations

import io
import logging
import sys

from oslo_config import cfg

from tavrida import assembly, exceptions, logs, options, plugins, state
from tavrida.config import redact
from tavrida.server import Server

LOG = logging.getLogger(__name__)

OK, BAD_CONFIGURATION, NO_BROKER = 0, 1, 3

_CHECK = cfg.BoolOpt(
    "check",
    default=False,
    help="Load and check everything, say what would run, and exit without connecting.",
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    try:
        conf = options.parse(
            sys.argv[1:] if arguments is None else arguments, "tavrida-server", [_CHECK]
        )
        server, configuration = assembly.load(conf)
    except exceptions.ConfigError as error:
        for fault in error.faults:
            print(f"tavrida-server: {fault}", file=sys.stderr)
        return BAD_CONFIGURATION
    if conf.check:
        print(describe(server))
        return OK
    # What handlers print shall be seen when it is printed, also in a file or a journal.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    logs.begin(configuration.log, configuration.secrets)
    try:
        if state.prepare(server.config.urls):
            LOG.info("No [connection] url is set: using the embedded %s.", state.default_url())
        server.run()
    except exceptions.ConfigError as error:
        print(f"tavrida-server: {error}", file=sys.stderr)
        return BAD_CONFIGURATION
    except exceptions.TransportError as error:
        print(f"tavrida-server: {error}", file=sys.stderr)
        return NO_BROKER
    return OK


def describe(server: Server) -> str:
    """Return what a server would run, for people."""
    settings, topology = server.settings, server.topology
    urls = ", ".join(map(redact, server.config.urls))
    lines = [
        f"tavrida {plugins.version()} would serve on {urls}, {settings.concurrency} at a time:"
    ]
    for placement in server.placements:
        cls = type(placement.dispatcher.controller)
        where = f"queue {placement.queue} ({settings.queue_type}), exchange {placement.exchange}"
        lines.append(
            f"  {placement.dispatcher.service}: {cls.__module__}.{cls.__qualname__}, {where}"
        )
        lines += [
            f"    {mark.kind:<12} {mark.entry_point}" for mark in placement.dispatcher.handlers
        ]
    lines.append(
        f"It would declare {len(topology.exchanges)} exchanges, {len(topology.queues)} queues and "
        f"{len(topology.bindings)} bindings."
    )
    return "\n".join(lines)
