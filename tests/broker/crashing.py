# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""A server with a handler that ends its process: python crashing.py URL QUEUE_TYPE LIMIT FILE."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from tavrida import dispatcher, server, service
from tavrida.config import ConnectionConfig

URL, QUEUE_TYPE, LIMIT, FILE = sys.argv[1:]


@dispatcher.rpc_service("work")
class Work(service.ServiceController):
    @dispatcher.rpc_method(service="work", method="kill")
    def kill(self, request: Any, proxy: Any) -> None:
        os._exit(9)

    @dispatcher.rpc_method(service="work", method="note")
    def note(self, request: Any, proxy: Any, n: int) -> None:
        """Write down that it ran; lines of that length are written whole."""
        with Path(FILE).open("a", encoding="ascii") as file:
            file.write(f"{n}\n")


server.Server(
    ConnectionConfig(url=(URL,), async_engine=True, retry_delay=0.1),
    "work_queue",
    "test_exchange",
    [Work],
    queue_type=QUEUE_TYPE,
    delivery_limit=int(LIMIT),
).run()
