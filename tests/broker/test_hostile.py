# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""What a hostile reviewer did to it: none of this may hang, loop or lose a message."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from tavrida import discovery, dispatcher, exceptions, messages
from tavrida.client import RPCClient
from tavrida.config import ConnectionConfig
from tavrida.service import ServiceController
from tests.broker.conftest import EXCHANGE, QUEUE, Connect, Serve, next_of
from tests.rabbitmq import Node
from tests.waiting import DEADLINE, eventually

CONSTANT = messages.Response({"constant": True})


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


@dispatcher.rpc_service("svc")
class Service(ServiceController):
    seen: SimpleQueue[Any] = SimpleQueue()
    gate = threading.Event()

    @dispatcher.rpc_method(service="svc", method="ok")
    def ok(self, request: Any, proxy: Any, n: int = 0) -> dict[str, Any]:
        self.seen.put(n)
        return {"n": n}

    @dispatcher.rpc_method(service="svc", method="fails")
    def fails(self, request: Any, proxy: Any) -> None:
        self.seen.put("ran")
        raise ZeroDivisionError

    @dispatcher.rpc_method(service="svc", method="unprintable")
    def unprintable(self, request: Any, proxy: Any) -> None:
        raise Unprintable

    @dispatcher.rpc_method(service="svc", method="bad_header")
    def bad_header(self, request: Any, proxy: Any) -> messages.Response:
        self.seen.put("ran")
        return messages.Response({}, extra_headers={"x": 1.5})

    @dispatcher.rpc_method(service="svc", method="no_dict")
    def no_dict(self, request: Any, proxy: Any) -> messages.Error:
        return messages.Error("boom")  # type: ignore[arg-type]

    @dispatcher.rpc_method(service="svc", method="constant")
    def constant(self, request: Any, proxy: Any, secret: str = "") -> messages.Response:
        return CONSTANT

    @dispatcher.rpc_method(service="svc", method="transfer")
    def transfer(self, request: Any, proxy: Any) -> None:
        proxy.nobody.x().transfer(request)

    @dispatcher.rpc_method(service="svc", method="exits")
    async def exits(self, request: Any, proxy: Any) -> None:
        async def leave() -> None:
            raise SystemExit(1)

        self.task = asyncio.get_running_loop().create_task(leave())

    @dispatcher.rpc_method(service="svc", method="clings")
    async def clings(self, request: Any, proxy: Any) -> None:
        self.seen.put("clings")
        while not self.gate.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.05)

    @dispatcher.rpc_method(service="svc", method="gated")
    def gated(self, request: Any, proxy: Any, n: int) -> None:
        self.seen.put(n)
        assert self.gate.wait(DEADLINE)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    Service.seen = SimpleQueue()
    Service.gate = threading.Event()
    known = discovery.LocalDiscovery()
    known.register_remote_service("nobody", EXCHANGE)
    Service.set_discovery(known)
    yield
    # What a test left half run is finalized here, and not within whatever comes later.
    gc.collect()


def test_a_message_whose_dead_letter_would_not_fit_into_a_frame_is_moved_by_the_broker(
    serve: Serve, connect: Connect, channel: BlockingChannel, caplog: pytest.LogCaptureFixture
) -> None:
    """RabbitMQ closes a connection over a frame that is too large; it is never sent one."""
    serve(Service)
    large = pika.BasicProperties(headers={"large": "x" * 126_000})
    channel.basic_publish(EXCHANGE, "svc.fails", b"{}", large)
    _, properties, body = next_of(channel, f"{QUEUE}.dead")
    assert (b"{}", 126_000) == (body, len((properties.headers or {})["large"]))
    assert {"n": 1} == connect("svc").svc.ok(n=1).call(timeout=DEADLINE).payload
    assert not any("lost its connection" in record.message for record in caplog.records)


def test_headers_that_do_not_fit_into_a_frame_are_refused_before_they_are_sent(
    serve: Serve, connect: Connect
) -> None:
    """The error names the size and the limit, and the connection stays."""
    serve(Service)
    client = connect("svc", headers={f"h{n}": "x" * 16_000 for n in range(9)})
    with pytest.raises(exceptions.PublishFailed, match=r"headers have 144\d+ bytes"):
        client.svc.ok().cast()


def test_an_answer_with_a_header_that_cannot_be_sent_is_an_error_and_no_loop(
    serve: Serve, connect: Connect
) -> None:
    """The handler runs once."""
    serve(Service)
    with pytest.raises(exceptions.RemoteError, match=r"MessageError: header 'x' cannot be 1\.5"):
        connect("svc").svc.bad_header().call(timeout=DEADLINE)
    assert "ran" == Service.seen.get_nowait()
    assert Service.seen.empty()


def test_a_dead_letter_queue_that_was_deleted_is_declared_again(
    serve: Serve, connect: Connect, channel: BlockingChannel
) -> None:
    """The message that could not be handled is in it, and was handled once."""
    serve(Service)
    channel.queue_delete(f"{QUEUE}.dead")
    connect("svc").svc.fails().cast()
    assert "ran" == Service.seen.get(timeout=DEADLINE)

    def found() -> bool:
        try:
            declared = channel.connection.channel().queue_declare(f"{QUEUE}.dead", passive=True)
        except pika.exceptions.ChannelClosedByBroker:
            return False
        return bool(declared.method.message_count == 1)

    eventually(found)
    assert Service.seen.empty()


