# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""What may be said about trying again, and what then holds."""

from __future__ import annotations

from typing import Any

import pytest

from tavrida import dispatcher, exceptions, retries
from tavrida.config import ConnectionConfig
from tavrida.dispatcher import Dispatcher, Mark
from tavrida.entry_point import EntryPoint
from tavrida.plugins.discovery.convention import ConventionDiscovery
from tavrida.retries import MAX_LEVELS, Policy, Retries, Retry, levels_of, policy_of, said
from tavrida.server import Server
from tavrida.service import ServiceController


class Flaky(OSError):
    """An exception of a user's."""


def test_each_delay_is_a_factor_longer_up_to_the_maximum() -> None:
    """In milliseconds, one before each attempt but the first."""
    retry = Retry(attempts=6, first_delay=0.5, factor=3, max_delay=10)
    assert (500, 1500, 4500, 10_000, 10_000) == policy_of(retry).delays


def test_what_nobody_says_has_the_default() -> None:
    """Five attempts, after 1, 4, 16 and 64 seconds; calls are left alone."""
    policy = policy_of()
    assert (1000, 4000, 16_000, 64_000) == policy.delays
    assert (5, 0.2, False) == (policy.attempts, policy.jitter, policy.has_calls)


def test_one_attempt_is_never_again() -> None:
    """There is nothing to wait for, whatever the delays would be."""
    assert () == policy_of(Retry(attempts=1, first_delay=600)).delays


def test_each_value_is_taken_from_the_last_place_that_says_it() -> None:
    """The entry point before the service, before the decorator, before the server."""
    told = Retries(
        Retry(attempts=9, first_delay=2, factor=2, jitter=0.0),
        {"shop": Retry(first_delay=4), "shop.buy": Retry(attempts=3)},
    )
    buy = told.policy_of("shop", "shop.buy", Retry(first_delay=3, factor=5))
    assert (4000, 20_000) == buy.delays
    assert 0.0 == buy.jitter
    assert (4000, 8000) == told.policy_of("shop", "shop.sell", None).delays[:2]
    assert (3000, 6000) == told.policy_of("bank", "bank.pay", Retry(first_delay=3)).delays[:2]
    assert 9 == told.policy_of("bank", "bank.pay", None).attempts


@pytest.mark.parametrize(
    ("service", "entry_point", "decorated", "has_calls"),
    [
        ("bank", "bank.pay", None, False),
        ("bank", "bank.pay", Retry(), True),
        ("shop", "shop.sell", None, True),
        ("bank", "news.came", None, True),
    ],
)
def test_calls_are_tried_again_only_where_somebody_speaks_of_the_handler(
    service: str, entry_point: str, decorated: Retry | None, has_calls: bool
) -> None:
    """Its decorator, its service, or its entry point; not what holds for the whole server."""
    told = Retries(Retry(attempts=9), {"shop": Retry(), "news.came": Retry()})
    assert has_calls is told.policy_of(service, entry_point, decorated).has_calls


def test_what_stands_above_goes_before_everything() -> None:
    """As the delays of an app under test do."""
    told = Retries(above=Retry(first_delay=0.01, max_delay=0.01))
    policy = told.policy_of("shop", "shop.buy", Retry(attempts=3, first_delay=900, max_delay=900))
    assert (10, 10) == policy.delays
    assert not told.policy_of("shop", "shop.buy", None).has_calls


