# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""``tavrida-server`` as an operator meets it: what it says, its exit codes, how it stops.

0 stopped as asked, 1 the configuration is wrong, 2 the command line is wrong, 3 no broker.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tavrida.client import RPCClient
from tavrida.config import ConnectionConfig
from tests import commands
from tests.commands import Ended
from tests.packages import Packages
from tests.processes import Program
from tests.rabbitmq import Node, free_port
from tests.waiting import DEADLINE, eventually

#: Nothing listens there: it takes a privilege to do so, and nobody has a use for it.
CLOSED = "amqp://guest:guest@127.0.0.1:1/%2F"

SHOP = """
    import gc
    import os
    import pathlib
    import time

    from oslo_config import cfg

    from tavrida import dispatcher, service


    @dispatcher.rpc_service("shop")
    class Shop(service.ServiceController):
        @classmethod
        def list_opts(cls):
            return [
                cfg.IntOpt("discount", default=0),
                cfg.IntOpt("pin", secret=True),
                cfg.IntOpt("objects"),
            ]

        def __init__(self, options):
            super().__init__(options)
            if self.options["objects"]:
                gc.set_threshold(self.options["objects"])

        @dispatcher.rpc_method(service="shop", method="collector")
        def collector(self, request, proxy):
            return {"thresholds": gc.get_threshold()}

        @dispatcher.rpc_method(service="shop", method="price")
        def price(self, request, proxy):
            return {"pid": os.getpid(), "discount": self.options["discount"]}

        @dispatcher.rpc_method(service="shop", method="wait")
        def wait(self, request, proxy, path):
            print("waiting for", path)
            while not pathlib.Path(path).exists():
                time.sleep(0.01)
            return {"path": path}


    class Shelf:
        pass


    @dispatcher.rpc_service("till")
    class Till(service.ServiceController):
        def __init__(self, options):
            super().__init__(options)
            raise RuntimeError(f"the drawer {self.options['key']} is stuck")

        @classmethod
        def list_opts(cls):
            return [cfg.StrOpt("key", secret=True, default="")]
"""

