# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Health: whether a server lives and is ready, told over HTTP from a thread of its own.

Nothing here waits for the server's event loop or for a handler. Of several worker processes,
whichever is asked answers for all, by what they tell each other. docs/observability.md tells what
the answers mean.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tavrida import context, exceptions
from tavrida.board import Seat
from tavrida.calls import Caller
from tavrida.config import HealthSettings
from tavrida.handling import Handling
from tavrida.loop import LoopThread
from tavrida.middleware import Page
from tavrida.plugins.transports import Transport
from tavrida.processing import Processor

LOG = logging.getLogger(__name__)

#: Seconds between two looks at what runs.
LOOK_PAUSE = 0.25

#: Seconds that a client gets to send its request and to take the answer.
REQUEST_TIMEOUT = 2.0

#: Connections that are served at a time; for one more, the oldest is closed.
MAX_CONNECTIONS = 32

#: Bytes of the head of a request at most.
MAX_HEAD = 8192

#: Seconds after which a worker that tells nothing is not ready: its process is stopped or stuck.
SILENCE = 3.0

#: Of each list, what is told to the other workers where it is too much for the board.
_FEW = 3

#: What a server does, as /ready tells it.
STARTING, SERVING, STOPPING = "starting", "serving", "stopping"

#: A worker that is not there: its master is about to start it, or waits with that.
GONE = "gone"

_LIVES = {"live": True, "reasons": (), "loop_seconds": 0.0}


class Vitals:
    """What a running server tells of itself. Thread-safe; nothing in it waits."""

    is_server = True

    def __init__(
        self, incoming: Transport, outgoing: Transport, processor: Processor, caller: Caller
    ) -> None:
        self._connections = {"incoming": incoming, "outgoing": outgoing}
        self._processor = processor
        self._caller = caller
        self.state = STARTING
        #: What answers at further paths: see ``Middleware.observe``.
        self.pages: dict[str, Page] = {}
        #: Called at each look, from the thread of the health server.
        self.looks: list[Callable[[], None]] = []
        self.scheme = incoming.config.scheme

    @property
    def is_ready(self) -> bool:
        """True while it is connected and the broker has confirmed every consumer."""
        return self.state == SERVING and all(each.is_ready for each in self._connections.values())

    @property
    def late_answers(self) -> int:
        """Answers that nobody waited for any more."""
        return self._caller.late_answers

    def connections(self) -> dict[str, Any]:
        """Return what can be said of each connection, for JSON."""
        return {
            name: {
                "ready": each.is_ready,
                "can_publish": each.is_ready and each.can_publish,
                "trouble": each.trouble,
            }
            for name, each in self._connections.items()
        }

    def paused_queues(self) -> list[str]:
        """Return the queues that the kill switch has paused."""
        switches = list(self._processor.switches.items())  # one step of the interpreter
        return sorted(queue for queue, switch in switches if switch.is_paused)

    def running(self) -> list[Handling]:
        """Return the deliveries whose handlers run."""
        return [each for each in list(self._processor.open_handlings) if each.is_running]


@dataclass(slots=True)
class _Run:
    """A handler that runs: since when, and whether it was logged as stuck."""

    since: float
    is_told: bool = False


