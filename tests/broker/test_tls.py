# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""TLS to a real node that wants client certificates, and what is said when it fails."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tavrida import discovery, dispatcher, exceptions, masks
from tavrida.client import AsyncRPCClient, RPCClient
from tavrida.config import ConnectionConfig, Credentials
from tavrida.plugins.transports import tls
from tavrida.server import Server
from tavrida.service import ServiceController
from tests.broker.certificates import TLSWorld, tls_node
from tests.broker.conftest import EXCHANGE, QUEUE
from tests.faults.proxy import Proxy
from tests.rabbitmq import Node
from tests.waiting import DEADLINE


@dispatcher.rpc_service("svc")
class Service(ServiceController):
    @dispatcher.rpc_method(service="svc", method="ok")
    def ok(self, request: Any, proxy: Any, n: int = 0) -> dict[str, Any]:
        return {"n": n}

    @dispatcher.rpc_method(service="svc", method="echo")
    async def echo(self, request: Any, proxy: Any, text: str) -> dict[str, Any]:
        return {"text": text}


class Place(NamedTuple):
    node: Node
    #: The ports of TLS and of plain AMQP.
    tls: int
    plain: int
    world: TLSWorld

    def config(self, url: str = "amqps://guest:guest@localhost:{tls}/", **more: Any) -> Any:
        """A connection that works, but for what is said otherwise."""
        world = self.world
        options = {
            "tls_ca_file": world.ca,
            "tls_cert_file": world.client_cert,
            "tls_key_file": world.client_key,
            "connection_attempts": 1,
            "reconnect_attempts": 1,
            **more,
        }
        return ConnectionConfig(url=(url.format(tls=self.tls, plain=self.plain),), **options)


