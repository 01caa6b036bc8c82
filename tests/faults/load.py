# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Load: one process that casts, publishes and calls until SIGTERM, and notes how each ended.

``python -m tests.faults.load JOB``; the Job is JSON. It ends by itself when its standard input is
closed, so that none outlives the laboratory.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tavrida import exceptions
from tavrida.client import AsyncRPCClient, RPCClient
from tavrida.config import ConnectionConfig
from tests.faults.journal import (
    ANSWERED,
    CALLED,
    CONFIRMED,
    FAILED,
    NOTIFICATION,
    REFUSED,
    UNEXPECTED,
    Journal,
    end_with_the_laboratory,
    new_key,
)

LOG = logging.getLogger(__name__)

#: Messages of a pipeline, which waits for all their confirms at its end.
BATCH = 10

#: What it logs when SIGTERM is good for ending it.
BEGINS = "The load begins."

#: Methods of the service, in turn.
METHODS = ("take", "take_async", "forward")
CALLS = ("take", "take_async", "relay")


@dataclass(frozen=True, slots=True)
class Job:
    """What one process has to do. Times are in seconds."""

    folder: str
    url: str
    #: Options of [connection].
    connection: dict[str, Any] = field(default_factory=dict)
    #: How long each thread waits before its next message or batch: it sets the rate.
    pause: float = 0.05
    #: What each call may take.
    call_timeout: float = 5.0

    def to_argument(self) -> str:
        return json.dumps(asdict(self))


class Load:
    """Threads that send until they are stopped, over a client of each kind."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._journal = Journal(Path(job.folder))
        self._is_over = threading.Event()
        config = ConnectionConfig(url=tuple(job.url.split(",")), **job.connection)
        self._client = RPCClient(config, source="lab_events.happened")
        self._config = config

    def run(self) -> None:
        """Send until ``stop``; return when everything that was begun has ended."""
        turns = (self._cast_in_a_pipeline, self._cast, self._publish, self._call, self._call)
        threads = [threading.Thread(target=self._repeat, args=(turn,)) for turn in turns]
        threads.append(threading.Thread(target=asyncio.run, args=(self._call_async(),)))
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                # In slices: a signal that comes just before a wait begins does not end it.
                thread.join(0.5)
        self._client.close()

    def stop(self) -> None:
        self._is_over.set()

    def _repeat(self, turn: Callable[[int], None]) -> None:
        number = 0
        while not self._is_over.wait(self._job.pause):
            number += 1
            try:
                turn(number)
            except Exception as error:
                self._journal.write(UNEXPECTED, new_key(), repr(error))

    def _send(self, key: str, send: Callable[[], object], detail: str = "") -> None:
        try:
            send()
        except exceptions.TavridaError as error:
            self._journal.write(REFUSED, key, type(error).__name__)
        else:
            self._journal.write(CONFIRMED, key, detail)

    def _cast(self, number: int) -> None:
        key = new_key()
        self._send(key, self._client.lab[METHODS[number % 3]](key=key).cast)

    def _publish(self, number: int) -> None:
        key = new_key()
        self._send(key, lambda: self._client.publish(key=key), NOTIFICATION)

    def _cast_in_a_pipeline(self, number: int) -> None:
        keys = []
        refused: dict[str, str] = {}
        try:
            with self._client.pipeline():
                for turn in range(BATCH):
                    key = new_key()
                    self._client.lab[METHODS[turn % 3]](key=key).cast()
                    keys.append(key)
        except exceptions.PipelineFailed as failed:
            for message, error in failed.failures:
                refused[message.payload["key"]] = type(error).__name__
        except exceptions.TavridaError as error:  # which hides how the others ended
            refused = dict.fromkeys(keys, type(error).__name__)
        for key in keys:
            if key in refused:
                self._journal.write(REFUSED, key, refused[key])
            else:
                self._journal.write(CONFIRMED, key)

    def _call(self, number: int) -> None:
        key = new_key()
        self._journal.write(CALLED, key, self._job.call_timeout)
        try:
            answer = self._client.lab[CALLS[number % 3]](key=key).call(
                timeout=self._job.call_timeout
            )
        except exceptions.TavridaError as error:
            self._journal.write(FAILED, key, type(error).__name__)
        else:
            self._note_answer(key, answer.payload)

    async def _call_async(self) -> None:
        async with AsyncRPCClient(self._config, source="lab_events.happened") as client:

            async def repeat() -> None:
                while not self._is_over.is_set():
                    await asyncio.sleep(self._job.pause)
                    key = new_key()
                    self._journal.write(CALLED, key, self._job.call_timeout)
                    try:
                        answer = await client.lab.take(key=key).call(timeout=self._job.call_timeout)
                    except exceptions.TavridaError as error:
                        self._journal.write(FAILED, key, type(error).__name__)
                    except Exception as error:
                        self._journal.write(UNEXPECTED, key, repr(error))
                    else:
                        self._note_answer(key, answer.payload)

            await asyncio.gather(repeat(), repeat())

    def _note_answer(self, key: str, payload: Any) -> None:
        if payload == {"key": key}:
            self._journal.write(ANSWERED, key)
        else:
            self._journal.write(UNEXPECTED, key, f"the answer of another call: {payload}")


def main() -> None:
    logging.basicConfig(
        level="INFO", format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    threading.Thread(target=end_with_the_laboratory, daemon=True).start()
    load = Load(Job(**json.loads(sys.argv[1])))
    signal.signal(signal.SIGTERM, lambda number, frame: load.stop())
    LOG.info(BEGINS)
    load.run()


if __name__ == "__main__":
    main()
