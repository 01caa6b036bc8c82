# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""A private PostgreSQL: own data folder, a socket in it and no port, nothing left behind.

It never touches a PostgreSQL that the machine runs already. Needs Debian's ``postgresql``;
:func:`missing` tells what is not there.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

import psycopg

#: Where Debian keeps the programs of each version.
_DEBIAN = Path("/usr/lib/postgresql")

#: Seconds for it to answer, and to stop.
TIMEOUT = 30.0

# Reads until end of file, which comes when the process that holds the other end is gone, however
# it ended: then ends PostgreSQL and removes its folder.
_WATCHDOG = 'read -r _; kill -s QUIT "$1"; sleep 1; rm -rf -- "$2"'

_CLUSTER = ("-U", "postgres", "-A", "trust", "-N", "-E", "UTF8", "--locale=C.UTF-8")

#: A quick one for tests: what it holds need not outlive the machine.
_SETTINGS = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "listen_addresses=")


def missing() -> str | None:
    """Say what a private PostgreSQL needs and this machine lacks; None when all is there."""
    if _programs() is None:
        return "PostgreSQL is not installed (Debian package postgresql)"
    return None


def _programs() -> Path | None:
    """Return the folder of the newest version's programs."""
    found = [folder for folder in _DEBIAN.glob("*/bin") if (folder / "initdb").exists()]
    if found:
        return max(found, key=lambda folder: float(folder.parent.name))
    anywhere = shutil.which("initdb")
    return Path(anywhere).resolve().parent if anywhere else None


def _user() -> dict[str, Any]:
    """Return as whom it runs: PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return {}
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    entry = names.get("postgres") or names["nobody"]
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


class Cluster:
    """One PostgreSQL; as a context manager it is started on entry and removed on exit.

    Should this process end without that, even by SIGKILL, a watchdog ends it.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tavrida-postgresql-"))
        self._who = _user()
        if self._who:
            os.chown(self.folder, self._who["user"], self._who["group"])
        self._log = self.folder / "postgresql.log"
        self._server: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def url(self, database: str) -> str:
        """Give the url of a database, as psycopg takes it."""
        return f"postgresql://postgres@/{database}?host={self.folder}"

    def new_database(self) -> str:
        """Make an empty database and return its url."""
        name = f"test_{secrets.token_hex(6)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def _start(self) -> None:
        programs = _programs()
        assert programs is not None
        data = self.folder / "data"
        with self._log.open("ab") as log:
            made = subprocess.run(
                [str(programs / "initdb"), "-D", str(data), *_CLUSTER],
                **self._options(log),
                timeout=TIMEOUT,
                check=False,
            )
            assert made.returncode == 0, self._log.read_text()
            settings = [part for setting in _SETTINGS for part in ("-c", setting)]
            self._server = subprocess.Popen(
                [programs / "postgres", "-D", data, "-k", self.folder, *settings],
                **self._options(log),
            )
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHDOG, "watchdog", str(self._server.pid), str(self.folder)],
            stdin=subprocess.PIPE,
            process_group=0,
        )
        deadline = time.monotonic() + TIMEOUT
        while True:
            try:
                psycopg.connect(self.url("postgres")).close()
            except psycopg.OperationalError:
                assert self._server.poll() is None, self._log.read_text()
                assert time.monotonic() < deadline, self._log.read_text()
                time.sleep(0.02)
            else:
                return

    def _options(self, log: Any) -> dict[str, Any]:
        # Not os.environ: PG* of the caller must not reach it.
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"}
        return {
            "env": environment,
            "cwd": self.folder,
            "stdin": subprocess.DEVNULL,
            "stdout": log,
            "stderr": log,
            "process_group": 0,  # a Ctrl-C in the terminal is for the tests
            **self._who,
        }

    def close(self) -> None:
        """End it and remove its data."""
        if self._server is not None:
            self._server.send_signal(signal.SIGINT)  # "fast": it waits for no client
            try:
                self._server.wait(TIMEOUT)
            except subprocess.TimeoutExpired:
                self._server.send_signal(signal.SIGQUIT)
                self._server.wait(TIMEOUT)
            self._server = None
        if self._watchdog is not None:
            self._watchdog.kill()
            with self._watchdog:  # closes the pipe and waits
                self._watchdog = None
        shutil.rmtree(self.folder, ignore_errors=True)
