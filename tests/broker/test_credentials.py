# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Passwords that are asked for anew at each connection, and one that changes meanwhile."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shlex
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import pytest

from tavrida import discovery, dispatcher, exceptions
from tavrida.client import RPCClient
from tavrida.config import ConnectionConfig, Credentials
from tavrida.plugins.transports import passwords
from tavrida.server import Server
from tavrida.service import ServiceController
from tests.broker.conftest import EXCHANGE, QUEUE
from tests.processes import Program
from tests.rabbitmq import Node
from tests.waiting import DEADLINE, eventually


@dispatcher.rpc_service("svc")
class Service(ServiceController):
    seen: SimpleQueue[int] = SimpleQueue()

    @dispatcher.rpc_method(service="svc", method="ok")
    def ok(self, request: Any, proxy: Any, n: int = 0) -> dict[str, Any]:
        self.seen.put(n)
        return {"n": n}


class Account(NamedTuple):
    """A user of the broker whose password the test may change."""

    node: Node
    user: str
    password: str
    vhost: str

    @property
    def url(self) -> str:
        """Where it may log in, without the password."""
        return f"amqp://{self.user}@127.0.0.1:{self.node.port}/{self.vhost}"

    def change(self, password: str) -> None:
        """Change the password and end all connections, as an operator does after a leak."""
        self.node.ctl("change_password", self.user, password)
        self.node.ctl("close_all_connections", "--vhost", self.vhost, "password changed")


@pytest.fixture
def account(rabbitmq: Node, vhost: str) -> Account:
    """A user of this test's own."""
    Service.seen = SimpleQueue()
    name, password = f"user-{secrets.token_hex(4)}", secrets.token_hex(8)
    rabbitmq.add_user(name, password)
    rabbitmq.permit(name, vhost)
    return Account(rabbitmq, name, password, vhost)


@pytest.fixture
def secret(account: Account, tmp_path: Path) -> Path:
    """The file that holds the password of that user, as an editor writes it."""
    path = tmp_path / "password"
    path.write_text(f"{account.password}\n")
    return path


class Source(NamedTuple):
    """What a program is given instead of a password."""

    options: Callable[[Account, Path], dict[str, Any]]


SOURCES = {
    "file": Source(lambda account, file: {"url": account.url, "password_file": str(file)}),
    "command": Source(
        lambda account, file: {"url": account.url, "password_command": f"cat {file}"}
    ),
    "function": Source(
        lambda account, file: {
            "host": "127.0.0.1",
            "port": account.node.port,
            "virtual_host": account.vhost,
            "credentials": Credentials(account.user, lambda: file.read_text().strip()),
        }
    ),
    "function, url without a user": Source(
        lambda account, file: {
            "url": account.url.replace(f"{account.user}@", ""),
            "credentials": Credentials(account.user, lambda: file.read_text().strip()),
        }
    ),
}


def _config(options: dict[str, Any], **more: Any) -> ConnectionConfig:
    return ConnectionConfig(
        **{"retry_delay": 0.05, "max_retry_delay": 0.2, "connection_attempts": 1, **options, **more}
    )


def _client(config: ConnectionConfig) -> RPCClient:
    known = discovery.LocalDiscovery()
    known.register_remote_service("svc", EXCHANGE)
    return RPCClient(config, discovery=known)


@pytest.mark.parametrize("source", SOURCES.values(), ids=list(SOURCES))
def test_a_password_that_changes_under_load_loses_nothing(
    account: Account, secret: Path, source: Source
) -> None:
    """The broker knows the new one some time before the file has it; both sides wait for that."""
    config = _config(source.options(account, secret))
    sent: list[int] = []
    stop = threading.Event()
    with (
        Server(config, QUEUE, EXCHANGE, [Service], queue_type="classic"),
        _client(config) as client,
    ):

        def cast() -> None:
            while not stop.is_set():
                client.svc.ok(n=len(sent)).cast()
                sent.append(len(sent))

        thread = threading.Thread(target=cast)
        thread.start()
        eventually(lambda: len(sent) > 20)
        account.change("new-one")
        secret.write_text("new-one\n")
        before = len(sent)
        eventually(lambda: len(sent) > before + 20)
        stop.set()
        thread.join(DEADLINE)
        handled: set[int] = set()

        def all_handled() -> bool:
            while not Service.seen.empty():
                handled.add(Service.seen.get())
            return handled >= set(sent)

        eventually(all_handled)


