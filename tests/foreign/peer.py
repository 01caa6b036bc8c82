# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""What every foreign client of these tests can do; a module a client."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Protocol

#: Exchange and queue of the service that a foreign client runs.
EXCHANGE, QUEUE = "foreign_exchange", "foreign_service"

#: RabbitMQ's pseudo queue, whose answers come without any queue being declared.
DIRECT = "amq.rabbitmq.reply-to"


@dataclass(frozen=True)
class Sent:
    """What a client publishes. Properties that are None are left out."""

    exchange: str
    routing_key: str
    body: bytes = b""
    content_type: str | None = None
    correlation_id: str | None = None
    type: str | None = None
    headers: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What came to the client's reply queue."""

    body: bytes
    type: str
    content_type: str
    correlation_id: str | None


class Peer(Protocol):
    """A foreign client."""

    def tell(self, url: str, sent: Sent) -> None:
        """Publish a message."""

    def ask(self, url: str, sent: Sent, *, is_direct: bool) -> Answer:
        """Publish a request; return what comes to an exclusive queue, or to DIRECT."""

    def listen(
        self, url: str, exchange: str, key: str
    ) -> AbstractContextManager[SimpleQueue[bytes]]:
        """Bind a queue to the exchange; the bodies that come to it are in the queue given."""

    def serve(self, url: str) -> AbstractContextManager[None]:
        """Answer requests to EXCHANGE, as answer_of in this file does."""


def answer_of(request: dict[str, Any], method: str) -> tuple[str, dict[str, Any]]:
    """Return type and payload of the answer: an echo, or an error."""
    payload = request["payload"]
    if method == "fails":
        return "error", {"class": "OutOfStock", "message": "come again", "code": 77}
    if method == "shrugs":
        return "error", {}
    return "response", {"echo": payload}
