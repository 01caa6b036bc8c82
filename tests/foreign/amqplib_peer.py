# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The client of Node's amqplib, in peer.js."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from tests.foreign.peer import EXCHANGE, QUEUE, Answer, Sent
from tests.waiting import DEADLINE

PROGRAM = Path(__file__).with_name("peer.js")

#: Where npm puts the package: a folder of the checkout that git ignores.
CACHE = Path(__file__).parents[2] / ".node"


def missing() -> str | None:
    """Install amqplib once; return why it cannot be used, None where it can."""
    for name in ("node", "npm"):
        if shutil.which(name) is None:
            return f"there is no {name} on this machine"
    if (CACHE / "node_modules" / "amqplib").is_dir():
        return None
    CACHE.mkdir(exist_ok=True)
    command = ["npm", "install", "--prefix", str(CACHE), "--no-audit", "--no-fund", "amqplib@^2"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=2 * DEADLINE, check=False
        )
    except subprocess.TimeoutExpired:
        return "npm could not install amqplib in time; is its registry reachable?"
    if done.returncode != 0:
        return f"npm could not install amqplib; is its registry reachable? {done.stderr[-200:]}"
    return None


def tell(url: str, sent: Sent) -> None:
    _run("tell", url, sent, is_direct=False)


def ask(url: str, sent: Sent, *, is_direct: bool) -> Answer:
    told = json.loads(_run("ask", url, sent, is_direct=is_direct))
    return Answer(**{**told, "body": base64.b64decode(told["body"])})


@contextlib.contextmanager
def listen(url: str, exchange: str, key: str) -> Iterator[SimpleQueue[bytes]]:
    bodies: SimpleQueue[bytes] = SimpleQueue()
    with _running("listen", url, {"exchange": exchange, "key": key}, bodies):
        yield bodies


@contextlib.contextmanager
def serve(url: str) -> Iterator[None]:
    with _running("serve", url, {"exchange": EXCHANGE, "queue": QUEUE}, SimpleQueue()):
        yield


def _environment() -> dict[str, str]:
    return os.environ | {"NODE_PATH": str(CACHE / "node_modules")}


def _run(what: str, url: str, sent: Sent, **more: Any) -> str:
    told = {**asdict(sent), "body": base64.b64encode(sent.body).decode(), **more}
    done = subprocess.run(
        ["node", PROGRAM, what, url, json.dumps(told)],
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextlib.contextmanager
def _running(
    what: str, url: str, told: dict[str, Any], bodies: SimpleQueue[bytes]
) -> Iterator[None]:
    """Run the program while the block runs; put the bodies that it tells into the queue."""
    is_ready = threading.Event()
    with subprocess.Popen(
        ["node", PROGRAM, what, url, json.dumps(told)],
        env=_environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                data = json.loads(line)
                if data == "ready":
                    is_ready.set()
                else:
                    bodies.put(base64.b64decode(data["body"]))

        reader = threading.Thread(target=read)
        reader.start()
        try:
            assert is_ready.wait(DEADLINE)
            yield
        finally:
            process.kill()
            reader.join()
