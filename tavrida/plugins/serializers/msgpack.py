# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""MessagePack by msgspec: smaller than JSON, and bytes and datetimes keep their types."""

from __future__ import annotations

from typing import Any

import msgspec

from tavrida.plugins.serializers import Serializer


class MsgpackSerializer(Serializer):
    """For callers that have a MessagePack library as well."""

    content_type = "application/msgpack"

    def __init__(self) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder()

    def encode(self, data: Any) -> bytes:
        return self._encoder.encode(data)

    def decode(self, body: bytes) -> Any:
        return self._decoder.decode(body)
