# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""A server for tests that end it: python program.py URL NAME."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import Any

from tavrida import dispatcher, server, service
from tavrida.config import ConnectionConfig

URL, NAME = sys.argv[1:]


@dispatcher.rpc_service("work")
class Work(service.ServiceController):
    @dispatcher.rpc_method(service="work", method="until")
    def until(self, request: Any, proxy: Any, path: str) -> dict[str, Any]:
        """End when the file is there."""
        print(f"{NAME} handles, redelivered {request.redelivered}")
        while not Path(path).exists():
            time.sleep(0.01)
        print(f"{NAME} is done")
        return {"by": NAME, "redelivered": request.redelivered}

    @dispatcher.rpc_method(service="work", method="quick")
    def quick(self, request: Any, proxy: Any, n: int) -> dict[str, Any]:
        print(f"handled {n}")
        return {"n": n}


logging.basicConfig(stream=sys.stdout, level="INFO", format="%(message)s")
server.Server(
    ConnectionConfig(url=(URL,), async_engine=True, retry_delay=0.1),
    "work_queue",
    "test_exchange",
    [Work],
    graceful_timeout=20.0,
).run()
