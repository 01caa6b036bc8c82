# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The log as it is written: its formats, what it tells of a message, and what it hides."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tavrida import dispatcher, exceptions, logs
from tavrida.config import LogSettings
from tavrida.plugins.middleware.log import Log
from tavrida.service import ServiceController
from tavrida.testing.app import App
from tests import commands
from tests.packages import Packages
from tests.waiting import DEADLINE, eventually

LOG = logging.getLogger("acme")

SHOP = """
    import logging

    from oslo_config import cfg

    from tavrida import dispatcher, service


    @dispatcher.rpc_service("shop")
    class Shop(service.ServiceController):
        @classmethod
        def list_opts(cls):
            return [cfg.StrOpt("api", secret=True)]

        @dispatcher.rpc_method(service="shop", method="buy")
        def buy(self, request, proxy):
            logging.getLogger("acme").warning("the key is %s", self.options["api"])
            return {}

        @dispatcher.rpc_response_method(service="bank", method="pay")
        def paid(self, response, proxy): ...
"""


class Written(io.StringIO):
    """What was logged; ``is_screen`` says that it is one."""

    is_screen = False

    def isatty(self) -> bool:
        return self.is_screen

    def records(self, event: str = "") -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.getvalue().splitlines()]
        return [each for each in found if not event or each.get("event") == event]


