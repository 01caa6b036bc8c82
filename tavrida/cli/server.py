# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""``tavrida-server``: serves what the ini names.

Exit codes: 0 stopped as asked (or, with ``--check``, nothing is wrong), 1 the configuration is
wrong, 2 the command line is wrong, 3 the broker cannot be reached or refuses us.
"""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from oslo_config import cfg

from tavrida import assembly, exceptions, health, logs, options, plugins, state
from tavrida.board import Board, Seat
from tavrida.cli import streams
from tavrida.cli.running import Running, Settings, apply
from tavrida.cli.systemd import ServiceManager
from tavrida.config import redact
from tavrida.plugins.middleware import prometheus
from tavrida.server import Server

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

LOG = logging.getLogger(__name__)

OK, BAD_CONFIGURATION, NO_BROKER, INTERRUPTED, UNREAD = 0, 1, 3, 130, 141

#: New objects after which Python's collector looks at them: a hundred messages in hand are more
#: than Python's 700 already, and none of them is garbage.
OBJECTS = 10_000

#: The same before any plugin was imported: Python's, or what a sitecustomize made of it.
_AT_FIRST = gc.get_threshold()

_COMMAND_LINE = [
    cfg.BoolOpt(
        "check",
        default=False,
        help="Load and check everything, say what would run, and exit without connecting.",
    ),
    cfg.BoolOpt(
        "reload",
        default=False,
        help="For development: start again whenever a source of a plugin or a file of the "
        "configuration changes. Needs the extra 'reload'.",
    ),
]


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    streams.open_all()
    try:
        return _main(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:  # before there is a server that would finish what runs
        return INTERRUPTED


def _main(given: list[str]) -> int:
    def parse() -> options.Parsed:
        return options.parse(given, "tavrida-server", _COMMAND_LINE)

    try:
        conf = parse()
        if conf.reload and not conf.check:
            from tavrida.cli import sources

            return sources.serve(given, conf.config_file or (), conf.config_dir or ())
        with _counting_together(conf):
            return _check_or_serve(conf, parse)
    except exceptions.ConfigError as error:
        return _refuse(error)


def _counting_together(conf: options.Parsed) -> contextlib.AbstractContextManager[None]:
    """Return what has several workers add up their metrics, where nothing says how they do it.

    Where something does, it is done now: what a plugin imports would come too late for it.
    """
    section = conf.server
    try:
        names = {*section.incoming_middleware, *section.outgoing_middleware}
        is_counting = "prometheus" in names
        has_workers = section.workers > 1 and not conf.check
    except (ValueError, cfg.Error):  # which is told with all other faults
        return contextlib.nullcontext()
    if is_counting:
        conf.register_opts(prometheus.Prometheus.list_opts(), "middleware:prometheus")
        folder = conf["middleware:prometheus"].multiprocess_dir
        if folder:
            try:
                prometheus.share(folder)
            except exceptions.ConfigError as error:
                raise exceptions.ConfigError(f"[middleware:prometheus] {error}") from None
        elif has_workers and not os.environ.get(prometheus.ENVIRONMENT):
            from tavrida.cli import counting

            return counting.together()
    return contextlib.nullcontext()


def _check_or_serve(conf: options.Parsed, parse: Callable[[], options.Parsed]) -> int:
    if not conf.check:
        # One that comes while plugins are imported waits until there is somebody to handle it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    server, configuration = assembly.load(conf)
    if conf.check:
        return _print(describe(server))
    _begin_log(configuration)
    if state.prepare(server.config.urls):
        LOG.info("No [connection] url is set: using the embedded %s.", state.default_url())
    running = Running(parse, configuration, server)
    manager = ServiceManager.of_environment()
    if configuration.server.workers == 1:
        return _serve(running, manager)
    return _serve_in_workers(running, manager)


def _print(text: str) -> int:
    """Print a result and return the exit code."""
    try:
        print(text, flush=True)
    except OSError as error:
        streams.forget()
        if isinstance(error, BrokenPipeError):
            return UNREAD
        _say(f"the result cannot be written: {error.strerror}")
        return BAD_CONFIGURATION
    return OK


def _say(text: str) -> None:
    streams.say("tavrida-server", text)


def _refuse(error: exceptions.ConfigError) -> int:
    for fault in error.faults:
        _say(fault)
    return BAD_CONFIGURATION


def _begin_log(configuration: options.Configuration) -> None:
    # What handlers print shall be seen when it is printed, also in a file or a journal.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    logs.begin(configuration.log)


def _serve(running: Running, manager: ServiceManager) -> int:
    """Serve in this process."""
    server = running.server

    def reload() -> None:
        manager.reloading()
        running.reload()
        manager.ready("Serving.")

    signal.signal(signal.SIGHUP, lambda number, frame: server.request(reload))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    server.request(lambda: manager.ready("Serving."))
    return _run(server, manager)


def _serve_in_workers(running: Running, manager: ServiceManager) -> int:
    """Serve in several processes, each with a server of its own."""
    from tavrida.cli import master

    _warn_of_counting_alone(running.server)
    # Before the first fork: whichever worker takes a connection answers it, for all of them.
    settings, count = running.configuration.health, running.configuration.server.workers
    listening = health.listen(settings) if settings.port else None
    board = Board(count)

    def has_ended(number: int, pid: int) -> None:
        board.clear(number)
        _forget(pid)

    def work(number: int, pipe: Connection) -> int:
        try:
            server = assembly.assemble(running.configuration)
        except exceptions.ConfigError as error:
            return _refuse(error)
        server.health_seat = Seat(listening, board, number) if listening else None

        def apply_settings(settings: Settings) -> None:
            try:
                apply(server, settings)
            except exceptions.TransportError as error:
                LOG.error("Not reloaded in pid %d, or in part only: %s", os.getpid(), error)  # noqa: TRY400
            finally:
                master.tell(pipe, master.RELOADED)

        def reload(settings: Settings) -> None:
            server.request(lambda: apply_settings(settings))

        threading.Thread(
            target=master.listen, args=(pipe, server.request_stop, reload), daemon=True
        ).start()
        server.request(lambda: master.tell(pipe, master.SERVES))
        return _run(server, ServiceManager())

    def reload() -> Settings | None:
        return running.settings if running.reload() else None

    return master.Master(
        count,
        work,
        graceful_timeout=lambda: running.configuration.server.graceful_timeout,
        reload=reload,
        has_ended=has_ended,
        final=(BAD_CONFIGURATION, NO_BROKER),
        manager=manager,
    ).run()


def _warn_of_counting_alone(server: Server) -> None:
    """Say so if workers will not add up their metrics: ``_counting_together`` sees only the ini."""
    chains = (chain for each in server.placements for chain in (each.incoming, each.outgoing))
    is_counting = any(isinstance(each, prometheus.Prometheus) for chain in chains for each in chain)
    if is_counting and not os.environ.get(prometheus.ENVIRONMENT):
        LOG.warning(
            "Each worker counts for itself, and /metrics is that of whoever answers: a controller "
            "has the middleware prometheus of its own. Name it in incoming_middleware and "
            "outgoing_middleware of [server] instead, or set %s.",
            prometheus.ENVIRONMENT,
        )


def _forget(pid: int) -> None:
    """Take a worker that has ended out of the metrics, as far as they are of living ones."""
    folder = os.environ.get(prometheus.ENVIRONMENT)
    if folder:
        from tavrida.cli import counting

        counting.forget(Path(folder), pid)


def _run(server: Server, manager: ServiceManager) -> int:
    """Run a server and return the exit code."""
    # Else a plugin, or whoever set the machine up, knows better: 0 turns the collector off.
    if gc.get_threshold() == _AT_FIRST and 0 < _AT_FIRST[0] < OBJECTS:
        gc.set_threshold(OBJECTS)
    try:
        server.run(before_stop=manager.stopping)
    except exceptions.ConfigError as error:
        return _refuse(error)
    except exceptions.TransportError as error:
        _say(str(error))
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
    return exceptions.printable("\n".join(lines), keep="\n")
