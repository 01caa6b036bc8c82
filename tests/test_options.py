# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Reading the ini: what it gives, and every fault that it can have."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from oslo_config import cfg, generator

from tavrida import assembly, options, plugins, state
from tavrida.config import ConnectionConfig, LogSettings, ServerSettings
from tavrida.exceptions import ConfigError, PluginError, ServiceUnknown
from tavrida.options import Configuration, ServiceSection
from tavrida.retries import DEFAULT, Retry
from tests.packages import Packages

SAMPLES = Path(__file__).parent.parent / "etc" / "tavrida"

CONTROLLERS = """
    from oslo_config import cfg
    from tavrida import dispatcher
    from tavrida.service import ServiceController

    def controller(service, list_opts):
        @dispatcher.rpc_service(service)
        class Controller(ServiceController):
            @classmethod
            def list_opts(cls):
                return list_opts()

            @dispatcher.rpc_method(service, "hello")
            def hello(self, request, proxy): ...
        return Controller

    def fails():
        raise RuntimeError("no database")

    Hello = controller("plug_hello", lambda: [
        cfg.StrOpt("greeting", default="Hello"), cfg.IntOpt("times", min=1)
    ])
    World = controller("plug_world", list)
    Big = controller("Test_Big", list)
    Needy = controller("needy", lambda: [cfg.StrOpt("token", required=True)])
    Clash = controller("clash", lambda: [cfg.IntOpt("queue")])
    Fails = controller("fails", fails)
    Odd = controller("odd", lambda: ["greeting"])
"""

NAMES = {
    "plug_hello": "Hello",
    "plug_world": "World",
    "Test_Big": "Big",
    "needy": "Needy",
    "clash": "Clash",
    "fails": "Fails",
    "odd": "Odd",
}

HELLO = "[server]\nservices = plug_hello\n"