class Watch:
    """Finds out whether an event loop and the handlers of a server are stuck."""

    def __init__(self, settings: HealthSettings, loop: LoopThread, vitals: Vitals) -> None:
        self._settings = settings
        self._loop = loop
        self._vitals = vitals
        # When the loop was asked for a sign of life that it has not given yet.
        self._asked_at: float | None = None
        self._is_told = False
        self._runs: dict[Handling, _Run] = {}

    @property
    def loop_seconds(self) -> float:
        """Seconds for which the event loop has been held up."""
        asked_at = self._asked_at
        return 0.0 if asked_at is None else max(0.0, time.monotonic() - asked_at)

    @property
    def is_loop_stuck(self) -> bool:
        """True where that is too long."""
        return self.loop_seconds > self._settings.stuck_loop

    def look(self) -> None:
        """Ask the loop for a sign of life, and note which handlers still run."""
        self._look_at_loop()
        now = time.monotonic()
        # A handler counts from the look that saw it first: no message pays for a time of its own.
        self._runs = {each: self._runs.get(each) or _Run(now) for each in self._vitals.running()}
        for handling, run in self._stuck(now):
            if not run.is_told:
                run.is_told = True
                self._tell(handling, now - run.since)

    def _look_at_loop(self) -> None:
        if self._asked_at is None:
            self._is_told = False
            self._asked_at = time.monotonic()
            with contextlib.suppress(exceptions.ConnectionFailed):  # it was stopped
                self._loop.submit(self._alive)
        elif self.is_loop_stuck and not self._is_told:
            self._is_told = True
            LOG.error(
                "The event loop has been held up for %.0f s, and all that it serves: does an async "
                "def handler block? It is here:\n%s",
                self.loop_seconds,
                self._loop.stack(),
            )

    def _alive(self) -> None:
        self._asked_at = None

    def _stuck(self, now: float) -> list[tuple[Handling, _Run]]:
        limit = self._settings.stuck_handler
        return [
            (handling, run)
            for handling, run in self._runs.items()
            if limit and now - run.since >= limit
        ]

    def stuck_handlers(self) -> list[dict[str, Any]]:
        """Return the handlers that run for too long, for JSON."""
        now = time.monotonic()
        return [
            {**_names(handling), "seconds": round(now - run.since, 1)}
            for handling, run in self._stuck(now)
        ]

    def _tell(self, handling: Handling, seconds: float) -> None:
        names = _names(handling)
        LOG.warning(
            "%s.%s has been handling a message of queue %s for %.0f s (correlation id %s).",
            names["service"],
            names["method"],
            handling.delivery.queue,
            seconds,
            exceptions.printable(names["correlation_id"] or "none"),
            extra={"seconds": round(seconds, 1), **names},
        )


def _names(handling: Handling) -> dict[str, str]:
    service, method = context.names_of(handling)
    correlation_id = handling.message.correlation_id
    return {"service": service, "method": method, "correlation_id": correlation_id}


