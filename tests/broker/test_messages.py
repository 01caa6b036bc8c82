# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Casts, continuations, transfers, notifications, middleware: on every transport."""

from __future__ import annotations

import asyncio
from queue import SimpleQueue
from typing import Any, ClassVar

import pytest

from tavrida import discovery, dispatcher, exceptions, messages
from tavrida.config import ConnectionConfig
from tavrida.messages import Message
from tavrida.middleware import Middleware
from tavrida.service import ServiceController
from tests.broker.conftest import EXCHANGE, Connect, Serve
from tests.waiting import DEADLINE, eventually

Seen = SimpleQueue[Any]


@dispatcher.rpc_service("world")
class World(ServiceController):
    """What the others talk to."""

    seen: ClassVar[Seen]

    @dispatcher.rpc_method(service="world", method="world")
    def world(self, request: Any, proxy: Any, param: Any) -> dict[str, Any]:
        self.seen.put(request)
        if param == "fail":
            raise ValueError("told to")
        return {"answer": f"world {param}"}

    @dispatcher.subscription_method(service="hello", method="hello")
    def heard(self, notification: Any, proxy: Any, param: Any) -> None:
        self.seen.put(notification)


@dispatcher.rpc_service("hello")
class Hello(ServiceController):
    """Asks, in every way there is."""

    seen: ClassVar[Seen]

    @dispatcher.rpc_method(service="hello", method="ask")
    def ask(self, request: Any, proxy: Any, param: Any) -> None:
        proxy.add_headers({"trace": "t1"})
        proxy.world.world(param=param).call(context={"extra": 1})

    @dispatcher.rpc_response_method(service="world", method="world")
    def answered(self, response: Any, proxy: Any, answer: str) -> None:
        self.seen.put(response)

    @dispatcher.rpc_error_method(service="world", method="world")
    def failed(self, error: Any, proxy: Any) -> None:
        self.seen.put(error)

    @dispatcher.rpc_error_method(service="nobody", method="x")
    def nobody(self, error: Any, proxy: Any) -> None:
        self.seen.put(error)

    @dispatcher.rpc_method(service="hello", method="ask_nobody")
    def ask_nobody(self, request: Any, proxy: Any) -> None:
        proxy.nobody.x(a=1).call()

    @dispatcher.rpc_method(service="hello", method="ask_deaf")
    def ask_deaf(self, request: Any, proxy: Any) -> None:
        proxy.world.other().call()

    @dispatcher.rpc_method(service="hello", method="wait")
    def wait(self, request: Any, proxy: Any, param: Any) -> dict[str, Any]:
        return {"got": proxy.world.world(param=param).wait(timeout=DEADLINE)["answer"]}

    @dispatcher.rpc_method(service="hello", method="await_")
    async def await_(self, request: Any, proxy: Any, param: Any) -> dict[str, Any]:
        return {"got": (await proxy.world.world(param=param))["answer"]}

    @dispatcher.rpc_method(service="hello", method="block")
    async def block(self, request: Any, proxy: Any) -> dict[str, Any]:
        return {"got": proxy.world.world(param=1).wait()["answer"]}

    @dispatcher.rpc_method(service="hello", method="fan_out")
    def fan_out(self, request: Any, proxy: Any, count: int) -> dict[str, Any]:
        futures = [proxy.world.world(param=n).future() for n in range(count)]
        return {"got": [future.result(DEADLINE)["answer"] for future in futures]}

    @dispatcher.rpc_method(service="hello", method="transfer")
    def transfer(self, request: Any, proxy: Any, param: Any) -> None:
        proxy.world.world(param=f"{param} transferred").transfer(request)

    @dispatcher.rpc_method(service="hello", method="hello")
    def hello(self, request: Any, proxy: Any, param: Any) -> None:
        proxy.publish(param=param)

    @dispatcher.rpc_method(service="hello", method="loud")
    def loud(self, request: Any, proxy: Any, param: Any) -> None:
        proxy.publish_as("hello", param=param)

    @dispatcher.rpc_method(service="hello", method="cast_nobody")
    def cast_nobody(self, request: Any, proxy: Any) -> dict[str, Any]:
        proxy.nobody.x(a=1).cast()
        return {"a": "lie"}


