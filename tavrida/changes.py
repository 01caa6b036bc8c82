# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Changes: what files that were read again say, beside the configuration that runs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

from tavrida.config import options_of
from tavrida.options import Configuration


@dataclass(frozen=True, slots=True)
class Changes:
    """What changed, and the configuration to go on with: the one that runs, but for that."""

    configuration: Configuration
    #: What takes effect, as "[server] concurrency: 10 -> 20".
    applied: tuple[str, ...]
    #: The options that need a restart, as "[connection] url". No values: some are secret.
    left: tuple[str, ...]

    @classmethod
    def between(cls, running: Configuration, found: Configuration) -> Self:
        """Compare the configuration that runs with one that was read again."""
        mutable = running.mutable | found.mutable
        applied, left = [], []
        for key in sorted(running.values.keys() | found.values.keys()):
            # Where a section is missing, nobody says anything.
            before, now = running.values.get(key), found.values.get(key)
            if before == now:
                continue
            name = f"[{key[0]}] {key[1]}"
            if key in mutable:
                applied.append(f"{name}: {_shown(before)} -> {_shown(now)}")
            else:
                left.append(name)
        values = {key: value for key, value in running.values.items() if key not in mutable}
        values |= {key: value for key, value in found.values.items() if key in mutable}
        configuration = dataclasses.replace(
            running,
            log=_merged(running.log, found.log),
            server=_merged(running.server, found.server),
            retries=found.retries,
            values=values,
            mutable=found.mutable,
        )
        return cls(configuration, tuple(applied), tuple(left))


def _merged(running: Any, found: Any) -> Any:
    """Return settings with those of another's options that are mutable."""
    changed = {
        field.name: getattr(found, field.name)
        for field in options_of(type(running))
        if field.metadata["mutable"]
    }
    return dataclasses.replace(running, **changed)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    return "unset" if value in (None, "") else str(value)