def test_closing_a_client_ends_its_first_call_while_it_is_disconnected(
    serve: Serve, node_config: tuple[Node, ConnectionConfig]
) -> None:
    """The call waits for a reply queue then, and has no other way to end but this."""
    node, config = node_config
    serve(Service, config=config, graceful_timeout=0.1)
    client = _client(config)
    client.svc.ok(n=1).cast()
    node.stop()
    answer = client.svc.ok(n=2).future(timeout=60)
    client.close()
    with pytest.raises(exceptions.ConnectionFailed, match="before the request"):
        answer.result(DEADLINE)


def test_publishing_while_disconnected_ends_with_a_publish_timeout(
    serve: Serve, node_config: tuple[Node, ConnectionConfig]
) -> None:
    """Also the first time, when the exchange has to be declared."""
    node, config = node_config
    serve(Service, config=config, graceful_timeout=0.1)
    quick = replace(config, publish_timeout=0.5)
    known = discovery.LocalDiscovery()
    known.register_remote_service("svc", EXCHANGE)
    known.register_local_publisher("svc", "news")
    with RPCClient(quick, discovery=known, source="svc.ok") as client:
        client.svc.ok(n=1).cast()
        node.stop()
        with pytest.raises(exceptions.PublishTimeout, match="'news'"):
            client.publish(a=1)


def test_waiting_in_the_callback_of_a_future_is_an_error(serve: Serve, connect: Connect) -> None:
    """It runs on the client's event loop, which everybody needs; .future() is fine there."""
    serve(Service)
    svc = connect("svc").svc
    outcome: Future[Any] = Future()

    def answered(answer: Future[Any]) -> None:
        with pytest.raises(exceptions.CallError, match=r"use \.future\(\)"):
            svc.ok(n=2).cast()
        svc.ok(n=3).future().add_done_callback(lambda last: outcome.set_result(last.result()["n"]))

    svc.ok(n=1).future().add_done_callback(answered)
    assert 3 == outcome.result(DEADLINE)


def test_an_error_whose_payload_is_no_dict_is_an_unknown_result(
    serve: Serve, connect: Connect
) -> None:
    """The caller hears what the handler did wrong."""
    serve(Service)
    with pytest.raises(exceptions.RemoteError, match="returned Error with str as payload"):
        connect("svc").svc.no_dict().call(timeout=DEADLINE)


def test_an_exception_without_a_text_is_dead_lettered_like_any_other(
    serve: Serve, connect: Connect, channel: BlockingChannel
) -> None:
    """Its class is the reason."""
    serve(Service)
    connect("svc").svc.unprintable().cast()
    _, properties, _ = next_of(channel, f"{QUEUE}.dead")
    assert "Unprintable: (its text" in (properties.headers or {})["dead_reason"]


def test_a_transfer_to_nobody_is_answered_at_once(serve: Serve, connect: Connect) -> None:
    """By the one who could not hand the request on."""
    serve(Service)
    with pytest.raises(exceptions.RemoteError, match=r"ServiceUnavailable.*'nobody'"):
        connect("svc").svc.transfer().call(timeout=DEADLINE)


def test_a_response_that_a_handler_keeps_carries_nothing_from_one_caller_to_the_next(
    serve: Serve, connect: Connect
) -> None:
    """What is filled in belongs to a copy."""
    serve(Service)
    svc = connect("svc").svc
    svc.constant(secret="of A").call(timeout=DEADLINE)
    assert {"constant": True} == svc.constant().call(timeout=DEADLINE).context
    assert ({}, "") == (CONSTANT.context, CONSTANT.request_id)


def test_systemexit_on_the_event_loop_does_not_end_it(serve: Serve, connect: Connect) -> None:
    """A task of a handler's own cannot turn the server into a process that does nothing."""
    serve(Service)
    svc = connect("svc").svc
    svc.exits().call(timeout=DEADLINE)
    assert {"n": 1} == svc.ok(n=1).call(timeout=DEADLINE).payload


def test_stop_does_not_wait_for_a_task_that_refuses_to_be_cancelled(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Graceful time-out, then a limit for the loop itself."""
    monkeypatch.setattr("tavrida.loop.CANCEL_TIMEOUT", 0.3)
    server = serve(Service, graceful_timeout=0.1)
    connect("svc").svc.clings().cast()
    assert "clings" == Service.seen.get(timeout=DEADLINE)
    stopping = threading.Thread(target=server.stop)
    stopping.start()
    stopping.join(DEADLINE)
    assert not stopping.is_alive()
    Service.gate.set()


def test_what_waited_here_when_the_connection_went_is_handled_once(
    serve: Serve, connect: Connect, rabbitmq: Node, vhost: str
) -> None:
    """Only what was running can be handled twice; the rest comes again from the broker."""
    server = serve(Service, concurrency=1, prefetch=20)
    svc = connect("svc").svc
    for n in range(8):
        svc.gated(n=n).cast()
    assert 0 == Service.seen.get(timeout=DEADLINE)
    rabbitmq.ctl("close_all_connections", "--vhost", vhost, "for the test")
    eventually(lambda: _redelivered(server))
    Service.gate.set()
    got = [Service.seen.get(timeout=DEADLINE) for _ in range(8)]
    assert sorted(got) == list(range(8))


def _redelivered(server: Any) -> bool:
    """Tell whether the first message has come again on the new connection."""
    waiting = list(server._processor._turns.hall.waiting)
    return any(handling.delivery.is_live for handling in waiting)


@pytest.fixture
def node_config(node: Any) -> tuple[Node, ConnectionConfig]:
    """A node of the test's own, and how to reach it."""
    own = node()
    return own, ConnectionConfig(url=(own.url(),), async_engine=True, retry_delay=0.1)


def _client(config: ConnectionConfig) -> RPCClient:
    known = discovery.LocalDiscovery()
    known.register_remote_service("svc", EXCHANGE)
    return RPCClient(config, discovery=known)