@pytest.fixture(autouse=True)
def known() -> discovery.LocalDiscovery:
    """Fresh records, and a discovery that both controllers share."""
    found = discovery.LocalDiscovery()
    for service in ("hello", "world", "nobody"):
        found.register_remote_service(service, EXCHANGE)
    found.register_local_publisher("hello", "news")
    found.register_remote_publisher("hello", "news")
    for cls in (Hello, World):
        cls.seen = SimpleQueue()
        cls.set_discovery(found)
    return found


def test_an_answer_comes_to_the_response_handler_with_the_context_of_the_chain(
    serve: Serve, connect: Connect
) -> None:
    """Identifiers and context are carried along, user headers go with the message they are on."""
    serve(Hello, World)
    connect("hello").hello.ask(param="a").cast(correlation_id="chain", context={"from": "outside"})
    request, response = World.seen.get(timeout=DEADLINE), Hello.seen.get(timeout=DEADLINE)
    assert "chain" == request.correlation_id == response.correlation_id
    assert request.request_id == response.request_id
    assert "t1" == request.headers["trace"]
    assert {"from": "outside", "extra": 1, "param": "a"} == request.context
    assert {"answer": "world a"} == response.payload
    assert request.context | {"answer": "world a"} == response.context
    assert ("world.world", "hello.ask") == (str(response.source), str(response.destination))


def test_an_error_comes_to_the_error_handler(serve: Serve, connect: Connect) -> None:
    """With class, message and code of the remote exception."""
    serve(Hello, World)
    connect("hello").hello.ask(param="fail").cast()
    error = Hello.seen.get(timeout=DEADLINE)
    assert isinstance(error, messages.IncomingError)
    assert {"class": "ValueError", "message": "told to", "code": 1000} == error.payload


def test_the_answer_is_handled_by_another_process_of_the_service_if_the_asking_one_is_gone(
    serve: Serve, connect: Connect
) -> None:
    """The answer waits in the service's own durable queue."""
    asking = serve(Hello)
    # World has a queue of its own, and is not running yet: the request waits there.
    serve(World, queue="world_queue").stop()
    connect("hello").hello.ask(param="a").cast()
    asking.stop()
    serve(World, queue="world_queue")
    World.seen.get(timeout=DEADLINE)
    serve(Hello)
    assert {"answer": "world a"} == Hello.seen.get(timeout=DEADLINE).payload


def test_the_error_handler_learns_that_nobody_runs_the_service(
    serve: Serve, connect: Connect
) -> None:
    """A continuation ends too when its request cannot be delivered."""
    serve(Hello)
    assert {} == connect("hello").hello.ask_nobody().call(timeout=DEADLINE).payload
    error = Hello.seen.get(timeout=DEADLINE)
    assert ("ServiceUnavailable", 1034) == (error.payload["class"], error.payload["code"])
    assert "nobody.x" == str(error.source)


def test_calling_without_a_handler_for_the_answer_is_an_error_at_once(
    serve: Serve, connect: Connect
) -> None:
    """It names the decorator to add; nothing is sent."""
    serve(Hello, World)
    with pytest.raises(exceptions.RemoteError, match=r"HandlerNotFound.*rpc_response_method"):
        connect("hello").hello.ask_deaf().call(timeout=DEADLINE)


@pytest.mark.parametrize("method", ["wait", "await_"])
def test_a_handler_waits_for_an_answer(serve: Serve, connect: Connect, method: str) -> None:
    """.wait() in a plain one, await in an async one; a remote error is raised there."""
    serve(Hello, World)
    hello = connect("hello").hello
    assert {"got": "world 1"} == hello[method](param=1).call(timeout=DEADLINE).payload
    with pytest.raises(exceptions.RemoteError, match="RemoteError: ValueError: told to"):
        hello[method](param="fail").call(timeout=DEADLINE)


def test_wait_in_an_async_handler_is_an_error_that_says_what_to_use(
    serve: Serve, connect: Connect
) -> None:
    """It would block the event loop and everything on it."""
    serve(Hello, World)
    with pytest.raises(exceptions.RemoteError, match="write 'await proxy"):
        connect("hello").hello.block().call(timeout=DEADLINE)


def test_one_handler_asks_many_at_a_time(serve: Serve, connect: Connect) -> None:
    """Each future gets its own answer, though all belong to one chain."""
    serve(Hello, World)
    got = connect("hello").hello.fan_out(count=50).call(timeout=DEADLINE)["got"]
    assert [f"world {n}" for n in range(50)] == got


