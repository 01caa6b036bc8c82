# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""What each fault does to services and clients, in memory and on RabbitMQ alike."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from tavrida import exceptions
from tavrida.client import RPCClient
from tavrida.config import ConnectionConfig
from tavrida.testing import faults, faulty
from tavrida.testing.app import CONNECTION, App, StartApp
from tavrida.testing.faults import Faults
from tests.testing.services import Shop, Stock

#: Quick to give up, for what shall not be confirmed or answered.
IMPATIENT = replace(CONNECTION, publish_timeout=0.5, call_timeout=0.5)


@pytest.fixture
def tavrida_url(broker: str) -> str:
    """Every app of this module runs on each transport."""
    return broker


@pytest.fixture
def start(tavrida_app: StartApp) -> Callable[..., App]:
    """Start the shop and its stock, with these faults; one handler at a time, in order."""

    def start(*given: faults.Fault, **how: Any) -> App:
        how = {"concurrency": 1, "queue_type": "classic", **how}
        return tavrida_app(Shop, Stock, faults=given, **how)

    return start


def handled(app: App) -> list[tuple[int, bool]]:
    """Wait until all is settled; return each sku that was taken, and whether it came again."""
    app.wait_settled()
    runs = [run for run in app._recording.handled if run.entry_point == "stock.take"]
    return [
        (run.payload["sku"], run.message.redelivered)  # type: ignore[attr-defined]
        for run in runs
        if run.kind == "request"
    ]


# -- the connection is lost


def test_a_message_whose_publishing_is_cut_off_arrives_once(start: Callable[..., App]) -> None:
    """It is written to the next connection, and the cast returns as if nothing were."""
    app = start(faults.lose_connection("publish", at=2))
    for sku in range(4):
        app.client.stock.take(sku=sku).cast()
    assert [(sku, False) for sku in range(4)] == handled(app)


def test_a_message_whose_confirm_is_cut_off_arrives_twice(start: Callable[..., App]) -> None:
    """The broker has it and the sender cannot know."""
    app = start(faults.lose_connection("confirm", at=2))
    for sku in range(3):
        app.client.stock.take(sku=sku).cast()
    assert [0, 1, 1, 2] == sorted(sku for sku, _ in handled(app))
    twice = [each.message.message_id for each in app._recording.handled if each.payload["sku"] == 1]
    assert 1 == len(set(twice))


def test_a_delivery_that_is_cut_off_comes_again(start: Callable[..., App]) -> None:
    """Its handler runs once, and is told that it may not be the first."""
    app = start(faults.lose_connection("deliver", at=2, entry_point="stock.take"))
    for sku in range(3):
        app.client.stock.take(sku=sku).cast()
    assert [0, 1, 2] == sorted(sku for sku, _ in handled(app))
    assert (1, True) in handled(app)


def test_an_acknowledgement_that_is_cut_off_lets_the_handler_run_twice(
    start: Callable[..., App],
) -> None:
    """The worst that at least once allows; and the answer, which was sent, is sent again."""
    app = start(faults.lose_connection("ack", entry_point="stock.take", kind="request"))
    answer = app.client.stock.take(sku=5).call()
    assert answer is not None
    assert 5 == answer["sku"]
    assert [(5, False), (5, True)] == handled(app)


def test_a_handler_that_runs_while_its_connection_is_lost_runs_again(
    start: Callable[..., App],
) -> None:
    """Its own acknowledgement means nothing any more, and what it sends still goes out."""
    app = start(concurrency=3)
    stock = app.server.placements[1].dispatcher.controller
    app.client.stock.slow().cast()
    app.faults.add(faults.lose_connection("ack", entry_point="stock.take"))
    app.client.stock.take(sku=1).cast()  # the other one that runs on the same connection
    app.wait_handled("stock.take", nth=2)
    stock.gate.set()
    app.wait_handled("stock.slow", nth=2)
    app.wait_settled()


def test_a_call_whose_answer_is_cut_off_is_interrupted(start: Callable[..., App]) -> None:
    """At once, and not by its deadline; the next call is as good as ever."""
    app = start(faults.lose_connection("deliver", kind="response"))
    with pytest.raises(exceptions.CallInterrupted):
        app.client.stock.take(sku=1).call()
    answer = app.client.stock.take(sku=2).call()
    assert answer is not None
    assert 2 == answer["sku"]


