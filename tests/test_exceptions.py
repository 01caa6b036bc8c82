# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The error tree, and what errors tell."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tavrida import exceptions
from tavrida.exceptions import (
    ConfigError,
    Faults,
    PipelineFailed,
    PluginError,
    RemoteError,
    TavridaError,
    did_you_mean,
)
from tavrida.messages import Request


def family(cls: type[TavridaError], depth: int = 0) -> Iterator[tuple[str, int, int]]:
    """Name, depth and code of an error class and all that derive from it, in definition order."""
    yield cls.__name__, depth, cls.code
    for child in cls.__subclasses__():
        yield from family(child, depth + 1)


def test_every_error_has_a_code_of_its_own() -> None:
    """Codes travel in error answers, so that one code means one thing."""
    codes = [code for _, _, code in family(TavridaError)]
    assert len(codes) == len(set(codes))
    assert all("code" in vars(getattr(exceptions, name)) for name, _, _ in family(TavridaError))


def test_tree_is_as_the_docstring_draws_it() -> None:
    """Who reads the drawing knows what an except clause catches."""
    drawn = re.findall(
        r"^ {4}((?:[|' ] {2})*(?:[|']- )?)(\w+) +(\d{4})", exceptions.__doc__ or "", re.MULTILINE
    )
    assert sorted(family(TavridaError)) == sorted(
        (name, len(bars) // 3, int(code)) for bars, name, code in drawn
    )


def test_parents_are_as_the_docstring_draws_them() -> None:
    """The same, for which branch hangs on which."""
    parents: list[str] = []
    for line in (exceptions.__doc__ or "").splitlines():
        found = re.match(r" {4}([|'\- ]*)(\w+) +\d{4}", line)
        if found:
            depth = len(found[1]) // 3
            parents[depth:] = [found[2]]
            if depth:
                assert parents[depth - 1] == getattr(exceptions, found[2]).__bases__[0].__name__
    assert parents


@pytest.mark.parametrize(
    ("cls", "builtin"),
    [
        (exceptions.CallTimeout, TimeoutError),
        (exceptions.PublishTimeout, TimeoutError),
        (exceptions.WrongEntryPoint, ValueError),
    ],
)
def test_errors_with_a_builtin_twin_are_caught_as_it(
    cls: type[TavridaError], builtin: type[Exception]
) -> None:
    """Programs may catch the builtin that everybody knows."""
    assert issubclass(cls, builtin)


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("helo", " (did you mean 'hello'?)"),
        ("world", ""),
        ("", ""),
        ("héllo", " (did you mean 'hello'?)"),
    ],
)
def test_did_you_mean_names_the_nearest_known_word_or_nothing(word: str, hint: str) -> None:
    """A hint is given only where it is near."""
    assert hint == did_you_mean(word, iter(["hello", "goodbye"]))


def test_did_you_mean_knows_nothing_from_nothing() -> None:
    """No known words, no hint."""
    assert "" == did_you_mean("hello", [])


def test_config_error_lists_its_faults() -> None:
    """Commands print them one a line; the text has them all."""
    error = ConfigError("one", "two")
    assert ("one", "two") == error.faults
    assert "one; two" == str(error)


def test_faults_without_any_pass_the_check() -> None:
    """Nothing wrong, nothing raised."""
    faults = Faults()
    with faults.collected("nowhere: "):
        pass
    faults.check()


def test_a_single_fault_keeps_its_class() -> None:
    """A program that catches PluginError gets it, and not the general error."""
    faults = Faults()
    error = PluginError("no plugin")
    with faults.collected():
        raise error
    with pytest.raises(PluginError) as caught:
        faults.check()
    assert error is caught.value


def test_several_faults_become_one_error_in_their_order() -> None:
    """A user hears of all of them at once, each with its place."""
    faults = Faults()
    faults.add("first")
    with faults.collected("[server] "):
        raise ConfigError("second", "third")
    with faults.collected():
        raise PluginError("fourth")
    with pytest.raises(ConfigError) as caught:
        faults.check()
    assert ("first", "[server] second", "[server] third", "fourth") == caught.value.faults


def test_collecting_lets_other_errors_through() -> None:
    """What is no fault of the set-up is not swallowed."""
    with pytest.raises(KeyError), Faults().collected():
        raise KeyError("x")


def test_remote_error_tells_class_message_and_code() -> None:
    """The caller sees what the other side said."""
    error = RemoteError({"class": "OutOfStock", "message": "no nails left", "code": 77, "sku": 5})
    assert ("OutOfStock", "no nails left", 77) == (error.error_class, error.message, error.code)
    assert 5 == error.payload["sku"]
    assert "OutOfStock: no nails left (code 77)" == str(error)


@pytest.mark.parametrize("code", [None, "77", 7.5, [], True])
def test_remote_error_without_a_usable_code_says_1000(code: object) -> None:
    """A foreign service may send anything; True is no number either."""
    assert 1000 == RemoteError({"code": code}).code


def test_remote_error_of_an_empty_answer_still_reads() -> None:
    """Even an error without any payload is told."""
    assert "Exception:  (code 1000)" == str(RemoteError({}))


@pytest.mark.parametrize("details", [None, "text", [1], 5])
def test_remote_error_has_details_that_are_a_dict(details: object) -> None:
    """Whatever a foreign service sends; the payload shows what it was."""
    assert {"left": 0} == RemoteError({"details": {"left": 0}}).details
    error = RemoteError({"details": details})
    assert {} == error.details
    assert {"details": details} == error.payload


def test_remote_error_keeps_its_payload_when_the_message_changes() -> None:
    """The error has a copy of its own."""
    payload = {"class": "X"}
    error = RemoteError(payload)
    payload["class"] = "Y"
    assert {"class": "X"} == error.payload


def test_pipeline_failed_shows_three_and_counts_the_rest() -> None:
    """Thousands of failures make a message that can be read, and none is lost."""
    failures = [(Request({"n": n}), exceptions.PublishFailed(f"no {n}")) for n in range(5)]
    error = PipelineFailed(failures)
    assert "5 messages of the pipeline failed: no 0; no 1; no 2; and 2 more" == str(error)
    assert tuple(failures) == error.failures


def test_connection_failed_is_worth_another_try_unless_said_otherwise() -> None:
    """A wrong password is final, a broker that is down is not."""
    assert not exceptions.ConnectionFailed("down").is_final
    assert exceptions.ConnectionFailed("refused", is_final=True).is_final


@pytest.mark.parametrize(
    ("text", "keep", "shown"),
    [
        ("plain, also \u00fcml\u00e4uts", "", "plain, also \u00fcml\u00e4uts"),
        ("\x1b[2J", "", "\\x1b[2J"),
        ("a\nCRITICAL b", "", "a\\nCRITICAL b"),
        ("two\nlines\r", "\n", "two\nlines\\r"),
        ("\u009b2J", "", "\\x9b2J"),
    ],
)
def test_control_characters_of_strangers_are_shown_and_not_obeyed(
    text: str, keep: str, shown: str
) -> None:
    """By a terminal, or by whoever reads a log line by line."""
    assert shown == exceptions.printable(text, keep)
