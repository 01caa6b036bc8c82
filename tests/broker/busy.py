# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""A server that is stopped while it is busy: python busy.py URL LEDGER.

It writes what it handled into the ledger, a file that several of its kind may share.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from typing import Any

from tavrida import discovery, dispatcher, server, service
from tavrida.config import ConnectionConfig

URL, LEDGER = sys.argv[1:]
ledger = os.open(LEDGER, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def note(word: str, n: int) -> None:
    """Write a line, at once and in one piece."""
    os.write(ledger, f"{word} {n}\n".encode())


@dispatcher.rpc_service("busy")
class Busy(service.ServiceController):
    @dispatcher.rpc_method(service="busy", method="plain")
    def plain(self, request: Any, proxy: Any, n: int) -> dict[str, Any]:
        """Take a moment, and hand a part of the work on."""
        time.sleep(0.002)
        proxy.busy.rest(n=n).cast()
        note("plain", n)
        return {"n": n}

    @dispatcher.rpc_method(service="busy", method="rest")
    async def rest(self, request: Any, proxy: Any, n: int) -> None:
        await asyncio.sleep(0.002)
        note("rest", n)


Busy.set_discovery(discovery.LocalDiscovery())
logging.basicConfig(stream=sys.stdout, level="INFO", format="%(message)s")
server.Server(
    ConnectionConfig(url=(URL,), async_engine=True, retry_delay=0.1),
    "busy_queue",
    "test_exchange",
    [Busy],
    graceful_timeout=20.0,
).run()