@pytest.fixture
def begin() -> Iterator[Callable[..., Written]]:
    """Begin a log with settings and secrets; what pytest had is put back."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level

    def start(*secrets: str, is_screen: bool = False, **settings: Any) -> Written:
        written = Written()
        written.is_screen = is_screen
        logs.begin(LogSettings(**settings), secrets, written)
        return written

    yield start
    root.handlers[:] = handlers
    root.setLevel(level)


@dispatcher.rpc_service("shop")
class Shop(ServiceController):
    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        middleware = Log()
        self.add_incoming_middleware(middleware)
        self.add_outgoing_middleware(middleware)

    @dispatcher.rpc_method(service="shop", method="buy")
    def buy(self, request: Any, proxy: Any, n: int, **more: Any) -> dict[str, Any]:
        if n < 0:
            raise ValueError(f"{n} is below 0")
        LOG.info("bought %d", n, extra={"n": n, "card": {"token": "4111", "kind": "x"}})
        return {"n": n}


# -- formats


def test_json_is_an_object_a_line_with_all_fields(begin: Callable[..., Written]) -> None:
    """Time, level, logger, text, what is handled, and what ``extra`` gave; no dashes."""
    written = begin(format="json")
    with App(Shop) as app:
        app.client.shop.buy(n=1).call(correlation_id="chain-1", timeout=DEADLINE)
    (record,) = [each for each in written.records() if each["logger"] == "acme"]
    assert record.pop("time").endswith("Z")
    assert record.pop("request_id")
    assert record.pop("message_id")
    assert {
        "level": "INFO",
        "logger": "acme",
        "message": "bought 1",
        "n": 1,
        "card": {"token": "***", "kind": "x"},
        "correlation_id": "chain-1",
        "entry_point": "shop.buy",
        "service": "shop",
    } == record


def test_json_has_the_traceback_as_one_field(begin: Callable[..., Written]) -> None:
    """So that a record is one line, whatever it tells."""
    written = begin(format="json")
    with App(Shop) as app, pytest.raises(exceptions.RemoteError):
        app.client.shop.buy(n=-1).call(correlation_id="chain-2", timeout=DEADLINE)
    (record,) = [each for each in written.records() if "exception" in each]
    assert "ValueError: -1 is below 0" in record["exception"]
    assert ("chain-2", "ValueError", 1, "request") == (
        record["correlation_id"],
        record["error"],
        record["attempt"],
        record["kind"],
    )


class Odd:
    def __repr__(self) -> str:
        raise RuntimeError("no")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no")

    __hash__ = None  # type: ignore[assignment]


def test_json_takes_whatever_it_is_given(begin: Callable[..., Written]) -> None:
    """Sets, objects, half characters, numbers that are none, and much of it: still one line."""
    written = begin(format="json")
    deep: list[Any] = []
    deep.append(deep)
    LOG.info(
        "odd \udcff",
        extra={
            "a_set": {1},
            "odd": Odd(),
            "half": "\udcff",
            "nan": float("nan"),
            "big": "x" * 100_000,
            "many": list(range(100_000)),
            "deep": deep,
            "keys": {1: {"b": Odd()}},
        },
    )
    (record,) = written.records()
    assert [1] == record["a_set"]
    assert "cannot be shown" in record["odd"]
    assert "\\udcff" == record["half"]
    assert record["nan"] is None
    assert logs.MAX_VALUE == len(record["big"])
    assert record["many"].endswith("...")
    assert "cannot be shown" in record["keys"]["1"]["b"]


def test_pretty_is_a_line_for_people(begin: Callable[..., Written]) -> None:
    """In colour on a screen only; control characters of strangers are escaped."""
    written = begin(format="pretty")
    LOG.warning("careful", extra={"n": 1, "who": "\x1b[2J", "token": "4111"})
    assert "WARNING careful  n=1 who=\\x1b[2J token=***\n" == written.getvalue()[13:]
    colorful = begin(format="pretty", is_screen=True)
    LOG.error("careful")
    assert "\x1b[31mERROR  \x1b[0m careful" in colorful.getvalue()


@pytest.mark.parametrize("name", ["text", LogSettings().format])
def test_text_is_as_it_always_was(begin: Callable[..., Written], name: str) -> None:
    """By its name, and by default."""
    written = begin(format=name)
    LOG.info("hello", extra={"n": 1})
    assert " INFO acme: hello\n" == written.getvalue()[23:]


def test_a_format_of_ones_own_may_name_what_is_handled(begin: Callable[..., Written]) -> None:
    """All of it."""
    written = begin(
        format="%(correlation_id)s %(entry_point)s %(service)s %(request_id)s %(message_id)s "
        "%(message)s"
    )
    LOG.info("outside")
    assert "- - - - - outside\n" == written.getvalue()


# -- secrets


@pytest.mark.parametrize("name", ["json", "pretty", "text", "%(message)s"])
def test_secrets_of_the_configuration_are_never_written(
    begin: Callable[..., Written], name: str
) -> None:
    """However they get into a record: in text, arguments, fields or a traceback."""
    secrets = ("amqp://shop:s3cr3t%2Fword@host/", "key-1234", 'a"b\\c:d', "abc")
    written = begin(*secrets, format=name, level="DEBUG")
    LOG.info("%s and s3cr3t%%2Fword", "s3cr3t/word", extra={"url": ["key-1234"]})
    LOG.info("amqp://shop:unknown1@elsewhere:5672/v and abc")
    try:
        int("key-1234")
    except ValueError:
        LOG.exception("failed")
    text = written.getvalue()
    LOG.info("none", extra={"shown": {"by": 'a"b\\c:d'}})
    for secret in ("s3cr3t", "key-1234", "unknown1", "c:d"):
        assert secret not in text
    assert "amqp://shop:***@elsewhere:5672/v and abc" in text  # too short to be told from a word


def test_names_that_are_masked_are_those_of_the_option(begin: Callable[..., Written]) -> None:
    """Parts of names, in any case, at any depth."""
    written = begin(format="json", mask=("x-key", "PIN"))
    LOG.info("hi", extra={"headers": {"X-Key-2": "1", "a": [{"spinner": 2, "b": 3}]}, "token": "4"})
    (record,) = written.records()
    assert {"X-Key-2": "***", "a": [{"spinner": "***", "b": 3}]} == record["headers"]
    assert "4" == record["token"]


# -- the middleware


def test_each_handled_message_is_one_record(begin: Callable[..., Written]) -> None:
    """With how long it took and how it ended, and without its payload."""
    written = begin(format="json")
    with App(Shop) as app:
        app.client.shop.buy(n=1).call(correlation_id="chain-1", timeout=DEADLINE)
        with pytest.raises(exceptions.RemoteError):
            app.client.shop.buy(n=-1).call(timeout=DEADLINE)
    first, second = written.records("handled")
    assert ("shop", "buy", "request", "ok", "chain-1", "test") == tuple(
        first[name] for name in ("service", "method", "kind", "outcome", "correlation_id", "source")
    )
    assert 0 < first["seconds"] < DEADLINE
    assert "ValueError" == second["outcome"]
    assert "payload" not in first
    assert [] == written.records("sent")


def test_payloads_and_headers_are_logged_at_debug_only(begin: Callable[..., Written]) -> None:
    """Without what is to be masked; what is sent is logged then, too."""
    written = begin(format="json", level="DEBUG")
    with App(Shop) as app:
        app.client.shop.buy(n=1, password="hidden").call(timeout=DEADLINE)
        eventually(lambda: written.records("sent"))
    (handled,) = written.records("handled")
    assert {"n": 1, "password": "***"} == handled["payload"]
    assert "shop.buy" == handled["headers"]["destination"]
    (sent,) = written.records("sent")
    assert ("response", "confirmed", {"n": 1}) == (sent["kind"], sent["outcome"], sent["payload"])
    assert "hidden" not in written.getvalue()


# -- as an operator has it


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Where servers find the package acme-shop."""
    folder = tmp_path / "site"
    folder.mkdir()
    packages = Packages(folder)
    packages.add("acme-shop", {"tavrida.controllers": {"shop": "acme_logs:Shop"}}, acme_logs=SHOP)
    packages.remove()
    return {"PYTHONPATH": str(folder)}


