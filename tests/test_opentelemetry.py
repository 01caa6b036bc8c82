# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Spans, as an exporter gets them from three services that talk to each other."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from tavrida import discovery, dispatcher, exceptions
from tavrida.client import RPCClient
from tavrida.config import ConnectionConfig
from tavrida.middleware import Middleware
from tavrida.plugins.middleware.opentelemetry import OpenTelemetry
from tavrida.retries import Retry
from tavrida.server import Server
from tavrida.service import ServiceController
from tests import commands
from tests.waiting import DEADLINE, eventually

SERVICES = ("shop", "bank", "mail")

#: The trace of some caller, as the W3C writes it.
TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{CALLER}-01"


class Traced(ServiceController):
    middleware: Middleware

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.add_incoming_middleware(self.middleware)
        self.add_outgoing_middleware(self.middleware)


@dispatcher.rpc_service("shop")
class Shop(Traced):
    @dispatcher.rpc_method(service="shop", method="buy")
    def buy(self, request: Any, proxy: Any) -> dict[str, Any]:
        proxy.bank.pay(amount=3).wait(timeout=DEADLINE)
        proxy.publish_as("sold", n=1)
        return {"bought": True}

    @dispatcher.rpc_method(service="shop", method="order")
    async def order(self, request: Any, proxy: Any) -> None:
        proxy.bank.pay(amount=5).call()

    @dispatcher.rpc_response_method(service="bank", method="pay")
    def paid(self, response: Any, proxy: Any) -> None:
        proxy.mail.send(text="paid").cast()

    @dispatcher.rpc_method(service="shop", method="fails")
    def fails(self, request: Any, proxy: Any) -> None:
        if request.attempt < 3:
            raise OSError(f"failure {request.attempt}")

    @dispatcher.rpc_method(service="shop", method="refused")
    async def refused(self, request: Any, proxy: Any) -> None:
        await proxy.bank.refuse()


@dispatcher.rpc_service("bank")
class Bank(Traced):
    @dispatcher.rpc_method(service="bank", method="pay")
    async def pay(self, request: Any, proxy: Any, amount: int) -> dict[str, int]:
        return {"paid": amount}

    @dispatcher.rpc_method(service="bank", method="refuse")
    def refuse(self, request: Any, proxy: Any) -> None:
        raise ValueError("no money")


@dispatcher.rpc_service("mail")
class Mail(Traced):
    @dispatcher.rpc_method(service="mail", method="send")
    def send(self, request: Any, proxy: Any, text: str) -> None: ...

    @dispatcher.subscription_method(service="shop", method="sold")
    def sold(self, event: Any, proxy: Any, n: int) -> None:
        proxy.mail.send(text="sold").cast()


class Spans:
    """What was exported."""

    def __init__(self, exporter: SpanExporter | None = None) -> None:
        self.memory = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(exporter or self.memory))

    def get(self, kind: SpanKind, name: str, nth: int = 0) -> ReadableSpan:
        """Return the nth span of that kind and name, as soon as it ended."""

        def found() -> list[ReadableSpan]:
            spans = self.memory.get_finished_spans()
            return [span for span in spans if (span.kind, span.name) == (kind, name)]

        return eventually(lambda: found()[nth:])[0]


@pytest.fixture
def spans() -> Spans:
    """What is exported during the test."""
    return Spans()


def known() -> discovery.LocalDiscovery:
    found = discovery.LocalDiscovery()
    for name in SERVICES:
        found.register_remote_service(name, name)
        found.register_remote_publisher(name, f"{name}.notifications")
        found.register_local_publisher(name, f"{name}.notifications")
    return found


@pytest.fixture(params=["rabbitmq", "sqlite"])
def config(request: pytest.FixtureRequest) -> ConnectionConfig:
    """A place of the test's own, on every transport in turn."""
    if request.param == "rabbitmq":
        url = str(request.getfixturevalue("amqp_url"))
    else:
        url = f"sqlite://{request.getfixturevalue('tmp_path')}/bus.db"
    return ConnectionConfig(url=(url,), async_engine=True, retry_delay=0.1)


@pytest.fixture
def client(config: ConnectionConfig, spans: Spans) -> Iterator[RPCClient]:
    """A client of three servers; it belongs to a trace, whose ``traceparent`` it sends."""
    with ExitStack() as stack:
        for controller in (Bank, Mail, Shop):
            name = dispatcher.service_of(controller)
            controller.middleware = OpenTelemetry(tracer_provider=spans.provider)
            controller.set_discovery(known())
            server = Server(
                config,
                name,
                name,
                [controller],
                queue_type="classic",
                retry=Retry(attempts=3, first_delay=0.05, jitter=0),
            )
            stack.enter_context(server)
        yield stack.enter_context(
            RPCClient(
                config, discovery=known(), source="test", headers={"traceparent": TRACEPARENT}
            )
        )


