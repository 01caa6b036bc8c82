# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Writes the transcripts of cli.md from real runs: ``python -m docs.transcripts``.

A block below ``<!-- transcript -->`` is a terminal, 80 columns wide, in a home folder with the
example's ``hello.conf``, whose two services run on an embedded bus. Its ``$`` lines are run one
after the other, and what they print replaces what stands there. ``<!-- transcript, meanwhile:
COMMAND -->`` runs a command beside the first one, as soon as that has printed something.

What differs from run to run is replaced: folder, host, version, process id, times and ids.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import pty
import re
import shutil
import socket
import struct
import subprocess
import sysconfig
import tempfile
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from tavrida import plugins

PAGE = Path(__file__).parent / "cli.md"
ETC = Path(__file__).parent.parent / "examples" / "hello_world" / "etc"

COLUMNS = 80

#: Seconds that a command may take, or a server to start.
PATIENCE = 60

_BLOCK = re.compile(
    r"(?P<mark><!-- transcript(?:, meanwhile: (?P<meanwhile>[^\n]*))? -->\n```console\n)"
    r"(?P<text>.*?)(?=```)",
    re.DOTALL,
)

#: What a message is called instead of by its own id.
_IDS = ("c0ffee5bada55e017", "5eedca5cade1fab09", "0ddba11f005ba1123", "decade5ca1ab1e045")


def rewritten(text: str) -> str:
    """Return a page with the transcripts of commands that are run now."""
    with tempfile.TemporaryDirectory(prefix="tavrida-docs-") as folder:
        terminal = _Terminal(Path(folder))
        with terminal.serving():

            def rewrite(block: re.Match[str]) -> str:
                commands = [line[2:] for line in block["text"].splitlines() if line[:2] == "$ "]
                said = terminal.run_all(commands, block["meanwhile"] or "")
                return f"{block['mark']}{said}"

            return _BLOCK.sub(rewrite, text)


class _Terminal:
    """A home folder, and a terminal in it."""

    def __init__(self, home: Path) -> None:
        self._home = home
        for path in ETC.glob("*.conf"):
            shutil.copy(path, home)
        # What fails for good becomes a dead letter at once.
        with (home / "hello.conf").open("a") as file:
            file.write("\n[retry]\nattempts = 1\n")
        kept = {name: value for name, value in os.environ.items() if name in ("LANG", "LC_ALL")}
        self._environment = kept | {
            "HOME": str(home),
            "PATH": f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}",
            "TERM": "dumb",
            "NO_COLOR": "1",
        }
        self._ids: dict[str, str] = {}
        self._pid = 0

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """Run the example's services for as long as the block does."""
        server = subprocess.Popen(
            ["tavrida-server", "--config-file", "hello.conf"],
            cwd=self._home,
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._pid = server.pid
        killer = threading.Timer(PATIENCE, server.kill)
        killer.start()
        assert server.stderr is not None
        with server.stderr as errors:
            log = list(itertools.takewhile(lambda line: "is serving" not in line, errors))
            killer.cancel()
            if server.poll() is not None:
                raise RuntimeError(f"the services did not start: {''.join(log)}")
            # Nobody reads what they log from here on, and it shall not fill the pipe.
            reader = threading.Thread(target=errors.read)
            reader.start()
            try:
                yield
            finally:
                server.terminate()
                server.wait(PATIENCE)
                reader.join()

    def run_all(self, commands: list[str], meanwhile: str) -> str:
        """Return what a terminal shows while these are typed."""
        said = []
        code = 0
        for command in commands:
            if command == "echo $?":
                printed = f"{code}\n"
            else:
                code, printed = self._run(self._real(command), meanwhile)
                meanwhile = ""
            said.append(f"$ {command}\n{self._normal(printed)}")
        return "".join(said)

    def _run(self, command: str, meanwhile: str) -> tuple[int, str]:
        """Return the exit code of a command, and what it printed on a terminal."""
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
        process = self._start(command, theirs)
        os.close(theirs)
        killer = threading.Timer(PATIENCE, process.kill)
        killer.start()
        printed = b""
        try:
            # EIO is how Linux says that nobody has the other end any more.
            with contextlib.suppress(OSError):
                while chunk := os.read(ours, 65536):
                    printed += chunk
                    if meanwhile:
                        self._start(meanwhile, subprocess.DEVNULL).wait(PATIENCE)
                        meanwhile = ""
        finally:
            os.close(ours)
            process.wait()
            killer.cancel()
        return process.returncode, printed.decode().replace("\r\n", "\n")

    def _start(self, command: str, output: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            ["bash", "-c", command],
            cwd=self._home,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )

    def _real(self, command: str) -> str:
        """Return a command with the real id of a message instead of what the page calls it."""
        known = {shown: real for real, shown in self._ids.items()}

        def replace(word: re.Match[str]) -> str:
            return next((known[each] for each in known if each.startswith(word[0])), word[0])

        return re.sub(r"\b[0-9a-f]{4,}\b", replace, command)

    def _shown_id(self, real: str) -> str:
        """Return what the page calls a message id, or the beginning of one."""
        for known, shown in self._ids.items():
            if known.startswith(real) or real.startswith(known):
                return shown[: len(real)]
        self._ids[real] = _IDS[len(self._ids)]
        return self._ids[real][: len(real)]

    def _normal(self, text: str) -> str:
        """Return what was printed, without what differs from run to run."""
        rules: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
            (re.escape(str(self._home)), "/home/ann"),
            (rf"\b{re.escape(plugins.version())}(?![\w.])", "2.0.0"),
            (rf"\b{re.escape(socket.gethostname())}\b(?= *\||\")", "hermes"),
            (rf"\b{self._pid}\b", "4711"),
            (r"\b\d\d:\d\d:\d\d\b", "12:00:00"),
            (r"\b20\d\d-\d\d-\d\dT", "2030-01-01T"),
            (r"\b\d+[smh]( ago\b| +\| [\w.]+\.dead)", r"5s\1"),
            (r"\b[0-9a-f]{16,20}\b|(?<=\| )[0-9a-f]{8}(?= )", lambda m: self._shown_id(m[0])),
        ]
        for pattern, replacement in rules:
            text = re.sub(pattern, replacement, text)
        return _tidied(text)


def _tidied(text: str) -> str:
    """Return the text with its tables drawn anew, since their cells have other lengths now."""
    found: list[str] = []
    table: list[str] = []
    for line in [*text.splitlines(), ""]:
        if line[:1] in ("+", "|") and line[:1]:
            table.append(line)
            continue
        if table:
            found += _drawn(table)
            table = []
        found.append(line)
    return "\n".join(found[:-1]) + "\n" if len(found) > 1 else ""


def _drawn(table: list[str]) -> list[str]:
    rows = [line[2:-2].split(" | ") for line in table if line[0] == "|"]
    if len({len(row) for row in rows}) != 1:  # a cell has the sign itself
        return table
    columns = list(zip(*rows, strict=True))
    widths = [max(len(cell.strip()) for cell in column) for column in columns]
    is_right = [all(not cell.endswith(" ") for cell in column) for column in columns]

    def draw(line: str) -> str:
        if line[0] == "+":
            return "+" + "".join(f"{'-' * (width + 2)}+" for width in widths)
        cells = [
            cell.strip().rjust(width) if right else cell.rstrip().ljust(width)
            for cell, width, right in zip(line[2:-2].split(" | "), widths, is_right, strict=True)
        ]
        return f"| {' | '.join(cells)} |"

    return [draw(line) for line in table]


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
