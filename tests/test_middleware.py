# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""What sees every message on its way."""

from __future__ import annotations

from typing import Any

import pytest

from tavrida import middleware
from tavrida.exceptions import UnknownResult
from tavrida.messages import (
    Error,
    IncomingError,
    IncomingMessage,
    IncomingNotification,
    IncomingRequest,
    IncomingResponse,
    Message,
    Notification,
    Request,
    Response,
)
from tavrida.middleware import Middleware

INCOMING = [IncomingRequest, IncomingResponse, IncomingError, IncomingNotification]
OUTGOING = [Request, Response, Error, Notification]


class Adds(Middleware):
    """Adds its name to a list in the payload."""

    def __init__(self, name: str) -> None:
        self.name = name

    def process(self, message: Message) -> Message:
        message.payload.setdefault("seen", []).append(self.name)
        return message


class Returns(Middleware):
    """Returns the same thing always."""

    def __init__(self, result: Any) -> None:
        self.result = result

    def process(self, message: Message) -> Message:
        return self.result  # type: ignore[no-any-return]


def test_middleware_that_overrides_nothing_changes_nothing() -> None:
    """Every method may be left as it is."""
    message, each = IncomingRequest({"a": 1}), Middleware()
    each.before_handle(message)
    each.after_handle(message, None)
    each.before_publish(message)
    each.after_publish(message, ValueError())
    assert message is middleware.incoming([each], message)
    assert {"a": 1} == message.payload


@pytest.mark.parametrize("cls", [*INCOMING, *OUTGOING])
def test_empty_chain_passes_the_message_itself(cls: type[Message]) -> None:
    """Nothing to do, nothing done."""
    message = cls()
    way = middleware.incoming if isinstance(message, IncomingMessage) else middleware.outgoing
    assert message is way([], message)


@pytest.mark.parametrize("cls", [*INCOMING, *OUTGOING])
def test_chain_runs_in_its_order(cls: type[Message]) -> None:
    """In both directions."""
    message = cls()
    way = middleware.incoming if isinstance(message, IncomingMessage) else middleware.outgoing
    assert ["a", "b"] == way([Adds("a"), Adds("b")], message).payload["seen"]


@pytest.mark.parametrize("answer", [Response({"a": 1}), Error({"class": "X"})])
def test_answer_of_a_middleware_ends_the_chain(answer: Message) -> None:
    """Neither later middleware nor the handler sees the request."""
    message = IncomingRequest()
    assert answer is middleware.incoming([Adds("a"), Returns(answer), Adds("b")], message)
    assert ["a"] == message.payload["seen"]
    assert "seen" not in answer.payload


@pytest.mark.parametrize("cls", INCOMING)
def test_a_message_of_any_kind_may_be_skipped(cls: type[Message]) -> None:
    """Neither later middleware nor the handler sees it."""
    message, skipped = cls(), middleware.Skipped()
    assert skipped is middleware.incoming([Adds("a"), Returns(skipped), Adds("b")], message)
    assert ["a"] == message.payload["seen"]


@pytest.mark.parametrize("cls", INCOMING)
def test_another_message_of_the_same_kind_goes_on(cls: type[Message]) -> None:
    """A middleware may make a new one."""
    replacement = cls({"new": True})
    assert replacement is middleware.incoming([Returns(replacement), Adds("b")], cls())
    assert ["b"] == replacement.payload["seen"]


@pytest.mark.parametrize("cls", INCOMING)
@pytest.mark.parametrize("result", [None, {}, "x", Request(), Notification(), IncomingRequest])
def test_other_results_on_the_way_in_are_refused(cls: type[Message], result: Any) -> None:
    """The sentence names the middleware, what it returned and what was expected."""
    with pytest.raises(
        UnknownResult,
        match=rf"^Returns\.process\(\) returned a {type(result).__name__}, .*{cls.__name__}",
    ):
        middleware.incoming([Returns(result)], cls())


@pytest.mark.parametrize("cls", [IncomingResponse, IncomingError, IncomingNotification])
@pytest.mark.parametrize("result", [Response(), Error()])
def test_only_requests_can_be_answered(cls: type[Message], result: Message) -> None:
    """There is nobody to answer to; nor does the sentence suggest it."""
    with pytest.raises(UnknownResult) as caught:
        middleware.incoming([Returns(result)], cls())
    assert "Response or Error" not in str(caught.value)


def test_message_that_changes_its_kind_on_the_way_in_is_refused() -> None:
    """A request stays one."""
    with pytest.raises(UnknownResult, match="returned a IncomingNotification"):
        middleware.incoming([Returns(IncomingNotification())], IncomingRequest())


@pytest.mark.parametrize(
    ("sent", "result"), [(Response(), Error()), (Error(), Response()), (Request(), Request())]
)
def test_answers_may_turn_into_errors_and_back(sent: Message, result: Message) -> None:
    """Nothing else changes its kind."""
    assert result is middleware.outgoing([Returns(result)], sent)


@pytest.mark.parametrize("cls", OUTGOING)
@pytest.mark.parametrize("result", [None, {}, "x", IncomingRequest(), IncomingResponse()])
def test_other_results_on_the_way_out_are_refused(cls: type[Message], result: Any) -> None:
    """Nobody would know what to send."""
    with pytest.raises(UnknownResult, match=rf"returned a {type(result).__name__}"):
        middleware.outgoing([Returns(result)], cls())


@pytest.mark.parametrize(
    ("sent", "result"),
    [(Request(), Notification()), (Notification(), Error()), (Request(), Error())],
)
def test_message_that_changes_its_kind_on_the_way_out_is_refused(
    sent: Message, result: Message
) -> None:
    """Its address was chosen already."""
    with pytest.raises(UnknownResult):
        middleware.outgoing([Returns(result)], sent)


def test_exception_of_a_middleware_is_that_of_the_chain() -> None:
    """It fails the message like one of the handler's own."""

    class Fails(Middleware):
        def process(self, message: Message) -> Message:
            raise PermissionError("no")

    for way, message in (
        (middleware.incoming, IncomingRequest()),
        (middleware.outgoing, Request()),
    ):
        with pytest.raises(PermissionError):
            way([Fails(), Adds("b")], message)
        assert "seen" not in message.payload
