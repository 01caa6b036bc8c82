# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The messages that handlers see."""

from __future__ import annotations

import datetime as dt
import time

import pytest

from tavrida import messages
from tavrida.entry_point import EntryPoint
from tavrida.exceptions import InvalidPayload, RemoteError, ServiceUnknown
from tavrida.messages import (
    INCOMING,
    KINDS,
    Error,
    IncomingError,
    IncomingRequest,
    IncomingResponse,
    Message,
    Notification,
    Request,
    Response,
)


@pytest.mark.parametrize("cls", [Request, Response, Error, Notification, *INCOMING.values()])
def test_every_message_can_be_made_empty_and_shares_nothing(cls: type[Message]) -> None:
    """Two messages have dicts of their own."""
    one, other = cls(), cls()
    one.payload["a"] = one.context["b"] = one.extra_headers["c"] = 1
    assert ({}, {}, {}) == (other.payload, other.context, other.extra_headers)
    assert one.message_type in KINDS


def test_each_kind_has_one_incoming_class() -> None:
    """The kind on the wire and the class agree."""
    assert list(KINDS) == list(INCOMING)
    assert all(kind == cls.message_type for kind, cls in INCOMING.items())


def test_headers_show_everything_but_the_body() -> None:
    """The documented dict of all of them."""
    message = Request(
        {"a": 1},
        correlation_id="c",
        request_id="r",
        message_id="m",
        source=EntryPoint("cron"),
        destination=EntryPoint("test_hello", "hello"),
        reply_to="q",
        extra_headers={"tenant": 5},
    )
    assert {
        "tenant": 5,
        "correlation_id": "c",
        "request_id": "r",
        "message_id": "m",
        "message_type": "request",
        "reply_to": "q",
        "source": "cron",
        "destination": "test_hello.hello",
    } == message.headers


def test_headers_of_an_empty_message_are_empty_strings() -> None:
    """Nobody has to test for None."""
    headers = Response().headers
    assert ("", "") == (headers["source"], headers["destination"])


def test_headers_are_a_new_dict_each_time() -> None:
    """Changing what is shown changes no message."""
    message = Request()
    message.headers["correlation_id"] = "forged"
    assert "" == message.headers["correlation_id"]


def test_headers_of_users_do_not_hide_the_built_in_ones() -> None:
    """A header from the wire cannot pretend to be another message."""
    message = IncomingRequest(correlation_id="c", extra_headers={"correlation_id": "forged"})
    assert "c" == message.headers["correlation_id"]


def test_values_of_the_payload_are_read_by_their_key() -> None:
    """``response["param"]`` is the short form."""
    response = IncomingResponse({"param": 123})
    assert 123 == response["param"]
    with pytest.raises(KeyError, match="parm"):
        response["parm"]


def test_keys_of_the_payload_are_tested_with_in() -> None:
    """Who may write response["x"] may ask whether it is there."""
    response = IncomingResponse({"param": 123})
    assert "param" in response
    assert "other" not in response


def test_time_left_counts_down_to_zero_and_not_below() -> None:
    """A deadline that passed leaves nothing; none at all leaves None."""
    assert Request().time_left is None
    assert 0 == Request(deadline=time.time() - 5).time_left
    left = Request(deadline=time.time() + 100).time_left
    assert left is not None
    assert 90 < left <= 100


def test_calls_expect_an_answer_and_casts_do_not() -> None:
    """The queue to answer to makes the difference."""
    assert IncomingRequest(reply_to="q").expects_answer
    assert not IncomingRequest().expects_answer


def test_requests_make_their_answers() -> None:
    """What a handler or a middleware may return."""
    request = IncomingRequest()
    assert {"a": 1, "self_": 2} == request.make_response(a=1, self_=2).payload
    assert {"class": "KeyError", "message": "'x'", "code": 1000} == request.make_error(
        KeyError("x")
    ).payload