@pytest.mark.parametrize(
    ("retry", "error", "is_taken"),
    [
        (Retry(), ValueError(), True),
        (Retry(), SystemExit(), True),
        (Retry(), exceptions.InvalidPayload("no"), False),
        (Retry(), exceptions.ServiceUnavailable("nobody"), True),
        (Retry(on=("Exception",)), exceptions.InvalidPayload("no"), True),
        (Retry(on=("InvalidPayload",)), exceptions.InvalidPayload("no"), True),
        (Retry(on=("OSError",)), Flaky(), True),
        (Retry(on=("OSError",)), ValueError(), False),
        (Retry(on=(Flaky,)), OSError(), False),  # type: ignore[arg-type]
        (Retry(on=(Flaky,)), Flaky(), True),  # type: ignore[arg-type]
        (Retry(on=("tests.test_retries.Flaky",)), Flaky(), True),
        (Retry(on=("elsewhere.Flaky",)), Flaky(), False),
        (Retry(never=("OSError",)), Flaky(), False),
        (Retry(never=("OSError",)), ValueError(), True),
        (Retry(on=("OSError",), never=("Flaky",)), Flaky(), False),
        (Retry(on=("OSError",), never=("Flaky",)), OSError(), True),
    ],
)
def test_exceptions_are_named_by_class_and_count_with_their_subclasses(
    retry: Retry, error: BaseException, is_taken: bool
) -> None:
    """`never` goes before `on`; what is the message's own fault only where `on` names it."""
    assert is_taken is policy_of(retry).takes(error)


def test_a_single_exception_may_stand_alone() -> None:
    """One class or one name needs no tuple."""
    assert ("OSError",) == Retry(on="OSError").on  # type: ignore[arg-type]
    assert ("builtins.OSError",) == Retry(never=OSError).never  # type: ignore[arg-type]