def test_a_continuation_outlives_the_connection_that_it_was_asked_on(
    start: Callable[..., App],
) -> None:
    """Its answer goes to the queue of the service, whichever connection reads it."""
    app = start(faults.lose_connection("deliver", kind="response"))
    app.client.shop.order(sku=1).cast()
    run = app.wait_handled("stock.take", kind="response")
    assert run.message.redelivered  # type: ignore[attr-defined]
    app.wait_settled()


def test_connections_may_be_lost_again_and_again(start: Callable[..., App]) -> None:
    """Every operation in turn, until the fault has had enough; every cast is handled."""
    app = start(faults.lose_connection(times=12))
    for sku in range(20):
        app.client.stock.take(sku=sku).cast()
    assert set(range(20)) == {sku for sku, _ in handled(app)}


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_nothing_is_lost_by_chance(start: Callable[..., App], seed: int) -> None:
    """Casts that returned, and calls that were answered, survive whatever the dice say."""
    app = start(
        # Not without an end: what is handled again sends again, and can lose more than it gains.
        faults.lose_connection(chance=0.05, times=10),
        faults.deliver_twice(chance=0.1, times=None),
        faults.delay(0.01, chance=0.2, times=None),
        faults.delay(0.01, "confirm", chance=0.2, times=None),
        seed=seed,
        concurrency=4,
        config=replace(CONNECTION, publish_timeout=20),
    )
    for sku in range(40):
        app.client.shop.order(sku=sku).cast()
    app.wait_settled(20)
    for what in ("request", "response"):
        runs = [
            r for r in app._recording.handled if (r.entry_point, r.kind) == ("stock.take", what)
        ]
        assert set(range(40)) == {run.payload["sku"] for run in runs}


# -- messages and confirms are lost


def test_a_lost_confirm_is_a_publish_timeout_and_the_message_arrives(
    start: Callable[..., App],
) -> None:
    """The cast raises, though it was heard: that is what the error says."""
    app = start(faults.lose_confirm(), config=IMPATIENT)
    with pytest.raises(exceptions.PublishTimeout, match=r"did not confirm a message within 0\.5 s"):
        app.client.stock.take(sku=1).cast()
    assert [(1, False)] == handled(app)


def test_a_message_without_its_confirm_is_sent_again_on_the_next_connection(
    start: Callable[..., App],
) -> None:
    """With the same message_id, as the contract of transports says."""
    app = start(faults.lose_confirm())
    casting = threading.Thread(target=app.client.stock.take(sku=1).cast)
    casting.start()
    app.wait_handled("stock.take")
    app.wait_settled()
    app.faults.add(faults.lose_connection("publish"))
    app.client.stock.take(sku=2).cast()
    casting.join()
    assert [1, 1, 2] == sorted(sku for sku, _ in handled(app))


def test_a_lost_confirm_of_an_answer_has_it_sent_again(start: Callable[..., App]) -> None:
    """The server cannot tell whether it was taken; the caller has it, and the handler ran once."""
    app = start(faults.lose_confirm(kind="response"), config=IMPATIENT)
    assert app.client.stock.take(sku=1).call(timeout=5) is not None
    app.wait_settled()
    assert [(1, False)] == handled(app)


def test_a_lost_answer_is_a_call_timeout(start: Callable[..., App]) -> None:
    """The handler ran, and only its caller does not know."""
    app = start(faults.lose_answer(), config=IMPATIENT)
    with pytest.raises(exceptions.CallTimeout):
        app.client.stock.take(sku=1).call()
    app.wait_handled("stock.take")
    assert app.client.stock.take(sku=2).call() is not None


def test_a_lost_answer_to_a_continuation_is_settled_and_gone(start: Callable[..., App]) -> None:
    """Nothing waits for it in any queue."""
    app = start(faults.lose_answer())
    app.client.shop.order(sku=1).cast()
    app.wait_sent("stock.take", kind="response")
    app.wait_settled()
    assert [] == [run for run in app._recording.handled if run.kind == "response"]


