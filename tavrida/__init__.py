# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Services that talk over RabbitMQ: requests with answers, casts, notifications."""


def __getattr__(name: str) -> str:
    # Importing the reader of metadata costs 50 ms, which a client need not pay.
    if name == "__version__":
        from importlib import metadata

        return metadata.version("tavrida")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
