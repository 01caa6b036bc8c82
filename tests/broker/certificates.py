# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""A RabbitMQ node with TLS, and the certificates of its world, made for one run of the tests."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from tests.rabbitmq import Node, free_port

#: The only name in the broker's certificate. The node listens at 127.0.0.1, which "localhost" is.
NAME = "localhost"


class TLSWorld:
    """Files of certificates in a folder: what the broker has, and what a client may be given."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ca, self._stranger = trustme.CA(), trustme.CA()
        self.ca = self._write("ca.pem", self._ca.cert_pem)
        self.stranger = self._write("stranger.pem", self._stranger.cert_pem)
        self.broker_cert = folder / "broker.pem"
        self.broker_key = folder / "broker.key"
        self.show(self._ca.issue_cert(NAME))
        # RabbitMQ takes the user's name from the common name.
        self.client_cert, self.client_key = self._pair("client", self._ca)
        self.strange_cert, self.strange_key = self._pair("strange", self._stranger)

    def show(self, certificate: trustme.LeafCert) -> None:
        """Make that certificate the broker's."""
        certificate.private_key_pem.write_to_path(self.broker_key)
        certificate.cert_chain_pems[0].write_to_path(self.broker_cert)

    def valid(self) -> trustme.LeafCert:
        """A certificate that the broker may show."""
        return self._ca.issue_cert(NAME)

    def expired(self) -> trustme.LeafCert:
        """One whose time is over."""
        now = dt.datetime.now(dt.UTC)
        return self._ca.issue_cert(
            NAME,
            not_before=now - dt.timedelta(days=9),
            not_after=now - dt.timedelta(days=1),
        )

    def encrypted_key(self, password: bytes) -> bytes:
        """The key of the client's certificate, as PEM that asks for a password."""
        key = load_pem_private_key(Path(self.client_key).read_bytes(), None)
        return key.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(password)
        )

    def _pair(self, name: str, ca: trustme.CA) -> tuple[str, str]:
        issued = ca.issue_cert(f"{name}.example", common_name=f"{name}-user")
        certificate = self._write(f"{name}.pem", issued.cert_chain_pems[0])
        return certificate, self._write(f"{name}.key", issued.private_key_pem)

    def _write(self, name: str, blob: trustme.Blob) -> str:
        path = self.folder / name
        blob.write_to_path(path)
        return str(path)


@contextmanager
def tls_node(world: TLSWorld) -> Iterator[tuple[Node, int]]:
    """Run a node that wants client certificates; give it with the port of its TLS listener."""
    node, port = Node(), free_port()
    with (node.folder / "rabbitmq.conf").open("a") as settings:
        settings.write(
            f"listeners.ssl.1 = 127.0.0.1:{port}\n"
            f"ssl_options.cacertfile = {world.ca}\n"
            f"ssl_options.certfile = {world.broker_cert}\n"
            f"ssl_options.keyfile = {world.broker_key}\n"
            "ssl_options.verify = verify_peer\n"
            "ssl_options.fail_if_no_peer_cert = true\n"
            "ssl_cert_login_from = common_name\n"
            "auth_mechanisms.1 = PLAIN\n"
            "auth_mechanisms.2 = EXTERNAL\n"
        )
    (node.folder / "enabled_plugins").write_text("[rabbitmq_auth_mechanism_ssl].\n")
    with node:
        yield node, port
