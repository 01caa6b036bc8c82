# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""What a signal handler raises, told from what the code raises that it interrupts.

Python runs signal handlers in the main thread, between any two instructions there. An exception of
one comes out of whatever was just called, also out of what raises such exceptions itself.
"""

from __future__ import annotations

import threading


def may_come() -> bool:
    """Tell whether an exception may be a signal handler's here: in the main thread."""
    return threading.current_thread() is threading.main_thread()


def is_raised_in(error: BaseException, module: str) -> bool:
    """Tell whether code of this module raised an exception, or C code that it called.

    Not so what came from a signal handler, which has a frame of its own module.
    """
    innermost = error.__traceback__
    while innermost is not None and innermost.tb_next is not None:
        innermost = innermost.tb_next
    return innermost is not None and innermost.tb_frame.f_globals.get("__name__") == module
