# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Writes configuration-reference.md from the options themselves: ``python -m docs.reference``."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from oslo_config import cfg

from tavrida import options

PAGE = Path(__file__).parent / "configuration-reference.md"

_HEAD = """\
# Configuration reference

Every option of tavrida's own, written by `./dev docs` from the options themselves. How files,
variables and the command line go together is in [configuration.md](configuration.md); which value
is in force, and who gave it, tells `tavrida config show`. Plugins may declare more options, which
stand in the section of what they serve.
"""

#: What stands below the heading of a section.
_ABOUT = {
    "connection": "Where the broker is; for servers, clients and commands: "
    "[connections.md](connections.md).",
    "server": "Which services run, and how. In code, these are keyword arguments of `Server`.",
    "client": "Clients that are made from the files: by `tavrida call`, `cast` and `publish`, and "
    "in programs by `assembly.new_client`: [observability.md](observability.md#clients).",
    "log": "The log of `tavrida-server` and `tavrida outbox relay`.",
    "outbox": "The database that `tavrida outbox relay` publishes from: [outbox.md](outbox.md).",
    "service:NAME": "One for each service, which may be left out. The options that its controller "
    "declares stand here too. A shell cannot export a variable of this name.",
    "retry": "What happens when a handler fails: [delivery.md](delivery.md#retries).",
    "retry:NAME": "The same for one service, or for one `SERVICE.METHOD`. What it does not say is "
    "as `[retry]` says.",
    "discovery:NAME": "Where other services are. Which options there are depends on the backend: "
    "`exchanges` and `publishers` are those of `local`, `file` is that of `file`.",
    "middleware:dedup": "A middleware that `[server]` or `[client]` names has a section of its "
    "own; this is that of `dedup`: [duplicates.md](duplicates.md).",
}

#: What a type of oslo.config is called.
_TYPES = {
    cfg.StrOpt: "text",
    cfg.BoolOpt: "true or false",
    cfg.IntOpt: "whole number",
    cfg.FloatOpt: "number",
    cfg.ListOpt: "list, with commas between",
    cfg.DictOpt: "`KEY:VALUE`, with commas between",
}


def page() -> str:
    """Return the whole page."""
    return "\n".join([_HEAD, *(_section(name, opts) for name, opts in options.list_opts())])


def _section(name: str, opts: list[cfg.Opt]) -> str:
    parts = [f"## [{name}]\n", *([f"{_wrapped(_ABOUT[name])}\n"] if name in _ABOUT else [])]
    for opt in opts:
        facts = [_TYPES[type(opt)], *_limits(opt), _default(opt)]
        if opt.secret:
            facts.append("masked where it is shown")
        if ":" not in name:
            facts.append(f"`OS_{name.upper()}__{opt.dest.upper()}`")
        parts.append(
            f"### {opt.dest}\n\n{_wrapped('; '.join(facts))}\n\n{_wrapped(opt.help or '')}\n"
        )
    return "\n".join(parts)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)


def _limits(opt: Any) -> list[str]:
    kind = opt.type
    if getattr(kind, "choices", None):
        return [f"one of {', '.join(f'`{each}`' for each in kind.choices)}"]
    least, most = getattr(kind, "min", None), getattr(kind, "max", None)
    limits = [
        f"{word} {limit}" for word, limit in (("from", least), ("up to", most)) if limit is not None
    ]
    return [" ".join(limits)] if limits else []


def _default(opt: cfg.Opt) -> str:
    value = opt.default
    if value is None or value in ("", [], {}):
        return "empty by default"
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    return f"default `{str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