def test_a_lost_request_is_gone(start: Callable[..., App]) -> None:
    """Only the one that matches."""
    app = start(faults.lose_message(where=lambda each: b'"sku":1' in each.message.body))
    for sku in range(3):
        app.client.stock.take(sku=sku).cast()
    assert [(0, False), (2, False)] == handled(app)


# -- twice and late


def test_a_message_that_is_delivered_twice_is_handled_twice(start: Callable[..., App]) -> None:
    """One after the other, so that no more are under way than the prefetch allows."""
    # In a classic queue what is delivered again goes to its end.
    twice = faults.deliver_twice(entry_point="stock.take", kind="request", at=2)
    app = start(twice, queue_type="quorum")
    for sku in range(3):
        app.client.stock.take(sku=sku).cast()
    assert [(0, False), (1, False), (1, True), (2, False)] == handled(app)


def test_an_answer_that_is_delivered_twice_is_dropped_once(start: Callable[..., App]) -> None:
    """Whoever waited for it has it, and nobody waits for the second."""
    app = start(faults.deliver_twice(kind="response"))
    answers = [app.client.stock.take(sku=sku).call() for sku in range(2)]
    assert [0, 1] == [answer["sku"] for answer in answers if answer is not None]


def test_a_delayed_message_is_overtaken(start: Callable[..., App]) -> None:
    """And arrives."""
    app = start(faults.delay(0.2, entry_point="stock.take"), prefetch=5)
    for sku in range(3):
        app.client.stock.take(sku=sku).cast()
    assert [(1, False), (2, False), (0, False)] == handled(app)


def test_a_delayed_answer_comes_after_its_delay(start: Callable[..., App]) -> None:
    """The call waits for it."""
    app = start(faults.delay(0.2, kind="response"))
    began = time.monotonic()
    assert app.client.stock.take(sku=1).call() is not None
    assert time.monotonic() - began >= 0.2


def test_a_delayed_confirm_keeps_its_sender_waiting(start: Callable[..., App]) -> None:
    """And nobody else."""
    app = start(faults.delay(0.3, "confirm", entry_point="stock.take"))
    began = time.monotonic()
    app.client.stock.take(sku=1).cast()
    assert time.monotonic() - began >= 0.3
    assert [(1, False)] == handled(app)


def test_a_delivery_that_is_lost_while_it_is_delayed_comes_again(
    start: Callable[..., App],
) -> None:
    """Once: what was delayed is nothing any more."""
    app = start(faults.delay(0.3, entry_point="stock.take"), concurrency=2)
    app.client.stock.take(sku=1).cast()
    app.faults.add(faults.lose_connection("ack", entry_point="shop.sell"))
    app.client.shop.sell(sku=2).call()
    assert [(1, True)] == handled(app)


# -- the disk is full


def test_a_full_disk_refuses_until_there_is_room(start: Callable[..., App]) -> None:
    """What was refused raises, and what comes after the clean-up does not."""
    full = faults.full_disk()
    app = start(full)
    for sku in range(2):
        with pytest.raises(exceptions.PublishFailed, match="disk is full"):
            app.client.stock.take(sku=sku).cast()
    assert 2 == app.faults.struck(full)
    app.faults.remove(full)
    app.client.stock.take(sku=2).cast()
    assert [(2, False)] == handled(app)


def test_a_handler_that_finds_the_disk_full_answers_when_it_can(
    start: Callable[..., App],
) -> None:
    """Its notification is refused, its caller is told so."""
    app = start(faults.full_disk(kind="notification"))
    with pytest.raises(exceptions.RemoteError, match=r"PublishFailed.*disk is full"):
        app.client.shop.sell(sku=1).call()


# -- servers and clients without an app


@pytest.fixture
def lonely(broker: str) -> Iterator[tuple[RPCClient, Faults]]:
    """A client on a broker that has no services."""
    wrapped = Faults(broker)
    config = replace(IMPATIENT, url=(wrapped.url,))
    with RPCClient(config, source="test.it") as client:
        yield client, wrapped