class Health:
    """Answers over HTTP, in a thread of its own, until it is closed.

    With a ``seat`` it is one of several processes that answer for each other; without one, it
    listens by itself.

    Raises:
        ConfigError: the port is taken, or the address is none of this machine.
    """

    def __init__(self, settings: HealthSettings, seat: Seat | None = None) -> None:
        self._settings = settings
        self._seat = seat
        self._telling = threading.Lock()
        self._socket = listen(settings) if seat is None else seat.listening
        self._own: LoopThread | None = None
        # In the order in which they came.
        self._clients: dict[asyncio.StreamWriter, None] = {}

    def start(self, loop: LoopThread, vitals: Vitals) -> None:
        """Begin to answer for a server and its event loop."""
        self._vitals = vitals
        self._watch = Watch(self._settings, loop, vitals)
        self._own = LoopThread("tavrida-health")
        self._own.run(self._serve())

    def close(self) -> None:
        """Answer nothing any more. Idempotent."""
        if self._own is not None and not self._own.is_stopping:
            self._own.run(self._end())
            self._own.stop()
        self._socket.close()

    async def _serve(self) -> None:
        self._server = await asyncio.start_server(self._answer, sock=self._socket, limit=MAX_HEAD)
        self._looking = asyncio.create_task(self._look())

    async def _end(self) -> None:
        self._server.close()
        self._looking.cancel()
        # Whoever was let in just now begins to be answered first, which takes some turns.
        end = asyncio.get_running_loop().time() + REQUEST_TIMEOUT
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            for writer in self._clients:
                writer.transport.abort()
            await asyncio.wait(others, timeout=0.05)
            if asyncio.get_running_loop().time() > end:
                break
        await asyncio.sleep(0)  # and their sockets are closed

    async def _look(self) -> None:
        while True:
            for look in (self._watch.look, *self._vitals.looks, self.tell):
                try:
                    look()
                except Exception:
                    LOG.exception("A look at the health of this process failed.")
            await asyncio.sleep(LOOK_PAUSE)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= MAX_CONNECTIONS:
            # Not this one: it may be a probe, while those who say nothing make up the number.
            oldest = next(iter(self._clients))
            del self._clients[oldest]
            oldest.transport.abort()
        self._clients[writer] = None
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._answer_to(head))
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            writer.transport.abort()  # whoever asks so is not worth a line in the log
        finally:
            self._clients.pop(writer, None)

    def _answer_to(self, head: bytes) -> bytes:
        try:
            lines = head.decode("latin-1").split("\r\n")
            method, target, _ = lines[0].split(" ")
            fields = (line.partition(":") for line in lines[1:])
            headers = {name.strip().lower(): value.strip() for name, _, value in fields}
        except ValueError:
            return _written(400, *_json({"error": "this is no HTTP request"}))
        if method not in ("GET", "HEAD"):
            return _written(405, *_json({"error": f"only GET and HEAD, not {method}"}))
        try:
            status, kind, body = self._page(target.partition("?")[0], headers)
        except Exception as error:
            LOG.exception("The page %s cannot be made.", exceptions.printable(target))
            status, kind, body = 500, *_json({"error": f"{type(error).__name__}: {error}"})
        return _written(status, kind, body, is_head=method == "HEAD")

    def _page(self, path: str, headers: Mapping[str, str]) -> tuple[int, str, bytes]:
        if path == "/live":
            told = self.live()
            return 200 if told["live"] else 503, *_json(told)
        if path == "/ready":
            told = self.ready()
            return 200 if told["ready"] else 503, *_json(told)
        page = self._vitals.pages.get(path)
        if page is not None:
            return 200, *page(headers.get("accept", ""))
        if path == "/metrics":
            why = (
                "there are no metrics: name prometheus in incoming_middleware and "
                "outgoing_middleware of [server]"
            )
            return 404, *_json({"error": why})
        pages = ["/live", "/ready", *self._vitals.pages]
        return 404, *_json({"error": f"there is only {', '.join(pages)}"})

    def live(self) -> dict[str, Any]:
        """Return whether the process can go on at all, or all workers can, for JSON."""
        return self._own_life() if self._seat is None else _life_of(list(self._workers()))

    def ready(self) -> dict[str, Any]:
        """Return whether messages are served, by all workers, and why not, for JSON."""
        return self._own_readiness() if self._seat is None else _readiness_of(list(self._workers()))

    def _own_life(self) -> dict[str, Any]:
        return {
            "live": not self._watch.is_loop_stuck,
            "reasons": self._loop_reasons(),
            "loop_seconds": round(self._watch.loop_seconds, 3),
        }

    def _own_readiness(self) -> dict[str, Any]:
        vitals = self._vitals
        connections = vitals.connections()
        reasons = [] if vitals.state == SERVING else [f"the server is {vitals.state}"]
        reasons += [
            f"the {name} connection is not there: {each['trouble'] or 'it is being made'}"
            for name, each in connections.items()
            if not each["ready"]
        ]
        reasons += self._loop_reasons()
        return {
            "ready": not reasons,
            "reasons": reasons,
            "state": vitals.state,
            "connections": connections,
            "paused_queues": vitals.paused_queues(),
            "stuck_handlers": self._watch.stuck_handlers(),
        }

    def _loop_reasons(self) -> list[str]:
        if not self._watch.is_loop_stuck:
            return []
        seconds = f"{self._watch.loop_seconds:.0f} s"
        return [f"the event loop has been held up for {seconds}: the log tells where"]

    # -- several workers

    def tell(self) -> None:
        """Have the other workers know at once how this one is. Any thread."""
        if self._seat is None:
            return
        with self._telling:
            told = self._told()
            try:
                self._seat.board.tell(self._seat.number, told)
            except ValueError:
                told["ready"] = _cut(told["ready"])
                self._seat.board.tell(self._seat.number, told)

    def _told(self) -> dict[str, Any]:
        return {"pid": os.getpid(), "live": self._own_life(), "ready": self._own_readiness()}

    def _workers(self) -> Iterator[dict[str, Any]]:
        """Yield what all workers tell, in the order of their numbers."""
        assert self._seat is not None
        for number in range(1, self._seat.board.count + 1):
            found = self._seat.board.read(number)
            if number == self._seat.number:
                found = (0.0, self._told())
            yield {"worker": number} | self._judged(found)

    def _judged(self, found: tuple[float, dict[str, Any]] | None) -> dict[str, Any]:
        """Return what a worker told, where that can be what it is now."""
        if found is None:
            told = _silent("it does not run, or not yet", GONE)
            return {"pid": None, "live": _LIVES, "ready": told}
        seconds, told = found
        # The thread that tells ends before the process, which may have its last spans to export.
        if seconds <= SILENCE or told["ready"]["state"] == STOPPING:
            return told
        why = f"it has told nothing for {seconds:.0f} s: its process is stopped or stuck"
        if seconds > self._settings.stuck_loop:
            told["live"] = {"live": False, "reasons": [why], "loop_seconds": round(seconds, 3)}
        return told | {"ready": _silent(why, told["ready"]["state"])}