def test_make_response_takes_a_value_named_self() -> None:
    """Payload keys are whatever a user sends."""
    payload = {"self": 1}
    response = IncomingRequest().make_response(**payload)
    assert {"self": 1} == response.payload


def test_error_has_the_code_of_its_exception() -> None:
    """The code on the wire tells the kind of error."""
    assert ServiceUnknown.code == Error.from_exception(ServiceUnknown("x")).payload["code"]
    assert 77 == Error.from_exception(RemoteError({"code": 77})).payload["code"]


@pytest.mark.parametrize("code", ["77", None, True, 7.0])
def test_error_with_a_code_that_is_no_number_says_1000(code: object) -> None:
    """Exceptions of other libraries have a code of any type, such as SystemExit's."""

    class ForeignError(Exception):
        def __init__(self) -> None:
            self.code = code

    assert 1000 == Error.from_exception(ForeignError()).payload["code"]


def test_error_has_the_details_of_its_exception_as_plain_json() -> None:
    """Any serializer can write them, and any reader read them."""
    error = InvalidPayload("x", {"path": "$.a", "when": dt.date(2030, 1, 2), "ids": {1: b"a"}})
    expected = {"path": "$.a", "when": "2030-01-02", "ids": {"1": "YQ=="}}
    assert expected == Error.from_exception(error).payload["details"]
    assert {"a": 1} == Error.from_exception(RemoteError({"details": {"a": 1}})).payload["details"]


@pytest.mark.parametrize(
    "details",
    [
        None,
        {},
        "text",
        [("a", 1)],
        {"thing": object()},
        {"huge": 2**70},
        {"long": "x" * messages.MAX_DETAILS},
        {"half": "\ud800"},
        property(lambda self: 1 / 0),
    ],
    ids=str,
)
def test_error_leaves_out_details_that_cannot_be_written(details: object) -> None:
    """The answer is sent without them; the exception's attributes are its own business."""
    cls: type[Exception] = type("ForeignError", (Exception,), {"details": details})
    expected = {"class": "ForeignError", "message": "x", "code": 1000}
    assert expected == Error.from_exception(cls("x")).payload


def test_error_carries_the_end_of_a_traceback_where_it_is_asked_for() -> None:
    """Beside the details of the exception."""
    with pytest.raises(InvalidPayload) as caught:
        raise InvalidPayload("x", {"path": "$.a"})
    details = Error.with_traceback(caught.value).payload["details"]
    assert "$.a" == details["path"]
    assert details["traceback"].startswith("Traceback (most recent call last)")
    assert details["traceback"].endswith("InvalidPayload: x\n")


def test_error_becomes_the_exception_that_a_call_would_raise() -> None:
    """For handlers of errors: the local class that they name, or a RemoteError."""
    error = IncomingError({"class": "KeyError", "message": "m", "code": 1})
    local = error.to_exception(KeyError)
    assert isinstance(local, KeyError)
    assert ("m",) == local.args
    assert isinstance(local.__cause__, RemoteError)
    assert isinstance(error.to_exception(KeyError=ValueError), ValueError)
    assert isinstance(error.to_exception(ValueError), RemoteError)


def test_error_of_an_exception_that_cannot_be_printed_is_still_an_answer() -> None:
    """Every request gets its answer, also when the exception itself is broken."""

    class UnprintableError(Exception):
        def __str__(self) -> str:
            raise ValueError("broken")

    assert "UnprintableError" == Error.from_exception(UnprintableError()).payload["class"]


def test_messages_take_no_misspelt_attribute() -> None:
    """A slip in a handler is an error there, and not a silent nothing."""
    with pytest.raises(AttributeError):
        IncomingRequest().reply_too = "q"  # type: ignore[attr-defined]


def test_messages_compare_by_identity() -> None:
    """Two messages with the same content are two messages."""
    assert Request() != Request()
    assert "request" == messages.REQUEST
