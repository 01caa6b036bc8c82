# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Waiting: the end of a call, or of a confirm, for a thread that does nothing else meanwhile."""

from __future__ import annotations

import threading
from concurrent.futures import InvalidStateError
from typing import Generic, TypeVar

from tavrida.interruptions import is_raised_in

Result = TypeVar("Result")


class Waiting(Generic[Result]):
    """The end of a call, or a confirm, for a thread that does nothing but wait for it.

    A tenth of the price of a future, which can be looked at, cancelled and called back of. Who ends
    it waits for no lock, which a signal handler could keep who waits from ever giving back.
    """

    __slots__ = ("_error", "_lock", "_result")

    def __init__(self) -> None:
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._lock.acquire()  # released by the end

    def set_result(self, result: Result, /) -> None:
        self._result = result
        self._end()

    def set_exception(self, exception: BaseException, /) -> None:
        self._error = exception
        self._end()

    def _end(self) -> None:
        try:
            self._lock.release()
        except RuntimeError as error:
            if not is_raised_in(error, __name__):
                raise
            raise InvalidStateError from None

    def cancelled(self) -> bool:
        return False

    @property
    def has_ended(self) -> bool:
        """True when ``result`` returns, or raises, at once. In the thread that waits."""
        return not self._lock.locked()

    def result(self) -> Result:
        """Wait, then return the result or raise why there is none; once."""
        self._lock.acquire()
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # its traceback has this frame, which has us
        return self._result
