# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The pytest plugin, as the tests of an author of services meet it."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from tests.waiting import DEADLINE

pytest_plugins = ["pytester"]

CONTROLLER = """
from tavrida import dispatcher, service
from tavrida.testing import faults

@dispatcher.rpc_service("echo")
class Echo(service.ServiceController):
    @dispatcher.rpc_method(service="echo", method="say")
    def say(self, request, proxy, n: int = 0):
        if n < 0:
            raise ValueError(f"{n} is too little")
        return {"n": n}
"""


#: Tells which threads are still there when all tests have ended. Workers end after their job.
THREADS = """
import threading

def pytest_unconfigure():
    left = {each.name for each in threading.enumerate()}
    print("left:", *(each for each in left if not each.startswith("tavrida-worker")))
"""


def run(pytester: pytest.Pytester, test: str, *arguments: str) -> pytest.RunResult:
    """Run one test module of an author, beside the controller above."""
    pytester.makepyfile(CONTROLLER + textwrap.dedent(test))
    if not (pytester.path / "conftest.py").exists():
        pytester.makeconftest(THREADS)
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", *arguments, timeout=DEADLINE)


def test_the_fixtures_are_there_without_asking(pytester: pytest.Pytester) -> None:
    """With a sentence each in pytest --fixtures."""
    result = run(pytester, "def test(tavrida_app): pass", "--fixtures")
    result.stdout.fnmatch_lines(
        [
            "tavrida_url -- *",
            "    The broker of this test, in memory and its own. Override it*",
            "tavrida_app -- *",
            "    Call it with controllers to start an app of them*",
        ]
    )


def test_an_app_is_started_and_stopped(pytester: pytest.Pytester) -> None:
    """Nothing of it runs on."""
    result = run(
        pytester,
        """
        def test(tavrida_app):
            assert 3 == tavrida_app(Echo).client.echo.say(n=3).call()["n"]
        """,
    )
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["left: MainThread"])


def test_tests_do_not_meet(pytester: pytest.Pytester) -> None:
    """Each has a broker of its own."""
    result = run(
        pytester,
        """
        def test_one(tavrida_app):
            app = tavrida_app(Echo, concurrency=1)
            app.server.stop()
            app.client.echo.say(n=1)

        def test_two(tavrida_app):
            app = tavrida_app(Echo)
            app.wait_settled()
            assert app.story() == "  nothing"
        """,
    )
    result.assert_outcomes(passed=2)


def test_the_broker_can_be_another_one(pytester: pytest.Pytester, amqp_url: str) -> None:
    """By overriding one fixture."""
    pytester.makeconftest(
        f"""
        import pytest

        @pytest.fixture
        def tavrida_url():
            return {amqp_url!r}
        """
    )
    result = run(
        pytester,
        """
        def test(tavrida_app):
            app = tavrida_app(Echo, queue_type="classic")
            assert 3 == app.client.echo.say(n=3).call()["n"]
            assert app.faults.broker[0].startswith("amqp:")
        """,
    )
    result.assert_outcomes(passed=1)


def test_an_app_stops_when_its_test_fails_and_its_story_is_shown(
    pytester: pytest.Pytester,
) -> None:
    """Beside what the test and its services printed."""
    result = run(
        pytester,
        """
        def test(tavrida_app):
            app = tavrida_app(Echo, faults=[faults.delay(0.01, times=None, chance=0.5)], seed=7)
            app.client.echo.say(n=3).call()
            assert False
        """,
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "* Captured tavrida call *",
            (
                "<App of echo with <Faults faulty://* seed=7: delay('deliver', seconds=0.01, "
                "times=None, chance=0.5)>>"
            ),
            "  test sent request echo.say {'n': 3}",
            "  echo handled request echo.say {'n': 3} -> {'n': 3}",
        ]
    )
    result.stdout.fnmatch_lines(["left: MainThread"])


def test_a_failure_that_nobody_noticed_fails_the_test(pytester: pytest.Pytester) -> None:
    """With the handler's traceback and nothing of pytest's or tavrida's own."""
    result = run(
        pytester,
        """
        def test(tavrida_app):
            app = tavrida_app(Echo)
            app.client.echo.say(n=-1).cast()
            app.wait_settled()
        """,
        "--show-capture=no",
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test*",
            "Traceback (most recent call last):",
            "*in say",
            '    raise ValueError(f"{n} is too little")',
            "ValueError: -1 is too little",
            "echo handled request echo.say {'n': -1} raised ValueError: -1 is too little",
            (
                "Nobody was told of these failures, and the test did not look: wait for them with "
                "app.wait_handled(..., raises=...) or app.wait_dead_letter(...), or take note of "
                "all with app.failures()."
            ),
        ]
    )
    result.stdout.no_fnmatch_line("*plugin.py*")
    result.stdout.no_fnmatch_line("*processing.py*")


def test_a_failing_wait_shows_the_line_of_the_test(pytester: pytest.Pytester) -> None:
    """And no line of the kit."""
    result = run(
        pytester,
        """
        def test(tavrida_app):
            app = tavrida_app(Echo)
            app.wait_handled("echo.say", timeout=0.1)
        """,
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            '>*app.wait_handled("echo.say", timeout=0.1)',
            "E*WaitFailed: no message echo.say was handled within 0.1 s. What happened:",
            "E*nothing",
            "test_a_failing_wait_*.py:*: WaitFailed",
        ]
    )
    result.stdout.no_fnmatch_line("*app.py:*")


def test_a_fault_that_never_struck_fails_the_test(pytester: pytest.Pytester) -> None:
    """Its test has shown nothing."""
    result = run(
        pytester,
        """
        def test(tavrida_app):
            tavrida_app(Echo, faults=[faults.lose_confirm(at=3)]).client.echo.say().call()
        """,
        "--show-capture=no",
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["lose_confirm('confirm', at=3) never struck: 2 operations*"])


def test_set_up_that_cannot_work_is_one_sentence(pytester: pytest.Pytester) -> None:
    """At the line of the test."""
    result = run(pytester, "def test(tavrida_app): tavrida_app(Echo, optons={})")
    result.stdout.fnmatch_lines(
        ["E*ConfigError: Server() has no argument 'optons'*"],
    )


def test_a_test_run_without_services_does_not_pay() -> None:
    """Pytest imports the plugin in every run of everybody who has tavrida installed."""
    code = """
import sys
import pytest
before = set(sys.modules)
import tavrida.testing.plugin
print(*sorted(set(sys.modules) - before))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ["tavrida", "tavrida.testing", "tavrida.testing.plugin"] == done.stdout.split()


def test_only_the_plugin_needs_pytest() -> None:
    """Everything else runs in scripts and under other runners."""
    code = """
import sys
import tavrida.testing.app, tavrida.testing.faults, tavrida.testing.handlers
assert not {"pytest", "_pytest", "pika", "oslo_config"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
