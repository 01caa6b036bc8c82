# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""What the programs of all peers have in common: roles, counts, and one JSON line for each fact.

``python -m benchmarks.peers.NAME ROLE TASK`` plays one of these roles; TASK is a JSON object with
the fields of :class:`Task`. Only the standard library is used, so that no peer pays for another.

| role | |
|---|---|
| serve | answer ``echo(param)`` with ``{"param": param}``, until SIGTERM |
| call | make ``count`` calls, one in flight |
| calls | make ``count`` calls, WINDOW in flight |
| consume | handle ``count`` events, each acknowledged after its handler, until SIGTERM |
| publish | publish ``count`` persistent events and have the broker confirm each |
| clean | delete what the others left; tell how many messages were still there |
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

#: Calls before those that are measured.
WARM_UP = 200

#: Calls in flight where there are several.
WINDOW = 64

#: Deliveries that a consumer holds at a time.
PREFETCH = 100

#: Messages for each ``basic.ack``, of the peers that can acknowledge several at a time, and the
#: seconds after which they acknowledge fewer.
ACK_EVERY, ACK_AFTER = 25, 0.02

#: Messages that await their confirm, of the peers that can have many of these.
UNCONFIRMED = 500

#: Seconds that a call may take.
TIMEOUT = 30

#: Makes an event about 100 bytes of JSON.
PAD = "x" * 48

ROUTING_KEY = "order.created"

#: The number of an event that is not measured: publishers send it that connect with their first.
FIRST = -1

