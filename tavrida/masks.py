# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Masks: the secrets that this process knows, and texts without them.

A secret is hidden wherever its value stands, if it has ``MIN_SECRET`` characters; shorter ones are
parts of words that a text needs for other things. So whatever shows a setting hides it by its
place, however short it is: the password of a url here, the value of a secret option where it is
read. They are kept for the whole process: so is its log, and any of its connections may read a
password.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable
from urllib.parse import parse_qsl, quote, unquote, urlsplit

#: What stands for a secret.
MASKED = "***"

#: Characters of a secret at least that is known by its value.
MIN_SECRET = 6

#: Secrets to know at most; of passwords that change every hour, the oldest are forgotten.
MAX_SECRETS = 1000

#: A url with a password, wherever it stands in a text; but not in what tells how to write one.
_IN_URL = re.compile(r"(\w[\w+.-]*://[^\s:/@]*:)(?!PASSWORD@)[^\s/@]+@")

#: A password among the parameters of a url, or in what a driver of databases is told.
_PARAMETER = re.compile(r"(\bpassword=)[^\s&,;'\"]+", re.IGNORECASE)

#: All up to the last @ may be the password: where it was not encoded, it has a / or an @.
_OF_URL = re.compile(r"^[\w+.-]*://[^:@/]*:(.*)@", re.DOTALL)

_lock = threading.Lock()
_known: dict[str, None] = {}
_pattern: re.Pattern[str] | None = None


def learn(secrets: Iterable[str]) -> None:
    """Hide these from now on: passwords, or urls that have some. Thread-safe."""
    global _pattern  # noqa: PLW0603 - one process has one set of secrets
    words = {word for secret in secrets for word in _words_of(secret) if len(word) >= MIN_SECRET}
    with _lock:
        if words <= _known.keys():
            return
        for word in words:
            _known.pop(word, None)
            _known[word] = None
        for word in list(_known)[:-MAX_SECRETS]:
            del _known[word]
        # The longest first: one may be a part of another.
        longest = sorted(_known, key=len, reverse=True)
        _pattern = re.compile("|".join(map(re.escape, longest)))


def hide(text: str) -> str:
    """Return a text without the secrets that are known, and without passwords in urls."""
    if "://" in text:
        text = _IN_URL.sub(rf"\1{MASKED}@", text)
    if "=" in text:
        text = _PARAMETER.sub(rf"\1{MASKED}", text)
    return _pattern.sub(MASKED, text) if _pattern is not None else text


def _words_of(secret: str) -> set[str]:
    """Return what must not be written of a secret, in every way in which it may be written."""
    words = {secret}
    found = _OF_URL.match(secret)
    if found or "://" in secret:
        words = {found[1], unquote(found[1])} if found else set()
        words |= _parameters_of(secret)
    for word in list(words):
        words |= {quote(word, safe=""), json.dumps(word)[1:-1], repr(word)[1:-1]}
        words.add(json.dumps(word, ensure_ascii=False)[1:-1])
    return words


def _parameters_of(url: str) -> set[str]:
    try:
        query = urlsplit(url).query
    except ValueError:  # it is none after all
        return {url}
    return {value for name, value in parse_qsl(query) if name.lower() == "password"}
