# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""``tavrida-server --reload``: the server as a child process, started anew when sources change.

For development. This process imports no plugin, so that nothing of theirs is ever old in it.
"""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType

from tavrida import plugins

#: Milliseconds between two looks at files that are watched one by one, and at the child.
TURN = 250

#: Seconds that handlers get to finish before a restart; in development nobody waits for longer.
PATIENCE = 5.0


def serve(arguments: list[str], files: Iterable[str], folders: Iterable[str]) -> int:
    """Serve with these arguments until SIGTERM, SIGINT or SIGHUP, and return the exit code.

    The server is started anew when a source of an installed plugin changes, one of ``files`` or of
    the ``*.conf`` in ``folders``; not as long as a source does not parse.
    """
    try:
        import watchfiles
    except ModuleNotFoundError:
        _say("--reload needs the extra 'reload': pip install 'tavrida[reload]'")
        return 1
    sources = Sources({Path(path) for path in files}, {Path(path) for path in folders})
    # The last one holds: the child is an ordinary server.
    child = Child([sys.executable, sys.argv[0], *arguments, "--noreload"])
    child.start()
    for changes in watchfiles.watch(
        *sources.folders,
        watch_filter=lambda change, path: sources.has(Path(path)),
        stop_event=child.is_to_end,
        rust_timeout=TURN,
        yield_on_timeout=True,
    ):
        changed = {Path(path) for _, path in changes} | sources.changed_files()
        if not changed:
            child.tell_if_ended()
            continue
        faults = sources.faults_after(changed)
        if faults:
            _say(
                "a source does not parse, so that nothing is restarted until the next change:\n"
                + "\n".join(faults)
            )
        else:
            names = ", ".join(sorted(path.name for path in changed))
            _say(f"{names} changed: starting again.")
            child.start()
    return child.end()


class Sources:
    """The files whose changes matter: folders, and files that are watched one by one.

    An editor may put another file in the place of one, which is no change of that one; and the
    folder of an ini may have anything beside it. So single files are looked at by their times.
    """

    def __init__(self, files: set[Path], config_dirs: set[Path]) -> None:
        self._config_dirs = {path.resolve() for path in config_dirs}
        self._files = {path.resolve() for path in files}
        self.folders = {path for path in self._config_dirs if path.is_dir()}
        for place in _places_of_plugins():
            (self.folders if place.is_dir() else self._files).add(place)
        self._times = {path: _time_of(path) for path in self._files}
        self._broken: set[Path] = set()

    def has(self, path: Path) -> bool:
        """Tell whether a file in one of the folders matters."""
        return path.suffix == ".py" or (path.suffix == ".conf" and path.parent in self._config_dirs)

    def changed_files(self) -> set[Path]:
        """Return which of the single files have changed since the last time."""
        times = {path: _time_of(path) for path in self._files}
        before, self._times = self._times, times
        return {path for path in self._files if times[path] != before[path]}

    def faults_after(self, changed: set[Path]) -> list[str]:
        """Return why sources do not parse: those that changed, and those that did not before."""
        faults = {path: fault_of(path) for path in self._broken | changed if path.suffix == ".py"}
        self._broken = {path for path, fault in faults.items() if fault}
        return [fault for fault in faults.values() if fault]


def _places_of_plugins() -> Iterator[Path]:
    """Give the folder of each package that has a plugin, or its file where it is a module."""
    points = [point for namespace in plugins.NAMESPACES for point in plugins.installed(namespace)]
    for name in {point.value.partition(":")[0].partition(".")[0] for point in points}:
        spec = importlib.util.find_spec(name)  # of a name without dots: it imports nothing
        if spec is None:
            continue  # the server itself says so
        if spec.submodule_search_locations is not None:
            yield from (Path(path).resolve() for path in spec.submodule_search_locations)
        elif spec.origin is not None:
            yield Path(spec.origin).resolve()


def _time_of(path: Path) -> int:
    """Return when a file was changed; 0 where there is none just now."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def fault_of(path: Path) -> str:
    """Return Python's words about a source that does not parse, or nothing."""
    try:
        with warnings.catch_warnings(action="ignore"):
            compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        return "".join(traceback.format_exception_only(error)).rstrip()
    except OSError:
        return ""  # it is gone: who imports it says so
    return ""


class Child:
    """The server, whenever it runs. Takes the signals of this process over."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._signals: list[int] = []
        #: Set when this process is to end, and the child with it.
        self.is_to_end = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def start(self) -> None:
        """Start it, after ending the one before; not when all is to end."""
        self._stop()
        if not self.is_to_end.is_set():
            self._process = subprocess.Popen(self._command)  # noqa: S603 - ours

    def _stop(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            _say(f"handlers still run after {PATIENCE:g} s; their messages come again.")
            self._process.terminate()
            self._process.wait()
        self._process = None

    def tell_if_ended(self) -> None:
        """Say so if it has ended by itself, once."""
        if self._process is not None and self._process.poll() is not None:
            _say(f"ended with exit code {self._process.returncode}; waiting for the next change.")
            self._process = None

    def end(self) -> int:
        """Let it finish, and return its exit code; 0 where it does not run."""
        if self._process is None:
            return 0
        # Ctrl-C on a terminal went to both, and a second signal would end it at once.
        if self._signals != [signal.SIGINT] or not sys.stdin.isatty():
            self._process.terminate()
        return self._process.wait()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)
        if self.is_to_end.is_set() and self._process is not None:
            self._process.terminate()
        self.is_to_end.set()


def _say(text: str) -> None:
    print(f"tavrida-server: {text}", file=sys.stderr, flush=True)
