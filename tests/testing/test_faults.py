# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Faults as values: which operations they strike at, and what is wrong with those that cannot."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tavrida.config import ConnectionConfig
from tavrida.envelope import Properties
from tavrida.exceptions import ConfigError, PluginError
from tavrida.plugins.transports import Publication
from tavrida.testing import faults
from tavrida.testing.faults import Fault, Faults, Operation
from tavrida.testing.faulty import FaultyTransport

MEMORY = "sqlite://"


def operation(
    name: str = "publish", kind: str = "request", entry_point: str = "stock.take", **more: Any
) -> Operation:
    """Make an operation with a message of that kind."""
    properties = Properties(type=kind, app_id=entry_point, headers={"destination": entry_point})
    return Operation(name, "test", Publication("x", "key", b"", properties, False), **more)


def strikes(fault: Fault, operations: Sequence[Operation], **how: Any) -> list[int]:
    """Return the numbers of the operations that the fault strikes at, counted from 1."""
    wrapped = Faults(MEMORY, fault, **how)
    return [number for number, each in enumerate(operations, 1) if wrapped.strike(each) is not None]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (faults.lose_connection(), [1]),
        (faults.lose_connection(at=3), [3]),
        (faults.lose_connection(at=2, times=2), [2, 3]),
        (faults.lose_connection(at=4, times=None), [4, 5, 6]),
        (faults.lose_connection("ack"), []),
        (faults.lose_connection(("ack", "publish"), at=6), [6]),
        (faults.lose_connection(at=7), []),
        (faults.full_disk(), [1, 2, 3, 4, 5, 6]),
        (faults.full_disk(times=1), [1]),
        (faults.lose_confirm(), []),
    ],
    ids=str,
)
def test_a_fault_strikes_from_its_number_on(fault: Fault, expected: list[int]) -> None:
    """As often as it says."""
    assert expected == strikes(fault, [operation() for _ in range(6)])


def test_only_what_matches_is_counted() -> None:
    """By kind, by entry point, and by whatever the test can tell."""
    mixed = [
        operation(kind="request", entry_point="a.b"),
        operation(kind="response", entry_point="a.b"),
        operation(kind="response", entry_point="c.d"),
        operation("deliver", kind="response", entry_point="c.d", queue="q"),
        operation(kind="error", entry_point="c.d"),
        operation(kind="notification", entry_point="c.d"),
    ]

    def strike(**when: Any) -> list[int]:
        return strikes(faults.lose_connection(times=None, **when), mixed)

    assert [2, 3, 4] == strike(kind="response")
    assert [3, 4] == strike(kind="response", at=2)
    assert [2, 3, 4, 5] == strike(kind=("response", "error"))
    assert [1, 2] == strike(entry_point="a.b")
    assert [4] == strike(where=lambda each: each.queue == "q")
    assert [] == strike(kind="request", entry_point="c.d")


def test_an_entry_point_is_the_destination_of_a_request_and_the_source_of_all_else() -> None:
    """Also of messages of other programs, which name only the routing key."""
    bare = Publication("x", "key.word", b"", Properties(), False)
    assert ("request", "key.word") == (
        Operation("publish", "test", bare).kind,
        Operation("publish", "test", bare).entry_point,
    )
    told = Properties(type="request", headers={"destination": "a.b"}, app_id="c.d")
    request = Operation("deliver", "test", Publication("", "dead", b"", told, False))
    assert "a.b" == request.entry_point
    answer = Properties(type="error", headers={"destination": "a.b"}, app_id="c.d")
    error = Operation("deliver", "test", Publication("", "queue", b"", answer, False))
    assert "c.d" == error.entry_point
    assert "delivery of error c.d" == str(error)


def test_the_first_fault_that_was_added_wins_and_all_count() -> None:
    """A second one at the same operation has missed its chance."""
    first, second = faults.full_disk(at=2, times=1), faults.lose_connection(at=2)
    wrapped = Faults(MEMORY, first, second)
    assert [None, first, second, None] == [wrapped.strike(operation()) for _ in range(4)]
    assert (1, 1) == (wrapped.struck(first), wrapped.struck(second))


def test_a_fault_sees_only_what_comes_after_it_was_added() -> None:
    """So its number is easy to tell in the middle of a test."""
    wrapped = Faults(MEMORY)
    assert wrapped.strike(operation()) is None
    late = faults.lose_connection(at=2)
    wrapped.add(late)
    assert [None, late] == [wrapped.strike(operation()) for _ in range(2)]


def test_a_fault_that_was_removed_strikes_no_more() -> None:
    """And one that is not there cannot be removed."""
    full = faults.full_disk()
    wrapped = Faults(MEMORY, full)
    assert full == wrapped.strike(operation())
    wrapped.remove(full)
    assert wrapped.strike(operation()) is None
    with pytest.raises(ConfigError, match=r"full_disk\('publish', times=None\) cannot be removed"):
        wrapped.remove(full)


