# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Metrics, as they are scraped from a server that did something."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tavrida import discovery, dispatcher, exceptions
from tavrida.client import RPCClient
from tavrida.config import ConnectionConfig, HealthSettings
from tavrida.plugins.middleware import prometheus
from tavrida.plugins.middleware.prometheus import Prometheus
from tavrida.retries import Retry
from tavrida.server import Server
from tavrida.service import ServiceController
from tests import commands
from tests.packages import Packages
from tests.rabbitmq import free_port
from tests.scrapes import Scrape
from tests.waiting import DEADLINE, eventually

SHOP = """
    from tavrida import dispatcher, service


    @dispatcher.rpc_service("shop")
    class Shop(service.ServiceController):
        @dispatcher.rpc_method(service="shop", method="buy")
        def buy(self, request, proxy):
            return {}
"""


@dispatcher.rpc_service("shop")
class Shop(ServiceController):
    gate = threading.Event()

    @dispatcher.rpc_method(service="shop", method="buy")
    def buy(self, request: Any, proxy: Any, n: int = 0) -> dict[str, int]:
        if n < 0:
            raise ValueError(f"{n} is below 0")
        proxy.publish_as("sold", n=n)
        return {"n": n}

    @dispatcher.rpc_method(service="shop", method="gated")
    async def gated(self, request: Any, proxy: Any) -> None:
        assert self.gate.wait(DEADLINE)

    @dispatcher.rpc_method(service="shop", method="slow")
    def slow(self, request: Any, proxy: Any) -> None:
        assert self.gate.wait(DEADLINE)

    @dispatcher.rpc_method(service="shop", method="asks")
    def asks(self, request: Any, proxy: Any, method: str, timeout: float, n: int = 0) -> None:
        proxy.shop[method](n=n).wait(timeout=timeout)

    @dispatcher.subscription_method(service="shop", method="sold")
    def sold(self, event: Any, proxy: Any, n: int) -> None: ...


@pytest.fixture(autouse=True)
def gate() -> Iterator[threading.Event]:
    """What the slow handlers wait for."""
    Shop.gate = threading.Event()
    yield Shop.gate
    Shop.gate.set()


@pytest.fixture(params=["rabbitmq", "sqlite"])
def config(request: pytest.FixtureRequest) -> ConnectionConfig:
    """A place of the test's own, on every transport in turn."""
    if request.param == "rabbitmq":
        url = str(request.getfixturevalue("amqp_url"))
    else:
        url = f"sqlite://{request.getfixturevalue('tmp_path')}/bus.db"
    return ConnectionConfig(url=(url,), async_engine=True, retry_delay=0.1)


@pytest.fixture
def port(config: ConnectionConfig) -> Iterator[int]:
    """The port of a server with metrics."""
    port = free_port()
    named = ("prometheus",)
    with Server(
        config,
        "shop",
        "shop",
        [Shop],
        queue_type="classic",
        retry=Retry(attempts=2, first_delay=0.05),
        health=HealthSettings(port=port),
        incoming_middleware=named,
        outgoing_middleware=named,
    ):
        yield port


@pytest.fixture
def client(config: ConnectionConfig, port: int) -> Iterator[RPCClient]:
    """A client of that server."""
    known = discovery.LocalDiscovery()
    known.register_remote_service("shop", "shop")
    with RPCClient(config, discovery=known, source="test") as client:
        yield client


@pytest.fixture(autouse=True)
def _discovery() -> None:
    known = discovery.LocalDiscovery()
    known.register_remote_service("shop", "shop")
    known.register_local_publisher("shop", "shop.notifications")
    known.register_remote_publisher("shop", "shop.notifications")
    Shop.set_discovery(known)


def reaches(port: int, value: float, name: str, **labels: str) -> None:
    """Wait until a sample has a value; fail if it stays another."""
    eventually(lambda: Scrape(port).value(name, **labels) == value)


BUY = {"service": "shop", "method": "buy", "kind": "request"}