CONTROLLERS = {
    "shop": "acme_shop:Shop",
    "shelf": "acme_shop:Shelf",
    "till": "acme_shop:Till",
    "ghost": "acme_ghost:Ghost",
}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Where servers find the package acme-shop."""
    folder = tmp_path_factory.mktemp("site")
    packages = Packages(folder)
    packages.add(
        "acme-shop",
        {"tavrida.controllers": CONTROLLERS},
        acme_shop=SHOP,
        acme_ghost="import no_such_module\n",
    )
    packages.remove()  # other processes find them by PYTHONPATH; this one has no use for them
    return {"PYTHONPATH": str(folder)}


@pytest.fixture
def ini(tmp_path: Path) -> Callable[[str], Path]:
    """Write an ini and return its path."""

    def write(text: str) -> Path:
        path = tmp_path / "shop.conf"
        path.write_text(text)
        return path

    return write


Start = Callable[..., Ended]


@pytest.fixture
def start(environment: dict[str, str], ini: Callable[[str], Path]) -> Start:
    """Run tavrida-server with the text of an ini until it gives up."""

    def run(text: str, *arguments: str) -> Ended:
        return commands.run(
            "tavrida-server", "--config-file", ini(text), *arguments, environment=environment
        )

    return run


def refused(ended: Ended, *words: str) -> None:
    """Check that a server refused its configuration: one line for each fault, no traceback."""
    assert ended.code == 1, ended
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    assert all(line.startswith("tavrida-server: ") for line in ended.stderr.splitlines())
    for word in words:
        assert word in ended.stderr


# -- faults in the configuration -----------------------------------------------------------------


def test_a_misspelt_controller_is_told_with_the_nearest_name(start: Start) -> None:
    """The section, the name as it stands, the nearest one and all that are installed."""
    ended = start("[server]\nservices = shop\n[service:shop]\ncontroller = shp\n")
    refused(ended, "[service:shop] controller: ", "'shp'", "tavrida.controllers")
    refused(ended, "did you mean 'shop'?", "Installed: ghost, shelf, shop")


def test_a_misspelt_service_is_told_with_the_nearest_controller(start: Start) -> None:
    """Without a section the name of the service is that of its controller."""
    refused(start("[server]\nservices = shopp\n"), "'shopp'", "did you mean 'shop'?")


def test_a_plugin_that_cannot_be_imported_is_told_with_its_package(start: Start) -> None:
    """The operator sees whose package is broken and what is missing."""
    ended = start("[server]\nservices = ghost\n")
    refused(ended, "'ghost'", "acme_ghost:Ghost of acme-shop 1.0", "cannot be imported")
    refused(ended, "ModuleNotFoundError: No module named 'no_such_module'")


def test_a_class_that_is_no_controller_is_told_what_to_derive_from(start: Start) -> None:
    """An entry point may lead to anything; only controllers are served."""
    ended = start("[server]\nservices = shelf\n")
    refused(ended, "acme_shop:Shelf of acme-shop 1.0", "tavrida.service.ServiceController")


def test_a_controller_that_cannot_be_made_is_told_with_its_reason(start: Start) -> None:
    """What __init__ raises is no traceback for the operator."""
    ended = start("[server]\nservices = till\n")
    refused(ended, "[service:till]", "Till", "RuntimeError: the drawer is stuck")


def test_a_secret_is_in_no_fault(start: Start) -> None:
    """Neither in what a plugin says of it, nor where its value is wrong."""
    ended = start("[server]\nservices = till\n[service:till]\nkey = abc-123\n")
    refused(ended, "RuntimeError: the drawer *** is stuck")
    ended = start("[server]\nservices = shop\n[service:shop]\npin = 12x\n")
    refused(ended, ":4: [service:shop] pin: its value, which is not shown here, should be Integer")
    assert "12x" not in ended.stderr


def test_a_section_with_the_wrong_name_for_its_controller_is_told(start: Start) -> None:
    """A controller serves the service that its class names."""
    ended = start("[server]\nservices = store\n[service:store]\ncontroller = shop\n")
    refused(ended, "[service:store]", "serves 'shop'", "[service:shop]")


def test_an_unknown_option_is_told_with_file_line_and_nearest_name(start: Start) -> None:
    """In the server's own sections as in that of a plugin."""
    ended = start("[server]\nservices = shop\nconcurency = 3\n[service:shop]\ndiscout = 5\n")
    refused(ended, "shop.conf:3: [server] concurency is unknown (did you mean 'concurrency'?)")
    refused(ended, "shop.conf:5: [service:shop] discout is unknown (did you mean 'discount'?)")


def test_an_unknown_section_is_told_with_file_line_and_nearest_name(start: Start) -> None:
    """A misspelt section would else be ignored as a whole."""
    ended = start("[server]\nservices = shop\n[conection]\nheartbeat = 10\n")
    refused(ended, "shop.conf:3: section [conection] is unknown (did you mean 'connection'?)")


def test_a_value_of_the_wrong_type_is_told_with_file_and_line(start: Start) -> None:
    """In the server's own sections."""
    ended = start("[server]\nservices = shop\nconcurrency = many\n[connection]\nheartbeat = x\n")
    refused(ended, "shop.conf:3: [server] concurrency: ", "many")
    refused(ended, "shop.conf:5: [connection] heartbeat: ", "'x'")


def test_a_wrong_value_of_a_plugin_is_told_with_file_and_line(start: Start) -> None:
    """In the options that a controller declares."""
    ended = start("[server]\nservices = shop\n[service:shop]\ndiscount = big\n")
    refused(ended, "shop.conf:4: [service:shop] discount: ", "big")


def test_a_value_out_of_its_limits_is_told_with_file_and_line(start: Start) -> None:
    """The limit is part of the message."""
    ended = start("[server]\nservices = shop\nconcurrency = 0\nqueue_type = mirrored\n")
    refused(ended, "shop.conf:3: [server] concurrency: ", "1")
    refused(ended, "shop.conf:4: [server] queue_type: ", "quorum", "classic")


def test_a_discovery_without_its_section_is_told_with_the_remedy(start: Start) -> None:
    """A service that names one has to find it in the files."""
    text = "[server]\nservices = shop\n[service:shop]\ndiscovery = locl\n[discovery:local]\n"
    ended = start(text)
    refused(ended, "[service:shop] discovery names 'locl'", "there is no section [discovery:locl]")
    refused(ended, "did you mean 'local'?")


