# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Whatever is done to a transport, it does what the model does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tavrida import exceptions
from tavrida.plugins.transports import Delivery
from tavrida.topology import Binding, Exchange, Queue, Topology
from tests.properties import patient
from tests.transports.bench import Bench, Connection, Inbox, new_name
from tests.transports.model import Consumer, Model, Seen, matches

# Hypothesis makes one bench serve all examples, which have names of their own.
shared = settings(
    patient,
    suppress_health_check=[*patient.suppress_health_check, HealthCheck.function_scoped_fixture],
    print_blob=True,
    report_multiple_bugs=False,
)

words = st.sampled_from(["", "a", "b", "*", "#"])
keys = st.lists(words, max_size=4).map(".".join)

#: Exchanges, and queues with their dead-letter queues, before they get names of their own.
EXCHANGES = ("x", "y")
QUEUES = ("p", "q", "r")


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    """Two exchanges, three queues, most of them with a dead-letter queue, and any bindings."""
    queues = []
    for name in QUEUES:
        kind, limit = draw(
            st.sampled_from([("classic", None), ("quorum", None), ("quorum", 1), ("quorum", 2)])
        )
        dead = draw(st.sampled_from(["", f"{name}.dead", f"{name}.dead"]))
        if dead:
            queues.append(Queue(dead, draw(st.sampled_from(["classic", "quorum"]))))
        queues.append(Queue(name, kind, dead, limit))
    bindings = draw(
        st.sets(
            st.builds(Binding, st.sampled_from(EXCHANGES), st.sampled_from(QUEUES), keys),
            max_size=6,
        )
    )
    return Topology(
        tuple(Exchange(name) for name in EXCHANGES), tuple(queues), tuple(sorted(bindings))
    )


def renamed(topology: Topology, suffix: str) -> Topology:
    """Return the same topology under names that no other example uses."""
    return Topology(
        tuple(Exchange(each.name + suffix) for each in topology.exchanges),
        tuple(
            replace(
                each,
                name=each.name + suffix,
                dead_letter_to=each.dead_letter_to and each.dead_letter_to + suffix,
            )
            for each in topology.queues
        ),
        tuple(
            Binding(each.exchange + suffix, each.queue + suffix, each.routing_key)
            for each in topology.bindings
        ),
    )


def seen(delivery: Delivery) -> Seen:
    """Return what the model tells of a delivery."""
    headers = delivery.properties.headers or {}
    return Seen(
        delivery.body,
        delivery.redelivered,
        headers.get("x-delivery-count"),
        tuple(
            (death["queue"], death["reason"], death["count"])
            for death in headers.get("x-death", ())
        ),
    )


@pytest.mark.timeout(600)  # for what hypothesis does with a failure
def test_any_routing_key_reaches_the_queues_whose_patterns_match(bench: Bench) -> None:
    """Each of them once, in the order of publication; mandatory ones that reach none fail."""
    connection = bench.connect()

    @settings(shared, max_examples=25)
    @given(
        patterns=st.lists(st.lists(keys, min_size=1, max_size=3), min_size=1, max_size=3),
        sent=st.lists(keys, min_size=1, max_size=10),
    )
    def check(patterns: list[list[str]], sent: list[str]) -> None:
        exchange = connection.exchange()
        queues = [connection.bound(exchange, *each) for each in patterns]
        outcomes = [connection.send(exchange, key, key.encode(), is_mandatory=True) for key in sent]
        expected = [
            [key for key in sent if any(matches(pattern, key) for pattern in each)]
            for each in patterns
        ]
        lost = [isinstance(each.wait(), exceptions.ServiceUnavailable) for each in outcomes]
        assert [not any(key in each for each in expected) for key in sent] == lost
        for queue, each in zip(queues, expected, strict=True):
            assert each == [body.decode() for body in bench.bodies_in(queue)]

    check()


@dataclass(eq=False)
class Party:
    """A consumer: in the model, and over a connection of its own."""

    model: Consumer
    connection: Connection
    inbox: Inbox
    #: What it has not settled, in the order of the model.
    held: list[Delivery]


