# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Settings as plain data."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tavrida.config import (
    ConnectionConfig,
    Credentials,
    LogSettings,
    ServerSettings,
    options_of,
    redact,
)
from tavrida.exceptions import ConfigError
from tests.properties import patient

SETTINGS = pytest.mark.parametrize("cls", [ConnectionConfig, ServerSettings, LogSettings])


def test_tutorial_names_host_credentials_and_engine() -> None:
    """The form of the tutorial works."""
    config = ConnectionConfig("localhost", Credentials("guest", "guest"), async_engine=True)
    assert ("amqp://guest:guest@localhost:5672/%2F",) == config.urls
    assert "amqp" == config.scheme
    assert config.async_engine


def test_handlers_run_one_at_a_time_unless_asked() -> None:
    """The tutorial's default."""
    assert not ConnectionConfig().async_engine


def test_special_characters_are_quoted_in_the_url() -> None:
    """Passwords and virtual hosts may have any character."""
    config = ConnectionConfig("h", Credentials("a:b", "p@/ß%"), 1, "/x y")
    assert ("amqp://a%3Ab:p%40%2F%C3%9F%25@h:1/%2Fx%20y",) == config.urls


def test_a_password_that_is_a_function_is_not_in_the_url() -> None:
    """It is asked for when it is needed."""
    config = ConnectionConfig("h", Credentials("a:b", lambda: "s3cret"))
    assert ("amqp://a%3Ab@h:5672/%2F",) == config.urls
    assert "s3cret" not in repr(config)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("amqp://h:15672", "is no url of HTTP"),
        ("h:15672", "is no url of HTTP"),
        ("http://", "has no host"),
        ("http://h:0", "has port 0"),
        ("http://h:99999", "cannot be read"),
        ("http://[h", "cannot be read"),
        ("http://u@h", "has a user and no password"),
        ("http://u:s3/cret@h", "cannot be read"),
        ("http://u:2#cret@h", "has an @ behind its host"),
        ("http://h/#/queues", "has a ? or #"),
    ],
)
def test_a_wrong_management_url_is_refused_without_its_password(url: str, why: str) -> None:
    """With how to write it."""
    with pytest.raises(ConfigError) as refused:
        ConnectionConfig(management_url=url)
    (fault,) = refused.value.faults
    assert fault.startswith("management_url: ")
    assert f"{why}: write it as http://HOST:15672 or" in fault
    assert "cret" not in fault


def test_a_management_url_is_secret() -> None:
    """It may have a password."""
    config = ConnectionConfig(management_url="https://u:s3cret@h:15671/prefix")
    assert "s3cret" not in repr(config)


def test_ipv6_host_stands_in_brackets() -> None:
    """Its colons are not the port's (RFC 3986, 3.2.2)."""
    config = ConnectionConfig("::1", Credentials("guest", "guest"))
    assert ("amqp://guest:guest@[::1]:5672/%2F",) == config.urls


@pytest.mark.parametrize(
    "url", ["amqp://a,amqp://b", "amqp://a , amqp://b", ("amqp://a", "amqp://b")]
)
def test_several_nodes_are_given_as_text_or_tuple(url: Any) -> None:
    """A comma between the urls, or a tuple of them."""
    assert ("amqp://a", "amqp://b") == ConnectionConfig(url=url).urls


def test_url_wins_over_the_host() -> None:
    """One place says where the broker is."""
    assert ("amqps://other/",) == ConnectionConfig("h", url=("amqps://other/",)).urls


@pytest.mark.parametrize("url", ["", "  ", ","])
def test_empty_url_is_no_url(url: str) -> None:
    """As the empty list of the ini: the host is used."""
    assert ("amqp://guest:guest@h:5672/%2F",) == ConnectionConfig("h", url=url).urls  # type: ignore[arg-type]


def test_comma_at_the_end_adds_no_node() -> None:
    """A slip that means nothing is no fault."""
    assert ("amqp://a",) == ConnectionConfig(url="amqp://a, ").urls  # type: ignore[arg-type]


