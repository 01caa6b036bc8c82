# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The ``local`` backend: what the ini itself says, in the options ``exchanges`` and
``publishers``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from tavrida.discovery import LocalDiscovery


class LocalBackend(LocalDiscovery):
    """LocalDiscovery, registered from a ``[discovery:NAME]`` section."""

    @classmethod
    def list_opts(cls) -> list[Any]:
        from oslo_config import cfg

        return [
            cfg.DictOpt(
                "exchanges",
                default={},
                help="Where services take requests: SERVICE:EXCHANGE, SERVICE:EXCHANGE, ...",
            ),
            cfg.DictOpt(
                "publishers",
                default={},
                help="Where services publish notifications: SERVICE:EXCHANGE, SERVICE:EXCHANGE, "
                "... For services that run here and those that are listened to alike.",
            ),
        ]

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        discovery = cls()
        for service, exchange in options["exchanges"].items():
            discovery.register_remote_service(service, exchange)
        for service, exchange in options["publishers"].items():
            discovery.register_remote_publisher(service, exchange)
            discovery.register_local_publisher(service, exchange)
        return discovery
