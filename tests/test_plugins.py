# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The one road by which any plugin gets in."""

from __future__ import annotations

import importlib.metadata
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cliff.command import Command

import tavrida
from tavrida import plugins
from tavrida.discovery import Discovery
from tavrida.exceptions import PluginError
from tavrida.middleware import Middleware
from tavrida.plugins.middleware.stores import Store
from tavrida.plugins.serializers import Serializer
from tavrida.plugins.transports import Transport
from tavrida.service import ServiceController
from tests.packages import Packages

NS = plugins.CONTROLLERS

BASES: dict[str, type[Any]] = {
    plugins.CONTROLLERS: ServiceController,
    plugins.DISCOVERY: Discovery,
    plugins.SERIALIZERS: Serializer,
    plugins.TRANSPORTS: Transport,
    plugins.MIDDLEWARE: Middleware,
    plugins.DEDUP_STORES: Store,
    plugins.COMMANDS: Command,
}


@pytest.fixture
def packages(tmp_path: Path) -> Iterator[Packages]:
    """Packages that are installed for one test."""
    found = Packages(tmp_path)
    yield found
    found.remove()


def install(packages: Packages, distribution: str, module: str, text: str, **points: str) -> None:
    """Install a package with one module and these plugins of its names."""
    found = {name: f"{module}:{value}" for name, value in points.items()}
    packages.add(distribution, {NS: found}, **{module: text})


def load(name: Any, base: type[Any] = object) -> Any:
    return plugins.load(NS, name, base)


def test_plugin_is_loaded_by_its_name(packages: Packages) -> None:
    """The class itself, not an object of it."""
    install(packages, "acme", "acme1", "class Hello: pass", hello="Hello")
    assert "acme1.Hello" == f"{load('hello').__module__}.{load('hello').__name__}"


def test_only_the_named_plugin_is_imported(packages: Packages) -> None:
    """A broken neighbour does no harm."""
    install(packages, "acme-a", "acme1", "class Hello: pass", hello="Hello")
    install(packages, "acme-b", "acme2", "raise RuntimeError", broken="X")
    load("hello")
    assert "acme2" not in sys.modules


def test_plugin_installed_meanwhile_is_found(packages: Packages) -> None:
    """No cache remembers what was there before."""
    install(packages, "acme-a", "acme1", "class Hello: pass", hello="Hello")
    load("hello")
    install(packages, "acme-b", "acme2", "class World: pass", world="World")
    assert "World" == load("world").__name__


def test_misspelt_name_is_told_with_the_nearest_and_all(packages: Packages) -> None:
    """The namespace, the name, what is near, and what exists."""
    install(packages, "acme", "acme1", "class Hello: pass", hello="Hello", zoo="Hello")
    with pytest.raises(PluginError) as caught:
        load("helo")
    text = str(caught.value)
    assert text.startswith("no plugin 'helo' in tavrida.controllers (did you mean 'hello'?). ")
    assert re.search(r"Installed: .*hello, .*zoo\.", text)
    assert "Is its package installed in this environment?" in text


def test_namespace_without_plugins_says_none() -> None:
    """There is nothing to list."""
    with pytest.raises(PluginError, match=r"no plugin 'x' in acme\.nothing\. Installed: none\."):
        plugins.load("acme.nothing", "x", object)


@pytest.mark.parametrize("name", ["", " ", "Hello", "hello ", "größe", "hello:world", "\n"])
def test_name_has_to_be_the_very_one(packages: Packages, name: str) -> None:
    """Nothing is guessed."""
    install(packages, "acme", "acme1", "class Hello: pass", hello="Hello")
    with pytest.raises(PluginError, match="no plugin"):
        load(name)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import nosuchmodule", "ModuleNotFoundError: No module named 'nosuchmodule'"),
        ("from sys import nosuch", "ImportError: cannot import name 'nosuch'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("assert False, 'not here'", "AssertionError: not here"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def broken(:", "SyntaxError: "),
        ("class Other: pass", "AttributeError: "),
    ],
)
def test_plugin_that_cannot_be_imported_is_told_with_its_distribution(
    packages: Packages, caplog: pytest.LogCaptureFixture, text: str, reason: str
) -> None:
    """One sentence with the reason, and its cause for those who want the traceback; no log."""
    install(packages, "acme-x", "acme1", text, broken="X")
    with caplog.at_level(logging.WARNING), pytest.raises(PluginError) as caught:
        load("broken")
    assert str(caught.value).startswith(
        "plugin 'broken' (acme1:X of acme-x 1.0) in tavrida.controllers cannot be imported: "
        + reason
    )
    assert caught.value.__cause__ is not None
    assert [] == caplog.records


def test_missing_module_is_told(packages: Packages) -> None:
    """Metadata may name what was never packed."""
    packages.add("acme-x", {NS: {"broken": "acme_nowhere.deep:X"}})
    with pytest.raises(PluginError, match="No module named 'acme_nowhere'"):
        load("broken")


@pytest.mark.parametrize("value", ["not python", "acme1:", ":X", "acme1:X:Y"])
def test_entry_point_that_cannot_be_read_is_told(packages: Packages, value: str) -> None:
    """A slip in somebody's setup.cfg."""
    packages.add("acme-x", {NS: {"broken": value}}, acme1="class X: pass")
    with pytest.raises(PluginError, match=r"plugin 'broken' \(.* of acme-x 1\.0\)"):
        load("broken", ServiceController)


