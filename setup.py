# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
from pathlib import Path

import setuptools

# pbr reads the version from git tags, or from PKG-INFO in an sdist. A tree with
# neither (archive, container COPY, shallow clone, clone owned by someone else,
# no git program, a folder inside another repository) must still install.
FALLBACK_VERSION = "2.0.0.dev0"
HERE = Path(__file__).resolve().parent


def _git(*args: str) -> str | None:
    try:
        done = subprocess.run(["git", *args], cwd=HERE, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


if not (HERE / "PKG-INFO").exists():
    top = _git("rev-parse", "--show-toplevel")
    own = top is not None and Path(top).samefile(HERE)
    if not own or _git("describe", "--tags") is None:
        os.environ.setdefault("PBR_VERSION", FALLBACK_VERSION)

setuptools.setup(setup_requires=["pbr>=6.1.1"], pbr=True)