@pytest.fixture(autouse=True)
def controllers(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """A package with controllers, and no settings of the machine."""
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    packages = Packages(tmp_path_factory.mktemp("packages"))
    points = {name: f"acme_options:{cls}" for name, cls in NAMES.items()}
    packages.add("acme-options", {plugins.CONTROLLERS: points}, acme_options=CONTROLLERS)
    yield
    packages.remove()


class Ini:
    """Files of one test, and what they are read as."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "1.conf"

    def parse(self, *texts: str | bytes, arguments: tuple[str, ...] = ()) -> options.Parsed:
        given = []
        for number, text in enumerate(texts, 1):
            path = self.folder / f"{number}.conf"
            path.write_bytes(text.encode() if isinstance(text, str) else text)
            given.append(f"--config-file={path}")
        return options.parse([*given, *arguments], "tavrida-server")

    def read(self, *texts: str | bytes, arguments: tuple[str, ...] = ()) -> Configuration:
        return options.read(self.parse(*texts, arguments=arguments))

    def service(self, *texts: str) -> ServiceSection:
        services = self.read(*texts).services
        assert 1 == len(services)
        return services[0]

    def faults(self, *texts: str | bytes, arguments: tuple[str, ...] = ()) -> list[str]:
        """What is wrong; the folder is left out of the names of files."""
        with pytest.raises(ConfigError) as caught:
            self.read(*texts, arguments=arguments)
        return [fault.replace(f"{self.folder}/", "") for fault in caught.value.faults]


@pytest.fixture
def ini(tmp_path: Path) -> Ini:
    """Reads ini files."""
    return Ini(tmp_path)


# -- what is read


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("false", False), ("yes", True), ("0", False)]
)
def test_switches_are_read(ini: Ini, text: str, value: bool) -> None:
    """In all the words that oslo.config knows for yes and no."""
    server = ini.read(f"{HELLO}describe = {text}\ndebug_tracebacks = {text}\n").server
    assert (value, value) == (server.describe, server.debug_tracebacks)


def test_a_middleware_without_options_is_made(ini: Ini) -> None:
    """With a section of its own, which can only be empty, and without."""
    text = f"{HELLO}incoming_middleware = log\n"
    for more in ("", "[middleware:log]\n"):
        assert {"log"} == ini.read(text + more).middleware.keys()
    (fault,) = ini.faults(f"{text}[middleware:log]\nlevel = 1\n")
    assert "[middleware:log] level" in fault


def test_a_switch_that_is_neither_on_nor_off_is_told(ini: Ini) -> None:
    """With its place."""
    with pytest.raises(ConfigError, match=r"\[server\] describe: .*maybe"):
        ini.read(f"{HELLO}describe = maybe\n")


def test_shortest_file_serves(ini: Ini) -> None:
    """Everything else has a sensible default."""
    configuration = ini.read(HELLO)
    assert (
        ConnectionConfig(url=(state.default_url(),), async_engine=True) == configuration.connection
    )
    assert ServerSettings(services=("plug_hello",)) == configuration.server
    assert LogSettings() == configuration.log
    service = configuration.services[0]
    assert ("plug_hello", "plug_hello", "plug_hello", None, None) == (
        service.name,
        service.exchange,
        service.queue,
        service.publish_exchange,
        service.subscriptions,
    )
    assert "world.notifications" == service.discovery.get_remote_publisher("world")
    assert {"greeting": "Hello", "times": None} == service.options


def test_every_option_is_read(ini: Ini, tmp_path: Path) -> None:
    """The file of the design, with all of a service."""
    configuration = ini.read(
        """
[connection]
url = amqp://guest:pa$$word@a:5672/%2F, amqp://b
heartbeat = 5
socket_timeout = 0.5
[server]
services = plug_hello, plug_world
serializer = msgpack
accept = json
concurrency = 3
queue_type = classic
[log]
level = DEBUG
format = %(message)s
[discovery:local]
backend = local
exchanges = plug_hello:test_exchange, plug_world:world_exchange
publishers = plug_hello:events
[service:plug_hello]
controller = plug_hello
exchange = test_exchange
queue = test_service
publish_exchange = events
discovery = local
greeting = 'Hi there'
times = 2
[service:plug_world]
discovery = local
subscriptions = plug_hello, other
"""
    )
    assert ("amqp://guest:pa$word@a:5672/%2F", "amqp://b") == configuration.connection.urls
    assert (5, 0.5) == (configuration.connection.heartbeat, configuration.connection.socket_timeout)
    server = configuration.server
    assert ("msgpack", ("json",), 3, "classic") == (
        server.serializer,
        server.accept,
        server.concurrency,
        server.queue_type,
    )
    assert ("DEBUG", "%(message)s") == (configuration.log.level, configuration.log.format)
    hello, world = configuration.services
    assert ("test_exchange", "test_service", "events") == (
        hello.exchange,
        hello.queue,
        hello.publish_exchange,
    )
    assert {"greeting": "Hi there", "times": 2} == hello.options
    assert "world_exchange" == hello.discovery.get_remote("plug_world")
    assert ("plug_hello", "other") == world.subscriptions
    assert "events" == world.discovery.get_remote_publisher("plug_hello")


def test_services_run_in_the_order_they_are_named_and_once(ini: Ini) -> None:
    """A repetition means nothing."""
    services = ini.read("[server]\nservices = plug_world, plug_hello, plug_world\n").services
    assert ["plug_world", "plug_hello"] == [service.name for service in services]


def test_later_files_win_line_by_line(ini: Ini) -> None:
    """A second file adds to the first."""
    server = ini.read(
        HELLO + "concurrency = 1\nprefetch = 7\n", "[server]\nconcurrency = 2\n"
    ).server
    assert (("plug_hello",), 2, 7) == (server.services, server.concurrency, server.prefetch)


def test_folder_of_files_adds_to_the_file(ini: Ini, tmp_path: Path) -> None:
    """--config-dir reads its *.conf in the order of their names, and nothing else."""
    folder = tmp_path / "conf.d"
    folder.mkdir()
    (folder / "20.conf").write_text("[server]\nconcurrency = 2\n")
    (folder / "10.conf").write_text("[server]\nconcurrency = 1\nprefetch = 7\n")
    (folder / "30.bak").write_text("[nonsense]\n")
    server = ini.read(HELLO, arguments=(f"--config-dir={folder}",)).server
    assert (2, 7) == (server.concurrency, server.prefetch)
    (folder / "10.conf").write_text("[server]\nprefetsh = 7\n")
    assert ["conf.d/10.conf:2: [server] prefetsh is unknown (did you mean 'prefetch'?)"] == (
        ini.faults(HELLO, arguments=(f"--config-dir={folder}",))
    )


def test_environment_wins_over_the_files(ini: Ini, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the sections that are always there."""
    monkeypatch.setenv("OS_SERVER__CONCURRENCY", "7")
    monkeypatch.setenv("OS_CONNECTION__URL", "amqp://a,amqp://b")
    configuration = ini.read(HELLO + "concurrency = 5\n")
    assert 7 == configuration.server.concurrency
    assert ("amqp://a", "amqp://b") == configuration.connection.urls


@pytest.mark.parametrize(
    "text",
    [
        "[server]\nservices: plug_hello\n",
        "[server]\nservices=plug_hello\n",
        "[server]\r\nservices = plug_hello\r\n",
        "# a comment\n\n[server]\n; another\nservices =\n  plug_hello\n",
        "[server]\nservices = 'plug_hello'\n",
        '[server]\nservices = "plug_hello"\n',
        "[server]\nservices = plug_hello,\n",
        "[server]\nservices = plug_world\nservices = plug_hello\n",
        "[server]\nconcurrency = 1\n[log]\n[server]\nservices = plug_hello\n",
        "[service:other_setup]\nqueue = a\n" + HELLO,
    ],
)
def test_file_may_be_written_in_many_ways(ini: Ini, text: str) -> None:
    """As ini files are."""
    assert "plug_hello" == ini.service(text).name


def test_names_of_services_keep_their_case(ini: Ini) -> None:
    """The section is that of the service, and no other."""
    service = ini.service("[server]\nservices = Test_Big\n[service:Test_Big]\nqueue = Q\n")
    assert ("Test_Big", "Q") == (service.name, service.queue)


@pytest.mark.parametrize("other", ["plug_world", "plug_hello2", "plug_hell", "needy", "x"])
def test_section_of_a_service_that_does_not_run_is_no_fault(ini: Ini, other: str) -> None:
    """Two servers may share a file and each run a part of it."""
    sections = f"[service:plug_hello]\nqueue = a\n[service:{other}]\nqueue = b\n"
    assert "a" == ini.service(HELLO + sections).queue


def test_service_without_a_section_makes_no_fault_of_anothers(ini: Ini) -> None:
    """Only a name that is very near is a slip of the pen."""
    assert "plug_hello" == ini.service(HELLO + "[service:plug_world]\nqueue = b\n").queue


def test_empty_section_of_a_service_that_does_not_run_is_no_fault(ini: Ini) -> None:
    """Such as one with comments only."""
    assert "plug_hello" == ini.service(HELLO + "[service:needy]\n# queue = b\n").name


def test_discovery_section_that_nobody_uses_is_no_fault(ini: Ini) -> None:
    """It may wait for its service."""
    assert "plug_hello" == ini.service(HELLO + "[discovery:local]\nexchanges = a:b\n").name


def test_retries_are_read_for_all_for_a_service_and_for_an_entry_point(ini: Ini) -> None:
    """What a named section does not say is left to the others."""
    told = ini.read(
        HELLO + "[retry]\nattempts = 7\n[retry:plug_hello]\nfactor = 2\non = OSError, a.b.Error\n"
        "[retry:plug_hello.hello]\nfirst_delay = 0.5\nnever = ValueError\n"
    ).retries
    assert (7, 1.0, 4.0) == (told.default.attempts, told.default.first_delay, told.default.factor)
    assert {
        "plug_hello": Retry(factor=2.0, on=("OSError", "a.b.Error")),
        "plug_hello.hello": Retry(first_delay=0.5, never=("ValueError",)),
    } == told.named


def test_retries_of_the_files_hold_in_the_server(ini: Ini) -> None:
    """Its delay queues are those that the sections make."""
    text = HELLO + "[retry]\nattempts = 2\n[retry:plug_hello.hello]\nfirst_delay = 0.5\n"
    server, _ = assembly.load(ini.parse(text))
    names = [queue.name for queue in server.topology.queues]
    assert ["plug_hello.dead", "plug_hello", "plug_hello.retry.500"] == names


def test_without_retry_sections_the_built_in_default_holds(ini: Ini) -> None:
    """And nobody speaks of any handler."""
    assert (DEFAULT, {}) == (ini.read(HELLO).retries.default, ini.read(HELLO).retries.named)


@pytest.mark.parametrize("name", ["needy", "needy.hello"])
def test_retry_section_of_a_service_that_does_not_run_is_no_fault(ini: Ini, name: str) -> None:
    """Two servers may share a file; the section of the service tells that it is one."""
    text = HELLO + f"[service:needy]\ntoken = a\n[retry:{name}]\nattempts = 3\n"
    assert {} == ini.read(text).retries.named


def test_a_service_that_cannot_be_loaded_makes_no_fault_of_its_retries(ini: Ini) -> None:
    """Nobody knows what it handles."""
    faults = ini.faults("[server]\nservices = fails\n[retry:fails.any]\nattempts = 3\n")
    assert 1 == len(faults)
    assert "no database" in faults[0]


def test_empty_values_are_the_defaults(ini: Ini) -> None:
    """But an empty list of subscriptions is a list."""
    service = ini.service(
        HELLO + "[service:plug_hello]\nexchange =\nqueue =\ncontroller =\nsubscriptions =\n"
    )
    assert ("plug_hello", "plug_hello", ()) == (
        service.exchange,
        service.queue,
        service.subscriptions,
    )


def test_convention_may_be_named_without_a_section(ini: Ini) -> None:
    """It takes no options."""
    service = ini.service(HELLO + "[service:plug_hello]\ndiscovery = convention\n")
    assert "a" == service.discovery.get_remote("a")


def test_file_discovery_is_read(ini: Ini, tmp_path: Path) -> None:
    """By the option of its section."""
    (tmp_path / "all.ds").write_text("[plug_world]\nexchange = w\n")
    service = ini.service(
        HELLO
        + "[service:plug_hello]\ndiscovery = all\n"
        + f"[discovery:all]\nbackend = file\nfile = {tmp_path}/all.ds\n"
    )
    assert "w" == service.discovery.get_remote("plug_world")


# -- what is wrong with it

SERVICE = HELLO + "[service:plug_hello]\n"
LOCAL = SERVICE + "discovery = local\n[discovery:local]\n"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "[server] services names none: name the services to run. Installed controllers: "),
        ("[server]\nservices =\n", "[server] services names none"),
        ("[server]\nservices = ,\n", "[server] services names none"),
        (
            HELLO + "concurency = 3\n",
            "1.conf:3: [server] concurency is unknown (did you mean 'concurrency'?)",
        ),
        (HELLO + "x = 3\n", "1.conf:3: [server] x is unknown"),
        (
            HELLO + "heartbeat = 3\n",
            "1.conf:3: [server] heartbeat is unknown (did you mean it in [connection]?)",
        ),
        (
            HELLO + "url = x\n",
            "1.conf:3: [server] url is unknown (did you mean it in [connection] or [outbox]?)",
        ),
        (
            HELLO + "graceful-timeout = 7\n",
            "1.conf:3: [server] graceful-timeout is unknown (did you mean 'graceful_timeout'?)",
        ),
        (
            HELLO + "\nConcurrency = 3\n",
            "1.conf:4: [server] Concurrency is unknown (did you mean 'concurrency'?)",
        ),
        (
            HELLO + "[conection]\nurl = x\n",
            "1.conf:3: section [conection] is unknown (did you mean 'connection'?)",
        ),
        (
            HELLO + "[Connection]\nheartbeat = 3\n",
            "1.conf:3: section [Connection] is unknown (did you mean 'connection'?)",
        ),
        (HELLO + "[zoo]\n", "1.conf:3: section [zoo] is unknown"),
        ("[DEFAULT]\ndebug = true\n" + HELLO, "1.conf:2: [DEFAULT] debug is unknown"),
        (
            HELLO + "[service:plug_helo]\nqueue = a\n",
            "1.conf:3: section [service:plug_helo] is unknown (did you mean 'service:plug_hello'?)",
        ),
        (
            HELLO + "[servise:plug_hello]\nqueue = a\n",
            "1.conf:3: section [servise:plug_hello] is unknown",
        ),
        (
            SERVICE + "prefech = 5\nqeue = a\n",
            "1.conf:5: [service:plug_hello] qeue is unknown (did you mean 'queue'?)",
        ),
        (HELLO + "concurrency = many\n", "1.conf:3: [server] concurrency: "),
        (
            HELLO + "concurrency = 0\n",
            "1.conf:3: [server] concurrency: Should be greater than or equal to 1",
        ),
        (
            HELLO + "queue_type = stream\n",
            "1.conf:3: [server] queue_type: Valid values are [quorum, classic]",
        ),
        (HELLO + "[log]\nlevel = LOUD\n", "1.conf:4: [log] level: Valid values are [DEBUG"),
        (HELLO + "[connection]\nheartbeat = soon\n", "1.conf:4: [connection] heartbeat: "),
        (HELLO + "[connection]\nheartbeat = 3 # s\n", "1.conf:4: [connection] heartbeat: "),
        (HELLO + "[connection]\nsocket_timeout = nan\n", "[connection] socket_timeout"),
        (
            HELLO + "concurrency = 3\nconcurrency = 0\n",
            "1.conf:4: [server] concurrency: Should be greater",
        ),
        (
            HELLO + "[connection]\nurl = amqp://me:pa$word@h\n",
            "[connection] url: ",
        ),
        (HELLO + "serializer = $word\n", "a dollar sign is written $$"),
        (SERVICE + "queue = $word\n", "a dollar sign is written $$"),
        (
            HELLO + "[connection]\nurl = amqp://a, amqps://b\n",
            "[connection] url names several transports, amqp, amqps",
        ),
        (
            "[server]\nservices = plug_helo\n",
            (
                "[service:plug_helo] controller: no plugin 'plug_helo' in tavrida.controllers "
                "(did you mean 'plug_hello'?)"
            ),
        ),
        (
            SERVICE + "controller = plug_world\n",
            (
                "[service:plug_hello] runs controller 'plug_world', which serves 'plug_world': "
                "name the section [service:plug_world], and so in [server] services"
            ),
        ),
        (
            SERVICE + "times = 0\n",
            "1.conf:4: [service:plug_hello] times: Should be greater than or equal to 1",
        ),
        (
            SERVICE + "discovery = locl\n[discovery:local]\n",
            (
                "[service:plug_hello] discovery names 'locl', but there is no section "
                "[discovery:locl] (did you mean 'local'?): add it, or leave discovery out"
            ),
        ),
        (
            LOCAL + "backend = locl\n",
            "[discovery:local] no plugin 'locl' in tavrida.discovery (did you mean 'local'?)",
        ),
        (LOCAL + "exchanges = a\n", "1.conf:6: [discovery:local] exchanges: "),
        (LOCAL + "exchange = a:b\n", "1.conf:6: [discovery:local] exchange is unknown"),
        (LOCAL + "backend = file\n", "[discovery:local] file is missing: name the .ds file"),
        (
            LOCAL + "backend = file\nfile = nope.ds\n",
            "[discovery:local] cannot read the discovery file nope.ds: ",
        ),
        (
            "[server]\nservices = clash\n",
            "controller 'clash' declares the option 'queue', a name that tavrida uses itself",
        ),
        ("[server]\nservices = fails\n", "controller 'fails'"),
        ("[server]\nservices = odd\n", "controller 'odd'"),
        ("[server]\nservices = needy\n", "[service:needy] token"),
        (
            HELLO + "[retry]\nattempts = 0\n",
            "1.conf:4: [retry] attempts: Should be greater than or equal to 1",
        ),
        (
            HELLO + "[retry]\nfirst_dely = 1\n",
            "1.conf:4: [retry] first_dely is unknown (did you mean 'first_delay'?)",
        ),
        (
            HELLO + "[retry:plug_hello.hello]\njitter = 2\n",
            "1.conf:4: [retry:plug_hello.hello] jitter: Should be less than or equal to 1",
        ),
        (
            HELLO + "[retry:plug_hello]\nnever = ValueError, 7up\n",
            "[retry:plug_hello] never='7up' is no exception: write its class, or its name",
        ),
        (
            HELLO + "[retry:plug_helo]\nattempts = 2\n",
            "1.conf:3: section [retry:plug_helo] is unknown (did you mean 'retry:plug_hello'?)",
        ),
        (
            HELLO + "[retry:plug_hello.helo]\nattempts = 2\n",
            (
                "1.conf:3: section [retry:plug_hello.helo] is unknown (did you mean "
                "'retry:plug_hello.hello'?)"
            ),
        ),
        (HELLO + "[retry:zoo]\n", "1.conf:3: section [retry:zoo] is unknown"),
        ("services = a\n", "1.conf:1, Section must be started before assignment"),
        ("[server\n", "1.conf:1, Invalid section"),
        ("[server]\nservices\n", "1.conf:2, No ':' or '=' found in assignment"),
        ("\ufeff" + HELLO, "byte order mark"),
        (HELLO.encode() + b"[log]\nformat = \xe9\n", "1.conf"),
    ],
)
def test_each_fault_is_one_sentence_with_its_place(ini: Ini, text: str | bytes, fault: str) -> None:
    """Where it is, what is wrong, and what is near; no other error comes out."""
    faults = ini.faults(text)
    assert any(fault in each for each in faults), faults
    assert all("\n" not in each for each in faults)


