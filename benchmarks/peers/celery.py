# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Celery: calls are tasks with the result backend ``rpc://``, events tasks without a result.

The worker has the pool ``solo``, the fastest for tasks that do nothing; no gossip, mingle,
heartbeat or events of its own. Tasks of events are acknowledged late, and their publications are
confirmed one at a time in each thread.
"""

from celery import Celery, signals
from kombu import Exchange, Queue

from benchmarks.peers._roles import (
    PREFETCH,
    ROUTING_KEY,
    TIMEOUT,
    Seen,
    in_window,
    one_by_one,
    play,
    publish_in_threads,
    ready,
)

PUBLISHERS = 8


def app_of(task, queue, *, is_durable):
    app = Celery("bench", broker=task.url, backend="rpc://", set_as_current=True)
    app.conf.update(
        task_serializer="json",
        result_serializer="json",
        accept_content=["json"],
        task_queues=[queue],
        task_default_queue=queue.name,
        task_default_exchange=queue.exchange.name,
        task_default_exchange_type=queue.exchange.type,
        task_default_routing_key=ROUTING_KEY if is_durable else queue.routing_key,
        task_default_delivery_mode=2 if is_durable else 1,
        result_persistent=False,
        worker_prefetch_multiplier=PREFETCH,
        worker_send_task_events=False,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        task_acks_late=is_durable,
        task_ignore_result=is_durable,
        broker_connection_retry_on_startup=True,
        broker_transport_options={"confirm_publish": True} if is_durable else {},
    )
    return app


def calls_app_of(task):
    exchange = Exchange(task.exchange, "direct", durable=False)
    app = app_of(task, Queue(task.name, exchange, task.name, durable=False), is_durable=False)

    @app.task(name="echo")
    def echo(param):
        return {"param": param}

    return app, echo


def events_app_of(task, handle):
    exchange = Exchange(task.exchange, "topic", durable=True)
    app = app_of(task, Queue(task.queue, exchange, "order.*", durable=True), is_durable=True)

    @app.task(name="on_event", ignore_result=True, acks_late=True)
    def on_event(event):
        handle(event)

    return app, on_event


def run(app):
    signals.worker_ready.connect(lambda **_: ready(), weak=False)
    options = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    app.worker_main(["worker", "-P", "solo", "-c", "1", "-l", "ERROR", *options])


def call(task):
    _, echo = calls_app_of(task)
    one_by_one(task, lambda param: echo.delay(param=param).get(timeout=TIMEOUT))


def calls(task):
    _, echo = calls_app_of(task)
    in_window(
        task,
        lambda param: echo.delay(param=param),
        lambda result: result.get(timeout=TIMEOUT),
    )


def publish(task):
    _, on_event = events_app_of(task, None)
    publish_in_threads(task, PUBLISHERS, on_event.delay)


if __name__ == "__main__":
    play(
        serve=lambda task: run(calls_app_of(task)[0]),
        call=call,
        calls=calls,
        consume=lambda task: run(events_app_of(task, Seen(task).handle)[0]),
        publish=publish,
    )
