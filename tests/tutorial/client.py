# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
# The tutorial's client, as it stands there but for the broker's place.
# mypy: ignore-errors
# ruff: noqa: F401, I001
# fmt: off
import os

from tavrida import client
from tavrida import config
from tavrida import discovery
from tavrida import entry_point

creds = config.Credentials("guest", "guest")
conf = config.ConnectionConfig("localhost", credentials=creds,
                               port=int(os.environ["PORT"]), virtual_host=os.environ["VHOST"])

disc = discovery.LocalDiscovery()
disc.register_remote_service(service_name="test_hello",
                             exchange_name="test_exchange")
cli = client.RPCClient(config=conf, service="test_hello", discovery=disc,
                       source="client_app")
cli.hello(param=123).cast()
