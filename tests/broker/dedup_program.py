# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""A server with dedup that tests kill: python dedup_program.py URL STORE WHERE_IT_HANGS."""

from __future__ import annotations

import sys
import time
from typing import Any

from tavrida import dispatcher, server, service
from tavrida.config import ConnectionConfig
from tavrida.messages import IncomingMessage, Message
from tavrida.middleware import Middleware
from tavrida.plugins.middleware.dedup import Dedup
from tavrida.plugins.middleware.sqlite_store import SQLiteStore

URL, STORE, HANGS = sys.argv[1:]


class Hangs(Middleware):
    """Keeps a delivery from being acknowledged, when all is done and recorded."""

    def before_settle(
        self, message: IncomingMessage, answer: Message | None, error: BaseException | None
    ) -> None:
        if HANGS == "after" and message.payload["n"] == 1:
            print("recorded")
            time.sleep(1000)


@dispatcher.rpc_service("svc")
class Service(service.ServiceController):
    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.add_incoming_middleware(Dedup(SQLiteStore(STORE)))
        self.add_incoming_middleware(Hangs())

    @dispatcher.rpc_method(service="svc", method="ok")
    def ok(self, request: Any, proxy: Any, n: int) -> None:
        print(f"handles {n}")
        if HANGS == "inside":
            time.sleep(1000)


config = ConnectionConfig(url=(URL,), async_engine=True, retry_delay=0.1)
with server.Server(config, "test_service", "test_exchange", [Service]):
    print("is serving")
    time.sleep(1000)