#: Makes a call and returns its answer.
Call = Callable[[Any], Any]
AsyncCall = Callable[[Any], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Task:
    """What a program is to do."""

    url: str
    #: Begins the names of all queues and exchanges.
    name: str
    count: int = 0
    #: Bytes that calls and events carry; 0 for a number, and for events of about 100 bytes.
    size: int = 0
    #: Which way of several the peer's library is used.
    variant: str = ""
    pad: str = field(init=False, default="")

    def __post_init__(self) -> None:
        object.__setattr__(self, "pad", "x" * self.size)

    def param(self, number: int) -> Any:
        """Return what a call carries; no two are equal."""
        return f"{number}{self.pad}" if self.size else number

    def event(self, number: int) -> dict[str, Any]:
        """Return what an event carries."""
        return {"seq": number, "name": ROUTING_KEY, "pad": self.pad or PAD}

    @property
    def exchange(self) -> str:
        """The exchange of the events."""
        return f"{self.name}.x"

    @property
    def queue(self) -> str:
        """The queue of the events."""
        return f"{self.name}.q"


Role = Callable[[Task], None]


def tell(kind: str, **facts: Any) -> None:
    """Tell whoever started this program."""
    sys.stdout.write(json.dumps({"kind": kind, **facts}) + "\n")
    sys.stdout.flush()


def ready() -> None:
    """Tell that messages are coming in."""
    tell("ready")


def cpu() -> float:
    """Return the CPU seconds of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Tally:
    """What a client or publisher counts: wrong answers, time, CPU."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.wrong = 0
        self.took: list[float] = []
        self._had_answer = False

    def check(self, number: int, answer: Any) -> None:
        """Count an answer that is not that of the call."""
        if not self._had_answer:
            self._had_answer = True
            tell("first")
        if answer != {"param": self.task.param(number)}:
            self.wrong += 1

    def begin(self) -> None:
        """Measure from now on."""
        tell("begin", at=time.monotonic())
        self._cpu, self._began = cpu(), time.perf_counter()

    def end(self) -> None:
        """Tell what was measured."""
        seconds, used = time.perf_counter() - self._began, cpu() - self._cpu
        facts = {"count": self.task.count, "seconds": seconds, "cpu": used, "wrong": self.wrong}
        if self.took:
            took = sorted(self.took)
            facts |= {"p50": took[len(took) // 2], "p99": took[int(len(took) * 0.99)]}
        tell("end", **facts)


class Seen:
    """What a subscriber has handled: each event once, in any order. Thread-safe."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._lock = threading.Lock()
        self._handled = bytearray(task.count)
        self._count = 0
        self._wrong = 0

    def handle(self, event: dict[str, Any]) -> None:
        """Count an event; tell of the last one."""
        number = event["seq"]
        if number == FIRST:
            return
        with self._lock:
            if self._handled[number] or event != self._task.event(number):
                self._wrong += 1
                return
            self._handled[number] = 1
            self._count += 1
            is_last = self._count == self._task.count
        if is_last:
            tell("handled", at=time.monotonic(), count=self._count, wrong=self._wrong)


# -- the ways to call and publish ----------------------------------------------------------------


def one_by_one(task: Task, call: Call) -> None:
    """Call, one in flight."""
    tally = Tally(task)
    for number in range(WARM_UP):
        tally.check(number, call(task.param(number)))
    tally.begin()
    for number in range(task.count):
        param = task.param(number)
        began = time.perf_counter()
        answer = call(param)
        tally.took.append(time.perf_counter() - began)
        tally.check(number, answer)
    tally.end()


def in_window(task: Task, send: Call, answer_of: Call) -> None:
    """Call from one thread: ``send`` returns at once, ``answer_of`` what it returned waits."""
    tally = Tally(task)

    def make(count: int) -> None:
        flying: deque[tuple[int, Any]] = deque()
        for number in range(count):
            if len(flying) == WINDOW:
                earlier, sent = flying.popleft()
                tally.check(earlier, answer_of(sent))
            flying.append((number, send(task.param(number))))
        for earlier, sent in flying:
            tally.check(earlier, answer_of(sent))

    make(WARM_UP)
    tally.begin()
    make(task.count)
    tally.end()


def in_threads(task: Task, call: Call) -> None:
    """Call from WINDOW threads."""
    tally = Tally(task)

    def one(number: int) -> None:
        tally.check(number, call(task.param(number)))

    _share(range(WARM_UP), WINDOW, one)
    tally.begin()
    _share(range(task.count), WINDOW, one)
    tally.end()


def publish_in_threads(task: Task, threads: int, publish: Callable[[dict[str, Any]], Any]) -> None:
    """Publish from several threads; ``publish`` returns when its event is confirmed."""
    tally = Tally(task)
    publish(task.event(FIRST))
    tally.begin()
    _share(range(task.count), threads, lambda number: publish(task.event(number)))
    tally.end()


def _share(numbers: Sequence[int], threads: int, work: Callable[[int], None]) -> None:
    """Have several threads work on the numbers; end this program where one fails."""
    left, lock = iter(numbers), threading.Lock()
    errors: list[BaseException] = []

    def take() -> Iterator[int]:
        while not errors:
            with lock:
                number = next(left, None)
            if number is None:
                return
            yield number

    def run() -> None:
        try:
            for number in take():
                work(number)
        except BaseException as error:
            errors.append(error)

    running = [threading.Thread(target=run) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if errors:
        raise errors[0]


async def async_one_by_one(task: Task, call: AsyncCall) -> None:
    """Call, one in flight."""
    tally = Tally(task)
    for number in range(WARM_UP):
        tally.check(number, await call(task.param(number)))
    tally.begin()
    for number in range(task.count):
        param = task.param(number)
        began = time.perf_counter()
        answer = await call(param)
        tally.took.append(time.perf_counter() - began)
        tally.check(number, answer)
    tally.end()


async def async_tasks(task: Task, call: AsyncCall) -> None:
    """Call from WINDOW tasks."""
    tally = Tally(task)

    async def make(count: int) -> None:
        numbers = iter(range(count))

        async def work() -> None:
            for number in numbers:
                tally.check(number, await call(task.param(number)))

        await asyncio.gather(*(work() for _ in range(WINDOW)))

    await make(WARM_UP)
    tally.begin()
    await make(task.count)
    tally.end()


async def async_publish(task: Task, publish: AsyncCall) -> None:
    """Publish from UNCONFIRMED tasks, each of which awaits its confirm."""
    tally = Tally(task)
    numbers = iter(range(task.count))

    async def work() -> None:
        for number in numbers:
            await publish(task.event(number))

    tally.begin()
    await asyncio.gather(*(work() for _ in range(UNCONFIRMED)))
    tally.end()


def run_on_uvloop(main: Coroutine[Any, Any, None]) -> None:
    """Run as who wants speed would: on uvloop, where it is installed."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)


# -- the program ---------------------------------------------------------------------------------


def clean_with_pika(
    task: Task, queues: Sequence[str], exchanges: Sequence[str] = ()
) -> dict[str, int]:
    """Delete them; return how many messages were in each queue that was there."""
    import pika
    from pika.exceptions import ChannelClosedByBroker

    left: dict[str, int] = {}
    connection = pika.BlockingConnection(pika.URLParameters(task.url))
    for queue in queues:
        channel = connection.channel()
        try:
            left[queue] = channel.queue_declare(queue, passive=True).method.message_count
            channel.queue_delete(queue)
        except ChannelClosedByBroker:  # it is gone already
            pass
    for exchange in exchanges:
        connection.channel().exchange_delete(exchange)  # no error where there is none
    connection.close()
    return left


def play(clean: Callable[[Task], dict[str, int]] | None = None, **roles: Role) -> None:
    """Do what the command line says.

    ``clean`` returns what was left in each queue; without it, those of Task are deleted.
    """
    role, task = sys.argv[1], Task(**json.loads(sys.argv[2]))
    if role != "clean":
        roles[role](task)
        return
    if clean is None:
        left = clean_with_pika(task, [task.name, task.queue], [task.exchange])
    else:
        left = clean(task)
    tell("clean", left=left)
