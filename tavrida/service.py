# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""ServiceController: the class that the controllers of services derive from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from tavrida.discovery import Discovery
from tavrida.middleware import Middleware


class ServiceController:
    """Base of all controllers. The server makes one object of each class and shares it.

    Handlers of one object run side by side in several threads, so what they keep on ``self``
    needs a lock, unless the server runs one handler at a time.

    ``options`` holds the values of the options that ``list_opts`` declares, read from the
    controller's section of the ini: ``self.options["greeting"]``.
    """

    _discovery: ClassVar[Discovery | None] = None

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        self.options: Mapping[str, Any] = options or {}
        self.incoming_middleware: list[Middleware] = []
        self.outgoing_middleware: list[Middleware] = []

    @classmethod
    def list_opts(cls) -> list[Any]:
        """Return the oslo.config options that the controller takes in its [service:NAME]."""
        return []

    @classmethod
    def set_discovery(cls, discovery: Discovery) -> None:
        """Give the controller its discovery; read once, when a server is built with the class."""
        cls._discovery = discovery

    @classmethod
    def get_discovery(cls) -> Discovery | None:
        """Return what ``set_discovery`` was given, or None."""
        return cls._discovery

    def add_incoming_middleware(self, middleware: Middleware) -> None:
        """Let a middleware see the messages before the handlers; call it in ``__init__``."""
        self.incoming_middleware.append(middleware)

    def add_outgoing_middleware(self, middleware: Middleware) -> None:
        """Let a middleware see what the handlers send; call it in ``__init__``."""
        self.outgoing_middleware.append(middleware)

    def send_heartbeat(self) -> None:
        """Do nothing: heartbeats no longer depend on handlers. Kept for programs that call it."""