def parent_of(span: ReadableSpan) -> str:
    return "" if span.parent is None else f"{span.parent.span_id:016x}"


def id_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.span_id:016x}"


def trace_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.trace_id:032x}"


def test_one_trace_goes_over_three_services(client: RPCClient, spans: Spans) -> None:
    """A call is a client and a server span, an event or a cast a producer and a consumer span."""
    client.shop.buy().call(timeout=DEADLINE)
    sent = spans.get(SpanKind.CONSUMER, "process mail.send")
    chain = [
        spans.get(SpanKind.SERVER, "process shop.buy"),
        spans.get(SpanKind.CLIENT, "call bank.pay"),
        spans.get(SpanKind.SERVER, "process bank.pay"),
    ]
    branch = [
        spans.get(SpanKind.PRODUCER, "send shop.sold"),
        spans.get(SpanKind.CONSUMER, "process mail.shop.sold"),
        spans.get(SpanKind.PRODUCER, "send mail.send"),
        sent,
    ]
    assert [CALLER, *map(id_of, chain[:-1])] == [parent_of(span) for span in chain]
    assert [id_of(chain[0]), *map(id_of, branch[:-1])] == [parent_of(span) for span in branch]
    assert {TRACE} == {trace_of(span) for span in (*chain, *branch)}
    # A client span lasts until its answer is there.
    assert (chain[1].end_time or 0) >= (chain[2].end_time or 0)


def test_a_continuation_stays_in_the_trace(client: RPCClient, spans: Spans) -> None:
    """The handler of the answer is a child of the one that answered."""
    client.shop.order().cast()
    answer = spans.get(SpanKind.CONSUMER, "process shop.bank.pay")
    assert parent_of(answer) == id_of(spans.get(SpanKind.SERVER, "process bank.pay"))
    request = spans.get(SpanKind.PRODUCER, "send bank.pay")
    assert id_of(spans.get(SpanKind.CONSUMER, "process shop.order")) == parent_of(request)
    sent = spans.get(SpanKind.CONSUMER, "process mail.send")
    assert TRACE == trace_of(sent)


def test_attributes_are_those_of_the_conventions(
    client: RPCClient, spans: Spans, config: ConnectionConfig
) -> None:
    """For messaging, and for calls."""
    client.shop.buy().call(correlation_id="chain-1", timeout=DEADLINE)
    is_amqp = config.scheme == "amqp"
    system = "rabbitmq" if is_amqp else "sqlite"
    common = {
        "messaging.system": system,
        "messaging.message.conversation_id": "chain-1",
        "rpc.system": "tavrida",
        "rpc.service": "bank",
        "rpc.method": "pay",
        "tavrida.kind": "request",
        "tavrida.source": "shop.buy",
    }
    if is_amqp:
        common["messaging.rabbitmq.destination.routing_key"] = "bank.pay"
    told = dict(spans.get(SpanKind.SERVER, "process bank.pay").attributes or {})
    message_id = told.pop("messaging.message.id")
    assert {
        **common,
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "bank:bank.pay:bank",
    } == told
    told = dict(spans.get(SpanKind.CLIENT, "call bank.pay").attributes or {})
    assert message_id == told.pop("messaging.message.id")
    assert {
        **common,
        "messaging.operation.name": "call",
        "messaging.operation.type": "send",
        "messaging.destination.name": "bank.pay",
    } == told


def test_retries_link_to_the_attempt_before(client: RPCClient, spans: Spans) -> None:
    """Each attempt is a child of who sent the message, and links to the one before it."""
    client.shop.fails().cast()
    attempts = [spans.get(SpanKind.CONSUMER, "process shop.fails", nth) for nth in range(3)]
    assert [CALLER] * 3 == [parent_of(span) for span in attempts]
    links = [[f"{link.context.span_id:016x}" for link in span.links] for span in attempts]
    assert [[], [id_of(attempts[0])], [id_of(attempts[1])]] == links
    assert [None, 2, 3] == [(span.attributes or {}).get("tavrida.attempt") for span in attempts]
    codes = [span.status.status_code for span in attempts]
    assert [StatusCode.ERROR, StatusCode.ERROR, StatusCode.UNSET] == codes
    assert "OSError" == (attempts[0].attributes or {})["error.type"]
    assert "failure 1" == attempts[0].status.description
    assert "exception" == attempts[0].events[0].name


def test_a_call_that_fails_is_an_error_on_both_sides(client: RPCClient, spans: Spans) -> None:
    """The server's own exception, and the remote error that the caller got."""
    with pytest.raises(exceptions.RemoteError):
        client.shop.refused().call(timeout=DEADLINE)
    server = spans.get(SpanKind.SERVER, "process bank.refuse")
    called = spans.get(SpanKind.CLIENT, "call bank.refuse")
    assert ("ValueError", "RemoteError") == (
        (server.attributes or {})["error.type"],
        (called.attributes or {})["error.type"],
    )
    assert id_of(called) == parent_of(server)


