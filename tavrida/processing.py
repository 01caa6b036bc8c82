# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The way of the deliveries: decode, route, wait for a place, begin."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import math
import time
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any

from tavrida import copies, envelope, exceptions, messages
from tavrida.calls import Caller
from tavrida.copies import NEW, History
from tavrida.dispatcher import Handler
from tavrida.handling import Handling
from tavrida.kill_switch import KillSwitch
from tavrida.loop import LoopThread
from tavrida.messages import (
    Error,
    IncomingMessage,
    IncomingRequest,
    Request,
)
from tavrida.middleware import Middleware
from tavrida.overload import NEVER, Threshold
from tavrida.plugins.serializers import Serializers
from tavrida.plugins.transports import Delivery
from tavrida.plugins.transports.reconnecting import pauses
from tavrida.publishing import Publisher
from tavrida.retries import Policy
from tavrida.router import Router
from tavrida.standstill import Standstill
from tavrida.suspects import SUSPICION, Suspects
from tavrida.topology import Placement
from tavrida.turns import Gate, Turns
from tavrida.workers import Workers

LOG = logging.getLogger(__name__)

#: Seconds between two looks whether something can be published: the first one, and at most.
KEEPING = (0.1, 1.0)


class Processor:
    """Handles the deliveries of a server's queues, ``concurrency`` at a time.

    All methods are called on the loop. A delivery is acknowledged when its handler has ended,
    everything that the handler sent is confirmed, and so is the answer.
    """

    def __init__(
        self,
        loop: LoopThread,
        publisher: Publisher,
        caller: Caller,
        serializers: Serializers,
        concurrency: int,
        redeclare: Callable[[], Coroutine[Any, Any, None]],
        error_of: Callable[[BaseException], Error] = Error.from_exception,
        policies: Mapping[Handler, Policy] | None = None,
        delivery_limit: int | None = None,
        limits: Mapping[Handler, int] | None = None,
        threshold: Threshold = NEVER,
        observers: Sequence[Middleware] = (),
    ) -> None:
        self.loop = loop
        self.publisher = publisher
        self.caller = caller
        self.serializers = serializers
        #: Declares the topology again, when something of it was deleted.
        self.redeclare = redeclare
        #: Makes the answer that tells of an exception.
        self.error_of = error_of
        #: Which handlers are run again when they fail, and when; no others are.
        self.policies = policies or {}
        #: All incoming middleware, for what belongs to no controller.
        self.observers = observers
        #: How often a message may be delivered again; None where the queue sees to that itself.
        self.delivery_limit = delivery_limit
        self._workers = Workers(concurrency, "tavrida-worker")
        # Not those of the handlers, which may all wait for what is told here.
        self._settlers = Workers(concurrency, "tavrida-settler")
        #: Those of the handlers that have limits of their own, or had one.
        self._own_gates = {
            handler: Gate[Handling](limit) for handler, limit in (limits or {}).items()
        }
        self._threshold = threshold
        self._turns: Turns[Handling] = Turns(concurrency, self._begin)
        self._gates: dict[tuple[str, Handler], tuple[Gate[Handling], ...]] = {}
        #: By queue: what pauses it.
        self.switches: dict[str, KillSwitch] = {}
        self._suspects: Suspects[Handling] = Suspects(loop, self._begin_suspect)
        self.standstill = Standstill(loop, concurrency, self._turns)
        self._open: set[Handling] = set()
        # The loop itself holds tasks only weakly. Those of ``async def`` handlers stand by what
        # they handle: to ask asyncio which task runs takes longer than the rest of their end.
        self._tasks: set[asyncio.Task[None]] = set()
        self._running: dict[Handling, asyncio.Task[None]] = {}
        self._is_draining = False
        self._all_settled = asyncio.Event()

    @property
    def open_handlings(self) -> Collection[Handling]:
        """What was delivered and is not settled."""
        return self._open

    def change(
        self,
        concurrency: int,
        policies: Mapping[Handler, Policy],
        limits: Mapping[Handler, int],
        threshold: Threshold,
    ) -> None:
        """Go on with other numbers. What runs goes on, also where it is more than may begin now.

        A handler that had no limit of its own gets one that does not count what was taken before.
        """
        self.policies = policies
        self._workers.change(concurrency)
        self._settlers.change(concurrency)
        # Made anew for whoever comes: there may be one more gate, or one less.
        self._gates.clear()
        for handler in self._own_gates.keys() | limits.keys():
            gate = self._own_gates.setdefault(handler, Gate[Handling]())
            self._turns.change(gate, limits.get(handler, math.inf))
        if threshold != self._threshold:
            self._change_switches(threshold)
        self._turns.change(self._turns.hall, concurrency)
        self.standstill.change(concurrency)

    def _change_switches(self, threshold: Threshold) -> None:
        self._threshold = threshold
        if threshold.share:
            for switch in self.switches.values():
                switch.change(threshold)
        else:
            switches, self.switches = self.switches, {}
            for switch in switches.values():
                switch.retire()

    def receive(
        self, delivery: Delivery, router: Router, placements: Mapping[str, Placement]
    ) -> None:
        """Take a delivery of a queue that these controllers share."""
        try:
            self._receive(delivery, router, placements)
        except Exception:
            LOG.exception("A message of queue %s cannot be taken.", delivery.queue)
            delivery.reject()
            self._open = {each for each in self._open if each.delivery is not delivery}

    def _receive(
        self, delivery: Delivery, router: Router, placements: Mapping[str, Placement]
    ) -> None:
        if self._is_draining:
            delivery.requeue()
            return
        history, redelivered = NEW, delivery.redelivered
        headers = delivery.properties.headers
        if headers and copies.MARK in headers:
            history = copies.restore(delivery)
        limit = self.delivery_limit if redelivered else None
        in_vain = 0
        if redelivered or history.crashes:
            in_vain = self._suspects.deliveries_in_vain(delivery, history)
        if limit is not None and in_vain < SUSPICION:
            unread = _unreadable(delivery)
            self._open_handling(delivery, unread, None, None, router, history).recount(limit)
            return
        try:
            message = envelope.decode(
                delivery.properties,
                delivery.body,
                delivery.routing_key,
                self.serializers.by_content_type,
                default=self.serializers.default,
                redelivered=redelivered or history.crashes > 0,
            )
        except exceptions.MalformedMessage as error:
            message = _unreadable(delivery)
            self._open_handling(delivery, message, None, None, router, history).fail(error)
            return
        message.attempt = history.attempt
        try:
            handler = router.route(message)
        except exceptions.HandlerNotFound as error:
            if router.has_counterpart(message):
                LOG.info("Dropped the %s of %s: %s", message.message_type, message.source, error)
                delivery.ack()
                return
            placement = next(iter(placements.values()))
            self._open_handling(delivery, message, None, placement, router, history).fail(error)
            return
        handling = self._open_handling(
            delivery, message, handler, placements[handler.service], router, history
        )
        if in_vain >= SUSPICION:
            self._suspects.add(handling, in_vain)
        else:
            self._line_up(handling)

    def _begin_suspect(self, handling: Handling) -> None:
        limit = self.delivery_limit
        if limit is None or not handling.delivery.redelivered:
            self._line_up(handling)
            return
        # It is counted now that it is its turn: until here it only waited beside others.
        if handling.history.crashes < limit:
            self._suspects.expect(handling.message.message_id)
        handling.recount(limit)

    def _line_up(self, handling: Handling) -> None:
        handler = handling.handler
        assert handler is not None
        queue = handling.delivery.queue
        gates = self._gates.get((queue, handler))
        if gates is None:
            gates = self._gates[queue, handler] = self._gates_of(queue, handler)
        handling.gates = gates
        self._turns.arrive(handling)
        if handling.passed < len(gates):
            self.standstill.check()

    def _gates_of(self, queue: str, handler: Handler) -> tuple[Gate[Handling], ...]:
        """Return the gates before a handler: its own limit, the switch of its queue, the hall."""
        gates = []
        if handler in self._own_gates:
            gates.append(self._own_gates[handler])
        if self._threshold.share:
            if queue not in self.switches:
                self.switches[queue] = KillSwitch(queue, self._threshold, self.loop, self._turns)
            gates.append(self.switches[queue].gate)
        return (*gates, self._turns.hall)

    def _open_handling(
        self,
        delivery: Delivery,
        message: IncomingMessage,
        handler: Handler | None,
        placement: Placement | None,
        router: Router,
        history: History,
    ) -> Handling:
        handling = Handling(self, delivery, message, handler, placement, router, history)
        self._open.add(handling)
        return handling

    def _begin(self, handling: Handling) -> bool:
        message = handling.message
        if not handling.delivery.is_live:
            # Its connection went while it waited here; the broker delivers it again.
            self.settled(handling)
            return False
        if message.deadline is not None and message.deadline <= time.time():
            LOG.info("Dropped an expired request to %s: its caller gave up.", message.destination)
            handling.settle()
            return False
        assert handling.handler is not None
        if handling.handler.is_async:
            # Its own end takes it out: a callback would cost another turn of the loop.
            self._running[handling] = self._new_task(handling.run_async())
        else:
            self._workers.run(handling.run)
        return True

    def start_task(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine on the loop, and keep hold of it until it ends."""
        task = self._new_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _new_task(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        # In nobody's context: not in that of the handler whose end let this one begin. Not by the
        # loop's create_task, whose checks and task factories a loop of ours does not need.
        return asyncio.Task(coroutine, loop=self.loop.loop, context=contextvars.Context())

    def task_ended(self, handling: Handling) -> None:
        """Called as the last thing that the task of an ``async def`` handler does."""
        self._running.pop(handling, None)

    def run_in_thread(self, job: Callable[[], None]) -> None:
        """Run a job that may block, in a thread that is none of the handlers'."""
        self._settlers.run(job)

    def ended(self, handling: Handling, error: BaseException | None) -> None:
        """Called when a handler ended, with why it failed: the next one may start."""
        switch = self.switches.get(handling.delivery.queue)
        if switch is not None:
            switch.note(error if handling.is_failure(error) else None)
        self._turns.leave(handling)

    def settled(self, handling: Handling) -> None:
        """Called when a delivery was settled, in whichever way."""
        self._open.discard(handling)
        self._suspects.settled(handling)
        if self._is_draining and not self._open:
            self._all_settled.set()

    def keep(
        self, handling: Handling, go_on: Callable[[], None], give_up: Callable[[], None]
    ) -> None:
        """Call ``go_on`` once something can be published, at the earliest a moment from now.

        Call ``give_up`` when that is no use any more: the connection of the delivery is gone, so
        that the broker delivers it again, or this server stops.
        """

        async def wait() -> None:
            for pause in pauses(*KEEPING):
                await asyncio.sleep(pause)
                if self._is_draining or not handling.delivery.is_live:
                    give_up()
                    return
                if self.publisher.can_publish:
                    go_on()
                    return

        self.start_task(wait())

    def lost(self) -> None:
        """Called when the connection of the deliveries was lost, which this process survived."""
        for handling in self._suspects.survive(self._open):
            self.settled(handling)

    def awaiting(
        self, handling: Handling, request: Request
    ) -> contextlib.AbstractContextManager[None]:
        """Return a block in which this handler only waits for the answer. Thread-safe."""
        if self.loop.is_current:
            task = self._running.get(handling)
            is_of_handler = task is not None and task is asyncio.current_task()
        else:
            is_of_handler = self._workers.is_current
        # In a thread or task of the handler's own, the handler itself may go on and end.
        return self.standstill.awaiting(request) if is_of_handler else contextlib.nullcontext()

    async def drain(self, timeout: float) -> int:
        """Give back what has not started, wait for the rest; return how many did not end."""
        self._is_draining = True
        gates = {*self._own_gates.values(), *(switch.gate for switch in self.switches.values())}
        for handling in (*self._turns.clear(gates), *self._suspects.release()):
            handling.delivery.requeue()
            self.settled(handling)
        if self._open:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_settled.wait(), timeout)
        self._workers.stop()
        self._settlers.stop()
        return len(self._open)


def _unreadable(delivery: Delivery) -> IncomingMessage:
    """What can be said of a message that cannot be decoded: whom to answer, if anybody."""
    properties = delivery.properties
    told = (properties.headers or {}).get("request_id")
    request_id = told if isinstance(told, str) else ""
    is_request = (properties.type or messages.REQUEST) not in messages.KINDS[1:]
    correlation_id = properties.correlation_id or envelope.own_chain(properties)
    return IncomingRequest(
        correlation_id=correlation_id,
        request_id=request_id or correlation_id,
        reply_to=properties.reply_to or "" if is_request else "",
        is_enveloped=bool(request_id),
    )
