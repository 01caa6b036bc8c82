# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The store: what the transports of one event loop do with one bus, in turns.

Everything that was asked for since the last turn happens in one transaction: that is the group
commit. What has to wait for the disk waits in the syncer, not here.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import random
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tavrida import exceptions
from tavrida.loop import LoopThread
from tavrida.plugins.transports import Done, Publication, no_exchange, unroutable
from tavrida.plugins.transports.sqlite import bus, process
from tavrida.plugins.transports.sqlite.bus import Bus, Taken
from tavrida.plugins.transports.sqlite.database import Busy, Database, explain
from tavrida.plugins.transports.sqlite.doorbell import MemoryBell, SocketBell
from tavrida.plugins.transports.sqlite.place import Place
from tavrida.plugins.transports.sqlite.syncer import Syncer
from tavrida.topology import Topology

LOG = logging.getLogger(__name__)

Result = TypeVar("Result")

#: Seconds between two looks at what no bell tells: processes that died, files that were removed.
SWEEP = 1.0

#: Seconds until a turn that failed, for a full disk most often, is tried again.
RETRY = 1.0

#: Seconds between two tries for a lock that another process holds for longer than usual.
BUSY_PAUSE, MAX_BUSY_PAUSE = 0.002, 0.05

#: Messages that one turn hands to one consumer at most.
MAX_TAKEN = 500


@dataclass(slots=True, eq=False)
class Sending:
    """A publication without its confirm. ``deadline`` is in the loop's time."""

    publication: Publication
    properties: bytes
    done: Done
    deadline: float
    is_over: bool = False

    def end(self, error: Exception | None) -> None:
        """Tell the sender, once; its failure is not ours."""
        if self.is_over:
            return
        self.is_over = True
        try:
            self.done(error)
        except Exception:
            LOG.exception("A callback of a confirm failed.")


@dataclass(slots=True, eq=False)
class Consumer:
    """A consumer of one queue. ``unsettled`` is what it was given and has not settled."""

    session: int
    queue: int
    prefetch: int
    needs_ack: bool
    hand_over: Callable[[Consumer, Taken], None]
    unsettled: int = 0
    #: Its queue may have messages for it.
    is_due: bool = True

    @property
    def room(self) -> int:
        """How many messages it may be given now."""
        if not self.needs_ack or not self.prefetch:
            return MAX_TAKEN
        return min(MAX_TAKEN, self.prefetch - self.unsettled)


@dataclass(slots=True)
class _Work:
    """What the next turn has to do."""

    acknowledged: dict[int, list[int]] = field(default_factory=dict)
    #: (what to do with it, entry, session)
    returned: list[tuple[Callable[[Bus, int, int], None], int, int]] = field(default_factory=list)
    sendings: list[Sending] = field(default_factory=list)
    asked: list[tuple[Callable[[Bus], Any], asyncio.Future[Any]]] = field(default_factory=list)
    dead: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Done:
    """What a turn did, to be told when it is committed."""

    unsent: list[tuple[Sending, Exception]] = field(default_factory=list)
    sent: list[Sending] = field(default_factory=list)
    #: Sent too, to queues that last: confirmed when they are on the disk.
    unsynced: list[Sending] = field(default_factory=list)
    answers: list[tuple[asyncio.Future[Any], Any, Exception | None]] = field(default_factory=list)
    deliveries: list[tuple[Consumer, list[Taken]]] = field(default_factory=list)
    #: Queues in which messages were left.
    ready: set[int] = field(default_factory=set)
    to_ring: set[str] = field(default_factory=set)


