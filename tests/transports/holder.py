# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: T201 - its output is what the tests read
"""A process to kill: python holder.py URL WHAT ...

hold QUEUE PREFETCH   takes deliveries and settles none of them
answer QUEUE          sends each body back to where reply_to says, then acknowledges
publish QUEUE         publishes 0, 1, 2, ... and says which ones are confirmed
reply                 has a reply queue
fork QUEUE            publishes as the parent, then as a forked child, then as the parent again
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable

from tavrida.plugins.transports import Delivery, Publication
from tests.transports.bench import Bench, Connection, publication

#: Messages of a publisher that await their confirm.
WINDOW = 100


def hold(bench: Bench, queue: str, prefetch: str) -> None:
    def take(delivery: Delivery) -> None:
        print(f"holds {delivery.body.decode()} redelivered={delivery.redelivered}")

    bench.connect().consume(queue, int(prefetch), take)
    print("ready")


def answer(bench: Bench, queue: str) -> None:
    connection = bench.connect()

    def take(delivery: Delivery) -> None:
        back = publication("", delivery.properties.reply_to or "", delivery.body)
        connection.transport.publish(back, lambda error: delivery.ack())

    connection.consume(queue, 10, take)
    print("ready")


def publish(bench: Bench, queue: str) -> None:
    connection = bench.connect()
    room = threading.Semaphore(WINDOW)

    def told(number: int) -> Callable[[Exception | None], None]:
        def done(error: Exception | None) -> None:
            print(f"confirmed {number}" if error is None else f"failed {error}")
            room.release()

        return done

    for number in range(10_000_000):
        room.acquire()
        one: Publication = publication("", queue, b"%d" % number)
        bench.loop.submit(connection.transport.publish, one, told(number))


def reply(bench: Bench) -> None:
    name, _ = bench.connect().reply_queue()
    print(f"reply queue {name}")


def fork(bench: Bench, queue: str) -> None:
    def publish_over(connection: Connection, who: bytes) -> None:
        connection.put(queue, who)

    connection = bench.connect()
    publish_over(connection, b"parent")
    child = os.fork()
    if child == 0:
        with Bench(bench.url) as own:
            publish_over(own.connect(), b"child")
        os._exit(0)
    print(f"the child ended with {os.waitpid(child, 0)[1]}")
    publish_over(connection, b"parent again")
    connection.close()
    print("the parent is done")


if __name__ == "__main__":
    url, what, *arguments = sys.argv[1:]
    program: dict[str, Callable[..., None]]
    program = {"hold": hold, "answer": answer, "publish": publish, "reply": reply, "fork": fork}
    program[what](Bench(url), *arguments)
    threading.Event().wait()