def test_an_unknown_discovery_backend_is_told_with_those_that_exist(start: Start) -> None:
    """The backend is a plugin like any other."""
    text = "[server]\nservices = shop\n[service:shop]\ndiscovery = a\n[discovery:a]\nbackend = b\n"
    refused(start(text), "[discovery:a]", "'b'", "tavrida.discovery", "Installed: ", "local")


def test_an_unknown_serializer_is_told_with_those_that_exist(start: Start) -> None:
    """The one that writes and those that read."""
    ended = start("[server]\nservices = shop\nserializer = jsn\n")
    refused(ended, "'jsn'", "did you mean 'json'?", "tavrida.serializers")
    ended = start("[server]\nservices = shop\naccept = json, pickle\n")
    refused(ended, "'pickle'", "Installed: json, msgpack")


def test_an_unknown_transport_is_told_with_those_that_exist(start: Start) -> None:
    """The scheme of the url is the name of a plugin."""
    ended = start("[connection]\nurl = http://guest:hush@localhost\n[server]\nservices = shop\n")
    refused(ended, "'http'", "tavrida.transports", "amqp")
    assert "hush" not in ended.stderr


@pytest.mark.parametrize(
    "url",
    ["localhost", "amqp://", "amqp://a:b@rabbit:port/", "amqp://a:b@rabbit:99999/", "amqp://[a/"],
)
def test_a_url_that_is_none_is_told_with_its_line(start: Start, url: str) -> None:
    """Nothing that is wrong for certain is left to the first attempt to connect."""
    ended = start(f"[connection]\nurl = {url}\n[server]\nservices = shop\n", "--check")
    refused(ended, "[connection] url", "amqp://USER:PASSWORD@HOST")


def test_a_dollar_sign_that_is_not_doubled_is_told_with_the_remedy(start: Start) -> None:
    """oslo.config takes it for the name of another option; it is mostly part of a password."""
    text = "[connection]\nurl = amqp://guest:pa$word@localhost\n[server]\nservices = shop\n"
    ended = start(text)
    refused(ended, "[connection] url: ", "$$")
    assert "pa$word" not in ended.stderr


def test_a_log_format_that_cannot_work_is_told(start: Start) -> None:
    """Else every line of the log would be a traceback instead."""
    ended = start("[server]\nservices = shop\n[log]\nformat = %(mesage)s\n", "--check")
    refused(ended, "[log] format: ", "mesage")


def test_a_server_without_services_is_told_what_it_could_serve(start: Start) -> None:
    """The names of the installed controllers are the ones to choose from."""
    refused(start("[server]\nconcurrency = 3\n"), "[server] services", "Installed", "shop")


def test_several_faults_are_all_told_at_once(start: Start) -> None:
    """Nobody has to start five times to find five faults."""
    ended = start(
        "[server]\nservices = ghost, shop, shelf\nconcurrency = 0\nspeed = 9\nserializer = jsn\n"
        "[service:shop]\ndiscount = big\ndiscovery = nowhere\n"
    )
    refused(ended, "no_such_module", "Shelf", "[server] concurrency", "[server] speed")
    refused(ended, "discount", "[discovery:nowhere]", "'jsn'")
    assert len(ended.stderr.splitlines()) == 7


def test_a_missing_file_is_told_by_its_name(tmp_path: Path) -> None:
    """There may be a slip in the path itself."""
    missing = tmp_path / "missing.conf"
    refused(commands.run("tavrida-server", "--config-file", missing), str(missing))


def test_a_file_that_is_no_ini_is_told_with_its_line(start: Start) -> None:
    """What oslo.config cannot parse is one line too."""
    refused(start("[server]\nservices = shop\nnonsense\n"), "shop.conf", "3", "nonsense")


def test_a_folder_or_a_file_of_bytes_is_told_by_its_name(tmp_path: Path) -> None:
    """Whatever the path leads to, the answer is one line."""
    refused(commands.run("tavrida-server", "--config-file", tmp_path), str(tmp_path))
    noise = tmp_path / "noise.conf"
    noise.write_bytes(b"\xdc\xff\x00")
    refused(commands.run("tavrida-server", "--config-file", noise), str(noise))


def test_a_wrong_command_line_has_an_exit_code_of_its_own() -> None:
    """The usage is shown."""
    ended = commands.run("tavrida-server", "--bogus")
    assert ended.code == 2
    assert "--bogus" in ended.stderr
    assert "usage: tavrida-server" in ended.stderr


