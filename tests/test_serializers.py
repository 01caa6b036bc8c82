# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""How bodies are written and read: one contract for all built-in serializers."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tavrida import plugins
from tavrida.exceptions import ConfigError, PluginError
from tavrida.plugins.serializers import Serializer, Serializers, load
from tests.packages import Packages
from tests.properties import patient

NAMES = [point.name for point in plugins.installed(plugins.SERIALIZERS)]
EVERY = pytest.mark.parametrize("serializer", [load(name) for name in NAMES], ids=NAMES)

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=10,
)


def test_json_and_msgpack_are_built_in() -> None:
    """Registered like a stranger's."""
    assert {"json", "msgpack"} <= set(NAMES)


@EVERY
@patient
@given(VALUES)
def test_what_is_written_is_read(serializer: Serializer, value: Any) -> None:
    """Everything that JSON knows, as it was."""
    body = serializer.encode(value)
    assert isinstance(body, bytes)
    again = serializer.decode(body)
    assert value == again
    assert type(value) is type(again)


@EVERY
@patient
@given(st.binary())
def test_any_bytes_are_read_or_are_a_value_error(serializer: Serializer, body: bytes) -> None:
    """Nothing else comes out of a decoder."""
    try:
        serializer.decode(body)
    except (ValueError, RecursionError):
        return


@EVERY
@pytest.mark.parametrize("value", [object(), {"a": object()}, "\udcff", {(): {1, object()}}])
def test_what_cannot_be_written_is_a_type_or_value_error(
    serializer: Serializer, value: object
) -> None:
    """As the base class promises."""
    with pytest.raises((TypeError, ValueError)):
        serializer.encode(value)


@dataclass
class Item:
    sku: int


@EVERY
def test_richer_types_are_written_too(serializer: Serializer) -> None:
    """Handlers answer with what they have."""
    body = serializer.encode(
        {
            "item": Item(5),
            "when": dt.datetime(2030, 1, 1, tzinfo=dt.UTC),
            "price": Decimal("1.50"),
            "key": UUID(int=1),
            "pair": (1, 2),
        }
    )
    data = serializer.decode(body)
    assert ({"sku": 5}, "1.50", [1, 2]) == (data["item"], data["price"], data["pair"])
    assert str(UUID(int=1)) == data["key"]


def test_msgpack_keeps_bytes_and_datetimes() -> None:
    """JSON makes strings of them."""
    value = {"blob": b"\x00\xff", "when": dt.datetime(2030, 1, 1, tzinfo=dt.UTC)}
    msgpack, json = load("msgpack"), load("json")
    assert value == msgpack.decode(msgpack.encode(value))
    assert {"blob": "AP8=", "when": "2030-01-01T00:00:00Z"} == json.decode(json.encode(value))


def test_content_types_are_those_of_the_world() -> None:
    """Other clients name them so."""
    assert "application/json" == load("json").content_type
    assert "application/msgpack" == load("msgpack").content_type


def test_serializers_are_found_by_content_type() -> None:
    """One writes, all read; the one that writes is not made twice."""
    both = Serializers("msgpack", ["json", "msgpack"])
    assert "application/msgpack" == both.default.content_type
    assert both.default is both.by_content_type["application/msgpack"]
    assert {"application/json", "application/msgpack"} == both.by_content_type.keys()


def test_serializer_that_writes_reads_as_well() -> None:
    """Answers come in it."""
    assert {"application/json"} == Serializers("json", []).by_content_type.keys()


def test_serializer_that_is_named_twice_is_there_once() -> None:
    """A repetition means nothing."""
    assert {"application/json"} == Serializers("json", ["json", "json"]).by_content_type.keys()
    assert 2 == len(Serializers("json", ["msgpack", "msgpack"]).by_content_type)


@pytest.mark.parametrize(("writes", "reads"), [("jsn", []), ("json", ["jsn"])])
def test_misspelt_serializer_is_told(writes: str, reads: list[str]) -> None:
    """With the nearest one."""
    with pytest.raises(PluginError, match=r"no plugin 'jsn' .*did you mean 'json'"):
        Serializers(writes, reads)


FOREIGN = """
    from tavrida.plugins.serializers import Serializer

    class Other(Serializer):
        content_type = "application/json"
        def encode(self, data): return b"{}"
        def decode(self, body): return {}

    class Half(Serializer):
        content_type = "application/half"
        def encode(self, data): return b"{}"

    class Fails(Other):
        def __init__(self): raise OSError("no licence")
"""


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[None]:
    """A package with serializers of its own."""
    packages = Packages(tmp_path)
    names = {"other": "Other", "half": "Half", "fails": "Fails"}
    points = {name: f"acme_serializers:{cls}" for name, cls in names.items()}
    packages.add("acme-serializers", {plugins.SERIALIZERS: points}, acme_serializers=FOREIGN)
    yield
    packages.remove()


@pytest.mark.usefixtures("foreign")
def test_two_readers_of_one_content_type_are_both_named() -> None:
    """Nobody could tell which one reads."""
    with pytest.raises(ConfigError, match="JSONSerializer and Other both read 'application/json'"):
        Serializers("json", ["other"])


@pytest.mark.usefixtures("foreign")
@pytest.mark.parametrize(("name", "reason"), [("half", "decode"), ("fails", "no licence")])
def test_serializer_that_cannot_be_made_is_a_plugin_error(name: str, reason: str) -> None:
    """A class that forgot a method, or whose constructor fails: with name and distribution."""
    with pytest.raises(PluginError, match=rf"'{name}'.*acme-serializers 1\.0.*{reason}"):
        load(name)