def ini(folder: Path, log: str) -> Path:
    path = folder / "shop.conf"
    path.write_text(
        f"[connection]\nurl = sqlite://{folder}/bus.db\n[server]\nservices = shop\n"
        "incoming_middleware = log\n[service:shop]\napi = key-1234\n[log]\n" + log
    )
    return path


def buy(folder: Path) -> None:
    assert 0 == _buys(folder)


def _buys(folder: Path) -> int:
    path = folder / "shop.conf"
    return commands.run("tavrida", "call", "shop.buy", "--config-file", path).code


def test_a_server_says_what_it_is_when_it_begins(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """Version, transport, controllers with methods, queues and plugins, for people."""
    path = ini(tmp_path, "format = %(message)s\n")
    with commands.serve("--config-file", path, environment=environment) as server:
        first = server.output[-1]
        assert "is serving shop (queue shop, exchange shop) on sqlite:///" in first
        assert first.endswith("(transport sqlite), 10 at a time.")
        assert server.line("acme_logs.Shop") == (
            "  shop: acme_logs.Shop, methods buy; hears bank.pay"
        )
        assert server.line("middleware") == "  serializer json; incoming middleware Log"


def test_a_server_logs_json_without_the_secrets_of_its_plugins(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """Each line of its log is an object, the summary too; a secret option is not in it."""
    path = ini(tmp_path, "format = json\n")
    with commands.serve("--config-file", path, environment=environment) as server:
        buy(tmp_path)
        handled = json.loads(server.line('"event":"handled"'))
        assert 0 == server.end()
    records = [json.loads(line) for line in server.output]
    (summary,) = [each["summary"] for each in records if "summary" in each]
    (service,) = summary["services"]
    assert ("sqlite", ["buy"], "shop", ["Log"]) == (
        summary["transport"],
        service["methods"],
        service["queue"],
        summary["middleware"]["incoming"],
    )
    (told,) = [each for each in records if each["logger"] == "acme"]
    assert "the key is ***" == told["message"]
    assert handled["correlation_id"] == told["correlation_id"]


@pytest.mark.parametrize("is_closed", [False, True])
def test_a_log_on_a_full_disk_stops_nothing(
    environment: dict[str, str], tmp_path: Path, is_closed: bool
) -> None:
    """The server serves, answers and stops as always; only its log is gone. Or has none."""
    path = ini(tmp_path, "format = json\nlevel = DEBUG\n")
    with Path("/dev/full").open("w") as full:
        process = subprocess.Popen(
            [commands.SCRIPTS / "tavrida-server", "--config-file", path],
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=full,
            preexec_fn=functools.partial(os.close, 2) if is_closed else None,  # noqa: PLW1509 - no threads
        )
    try:
        eventually(lambda: _buys(tmp_path) == 0)
        for _ in range(3):
            buy(tmp_path)
        process.terminate()
        assert 0 == process.wait(DEADLINE)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()