# -- --check -------------------------------------------------------------------------------------


def test_check_says_what_would_run_without_a_broker(start: Start) -> None:
    """Services, classes, queues and handlers; the password is left out."""
    text = "[connection]\nurl = amqp://guest:hush@127.0.0.1:1/%2F\n[server]\nservices = shop\n"
    ended = start(text, "--check")
    assert (ended.code, ended.stderr) == (0, "")
    for words in ("shop: acme_shop.Shop", "queue shop (quorum)", "request", "shop.price"):
        assert words in ended.stdout
    assert "hush" not in ended.stdout


def test_check_tells_every_fault(start: Start) -> None:
    """The same messages as at a start, and the exit code of a wrong configuration."""
    ended = start("[server]\nservices = shop, ghost\nspeed = 9\n", "--check")
    refused(ended, "[server] speed", "no_such_module")


def test_a_folder_of_files_is_read_in_the_order_of_their_names(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """Later files win, option by option."""
    folder = tmp_path / "conf.d"
    folder.mkdir()
    (folder / "10-base.conf").write_text("[server]\nservices = shop\nqueue_type = quorum\n")
    (folder / "20-site.conf").write_text("[server]\nqueue_type = classic\n")
    ended = commands.run(
        "tavrida-server", "--config-dir", folder, "--check", environment=environment
    )
    assert (ended.code, ended.stderr) == (0, "")
    assert "queue shop (classic)" in ended.stdout


def test_a_fault_in_a_folder_is_told_with_its_file(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """The message names the one of many files."""
    (tmp_path / "10-base.conf").write_text("[server]\nservices = shop\n")
    (tmp_path / "20-site.conf").write_text("\n[server]\nqueue_typ = classic\n")
    ended = commands.run(
        "tavrida-server", "--config-dir", tmp_path, "--check", environment=environment
    )
    refused(ended, "20-site.conf:3: [server] queue_typ")


def test_the_environment_goes_before_the_files(
    environment: dict[str, str], ini: Callable[[str], Path]
) -> None:
    """OS_SECTION__OPTION is how a container is told its broker."""
    path = ini("[connection]\nurl = amqp://a\n[server]\nservices = shop\nconcurrency = 2\n")
    ended = commands.run(
        "tavrida-server",
        *("--config-file", path, "--check"),
        environment=environment
        | {"OS_SERVER__CONCURRENCY": "7", "OS_CONNECTION__URL": "amqp://u:p@elsewhere:1234/v"},
    )
    assert (ended.code, ended.stderr) == (0, "")
    assert "7 at a time" in ended.stdout
    assert "amqp://u:***@elsewhere:1234/v" in ended.stdout


def test_a_wrong_value_in_the_environment_is_told(
    environment: dict[str, str], ini: Callable[[str], Path]
) -> None:
    """The message must not lead to a file that is right."""
    ended = commands.run(
        "tavrida-server",
        *("--config-file", ini("[server]\nservices = shop\nconcurrency = 2\n")),
        environment=environment | {"OS_SERVER__CONCURRENCY": "many"},
    )
    refused(ended, "[server] concurrency: ", "many", "OS_SERVER__CONCURRENCY")


# -- health --------------------------------------------------------------------------------------


def test_a_taken_port_for_health_is_told(start: Start, tmp_path: Path) -> None:
    """Before anything connects, with exit code 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = start(
            f"[connection]\nurl = sqlite://{tmp_path}/bus.db\n[server]\nservices = shop\n"
            f"[health]\nport = {port}\n"
        )
    assert 1 == ended.code
    assert f"tavrida-server: [health] cannot listen at port {port} of 127.0.0.1: " in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "bus.db").exists()


def test_a_server_tells_of_its_health(
    environment: dict[str, str], ini: Callable[[str], Path], tmp_path: Path
) -> None:
    """At the port of the ini."""
    port = free_port()
    path = ini(
        f"[connection]\nurl = sqlite://{tmp_path}/bus.db\n[server]\nservices = shop\n"
        f"[health]\nport = {port}\n"
    )
    with commands.serve("--config-file", path, environment=environment) as server:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=DEADLINE) as answer:
            assert "serving" == json.load(answer)["state"]
        assert 0 == server.end()


# -- the broker ----------------------------------------------------------------------------------


def cannot_connect(ended: Ended, *words: str) -> None:
    """Check that a server gave up for its broker, with a message for people."""
    assert ended.code == 3, ended
    assert "Traceback" not in ended.stderr
    (line,) = [x for x in ended.stderr.splitlines() if x.startswith("tavrida-server: ")]
    for word in words:
        assert word in line


def test_a_broker_that_does_not_run_is_told_with_its_place(start: Start) -> None:
    """With reconnect_attempts = 0 the server does not wait for it."""
    text = f"[connection]\nurl = {CLOSED}\nreconnect_attempts = 0\n[server]\nservices = shop\n"
    cannot_connect(start(text), "RabbitMQ at 127.0.0.1:1", "refused", "Is RabbitMQ running there?")


def test_a_wrong_password_is_told_with_the_user(start: Start, rabbitmq: Node) -> None:
    """It is final: the server does not try again for ever."""
    url = rabbitmq.url("/", password="wrong")
    ended = start(f"[connection]\nurl = {url}\n[server]\nservices = shop\n")
    cannot_connect(ended, f"127.0.0.1:{rabbitmq.port}", "user 'guest'", "password")
    assert "wrong@" not in ended.stderr


def test_a_virtual_host_that_does_not_exist_is_told_by_its_name(
    start: Start, rabbitmq: Node
) -> None:
    """With a hint at how the name is written, which is where people go wrong."""
    url = rabbitmq.url("no such")
    ended = start(f"[connection]\nurl = {url}\n[server]\nservices = shop\n")
    cannot_connect(ended, "virtual host 'no such'", "does not exist", "%2F")


def test_a_virtual_host_without_permission_is_told_so(
    start: Start, rabbitmq: Node, vhost: str, user: str
) -> None:
    """It exists, but not for this user."""
    url = rabbitmq.url(vhost, user=user, password="password")
    ended = start(f"[connection]\nurl = {url}\n[server]\nservices = shop\n")
    cannot_connect(ended, f"virtual host '{vhost}'", "closed to this user")


def test_a_queue_of_another_type_is_told_with_both(
    start: Start, environment: dict[str, str], ini: Callable[[str], Path], amqp_url: str
) -> None:
    """What it is, what is wanted, and what to do."""
    text = f"[connection]\nurl = {amqp_url}\n[server]\nservices = shop\nqueue_type = "
    with commands.serve("--config-file", ini(text + "classic"), environment=environment) as server:
        assert server.end() == 0
    told = start(text + "quorum")
    cannot_connect(told, "queue 'shop.dead'", "'classic'", "'quorum'", "topology apply")


# -- stopping ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_an_idle_server_well(
    environment: dict[str, str], ini: Callable[[str], Path], amqp_url: str, number: signal.Signals
) -> None:
    """It ends with exit code 0 and says so."""
    path = ini(f"[connection]\nurl = {amqp_url}\n[server]\nservices = shop\n")
    with commands.serve("--config-file", path, environment=environment) as server:
        server.process.send_signal(number)
        server.line("tavrida stopped")
        assert server.process.wait(DEADLINE) == 0


def test_the_format_of_the_log_may_ask_for_the_correlation_id(
    environment: dict[str, str], ini: Callable[[str], Path], tmp_path: Path
) -> None:
    """Also for what is logged outside of handlers."""
    path = ini(
        f"[connection]\nurl = sqlite://{tmp_path}/bus.db\n[server]\nservices = shop\n"
        "[log]\nformat = <%(correlation_id)s %(entry_point)s> %(message)s\n"
    )
    with commands.serve("--config-file", path, environment=environment) as server:
        server.process.terminate()
        server.line("<- -> Got SIGTERM")
        assert server.process.wait(DEADLINE) == 0


def test_a_handler_that_runs_at_sigterm_finishes_and_answers(
    environment: dict[str, str], ini: Callable[[str], Path], amqp_url: str, tmp_path: Path
) -> None:
    """Its caller gets the answer, and the server still ends with 0."""
    path = ini(f"[connection]\nurl = {amqp_url}\n[server]\nservices = shop\n")
    gate = tmp_path / "gate"
    config = ConnectionConfig(url=(amqp_url,))
    with (
        commands.serve("--config-file", path, environment=environment) as server,
        RPCClient(config, "shop") as client,
    ):
        answer = client.wait(path=str(gate)).future()
        server.line("waiting for")
        server.process.terminate()
        server.line("Got SIGTERM")
        assert not answer.done()
        gate.touch()
        assert answer.result(DEADLINE).payload == {"path": str(gate)}
        assert server.process.wait(DEADLINE) == 0


def test_a_server_that_waits_for_its_broker_can_be_stopped(
    environment: dict[str, str], ini: Callable[[str], Path]
) -> None:
    """By default it tries for ever; SIGTERM ends that at once and well."""
    path = ini(f"[connection]\nurl = {CLOSED}\nretry_delay = 30\n[server]\nservices = shop\n")
    arguments: list[str | Path] = [commands.SCRIPTS / "tavrida-server", "--config-file", path]
    with Program(arguments, environment=environment) as server:
        server.line("Trying again")
        assert server.end() == 0


def test_a_second_sigterm_stops_at_once(
    environment: dict[str, str], ini: Callable[[str], Path], amqp_url: str, tmp_path: Path
) -> None:
    """A handler that never ends does not hold the process for ever."""
    path = ini(f"[connection]\nurl = {amqp_url}\n[server]\nservices = shop\n")
    with (
        commands.serve("--config-file", path, environment=environment) as server,
        RPCClient(ConnectionConfig(url=(amqp_url,)), "shop") as client,
    ):
        client.wait(path=str(tmp_path / "never")).cast()
        server.line("waiting for")
        server.process.terminate()
        server.line("Got SIGTERM")

        def is_ended_by_another() -> bool:
            server.process.terminate()
            return server.process.poll() is not None

        eventually(is_ended_by_another)
        assert server.process.returncode == 128 + signal.SIGTERM


def test_the_options_of_a_controller_come_from_its_section(
    environment: dict[str, str], ini: Callable[[str], Path], amqp_url: str
) -> None:
    """As the number that the controller declared, and from the environment's broker."""
    path = ini("[server]\nservices = shop\n[service:shop]\ndiscount = 5\n")
    connection = {"OS_CONNECTION__URL": amqp_url}
    with (
        commands.serve("--config-file", path, environment=environment | connection) as server,
        RPCClient(ConnectionConfig(url=(amqp_url,)), "shop") as client,
    ):
        answer = client.price().call()
        assert answer.payload == {"pid": server.process.pid, "discount": 5}
        assert answer["pid"] != os.getpid()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("said", "wanted"), [("", 10_000), ("objects = 4000", 4000)])
def test_the_garbage_collector_looks_less_often_unless_a_plugin_knows_better(
    environment: dict[str, str],
    ini: Callable[[str], Path],
    tmp_path: Path,
    workers: int,
    said: str,
    wanted: int,
) -> None:
    bus = f"sqlite://{tmp_path}/bus.db"
    path = ini(
        f"[connection]\nurl = {bus}\n[server]\nservices = shop\nworkers = {workers}\n"
        f"[service:shop]\n{said}\n"
    )
    with (
        commands.serve("--config-file", path, environment=environment),
        RPCClient(ConnectionConfig(url=(bus,)), "shop") as client,
    ):
        thresholds = client.collector().call()["thresholds"]
    assert [wanted, *gc.get_threshold()[1:]] == thresholds


@pytest.mark.parametrize("number", [0, 50_000])
def test_a_garbage_collector_that_is_off_or_looks_seldom_stays_so(
    environment: dict[str, str], ini: Callable[[str], Path], tmp_path: Path, number: int
) -> None:
    """A sitecustomize says so for all Python programs of a machine."""
    (tmp_path / "sitecustomize.py").write_text(f"import gc\ngc.set_threshold({number})\n")
    bus = f"sqlite://{tmp_path}/bus.db"
    path = ini(f"[connection]\nurl = {bus}\n[server]\nservices = shop\n")
    paths = os.pathsep.join([str(tmp_path), environment["PYTHONPATH"]])
    with (
        commands.serve("--config-file", path, environment={"PYTHONPATH": paths}),
        RPCClient(ConnectionConfig(url=(bus,)), "shop") as client,
    ):
        assert client.collector().call()["thresholds"][0] == number
