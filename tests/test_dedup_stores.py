# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Where dedup remembers, by what it knows a message, and what the ini says of it."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tavrida import exceptions
from tavrida.messages import IncomingRequest
from tavrida.plugins.middleware import keys
from tavrida.plugins.middleware.dedup import Dedup
from tavrida.plugins.middleware.sqlite_store import PRUNE_EVERY, SQLiteStore
from tavrida.plugins.middleware.stores import Done, MemoryStore, Running, Store
from tests.commands import run
from tests.waiting import eventually

A, B = b"a" * 16, b"b" * 16


@pytest.fixture(params=["memory", "sqlite"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """Call it for a store of each kind in turn; again, for the same one opened once more."""
    made: list[Store] = []

    def store(**settings: Any) -> Store:
        if request.param == "memory":
            made.append(MemoryStore(**settings))
        else:
            made.append(SQLiteStore(str(tmp_path / "dedup.db"), **settings))
        return made[-1]

    yield store
    for each in made:
        each.close()


def test_a_key_is_claimed_by_one_until_it_is_finished(make: Any) -> None:
    """Then it is done, with what was kept of the answer; others are not touched."""
    store = make()
    assert store.claim(A) is None
    assert Running() == store.claim(A)
    assert store.claim(B) is None
    store.finish(A, b"answer")
    assert Done(b"answer") == store.claim(A)
    assert Running() == store.claim(B)


def test_a_key_that_was_released_is_free(make: Any) -> None:
    """What failed is handled again."""
    store = make()
    store.claim(A)
    store.release(A)
    assert store.claim(A) is None


def test_a_record_expires(make: Any) -> None:
    """After ``keep`` seconds."""
    store = make(keep=0.05, lease=0.05)
    store.finish(A, b"")
    assert Done(b"") == store.claim(A)
    eventually(lambda: store.claim(A) is None)


def test_a_claim_outlives_its_lease_where_its_process_is_known_to_live(tmp_path: Path) -> None:
    """A handler that takes longer than ``lease`` has no duplicate beside it."""
    store = SQLiteStore(str(tmp_path / "dedup.db"), lease=0.01)
    assert store.claim(A) is None
    time.sleep(0.05)  # longer than the lease
    assert Running() == store.claim(A)
    assert Running() == SQLiteStore(str(tmp_path / "dedup.db"), lease=0.01).claim(A)


def test_a_claim_in_memory_expires() -> None:
    """After ``lease`` seconds: there is no telling what became of its handler."""
    store = MemoryStore(lease=0.05)
    store.claim(A)
    assert Running() == store.claim(A)
    eventually(lambda: store.claim(A) is None)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest go first, by number and by size."""
    monkeypatch.setattr(MemoryStore, "MAX_RECORDS", 3)
    store = MemoryStore()
    for n in range(5):
        store.finish(b"%d" % n, b"")
    assert [None, None] == [store.claim(b"0"), store.claim(b"1")]
    assert [Done(b"")] * 3 == [store.claim(b"%d" % n) for n in (2, 3, 4)]
    monkeypatch.setattr(MemoryStore, "MAX_BYTES", 10)
    store.finish(b"5", b"123456")
    store.finish(b"6", b"123456")
    assert [None, Done(b"123456")] == [store.claim(b"5"), store.claim(b"6")]


def test_expired_records_are_removed_from_the_file(tmp_path: Path) -> None:
    """So that it does not grow for ever."""
    store = SQLiteStore(str(tmp_path / "dedup.db"), keep=0.0)
    for n in range(PRUNE_EVERY + 1):
        store.finish(b"%d" % n, b"")
    store.close()
    with sqlite3.connect(tmp_path / "dedup.db") as database:
        assert database.execute("SELECT count(*) FROM records").fetchone()[0] <= 2
    database.close()


def test_two_stores_of_one_file_know_the_same(tmp_path: Path) -> None:
    """In one process as in several; a claim of one that is closed is free."""
    one, other = (SQLiteStore(str(tmp_path / "dedup.db")) for _ in range(2))
    assert one.claim(A) is None
    assert Running() == other.claim(A)
    one.close()
    assert other.claim(A) is None
    other.finish(A, b"x")
    assert Done(b"x") == one.claim(A)
    one.close()
    other.close()


def _claim_and_die(place: str) -> None:
    SQLiteStore(place).claim(A)
    os._exit(1)


def test_the_claim_of_a_process_that_is_gone_is_free_at_once(tmp_path: Path) -> None:
    """Whatever its lease says."""
    store = SQLiteStore(str(tmp_path / "dedup.db"))
    assert store.claim(B) is None
    child = multiprocessing.get_context("spawn").Process(target=_claim_and_die, args=(store.place,))
    child.start()
    child.join()
    assert store.claim(A) is None
    assert Running() == store.claim(B)
    store.close()


def test_a_file_that_cannot_be_used_is_told_in_one_sentence(tmp_path: Path) -> None:
    """With its path and the remedy."""
    (tmp_path / "folder").mkdir()
    store = SQLiteStore(str(tmp_path / "folder"))
    with pytest.raises(
        exceptions.StoreFailed, match=r"dedup cannot use its database .*folder: .*\. Make room"
    ):
        store.claim(A)
    with pytest.raises(exceptions.ConfigError, match=r"there is no folder .*nowhere .* make it"):
        SQLiteStore(str(tmp_path / "nowhere" / "dedup.db"))


def test_a_claim_that_could_not_be_removed_does_not_hold_up_its_own_process(
    tmp_path: Path,
) -> None:
    """Its message is tried again here, when the database works again."""
    store = SQLiteStore(str(tmp_path / "dedup.db"))
    assert store.claim(A) is None
    with sqlite3.connect(store.place, isolation_level=None) as other:
        other.execute("ALTER TABLE records RENAME TO gone")
        with pytest.raises(exceptions.StoreFailed):
            store.release(A)
        other.execute("ALTER TABLE gone RENAME TO records")
    other.close()
    assert store.claim(A) is None
    assert Running() == store.claim(A)
    store.close()


@pytest.mark.parametrize(
    ("key", "one", "other", "is_same"),
    [
        ("message_id", {"message_id": "1"}, {"message_id": "1"}, True),
        ("message_id", {"message_id": "1"}, {"message_id": "2"}, False),
        ("payload.id", {"payload": {"id": 1}}, {"payload": {"id": 1, "x": 2}}, True),
        ("payload.id", {"payload": {"id": 1}}, {"payload": {"id": "1"}}, False),
        ("payload.id", {"payload": {"id": 2**70}}, {"payload": {"id": 2**70}}, True),
        ("payload.a.b", {"payload": {"a": {"b": 1}}}, {"payload": {"a": {"b": 1}}}, True),
        ("payload.a.b", {"payload": {"a": {"b": 1}}}, {"payload": {"a": {"b": 2}}}, False),
        ("headers.x.y", {"extra_headers": {"x.y": 1}}, {"extra_headers": {"x.y": 1}}, True),
        # Without the key it is the message id.
        ("payload.id", {"message_id": "1"}, {"message_id": "1"}, True),
        ("payload.id", {"message_id": "1"}, {"message_id": "2"}, False),
    ],
)
def test_messages_are_the_same_where_their_key_is(
    key: str, one: dict[str, Any], other: dict[str, Any], is_same: bool
) -> None:
    """Of the same type and value."""
    digests = [keys.digest_of(IncomingRequest(**each), key) for each in (one, other)]
    assert all(digests)
    assert is_same == (digests[0] == digests[1])


def test_a_message_without_an_id_is_never_the_same() -> None:
    """Clients of other languages may send none; nor is one whose key is off."""
    assert keys.digest_of(IncomingRequest()) is None
    assert keys.digest_of(IncomingRequest(message_id="1"), "off") is None


@pytest.mark.parametrize("key", ["", "payload", "payload.", "payload..x", "body.x", "headers"])
def test_what_is_no_key_is_refused_at_the_start(key: str) -> None:
    """By the middleware and by the decorator."""
    with pytest.raises(exceptions.ConfigError, match="is no key by which a message can be known"):
        Dedup(key=key)
    with pytest.raises(exceptions.ConfigError, match="is no key"):
        keys.known_by(key)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1])
def test_times_that_are_none_are_refused(value: float, tmp_path: Path) -> None:
    """They would wait for ever, or remember nothing."""
    for store in (MemoryStore, SQLiteStore):
        with pytest.raises(exceptions.ConfigError, match=f"^keep = {value} is no number of"):
            store(str(tmp_path / "x.db"), keep=value)
        with pytest.raises(exceptions.ConfigError, match=f"^lease = {value} is no number of"):
            store(str(tmp_path / "x.db"), lease=value)
    with pytest.raises(exceptions.ConfigError, match=f"^wait = {value} .* 0 or more, and finite$"):
        Dedup(wait=value)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("key = payload", "[middleware:dedup] 'payload' is no key by which a message can be known"),
        ("stoer = memory", "[middleware:dedup] stoer is unknown (did you mean 'store'?)"),
        ("store = redis", "[middleware:dedup] no plugin 'redis' in tavrida.dedup_stores"),
        ("place = /nowhere/at/all.db", "[middleware:dedup] there is no folder /nowhere/at"),
        ("wait = -1", "[middleware:dedup] wait: "),
        ("wait = nan", "[middleware:dedup] wait = nan is no number of seconds: it has to be 0 or"),
    ],
)
def test_faults_of_the_section_are_told_before_anything_connects(
    tmp_path: Path, text: str, fault: str
) -> None:
    """Each in one sentence with its place."""
    ini = tmp_path / "x.conf"
    ini.write_text(
        "[server]\nservices = test_hello\nincoming_middleware = dedup\n"
        f"[middleware:dedup]\n{text}\n"
    )
    ended = run("tavrida-server", "--check", f"--config-file={ini}")
    assert 1 == ended.code
    assert fault in ended.stderr
    assert 1 == len(ended.stderr.splitlines())


def test_the_section_is_read_and_one_that_is_not_used_is_left_alone(tmp_path: Path) -> None:
    """By the server and by the commands that need it not."""
    ini = tmp_path / "x.conf"
    text = f"[connection]\nurl = sqlite://{tmp_path}/bus.db\n[server]\nservices = test_hello\n"
    section = f"[middleware:dedup]\nstore = sqlite\nplace = {tmp_path}/d.db\nkey = off\n"
    for named in ("incoming_middleware = dedup\n", ""):
        ini.write_text(text + named + section)
        ended = run("tavrida-server", "--check", f"--config-file={ini}")
        assert (0, "") == (ended.code, ended.stderr)
        ended = run("tavrida", "cast", "nobody.x", f"--config-file={ini}")
        assert "nobody serves" in ended.stderr