def test_interrupt_during_an_import_is_no_fault_of_the_plugin(packages: Packages) -> None:
    """Ctrl-C goes on."""
    install(packages, "acme-x", "acme1", "raise KeyboardInterrupt", broken="X")
    with pytest.raises(KeyboardInterrupt):
        load("broken")


@pytest.mark.parametrize(
    "text", ["X = 5", "X = None", "def X(): pass", "class X: pass", "import acme1 as X"]
)
def test_plugin_of_the_wrong_class_is_told_what_to_derive_from(
    packages: Packages, text: str
) -> None:
    """A function that makes one is none either."""
    install(packages, "acme-x", "acme1", text, wrong="X")
    with pytest.raises(PluginError) as caught:
        load("wrong", ServiceController)
    assert (
        "plugin 'wrong' (acme1:X of acme-x 1.0) in tavrida.controllers is not a "
        "ServiceController: derive it from tavrida.service.ServiceController" == str(caught.value)
    )


def test_object_of_the_right_class_is_still_no_class(packages: Packages) -> None:
    """The server makes the objects."""
    text = "from tavrida.middleware import Middleware\nX = Middleware()"
    install(packages, "acme-x", "acme1", text, wrong="X")
    with pytest.raises(PluginError, match="is not a Middleware"):
        load("wrong", Middleware)


def test_class_that_is_false_is_a_class(packages: Packages) -> None:
    """Its truth is nobody's business."""
    text = """
        class Meta(type):
            def __bool__(cls): return False
            def __len__(cls): return 0
        class Empty(metaclass=Meta): pass
    """
    install(packages, "acme", "acme1", text, empty="Empty")
    assert "Empty" == load("empty").__name__


def test_plugin_of_several_packages_is_told_with_all_of_them(packages: Packages) -> None:
    """Which one would run is left to nobody's luck."""
    install(packages, "acme-a", "acme1", "class H: pass", hello="H")
    install(packages, "acme-b", "acme2", "class H: pass", hello="H")
    with pytest.raises(PluginError) as caught:
        load("hello")
    text = str(caught.value)
    assert "plugin 'hello' in tavrida.controllers is given by several packages: " in text
    assert "acme1:H of acme-a 1.0" in text
    assert "acme2:H of acme-b 1.0" in text
    assert "Uninstall all but one of them." in text


def test_same_name_in_two_namespaces_is_no_conflict(packages: Packages) -> None:
    """They are two lists."""
    packages.add(
        "acme",
        {NS: {"x": "acme1:A"}, plugins.MIDDLEWARE: {"x": "acme1:B"}},
        acme1="class A: pass\nclass B: pass",
    )
    assert "A" == load("x").__name__
    assert "B" == plugins.load(plugins.MIDDLEWARE, "x", object).__name__


def test_installed_lists_by_name_without_importing(packages: Packages) -> None:
    """Broken ones too."""
    install(packages, "acme", "acme1", "1 / 0", zebra="X", ant="X")
    mine = [point for point in plugins.installed(NS) if point.dist and point.dist.name == "acme"]
    assert ["ant", "zebra"] == [point.name for point in mine]
    assert "acme1:X of acme 1.0" == plugins.origin_of(mine[0])
    assert "acme1" not in sys.modules


def own_entry_points() -> list[tuple[str, str]]:
    points = importlib.metadata.distribution("tavrida").entry_points
    return [(point.group, point.name) for point in points if point.group in plugins.NAMESPACES]


@pytest.mark.parametrize(("namespace", "name"), own_entry_points())
def test_every_plugin_of_tavrida_loads(namespace: str, name: str) -> None:
    """What setup.cfg registers is there and of the right class."""
    assert issubclass(plugins.load(namespace, name, BASES[namespace]), BASES[namespace])


def test_tavrida_registers_what_it_promises() -> None:
    """The loop above is not empty, and every namespace is known."""
    found = set(own_entry_points())
    assert {
        (plugins.DISCOVERY, "convention"),
        (plugins.DISCOVERY, "local"),
        (plugins.DISCOVERY, "file"),
        (plugins.SERIALIZERS, "json"),
        (plugins.SERIALIZERS, "msgpack"),
        (plugins.TRANSPORTS, "amqp"),
        (plugins.TRANSPORTS, "amqps"),
        (plugins.COMMANDS, "call"),
        (plugins.COMMANDS, "cast"),
        (plugins.COMMANDS, "publish"),
    } <= found
    assert set(BASES) == set(plugins.NAMESPACES)


@pytest.mark.parametrize("group", ["console_scripts", "oslo.config.opts"])
def test_every_other_entry_point_of_tavrida_loads(group: str) -> None:
    """The commands, and the options for oslo.config's tools."""
    points = importlib.metadata.distribution("tavrida").entry_points.select(group=group)
    assert points
    assert all(callable(point.load()) for point in points)


def test_version_is_that_of_the_distribution() -> None:
    """In both places where it can be asked for."""
    assert importlib.metadata.version("tavrida") == plugins.version() == tavrida.__version__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tavrida.nothing  # noqa: B018
