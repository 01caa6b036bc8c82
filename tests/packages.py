# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Installed packages that exist for one test only: real metadata, no pip."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path


class Packages:
    """Makes packages out of dist-info folders in a folder that is put first on ``sys.path``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._modules: set[str] = set()
        sys.path.insert(0, str(folder))

    def add(self, name: str, entry_points: Mapping[str, Mapping[str, str]], **modules: str) -> None:
        """Install version 1.0 of a package: entry points by namespace, and modules by name."""
        info = self._folder / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = []
        for namespace, points in entry_points.items():
            lines += [f"[{namespace}]", *(f"{key} = {value}" for key, value in points.items())]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
        for module, text in modules.items():
            (self._folder / f"{module}.py").write_text(textwrap.dedent(text), encoding="utf-8")
            self._modules.add(module)
        importlib.invalidate_caches()

    def remove(self) -> None:
        """Take them all out again."""
        sys.path.remove(str(self._folder))
        for module in self._modules:
            sys.modules.pop(module, None)
        importlib.invalidate_caches()