def test_handlers_are_counted_and_timed_by_how_they_ended(client: RPCClient, port: int) -> None:
    """By service, method and kind; a histogram with the buckets of the option."""
    for n in (1, 2, 3):
        client.shop.buy(n=n).call()
    with pytest.raises(exceptions.RemoteError):
        client.shop.buy(n=-1).call()
    handled = "tavrida_handler_seconds_count"
    reaches(port, 3, handled, **BUY, outcome="ok")
    reaches(port, 1, handled, **BUY, outcome="error")
    reaches(port, 3, handled, service="shop", method="sold", kind="notification", outcome="ok")
    scrape = Scrape(port)
    bucket = "tavrida_handler_seconds_bucket"
    assert 3 == scrape.value(bucket, **BUY, outcome="ok", le="60.0")
    assert 0 < scrape.value("tavrida_handler_seconds_sum", **BUY, outcome="ok") < DEADLINE


def test_what_is_sent_is_counted_by_whether_the_broker_took_it(
    client: RPCClient, port: int
) -> None:
    """Answers have the name of their handler, notifications their topic, requests their goal."""
    client.shop.buy(n=1).call()
    published = "tavrida_published_messages_total"
    buy = {"service": "shop", "method": "buy"}
    reaches(port, 1, published, **buy, kind="response", outcome="confirmed")
    sold = {"service": "shop", "method": "sold", "kind": "notification"}
    reaches(port, 1, published, **sold, outcome="confirmed")
    with pytest.raises(exceptions.RemoteError):
        client.shop.asks(method="buy", n=-1, timeout=DEADLINE).call()
    reaches(port, 1, published, **BUY, outcome="confirmed")
    reaches(port, 1, published, **buy, kind="error", outcome="confirmed")


def test_what_runs_is_counted(client: RPCClient, port: int, gate: threading.Event) -> None:
    """While it does, and not after."""
    slow = {"service": "shop", "method": "slow", "kind": "request"}
    client.shop.slow().cast()
    client.shop.slow().cast()
    reaches(port, 2, "tavrida_in_flight_messages", **slow)
    gate.set()
    reaches(port, 0, "tavrida_in_flight_messages", **slow)
    reaches(port, 2, "tavrida_handler_seconds_count", **slow, outcome="ok")


def test_retries_and_dead_letters_are_counted(client: RPCClient, port: int) -> None:
    """A cast that fails twice was put off once, and is dead then."""
    client.shop.buy(n=-1).cast()
    reaches(port, 1, "tavrida_dead_letters_total", **BUY)
    assert 1 == Scrape(port).value("tavrida_retried_messages_total", **BUY)
    client.shop.nothing().cast()
    unknown = {"service": "", "method": "", "kind": "request"}
    reaches(port, 1, "tavrida_dead_letters_total", **unknown)


def test_calls_are_timed_by_how_they_ended_and_late_answers_counted(
    client: RPCClient, port: int, gate: threading.Event
) -> None:
    """With the answer, with an error, or in vain."""
    called = "tavrida_call_seconds_count"
    client.shop.asks(method="buy", timeout=DEADLINE).call()
    reaches(port, 1, called, service="shop", method="buy", outcome="ok")
    with pytest.raises(exceptions.RemoteError):
        client.shop.asks(method="buy", n=-1, timeout=DEADLINE).call()
    reaches(port, 1, called, service="shop", method="buy", outcome="error")
    with pytest.raises(exceptions.RemoteError):
        client.shop.asks(method="slow", timeout=0.2).call()
    reaches(port, 1, called, service="shop", method="slow", outcome="timeout")
    assert 0 == Scrape(port).value("tavrida_late_answers_total")
    gate.set()
    reaches(port, 1, "tavrida_late_answers_total")


