# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""oslo.messaging with its driver for RabbitMQ, in threads.

Calls by ``get_rpc_server`` and ``get_rpc_client``; events by a Notifier and a notification listener
with durable queues, acknowledged after the endpoint. The driver waits for each confirm.
"""

import logging

from benchmarks.peers._roles import (
    PREFETCH,
    TIMEOUT,
    Seen,
    clean_with_pika,
    in_threads,
    one_by_one,
    play,
    publish_in_threads,
    ready,
)

PUBLISHERS = 8


def modules():
    """Import in the order that keeps oslo.service from loading eventlet."""
    from oslo_service import backend

    backend.init_backend(backend.BackendType.THREADING)
    import oslo_messaging
    from oslo_config import cfg

    # Its options of tracing are registered on the global configuration only.
    cfg.CONF([], project="bench", default_config_files=[])
    # It warns whenever a thread waits for a connection.
    logging.disable(logging.WARNING)
    return oslo_messaging, cfg.CONF


def transport_of(task, messaging, conf, *, is_notification=False):
    messaging.set_transport_defaults(control_exchange=task.exchange)
    options = {
        "rabbit_qos_prefetch_count": PREFETCH,
        "rabbit_transient_queues_ttl": 60,  # else its queues stay for half an hour
    }
    if is_notification:
        options["amqp_durable_queues"] = "true"
    query = "&".join(f"{name}={value}" for name, value in options.items())
    url = f"{task.url.replace('amqp://', 'rabbit://', 1).replace('%2F', '')}?{query}"
    make = messaging.get_notification_transport if is_notification else messaging.get_rpc_transport
    return make(conf, url=url)


def serve(task):
    messaging, conf = modules()

    class Echo:
        def echo(self, context, param):
            return {"param": param}

    server = messaging.get_rpc_server(
        transport_of(task, messaging, conf),
        messaging.Target(topic=task.name, server="one"),
        [Echo()],
        executor="threading",
        access_policy=messaging.DefaultRPCAccessPolicy,
    )
    server.start()
    ready()
    server.wait()


def call_of(task):
    messaging, conf = modules()
    client = messaging.get_rpc_client(
        transport_of(task, messaging, conf), messaging.Target(topic=task.name), timeout=TIMEOUT
    )
    return lambda param: client.call({}, "echo", param=param)


def consume(task):
    messaging, conf = modules()
    seen = Seen(task)

    class Ledger:
        def info(self, context, publisher_id, event_type, payload, metadata):
            seen.handle(payload)

    listener = messaging.get_notification_listener(
        transport_of(task, messaging, conf, is_notification=True),
        [messaging.Target(topic=task.queue)],
        [Ledger()],
        executor="threading",
        allow_requeue=True,
    )
    listener.start()
    ready()
    listener.wait()


def publish(task):
    messaging, conf = modules()
    notifier = messaging.Notifier(
        transport_of(task, messaging, conf, is_notification=True),
        driver="messagingv2",
        topics=[task.queue],
        publisher_id="bench",
    )
    publish_in_threads(task, PUBLISHERS, lambda event: notifier.info({}, "order.created", event))


def clean(task):
    queues = [task.name, f"{task.name}.one", f"{task.queue}.info"]
    return clean_with_pika(task, queues, [task.exchange, f"{task.name}_fanout"])


if __name__ == "__main__":
    play(
        clean,
        serve=serve,
        call=lambda task: one_by_one(task, call_of(task)),
        calls=lambda task: in_threads(task, call_of(task)),
        consume=consume,
        publish=publish,
    )