class Comparison(RuleBasedStateMachine):
    """Does the same to the model and to a transport, one step at a time."""

    bench: ClassVar[Bench]

    def __init__(self) -> None:
        super().__init__()
        self.publisher = self.bench.connect()
        self.suffix = new_name("")
        self.parties: list[Party] = []
        self.count = 0
        self.has_failed = False

    @initialize(topology=topologies())
    def declare(self, topology: Topology) -> None:
        self.topology = renamed(topology, self.suffix)
        self.model = Model(self.topology)
        self.bench.run(self.publisher.transport.declare(self.topology))

    def expect(self, caused: list[tuple[Consumer, Seen]]) -> None:
        """Check that these deliveries come, each queue's in order, and no others."""
        try:
            for consumer, delivery in caused:
                (party,) = (each for each in self.parties if each.model is consumer)
                found = party.inbox.next()
                assert delivery == seen(found)
                party.held.append(found)
            for party in self.parties:
                assert party.inbox.is_empty, seen(party.inbox.next())
        except BaseException:
            self.has_failed = True
            raise

    def publish(self, exchange: str, key: str, is_mandatory: bool) -> None:
        self.count += 1
        body = b"%d" % self.count
        caused = self.model.publish(exchange, key, body)
        outcome = self.publisher.send(exchange, key, body, is_mandatory=is_mandatory)
        is_lost = is_mandatory and not self.model.takers(exchange, key)
        self.has_failed = is_lost != isinstance(outcome.wait(), exceptions.ServiceUnavailable)
        assert not self.has_failed
        self.expect(caused)

    @rule(exchange=st.sampled_from(EXCHANGES), key=keys, is_mandatory=st.booleans())
    def publish_to_an_exchange(self, exchange: str, key: str, is_mandatory: bool) -> None:
        self.publish(exchange + self.suffix, key, is_mandatory)

    @rule(queue=st.sampled_from(QUEUES), times=st.integers(1, 4))
    def publish_to_a_queue(self, queue: str, times: int) -> None:
        for _ in range(times):
            self.publish("", queue + self.suffix, is_mandatory=True)

    @rule(number=st.integers(0, 5), prefetch=st.integers(1, 4))
    def consume(self, number: int, prefetch: int) -> None:
        free = [name for name, queue in self.model.queues.items() if queue.consumer is None]
        if free:
            name = free[number % len(free)]
            connection = self.bench.connect()
            consumer, caused = self.model.consume(name, prefetch)
            inbox = connection.consume(name, prefetch)
            self.parties.append(Party(consumer, connection, inbox, []))
            self.expect(caused)

    @precondition(lambda self: any(party.held for party in self.parties))
    @rule(
        party=st.integers(0, 5),
        number=st.integers(0, 3),
        how=st.sampled_from(["ack", "requeue", "reject"]),
    )
    def settle(self, party: int, number: int, how: str) -> None:
        busy = [each for each in self.parties if each.held]
        one = busy[party % len(busy)]
        number %= len(one.held)
        if how == "requeue" and one.model.unsettled[number].returns == one.model.queue.limit:
            # RabbitMQ 3.10 dead-letters it, and from then on has one more than the prefetch.
            how = "reject"
        delivery = one.held.pop(number)
        caused = self.model.settle(one.model, number, how)
        self.bench.call(getattr(delivery, how))
        # Until then the broker may not have heard of it.
        one.connection.round_trip()
        self.expect(caused)

    @precondition(lambda self: self.parties)
    @rule(party=st.integers(0, 5))
    def cancel(self, party: int) -> None:
        """What it holds it may still settle, or lose by a crash."""
        one = self.parties[party % len(self.parties)]
        self.model.cancel(one.model)
        one.connection.cancel()

    @precondition(lambda self: self.parties)
    @rule(party=st.integers(0, 5))
    def crash(self, party: int) -> None:
        one = self.parties.pop(party % len(self.parties))
        caused = self.model.crash(one.model)
        one.connection.close()
        self.expect(caused)

    def teardown(self) -> None:
        """Check what is left."""
        try:
            while self.parties and not self.has_failed:
                self.crash(0)
            if not self.has_failed:
                for name in self.model.queues:
                    assert self.model.content(name) == [seen(d) for d in self.bench.drain(name)]
        finally:
            for party in self.parties:
                party.connection.close()
            self.publisher.close()


@pytest.mark.timeout(600)
def test_whatever_happens_each_message_is_where_the_model_has_it(bench: Bench) -> None:
    """Who gets what, in which order, marked how; dead letters and why; nothing lost or doubled."""
    compare(bench, settings(shared, max_examples=15, stateful_step_count=25))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_whatever_happens_for_long_each_message_is_where_the_model_has_it(bench: Bench) -> None:
    """The same with more and longer stories."""
    compare(bench, settings(shared, max_examples=60, stateful_step_count=60))


def compare(bench: Bench, how: settings) -> None:
    class OnBench(Comparison):
        pass

    OnBench.bench = bench
    run_state_machine_as_test(OnBench, settings=how)
