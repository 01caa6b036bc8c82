# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""A relay for tests that kill it: python program.py DATABASE BROKER."""

from __future__ import annotations

import logging
import sys

from tavrida.client import RPCClient
from tavrida.config import ConnectionConfig
from tavrida.discovery import LocalDiscovery
from tavrida.outbox.relay import Relay
from tests.outbox.conftest import open_database

PLACE, URL = sys.argv[1:]

logging.basicConfig(stream=sys.stdout, level="INFO", format="%(message)s")
known = LocalDiscovery()
known.register_remote_service("ledger", "test_exchange")
with RPCClient(ConnectionConfig(url=(URL,), retry_delay=0.1), discovery=known) as client:
    print("relay begins")
    Relay(lambda: open_database(PLACE), client, poll=0.02, batch=50, lease=0.3).run()