def test_nodes_of_one_cluster_have_one_scheme() -> None:
    """The scheme picks one transport."""
    with pytest.raises(ConfigError, match="url names several transports, amqp, amqps"):
        ConnectionConfig(url=("amqp://a", "amqps://b"))


@pytest.mark.parametrize("url", [("amqp://a", 3), (None,), "amqp://[::1", 5, {"amqp://a": 1}])
def test_url_that_is_none_is_a_config_error(url: Any) -> None:
    """Not an error of urllib."""
    with pytest.raises(ConfigError, match="url"):
        ConnectionConfig(url=url)


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("heartbeat", -1, "heartbeat=-1 should be at least 0"),
        ("heartbeat", "30", "heartbeat='30' should be of type int"),
        ("heartbeat", 1.5, "heartbeat=1.5 should be of type int"),
        ("heartbeat", None, "heartbeat=None should be of type int"),
        ("heartbeat", True, "heartbeat=True should be of type int"),
        ("socket_timeout", 0, "socket_timeout=0 should be at least 0.1"),
        ("socket_timeout", "5", "socket_timeout='5' should be of type float"),
        ("socket_timeout", math.nan, "socket_timeout=nan"),
        ("publish_timeout", math.inf, "publish_timeout=inf"),
        ("reconnect_attempts", -2, "reconnect_attempts=-2 should be at least -1"),
        ("port", "5672", "port"),
        ("port", -1, "port"),
        ("host", None, "host"),
        ("host", 5, "host"),
        ("virtual_host", None, "virtual_host"),
        ("credentials", "guest", "credentials"),
        ("credentials", Credentials(5, ""), "credentials: the user name should be of type str"),  # type: ignore[arg-type]
        ("credentials", Credentials("u", 5), "the password should be a str or a function"),  # type: ignore[arg-type]
        ("login", "kerberos", "login='kerberos' should be one of password, certificate"),
        ("tls_ca_file", 5, "tls_ca_file=5 should be of type str"),
        ("url", "ann:s3cret@rabbit", "url: '***@rabbit' has no scheme: write it as amqp://USER"),
        ("url", "amqp:/ann:s3cret@rabbit", "url: '***@rabbit' has no scheme: write it as amqp://"),
    ],
)
def test_wrong_connection_option_is_named_with_its_value(name: str, value: Any, fault: str) -> None:
    """The sentence has the option, the value and what it should be."""
    with pytest.raises(ConfigError) as caught:
        ConnectionConfig(**{name: value})
    assert fault in str(caught.value)


def test_every_wrong_option_is_told_at_once() -> None:
    """Nobody has to try again and again."""
    with pytest.raises(ConfigError) as caught:
        ServerSettings(concurrency=0, queue_type="stream", graceful_timeout=-1, services="a")  # type: ignore[arg-type]
    assert (
        "services='a' should be of type tuple",
        "concurrency=0 should be at least 1",
        "queue_type='stream' should be one of quorum, classic",
        "graceful_timeout=-1 should be at least 0",
    ) == caught.value.faults


def test_whole_numbers_are_good_for_seconds() -> None:
    """5 is as good as 5.0."""
    assert 5 == ConnectionConfig(socket_timeout=5).socket_timeout


def test_password_shows_in_no_repr() -> None:
    """Settings get logged."""
    config = ConnectionConfig("h", Credentials("me", "hush"), url=("amqp://me:hush@h/",))
    assert "hush" not in repr(config)
    assert "hush" not in repr(config.credentials)
    assert "me" in repr(config.credentials)


@pytest.mark.parametrize("url", [["amqp://me:hush@h/"], ("amqp://me:hush@a", "amqps://me:hush@b")])
def test_password_shows_in_no_error(url: Any) -> None:
    """Errors get logged even more."""
    with pytest.raises(ConfigError) as caught:
        ConnectionConfig(url=url)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://u:p@h:1/v", "amqp://u:***@h:1/v"),
        ("amqp://u:p@[::1]:1/v", "amqp://u:***@[::1]:1/v"),
        ("amqp://u:p%40x@h", "amqp://u:***@h"),
        ("amqp://u@h", "amqp://u@h"),
        ("amqp://h", "amqp://h"),
        ("sqlite:///a/b.db", "sqlite:///a/b.db"),
    ],
)
def test_redacted_url_has_everything_but_the_password(url: str, shown: str) -> None:
    """Logs tell which broker, and no secret."""
    assert shown == redact(url)