def test_jitter_only_shortens_a_delay() -> None:
    """So that the time that a delay queue keeps messages is the most."""
    policy = Policy((1000,), jitter=0.3)
    delays = {policy.jittered(1000) for _ in range(200)}
    assert len(delays) > 20
    assert min(delays) >= 700
    assert max(delays) <= 1000
    assert {1000} == {Policy((1000,)).jittered(1000) for _ in range(10)}
    assert 1 == Policy((1,), jitter=1.0).jittered(1)


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"attempts": 0}, "attempts=0 should be a number from 1"),
        ({"attempts": 2.5}, "attempts=2.5 should be a number from 1"),
        ({"attempts": True}, "attempts=True should be a number from 1"),
        ({"first_delay": 0}, "first_delay=0 should be seconds, from 0.001 to 4294967"),
        ({"max_delay": 1e9}, "max_delay=1000000000.0 should be seconds"),
        ({"max_delay": float("nan")}, "max_delay=nan should be seconds"),
        ({"factor": 0.5}, "factor=0.5 should be a number from 1 to 1000"),
        ({"jitter": 1.5}, "jitter=1.5 should be a number from 0 to 1"),
        ({"jitter": "much"}, "jitter='much' should be a number from 0 to 1"),
        ({"on": (int,)}, "on=<class 'int'> is no exception"),
        ({"never": ("not a name",)}, "never='not a name' is no exception"),
        ({"on": 3}, "on=3 is no exception"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused(values: dict[str, Any], fault: str) -> None:
    """With its name, and what it should be."""
    with pytest.raises(exceptions.ConfigError, match=fault.replace("(", r"\(")):
        Retry(**values)


def test_all_faults_are_told_at_once() -> None:
    """Not the first one only."""
    with pytest.raises(exceptions.ConfigError) as caught:
        Retry(attempts=0, factor=0, on=(1,))  # type: ignore[arg-type]
    assert 3 == len(caught.value.faults)


def test_a_first_delay_over_the_maximum_is_refused() -> None:
    """Also where two places say them."""
    with pytest.raises(exceptions.ConfigError, match="first_delay=600 is longer than max_delay"):
        policy_of(Retry(first_delay=600))


def test_a_retry_may_be_said_in_short() -> None:
    """By the number of attempts, or by yes and no."""
    assert Retry(attempts=3) == said(3)
    assert Retry(attempts=1) == said(False)
    assert Retry() == said(True)
    assert Retry(factor=2) == said(Retry(factor=2))
    for wrong in ("often", 2.5, None):
        with pytest.raises(exceptions.ConfigError, match="should be a Retry"):
            said(wrong)  # type: ignore[arg-type]
    with pytest.raises(exceptions.ConfigError, match="attempts=0"):
        said(0)


def test_a_queue_has_each_delay_once() -> None:
    """Handlers with the same delays share the queues in which they wait."""
    policies = [policy_of(), policy_of(Retry(attempts=2)), policy_of(Retry(2, 3.0))]
    assert (1000, 3000, 4000, 16_000, 64_000) == levels_of(policies, "q")


def test_too_many_delays_are_refused() -> None:
    """Each of them is a queue of the broker's."""
    slow = policy_of(Retry(attempts=100, factor=1.01))
    with pytest.raises(exceptions.ConfigError, match=f"queue 'q' have 99 .* and {MAX_LEVELS} are"):
        levels_of([slow], "q")
    assert (300_000,) == levels_of([policy_of(Retry(100, 300.0))], "q")


@dispatcher.rpc_service("shop")
class Shop(ServiceController):
    """Each kind of handler."""

    @dispatcher.rpc_method("shop", "buy", retry=Retry(attempts=2))
    def buy(self, request: Any, proxy: Any) -> None: ...

    @dispatcher.rpc_response_method("bank", "pay", retry=3)
    def paid(self, response: Any, proxy: Any) -> None: ...

    @dispatcher.rpc_error_method("bank", "pay", retry=True)
    def refused(self, error: Any, proxy: Any) -> None: ...

    @dispatcher.subscription_method("stock", "empty", retry=False)
    def empty(self, notification: Any, proxy: Any) -> None: ...

    @dispatcher.subscription_method("stock", "full")
    def full(self, notification: Any, proxy: Any) -> None: ...


Shop.set_discovery(ConventionDiscovery())


def test_every_decorator_takes_a_retry() -> None:
    """And two decorators of one message are still a conflict, whatever they say of retries."""
    said = {mark.kind + str(mark.entry_point): mark.retry for mark in Dispatcher(Shop()).handlers}
    assert {
        "requestshop.buy": Retry(attempts=2),
        "responsebank.pay": Retry(attempts=3),
        "errorbank.pay": Retry(),
        "notificationstock.empty": Retry(attempts=1),
        "notificationstock.full": None,
    } == said
    assert Mark("request", EntryPoint("a", "b"), Retry()) == Mark("request", EntryPoint("a", "b"))


def test_a_decorator_with_a_wrong_retry_says_which_one() -> None:
    """When the class is made."""
    with pytest.raises(
        exceptions.ConfigError,
        match=r"the decorator for the request of shop.buy: retry='often' should be a Retry",
    ):
        dispatcher.rpc_method("shop", "buy", retry="often")  # type: ignore[arg-type]


def test_a_server_takes_a_retry_for_all_handlers() -> None:
    """Their delays are its delay queues."""
    server = Server(ConnectionConfig(), "q", "e", [Shop], retry=Retry(first_delay=2, factor=2))
    names = [queue.name for queue in server.topology.queues]
    assert ["q.dead", "q", "q.retry.2000", "q.retry.4000", "q.retry.8000", "q.retry.16000"] == names
    with pytest.raises(exceptions.ConfigError, match="retry='often' should be a Retry"):
        Server(ConnectionConfig(), "q", "e", [Shop], retry="often")  # type: ignore[arg-type]


def test_a_retry_that_cannot_work_names_the_handler() -> None:
    """Where what several places say does not go together."""
    with pytest.raises(
        exceptions.ConfigError, match=r"retry of .*Shop.buy .*first_delay=600 is longer than"
    ):
        Server(ConnectionConfig(), "q", "e", [Shop], retry=Retry(first_delay=600))


def test_the_limits_are_those_of_the_fields() -> None:
    """A new number without limits would not be checked."""
    assert set(retries._LIMITS) | {"on", "never"} == set(Retry.__dataclass_fields__)
