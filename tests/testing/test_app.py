# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""App: what it runs, what waiting for it tells, and what its end reports."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from tavrida import dispatcher, exceptions, messages, middleware, service
from tavrida.discovery import LocalDiscovery
from tavrida.retries import Retry
from tavrida.testing import faults
from tavrida.testing.app import App, StartApp, UnseenFailures
from tavrida.testing.recording import WaitFailed
from tests.testing.services import Shop, Stock

#: Seconds. For waits that shall fail.
SOON = 0.1


@pytest.fixture
def app(tavrida_app: StartApp) -> App:
    """The shop and its stock."""
    return tavrida_app(Shop, Stock)


def call(app: App, method: str, **payload: Any) -> dict[str, Any]:
    """Call a method of the shop from the client of the app."""
    answer = app.client.shop[method](**payload).call()
    assert answer is not None
    return dict(answer.payload)


def failure_of(wait: Callable[[], object]) -> str:
    """Return what a wait that fails says."""
    with pytest.raises(WaitFailed) as raised:
        wait()
    return str(raised.value)


# -- what it runs


def test_services_and_the_client_find_each_other(app: App) -> None:
    """Calls, continuations, notifications, without any set-up."""
    assert {"sold": 1, "limit": 10} == call(app, "sell", sku=1)
    assert {"sku": 2, "taken": 1} == call(app, "ask", sku=2)
    assert {"taken": [3, 4]} == call(app, "ask_many", skus=[3, 4])
    assert {"sku": 5, "taken": 1} == call(app, "hand_on", sku=5)
    call(app, "order", sku=6)
    assert {"sku": 1} == app.wait_handled("shop.sell", kind="notification").payload
    assert {"sku": 6, "taken": 1} == app.wait_handled("stock.take", kind="response").payload


def test_options_are_by_the_name_of_the_service(tavrida_app: StartApp) -> None:
    """Those of the ini, with their defaults."""
    app = tavrida_app(Shop, Stock, options={"shop": {"limit": 3}})
    assert 3 == call(app, "sell", sku=1)["limit"]


def test_settings_are_those_of_a_server(tavrida_app: StartApp) -> None:
    """One queue for all, another serializer, one handler at a time."""
    app = tavrida_app(Shop, Stock, queue="all", serializer="msgpack", concurrency=1)
    assert 1 == call(app, "sell", sku=1)["sold"]
    app.wait_handled("shop.sell", kind="notification")
    assert ["all", "all.dead"] == sorted(each.name for each in app.server.topology.queues)
    assert 1 == app.server.settings.concurrency
    assert "application/msgpack" == app.wait_sent("shop.sell", kind="response").message.content_type


def test_a_service_that_is_not_there_is_service_unavailable(tavrida_app: StartApp) -> None:
    """At once, as on any broker."""
    app = tavrida_app(Shop)
    with pytest.raises(exceptions.RemoteError, match="ServiceUnavailable"):
        call(app, "ask", sku=1)


def test_apps_of_one_test_share_its_broker_and_others_do_not(
    tavrida_app: StartApp, tavrida_url: str
) -> None:
    """So two of them can talk."""
    tavrida_app(Stock)
    assert {"sku": 2, "taken": 1} == call(tavrida_app(Shop), "ask", sku=2)
    with App(Shop) as other, pytest.raises(exceptions.RemoteError, match="ServiceUnavailable"):
        call(other, "ask", sku=2)


def test_a_client_may_speak_for_a_service_that_is_not_there(tavrida_app: StartApp) -> None:
    """To those who subscribed to it."""
    app = tavrida_app(Stock)
    app.client_as("shop.sell").publish(sku=3)
    run = app.wait_handled("shop.sell", payload={"sku": 3})
    assert "shop.sell" == str(run.message.source)