def _silent(why: str, state: str) -> dict[str, Any]:
    """Return the readiness of a worker that does not tell it itself."""
    return {
        "ready": False,
        "reasons": [why],
        "state": state,
        "connections": {},
        "paused_queues": [],
        "stuck_handlers": [],
    }


def _cut(ready: dict[str, Any]) -> dict[str, Any]:
    """Return what is told of readiness with a few of everything."""
    return {
        **ready,
        "reasons": [reason[:500] for reason in ready["reasons"][:_FEW]],
        "connections": {},
        "paused_queues": ready["paused_queues"][:_FEW],
        "stuck_handlers": ready["stuck_handlers"][:_FEW],
    }


def _life_of(workers: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "live": all(each["live"]["live"] for each in workers),
        "reasons": _reasons_of(workers, "live"),
        "loop_seconds": max(each["live"]["loop_seconds"] for each in workers),
        "workers": [_names_of(each) | each["live"] for each in workers],
    }


def _readiness_of(workers: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the same names as of one process, and what each worker tells."""
    return {
        "ready": all(each["ready"]["ready"] for each in workers),
        "reasons": _reasons_of(workers, "ready"),
        "paused_queues": sorted({q for each in workers for q in each["ready"]["paused_queues"]}),
        "stuck_handlers": [
            _names_of(each) | handler
            for each in workers
            for handler in each["ready"]["stuck_handlers"]
        ],
        "workers": [_names_of(each) | each["ready"] for each in workers],
    }


def _names_of(worker: dict[str, Any]) -> dict[str, Any]:
    return {name: worker[name] for name in ("worker", "pid")}


def _reasons_of(workers: list[dict[str, Any]], what: str) -> list[str]:
    return [
        f"worker {each['worker']} (pid {each['pid'] or 'none'}): {reason}"
        for each in workers
        for reason in each[what]["reasons"]
    ]


def listen(settings: HealthSettings) -> socket.socket:
    """Return a socket that listens; raises as ``Health``."""
    host, port = settings.host, settings.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise exceptions.ConfigError(_refusal(host, port, error)) from None
    try:
        # Without it a server that is started again would find its own port taken for a minute.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(MAX_CONNECTIONS)
    except OSError as error:
        listening.close()
        raise exceptions.ConfigError(_refusal(host, port, error)) from None
    listening.setblocking(False)
    return listening


def _refusal(host: str, port: int, error: OSError) -> str:
    why = error.strerror or str(error)
    return (
        f"[health] cannot listen at port {port} of {host}: {why}; choose another port or host, or "
        "end what uses it"
    )


def _json(told: Mapping[str, Any]) -> tuple[str, bytes]:
    return "application/json", json.dumps(told).encode() + b"\n"


def _written(status: int, kind: str, body: bytes, *, is_head: bool = False) -> bytes:
    head = (
        f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        "Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode("latin-1") + (b"" if is_head else body)
