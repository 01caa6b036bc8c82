# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Discovery: where services are. It maps the name of a service to the exchange that takes its
requests, and the name of a publisher to the exchange that carries its notifications.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from tavrida import exceptions


class Discovery:
    """Base of all discovery backends, and a complete one in itself: a register in memory.

    A backend of your own overrides the ``get_...`` methods, each of which raises ServiceUnknown
    for what it does not know. They are called from several threads and must not block for long;
    ``register_...`` is for the time before a server or client is built with the object.
    """

    def __init__(self) -> None:
        self._remote: dict[str, str] = {}
        self._remote_publishers: dict[str, str] = {}
        self._local_publishers: dict[str, str] = {}

    @classmethod
    def list_opts(cls) -> list[Any]:
        """Return the oslo.config options that the backend takes in its [discovery:NAME]."""
        return []

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Return the backend made from the values of its options.

        Raises:
            ConfigError: the values cannot work; names the place and the remedy.
        """
        return cls()

    def register_remote_service(self, service_name: str, exchange_name: str) -> None:
        """Tell that requests to the service go to the exchange."""
        self._remote[service_name] = exchange_name

    def register_remote_publisher(self, service_name: str, exchange_name: str) -> None:
        """Tell that the notifications of a service come from the exchange, to subscribe to them."""
        self._remote_publishers[service_name] = exchange_name

    def register_local_publisher(self, service_name: str, exchange_name: str) -> None:
        """Tell that the service, which runs here, publishes its notifications to the exchange."""
        self._local_publishers[service_name] = exchange_name

    def get_remote(self, service_name: str) -> str:
        """Return the exchange that takes requests to the service, or raise ServiceUnknown."""
        return _look_up(self._remote, service_name, "register_remote_service")

    def get_remote_publisher(self, service_name: str) -> str:
        """Return the exchange of the service's notifications, or raise ServiceUnknown."""
        return _look_up(self._remote_publishers, service_name, "register_remote_publisher")

    def get_local_publisher(self, service_name: str) -> str:
        """Return the exchange that the service publishes to, or raise ServiceUnknown."""
        return _look_up(self._local_publishers, service_name, "register_local_publisher")

    @property
    def registered(self) -> tuple[str, ...]:
        """The names of the services that were registered to take requests."""
        return tuple(self._remote)

    def is_registered(self, service_name: str) -> bool:
        """Tell whether the service was registered by name; a mere convention does not count.

        A ``reply_to`` is a registered service or else the name of a queue.
        """
        return service_name in self._remote


class LocalDiscovery(Discovery):
    """Discovery by what the program itself registers."""


def _look_up(register: dict[str, str], service: str, remedy: str) -> str:
    try:
        return register[service]
    except KeyError:
        raise exceptions.ServiceUnknown(
            f"discovery does not know service {service!r}"
            f"{exceptions.did_you_mean(service, register)}: "
            f"tell it with {remedy}({service!r}, EXCHANGE), or name it in the [discovery:...] "
            f"section. Known here: {', '.join(sorted(register)) or 'none'}."
        ) from None
