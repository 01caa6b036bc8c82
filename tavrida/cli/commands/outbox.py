# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""``tavrida outbox relay`` and ``tavrida outbox sql``."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tavrida import exceptions
from tavrida.cli.application import Configured, TavridaCommand

if TYPE_CHECKING:
    from tavrida.config import ConnectionConfig
    from tavrida.plugins.transports import Transport

LOG = logging.getLogger(__name__)


class OutboxRelay(Configured):
    """Publish what an outbox stored, until SIGTERM or SIGINT"""

    def take_action(self, args: argparse.Namespace) -> None:
        from tavrida import logs, options, state
        from tavrida.client import RPCClient
        from tavrida.outbox.relay import Relay

        connection, discovery, settings, log = options.read_outbox(self.parsed(args))
        connect = connector_of(settings.url)
        logs.begin(log)
        state.prepare(connection.urls)
        _knock(connection)
        with RPCClient(connection, discovery=discovery, source="tavrida_relay") as client:
            relay = Relay(
                connect,
                client,
                poll=settings.poll,
                batch=settings.batch,
                lease=settings.lease,
                max_pause=settings.max_pause,
            )
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: relay.request_stop())
            LOG.info("The relay is publishing.")
            relay.run()


def _knock(connection: ConnectionConfig) -> None:
    """See whether the broker lets us in: the relay itself connects when there is a message.

    Raises:
        ConnectionFailed: it never will, as with a wrong password.
    """
    from tavrida.cli.broker import at_broker

    async def leave(broker: Transport) -> None:
        """Do nothing: it let us in."""

    try:
        at_broker(dataclasses.replace(connection, connection_attempts=1), "outbox", leave)
    except exceptions.ConnectionFailed as error:
        if error.is_final:
            raise
        LOG.warning("What is stored waits for the broker: %s", error)


class OutboxSql(TavridaCommand):
    """Print the SQL of the outbox's tables, for a migration"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        from tavrida.transactions import DIALECTS

        parser = super().get_parser(prog_name)
        parser.add_argument("dialect", choices=DIALECTS, help="the kind of the database")
        return parser

    def take_action(self, args: argparse.Namespace) -> None:
        from tavrida.outbox import table

        for statement in table.statements(args.dialect):
            print(f"{statement};\n")


def connector_of(url: str) -> Callable[[], Any]:
    """Return what connects to the database of a url.

    Raises:
        ConfigError: the url is missing, of another kind, or its driver is not installed.
    """
    scheme, _, rest = url.partition(":")
    if scheme in ("postgresql", "postgres"):
        return _postgresql(url)
    if scheme == "sqlite" and rest.startswith("///"):
        return _sqlite("/" + rest.lstrip("/"))
    raise exceptions.ConfigError(
        f"[outbox] url {'is missing' if not url else f'has the scheme {scheme!r}'}: write it as "
        "sqlite:///PATH/orders.db or postgresql://USER:PASSWORD@HOST/DATABASE. For other drivers, "
        "run tavrida.outbox.relay.Relay in a program"
    )


def _sqlite(path: str) -> Callable[[], Any]:
    def connect() -> Any:
        import sqlite3

        # Not made where it is missing: its tables would be missing too.
        try:
            return sqlite3.connect(f"{Path(path).as_uri()}?mode=rw", uri=True)
        except sqlite3.OperationalError as error:
            raise sqlite3.OperationalError(f"{path}: {error}") from None

    return connect


def _postgresql(url: str) -> Callable[[], Any]:
    try:
        import psycopg
        import psycopg.conninfo
    except ModuleNotFoundError:
        raise exceptions.ConfigError(
            "[outbox] url names PostgreSQL, whose driver is not installed: pip install "
            "'psycopg[binary]'"
        ) from None
    try:
        psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.ProgrammingError:  # its text has the password
        raise exceptions.ConfigError(
            "[outbox] url cannot be read: write it as postgresql://USER:PASSWORD@HOST/DATABASE, "
            "and the characters / # ? @ : % in a user name or password as %2F %23 %3F %40 %3A %25"
        ) from None
    return lambda: psycopg.connect(url)