def test_a_password_that_is_refused_after_a_while_is_tried_again(
    account: Account, secret: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At start it ends the program; later, whoever changed it is about to tell us the new one."""
    config = _config({"url": account.url, "password_file": str(secret)})
    refused = f"refused user '{account.user}'"
    with (
        Server(config, QUEUE, EXCHANGE, [Service], queue_type="classic"),
        _client(replace(config, password_file="", url=(_with(account, "new-one"),))) as client,
    ):
        account.change("new-one")
        eventually(lambda: any(refused in record.message for record in caplog.records))
        secret.write_text("new-one")
        assert {"n": 1} == client.svc.ok(n=1).call(timeout=DEADLINE).payload
    assert account.password not in caplog.text
    assert "new-one" not in caplog.text
    secret.write_text("wrong")
    with pytest.raises(exceptions.ConnectionFailed, match=refused) as caught:
        Server(config, QUEUE, EXCHANGE, [Service]).start()
    assert caught.value.is_final


def _with(account: Account, password: str) -> str:
    return account.url.replace("@", f":{password}@")


class Pipe:
    """A file that takes for ever to read, while this side of it is open."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self._writer: int | None = None

    def has_reader(self) -> bool:
        """Tell whether somebody reads; from then on nothing comes."""
        if self._writer is None:
            with contextlib.suppress(OSError):  # nobody reads yet
                self._writer = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
        return self._writer is not None

    def close(self) -> None:
        """Let all go who still read."""
        os.close(os.open(self.path, os.O_RDWR | os.O_NONBLOCK))
        if self._writer is not None:
            os.close(self._writer)


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Pipe]:
    """Such a file."""
    pipe = Pipe(tmp_path / "pipe")
    yield pipe
    pipe.close()


def _raises() -> str:
    raise LookupError("s3cret")


PYTHON = shlex.quote(sys.executable)
SCREAMS = shlex.quote("import sys; print('s3cret'); sys.exit(3)")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"password_file": "{empty}"}, r"password_file \S+/empty gave nothing, where a password"),
        ({"password_file": "{binary}"}, r"password_file \S+/binary gave what is no UTF-8"),
        (
            {"password_command": f"{PYTHON} -c {SCREAMS}"},
            r"password_command '\S+' failed with exit c",
        ),
        ({"password_command": "true s3cret"}, "password_command 'true' gave nothing"),
        ({"password_command": "yes s3cret"}, "password_command 'yes' gave more than 65536 char"),
        ({"password_file": "/dev/zero"}, "password_file /dev/zero gave more than 65536 characters"),
        ({"credentials": Credentials("u", _raises)}, "Credentials.password raised LookupError"),
        ({"credentials": Credentials("u", lambda: 5)}, "Credentials.password gave no text: int"),  # type: ignore[arg-type, return-value]
    ],
)
def test_a_password_that_cannot_be_had_is_one_sentence_and_tried_again(
    options: dict[str, Any], said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What the source printed is not in it: it may be the secret."""
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"s3cret\xff")
    places = {name: tmp_path / name for name in ("empty", "binary")}
    config = _config(
        {
            name: value.format(**places) if isinstance(value, str) else value
            for name, value in options.items()
        },
        url=("amqp://127.0.0.1:1/",),
        connection_attempts=2,
    )
    with (
        _client(config) as client,
        pytest.raises(exceptions.ConnectionFailed, match=said) as caught,
    ):
        client.svc.ok().cast()
    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in repr(config)
    assert re.search(said, caplog.text)
    assert not caught.value.is_final


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"password_file": "/no/such"}, "password_file /no/such cannot be read: is the path right"),
        ({"password_file": "/proc"}, "password_file /proc cannot be read: is the path right"),
        ({"password_command": "no-such-program x"}, "there is no program 'no-such-program'"),
        ({"password_command": "cat 'x"}, "password_command is no command line: check its quotes"),
        ({"password_command": " "}, "password_command is no command line"),
        ({"url": "amqp://shop@h/"}, "has a user and no password: write it as"),
    ],
)
def test_a_source_that_is_not_there_is_told_before_anything_connects(
    options: dict[str, Any], said: str
) -> None:
    """A slip of the pen is no reason to wait for better times."""
    with pytest.raises(exceptions.ConfigError, match=said):
        Server(_config(options), QUEUE, EXCHANGE, [Service])


def test_two_sources_are_one_too_many() -> None:
    """Nobody could tell which one is right."""
    with pytest.raises(exceptions.ConfigError, match="password_file and password_command are both"):
        ConnectionConfig(password_file="a", password_command="b")


@pytest.mark.parametrize("kind", ["command", "file"])
def test_a_source_that_hangs_does_not_keep_a_server_from_ending(
    pipe: Pipe, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time is limited, and SIGTERM does not wait for it; what a command started ends too."""
    value = f"sh -c 'cat {pipe.path}; true'" if kind == "command" else str(pipe.path)
    url = "amqp://guest@127.0.0.1:1/"
    text = f"""
import logging
from tavrida import config, dispatcher, server, service
logging.basicConfig(level="DEBUG", format="%(message)s")
@dispatcher.rpc_service("svc")
class Service(service.ServiceController):
    @dispatcher.rpc_method(service="svc", method="ok")
    def ok(self, request, proxy): pass
settings = config.ConnectionConfig(url={url!r}, password_{kind}={value!r})
srv = server.Server(settings, "q", "e", [Service])
print("starts")
srv.run()
"""
    with Program(["-c", text]) as program:
        program.line("starts")
        eventually(pipe.has_reader)
        assert 0 == program.end()
    eventually(lambda: not _readers(pipe.path))
    monkeypatch.setattr(passwords, "TIMEOUT", 0.2)
    config = _config({"url": url, f"password_{kind}": value})
    said = f"password_{kind} .* gave no password within"
    with _client(config) as client, pytest.raises(exceptions.ConnectionFailed, match=said):
        client.svc.ok().cast()


def _readers(pipe: Path) -> list[str]:
    """The processes that were started to read a pipe."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[:2] == [b"cat", str(pipe).encode()]:
            found.append(folder.name)
    return found