@patient
@given(st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S"]), min_size=6))
def test_no_password_survives_redaction(password: str) -> None:
    """Whatever is in it, once the config has quoted it."""
    config = ConnectionConfig("h.example", Credentials("u", password), 99, "v")
    assert ["amqp://u:***@h.example:99/v"] == [redact(url) for url in config.urls]


@pytest.mark.parametrize("scheme", ["amqp", "amqps", "sqlite"])
def test_scheme_names_the_transport(scheme: str) -> None:
    """In lower case, as plugins are named."""
    assert scheme == ConnectionConfig(url=(f"{scheme.upper()}://h/",)).scheme


def test_keywords_of_a_server_are_its_options() -> None:
    """``Server(..., queue_type="classic")``."""
    settings = ServerSettings.from_keywords({"queue_type": "classic", "concurrency": 3})
    assert ("classic", 3) == (settings.queue_type, settings.concurrency)


def test_unknown_keywords_are_all_named_with_the_nearest() -> None:
    """As are unknown options of the ini; services are an argument of their own."""
    with pytest.raises(ConfigError) as caught:
        ServerSettings.from_keywords({"concurency": 1, "services": (), "concurrency": 0})
    assert (
        "Server() has no argument 'concurency' (did you mean 'concurrency'?)",
        "Server() has no argument 'services'",
    ) == caught.value.faults


@SETTINGS
def test_every_option_has_a_help_text(cls: type) -> None:
    """The sample file is made of them."""
    options = options_of(cls)
    assert options
    assert all(option.metadata["help"].endswith(".") for option in options)


@SETTINGS
def test_settings_are_frozen(cls: type) -> None:
    """They are shared by threads and connections."""
    name = options_of(cls)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(cls(), name, None)


@SETTINGS
def test_equal_settings_compare_equal(cls: type) -> None:
    """They are values."""
    assert cls() == cls()


def test_level_of_the_log_is_one_that_logging_has() -> None:
    """A misspelt level is told at start-up."""
    with pytest.raises(ConfigError, match="level='LOUD' should be one of DEBUG, INFO"):
        LogSettings(level="LOUD")


@pytest.mark.parametrize(
    "url",
    [
        "amqp://shop:s3cr3t/x@host:5672/%2F",
        "amqp://shop:12/s3cr3t@host/%2F",
        "amqp://shop:s3cr3t#x@host:5672/%2F",
        "amqp://shop:s3cr3t?x@host:5672/%2F",
        "amqp://shop:s3,cr3t@host/%2F",
        "amqp://shop:s3cr3t\u2100@host/%2F",
        "amqp://shop:s3cr3t[@host/%2F",
    ],
)
def test_a_password_that_breaks_its_url_is_not_told(url: Any) -> None:
    """The sentence says which characters to escape, and how."""
    with pytest.raises(ConfigError, match="%2F %23 %3F %40") as caught:
        ConnectionConfig(url=url)
    assert "cr3t" not in str(caught.value)


@pytest.mark.parametrize(
    ("cls", "name", "value"),
    [
        (ServerSettings, "failure_window", 10**20),
        (ServerSettings, "failure_threshold", 1.5),
        (ServerSettings, "delivery_limit", 10**20),
        (ConnectionConfig, "heartbeat", 70_000),
        (ConnectionConfig, "publish_timeout", 1e12),
    ],
)
def test_a_number_that_nothing_could_hold_is_told(cls: Any, name: str, value: float) -> None:
    """With the most that it may be, before anything connects."""
    with pytest.raises(ConfigError, match=rf"{name}=.* should be at most "):
        cls(**{name: value})
