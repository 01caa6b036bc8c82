# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Masks: what is known to be secret is in no text, however it is written there."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tavrida import masks
from tavrida.config import ConnectionConfig, Credentials
from tavrida.plugins.transports import passwords

HARD = 'a/b@c:d "e"\\\né'


@pytest.mark.parametrize(
    "secret",
    [HARD, f"postgresql://u:{HARD}@host/db", f"amqp://u:{quote(HARD, safe='')}@host/", [HARD]],
)
@pytest.mark.parametrize("write", [str, repr, json.dumps, lambda text: quote(text, safe="")])
def test_a_secret_is_hidden_however_it_is_written(secret: Any, write: Any) -> None:
    """Plain, in a url, in JSON, in the repr of a value; also where its url is none."""
    masks.learn([secret] if isinstance(secret, str) else secret)
    shown = masks.hide(f"before {write(HARD)} after")
    assert shown.replace('"', "").replace("'", "") == "before *** after"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("amqp://u:abc@host/v", "amqp://u:***@host/v"),
        ("at postgresql://host/db?user=u&password=abc&x=1", "at postgresql://host/db?user=u&password=***&x=1"),
        ("connect host=h PASSWORD=abc user=u", "connect host=h PASSWORD=*** user=u"),
        ("http://host:8080/path password_file=x", "http://host:8080/path password_file=x"),
        ("the abc is a word", "the abc is a word"),
    ],
)  # fmt: skip
def test_a_short_secret_is_hidden_by_its_place(text: str, shown: str) -> None:
    """By its value it would hide parts of words that the text needs."""
    masks.learn(["abc", "amqp://u:abc@host/v"])
    assert shown == masks.hide(text)


def test_a_password_among_the_parameters_of_a_url_is_known() -> None:
    """Libpq takes it there."""
    masks.learn(["postgresql://host/db?user=u&password=s3cr%20et"])
    assert "no *** here" == masks.hide("no s3cr et here")


def test_only_so_many_are_known() -> None:
    """A password that changes every hour does not fill the memory; the newest count."""
    for number in range(masks.MAX_SECRETS + 5):
        masks.learn([f"secret-{number:06}-"])
    assert masks.MAX_SECRETS == len(masks._known)
    assert "secret-000000- ***" == masks.hide(f"secret-000000- secret-{masks.MAX_SECRETS:06}-")


@pytest.mark.parametrize(
    "source",
    [
        lambda path: {"password_command": f"cat {path}", "url": "amqp://u@host/"},
        lambda path: {"password_file": str(path), "url": "amqp://u@host/"},
        lambda path: {"url": "amqp://u:hunter-22@host/"},
        lambda path: {"credentials": Credentials("u", lambda: path.read_text().strip())},
    ],
    ids=["command", "file", "url", "function"],
)
def test_a_password_is_hidden_as_soon_as_it_is_read(tmp_path: Path, source: Any) -> None:
    """From wherever it came."""
    path = tmp_path / "password"
    path.write_text("hunter-22\n")
    config = ConnectionConfig(**source(path))
    read = asyncio.run(passwords.user_and_password(config, config.urls[0]))
    assert ("u", "hunter-22") == read
    assert "it is ***" == masks.hide("it is hunter-22")
