# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Where something stands in the ini files, and what stands there that nobody reads."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from tavrida import exceptions

#: A file's values by section and option, as oslo.config's parser gives them.
Sections = Mapping[str, Iterable[str]]

#: How near the name of a section has to be to count as a slip; services of one file are often
#: alike (``shop_eu``, ``shop_us``) and mean it.
_SLIP = 0.85


def files_of(
    arguments: Sequence[str], default_files: Iterable[str], default_dirs: Iterable[str]
) -> list[Path]:
    """Return the files in the order in which oslo.config reads them; the last one wins.

    What the command line names comes in its order, after the defaults: files where it names no
    file, folders where it names no folder.
    """
    named = [
        (name, value if equals else following)
        for argument, following in zip_longest(arguments, arguments[1:], fillvalue="")
        for name, equals, value in [argument.partition("=")]
        if name in ("--config-file", "--config-dir")
    ]
    kinds = {kind for kind, _ in named}
    found = [] if "--config-file" in kinds else list(map(Path, default_files))
    folders = [] if "--config-dir" in kinds else [("--config-dir", path) for path in default_dirs]
    for kind, name in (*folders, *named):
        path = Path(name).expanduser()
        found += [path] if kind == "--config-file" else sorted(path.glob("*.conf"))
    return found


@dataclass(frozen=True, slots=True)
class Source:
    """Who gives an option its value: ``file``, ``environment``, ``command line`` or ``default``."""

    kind: str
    #: The path of the file, or the name of the variable or of the argument.
    name: str = ""
    line: int = 0

    def __str__(self) -> str:
        return f"{self.name}:{self.line}" if self.line else self.name or self.kind


def sources_of(files: Sequence[Path], section: str, name: str) -> list[Source]:
    """Return all that set an option in the environment and in files; the first one counts."""
    found = []
    variable = f"OS_{section}__{name}".upper()
    if variable in os.environ:
        found.append(Source("environment", variable))
    for path in reversed(files):
        found += [Source("file", str(path), line) for line in lines_of(path, section, name)]
    return found


def place_of(files: Sequence[Path], section: str, name: str) -> str:
    """Return "FILE:LINE: ", or the name of an environment variable, that sets an option."""
    sources = sources_of(files, section, name)
    return f"{sources[0]}: " if sources else ""


def line_of(path: Path, section: str, name: str = "") -> int:
    """Return the line of a section's heading, or of the last setting of an option in it; or 0."""
    return next(iter(lines_of(path, section, name)), 0)


def lines_of(path: Path, section: str, name: str = "") -> list[int]:
    """Return the line of a section's heading, or of all settings of an option; the last first."""
    here = ""
    found: list[int] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        heading = re.match(r"\[(.+?)\]", line)
        if heading:
            here = heading[1]
            if not name and here == section:
                return [number]
        elif name and here.lower() == section.lower():
            key = re.match(r"([^\s=:]+)\s*[=:]", line)
            if key and key[1] == name:
                found.insert(0, number)
    return found


def no_text_in(path: Path) -> str:
    """Return "FILE:LINE" of what is no UTF-8 in a file, or nothing."""
    try:
        content = path.read_bytes()
        content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return f"{path}:{line}"
    except OSError:
        pass
    return ""


def strangers(path: Path, sections: Sections, known: Sections, opaque: set[str]) -> list[str]:
    """Return a sentence for each section and option of a file that nobody reads.

    ``known`` are the options that are read, by section; what the sections in ``opaque`` may have
    is not known, because their plugin could not be loaded.
    """
    faults = []
    for section, names in sections.items():
        if section not in known:
            near = _near_section(section, sections, known)
            if near is not None:
                line = line_of(path, section)
                faults.append(f"{path}:{line}: section [{section}] is unknown{near}")
        elif section not in opaque:
            faults += [
                f"{path}:{line_of(path, section, name)}: [{section}] {name} is unknown"
                f"{_near_option(section, name, known)}"
                for name in names
                if name not in known[section]
            ]
    return faults


def strange_variables(known: Mapping[str, Iterable[str]]) -> list[str]:
    """Return a sentence for each environment variable that looks like an option and is none.

    ``known`` are the options of the sections that a variable can reach. Other programs have
    variables of this form too, so that of a section far from all of these is left alone.
    """
    faults = []
    for variable in sorted(os.environ):
        found = re.fullmatch(r"OS_([A-Z]+)__([A-Z0-9_]+)", variable.upper())
        if not found:
            continue
        section, name = found[1].lower(), found[2].lower()
        if variable != variable.upper():
            if name in known.get(section, ()):
                faults.append(f"{variable} is not read: write it {variable.upper()}")
        elif section not in known:
            near = exceptions.did_you_mean(section, known, _SLIP)
            if near:
                faults.append(f"{variable}: section [{section}] is unknown{near}")
        elif name not in known[section]:
            near = _near_option(section, name, known)
            faults.append(f"{variable}: [{section}] {name} is unknown{near}")
    return faults


def _near_option(section: str, name: str, known: Mapping[str, Iterable[str]]) -> str:
    """Return which option of the section, or else which section with this option, may be meant."""
    near = exceptions.did_you_mean(name, known[section])
    # Of sections such as [service:NAME] there may be many, and an option in each.
    places = [f"[{each}]" for each, names in known.items() if name in names and ":" not in each]
    if near or not places:
        return near
    return f" (did you mean it in {' or '.join(places)}?)"


def _near_section(section: str, sections: Sections, known: Sections) -> str | None:
    """Return what an unknown section may mean, or None where it is no slip.

    The section of a service that another set-up of the same file runs is none, unless it looks
    like one that is used here and is not in the file. Nor is a [retry:...] of such a service.
    """
    kind, colon, name = section.partition(":")
    if kind == "retry" and f"service:{name.partition('.')[0]}" in sections.keys() - known.keys():
        return None
    if not colon or kind not in ("service", "discovery", "middleware"):
        return exceptions.did_you_mean(section, known)
    missing = {
        other.partition(":")[2]: other
        for other in known.keys() - sections.keys()
        if other.startswith(f"{kind}:")
    }
    if not exceptions.did_you_mean(name, missing, _SLIP):
        return None
    return exceptions.did_you_mean(section, missing.values())