@pytest.fixture(scope="module")
def place(rabbitmq: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A node with TLS, for all tests of this module."""
    world = TLSWorld(tmp_path_factory.mktemp("tls"))
    with tls_node(world) as (node, port):
        yield Place(node, port, node.port, world)


def _known() -> discovery.LocalDiscovery:
    known = discovery.LocalDiscovery()
    known.register_remote_service("svc", EXCHANGE)
    return known


def _answers(config: ConnectionConfig) -> None:
    """A server and a client meet."""
    with (
        Server(config, QUEUE, EXCHANGE, [Service], queue_type="classic"),
        RPCClient(config, discovery=_known()) as client,
    ):
        assert {"n": 1} == client.svc.ok(n=1).call(timeout=DEADLINE).payload


def _failure(config: ConnectionConfig) -> exceptions.ConnectionFailed:
    """Return why neither server nor client can connect; both say the same."""
    with pytest.raises(exceptions.ConnectionFailed) as server:
        Server(config, QUEUE, EXCHANGE, [Service]).start()
    with RPCClient(config) as client, pytest.raises(exceptions.ConnectionFailed) as told:
        client.svc.ok().cast()
    assert str(server.value) == str(told.value)
    return told.value


def test_server_and_clients_meet_over_tls(place: Place) -> None:
    """With the right CA and a client certificate."""
    _answers(place.config())


def test_small_and_large_calls_come_back_over_tls(place: Place) -> None:
    """Many at a time, also where the other side takes little at once."""
    texts = [str(n) * (1, 100_000, 20, 500_000)[n % 4] for n in range(40)]
    with Proxy(place.tls) as proxy:
        proxy.slow_down(delay=0.0001)
        url = f"amqps://guest:guest@localhost:{proxy.port}/"
        config = place.config(url, async_engine=True)
        with (
            Server(config, QUEUE, EXCHANGE, [Service], queue_type="classic", concurrency=20),
            RPCClient(config, discovery=_known()) as client,
        ):
            answers = [client.svc.echo(text=text).future(timeout=60) for text in texts]
            assert texts == [answer.result()["text"] for answer in answers]


async def _call(config: ConnectionConfig) -> Any:
    async with AsyncRPCClient(config, discovery=_known()) as client:
        return await client.svc.ok(n=2).call(timeout=DEADLINE)


def test_the_client_of_asyncio_programs_takes_the_same_options(place: Place) -> None:
    """It connects in the same way."""
    with Server(place.config(), QUEUE, EXCHANGE, [Service], queue_type="classic"):
        assert {"n": 2} == asyncio.run(_call(place.config())).payload


def test_the_certificate_is_a_login_of_its_own(place: Place) -> None:
    """SASL EXTERNAL: no password at all; the broker has to know the user."""
    config = place.config("amqps://localhost:{tls}/", login="certificate")
    error = _failure(config)
    assert "does not know the user of the client certificate" in str(error)
    place.node.add_user("client-user", "unused")
    place.node.permit("client-user", "/")
    _answers(config)


def test_a_name_other_than_the_hosts_may_be_asked_for(place: Place) -> None:
    """For a broker that is reached by an address that its certificate does not have."""
    by_address = "amqps://guest:guest@127.0.0.1:{tls}/"
    _answers(place.config(by_address, tls_server_name="localhost"))


@pytest.mark.parametrize(
    ("at", "options", "said"),
    [
        ("", {"tls_ca_file": ""}, "a CA that is not trusted here: name the right one in tls_ca_"),
        ("", {"tls_ca_file": "stranger"}, "a CA that is not trusted here"),
        ("amqps://guest:guest@127.0.0.1:{tls}/", {}, "'127.0.0.1', is for another host: use a"),
        ("", {"tls_server_name": "other.example"}, "'other.example', is for another host"),
        ("", {"tls_cert_file": "", "tls_key_file": ""}, "asks for a client certificate: set tls_"),
        (
            "",
            {"tls_cert_file": "strange_cert", "tls_key_file": "strange_key"},
            "does not trust the CA of the certificate in tls_cert_file",
        ),
        ("amqps://guest:guest@localhost:{plain}/", {}, "does not speak TLS there: use the port"),
        ("amqps://guest:wrong@localhost:{tls}/", {}, "refused user 'guest': wrong user name or"),
    ],
)
def test_why_tls_fails_is_said_in_one_sentence_with_the_remedy(
    place: Place, at: str, options: dict[str, str], said: str
) -> None:
    """What cannot get better by waiting ends a start at once."""
    files = {name: getattr(place.world, value, value) for name, value in options.items()}
    error = _failure(place.config(*filter(None, [at]), **files))
    assert said in str(error)
    assert error.is_final
    assert "\n" not in str(error)


def test_plain_amqp_at_the_port_of_tls_gets_the_hint(place: Place) -> None:
    """The broker just closes such a connection."""
    url = (f"amqp://guest:guest@localhost:{place.tls}/",)
    config = ConnectionConfig(url=url, connection_attempts=1, reconnect_attempts=1)
    assert "does it want TLS there (amqps://)?" in str(_failure(config))


def test_a_certificate_that_is_over_is_refused_and_a_new_one_taken(place: Place) -> None:
    """Without a restart of ours: a server that was connected before waits for the new one."""
    config = place.config(retry_delay=0.1, max_retry_delay=0.2, reconnect_attempts=-1)
    with (
        Server(config, QUEUE, EXCHANGE, [Service], queue_type="classic"),
        RPCClient(config, discovery=_known()) as client,
    ):
        client.svc.ok().call(timeout=DEADLINE)
        place.world.show(place.world.expired())
        place.node.eval("ssl:clear_pem_cache()")
        try:
            error = _failure(place.config())
            assert "has expired: the broker needs a new one" in str(error)
            place.node.ctl("close_all_connections", "for the test")
        finally:
            place.world.show(place.world.valid())
            place.node.eval("ssl:clear_pem_cache()")
        assert {"n": 7} == _call_until_answered(client, 7)


def _call_until_answered(client: RPCClient, n: int) -> Any:
    while True:
        try:
            return client.svc.ok(n=n).call(timeout=DEADLINE).payload
        except exceptions.CallInterrupted:
            pass


def test_nothing_older_than_tls_1_2_is_spoken(place: Place) -> None:
    """Whatever the system's OpenSSL would allow; and certificate and name are checked."""
    context = tls.context(place.config())
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert ssl.CERT_REQUIRED == context.verify_mode
    assert context.check_hostname


def test_a_key_may_have_a_password(place: Place, tmp_path: Path) -> None:
    """It is read from a file, and nobody is asked at the terminal."""
    key, password, wrong = tmp_path / "enc.key", tmp_path / "password", tmp_path / "wrong"
    password.write_text("sesame\n")
    wrong.write_text("s3cret")
    key.write_bytes(place.world.encrypted_key(b"sesame"))
    _answers(place.config(tls_key_file=str(key), tls_key_password_file=str(password)))
    assert "open ***" == masks.hide("open sesame")
    with pytest.raises(exceptions.ConfigError, match="is encrypted: put its password into a file"):
        tls.check(place.config(tls_key_file=str(key)))
    with pytest.raises(exceptions.ConfigError, match="does not open the key") as caught:
        tls.check(place.config(tls_key_file=str(key), tls_key_password_file=str(wrong)))
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tls_ca_file": "/no/ca.pem"}, "tls_ca_file /no/ca.pem cannot be read: No such file"),
        ({"tls_cert_file": "/no/c.pem"}, "tls_cert_file /no/c.pem cannot be read"),
        ({"tls_key_file": "/no/k.pem"}, "tls_key_file /no/k.pem cannot be read"),
        ({"tls_key_password_file": "/no/p"}, "tls_key_password_file /no/p cannot be read"),
        ({"tls_ca_file": "client_key"}, "holds no certificate in PEM format"),
        ({"tls_cert_file": "client_key"}, "should hold a certificate and its key as PEM"),
        ({"tls_key_file": "strange_key"}, "is not that of the certificate in"),
        ({"tls_cert_file": ""}, "tls_key_file needs the certificate of that key: set tls_cert_"),
        (
            {"tls_cert_file": "", "tls_key_file": "", "login": "certificate"},
            "login = certificate needs the certificate: set tls_cert_file and tls_key_file",
        ),
    ],
)
def test_files_that_cannot_work_are_told_before_anything_connects(
    options: dict[str, str], said: str, tmp_path: Path
) -> None:
    """When a server or a client is made."""
    world = TLSWorld(tmp_path)
    files = {
        name: getattr(world, value, value)
        for name, value in {
            "tls_ca_file": "ca",
            "tls_cert_file": "client_cert",
            "tls_key_file": "client_key",
            **options,
        }.items()
    }
    config = ConnectionConfig(url=("amqps://guest:guest@no.such.host.invalid/",), **files)  # type: ignore[arg-type]
    with pytest.raises(exceptions.ConfigError, match=said):
        Server(config, QUEUE, EXCHANGE, [Service])
    with pytest.raises(exceptions.ConfigError, match=said):
        RPCClient(config)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tls_ca_file": "x"}, "tls_ca_file has no effect without TLS: write the url as amqps://"),
        ({"tls_server_name": "x"}, "tls_server_name has no effect without TLS"),
        ({"login": "certificate"}, "login = certificate needs TLS: write the url as amqps://"),
        ({"url": "amqps://h/?ssl_options={}"}, "ssl_options in it have no effect; set tls_ca_file"),
    ],
)
def test_who_wants_tls_and_does_not_get_it_is_told(options: dict[str, str], said: str) -> None:
    """A connection that is less safe than it looks is worse than none."""
    config = ConnectionConfig(**{"credentials": Credentials("guest", "guest"), **options})  # type: ignore[arg-type]
    with pytest.raises(exceptions.ConfigError, match=said):
        Server(config, QUEUE, EXCHANGE, [Service])