def test_idle_faults_are_those_that_never_struck() -> None:
    """With how many operations they have seen; chance is no promise."""
    struck = faults.full_disk(times=1)
    wrapped = Faults(
        MEMORY, struck, faults.lose_connection("ack", at=3), faults.delay(1, chance=0.5)
    )
    wrapped.strike(operation())
    for _ in range(2):
        wrapped.strike(operation("ack"))
    assert ["lose_connection('ack', at=3) never struck: 2 operations matched it"] == wrapped.idle()


# -- chance


def test_the_same_seed_strikes_at_the_same_operations() -> None:
    """And another one at others; the share is near the chance."""
    fault = faults.lose_connection(chance=0.25, times=None)
    operations = [operation() for _ in range(400)]
    first = strikes(fault, operations, seed=1)
    assert first == strikes(fault, operations, seed=1)
    assert first != strikes(fault, operations, seed=2)
    assert 60 < len(first) < 140


def test_what_other_threads_do_does_not_change_the_fate_of_a_message() -> None:
    """The nth delivery of a kind meets the same whenever it comes."""
    fault = faults.lose_connection(chance=0.3, times=None)
    mine = [operation("deliver") for _ in range(50)]
    others = [operation("ack", entry_point="x.y") for _ in range(50)]
    alone = Faults(MEMORY, fault, seed=5)
    crowded = Faults(MEMORY, fault, seed=5)
    expected = [alone.strike(each) is not None for each in mine]
    mixed = []
    for each, other in zip(mine, others, strict=True):
        crowded.strike(other)
        mixed.append(crowded.strike(each) is not None)
    assert expected == mixed


def test_a_seed_is_chosen_and_shown() -> None:
    """Whoever wants the same run again can have it."""
    wrapped = Faults(MEMORY, faults.lose_answer(chance=0.5), name="shown")
    assert f"<Faults faulty://shown seed={wrapped.seed}: lose_message('deliver', kind=" in repr(
        wrapped
    )
    assert "none>" in repr(Faults(MEMORY))


# -- what cannot be


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (
            lambda: faults.lose_connection("publsh"),
            (
                "lose_connection('publsh') is no operation that it could strike at (did you mean "
                "'publish'?): use publish, confirm, deliver, ack, requeue, reject"
            ),
        ),
        (
            lambda: faults.delay(1, "ack"),
            "delay('ack') is no operation that it could strike at: use deliver, confirm",
        ),
        (lambda: faults.delay(-1), "delay(seconds=-1) should be 0 or more"),
        (
            lambda: faults.lose_answer(kind="respons"),
            (
                "lose_message(kind='respons') should be one of request, response, error, "
                "notification (did you mean 'response'?)"
            ),
        ),
        (
            lambda: faults.full_disk(at=0, chance=2, times=0),
            (
                "full_disk(at=0) should be 1 or more: the first is number 1; full_disk(times=0) "
                "should be 1 or more, or None for always; full_disk(chance=2) should be more than "
                "0, and 1 at most"
            ),
        ),
        (
            lambda: Faults(MEMORY, name="a b"),
            "Faults(name='a b') cannot stand in a url: use letters, digits, - and _",
        ),
    ],
)
def test_a_fault_that_cannot_be_is_told(make: Callable[[], object], told: str) -> None:
    """In one sentence, with its name and what to write instead."""
    with pytest.raises(ConfigError) as raised:
        make()
    assert told == str(raised.value)


def test_a_broker_that_cannot_be_is_told_when_the_faults_are_made() -> None:
    """In the words of its own transport."""
    with pytest.raises(PluginError, match=r"no plugin 'ampq'.*did you mean 'amqp'"):
        Faults("ampq://localhost")
    with pytest.raises(ConfigError, match="has no host"):
        Faults("amqp://")


# -- names


def test_a_name_belongs_to_one_object_at_a_time() -> None:
    """Until that is gone: nobody has to give it back."""
    wrapped = Faults(MEMORY, name="mine")
    assert "faulty://mine" == wrapped.url
    assert wrapped is faults.named(wrapped.url)
    with pytest.raises(ConfigError, match=r"Faults\(name='mine'\): there is another one"):
        Faults(MEMORY, name="mine")
    del wrapped
    gc.collect()
    Faults(MEMORY, name="mine")


def test_a_url_without_its_object_says_how_to_make_one() -> None:
    """And names those that are there."""
    kept = Faults(MEMORY, name="contacts")
    with pytest.raises(ConfigError) as raised:
        FaultyTransport.check_url("faulty://contract")
    told = str(raised.value)
    assert "this process has no Faults of the name 'contract'" in told
    assert "Faults(BROKER_URL, name='contract') and keep it" in told
    assert kept.name in told


def test_several_nodes_of_a_cluster_may_be_behind_the_faults() -> None:
    """By commas or as a list, as in a configuration."""
    nodes = ("amqp://a/", "amqp://b/")
    assert nodes == Faults("amqp://a/, amqp://b/").broker == Faults(nodes).broker


def test_the_password_of_the_broker_stays_out_of_the_url() -> None:
    """Which servers write to their logs."""
    wrapped = Faults("amqp://user:secret@host/")
    assert "secret" not in f"{wrapped.url} {wrapped!r} {ConnectionConfig(url=(wrapped.url,))!r}"
