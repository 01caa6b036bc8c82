# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""A signal handler at each moment of some work, one after the other."""

from __future__ import annotations

import dis
import gc
import sys
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any

#: Behind these instructions Python looks for signals.
_LOOKS = {
    number
    for name, number in dis.opmap.items()
    if name.startswith(("CALL", "RESUME", "JUMP_BACKWARD"))
}


def is_kept_by_asyncio() -> bool:
    """Tell whether asyncio keeps an OSError to itself that is raised here: in waking its loop."""
    return any(each.name == "_write_to_self" for each in traceback.extract_stack())


def interrupt(work: Callable[[], object], moment: int, handler: Callable[[], None]) -> bool:
    """Do some work, with the handler at one of its moments; False where it has not so many.

    A moment is one at which Python would run the handler of a signal. What the handler raises is
    raised there.
    """
    is_over, seen = False, 0
    last: dict[FrameType, int] = {}

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal is_over, seen
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode" and not is_over:
            looks = last.get(frame) in _LOOKS
            last[frame] = frame.f_code.co_code[frame.f_lasti]
            seen += looks
            if looks and seen > moment:
                is_over = True
                sys.settrace(None)
                handler()
        return trace

    before = sys.gettrace()
    gc.disable()  # what is raised in a finalizer goes no further
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
        last.clear()  # which keeps what the frames have to end
        gc.enable()
    return is_over