def test_a_transferred_request_is_answered_by_whom_it_was_handed_to(
    serve: Serve, connect: Connect
) -> None:
    """Exactly one answer, to the original caller; chain and pair keep their identifiers."""
    serve(Hello, World)
    answer = (
        connect("hello").hello.transfer(param="x").call(timeout=DEADLINE, correlation_id="chain")
    )
    assert {"answer": "world x transferred"} == answer.payload
    request = World.seen.get(timeout=DEADLINE)
    assert "chain" == answer.correlation_id == request.correlation_id
    assert answer.request_id == request.request_id


@pytest.mark.parametrize("method", ["hello", "loud"])
def test_a_notification_is_heard_by_who_subscribed(
    serve: Serve, connect: Connect, method: str
) -> None:
    """Its topic is the entry point that published, or the one that publish_as names."""
    serve(Hello)
    serve(World, queue="world_queue")
    connect("hello").hello[method](param="news!").call(timeout=DEADLINE)
    notification = World.seen.get(timeout=DEADLINE)
    assert isinstance(notification, messages.IncomingNotification)
    assert ({"param": "news!"}, "hello.hello") == (
        notification.payload,
        str(notification.source),
    )


def test_a_client_publishes_whether_somebody_listens_or_not(
    serve: Serve, connect: Connect, known: discovery.LocalDiscovery
) -> None:
    """The exchange is declared by whoever comes first."""
    client = connect(source="hello.hello", discovery=known)
    client.publish(param="unheard")
    serve(World)
    client.publish(param="heard")
    assert {"param": "heard"} == World.seen.get(timeout=DEADLINE).payload


def test_a_client_whose_source_is_no_topic_cannot_publish(connect: Connect) -> None:
    """The error says what a source has to look like."""
    with pytest.raises(exceptions.WrongEntryPoint, match=r"'test_hello\.hello'"):
        connect(source="client_app").publish(param=1)


def test_what_a_handler_sent_to_nobody_fails_its_request(serve: Serve, connect: Connect) -> None:
    """The answer waits for the confirms of what the handler sent, and tells the truth."""
    serve(Hello)
    with pytest.raises(exceptions.RemoteError, match=r"ServiceUnavailable.*nobody\.x"):
        connect("hello").hello.cast_nobody().call(timeout=DEADLINE)


def test_a_controller_without_discovery_gets_an_error_only_when_it_needs_one(
    serve: Serve, connect: Connect
) -> None:
    """It serves; the error names the service and the remedy."""

    @dispatcher.rpc_service("lonely")
    class Lonely(ServiceController):
        @dispatcher.rpc_method(service="lonely", method="ok")
        def ok(self, request: Any, proxy: Any) -> None: ...

        @dispatcher.rpc_method(service="lonely", method="asks")
        def asks(self, request: Any, proxy: Any) -> None:
            proxy.stranger.x().cast()

        @dispatcher.rpc_method(service="lonely", method="publishes")
        def publishes(self, request: Any, proxy: Any) -> None:
            proxy.publish(a=1)

        @dispatcher.rpc_method(service="lonely", method="itself")
        def itself(self, request: Any, proxy: Any) -> dict[str, Any]:
            return {"ok": proxy.lonely.ok().wait(timeout=DEADLINE).payload}

    serve(Lonely)
    lonely = connect("lonely").lonely
    assert {} == lonely.ok().call(timeout=DEADLINE).payload
    with pytest.raises(exceptions.RemoteError, match=r"'stranger'.*register_remote_service"):
        lonely.asks().call(timeout=DEADLINE)
    with pytest.raises(exceptions.RemoteError, match=r"'lonely'.*register_local_publisher"):
        lonely.publishes().call(timeout=DEADLINE)
    # A server knows where its own services are.
    assert {"ok": {}} == lonely.itself().call(timeout=DEADLINE).payload


