# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The decorators, which only mark, and the Dispatcher: the handlers of one controller."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tavrida import exceptions, messages
from tavrida.arguments import Arguments, arguments_of
from tavrida.entry_point import MAX_LENGTH, EntryPoint
from tavrida.results import Answers, answers_of, response_of
from tavrida.retries import Retry, Said, said

_SERVICE = "__tavrida_service__"
_MARKS = "__tavrida_marks__"

Class = TypeVar("Class", bound=type)
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Mark:
    """What a decorator says of a method: it handles this kind of message of this entry point.

    ``retry`` is what it says of trying again, if anything, and ``concurrency`` how many may run.
    """

    kind: str
    entry_point: EntryPoint
    retry: Retry | None = field(default=None, compare=False)
    concurrency: int | None = field(default=None, compare=False)


def rpc_service(service_name: str) -> Callable[[Class], Class]:
    """Mark a controller class as the one that serves ``service_name``."""
    EntryPoint(service_name)

    def mark(cls: Class) -> Class:
        if not isinstance(cls, type):
            raise exceptions.InvalidHandler(
                f"@rpc_service({service_name!r}) stands over {cls!r}: it belongs over a class"
            )
        setattr(cls, _SERVICE, service_name)
        return cls

    return mark


def rpc_method(
    service: str, method: str, *, retry: Said | None = None, concurrency: int | None = None
) -> Callable[[Function], Function]:
    """Mark a method as the handler of requests to ``service.method``.

    ``retry`` says what happens when it fails, here and in the other decorators: a ``Retry``, a
    number of attempts, False for none but the first. With it, calls are tried again as well;
    True says no more than that. ``concurrency`` is how many of this handler may run side by side
    in one process, where that is fewer than the server's.
    """
    return _marking(messages.REQUEST, service, method, retry, concurrency)


def rpc_response_method(
    service: str, method: str, *, retry: Said | None = None, concurrency: int | None = None
) -> Callable[[Function], Function]:
    """Mark a method as the handler of answers from ``service.method``."""
    return _marking(messages.RESPONSE, service, method, retry, concurrency)


def rpc_error_method(
    service: str, method: str, *, retry: Said | None = None, concurrency: int | None = None
) -> Callable[[Function], Function]:
    """Mark a method, which takes the error and the proxy only, as that of errors from there."""
    return _marking(messages.ERROR, service, method, retry, concurrency)


def subscription_method(
    service: str, method: str, *, retry: Said | None = None, concurrency: int | None = None
) -> Callable[[Function], Function]:
    """Mark a method as the handler of the notifications that ``service.method`` publishes."""
    return _marking(messages.NOTIFICATION, service, method, retry, concurrency)


def _marking(
    kind: str, service: str, method: str, retry: Said | None, concurrency: int | None
) -> Callable[[Function], Function]:
    if not method:
        raise exceptions.WrongEntryPoint(f"{method!r} is no name of a method")
    entry_point = EntryPoint(service, method)
    faults = exceptions.Faults()
    policy = None
    with faults.collected(f"the decorator for the {kind} of {entry_point}: "):
        if concurrency is not None and not (
            isinstance(concurrency, int) and not isinstance(concurrency, bool) and concurrency >= 1
        ):
            raise exceptions.ConfigError(f"concurrency={concurrency!r} should be a number from 1")
        policy = None if retry is None else said(retry)
    faults.check()
    mark = Mark(kind, entry_point, policy, concurrency)

    def attach(function: Function) -> Function:
        if not inspect.isfunction(function):
            raise exceptions.InvalidHandler(
                f"the decorator for the {kind} of {mark.entry_point} stands over {function!r}: it "
                "belongs directly over a method"
            )
        setattr(function, _MARKS, (*getattr(function, _MARKS, ()), mark))
        return function

    return attach


def entry_points_of(cls: type) -> set[str]:
    """Return the entry points that the decorators in a controller class name."""
    return {
        str(mark.entry_point) for _, function in _marked(cls) for mark in getattr(function, _MARKS)
    }


def is_reserved(method: str) -> bool:
    """Tell whether requests to a method of that name are tavrida's own to answer."""
    return method.startswith("__") and method.endswith("__")


def place_of(thing: Any) -> str:
    """Return "module.Class.method (file:line)" of a class or function, for messages."""
    name = f"{thing.__module__}.{thing.__qualname__}"
    try:
        lines = inspect.getsourcelines(thing)
        return f"{name} ({inspect.getsourcefile(thing)}:{lines[1]})"
    except (OSError, TypeError):  # Made at a prompt or by exec: there is no file to name.
        return name


