# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""One process of the stress test: publishes or consumes, until it is done, told to end, or killed.

Started by ``tests.transports.stress``, with its Job as the only argument. It ends by itself when
its standard input is closed, so that none outlives its supervisor.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from tavrida import dispatcher, envelope, plugins
from tavrida.config import ConnectionConfig
from tavrida.loop import LoopThread
from tavrida.plugins.transports import Delivery, Events, OnDelivery, Publication, Transport
from tavrida.publishing import Publisher
from tavrida.server import Server
from tavrida.service import ServiceController

SERVICE = "stress"
ROUTING_KEY = "stress.take"


@dataclass(frozen=True, slots=True)
class Job:
    """What one process has to do, and in which of its lives (0 is the first)."""

    role: str
    number: int
    life: int
    url: str
    queue: str
    queue_type: str
    journal: str
    #: How many messages a publisher has to publish in all its lives.
    messages: int
    #: Publishers: messages on their way at a time. Consumers: deliveries held at a time.
    window: int

    def to_argument(self) -> str:
        return json.dumps(asdict(self))


class Journal:
    """A file that outlives kill -9: each line is with the kernel when ``write`` returns."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, *words: object) -> None:
        """Add a line: the words, this process and the time, comparable between processes."""
        line = " ".join(map(str, (*words, os.getpid(), f"{time.monotonic():.6f}")))
        os.write(self._file, f"{line}\n".encode())


def config_of(url: str, **more: Any) -> ConnectionConfig:
    return ConnectionConfig(url=(url,), async_engine=True, retry_delay=0.1, **more)


def server_of(job: Job, journal: Journal) -> Server:
    """A server as a user would make it, whose settlements go to the journal as well."""

    @dispatcher.rpc_service(SERVICE)
    class Stress(ServiceController):
        @dispatcher.rpc_method(service=SERVICE, method="take")
        def take(self, request: Any, proxy: Any, name: str, life: int) -> None:
            journal.write("handled", name, life, int(request.redelivered))

    server = Server(
        config_of(job.url),
        job.queue,
        job.queue,
        [Stress],
        queue_type=job.queue_type,
        prefetch=job.window,
    )
    server._transport_class = _recording(server._transport_class, journal)
    return server


def _recording(base: type[Transport], journal: Journal) -> type[Transport]:
    """Return a transport whose deliveries write down how they were settled."""

    class Recording(base):  # type: ignore[valid-type, misc]
        async def consume(self, queue: str, prefetch: int, on_delivery: OnDelivery) -> None:
            def record(delivery: Delivery) -> None:
                on_delivery(cast("Delivery", _Recorded(delivery, journal)))

            await super().consume(queue, prefetch, record)

    return Recording


class _Recorded:
    """A delivery that writes down how it was settled, after it was."""

    def __init__(self, delivery: Delivery, journal: Journal) -> None:
        self._delivery = delivery
        self._journal = journal

    def __getattr__(self, name: str) -> Any:
        return getattr(self._delivery, name)

    def ack(self) -> None:
        self._settle("acked", self._delivery.ack)

    def requeue(self) -> None:
        self._settle("requeued", self._delivery.requeue)

    def reject(self) -> None:
        self._settle("rejected", self._delivery.reject)

    def _settle(self, word: str, settle: Any) -> None:
        if not self._delivery.is_live:
            word = "outlived"  # its connection is gone; the message comes again
        settle()
        payload = json.loads(self._delivery.body)
        redelivered = int(self._delivery.redelivered)
        self._journal.write(word, payload["name"], payload["life"], redelivered)


class Publishing:
    """One life of a publisher: sends all that is not confirmed yet, and notes each confirm."""

    def __init__(self, job: Job, journal: Journal) -> None:
        self._job = job
        self._journal = journal
        self._loop = LoopThread("stress")
        config = config_of(job.url, max_unconfirmed=job.window)
        cls = plugins.load(plugins.TRANSPORTS, config.scheme, Transport)  # type: ignore[type-abstract]
        events = Events(lambda reason: None, self._fail)
        self._transport = cls(config, self._loop, f"stress {job.number}", events)
        self._publisher = Publisher(self._loop, self._transport)
        self._changed = threading.Condition()
        self._awaited = 0

    def run(self) -> None:
        self._loop.run(self._transport.open(-1))
        for name in _unconfirmed(self._job):
            with self._changed:
                self._awaited += 1
            self._publisher.send_raw(self._publication(name), functools.partial(self._done, name))
        with self._changed:
            self._changed.wait_for(lambda: not self._awaited)
        self._loop.run(self._transport.close())
        self._loop.stop()

    def _publication(self, name: str) -> Publication:
        body = json.dumps({"name": name, "life": self._job.life}).encode()
        properties = envelope.Properties("application/json", message_id=name, type="request")
        return Publication(self._job.queue, ROUTING_KEY, body, properties, is_mandatory=True)

    def _done(self, name: str, error: Exception | None) -> None:
        if error is not None:
            self._fail(error)
        self._journal.write("confirmed", name, self._job.life, 0)
        with self._changed:
            self._awaited -= 1
            self._changed.notify()

    def _fail(self, error: Exception) -> None:
        """Nothing but kill -9 happens here, so that no publication may fail."""
        sys.stderr.write(f"a publication failed: {error!r}\n")
        sys.stderr.flush()
        os._exit(1)


def _unconfirmed(job: Job) -> Iterator[str]:
    """The names of those messages of this publisher that no former life saw confirmed."""
    confirmed = {line.split()[1] for line in Path(job.journal).read_text().splitlines()}
    names = (f"{job.number}-{index}" for index in range(job.messages))
    return (name for name in names if name not in confirmed)


def _end_with_supervisor() -> None:
    os.read(0, 1)  # not sys.stdin, whose lock Python wants back when it ends
    os._exit(3)


def main() -> None:
    job = Job(**json.loads(sys.argv[1]))
    threading.Thread(target=_end_with_supervisor, daemon=True).start()
    logging.basicConfig(level="WARNING", format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    journal = Journal(job.journal)
    if job.role == "consumer":
        server_of(job, journal).run()
    else:
        Publishing(job, journal).run()


if __name__ == "__main__":
    main()