class Store:
    """A bus in use. All methods are called on the loop; get it by ``Store.open``."""

    def __init__(self, place: Place, loop: LoopThread) -> None:
        self.place = place
        self._loop = loop
        self._bus = Bus()
        self._work = _Work()
        self._consumers: list[Consumer] = []
        #: The sessions here, with whom to tell when they are lost.
        self._sessions: dict[int, Callable[[str], None]] = {}
        #: Those who have a session here, or are about to.
        self._users = 0
        self._context = contextvars.Context()
        self._is_scheduled = False
        self._is_closed = False
        self._busy_since: float | None = None
        #: Why nothing gets done at the moment, or "".
        self.trouble = ""
        self._timers: dict[Callable[[], None], asyncio.TimerHandle] = {}
        self._database: Database
        self._bell: SocketBell | MemoryBell
        if place.path:
            self._database = Database(place)
            self._database.open()
            try:
                self._bell = SocketBell(Path(f"{place.path}-wake"), loop, self._rung)
            except OSError as error:
                self._database.close()
                raise explain(error, place) from error
        else:
            self._database, self._bell = process.join(place, loop, self._rung)
        self._syncer = Syncer(place.path) if place.path else None
        self._must_sync = place.path != "" and place.synchronous == "full"

    @classmethod
    def open(cls, place: Place, loop: LoopThread) -> Store:
        """Return the store of this place and loop.

        Raises:
            ConnectionFailed: the database cannot be used; says why.
            Busy: another process holds the database for itself.
        """
        with process.changing:  # no fork between: the child has to know what to let go
            store = process.stores.get((place, loop))
            if store is None:
                store = process.stores[place, loop] = cls(place, loop)
                store._sweep()
        assert isinstance(store, Store)
        return store

    # -- what transports ask for

    def publish(self, sending: Sending) -> None:
        """Send a message with the next turn."""
        self._work.sendings.append(sending)
        self.schedule()

    def acknowledge(self, consumer: Consumer, entry: int) -> None:
        """Forget a message that the consumer was given."""
        self._work.acknowledged.setdefault(consumer.session, []).append(entry)
        self._settled(consumer)

    def settle(self, consumer: Consumer, entry: int, how: Callable[[Bus, int, int], None]) -> None:
        """Give a message back or reject it: ``how`` is the method of Bus that does it."""
        self._work.returned.append((how, entry, consumer.session))
        self._settled(consumer)

    def _settled(self, consumer: Consumer) -> None:
        consumer.unsettled -= 1
        consumer.is_due = True
        self.schedule()

    async def ask(self, function: Callable[[Bus], Result]) -> Result:
        """Run a function inside of the next turn's transaction and return what it returns.

        It raises, if at all, before it writes anything.

        Raises:
            ConnectionFailed: the turn could not be done, also for a lock that others hold for
                longer than ``lock_timeout``; or the store was lost.
        """
        if self._is_closed:
            raise _lost(self.place)
        future: asyncio.Future[Result] = self._loop.loop.create_future()
        self._work.asked.append((function, future))
        self.schedule()
        return await future

    async def declare(self, topology: Topology) -> None:
        """Make what does not exist yet; raises as Transport.declare."""
        await self.ask(lambda bus: bus.declare(topology))

    async def open_session(self, name: str, on_lost: Callable[[str], None]) -> int:
        """Return the id of a new session, which ends with ``end_session`` or with this process."""
        self._users += 1
        try:
            session = await self.ask(lambda bus: bus.open_session(self._bell.name, name))
        except BaseException:
            self._leave()
            raise
        self._sessions[session] = on_lost
        return session

    async def end_session(self, session: int) -> None:
        """End a session: what it holds goes back; the last one closes the store."""
        self._sessions.pop(session, None)
        self._consumers = [each for each in self._consumers if each.session != session]
        try:
            if not self._is_closed:
                await self.ask(lambda bus: bus.end_session(session))
        finally:
            self._leave()

    async def consume(
        self,
        session: int,
        queue: str,
        prefetch: int,
        hand_over: Callable[[Consumer, Taken], None],
    ) -> Consumer:
        """Start a consumer of an existing queue; raises TransportError where there is none."""

        def start(bus: Bus) -> int:
            found = bus.queue_named(queue, session)
            bus.start_consuming(session, found)
            return found

        consumer = Consumer(session, await self.ask(start), prefetch, True, hand_over)
        self._start(consumer)
        return consumer

    async def get(self, session: int, queue: str) -> tuple[Consumer, Taken] | None:
        """Take the next message of a queue, and a consumer that is there to settle it only."""

        def take(bus: Bus) -> tuple[int, list[Taken]]:
            found = bus.queue_named(queue, session)
            return found, bus.take(session, found, 1)

        def of(asked: asyncio.Future[tuple[int, list[Taken]]]) -> tuple[Consumer, Taken] | None:
            found, taken = asked.result()
            settler = Consumer(session, found, 0, True, lambda consumer, taken: None, unsettled=1)
            return (settler, taken[0]) if taken else None

        def give_back(asked: asyncio.Future[tuple[int, list[Taken]]]) -> None:
            with contextlib.suppress(exceptions.TransportError, asyncio.CancelledError):
                if (got := of(asked)) is not None:
                    self.settle(got[0], got[1].id, Bus.give_back)

        asked = asyncio.ensure_future(self.ask(take))
        try:
            await asyncio.wait([asked])
        except asyncio.CancelledError:  # it may be taken already
            asked.add_done_callback(give_back)
            raise
        return of(asked)

    async def consume_exclusively(
        self, session: int, queue: str, hand_over: Callable[[Consumer, Taken], None]
    ) -> None:
        """Make a queue that goes with the session, and consume it without acknowledging."""

        def start(bus: Bus) -> int:
            made = bus.make_exclusive_queue(session, queue)
            bus.start_consuming(session, made)
            return made

        self._start(Consumer(session, await self.ask(start), 0, False, hand_over))

    def _start(self, consumer: Consumer) -> None:
        self._consumers.append(consumer)
        self.schedule()

    def change_prefetch(self, consumer: Consumer, prefetch: int) -> None:
        """Give a consumer so many messages at a time from now on; those that it has count."""
        consumer.prefetch = prefetch
        consumer.is_due = True
        self.schedule()

    async def stop_consuming(self, consumers: list[Consumer]) -> None:
        """Stop consumers; what they were given may still be settled."""
        self._consumers = [each for each in self._consumers if each not in consumers]

        def stop(bus: Bus) -> None:
            for each in consumers:
                bus.stop_consuming(each.session, each.queue)

        await self.ask(stop)

    # -- turns

    def schedule(self) -> None:
        """Have a turn soon, together with whatever else is asked for until then."""
        if not self._is_scheduled and not self._is_closed:
            self._is_scheduled = True
            # Not in the context of whoever happens to ask first.
            self._loop.loop.call_soon(self._turn, context=self._context)

    def _turn(self) -> None:
        self._is_scheduled = False
        if self._is_closed:
            return
        work, self._work = self._work, _Work()
        done = _Done()
        try:
            with self._database.writing(may_wait=self._busy_since is None) as connection:
                self._bus.begin(connection)
                self._do(work, done)
                self._bus.finish()
        except Busy:
            self._work = work
            self._is_busy()
        except (sqlite3.Error, exceptions.ConnectionFailed) as error:
            self._bus.forget()
            self._has_failed(work, error)
        except Exception as error:  # ours: begin anew rather than leave somebody waiting
            LOG.exception("A turn failed.")
            self._work = work
            self.lose(f"{type(error).__name__}: {error}")
        else:
            self._busy_since = None
            self.trouble = ""
            self._tell(done)

    def _do(self, work: _Work, done: _Done) -> None:
        """The turn itself, inside of its transaction."""
        for bell in work.dead:
            self._bus.bury(bell)
        for session, entries in work.acknowledged.items():
            self._bus.acknowledge(session, entries)
        for how, entry, session in work.returned:
            how(self._bus, entry, session)
        alive: dict[str, bool] = {}
        for sending in work.sendings:
            if not sending.is_over:
                self._send(sending, done, alive)
        for function, future in work.asked:
            result, error = None, None
            try:
                result = function(self._bus)
            except exceptions.TransportError as reason:
                error = reason
            done.answers.append((future, result, error))
        if self._bus.next_expiry is not None and self._bus.next_expiry <= bus.now():
            self._bus.expire()
        self._deliver(done)
        done.ready = self._bus.touched.keys() | self._bus.unfinished
        if self._bus.touched:
            done.to_ring = self._bus.to_wake(self._bell.name)

    def _send(self, sending: Sending, done: _Done, alive: dict[str, bool]) -> None:
        publication = sending.publication
        exchange, routing_key = publication.exchange, publication.routing_key
        if not self._bus.has_exchange(exchange):
            done.unsent.append((sending, no_exchange(publication)))
            return
        queues = self._bus.route(exchange, routing_key)
        for queue in queues:
            # An answer to a caller who died shall not count as delivered.
            if queue.bell and queue.bell != self._bell.name:
                if queue.bell not in alive:
                    alive[queue.bell] = self._bell.is_alive(queue.bell)
                if not alive[queue.bell]:
                    self._bus.bury(queue.bell)
                    queues = self._bus.route(exchange, routing_key)
        if not queues and publication.is_mandatory:
            done.unsent.append((sending, unroutable(publication)))
            return
        for queue in queues:
            self._bus.put(
                queue,
                exchange,
                routing_key,
                sending.properties,
                publication.body,
                publication.properties.expiration,
            )
        if self._must_sync and any(queue.owner is None for queue in queues):
            done.unsynced.append(sending)
        else:
            done.sent.append(sending)

    def _deliver(self, done: _Done) -> None:
        touched = self._bus.touched
        for consumer in self._consumers:
            room = consumer.room
            if room <= 0 or not (consumer.is_due or consumer.queue in touched):
                continue
            if consumer.needs_ack:
                taken = self._bus.take(consumer.session, consumer.queue, room)
            else:
                taken = self._bus.take_for_good(consumer.queue, room)
            has_emptied = len(taken) < room and consumer.queue not in self._bus.unfinished
            if has_emptied:
                touched.pop(consumer.queue, None)
            self._bus.set_waiting(consumer.session, consumer.queue, has_emptied)
            done.deliveries.append((consumer, taken))

    def _tell(self, done: _Done) -> None:
        """Let everybody know what was committed."""
        for answer in done.answers:
            _answer(*answer)
        for sending, failure in done.unsent:
            sending.end(failure)
        for sending in done.sent:
            sending.end(None)
        if done.unsynced:
            assert self._syncer is not None
            self._syncer.add(self._synced_of(done.unsynced))
        for name in done.to_ring:
            if not self._bell.ring(name):
                self._work.dead.add(name)
        self._hand_over(done)
        if self._work.dead:
            self.schedule()
        self._set_expiry()

    def _hand_over(self, done: _Done) -> None:
        for consumer, taken in done.deliveries:
            consumer.is_due = len(taken) >= consumer.room  # cut off; there may be more
            consumer.unsettled += len(taken)
            for each in taken:
                consumer.hand_over(consumer, each)
        for consumer in self._consumers:
            consumer.is_due |= consumer.queue in done.ready
            if consumer.is_due and consumer.room > 0:
                self.schedule()

    def _synced_of(self, sendings: list[Sending]) -> Callable[[OSError | None], None]:
        def synced(error: OSError | None) -> None:
            with contextlib.suppress(exceptions.ConnectionFailed):  # nobody is there to be told
                self._loop.submit(self._synced, sendings, error)

        return synced

    def _synced(self, sendings: list[Sending], error: OSError | None) -> None:
        if error is None:
            for sending in sendings:
                sending.end(None)
        else:
            # What the log has is uncertain now: begin anew, and send it all again.
            self.lose(str(explain(error, self.place)))

    # -- when a turn does not work

    def _is_busy(self) -> None:
        now = self._loop.loop.time()
        if self._busy_since is None:
            self._busy_since = now
        if now - self._busy_since > self.place.lock_timeout and not self.trouble:
            self.trouble = (
                f"another process has locked {self.place} for over {self.place.lock_timeout} s "
                "(lock_timeout): end what uses it for itself"
            )
            LOG.warning("%s. Messages wait until then.", self.trouble)
        if self.trouble:
            asked, self._work.asked = self._work.asked, []
            for _, future in asked:
                _answer(future, None, exceptions.ConnectionFailed(self.trouble))
        pause = min(MAX_BUSY_PAUSE, max(BUSY_PAUSE, (now - self._busy_since) / 10))
        self._after(pause * random.uniform(0.5, 1.5), self.schedule)  # noqa: S311

    def _has_failed(self, work: _Work, error: Exception) -> None:
        """Tell who can be told; what has to be done, such as settling, is tried again."""
        if isinstance(error, sqlite3.Error):
            error = explain(error, self.place)
        if self.trouble != str(error):
            self.trouble = str(error)
            LOG.error("A turn failed: %s", error)
        sendings, asked = work.sendings, work.asked
        work.sendings, work.asked = [], []
        # Before anybody is told: who is refused may have more work for the next turn at once.
        self._work = work
        for sending in sendings:
            sending.end(exceptions.PublishFailed(str(error), is_passing=True))
        for _, future in asked:
            if not future.done():
                future.set_exception(error)
        if isinstance(error, exceptions.ConnectionFailed) and error.is_final:
            self.lose(str(error))
        else:
            self._after(RETRY, self.schedule)

    def lose(self, reason: str) -> None:
        """Give the store up, as if the connection to a broker were lost."""
        if self._is_closed:
            return
        sessions, self._sessions = self._sessions, {}
        self._close()
        for on_lost in sessions.values():
            on_lost(reason)

    # -- bells and clocks

    def _rung(self) -> None:
        for consumer in self._consumers:
            consumer.is_due = True
        self.schedule()

    def _sweep(self) -> None:
        """Look for what no bell tells. It only reads, and costs some microseconds."""
        if self._is_closed:
            return
        if not self._database.is_in_place:
            self.lose(f"{self.place} was removed or replaced")
            return
        self._after(SWEEP, self._sweep)
        # What is wrong here, a turn will say more of.
        reason = ""
        with (
            contextlib.suppress(sqlite3.Error, OSError, exceptions.ConnectionFailed, Busy),
            self._database.reading() as connection,
        ):
            self._bus.look(connection)
            reason = self._look()
        if reason:
            self.lose(reason)
        if self._syncer is not None and not self._is_closed:
            self._syncer.look()

    def _look(self) -> str:
        """Plan what has to be done; return why this store is of no use any more, if so."""
        seen = self._bus
        own = seen.sessions_of(self._bell.name)
        if not self._sessions.keys() <= own:
            return "other processes took this one for dead; was its bell removed?"
        if self._users == len(self._sessions):  # nobody is about to begin or end one
            for orphan in own - self._sessions.keys():
                self._end_orphan(orphan)
        self._work.dead |= {
            bell
            for bell in seen.bells()
            if bell != self._bell.name and not self._bell.is_alive(bell)
        }
        for consumer in self._consumers:
            if consumer.room > 0 and seen.has_ready(consumer.queue):
                consumer.is_due = True
                self.schedule()
        seen.next_expiry = seen.first_expiry()
        self._set_expiry()
        if self._work.dead:
            self.schedule()
        return ""

    def _end_orphan(self, session: int) -> None:
        """End a session whose own end did not work: its disk was full, for example."""
        future = self._loop.loop.create_future()
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._work.asked.append((lambda bus: bus.end_session(session), future))
        self.schedule()

    def _set_expiry(self) -> None:
        first = self._bus.next_expiry
        if first is not None:
            self._after(min(SWEEP, max(0, first - bus.now()) / 1000), self._expire)

    def _expire(self) -> None:
        first = self._bus.next_expiry
        if first is not None and first <= bus.now():
            self.schedule()
        else:
            self._set_expiry()

    def _after(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call back later; sooner than what was planned before for the same callback wins."""
        due = self._loop.loop.time() + seconds
        planned = self._timers.get(callback)
        if planned is not None:
            if planned.when() <= due and not planned.cancelled():
                return
            planned.cancel()

        def run() -> None:
            self._timers.pop(callback, None)
            callback()

        self._timers[callback] = self._loop.loop.call_at(due, run)

    def _leave(self) -> None:
        self._users -= 1
        if not self._users and not self._is_closed:
            self._close()

    def _close(self) -> None:
        self._is_closed = True
        for _, future in self._work.asked:
            if not future.done():
                future.set_exception(_lost(self.place))
        process.stores.pop((self.place, self._loop), None)
        for timer in self._timers.values():
            timer.cancel()
        if self._syncer is not None:
            self._syncer.close()
        if isinstance(self._bell, MemoryBell):
            process.leave(self.place, self._bell)
        else:
            self._bell.close()
            self._database.close()

    # -- forks: see process.py

    def hold(self) -> None:
        """Be idle from now on, and use no file: this process is about to fork."""
        self._database.lock.acquire()
        if self._syncer is not None:
            self._syncer.lock.acquire()
        if self.place.path:
            # SQLite must not carry a connection over a fork: the child would take locks for
            # granted that are its parent's.
            self._database.close()
            if self._syncer is not None:
                self._syncer.expect_no_log()

    def go_on(self) -> None:
        """Go on after ``hold``."""
        if self._syncer is not None:
            self._syncer.lock.release()
        self._database.lock.release()

    def abandon(self) -> None:
        """Close what a child inherited: it would keep its parent alive in the eyes of others."""
        if isinstance(self._bell, SocketBell):
            self._bell.abandon()
        if self._syncer is not None:
            self._syncer.abandon()


def _answer(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.done():
        return  # who asked was cancelled
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def _lost(place: Place) -> exceptions.ConnectionFailed:
    return exceptions.ConnectionFailed(f"the connection to {place} was lost")
