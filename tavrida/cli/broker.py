# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""A connection of a command's own to the broker, for as long as the command needs it."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import socket
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tavrida import plugins
from tavrida.config import ConnectionConfig
from tavrida.loop import LoopThread
from tavrida.plugins.transports import Events, Transport

Result = TypeVar("Result")


async def connected(
    config: ConnectionConfig,
    loop: LoopThread,
    what: str,
    action: Callable[[Transport], Awaitable[Result]],
    attempts: int | None = None,
) -> Result:
    """Run an action with an open transport; give up when the connection is lost for good.

    ``what`` names the command for operators who list connections. ``attempts`` are the rounds
    over all nodes before the first connection, where not ``connection_attempts``.

    Raises:
        ConnectionFailed: there is no connection, or none any more.
        ConfigError: the url can never work.
    """
    cls = plugins.load(plugins.TRANSPORTS, config.scheme, Transport)  # type: ignore[type-abstract]
    cls.check(config)
    failed: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
    events = Events(lambda reason: None, failed.set_result)
    name = f"tavrida {what}@{socket.gethostname()} {os.getpid()}"
    transport = cls(config, loop, name, events)
    await transport.open(config.connection_attempts if attempts is None else attempts)
    acting = asyncio.ensure_future(action(transport))
    try:
        either: set[asyncio.Future[object]] = {acting, failed}  # type: ignore[arg-type]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not acting.done():
            raise failed.result()
        return acting.result()
    finally:
        acting.cancel()
        await transport.close()


def at_broker(
    config: ConnectionConfig, what: str, action: Callable[[Transport], Awaitable[Result]]
) -> Result:
    """Run an action with an open transport, as ``connected`` does, and return its result."""
    # A server waits for its broker for ever; a person does not.
    config = dataclasses.replace(config, reconnect_attempts=config.connection_attempts)
    loop = LoopThread(f"tavrida-{what}")
    try:
        return loop.run(connected(config, loop, what, action))
    finally:
        loop.stop()
