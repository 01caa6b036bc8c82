# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The service under load: an installed controller, served by ``tavrida-server``."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path
from typing import Any

from tavrida import dispatcher, service
from tests.faults.journal import BEGAN, HANDLED, Journal, end_with_the_laboratory

#: The environment variable that names the folder of the journals.
FOLDER = "TAVRIDA_FAULTS_FOLDER"

#: Seconds that a handler takes: there are always some at work when a fault comes.
WORK = 0.004


@dispatcher.rpc_service("lab")
class Lab(service.ServiceController):
    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.journal = Journal(Path(os.environ[FOLDER]))
        threading.Thread(target=end_with_the_laboratory, daemon=True).start()

    @dispatcher.rpc_method(service="lab", method="take")
    def take(self, request: Any, proxy: Any, key: str) -> dict[str, str]:
        """Work in a thread."""
        time.sleep(WORK)
        self.journal.write(HANDLED, key, request.redelivered)
        return {"key": key}

    @dispatcher.rpc_method(service="lab", method="take_async")
    async def take_async(self, request: Any, proxy: Any, key: str) -> dict[str, str]:
        """Work on the loop."""
        await asyncio.sleep(WORK)
        self.journal.write(HANDLED, key, request.redelivered)
        return {"key": key}

    @dispatcher.rpc_method(service="lab", method="forward")
    def forward(self, request: Any, proxy: Any, key: str) -> None:
        """Handled when what is sent from here is handled."""
        proxy.lab.take(key=key).cast()

    @dispatcher.rpc_method(service="lab", method="relay")
    def relay(self, request: Any, proxy: Any, key: str) -> dict[str, Any]:
        """Answer with what another handler answers."""
        payload: dict[str, Any] = proxy.lab.take_async(key=key).wait().payload
        return payload

    @dispatcher.rpc_method(service="lab", method="fail")
    def fail(self, request: Any, proxy: Any, key: str) -> None:
        """Fail always."""
        self.journal.write(BEGAN, key, request.redelivered)
        raise ArithmeticError("on purpose")

    @dispatcher.rpc_method(service="lab", method="die")
    def die(self, request: Any, proxy: Any, key: str) -> None:
        """End the process, as a segfault or the kernel's memory killer does."""
        self.journal.write(BEGAN, key, request.redelivered)
        os.kill(os.getpid(), 9)

    @dispatcher.subscription_method(service="lab_events", method="happened")
    def happened(self, notification: Any, proxy: Any, key: str) -> None:
        """Hear what clients publish."""
        time.sleep(WORK)
        self.journal.write(HANDLED, key, notification.redelivered)