def test_a_connected_process_is_told(port: int) -> None:
    """With the metrics of the program itself, in the format that was asked for."""
    reaches(port, 1, "tavrida_connected")
    scrape = Scrape(port)
    assert scrape.content_type.startswith("text/plain; version=")
    assert "process_cpu_seconds" in scrape.families
    assert {
        "tavrida_handler_seconds",
        "tavrida_in_flight_messages",
        "tavrida_published_messages",
        "tavrida_call_seconds",
        "tavrida_retried_messages",
        "tavrida_dead_letters",
        "tavrida_late_answers",
        "tavrida_connected",
    } <= scrape.families.keys()


def test_the_docs_name_every_metric() -> None:
    """With its labels."""
    docs = (Path(__file__).parents[1] / "docs" / "observability.md").read_text()
    for metric in Prometheus().registry.collect():
        name = metric.name + ("_total" if metric.type == "counter" else "")
        assert f"| `{name}` |" in docs


def test_the_dashboard_asks_for_metrics_and_labels_that_exist() -> None:
    """Each panel has a question, and no name in it is wrong."""
    path = Path(__file__).parents[1] / "etc" / "tavrida" / "grafana-dashboard.json"
    panels = [each for each in json.loads(path.read_text())["panels"] if each["type"] != "row"]
    asked = " ".join(target["expr"] for panel in panels for target in panel["targets"])
    known, labels = set(), {"le"}
    for metric in Prometheus().registry.collect():
        ends = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}
        known |= {metric.name + end for end in ends.get(metric.type, [""])}
    for family in vars(Prometheus()).values():
        labels |= set(getattr(getattr(family, "_metric", None), "_labelnames", ()))
    named = set(re.findall(r"\btavrida_\w+", asked))
    assert named <= known
    assert {re.sub("_(bucket|count|sum)$", "", name) for name in known} == {
        re.sub("_(bucket|count|sum)$", "", name) for name in named
    }
    grouped = ", ".join(re.findall(r"by \(([^)]*)\)", asked)).split(", ")
    matched = re.findall(r"(\w+)\s*(?:=~|!=|=)", asked)
    assert set(grouped) | set(matched) <= labels


def test_names_that_nobody_bounds_take_no_memory_without_end() -> None:
    """Beyond MAX_SERIES sets of labels, the rest is counted together."""
    metrics = Prometheus()
    for n in range(prometheus.MAX_SERIES + 100):
        metrics._dead.of("shop", f"method{n}", "request").inc()
    (family,) = [f for f in metrics.registry.collect() if f.name == "tavrida_dead_letters"]
    counted = [each for each in family.samples if each.name == "tavrida_dead_letters_total"]
    assert prometheus.MAX_SERIES + 1 == len(counted)
    assert [100] == [s.value for s in counted if s.labels["method"] == prometheus.OTHER]


