# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""What ``dedup`` costs a message: ``./dev bench dedup``. README.md says what each figure means."""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tavrida.messages import IncomingRequest
from tavrida.middleware import Middleware
from tavrida.plugins.middleware.dedup import Dedup
from tavrida.plugins.middleware.sqlite_store import SQLiteStore
from tavrida.plugins.middleware.stores import MemoryStore, Store

#: Microseconds of the clock, and of the CPU.
Cost = tuple[float, float]


def cost(chain: Middleware, count: int, first: str) -> Cost:
    """Return what one message costs on its way to its handler and after it."""
    messages = [IncomingRequest(message_id=f"{first}{n}") for n in range(count)]
    began, cpu = time.perf_counter(), time.process_time()
    for message in messages:
        chain.process(message)
        chain.before_settle(message, None, None)
    took, used = time.perf_counter() - began, time.process_time() - cpu
    return took / count * 1e6, used / count * 1e6


def _process(path: str, count: int, number: int) -> Cost:
    return cost(Dedup(SQLiteStore(path)), count, f"{number}-")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--dir", help="the folder of the database; default: that for temporary files"
    )
    parser.add_argument("--count", type=int, default=20_000, help="messages of a round")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:

        def show(name: str, round_of: Callable[[int], Cost]) -> None:
            took, used = zip(*(round_of(number) for number in range(args.rounds)), strict=True)
            print(
                f"{name:<28} {statistics.median(took):7.1f} us a message "
                f"({min(took):.1f}-{max(took):.1f}), {statistics.median(used):.1f} us of CPU"
            )

        stores: dict[str, Store] = {
            "memory": MemoryStore(),
            "sqlite, 1 process": SQLiteStore(str(Path(folder) / "one.db")),
        }
        show("no dedup", lambda n: cost(Middleware(), args.count, f"{n}-"))
        for name, store in stores.items():
            dedup = Dedup(store)
            show(f"{name}, new", lambda n, d=dedup: cost(d, args.count, f"{n}-"))  # type: ignore[misc]
            show(f"{name}, duplicates", lambda n, d=dedup: cost(d, args.count, "0-"))  # type: ignore[misc]
            store.close()
        shared = str(Path(folder) / "two.db")
        with multiprocessing.get_context("spawn").Pool(2) as pool:

            def both(number: int) -> Cost:
                each = [(shared, args.count // 2, 2 * number + n) for n in range(2)]
                one, other = pool.starmap(_process, each)
                return (one[0] + other[0]) / 2, (one[1] + other[1]) / 2

            show("sqlite, 2 processes, new", both)


if __name__ == "__main__":
    main()
