# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""systemd: telling the service manager that started us how we are (sd_notify)."""

from __future__ import annotations

import logging
import os
import socket
import time
from typing import Self

LOG = logging.getLogger(__name__)


class ServiceManager:
    """Whoever reads the socket that ``NOTIFY_SOCKET`` names; without one, nothing is told."""

    def __init__(self, address: str = "") -> None:
        # A name in the abstract namespace begins with a zero byte, which no variable can hold.
        self._address = address.replace("@", "\0", 1) if address.startswith("@") else address

    @classmethod
    def of_environment(cls) -> Self:
        """Return the one of this process, which its children shall not talk to."""
        return cls(os.environ.pop("NOTIFY_SOCKET", ""))

    def ready(self, status: str) -> None:
        """Tell that all is in place, at start or after ``reloading``."""
        self._tell("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Tell that the configuration is being read again; ``ready`` ends that."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(_CLOCK) // 1000}")

    def stopping(self) -> None:
        """Tell that this process ends, as soon as what runs has finished."""
        self._tell("STOPPING=1", "STATUS=Stopping.")

    def _tell(self, *variables: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as teller:
                teller.sendto("\n".join(variables).encode(), self._address)
        except (OSError, ValueError) as error:
            LOG.warning(
                "NOTIFY_SOCKET %r cannot be told %s: %s.", self._address, variables[0], error
            )


#: systemd compares it with its own.
_CLOCK = time.CLOCK_MONOTONIC