def test_metrics_that_fail_fail_alone(
    config: ConnectionConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """Messages are handled and answered, and the log has one complaint a minute."""
    broken = Prometheus()
    for family in (broken._handled, broken._in_flight, broken._published):
        family.of = None  # type: ignore[method-assign, assignment]

    class Watched(Shop):
        def __init__(self, options: Any = None) -> None:
            super().__init__(options)
            self.add_incoming_middleware(broken)
            self.add_outgoing_middleware(broken)

    known = discovery.LocalDiscovery()
    known.register_remote_service("shop", "shop")
    with (
        Server(config, "shop", "shop", [Watched], queue_type="classic"),
        RPCClient(config, discovery=known) as client,
    ):
        for n in range(5):
            assert {"n": n} == client.shop.buy(n=n).call(timeout=DEADLINE).payload
    assert 1 == caplog.text.count("messages go on, and this is not logged again soon")


# -- as an operator has it


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Where servers find the package acme-shop."""
    folder = tmp_path / "site"
    folder.mkdir()
    packages = Packages(folder)
    packages.add(
        "acme-shop", {"tavrida.controllers": {"shop": "acme_metrics:Shop"}}, acme_metrics=SHOP
    )
    packages.remove()
    return {"PYTHONPATH": str(folder)}


def ini(folder: Path, port: int, *more: str) -> Path:
    path = folder / f"{port}.conf"
    path.write_text(
        f"[connection]\nurl = sqlite://{folder}/bus.db\n[health]\nport = {port}\n"
        "[server]\nservices = shop\nincoming_middleware = prometheus\n"
        "outgoing_middleware = prometheus\n[middleware:prometheus]\n" + "\n".join(more)
    )
    return path


def test_several_processes_answer_for_all_of_them(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """Any of them is asked. What only the living have goes with a process, what it did stays."""
    shared = f"multiprocess_dir = {tmp_path}/metrics"
    ports = free_port(), free_port()
    config = ConnectionConfig(url=(f"sqlite://{tmp_path}/bus.db",))
    known = discovery.LocalDiscovery()
    known.register_remote_service("shop", "shop")
    one, other = (ini(tmp_path, port, shared) for port in ports)
    with (
        commands.serve("--config-file", one, environment=environment),
        commands.serve("--config-file", other, environment=environment) as second,
    ):
        with RPCClient(config, discovery=known) as client:
            for _ in range(20):
                client.shop.buy().call(timeout=DEADLINE)
        for port in ports:
            reaches(port, 20, "tavrida_handler_seconds_count", **BUY, outcome="ok")
            reaches(port, 2, "tavrida_connected")
        assert 0 == second.end()
        reaches(ports[0], 1, "tavrida_connected")
        reaches(ports[0], 20, "tavrida_handler_seconds_count", **BUY, outcome="ok")


FULL = """
import resource, sys
from pathlib import Path
from tavrida.plugins.middleware.prometheus import Prometheus
from tavrida.messages import IncomingRequest

class Vitals:
    pages, looks, is_server, is_ready, late_answers = {}, [], True, True, 0

metrics = Prometheus(multiprocess_dir=sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # no file may grow beyond
metrics.observe(Vitals)
request = IncomingRequest({})
for _ in range(3):
    metrics.before_handle(request)
    metrics.after_handle(request, None)
    metrics.before_dead_letter(request, ValueError())
    metrics.after_publish(request, None)
    [look() for look in Vitals.looks]
print("handled", *sorted(path.name for path in Path(sys.argv[1]).iterdir()))
Vitals.pages["/metrics"]("")
"""


def test_a_disk_that_is_full_costs_the_metrics_and_nothing_else(tmp_path: Path) -> None:
    """Room is set aside at start, so that it cannot run out later and end the process.

    Nothing is left of the attempt: with an empty file, other processes could make no page.
    """
    done = subprocess.run(
        [sys.executable, "-c", FULL, tmp_path / "metrics"],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert (0, "handled\n") == (done.returncode, done.stdout), done.stderr
    assert "counts nothing: there is no room in" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_package_is_told_in_one_sentence(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """With what to install."""
    (tmp_path / "site" / "prometheus_client.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'prometheus_client'\")"
    )
    ended = commands.run(
        "tavrida-server", "--config-file", ini(tmp_path, 1), "--check", environment=environment
    )
    assert 1 == ended.code
    assert (
        "tavrida-server: [middleware:prometheus] the middleware prometheus needs "
        "prometheus_client, which is not installed: pip install 'tavrida[prometheus]'\n"
    ) == ended.stderr


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("buckets = 3, 1", "buckets 3.0, 1.0: name growing numbers of seconds"),
        ("buckets = nan", "buckets nan: name growing numbers of seconds"),
        ("buckets =", "buckets are missing: name growing numbers of seconds"),
        ("multiprocess_dir = /proc/x", "multiprocess_dir '/proc/x' cannot be made"),
    ],
)
def test_an_option_that_cannot_work_is_one_sentence(
    environment: dict[str, str], tmp_path: Path, option: str, says: str
) -> None:
    """Before it serves, with its section, once."""
    words = ("--check", "--config-file", ini(tmp_path, 0, option))
    ended = commands.run("tavrida-server", *words, environment=environment)
    assert 1 == ended.code
    assert ended.stderr.startswith(f"tavrida-server: [middleware:prometheus] {says}")
    assert 1 == len(ended.stderr.splitlines())
