# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""From what a handler returns to the answer that it stands for."""

from __future__ import annotations

import functools
import operator
import types
import typing
from collections.abc import Callable
from dataclasses import is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
from msgspec import inspect

from tavrida import exceptions
from tavrida.arguments import hints_of
from tavrida.messages import Error, Message, Response

#: result -> the answer; raises UnknownResult.
Answers = Callable[[object], Message]

#: What a serializer may write in its own way; the rest of a result becomes dicts and lists.
_KEPT_TYPES = (bytes, datetime, date, time, timedelta, UUID, Decimal)

#: Annotations that say nothing of a result.
_UNSAID = (Any, object, Message, typing.NoReturn, typing.Never)

#: What else a handler may say that it returns, besides dicts, Structs, Response and Error.
_ANSWERS = (inspect.NoneType, inspect.DataclassType, inspect.TypedDictType)

#: What the keys of a dict may be.
_KEYS = (inspect.AnyType, inspect.StrType, inspect.LiteralType)

#: Types that say no more than "a dict".
_MERE = (inspect.type_info(dict), inspect.type_info(dict[str, Any]))


def response_of(result: object) -> Message:
    """Return the answer that a handler's result stands for, whatever its annotation.

    Raises:
        UnknownResult: it stands for none.
    """
    if result is None:
        return Response()
    if isinstance(result, Response | Error):
        if not isinstance(result.payload, dict):
            raise exceptions.UnknownResult(
                f"returned {type(result).__name__} with {type(result.payload).__name__} as "
                "payload, which should be a dict"
            )
        # A copy: what is filled in later belongs to this request, and the handler may keep its own.
        cls = Response if isinstance(result, Response) else Error
        context, headers = result.context or {}, result.extra_headers or {}
        return cls(dict(result.payload), dict(context), dict(headers))
    if isinstance(result, dict):
        if all(isinstance(key, str) for key in result):
            return Response(dict(result))
        raise exceptions.UnknownResult("returned a dict whose keys are not all strings")
    if isinstance(result, msgspec.Struct) or (
        is_dataclass(result) and not isinstance(result, type | Message)
    ):
        data = _plain(result)
        if isinstance(data, dict):
            return Response(data)
    hint = "its payload, " if isinstance(result, Message) else ""
    raise exceptions.UnknownResult(
        f"returned {type(result).__name__}, which is no answer: return {hint}a dict, a dataclass, "
        "a msgspec.Struct, messages.Response, messages.Error or None"
    )


def result_type_of(function: Callable[..., Any], place: str) -> Any:
    """Return the type of the payload that a handler's annotation promises.

    Any where it promises nothing, Response where it names Response or Error only: their payload
    is not described. In a union they are left out.

    Raises:
        InvalidHandler: the annotation cannot be read, or names what can be no answer.
    """
    hint = hints_of(function, place, {"return"}).get("return", Any)
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    members = typing.get_args(hint) if is_union else (hint,)
    payloads = tuple(each for each in members if each not in (Response, Error))
    if hint in _UNSAID or Any in payloads:
        return Any
    if not payloads:
        return Response
    try:
        expected: Any = functools.reduce(operator.or_, payloads)
        wrong = [i for i in _members(inspect.type_info(expected)) if not _can_answer(i)]
    except Exception as error:  # whatever an annotation does to msgspec and to "|"
        raise exceptions.InvalidHandler(
            f"{place}: its result {_name(hint)} cannot be checked: {' '.join(str(error).split())}"
        ) from None
    if wrong:
        raise exceptions.InvalidHandler(
            f"{place} says that it returns {_name(hint)}, which can be no answer: return a dict "
            "with keys of type str, a TypedDict, a dataclass, a msgspec.Struct, "
            "messages.Response, messages.Error or None"
        )
    return expected


def answers_of(function: Callable[..., Any], place: str) -> Answers:
    """Return what makes the answer of a handler's result, and holds it to its annotation.

    A Response or an Error passes whatever the annotation says. More keys than it names pass too.

    Raises:
        InvalidHandler: the annotation can be no answer.
    """
    expected = result_type_of(function, place)
    if expected is Any:
        return response_of
    infos = () if expected is Response else _members(inspect.type_info(expected))
    # A mere dict has nothing inside to check: it is not walked through.
    is_mere = any(info in _MERE for info in infos)
    name = _name(expected)

    def answer(result: object) -> Message:
        if isinstance(result, Message):
            return response_of(result)
        if expected is Response:
            raise exceptions.UnknownResult(
                f"returned {type(result).__name__}, where its annotation names messages only"
            )
        if is_mere and isinstance(result, dict):
            return response_of(result)
        data = _plain(result)
        try:
            # The data and not the object: convert takes an instance as it is, fields unseen.
            msgspec.convert(data, expected)
        except Exception as error:  # also what a user's __post_init__ raises
            raise exceptions.UnknownResult(
                f"returned {type(result).__name__}, which does not fit its annotation {name}: "
                f"{exceptions.text_of(error)}"
            ) from None
        return response_of(data)

    return answer


def _plain(result: object) -> Any:
    try:
        return msgspec.to_builtins(result, builtin_types=_KEPT_TYPES)
    except Exception as error:
        raise exceptions.UnknownResult(
            f"returned {type(result).__name__}, which cannot be written: "
            f"{exceptions.text_of(error)}"
        ) from None


def _name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def _bare(info: inspect.Type) -> inspect.Type:
    return _bare(info.type) if isinstance(info, inspect.Metadata) else info


def _members(info: inspect.Type) -> tuple[inspect.Type, ...]:
    info = _bare(info)
    return info.types if isinstance(info, inspect.UnionType) else (info,)


def _can_answer(info: inspect.Type) -> bool:
    info = _bare(info)
    if isinstance(info, inspect.DictType):
        return isinstance(_bare(info.key_type), _KEYS)
    if isinstance(info, inspect.StructType):
        return not info.array_like
    if isinstance(info, inspect.DataclassType) and issubclass(info.cls, Message):
        return False  # It tells of a message; only Response and Error are answers.
    return isinstance(info, _ANSWERS)
