# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The rooms of the house: imports go downwards only, and what may be imported where."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tavrida

ROOT = Path(tavrida.__file__).parent

#: From the words, over the rules, to the edges. A room may import those to its left only;
#: a package stands for all that is in it and has no order of its own beyond "no cycles".
ROOMS = [
    "exceptions",
    "masks",
    "entry_point",
    "messages",
    "config",
    "state",
    "transactions",
    "arguments",
    "results",
    "retries",
    "envelope",
    "discovery",
    "addresses",
    "middleware",
    "dispatcher",
    "router",
    "service",
    "context",
    "logs",
    "topology",
    "proxies",
    "interruptions",
    "waiting",
    "loop",
    "workers",
    "plugins",
    "copies",
    "dead_letters",
    "letters",
    "suspects",
    "description",
    "publishing",
    "outgoing",
    "calls",
    "overload",
    "turns",
    "kill_switch",
    "handling",
    "standstill",
    "processing",
    "watch",
    "board",
    "health",
    "summary",
    "server",
    "client",
    "recovery",
    "outbox",
    "inifiles",
    "options",
    "assembly",
    "changes",
    "migration",
    "cli",
    "testing",
]

#: Which modules may import these, by the beginning of their names.
ONLY_IN = {
    "pika": ("plugins.transports.",),
    "stevedore": ("plugins",),
    "oslo_config": ("options", "cli.", "plugins.discovery.", "plugins.middleware."),
    "cliff": ("cli.",),
    "rich": ("cli.",),
    "watchfiles": ("cli.",),
    "pytest": ("testing.plugin",),
    "psycopg": ("cli.",),
    "sqlalchemy": (),
    "prometheus_client": ("plugins.middleware.prometheus",),
    "opentelemetry": ("plugins.middleware.opentelemetry",),
}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}


def imports(module: str) -> Iterator[str]:
    """The full names that a module imports, anywhere in it; ``from a import b`` gives a.b or a."""
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full.removeprefix("tavrida.") in MODULES else str(node.module)


def own_imports(module: str) -> set[str]:
    found = {
        name.removeprefix("tavrida.") for name in imports(module) if name.startswith("tavrida.")
    }
    return found - {module}


def test_every_room_has_its_place() -> None:
    """A new module is put into the order here, and one that is gone is taken out."""
    assert set(ROOMS) == {module.partition(".")[0] for module in MODULES if module}


@pytest.mark.parametrize("module", [module for module in MODULES if module])
def test_imports_go_downwards_only(module: str) -> None:
    """Words, then rules, then edges."""
    room = module.partition(".")[0]
    for imported in own_imports(module):
        below = imported.partition(".")[0]
        assert below == room or ROOMS.index(below) < ROOMS.index(room), f"imports {imported}"


def test_no_module_imports_itself_in_a_circle() -> None:
    """Also inside of packages, and by imports inside of functions."""
    left = {module: own_imports(module) for module in MODULES}
    while free := [module for module, needed in left.items() if not needed & left.keys()]:
        for module in free:
            del left[module]
    assert {} == left


@pytest.mark.parametrize("package", ONLY_IN)
def test_foreign_packages_are_imported_in_their_rooms_only(package: str) -> None:
    """So that each can be replaced in one place."""
    places = {m for m in MODULES if package in {name.partition(".")[0] for name in imports(m)}}
    strays = {
        module
        for module in places
        if not any(
            module.startswith(place) if place.endswith(".") else module == place
            for place in ONLY_IN[package]
        )
    }
    assert set() == strays


#: Files and memory that a process shares whether it wants to or not; its docstring says why.
REGISTRIES = {"masks", "plugins.transports.sqlite.process", "testing.faults"}


@pytest.mark.parametrize("module", sorted(MODULES.keys() - REGISTRIES))
def test_no_module_keeps_a_registry(module: str) -> None:
    """Nothing that fills up while the program runs: empty containers of modules and classes."""
    bodies = [MODULES[module].body] + [
        node.body for node in ast.walk(MODULES[module]) if isinstance(node, ast.ClassDef)
    ]
    for statement in (statement for body in bodies for statement in body):
        value = getattr(statement, "value", None)
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            is_empty = (isinstance(value, ast.Dict) and not value.keys) or (
                isinstance(value, ast.List) and not value.elts
            )
            makes = isinstance(value, ast.Call) and ast.unparse(value.func).rpartition(".")[2]
            assert not is_empty, ast.unparse(statement)
            assert makes not in [
                "dict",
                "list",
                "set",
                "defaultdict",
                "OrderedDict",
                "deque",
                "Queue",
                "SimpleQueue",
                "WeakKeyDictionary",
                "WeakValueDictionary",
                "WeakSet",
                "Router",
                "Server",
                "LocalDiscovery",
            ], ast.unparse(statement)


def test_client_is_light_to_import() -> None:
    """Programs that only call do not pay for ini files, plugin scans and AMQP before they do."""
    code = "import sys, tavrida.client; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "tavrida" in loaded
    assert set() == loaded & {"oslo_config", "stevedore", "pika", "cliff"}