def test_nothing_is_kept_of_what_has_ended(client: RPCClient, spans: Spans) -> None:
    """Spans on their way, and contexts of what was handled, go with their messages."""
    for _ in range(40):
        client.shop.buy().call(timeout=DEADLINE)
    spans.get(SpanKind.CONSUMER, "process mail.send", 39)
    for each in (Shop, Bank, Mail):
        middleware = each.middleware
        assert isinstance(middleware, OpenTelemetry)
        eventually(lambda m=middleware: not (m._sent or m._called))  # type: ignore[misc]
        # Each of the 10 worker threads still has the last message that it handled.
        eventually(lambda m=middleware: gc.collect() >= 0 and len(m._handled) <= 12)  # type: ignore[misc]


class Failing(SpanExporter):
    """Has no disk and no network."""

    def export(self, spans: Any) -> SpanExportResult:
        raise OSError("No space left on device")


class Hostile(Middleware):
    """Sends what no propagator can read."""

    def process(self, message: Any) -> Any:
        message.extra_headers |= {"traceparent": 7, "tracestate": "\x00=;,"}
        return message


def test_traces_that_fail_fail_alone(config: ConnectionConfig) -> None:
    """A broken exporter, odd headers of strangers: messages are handled and answered."""
    Bank.middleware = OpenTelemetry(tracer_provider=Spans(Failing()).provider)

    class Odd(Bank):
        def __init__(self, options: Any = None) -> None:
            super().__init__(options)
            self.incoming_middleware.insert(0, Hostile())

    with (
        Server(config, "bank", "bank", [Odd], queue_type="classic"),
        RPCClient(config, discovery=known(), headers={"traceparent": "00-zz", "n": 1}) as client,
    ):
        for n in range(3):
            assert {"paid": n} == client.bank.pay(amount=n).call(timeout=DEADLINE).payload


# -- as an operator has it


def check(tmp_path: Path, *more: str, environment: dict[str, str] | None = None) -> commands.Ended:
    path = tmp_path / "hello.conf"
    path.write_text(
        "[server]\nservices = test_hello\nincoming_middleware = opentelemetry\n"
        "[middleware:opentelemetry]\n" + "\n".join(more)
    )
    return commands.run("tavrida-server", "--config-file", path, "--check", environment=environment)


def test_an_exporter_is_named_in_the_ini(tmp_path: Path) -> None:
    """One that is not installed is told with those that are."""
    assert 0 == check(tmp_path, "exporter = console").code
    ended = check(tmp_path, "exporter = consol")
    assert 1 == ended.code
    assert "[middleware:opentelemetry] there is no exporter 'consol'" in ended.stderr
    assert "did you mean 'console'?" in ended.stderr


#: Makes two clients of an ini with an exporter, and sends what nobody serves with each.
WEB = """
import logging
import sys
from opentelemetry import trace
from tavrida import assembly, client, exceptions

def provider():
    with assembly.new_client(client.RPCClient, [sys.argv[1]], source="web") as web:
        try:
            web.shop.buy().cast()
        except exceptions.ServiceUnavailable:
            return trace.get_tracer_provider()

logging.basicConfig(level=logging.INFO)
first = provider()
assert "tavrida" == first.resource.attributes["service.name"]
assert first is provider()
"""


def test_a_tracer_provider_that_the_program_has_stays(tmp_path: Path) -> None:
    """Whatever ``exporter`` says; so the second client of one ini has nothing to complain of."""
    program = tmp_path / "web.py"
    program.write_text(WEB)
    path = tmp_path / "shop.conf"
    path.write_text(
        "[connection]\nurl = sqlite://\n[client]\noutgoing_middleware = opentelemetry\n"
        "[middleware:opentelemetry]\nexporter = console\n"
    )
    ended = commands.run(sys.executable, program, path)
    assert 0 == ended.code, ended.stderr
    assert "has a tracer provider already" in ended.stderr
    assert "Overriding" not in ended.stderr
    assert 2 == ended.stdout.count('"name": "send shop.buy"')


def test_a_missing_package_is_told_in_one_sentence(tmp_path: Path) -> None:
    """With what to install."""
    site = tmp_path / "site" / "opentelemetry"
    site.mkdir(parents=True)
    (site / "__init__.py").write_text("raise ModuleNotFoundError('opentelemetry')")
    ended = check(tmp_path, environment={"PYTHONPATH": str(site.parent)})
    assert 1 == ended.code
    assert (
        "tavrida-server: [middleware:opentelemetry] the middleware opentelemetry needs "
        "opentelemetry-api, which is not installed: pip install 'tavrida[opentelemetry]'\n"
    ) == ended.stderr