def test_a_discovery_of_the_controllers_own_is_used(
    tavrida_app: StartApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the names of exchanges that it tells, and its gaps."""
    known = LocalDiscovery()
    known.register_local_publisher("shop", "shop_news")
    known.register_remote_service("stock", "stock_exchange")
    monkeypatch.setattr(Shop, "_discovery", known)
    app = tavrida_app(Shop, Stock)
    names = {each.name for each in app.server.topology.exchanges}
    assert {"shop", "shop_news", "stock_exchange", "stock.notifications"} == names
    assert {"sku": 2, "taken": 1} == call(app, "ask", sku=2)
    call(app, "sell", sku=1)
    app.wait_handled("shop.sell", kind="notification")

    monkeypatch.setattr(Shop, "_discovery", LocalDiscovery())
    with (
        App(Shop, Stock) as app,
        pytest.raises(exceptions.RemoteError, match=r"ServiceUnknown.*'stock'"),
    ):
        call(app, "ask", sku=2)


def test_a_server_can_be_stopped_and_started_again(app: App) -> None:
    """What is sent meanwhile waits for it."""
    call(app, "sell", sku=1)
    app.wait_settled()
    app.server.stop()
    app.client.stock.take(sku=7).cast()
    assert "stock.take was handled" in failure_of(
        lambda: app.wait_handled("stock.take", timeout=SOON)
    )
    app.server.start()
    app.wait_handled("stock.take", payload={"sku": 7})


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"classes": ()}, "an app without controllers: name at least one"),
        (
            {"options": {"stok": {}}},
            "options names 'stok', which no controller of this app serves (did you mean 'stock'?)",
        ),
        ({"concurency": 1}, "Server() has no argument 'concurency' (did you mean 'concurrency'?)"),
        (
            {"options": {"shop": {"limit": "many"}}},
            "option 'limit' of 'shop': invalid literal for int() with base 10: 'many'",
        ),
    ],
)
def test_what_cannot_run_is_told_before_it_runs(arguments: dict[str, Any], told: str) -> None:
    """In one sentence."""
    classes = arguments.pop("classes", (Shop, Stock))
    with pytest.raises(exceptions.ConfigError) as raised:
        App(*classes, **arguments)
    assert told == str(raised.value)


# -- waiting


def test_what_happened_before_the_wait_counts(app: App) -> None:
    """There is no race between the doing and the waiting."""
    for sku in range(3):
        call(app, "ask", sku=sku)
    for nth in range(1, 4):
        run = app.wait_handled("stock.take", nth=nth, timeout=0)
        assert {"sku": nth - 1, "taken": 1} == run.result
    assert {"sku": 1} == app.wait_handled("stock.take", payload={"sku": 1}, timeout=0).payload
    assert "shop.ask" == str(app.wait_sent("stock.take", nth=3, timeout=0).message.source)


def test_what_happens_during_the_wait_ends_it(app: App) -> None:
    """At once, also from another thread."""
    stock = app.server.placements[1].dispatcher.controller
    app.client.stock.slow().cast()
    timer = threading.Timer(SOON, stock.gate.set)
    timer.start()
    assert app.wait_handled("stock.slow").error is None
    timer.join()


def test_a_message_can_be_awaited_by_kind_and_payload(app: App) -> None:
    """Request, response, error and notification of one entry point are told apart."""
    call(app, "order", sku=1)
    assert {"sku": 1, "amount": 1} == app.wait_sent("stock.take", kind="request").payload
    assert {"sku": 1, "taken": 1} == app.wait_sent("stock.take", kind="response").payload
    call(app, "sell", sku=1)
    sent = app.wait_sent("shop.sell", kind="notification", payload={"sku": 1})
    assert "shop.sell" == str(sent.message.source)
    assert "shop.sell sent notification shop.sell {'sku': 1}" == str(sent)


def test_settled_means_everything(app: App) -> None:
    """Queued, running, and what that sets off."""
    stock = app.server.placements[1].dispatcher.controller
    app.client.stock.slow().cast()
    for sku in range(5):
        app.client.shop.order(sku=sku).cast()
    told = failure_of(lambda: app.wait_settled(timeout=0.3))
    assert told.startswith("not all was settled within 0.3 s. What happened:\n")
    assert "still running: request stock.slow {}" in told
    stock.gate.set()
    app.wait_settled()
    assert 5 == len([run for run in app._recording.handled if run.kind == "response"])
    app.wait_settled(timeout=0)


def test_settled_counts_what_waits_in_a_queue(tavrida_app: StartApp) -> None:
    """And names it."""
    app = tavrida_app(Stock, concurrency=1)
    stock = app.server.placements[0].dispatcher.controller
    app.client.stock.slow().cast()
    app.client.stock.take(sku=9).cast()
    told = failure_of(lambda: app.wait_settled(timeout=SOON))
    assert "in its queue, or being settled: request stock.take {'sku': 9}" in told
    stock.gate.set()
    app.wait_settled()


def test_settled_does_not_wait_for_requests_that_expired(tavrida_app: StartApp) -> None:
    """They are shed unseen when it is their turn."""
    app = tavrida_app(Stock, concurrency=1)
    stock = app.server.placements[0].dispatcher.controller
    app.client.stock.slow().cast()
    with pytest.raises(exceptions.CallTimeout):
        app.client.stock.take(sku=9).call(timeout=SOON)
    stock.gate.set()
    app.wait_settled()


def test_an_idle_app_is_settled(app: App) -> None:
    """From the beginning."""
    app.wait_settled(timeout=0)


# -- what a failing wait tells


def test_a_handler_that_did_not_run_is_told_with_what_did_happen(app: App) -> None:
    """Every step."""
    call(app, "ask", sku=1)
    app.wait_settled()
    assert (
        "no request shop.order was handled within 0.1 s. What happened:\n"
        "  test sent request shop.ask {'sku': 1}\n"
        "  shop.ask sent request stock.take {'sku': 1}\n"
        "  stock handled request stock.take {'sku': 1} -> {'sku': 1, 'taken': 1}\n"
        "  stock.take sent response stock.take {'sku': 1, 'taken': 1}\n"
        "  shop handled request shop.ask {'sku': 1} -> {'sku': 1, 'taken': 1}\n"
        "  shop.ask sent response shop.ask {'sku': 1, 'taken': 1}"
    ) == failure_of(lambda: app.wait_handled("shop.order", kind="request", timeout=SOON))


def test_nothing_at_all_is_told_too(app: App) -> None:
    """Where the test forgot to send."""
    assert ("no message stock.take was sent within 0.1 s. What happened:\n  nothing") == failure_of(
        lambda: app.wait_sent("stock.take", timeout=SOON)
    )


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"nth": 3}, "message stock.take was handled 2 times, not 3 times, within 0.1 s. "),
        (
            {"nth": 2, "payload": {"sku": 1}},
            "message stock.take with payload {'sku': 1} was handled once, not 2 times, within 0.1",
        ),
        (
            {"payload": {"sku": 3}},
            "message stock.take was handled 2 times, never with payload {'sku': 3}, within 0.1 s. ",
        ),
        (
            {"kind": "response", "payload": {"sku": 3}},
            "no response stock.take with payload {'sku': 3} was handled within 0.1 s. ",
        ),
    ],
)
def test_too_few_or_other_runs_are_counted(app: App, wanted: dict[str, Any], told: str) -> None:
    """So that a wrong payload is not taken for silence."""
    call(app, "ask", sku=1)
    call(app, "ask", sku=2)
    assert failure_of(lambda: app.wait_handled("stock.take", timeout=SOON, **wanted)).startswith(
        told
    )


def test_a_handler_that_raises_instead_is_told_with_its_traceback(app: App) -> None:
    """And what to write if that is right."""
    app.client.stock.take(sku=1, amount=0).cast()
    with pytest.raises(WaitFailed) as raised:
        app.wait_handled("stock.take")
    assert (
        "the handler of request stock.take raised ValueError: cannot take 0; if that is right, say "
        "raises=ValueError"
    ) == str(raised.value)
    assert isinstance(raised.value.__cause__, ValueError)


def test_a_handler_that_does_not_raise_as_it_should_is_told(app: App) -> None:
    """With what it did instead."""
    app.client.stock.take(sku=1).cast()
    assert (
        "the handler of request stock.take should raise ValueError, and returned {'sku': 1, "
        "'taken': 1}"
    ) == failure_of(lambda: app.wait_handled("stock.take", raises=ValueError))
    app.client.stock.take(sku=1, amount=0).cast()
    assert (
        "the handler of request stock.take should raise KeyError, and raised ValueError: cannot "
        "take 0"
    ) == failure_of(lambda: app.wait_handled("stock.take", nth=2, raises=KeyError))


def test_a_dead_letter_that_does_not_come_is_told(app: App) -> None:
    """With what it should have been."""
    app.client.stock.take(sku=1, amount=0).cast()
    app.wait_handled("stock.take", raises=ValueError)
    assert failure_of(
        lambda: app.wait_dead_letter("stock.take", reason="KeyError", timeout=SOON)
    ).startswith("no dead letter of stock.take with 'KeyError' in its reason within 0.1 s. What")
    assert failure_of(lambda: app.wait_dead_letter("shop.sell", timeout=SOON)).startswith(
        "no dead letter of shop.sell within 0.1 s. What happened:\n"
    )


def test_the_story_has_faults_refusals_and_what_a_middleware_answers(
    tavrida_app: StartApp,
) -> None:
    """Everything that one looks for in a log."""

    class Close(middleware.Middleware):
        def process(self, message: messages.Message) -> messages.Message:
            return messages.Response({"closed": True})

    class Closed(Shop):
        def __init__(self, options: Any = None) -> None:
            super().__init__(options)
            self.add_incoming_middleware(Close())

    app = tavrida_app(Closed, faults=[faults.lose_connection("publish", kind="request")])
    app.client.shop.sell(sku=1).cast()
    app.wait_settled()
    with pytest.raises(exceptions.ServiceUnavailable):
        app.client.stock.take(sku=1).cast()
    told = app.story()
    fault = "lose_connection('publish', kind='request')"
    assert (
        f"  fault: {fault} at the publishing of request shop.sell\n"
        "  sent again: request shop.sell\n"
        "  a middleware answered request shop.sell {'sku': 1}\n"
    ) in told
    assert "  refused: request stock.take: nobody serves 'stock'" in told


def test_a_long_story_has_its_end(app: App) -> None:
    """Where the reason is."""
    for sku in range(30):
        app.client.stock.take(sku=sku).cast()
    app.wait_settled()
    lines = app.story().splitlines()
    assert 41 == len(lines)
    assert "  ... 20 more before" == lines[0]


@pytest.mark.parametrize(
    ("wait", "told"),
    [
        (
            lambda app: app.wait_handled("stock.tale"),
            (
                "no controller of this app handles 'stock.tale' (did you mean 'stock.take'?). They "
                "handle: shop.ask, shop.ask_many, shop.hand_on, shop.order, shop.refuse, "
                "shop.sell, shop.tell, stock.slow, stock.take."
            ),
        ),
        (
            lambda app: app.wait_sent("stock.take", kind="cast"),
            "kind='cast' should be one of request, response, error, notification",
        ),
        (
            lambda app: app.wait_handled("stock.take", nth=0),
            "nth=0 should be 1 or more: the first is number 1",
        ),
    ],
)
def test_a_wait_for_what_cannot_be_is_told_at_once(
    app: App, wait: Callable[[App], object], told: str
) -> None:
    """And not after its timeout."""
    with pytest.raises(exceptions.ConfigError) as raised:
        wait(app)
    assert told == str(raised.value)


# -- what its end reports


def report_of(act: Callable[[App], object], *given: faults.Fault) -> str:
    """Return what the end of an app says after the test has acted; nothing where it is content."""
    app = App(Shop, Stock, faults=given)
    try:
        with app:
            act(app)
            app.wait_settled()
    except UnseenFailures as failures:
        return str(failures)
    return ""


def test_a_failure_that_nobody_was_told_of_is_reported_with_its_traceback() -> None:
    """From the handler on, and with what to do."""
    told = report_of(lambda app: app.client.stock.take(sku=1, amount=0).cast())
    first, *lines = told.splitlines()
    assert "Traceback (most recent call last):" == first
    assert "services.py" in lines[0]
    assert "tavrida/processing.py" not in told
    assert "ValueError: cannot take 0" in lines
    assert (
        "stock handled request stock.take {'amount': 0, 'sku': 1} raised ValueError: cannot take 0"
    ) in lines
    assert lines[-1].startswith("Nobody was told of these failures, and the test did not look")


def test_a_failed_notification_is_reported() -> None:
    """A subscriber that fails is what nobody notices otherwise."""
    told = report_of(lambda app: app.client.shop.sell(sku=-1).call())
    assert "stock handled notification shop.sell {'sku': -1} raised KeyError: -1" in told


def test_messages_that_reached_no_handler_are_reported() -> None:
    """Wrong payloads and unknown methods, of casts."""
    assert "raised InvalidPayload" in report_of(lambda app: app.client.stock.take(sku="x").cast())
    told = report_of(lambda app: app.client.stock.tale(sku=1).cast())
    assert "request stock.tale became a dead letter: HandlerNotFound: service 'stock' has" in told


def test_a_continuation_that_failed_and_has_no_error_handler_is_reported() -> None:
    """The shop hears responses only: the error is dropped."""
    told = report_of(lambda app: app.client.shop.order(sku=1, amount=0).cast())
    assert "stock handled request stock.take {'amount': 0, 'sku': 1} raised ValueError" in told


def test_a_continuation_whose_error_is_handled_is_not_reported() -> None:
    """Somebody was told."""

    class Careful(Shop):
        @dispatcher.rpc_error_method(service="stock", method="take")
        def failed(self, error: Any, proxy: Any) -> None:
            pass

    with App(Careful, Stock) as app:
        app.client.shop.order(sku=1, amount=0).cast()
        app.wait_handled("stock.take", kind="error")
        app.wait_settled()


def _refused(app: App) -> None:
    with pytest.raises(exceptions.RemoteError, match="cannot take 0"):
        app.client.stock.take(sku=1, amount=0).call()


def _looked_at_the_run(app: App) -> None:
    app.client.stock.take(sku=1, amount=0).cast()
    assert "cannot take 0" == str(app.wait_handled("stock.take", raises=ValueError).error)


def _looked_at_the_dead_letter(app: App) -> None:
    app.client.stock.take(sku=1, amount=0).cast()
    letter = app.wait_dead_letter("stock.take", reason="ValueError")
    assert ("request", "stock", "ValueError: cannot take 0") == (
        letter.kind,
        letter.queue,
        letter.reason,
    )
    assert "raise ValueError" in letter.traceback


def _looked_at_all(app: App) -> None:
    app.client.stock.take(sku=1, amount=0).cast()
    app.client.stock.tale(sku=1).cast()
    app.wait_settled()
    assert 2 == len(app.failures())
    assert [] == app.failures()


@pytest.mark.parametrize(
    "act", [_refused, _looked_at_the_run, _looked_at_the_dead_letter, _looked_at_all]
)
def test_a_failure_that_somebody_noticed_is_not_reported(act: Callable[[App], None]) -> None:
    """The caller, or the test."""
    assert "" == report_of(act)


def test_a_fault_that_never_struck_is_reported() -> None:
    """A test of a fault that did not happen shows nothing."""
    fault = faults.lose_connection("ack", at=5)
    told = report_of(lambda app: app.client.stock.take(sku=1).cast(), fault)
    assert "lose_connection('ack', at=5) never struck: 1 operations matched it" == told


def test_an_exception_on_its_way_is_not_hidden() -> None:
    """The report of the end would stand before the reason."""

    def fail() -> None:
        with App(Stock) as app:
            app.client.stock.take(sku=1, amount=0).cast()
            app.wait_dead_letter()
            app._recording._seen.clear()
            raise LookupError("the test's own")

    with pytest.raises(LookupError, match="own"):
        fail()


def test_an_app_that_cannot_start_leaves_nothing_behind() -> None:
    """And says why."""
    threads = threading.active_count()
    with (
        pytest.raises(exceptions.ConnectionFailed),
        App(Stock, url="sqlite:////proc/none/bus.db"),
    ):
        pass
    assert threads == threading.active_count()


def test_middleware_of_the_whole_server_that_fails_is_a_failure_too(
    tavrida_app: StartApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though no handler nor any middleware of the controller has seen the message."""

    class Broken(middleware.Middleware):
        def before_handle(self, message: messages.Message) -> None:
            raise OSError("no room")

    def broken(namespace: str, name: str, base: type) -> type:
        return Broken if name == "broken" else load(namespace, name, base)

    from tavrida import plugins

    load = plugins.load
    monkeypatch.setattr(plugins, "load", broken)
    app = tavrida_app(Stock, incoming_middleware=("broken",))
    app.client.stock.take(sku=1).cast()
    run = app.wait_handled("stock.take", raises=OSError)
    assert isinstance(run.error, OSError)


def test_async_handlers_are_recorded_alike(tavrida_app: StartApp) -> None:
    """With their results and exceptions, however many run at once."""

    @dispatcher.rpc_service("echo")
    class Echo(service.ServiceController):
        @dispatcher.rpc_method(service="echo", method="say")
        async def say(self, request: Any, proxy: Any, n: int) -> dict[str, Any]:
            if n == 3:
                raise ValueError(n)
            return {"n": n}

    app = tavrida_app(Echo)
    for n in range(5):
        app.client.echo.say(n=n).cast()
    for n in (0, 1, 2, 4):
        assert {"n": n} == app.wait_handled("echo.say", payload={"n": n}).result
    app.wait_handled("echo.say", payload={"n": 3}, raises=ValueError)


# -- retries


@dispatcher.rpc_service("flaky")
class Flaky(service.ServiceController):
    """Fails at first."""

    @dispatcher.rpc_method("flaky", "stubborn", retry=Retry(attempts=3, first_delay=60))
    def stubborn(self, request: Any, proxy: Any, good: int) -> None:
        if request.attempt < good:
            raise ValueError(f"failure {request.attempt}")

    @dispatcher.rpc_method("flaky", "weak")
    def weak(self, request: Any, proxy: Any, good: int) -> None:
        self.stubborn(request, proxy, good)


def test_a_failure_after_which_the_message_is_handled_again_needs_no_notice(
    tavrida_app: StartApp,
) -> None:
    """The delay of a minute is none in an app; nothing is reported, nothing is left."""
    app = tavrida_app(Flaky)
    app.client.flaky.stubborn(good=3).cast()
    last = app.wait_handled("flaky.stubborn", nth=3).message
    assert isinstance(last, messages.IncomingRequest)
    assert 3 == last.attempt
    app.wait_settled()
    assert [] == app.failures()
    assert 1 == app.story().count("sent request")
    assert "again: request flaky.stubborn, attempt=2" in app.story()


def test_the_last_failure_needs_notice(tavrida_app: StartApp) -> None:
    """Those before it do not."""
    app = tavrida_app(Flaky)
    app.client.flaky.stubborn(good=9).cast()
    app.wait_handled("flaky.stubborn", nth=3, raises=ValueError)
    app.wait_settled()
    app.check()


def test_an_app_tries_nothing_again_that_does_not_say_so(tavrida_app: StartApp) -> None:
    """One failure is one failure."""
    app = tavrida_app(Flaky)
    app.client.flaky.weak(good=2).cast()
    assert app.wait_dead_letter("flaky.weak").reason == "ValueError: failure 1"


def test_an_app_with_a_retry_tries_everything_again(tavrida_app: StartApp) -> None:
    """Also what does not say so itself."""
    app = tavrida_app(Flaky, retry=2)
    app.client.flaky.weak(good=2).cast()
    app.wait_handled("flaky.weak", nth=2)
    app.wait_settled()