def test_any_client_can_have_faults(lonely: tuple[RPCClient, Faults]) -> None:
    """It takes nothing but the url."""
    client, wrapped = lonely
    client.publish(a=1)
    wrapped.add(faults.full_disk(times=1))
    with pytest.raises(exceptions.PublishFailed):
        client.publish(a=1)
    client.publish(a=1)


def test_what_the_broker_says_is_passed_on(lonely: tuple[RPCClient, Faults]) -> None:
    """The wrapper is one more transport, and not one more opinion."""
    client, _ = lonely
    with pytest.raises(exceptions.ServiceUnavailable, match="nobody serves 'stock'"):
        client.stock.take(sku=1).cast()
    with pytest.raises(exceptions.ServiceUnavailable):
        client.stock.take(sku=1).call()


def test_a_client_that_closes_while_it_reconnects_ends(lonely: tuple[RPCClient, Faults]) -> None:
    """What it had not sent fails, and says why."""
    client, wrapped = lonely
    client.publish(a=1)
    wrapped.add(faults.lose_connection("publish", times=None))
    future = client.stock.take(sku=1).future()
    client.close()
    with pytest.raises(exceptions.TavridaError):
        future.result(5)


def test_a_broker_that_is_not_there_is_connection_failed() -> None:
    """Not something of the wrapper's own."""
    wrapped = Faults("amqp://guest:guest@127.0.0.1:1/")
    config = ConnectionConfig(url=(wrapped.url,), connection_attempts=1)
    with (
        RPCClient(config, source="test") as client,
        pytest.raises(exceptions.ConnectionFailed, match="connection refused"),
    ):
        client.stock.take(sku=1).cast()


# -- brokers that do not do what they should


def _broker(broker: str, **methods: Any) -> Faults:
    """Return faults before a broker whose transport has these methods instead of its own."""
    wrapped = Faults(broker)
    wrapped.transport = type("Odd", (wrapped.transport,), methods)
    return wrapped


def test_a_broker_that_is_gone_for_good_fails_what_was_on_its_way(broker: str) -> None:
    """As a real transport does that gave up reconnecting; the next message tries anew."""
    opened = []

    async def open_once(self: Any, attempts: int) -> None:
        opened.append(self)
        if len(opened) == 2:
            raise exceptions.ConnectionFailed("gone")
        await super(type(self), self).open(attempts)

    wrapped = _broker(broker, open=open_once)
    with RPCClient(replace(IMPATIENT, url=(wrapped.url,)), source="test.it") as client:
        client.publish(a=1)
        wrapped.add(faults.lose_connection("publish"))
        with pytest.raises(exceptions.ConnectionFailed, match="gone"):
            client.publish(a=2)
        client.publish(a=3)


def test_a_lost_connection_does_not_wait_for_a_broker_that_says_nothing(
    broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for long: what was not confirmed is sent again, on the next one."""
    monkeypatch.setattr(faulty, "DRAIN_TIMEOUT", 0.05)
    published = []

    def say_nothing_once(self: Any, publication: Any, done: Any) -> None:
        published.append(publication.properties.message_id)
        if len(published) > 1:
            super(type(self), self).publish(publication, done)

    wrapped = _broker(broker, publish=say_nothing_once)
    config = replace(CONNECTION, url=(wrapped.url,))
    with RPCClient(config, source="test.it") as client:
        first = threading.Thread(target=client.publish)
        first.start()
        while not published:
            time.sleep(0.001)
        wrapped.add(faults.lose_connection("publish"))
        client.publish()
        first.join(5)
        assert not first.is_alive()
    assert published[0] in published[1:]


def test_what_the_broker_refuses_to_declare_is_passed_on(broker: str) -> None:
    """In the words of its transport."""
    with (
        App(Shop, Stock, url=broker, queue_type="classic"),
        pytest.raises(exceptions.TopologyConflict, match="quorum"),
        App(Shop, Stock, url=broker, queue_type="quorum"),
    ):
        pass


def test_what_was_declared_is_declared_again_after_a_loss(
    lonely: tuple[RPCClient, Faults],
) -> None:
    """On a broker that forgot it, the notification would find no exchange."""
    client, wrapped = lonely
    client.publish(a=1)
    wrapped.add(faults.lose_connection("publish"))
    client.publish(a=2)
