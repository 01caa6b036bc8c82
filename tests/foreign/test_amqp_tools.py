# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The command-line clients in C, of Debian's package amqp-tools."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
from typing import Any

import pytest

from tavrida import discovery
from tavrida.client import RPCClient
from tavrida.config import ConnectionConfig
from tests.foreign.conftest import EXCHANGE, Shop
from tests.waiting import DEADLINE, eventually


@pytest.fixture(autouse=True)
def _tools() -> None:
    """Skip where they are not installed; in CI that is a failure."""
    if shutil.which("amqp-publish") is not None:
        return
    reason = "amqp-publish is not installed: apt install amqp-tools"
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI=true, but {reason}", pytrace=False)
    pytest.skip(reason)


def run(tool: str, url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [f"amqp-{tool}", f"--url={url}", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


@pytest.fixture
def reply_queue(amqp_url: str, channel: Any) -> str:
    """A queue a call, since these tools cannot set a correlation id."""
    name = f"replies-{secrets.token_hex(4)}"
    channel.queue_declare(name, durable=True)
    return name


def ask(url: str, queue: str, key: str, body: str, *more: str) -> dict[str, Any]:
    """Call and return the body of the answer."""
    sent = run(
        *("publish", url, f"--exchange={EXCHANGE}", f"--routing-key={key}"),
        *(f"--reply-to={queue}", f"--body={body}", *more),
    )
    assert sent.returncode == 0, sent.stderr
    # amqp-get does not wait: it ends with 2 as long as there is nothing.
    answer = eventually(lambda: run("get", url, f"--queue={queue}").stdout)
    told: dict[str, Any] = json.loads(answer)
    return told


def test_a_call_is_one_command_and_its_answer_another(
    shop: type[Shop], amqp_url: str, reply_queue: str
) -> None:
    """Plain JSON there and back."""
    more = "--content-type=application/json"
    assert {"sum": 3} == ask(amqp_url, reply_queue, "shop.add", '{"a": 1, "b": 2}', more)


@pytest.mark.parametrize(
    ("key", "body", "error"),
    [
        ("shop.fails", "{}", "NotFound"),
        ("shop.nothing", "{}", "HandlerNotFound"),
        ("shop.add", '{"a": 1}', "InvalidPayload"),
        ("shop.add", "a=1", "MalformedMessage"),
    ],
)
def test_what_goes_wrong_is_answered(
    shop: type[Shop], amqp_url: str, reply_queue: str, key: str, body: str, error: str
) -> None:
    """With the class of the error."""
    assert error == ask(amqp_url, reply_queue, key, body)["class"]


def test_a_cast_is_one_command(shop: type[Shop], amqp_url: str) -> None:
    """With a header of the user's."""
    sent = run(
        *("publish", amqp_url, f"--exchange={EXCHANGE}", "--routing-key=shop.note"),
        *('--body={"text": "hi"}', "--header=tenant: a"),
    )
    assert sent.returncode == 0, sent.stderr
    assert ("hi", {"tenant": "a"}) == shop.seen.get(timeout=DEADLINE)


def test_a_consumer_pipes_notifications_into_a_program(
    amqp_url: str, config: ConnectionConfig, channel: Any
) -> None:
    """One process of amqp-consume a message, whose body is the program's input."""
    known = discovery.LocalDiscovery()
    known.register_local_publisher("shop", "shop_news")
    channel.exchange_declare("shop_news", "topic", durable=True)
    channel.queue_declare("listener", durable=True)
    channel.queue_bind("listener", "shop_news", "shop.*")
    with RPCClient(config, discovery=known, source="shop.sold") as client:
        client.publish(article="größer")
    heard = run("consume", amqp_url, "--queue=listener", "--count=1", "cat")
    assert {"article": "größer"} == json.loads(heard.stdout)["payload"]
