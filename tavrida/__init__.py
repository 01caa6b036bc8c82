# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Services that talk over RabbitMQ: requests with answers, casts, notifications."""

from importlib import metadata as _metadata


def __getattr__(name: str) -> str:
    # Reading the distribution's metadata costs milliseconds that a client need not pay.
    if name == "__version__":
        return _metadata.version("tavrida")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
