# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Dead letters: what their headers say, and whom to believe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from tavrida import exceptions, letters
from tavrida.envelope import Properties

OF_A_STRANGER = {
    "dead_queue": "billing",
    "dead_exchange": "billing",
    "dead_routing_key": "billing.pay",
    "dead_reason": "Trust: me",
}
DEATH = {
    "queue": "shop",
    "reason": "delivery_limit",
    "exchange": "shop",
    "routing-keys": ["shop.buy"],
    "count": 1,
}


@dataclass
class Letter:
    """A delivery out of shop.dead."""

    headers: dict[str, Any]
    body: bytes = b"{}"
    exchange: str = ""
    routing_key: str = "shop.dead"
    redelivered: bool = False
    queue: str = "shop.dead"
    is_live: bool = True
    properties: Any = field(init=False)

    def __post_init__(self) -> None:
        self.properties = Properties("application/json", self.headers, message_id="1")

    def ack(self) -> None: ...

    def requeue(self) -> None: ...

    def reject(self) -> None: ...


def test_what_the_broker_says_of_a_death_goes_before_what_the_message_says() -> None:
    """Whoever published it may have written these headers, and would choose where it goes."""
    letter = letters.read(Letter({**OF_A_STRANGER, "x-death": [DEATH]}))
    assert ("shop", "shop", "shop.buy") == (letter.died_in, letter.exchange, letter.routing_key)
    assert "delivery_limit" in letter.reason


def test_a_letter_that_tavrida_wrote_is_believed() -> None:
    """It has no other history."""
    letter = letters.read(Letter(OF_A_STRANGER))
    assert ("billing", "billing.pay") == (letter.died_in, letter.routing_key)


def test_an_empty_id_is_nobodys() -> None:
    """It would be the beginning of the only letter there is."""
    with pytest.raises(exceptions.TavridaError, match="an id is empty"):
        letters.resolve([""], {"the-only-one"})