def test_faults_of_everything_are_told_at_once(ini: Ini) -> None:
    """One start shows all; each fault is there once."""
    faults = ini.faults(
        """[connection]
heartbeat = soon
[server]
services = plug_hello, nope
concurency = 1
prefetch = -1
queue_type = fast
[log]
level = LOUD
[conection]
[service:plug_hello]
prefech = 1
times = 0
discovery = nowhere
"""
    )
    for start in (
        "1.conf:2: [connection] heartbeat: ",
        "1.conf:5: [server] concurency is unknown",
        "1.conf:6: [server] prefetch: ",
        "1.conf:7: [server] queue_type: ",
        "1.conf:9: [log] level: ",
        "1.conf:10: section [conection] is unknown",
    ):
        assert any(fault.startswith(start) for fault in faults), (start, faults)
    assert len(faults) == len(set(faults))


def test_faults_of_several_services_are_told_at_once(ini: Ini) -> None:
    """A wrong one does not hide the next."""
    faults = ini.faults(
        """[server]
services = plug_hello, nope, plug_world
[service:plug_hello]
times = 0
discovery = nowhere
[service:plug_world]
prefech = 1
"""
    )
    for start in (
        "[service:plug_hello] discovery names 'nowhere'",
        "1.conf:4: [service:plug_hello] times: Should",
        "[service:nope] controller: no plugin 'nope'",
        "1.conf:7: [service:plug_world] prefech is unknown",
    ):
        assert any(fault.startswith(start) for fault in faults), (start, faults)
    assert 4 == len(faults)


