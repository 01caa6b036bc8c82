# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The default backend: a service's exchange has its name, that of its notifications
``<service>.notifications``. What is registered explicitly wins.
"""

from __future__ import annotations

from tavrida import exceptions
from tavrida.discovery import Discovery


def publish_exchange(service: str) -> str:
    """Return the exchange of a service's notifications by convention."""
    return f"{service}.notifications"


class ConventionDiscovery(Discovery):
    """Knows every service. Nobody has to be told where anything is, if all keep to it."""

    def get_remote(self, service_name: str) -> str:
        try:
            return super().get_remote(service_name)
        except exceptions.ServiceUnknown:
            return service_name

    def get_remote_publisher(self, service_name: str) -> str:
        try:
            return super().get_remote_publisher(service_name)
        except exceptions.ServiceUnknown:
            return publish_exchange(service_name)

    def get_local_publisher(self, service_name: str) -> str:
        try:
            return super().get_local_publisher(service_name)
        except exceptions.ServiceUnknown:
            return publish_exchange(service_name)
