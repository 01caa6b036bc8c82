# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Every registered transport, each at a place of the test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tavrida import plugins
from tavrida.config import redact
from tests.processes import Program
from tests.transports.bench import Bench, Connection, new_name

ROOT = Path(__file__).parents[2]
HOLDER = Path(__file__).with_name("holder.py")

Hold = Callable[..., Program]
Find = Callable[[pytest.FixtureRequest], str]


@dataclass(frozen=True)
class Place:
    """Where a transport is tested; the tests that ask for what it lacks leave it out."""

    name: str
    url: Find
    #: Several processes can meet there.
    is_shared: bool = True
    #: A url at which there is nothing and can be nothing.
    nowhere: Find | None = None
    #: Urls of its scheme that can never work.
    wrong_urls: tuple[str, ...] = ()
    #: Breaks the connections of the test's place.
    cut: Callable[[pytest.FixtureRequest], None] | None = None


def _vhost(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("amqp_url"))


def _cut_vhost(request: pytest.FixtureRequest) -> None:
    node, vhost = request.getfixturevalue("rabbitmq"), request.getfixturevalue("vhost")
    node.ctl("close_all_connections", "--vhost", vhost, "for the test")


def _below_a_file(request: pytest.FixtureRequest) -> str:
    path: Path = request.getfixturevalue("tmp_path") / "file"
    path.touch()
    return f"sqlite://{path}/bus.db"


#: By scheme: where tavrida's own transports are tested.
PLACES = {
    "amqp": (
        Place(
            "rabbitmq",
            _vhost,
            nowhere=lambda request: "amqp://guest:guest@127.0.0.1:1/",
            wrong_urls=("amqp://", "amqp://host:0/", "amqp://host:port/"),
            cut=_cut_vhost,
        ),
    ),
    "sqlite": (
        Place(
            "sqlite-file",
            lambda request: f"sqlite://{request.getfixturevalue('tmp_path')}/bus.db",
            nowhere=_below_a_file,
            wrong_urls=("sqlite://host/bus.db", "sqlite:///folder/", "sqlite:///bus.db?odd=1"),
        ),
        Place(
            "sqlite-memory",
            lambda request: f"sqlite://?memory={new_name('test')}",
            is_shared=False,
        ),
    ),
    # No fault strikes: it has to keep the contract of what it stands before.
    "faulty": (
        Place("faulty", lambda request: request.getfixturevalue("faults").url, is_shared=False),
    ),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tavrida")
    group.addoption(
        "--transport-url",
        action="append",
        default=[],
        metavar="URL",
        help="a place for tests at which to test the transport of this scheme; may be repeated",
    )
    group.addoption(
        "--transport-in-process",
        action="store_true",
        help="what --transport-url names is seen by one process only",
    )


def places(config: pytest.Config) -> list[Place]:
    """Return where to test every registered transport; names that share a class count once."""
    given: dict[str, list[Place]] = {}
    for url in config.getoption("--transport-url", default=[]):
        is_shared = not config.getoption("--transport-in-process")
        place = Place(redact(url), lambda request, url=url: url, is_shared)  # type: ignore[misc]
        given.setdefault(urlsplit(url).scheme, []).append(place)
    known = PLACES | given
    found: list[Place] = []
    schemes: dict[str, list[str]] = {}
    for point in plugins.installed(plugins.TRANSPORTS):
        schemes.setdefault(point.value, []).append(point.name)
    for names in schemes.values():
        of_class = [place for name in names for place in known.get(name, ())]
        found += of_class or [Place(names[0], lambda request, names=names: _unknown(names))]  # type: ignore[misc]
    # A scheme that is not installed: the test says so.
    installed = {name for names in schemes.values() for name in names}
    found += [each for scheme in given.keys() - installed for each in given[scheme]]
    return found


def _unknown(names: list[str]) -> str:
    pytest.fail(
        f"the transport {', '.join(names)} is installed, but not where to test it: pass "
        f"--transport-url {names[0]}://..., or uninstall it",
        pytrace=False,
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    asked = set(metafunc.fixturenames)
    if "place" not in asked:
        return
    chosen = [
        place
        for place in places(metafunc.config)
        if (place.is_shared or "shared_url" not in asked)
        and (place.nowhere or "nowhere_url" not in asked)
        and (place.cut or "cut" not in asked)
    ]
    if "wrong_url" in asked:
        pairs = [(place, url) for place in chosen for url in place.wrong_urls]
        metafunc.parametrize(("place", "wrong_url"), pairs, ids=[url for _, url in pairs])
    else:
        metafunc.parametrize("place", chosen, ids=[place.name for place in chosen])


@pytest.fixture
def faults() -> Any:
    """No faults, before a store in memory."""
    from tavrida.testing.faults import Faults

    return Faults(f"sqlite://?memory={new_name('test')}")


@pytest.fixture
def url(place: Place, request: pytest.FixtureRequest) -> str:
    """Where this test's transports meet."""
    return place.url(request)


@pytest.fixture
def shared_url(url: str) -> str:
    """The same, for tests with several processes; transports within one are left out."""
    return url


@pytest.fixture
def nowhere_url(place: Place, request: pytest.FixtureRequest) -> str:
    """A url of the transport at which there is nothing."""
    assert place.nowhere is not None
    return place.nowhere(request)


@pytest.fixture
def cut(place: Place, request: pytest.FixtureRequest) -> Callable[[], None]:
    """Call it to break all connections of the test."""

    def break_all() -> None:
        assert place.cut is not None
        place.cut(request)

    return break_all


@pytest.fixture
def bench(url: str) -> Iterator[Bench]:
    """Makes connections; closes and checks them."""
    with Bench(url) as bench:
        # What lives in memory lives as long as somebody has it open.
        bench.connect()
        yield bench


@pytest.fixture
def connection(bench: Bench) -> Connection:
    """An open connection."""
    return bench.connect()


@pytest.fixture(params=["classic", "quorum"])
def kind(request: pytest.FixtureRequest) -> str:
    """Each type of queue."""
    return str(request.param)


@pytest.fixture
def hold(shared_url: str) -> Iterator[Hold]:
    """Call it with what holder.py shall do to have it done by another process."""
    with ExitStack() as programs:

        def start(*what: str) -> Program:
            program = Program([HOLDER, shared_url, *what], environment={"PYTHONPATH": str(ROOT)})
            return programs.enter_context(program)

        yield start
