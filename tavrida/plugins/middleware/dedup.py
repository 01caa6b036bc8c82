# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""``dedup``: handles a message once, however often it arrives. docs/duplicates.md explains it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import msgspec

from tavrida import context, exceptions, plugins
from tavrida.loop import is_on_a_loop
from tavrida.messages import Error, IncomingMessage, IncomingRequest, Message, Response
from tavrida.middleware import Middleware, Skipped
from tavrida.plugins.middleware import keys
from tavrida.plugins.middleware.stores import Done, Known, MemoryStore, Store, check_seconds

LOG = logging.getLogger(__name__)

#: What is kept of an answer instead of one.
NO_ANSWER, TRANSFERRED, TOO_LARGE = b"", b"transferred", b"too large"

#: Seconds between two looks at whether a message is still being handled; they grow.
FIRST_LOOK, LAST_LOOK = 0.01, 0.5


class Dedup(Middleware):
    """Lets a message through to its handler once; later ones of its key are not handled.

    A message is done when its handler ended and the broker confirmed all that it sent. One that
    failed, or whose process died, is handled again. While one is handled, others of its key wait,
    ``wait`` seconds at most. Of the answer of a request at most ``max_answer`` bytes are kept.

    Raises:
        ConfigError: the key is none, or ``wait`` is below 0 or not finite.
    """

    def __init__(
        self,
        store: Store | None = None,
        key: str = "message_id",
        *,
        wait: float = 60.0,
        max_answer: int = 65_536,
    ) -> None:
        keys.path_of(key)
        self.store = MemoryStore() if store is None else store
        self._key = key
        self._wait = check_seconds("wait", wait)
        self._max_answer = max_answer
        # By what is being handled: its claimed key, and what is kept if it has no answer.
        self._claims: dict[context.Handled | None, tuple[bytes, bytes]] = {}
        self._threads = ThreadPoolExecutor(1, "tavrida-dedup")

    @classmethod
    def list_opts(cls) -> list[Any]:
        from oslo_config import cfg

        return [
            cfg.StrOpt(
                "store", default="sqlite", help="The plugin (tavrida.dedup_stores) that remembers."
            ),
            cfg.StrOpt(
                "place",
                default="",
                help="Where the store is. For sqlite the path of a file, by default dedup.db in "
                "the user's state folder, which is for all processes of this user.",
            ),
            cfg.StrOpt(
                "key",
                default="message_id",
                help="By what a message is known: message_id, payload.NAME, headers.NAME, or off, "
                "where handlers name it with a decorator. Without such a key it is message_id.",
            ),
            cfg.FloatOpt(
                "keep", default=86_400.0, min=0.0, help="Seconds that a handled message is known."
            ),
            cfg.FloatOpt(
                "lease",
                default=3600.0,
                min=1.0,
                help="Seconds after which a message whose handler never ended may be handled "
                "again, where the store cannot know that its process is gone.",
            ),
            cfg.FloatOpt(
                "wait",
                default=60.0,
                min=0.0,
                help="Seconds that a duplicate waits for the message that is being handled, "
                "before it fails.",
            ),
            cfg.IntOpt(
                "max_answer",
                default=65_536,
                min=0,
                help="Bytes of an answer that are kept for duplicates of its request.",
            ),
        ]

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        store = plugins.load(plugins.DEDUP_STORES, options["store"], Store)  # type: ignore[type-abstract]
        return cls(
            store(options["place"], options["keep"], options["lease"]),
            options["key"],
            wait=options["wait"],
            max_answer=options["max_answer"],
        )

    def process(self, message: Message) -> Message | Awaitable[Message]:
        if not isinstance(message, IncomingMessage):
            return message
        key = keys.digest_of(message, self._key)
        if key is None:
            return message
        end = time.monotonic() + self._wait
        if message.time_left is not None:
            end = min(end, time.monotonic() + message.time_left)
        if is_on_a_loop():
            return self._process_on_loop(message, key, end)
        pause = FIRST_LOOK
        while (known := self.store.claim(key)) is not None:
            if isinstance(known, Done):
                return _end_of(message, known.answer)
            _check(message, end)
            time.sleep(pause)
            pause = min(2 * pause, LAST_LOOK)
        self._begin(message, key)
        return message

    async def _process_on_loop(self, message: IncomingMessage, key: bytes, end: float) -> Message:
        pause = FIRST_LOOK
        while (known := await self._claim_on_loop(key)) is not None:
            if isinstance(known, Done):
                return _end_of(message, known.answer)
            _check(message, end)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_LOOK)
        self._begin(message, key)
        return message

    async def _claim_on_loop(self, key: bytes) -> Known:
        if not self.store.may_block:
            return self.store.claim(key)
        claiming = self._threads.submit(self.store.claim, key)
        try:
            return await asyncio.wrap_future(claiming)
        except asyncio.CancelledError:  # the loop is going down, and nobody is to handle it
            claiming.add_done_callback(lambda claimed: self._let_go(claimed, key))
            raise

    def _let_go(self, claimed: Future[Known], key: bytes) -> None:
        if not claimed.cancelled() and claimed.exception() is None and claimed.result() is None:
            self._release(key)

    def _begin(self, message: IncomingMessage, key: bytes) -> None:
        expects = isinstance(message, IncomingRequest) and message.expects_answer
        self._claims[context.handled.get()] = key, TRANSFERRED if expects else NO_ANSWER

    def before_settle(
        self, message: IncomingMessage, answer: Message | None, error: BaseException | None
    ) -> None:
        key, kept = self._claims.pop(context.handled.get(), (None, NO_ANSWER))
        if key is None:
            return
        if error is not None:
            self._release(key)
            return
        if answer is not None:
            kept = _written(answer, self._max_answer)
        try:
            self.store.finish(key, kept)
        except Exception as failure:
            LOG.error(  # noqa: TRY400 - the sentence says it all
                "A message was handled, and a duplicate would be handled again: %s", failure
            )
            self._release(key)

    def _release(self, key: bytes) -> None:
        try:
            self.store.release(key)
        except Exception as failure:
            LOG.error(  # noqa: TRY400 - the same
                "A message failed, and its duplicates elsewhere wait for it in vain: %s", failure
            )


