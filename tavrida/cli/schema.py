# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""JSON Schemas of methods as a person reads them: ``buy(article: string, count: integer = 1)``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

Schema = Mapping[str, Any]

#: What stands for a schema that allows everything.
ANYTHING = "any"

#: The limits of a schema, by the word for it, as a person writes them.
_LIMITS = {
    "minimum": ">= {}",
    "exclusiveMinimum": "> {}",
    "maximum": "<= {}",
    "exclusiveMaximum": "< {}",
    "minLength": "length >= {}",
    "maxLength": "length <= {}",
    "minItems": "items >= {}",
    "maxItems": "items <= {}",
    "pattern": "like {!r}",
}


def signature(name: str, method: Schema) -> str:
    """Return a method in one line: its parameters with their types and defaults, and its result."""
    shape = method.get("parameters") or {}
    required = shape.get("required") or ()
    parts = []
    for parameter, schema in (shape.get("properties") or {}).items():
        kind = kind_of(schema)
        text = parameter if kind == ANYTHING else f"{parameter}: {kind}"
        if parameter not in required:
            text += f" = {json.dumps(schema['default'])}" if "default" in schema else " = ..."
        parts.append(text)
    result = kind_of(method.get("result") or {})
    return f"{name}({', '.join(parts)})" + (f" -> {result}" if result != ANYTHING else "")


def kind_of(schema: Schema) -> str:
    """Return a type in a few words; what has a name of its own is that name."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " | ".join(dict.fromkeys(map(kind_of, schema["anyOf"])))
    if "enum" in schema:
        return " | ".join(json.dumps(value) for value in schema["enum"])
    kind = schema.get("type", ANYTHING)
    if isinstance(kind, list):
        return " | ".join(map(str, kind))
    if kind == "array" and schema.get("items"):
        return f"[{kind_of(schema['items'])}]"
    limits = [text.format(schema[word]) for word, text in _LIMITS.items() if word in schema]
    form = schema.get("format")
    return " ".join([str(form or kind), f"({', '.join(limits)})" if limits else ""]).strip()
