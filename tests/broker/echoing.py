# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""A service that answers and takes note, for tests of what its clients do."""

from __future__ import annotations

from queue import SimpleQueue
from typing import Any

from tavrida import dispatcher
from tavrida.service import ServiceController


@dispatcher.rpc_service("svc")
class Service(ServiceController):
    #: What was cast; a test that looks at it begins with a queue of its own.
    seen: SimpleQueue[int] = SimpleQueue()

    @dispatcher.rpc_method("svc", "echo")
    async def echo(self, request: Any, proxy: Any, n: int, pad: str = "") -> dict[str, Any]:
        return {"n": n}

    @dispatcher.rpc_method("svc", "note")
    async def note(self, request: Any, proxy: Any, n: int) -> None:
        self.seen.put(n)