def _check(message: IncomingMessage, end: float) -> None:
    if time.monotonic() >= end:
        raise exceptions.DuplicateRunning(
            f"{message.message_id or 'a message'} to {message.destination or message.source} is a "
            "duplicate of one that is still being handled, and was waited for as long as wait in "
            "[middleware:dedup] allows"
        )


def _end_of(message: IncomingMessage, answer: bytes) -> Message:
    """Return what a duplicate ends with."""
    LOG.info(
        "Dropped a duplicate: message %s to %s was handled before.",
        message.message_id or "without id",
        message.destination or message.source,
    )
    if not isinstance(message, IncomingRequest) or not message.expects_answer:
        return Skipped()
    if answer == TRANSFERRED:  # whoever has it now answers
        message.reply_to = ""
        return Skipped()
    if answer in (NO_ANSWER, TOO_LARGE):
        why = "was over max_answer" if answer else "went to nobody"
        raise exceptions.AnswerNotKept(
            f"request {message.message_id} to {message.destination} was handled before, and its "
            f"answer was not kept: it {why}"
        )
    return _read(answer)


def _written(answer: Message, max_size: int) -> bytes:
    """Return what is kept of an answer."""
    carried = {key: value for key, value in answer.context.items() if key not in answer.payload}
    parts = (answer.message_type, answer.payload, carried, answer.extra_headers)
    try:
        kept = msgspec.msgpack.encode(parts)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return TOO_LARGE  # the serializer can write what MessagePack cannot
    return kept if len(kept) <= max_size else TOO_LARGE


def _read(kept: bytes) -> Message:
    kind, payload, carried, headers = msgspec.msgpack.decode(kept)
    cls = Response if kind == Response.message_type else Error
    return cls(payload, carried, headers)
