# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""What a service says of itself, when it is asked by the built-in method ``__describe__``."""

from __future__ import annotations

import inspect
import os
import socket
from datetime import UTC, datetime
from typing import Any

import msgspec

from tavrida import messages, plugins
from tavrida.arguments import arguments_of, shape_of
from tavrida.dispatcher import Dispatcher, Handler, Mark
from tavrida.entry_point import EntryPoint
from tavrida.results import result_type_of

#: The built-in method of every service; ``client.shop["__describe__"]().call()`` asks it.
METHOD = "__describe__"


def handler_of(dispatcher: Dispatcher) -> Handler:
    """Return the handler of requests to the ``__describe__`` of a controller's service.

    It is a handler like any other: middleware, deadlines and serializers are the service's.
    """
    facts = describe(dispatcher)
    started = datetime.now(UTC).isoformat(timespec="seconds")

    def answer(request: object, proxy: object) -> dict[str, Any]:
        here = {"host": socket.gethostname(), "pid": os.getpid(), "started": started}
        return {"name": dispatcher.service, "tavrida": plugins.version(), **here, **facts}

    place = f"{__name__}.describe of {dispatcher.service}"
    return Handler(
        Mark(messages.REQUEST, EntryPoint(dispatcher.service, METHOD)),
        dispatcher.service,
        dispatcher.controller,
        answer,
        False,
        arguments_of(answer, place),
        place,
    )


def describe(dispatcher: Dispatcher) -> dict[str, Any]:
    """Return what does not change while a service runs: its methods and what it listens to."""
    handlers = sorted(dispatcher.handlers.items(), key=lambda item: item[0].entry_point)
    points: dict[str, list[str]] = {kind: [] for kind in messages.KINDS}
    for mark, _ in handlers:
        points[mark.kind].append(str(mark.entry_point))
    return {
        "name": dispatcher.service,
        "summary": _summary(type(dispatcher.controller)),
        "methods": {
            mark.entry_point.method: _method(handler)
            for mark, handler in handlers
            if mark.kind == messages.REQUEST
        },
        "subscriptions": points[messages.NOTIFICATION],
        "continuations": {
            "responses": points[messages.RESPONSE],
            "errors": points[messages.ERROR],
        },
    }


def _method(handler: Handler) -> dict[str, Any]:
    shape = shape_of(handler.function, handler.place)
    result = result_type_of(handler.function, handler.place)
    return {
        "summary": _summary(handler.function),
        "parameters": _inlined(_schema(shape)),
        "result": {} if result is messages.Response else _schema(result),
    }


def _schema(kind: Any) -> dict[str, Any]:
    """Return the JSON Schema of a type; one that says less where a type has none."""
    try:
        # As what JSON has: examples and defaults may be any objects.
        schema = msgspec.json.schema(kind, schema_hook=_schema_of_stranger)
        return dict(msgspec.json.decode(msgspec.json.encode(schema)))
    except Exception as error:  # whatever a user's type does to msgspec
        return {"description": f"{kind}: no JSON Schema ({error})"}


def _schema_of_stranger(cls: type) -> dict[str, Any]:
    # An empty schema would be right, and is an error to msgspec.
    return {"description": f"{cls.__module__}.{cls.__qualname__}"}


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of the Struct of parameters itself, which nothing else refers to."""
    name = schema.get("$ref", "").rpartition("/")[2]
    if not name:
        return schema
    own = dict(schema["$defs"][name])
    others = {key: value for key, value in schema["$defs"].items() if key != name}
    own.pop("title", None)
    return own | ({"$defs": others} if others else {})


def _summary(thing: Any) -> str:
    """Return the first sentence of a docstring, or nothing."""
    paragraph = " ".join(inspect.cleandoc(thing.__doc__ or "").partition("\n\n")[0].split())
    sentence, end, _ = paragraph.partition(". ")
    return sentence + end.strip()
