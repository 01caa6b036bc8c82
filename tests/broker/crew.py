# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The controller of the tests of worker processes, installed by them as a plugin."""

from __future__ import annotations

import atexit
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oslo_config import cfg

from tavrida import dispatcher, service

#: The plugin is imported before the workers are forked.
IMPORTED_IN = os.getpid()


@dispatcher.rpc_service("crew")
class Crew(service.ServiceController):
    @classmethod
    def list_opts(cls) -> list[Any]:
        return [
            cfg.StrOpt("dies_if", default="", help="A file: workers die while it is there."),
            cfg.StrOpt("farewell", default="", help="A file: who ends writes its pid there."),
            cfg.BoolOpt("only_in_the_master", default=False),
            cfg.StrOpt("greeting", default="Hello"),
        ]

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(options)
        self._made_in = os.getpid()
        if self.options["only_in_the_master"] and os.getpid() != IMPORTED_IN:
            raise RuntimeError("there is one seat")
        if self.options["farewell"]:
            atexit.register(self._bid_farewell)
        dies_if = self.options["dies_if"]
        if dies_if and Path(dies_if).exists() and os.getpid() != IMPORTED_IN:
            os.kill(os.getpid(), signal.SIGKILL)

    def _bid_farewell(self) -> None:
        with Path(self.options["farewell"]).open("a") as file:
            file.write(f"{os.getpid()}\n")

    @dispatcher.rpc_method(service="crew", method="who")
    def who(self, request: Any, proxy: Any, seconds: float = 0.0) -> dict[str, Any]:
        """Tell which processes have to do with this call."""
        time.sleep(seconds)
        return {"pid": os.getpid(), "made_in": self._made_in, "imported_in": IMPORTED_IN}

    @dispatcher.rpc_method(service="crew", method="until")
    def until(self, request: Any, proxy: Any, path: str) -> dict[str, Any]:
        """End when the file is there."""
        Path(f"{path}.begun").touch()
        while not Path(path).exists():
            time.sleep(0.01)
        return {"pid": os.getpid()}

    @dispatcher.rpc_method(service="crew", method="block")
    async def block(self, request: Any, proxy: Any, path: str) -> None:
        """Hold the event loop up until the file is there, as nobody should."""
        while not Path(path).exists():  # noqa: ASYNC240
            time.sleep(0.01)  # noqa: ASYNC251
