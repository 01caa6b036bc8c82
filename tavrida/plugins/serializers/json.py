# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""JSON by msgspec: also datetimes, UUIDs, decimals and bytes, as strings.

NaN and infinity become null: JSON has no word for them.
"""

from __future__ import annotations

from typing import Any

import msgspec

from tavrida.plugins.serializers import Serializer


class JSONSerializer(Serializer):
    """The default; readable by anything."""

    content_type = "application/json"

    def __init__(self) -> None:
        self._encoder = msgspec.json.Encoder()
        self._decoder = msgspec.json.Decoder()

    def encode(self, data: Any) -> bytes:
        return self._encoder.encode(data)

    def decode(self, body: bytes) -> Any:
        return self._decoder.decode(body)
