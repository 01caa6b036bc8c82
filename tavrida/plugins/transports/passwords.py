# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Passwords: who logs in and with which password, asked anew before each connection.

Nothing here tells a password, nor what a command printed: only where it should have come from.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from tavrida import exceptions, masks
from tavrida.config import ConnectionConfig
from tavrida.loop import in_thread

#: Seconds to find out the password.
TIMEOUT = 10.0

_THREAD = "tavrida-password"
#: Characters of a password at most; a token may be long, and a file without an end is none.
MAX_LENGTH = 65_536


def check(config: ConnectionConfig) -> None:
    """Raise ConfigError where a password can never be had: no such file, no such command."""
    faults = [fault for url in config.urls if (fault := _fault_of(config, url))]
    path = config.password_file
    if path and (not os.access(path, os.R_OK) or Path(path).is_dir()):
        faults.append(
            f"[connection] password_file {config.password_file} cannot be read: is the path right, "
            "and may this user read it?"
        )
    if config.password_command:
        try:
            program = shlex.split(config.password_command)[0]
        except (ValueError, IndexError):
            faults.append("[connection] password_command is no command line: check its quotes")
        else:
            if shutil.which(program) is None:
                faults.append(
                    f"[connection] password_command: there is no program {program!r}; write its "
                    "whole path. It is run without a shell: for one, write sh -c '...'"
                )
    if faults:
        raise exceptions.ConfigError(*faults)


def _fault_of(config: ConnectionConfig, url: str) -> str:
    """Return what is wrong with a url that names a user and no password, or nothing."""
    parts, given = urlsplit(url), config.credentials
    if (
        parts.username is None
        or parts.password is not None
        or config.password_file
        or config.password_command
        or config.login == "certificate"
        or callable(given.password)
        or unquote(parts.username) == given.username
    ):
        return ""
    return (
        f"[connection] url {url} has a user and no password: write it as "
        "amqp://USER:PASSWORD@HOST..., or set password_file or password_command"
    )


async def user_and_password(config: ConnectionConfig, url: str) -> tuple[str, str]:
    """Return the user name and the password for a node, as they are now; no log shows it then.

    Raises:
        ConnectionFailed: the password cannot be had; says why.
    """
    user, password = await _user_and_password(config, url)
    masks.learn([password])
    return user, password


async def _user_and_password(config: ConnectionConfig, url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    user = unquote(parts.username or "") or config.credentials.username
    if config.password_file:
        return user, await _wait_for(f"password_file {config.password_file}", _read(config))
    if config.password_command:
        program = shlex.split(config.password_command)[0]
        return user, await _wait_for(
            f"password_command {program!r}", _output_of(config.password_command)
        )
    if parts.password is not None:
        return user, unquote(parts.password)
    password = config.credentials.password
    if isinstance(password, str):
        return user, password
    return user, await _wait_for("the function Credentials.password", in_thread(password, _THREAD))


async def _wait_for(source: str, answer: Any) -> str:
    """Return the password that a source gives; whatever goes wrong is one sentence."""
    try:
        async with asyncio.timeout(TIMEOUT):
            password = await answer
    except TimeoutError:
        raise exceptions.ConnectionFailed(
            f"{source} gave no password within {TIMEOUT:.0f} s"
        ) from None
    except _NoPassword as error:
        raise exceptions.ConnectionFailed(f"{source} {error}") from None
    except OSError as error:
        raise exceptions.ConnectionFailed(
            f"{source} cannot be read or run: {error.strerror}"
        ) from None
    except UnicodeDecodeError:
        raise exceptions.ConnectionFailed(f"{source} gave what is no UTF-8") from None
    except Exception as error:  # of the user's function
        raise exceptions.ConnectionFailed(f"{source} raised {type(error).__name__}") from error
    if not isinstance(password, str) or not password:
        what = "nothing" if password in ("", None) else f"no text: {type(password).__name__}"
        raise exceptions.ConnectionFailed(f"{source} gave {what}, where a password should be")
    return password


class _NoPassword(Exception):
    """What a source of passwords did instead of giving one."""


def _read(config: ConnectionConfig) -> Any:
    """Read the file in a thread: it may be on a network, or a pipe."""
    path = Path(config.password_file)

    def read() -> str:
        with path.open(encoding="utf-8") as file:
            return _limited(file)

    return in_thread(read, _THREAD)


def _limited(file: IO[str]) -> str:
    """Return what is in a file, which may have no end."""
    text = file.read(MAX_LENGTH + 1)
    if len(text) > MAX_LENGTH:
        raise _NoPassword(f"gave more than {MAX_LENGTH} characters")
    return text.rstrip("\r\n")


def _started(command: str) -> subprocess.Popen[str]:
    # Its stderr is ours: there it can say what is wrong, and we do not know what is secret in it.
    return subprocess.Popen(  # noqa: S603 - the operator's own command
        shlex.split(command),
        stdin=DEVNULL,
        stdout=PIPE,
        encoding="utf-8",
        start_new_session=True,
    )


async def _output_of(command: str) -> str:
    process = _started(command)
    assert process.stdout is not None
    stdout = process.stdout

    def read() -> str:
        try:
            with stdout:  # closed, it ends a program that prints on and on
                return _limited(stdout)
        finally:
            process.wait()

    try:
        output = await in_thread(read, _THREAD)
    finally:
        if process.poll() is None:  # nobody waits for it any more
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and what it started itself
    if process.returncode:
        raise _NoPassword(f"failed with exit code {process.returncode}")
    return output
