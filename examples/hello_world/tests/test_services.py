# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Both services together, on a broker in memory: the fixture tavrida_app runs them."""

import pytest
from hello_world.hello import HelloController
from hello_world.world import WorldController

from tavrida import exceptions
from tavrida.testing import faults


@pytest.fixture
def app(tavrida_app):
    return tavrida_app(HelloController, WorldController)


def test_hello_and_world_tell_their_story(app):
    """An answer to the caller, a response to Hello, and a notification that World hears."""
    assert app.client.test_hello.hello(param="Ann").call()["greeting"] == "Hello, Ann!"
    asked = app.wait_handled("test_world.world", kind="request")
    assert (asked.payload, asked.result) == ({"param": 12345}, {"param": "world response"})
    app.wait_handled("test_world.world", kind="response")
    app.wait_handled("test_hello.hello", kind="notification")


def test_the_error_of_world_comes_back_to_hello(app):
    """And the caller of Hello has its greeting all the same."""
    assert app.client.test_hello.hello(param="Ann", number=-1).call()["greeting"]
    app.wait_handled("test_world.world", kind="request", raises=ValueError)
    error = app.wait_handled("test_world.world", kind="error")
    assert error.payload["class"] == "ValueError"


def test_the_caller_of_world_is_told_why(app):
    """In the words of the exception."""
    with pytest.raises(exceptions.RemoteError, match="no place for -1"):
        app.client.test_world.world(param=-1).call()


def test_a_cast_that_fails_is_kept_with_its_reason(app):
    """Nobody waits for it; an operator finds it in the dead-letter queue."""
    app.client.test_world.world(param=-1).cast()
    assert app.wait_dead_letter("test_world.world").reason.startswith("ValueError")


def test_world_answers_again_when_its_acknowledgement_is_lost(app):
    """The connection goes just after the handler has ended: the broker delivers once more."""
    app.faults.add(faults.lose_connection("ack"))
    app.client.test_world.world(param=1).call()
    assert app.wait_handled("test_world.world", nth=2).message.redelivered
    app.wait_sent("test_world.world", kind="response", nth=2)
    app.wait_settled()


def test_the_story_survives_a_network_that_drops_and_repeats(tavrida_app):
    """Whatever happens on the way, each greeting is handled, and each answer arrives at Hello."""
    app = tavrida_app(
        HelloController,
        WorldController,
        faults=[
            faults.lose_connection(chance=0.1, times=5),
            faults.deliver_twice(chance=0.1, times=5),
        ],
        seed=1,
    )
    for number in range(10):
        app.client.test_hello.hello(param="Ann", number=number).cast()
    app.wait_settled()
    for number in range(10):
        app.wait_handled("test_world.world", kind="request", payload={"param": number})
    app.wait_handled("test_world.world", kind="response", nth=10)