def test_middleware_of_a_controller_sees_both_ways(serve: Serve, connect: Connect) -> None:
    """Incoming ones may change a message or answer it; outgoing ones see answers; hooks pair."""
    log: list[str] = []

    class Guard(Middleware):
        def process(self, message: Message) -> Message:
            if message.payload.get("token") != "open":
                return messages.Error.from_exception(PermissionError("no token"))
            message.payload["user"] = "ann"
            return message

        def before_handle(self, message: Message) -> None:
            log.append("before handle")

        def after_handle(self, message: Message, error: BaseException | None) -> None:
            log.append(f"after handle {error!r}")

    class Stamp(Middleware):
        def process(self, message: Message) -> Message:
            message.payload["stamped"] = True
            return message

        def before_publish(self, message: Message) -> None:
            log.append(f"before {message.message_type}")

        def after_publish(self, message: Message, error: BaseException | None) -> None:
            log.append(f"after {message.message_type} {error!r}")

    @dispatcher.rpc_service("guarded")
    class Guarded(ServiceController):
        def __init__(self) -> None:
            super().__init__()
            self.add_incoming_middleware(Guard())
            self.add_outgoing_middleware(Stamp())

        @dispatcher.rpc_method(service="guarded", method="who")
        def who(self, request: Any, proxy: Any, user: str) -> dict[str, Any]:
            return {"user": user}

    serve(Guarded)
    guarded = connect("guarded").guarded
    assert {"user": "ann", "stamped": True} == guarded.who(token="open").call().payload
    eventually(lambda: len(log) == 4)
    assert ["before handle", "after handle None", "before response", "after response None"] == log
    with pytest.raises(exceptions.RemoteError, match="PermissionError: no token"):
        guarded.who().call(timeout=DEADLINE)


def test_an_async_handler_whose_own_task_was_cancelled_has_failed(
    serve: Serve, connect: Connect
) -> None:
    """CancelledError is one more exception, unless the server itself goes down."""

    @dispatcher.rpc_service("tasks")
    class Tasks(ServiceController):
        @dispatcher.rpc_method(service="tasks", method="cancelled")
        async def cancelled(self, request: Any, proxy: Any) -> None:
            task = asyncio.get_running_loop().create_task(asyncio.sleep(60))
            task.cancel()
            await task

    serve(Tasks, concurrency=1)
    for _ in range(2):
        with pytest.raises(exceptions.RemoteError, match="CancelledError"):
            connect("tasks").tasks.cancelled().call(timeout=DEADLINE)


def test_a_pipeline_confirms_many_casts_at_once(serve: Serve, connect: Connect, url: str) -> None:
    """Leaving the block waits; memory is bounded by max_unconfirmed, which pushes back."""
    serve(World, concurrency=100)
    narrow = ConnectionConfig(url=(url,), max_unconfirmed=10)
    client = connect("world", config=narrow)
    with client.pipeline():
        for n in range(500):
            client.world.world(param=n).cast()
    assert set(range(500)) == {
        World.seen.get(timeout=DEADLINE).payload["param"] for _ in range(500)
    }


def test_a_pipeline_tells_which_messages_failed(serve: Serve, connect: Connect) -> None:
    """One error with every failure and its reason; the others were sent."""
    serve(World)
    client = connect("world", "nobody")
    with pytest.raises(exceptions.PipelineFailed) as caught, client.pipeline():  # noqa: PT012
        client.world.world(param=1).cast()
        client.nobody.x(n=1).cast()
        client.world.world(param=object()).cast()
        client.nobody.x(n=2).cast()
    kinds = [type(error).__name__ for _, error in caught.value.failures]
    assert ["MessageError", "ServiceUnavailable", "ServiceUnavailable"] == sorted(kinds)
    assert {"param": 1} == World.seen.get(timeout=DEADLINE).payload


def test_services_of_one_server_may_share_a_queue_and_hear_each_others_answers_apart(
    serve: Serve, connect: Connect
) -> None:
    """Two controllers ask the same third one; each gets its own answer."""
    seen: dict[str, Seen] = {"a": SimpleQueue(), "b": SimpleQueue()}

    def asker(name: str) -> type[ServiceController]:
        @dispatcher.rpc_service(name)
        class Asker(ServiceController):
            @dispatcher.rpc_method(service=name, method="ask")
            def ask(self, request: Any, proxy: Any) -> None:
                proxy.world.world(param=name).call()

            @dispatcher.rpc_response_method(service="world", method="world")
            def answered(self, response: Any, proxy: Any, answer: str) -> None:
                seen[name].put(answer)

        return Asker

    serve(asker("a"), asker("b"), World)
    client = connect("a", "b")
    client.a.ask().cast()
    client.b.ask().cast()
    assert "world a" == seen["a"].get(timeout=DEADLINE)
    assert "world b" == seen["b"].get(timeout=DEADLINE)