def service_of(controller: type) -> str:
    """Return the name of the service that a controller class serves.

    Raises:
        InvalidHandler: the class has no ``@rpc_service``.
    """
    name = getattr(controller, _SERVICE, None)
    if name is None:
        raise exceptions.InvalidHandler(
            f"{place_of(controller)} does not say which service it is: put "
            '@dispatcher.rpc_service("NAME") over the class'
        )
    return str(name)


@dataclass(frozen=True, slots=True, eq=False)
class Handler:
    """One method of a controller, ready to run.

    Raises:
        InvalidHandler: the names of its service and of what it handles are too long together.
    """

    mark: Mark
    service: str
    controller: Any
    function: Callable[..., Any]
    is_async: bool
    arguments: Arguments
    place: str
    answer: Answers = response_of
    #: In whose name the messages go out that it sends: the entry point that it handles.
    source: EntryPoint = field(init=False)

    def __post_init__(self) -> None:
        method = self.mark.entry_point.method
        try:
            source = EntryPoint(self.service, method)
        except exceptions.WrongEntryPoint:
            raise exceptions.InvalidHandler(
                f"{self.place} sends in the name of service {self.service!r} and the method "
                f"{method!r} that it handles, which together have more than {MAX_LENGTH} "
                "characters: shorten one of them"
            ) from None
        object.__setattr__(self, "source", source)


class Dispatcher:
    """The handlers of one controller object, found once, by what the decorators marked.

    Raises:
        InvalidHandler: a handler's signature or mark cannot work.
        HandlerConflict: two methods handle the same message; names both places.
        ConfigError: several of these.
    """

    def __init__(self, controller: Any) -> None:
        cls = type(controller)
        self.controller = controller
        self.service = service_of(cls)
        self.handlers: dict[Mark, Handler] = {}
        faults = exceptions.Faults()
        marked = _marked(cls)
        for name, function in marked:
            for mark in getattr(function, _MARKS):
                with faults.collected():
                    self._add(mark, getattr(controller, name), place_of(function))
        faults.check()
        if not marked:
            raise exceptions.InvalidHandler(
                f"{place_of(cls)} has no handlers: put @dispatcher.rpc_method(service="
                f'"{self.service}", method="NAME") over a method'
            )

    def subscriptions(self) -> list[Mark]:
        """Return the notifications that the controller handles."""
        return [mark for mark in self.handlers if mark.kind == messages.NOTIFICATION]

    def _add(self, mark: Mark, function: Callable[..., Any], place: str) -> None:
        other = self.handlers.get(mark)
        if other is not None:
            raise exceptions.HandlerConflict(
                f"{place} and {other.place} both handle the {mark.kind} of {mark.entry_point}: "
                "remove one of the decorators"
            )
        if mark.kind == messages.REQUEST and mark.entry_point.service != self.service:
            raise exceptions.InvalidHandler(
                f"{place} handles requests to {mark.entry_point}, but its class serves "
                f"{self.service!r}: requests can only be handled by their own service"
            )
        if mark.kind == messages.REQUEST and is_reserved(mark.entry_point.method):
            raise exceptions.InvalidHandler(
                f"{place} handles requests to {mark.entry_point}, but names with two underscores "
                "on both sides are reserved for tavrida's own methods: rename the method"
            )
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise exceptions.InvalidHandler(
                f"{place} has a yield, so calling it would only make a generator: return instead"
            )
        arguments = arguments_of(function, place)
        if mark.kind == messages.ERROR:
            if len(inspect.signature(function).parameters) != 2:
                raise exceptions.InvalidHandler(
                    f"{place} handles errors, so it takes (self, error, proxy) and nothing else"
                )
            arguments = _no_arguments
        self.handlers[mark] = Handler(
            mark,
            self.service,
            self.controller,
            function,
            inspect.iscoroutinefunction(function),
            arguments,
            place,
            # The results of other kinds go nowhere.
            answers_of(function, place) if mark.kind == messages.REQUEST else response_of,
        )


def _no_arguments(payload: dict[str, Any]) -> dict[str, Any]:
    return {}


def _marked(cls: type) -> list[tuple[str, Any]]:
    """The marked functions of a class and its bases, as Python would look them up."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        found.update(vars(base))
    # staticmethod and classmethod keep the marked function inside.
    functions = {name: getattr(value, "__func__", value) for name, value in found.items()}
    return [
        (name, function)
        for name, function in functions.items()
        if inspect.isfunction(function) and hasattr(function, _MARKS)
    ]