@pytest.mark.parametrize(
    "text",
    [
        SERVICE + "controller = plug_helo\ngreeting = Hi\n",
        LOCAL + "backend = locl\nexchanges = a:b\n",
        (
            "[server]\nservices = plug_hello, plug_world\n[discovery:d]\nbackend = file\n"
            "[service:plug_hello]\ndiscovery = d\n[service:plug_world]\ndiscovery = d\n"
        ),
        HELLO + "concurrency = 0\n[service:plug_hello]\ngreeting = Hi\n",
    ],
)
def test_one_fault_is_told_once_and_brings_no_others(ini: Ini, text: str) -> None:
    """The options of a plugin that could not be loaded are not unknown on top of it."""
    assert 1 == len(ini.faults(text))


def test_fault_of_the_environment_names_its_variable(
    ini: Ini, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not the line of the file that it overrides."""
    monkeypatch.setenv("OS_SERVER__CONCURRENCY", "many")
    faults = ini.faults(HELLO + "concurrency = 5\n")
    assert 1 == len(faults)
    assert "OS_SERVER__CONCURRENCY" in faults[0]
    assert "1.conf" not in faults[0]


def test_fault_names_the_file_it_is_in(ini: Ini) -> None:
    """The last one that sets the value."""
    faults = ini.faults(HELLO + "concurrency = 5\n", "[server]\n\nconcurrency = 0\n")
    assert ["2.conf:3: [server] concurrency: Should be greater than or equal to 1"] == faults


@pytest.mark.parametrize(
    "text",
    [
        "[connection]\nurl = amqp://me:hush$x@h\n",
        "[connection]\nurl = amqp://me:hush@a, amqps://me:hush@b\n",
        "[connection]\nulr = amqp://me:hush@a\n",
    ],
)
def test_password_shows_in_no_fault(ini: Ini, text: str) -> None:
    """Faults go to logs."""
    assert not any("hush" in fault for fault in ini.faults(HELLO + text))


def test_single_fault_of_a_plugin_is_a_config_error(ini: Ini) -> None:
    """Whatever it is inside, the command catches one class."""
    with pytest.raises(ConfigError):
        ini.read("[server]\nservices = nope\n")
    assert issubclass(PluginError, ConfigError)


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("--config-file={}/nope.conf", "cannot read {}/nope.conf: is the path right?"),
        ("--config-dir={}/nope", "{}/nope"),
        ("--config-file={}", "{}"),
    ],
)
def test_missing_file_or_folder_is_told(tmp_path: Path, argument: str, reason: str) -> None:
    """Before anything is read; a folder is no file."""
    with pytest.raises(ConfigError, match=re.escape(reason.format(tmp_path))):
        options.parse([argument.format(tmp_path)], "tavrida-server")


# -- clients


def client_exchange(ini: Ini, *texts: str) -> tuple[str, str]:
    _, discovery, _ = options.read_client(ini.parse(*texts), "plug_hello")
    return discovery.get_remote("plug_hello"), discovery.get_local_publisher("plug_hello")


def test_client_finds_a_service_as_the_server_does(ini: Ini) -> None:
    """Its own section first, then any discovery that knows it, then the convention."""
    local = "[discovery:x]\nbackend = local\nexchanges = plug_hello:e\npublishers = plug_hello:n\n"
    assert ("plug_hello", "plug_hello.notifications") == client_exchange(ini, "")
    assert ("e", "n") == client_exchange(ini, local)
    own = "[service:plug_hello]\nexchange = own\npublish_exchange = events\ngreeting = x\n"
    assert ("own", "events") == client_exchange(ini, local + own)


def test_client_asks_the_first_discovery_that_knows_the_service(ini: Ini) -> None:
    """As the documentation says."""
    text = "".join(
        f"[discovery:{name}]\nbackend = local\nexchanges = {service}:{name}\n"
        for name, service in [("a", "other"), ("b", "plug_hello"), ("c", "plug_hello")]
    )
    assert "b" == client_exchange(ini, text)[0]


def test_client_needs_no_services(ini: Ini) -> None:
    """It reads the connection only."""
    config, *_ = options.read_client(ini.parse("[connection]\nurl = amqp://a\n"), "x")
    assert ("amqp://a",) == config.urls


@pytest.mark.parametrize(
    "text", ["[connection]\nheartbeat = soon\n", "[discovery:x]\nbackend = nope\n"]
)
def test_client_is_told_what_is_wrong(ini: Ini, text: str) -> None:
    """As a server is."""
    with pytest.raises(ConfigError):
        options.read_client(ini.parse(text), "plug_hello")


def test_local_discovery_stays_strict_in_a_server(ini: Ini) -> None:
    """What it was not told it does not guess."""
    service = ini.service(LOCAL + "exchanges = a:b\n")
    with pytest.raises(ServiceUnknown):
        service.discovery.get_remote("plug_world")


# -- the sample


def sample() -> str:
    return (SAMPLES / "tavrida.conf.sample").read_text()


def uncommented(text: str) -> str:
    """The sample with the defaults of the fixed sections in force."""
    head, _, rest = text.partition("\n[discovery:")
    _, _, middle = rest.partition("\n[log]")
    middle, _, _ = middle.partition("\n[service:")
    # Of one entry point or service: says nothing that could be in force.
    middle = re.sub(r"\n\[retry:name\].*?(?=\n\[)", "", middle, flags=re.DOTALL)
    return re.sub(r"^#(\w+ =)", r"\1", f"{head}\n[log]{middle}", flags=re.MULTILINE)


def test_sample_is_what_the_generator_makes() -> None:
    """Else generate it again, by the file that is read here."""
    conf = cfg.ConfigOpts()
    generator.register_cli_opts(conf)
    conf([f"--config-file={SAMPLES / 'config-generator.conf'}"], default_config_files=[])
    assert "etc/tavrida/tavrida.conf.sample" == conf.output_file
    made = io.StringIO()
    generator.generate(conf, made)
    assert made.getvalue() == sample()


def test_sample_names_every_option() -> None:
    """With its help."""
    text = sample()
    for section, found in options.list_opts():
        assert f"[{section}]".lower() in text
        for option in found:
            assert f"\n#{option.name} =" in text
            assert option.help


def test_copy_of_the_sample_reads_without_faults(ini: Ini) -> None:
    """Once it names what to run."""
    text = sample().replace("#services =\n", "services = plug_hello\n")
    assert text != sample()
    assert "plug_hello" == ini.service(text).name


def test_defaults_in_the_sample_are_the_defaults(ini: Ini) -> None:
    """Taking away the comment signs changes nothing."""
    text = uncommented(sample()).replace("\nservices =\n", "\nservices = plug_hello\n")
    assert "\nheartbeat = 15\n" in text
    configuration = ini.read(text)
    plain = ini.read(HELLO)
    for part in ("connection", "server", "log", "retries"):
        assert getattr(plain, part) == getattr(configuration, part)


def test_oslo_config_validator_finds_nothing_wrong_in_the_sample(tmp_path: Path) -> None:
    """Operators who know it may use it, for the sections that are always there."""
    path = tmp_path / "tavrida.conf"
    validator = [sys.executable, "-m", "oslo_config.validator", "--namespace=tavrida"]
    for text, code in [(uncommented(sample()), 0), ("[server]\nnonsense = 1\n", 1)]:
        path.write_text(text)
        done = subprocess.run(
            [*validator, f"--input-file={path}"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert code == done.returncode, done.stderr


def test_options_are_listed_afresh_each_time() -> None:
    """oslo.config's tools change what they get."""
    one, other = dict(options.list_opts()), dict(options.list_opts())
    assert all(a is not b for key in one for a, b in zip(one[key], other[key], strict=True))


def test_oslo_configs_global_is_never_touched(ini: Ini) -> None:
    """It belongs to the program that embeds us."""
    ini.read(HELLO)
    names: list[Any] = list(cfg.CONF)
    assert not {"server", "connection", "log"} & set(names)
