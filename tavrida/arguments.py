# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""From the signature of a handler to a function that turns a payload into its arguments."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from typing import Any

import msgspec

from tavrida import exceptions

#: payload -> keyword arguments; raises InvalidPayload.
Arguments = Callable[[dict[str, Any]], dict[str, Any]]

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def arguments_of(function: Callable[..., Any], place: str, given: int = 2) -> Arguments:
    """Return what makes the keyword arguments of a bound handler from a payload.

    The first ``given`` parameters (message and proxy) are not the payload's. Annotated ones are
    checked and converted by ``msgspec.convert``; those with a default may be absent; keys that
    no parameter takes go to ``**kwargs`` or are ignored.

    Raises:
        InvalidHandler: the signature cannot work; ``place`` tells which.
    """
    parameters = list(inspect.signature(function).parameters.values())
    leading = [p for p in parameters[:given] if p.kind in (p.POSITIONAL_ONLY, _NAMED[0])]
    if len(leading) < given:
        raise exceptions.InvalidHandler(
            f"{place} takes too few arguments: write it as (self, message, proxy, ...)"
        )
    rest = parameters[given:]
    for parameter in rest:
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL):
            raise exceptions.InvalidHandler(
                f"{place}: parameter {str(parameter)!r} cannot be filled from a payload, "
                "whose values have names: make it an ordinary parameter"
            )
    named = [p for p in rest if p.kind in _NAMED]
    takes_rest = any(p.kind is p.VAR_KEYWORD for p in rest)
    taken = {p.name for p in parameters[:given] if p.kind is _NAMED[0]} | _first_of(function)
    names = frozenset(p.name for p in named)
    shape = shape_of(function, place, given)
    has_defaults = any(p.default is not p.empty for p in named)

    def arguments(payload: dict[str, Any]) -> dict[str, Any]:
        try:
            values = msgspec.structs.asdict(msgspec.convert(payload, shape))
        except (msgspec.ValidationError, RecursionError) as error:
            raise invalid_payload(error) from None
        # A parameter that the payload does not fill keeps the default of the function itself.
        found = values
        if has_defaults:
            found = {name: value for name, value in values.items() if value is not msgspec.UNSET}
        if takes_rest:
            more = {k: v for k, v in payload.items() if k not in names}
            if not taken.isdisjoint(more):
                raise exceptions.InvalidPayload(
                    f"keys that the handler itself takes: {', '.join(sorted(taken & more.keys()))}"
                )
            found |= more
        return found

    return arguments


def shape_of(function: Callable[..., Any], place: str, given: int = 2) -> type[msgspec.Struct]:
    """Return the Struct ``Payload`` whose fields are the parameters that a payload fills.

    Raises:
        InvalidHandler: an annotation cannot be read or checked.
    """
    parameters = list(inspect.signature(function).parameters.values())[given:]
    named = [p for p in parameters if p.kind in _NAMED]
    return _shape(named, hints_of(function, place, {p.name for p in named}), place)


def invalid_payload(error: Exception) -> exceptions.InvalidPayload:
    """Return the InvalidPayload of a msgspec error, its text taken apart into details."""
    # "Expected `int`, got `str` - at `$.items[3].price`"; the path is left out at the top.
    text = str(error)
    reason, _, path = text.rpartition(" - at `")
    reason, path = (reason, path.removesuffix("`")) if reason else (text, "$")
    what = reason.removeprefix("Expected ").partition(", got ")[0]
    return exceptions.InvalidPayload(text, {"path": path, "expected": what.replace("`", "")})


def _first_of(function: Callable[..., Any]) -> set[str]:
    """The name of ``self`` or ``cls``, which a bound method has filled already."""
    under = getattr(function, "__func__", None)
    return set(list(inspect.signature(under).parameters)[:1]) if under else set()


def hints_of(function: Callable[..., Any], place: str, names: set[str]) -> dict[str, Any]:
    """Return the annotations of these parameters, and of "return", strings resolved.

    Raises:
        InvalidHandler: one cannot be read; ``place`` tells of which function.
    """
    under = inspect.unwrap(getattr(function, "__func__", function))
    annotations = getattr(under, "__annotations__", {})

    def payload_only() -> None: ...

    # What the payload does not fill is not read: it may be imported for type checkers only.
    payload_only.__annotations__ = {k: v for k, v in annotations.items() if k in names}
    try:
        return typing.get_type_hints(
            payload_only, getattr(under, "__globals__", {}), include_extras=True
        )
    except (AttributeError, IndexError, RecursionError, SyntaxError, TypeError) as error:
        raise exceptions.InvalidHandler(
            f"{place}: an annotation cannot be read: {' '.join(str(error).split())}"
        ) from None
    except NameError as error:
        raise exceptions.InvalidHandler(
            f"{place}: {error}; annotations are read when the server is built, so the name has "
            "to be imported for real, not only under TYPE_CHECKING"
        ) from None


def _shape(
    named: list[inspect.Parameter], hints: dict[str, Any], place: str
) -> type[msgspec.Struct]:
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    try:
        for parameter in named:
            hint = hints.get(parameter.name, Any)
            if parameter.default is parameter.empty:
                fields.append((parameter.name, hint))
            else:
                fields.append((parameter.name, hint | msgspec.UnsetType, msgspec.UNSET))
        shape = msgspec.defstruct("Payload", fields, kw_only=True)
        msgspec.convert({}, shape)
    except msgspec.ValidationError:
        pass  # An empty payload does not fit; msgspec read the annotations, which was the point.
    except Exception as error:  # whatever an annotation does to msgspec and to "|"
        raise exceptions.InvalidHandler(
            f"{place}: an annotation cannot be checked: {' '.join(str(error).split())}"
        ) from None
    for parameter in named:
        if parameter.name not in shape.__struct_fields__:  # msgspec leaves it out, and says nothing
            raise exceptions.InvalidHandler(
                f"{place}: parameter {str(parameter)!r} cannot be filled from a payload: "
                "leave ClassVar out"
            )
    return shape
