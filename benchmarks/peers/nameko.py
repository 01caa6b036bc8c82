# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""nameko: an ``@rpc`` service, ClusterRpcProxy, ``@event_handler``, ``event_dispatcher``.

Confirms are on, which is its default and how it notices that nobody serves; each publication waits
for its own. ``max_workers`` is the prefetch, too. Several calls are in flight from a service: 64
greenlets share its RpcProxy, which is faster than ``call_async`` of the ClusterRpcProxy.
"""

from benchmarks.peers._roles import (
    FIRST,
    PREFETCH,
    ROUTING_KEY,
    TIMEOUT,
    WARM_UP,
    WINDOW,
    Seen,
    Tally,
    clean_with_pika,
    one_by_one,
    play,
    ready,
)

#: kombu's pool of producers, which nameko publishes from, holds as many.
PUBLISHERS = 10


def name_of(task):
    """Return a name that nameko takes for that of a service."""
    return task.name.replace(".", "-")


def config_of(task, workers):
    return {
        "AMQP_URI": task.url,
        "rpc_exchange": f"{name_of(task)}-rpc",
        "max_workers": workers,
        "serializer": "json",
    }


def run(service, task, workers):
    from nameko.runners import ServiceRunner

    runner = ServiceRunner(config_of(task, workers))
    runner.add_service(service)
    runner.start()
    ready()
    runner.wait()


def serve(task):
    import eventlet

    eventlet.monkey_patch()
    from nameko.rpc import rpc

    class Echo:
        name = name_of(task)

        @rpc
        def echo(self, param):
            return {"param": param}

    run(Echo, task, WINDOW)


def call(task):
    from nameko.standalone.rpc import ClusterRpcProxy

    with ClusterRpcProxy(config_of(task, 1)) as cluster:
        echo = cluster[name_of(task)].echo
        one_by_one(task, lambda param: echo(param=param))


def calls(task):
    import eventlet

    eventlet.monkey_patch()
    from nameko.containers import ServiceContainer
    from nameko.rpc import RpcProxy
    from nameko.testing.services import dummy, entrypoint_hook

    tally = Tally(task)

    class Caller:
        name = f"{name_of(task)}-caller"
        peer = RpcProxy(name_of(task))

        @dummy
        def make(self, count):
            pool = eventlet.GreenPool(WINDOW)

            def one(number):
                tally.check(number, self.peer.echo(param=task.param(number)))

            for number in range(count):
                pool.spawn_n(one, number)
            pool.waitall()

    container = ServiceContainer(Caller, config=config_of(task, 10))
    container.start()
    with entrypoint_hook(container, "make", timeout=2 * TIMEOUT) as make:
        make(WARM_UP)
        tally.begin()
        make(task.count)
        tally.end()
    container.stop()


def consume(task):
    import eventlet

    eventlet.monkey_patch()
    from nameko.events import event_handler

    seen = Seen(task)

    class Ledger:
        name = f"{name_of(task)}-ledger"

        @event_handler(name_of(task), ROUTING_KEY)
        def on_event(self, event):
            seen.handle(event)

    run(Ledger, task, PREFETCH)


def publish(task):
    import eventlet

    eventlet.monkey_patch()
    from nameko.standalone.events import event_dispatcher

    dispatch = event_dispatcher(config_of(task, 1))
    tally = Tally(task)
    dispatch(name_of(task), ROUTING_KEY, task.event(FIRST))
    tally.begin()
    pool = eventlet.GreenPool(PUBLISHERS)
    for number in range(task.count):
        pool.spawn_n(dispatch, name_of(task), ROUTING_KEY, task.event(number))
    pool.waitall()
    tally.end()


def clean(task):
    name = name_of(task)
    queues = [f"rpc-{name}", f"evt-{name}-{ROUTING_KEY}--{name}-ledger.on_event"]
    return clean_with_pika(task, queues, [f"{name}-rpc", f"{name}.events"])


if __name__ == "__main__":
    play(clean, serve=serve, call=call, calls=calls, consume=consume, publish=publish)
