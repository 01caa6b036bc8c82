# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Private RabbitMQ nodes: own ports, own data folder, own epmd, nothing left behind.

A node never touches a broker that the machine runs already. Needs Debian's
``rabbitmq-server``; :func:`missing` tells what is not there.

``python tests/rabbitmq.py run -- COMMAND...`` runs a command beside a fresh node, whose URL it
finds in the environment variable ``OS_CONNECTION__URL``.
"""

from __future__ import annotations

import argparse
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import IO, Self
from urllib.parse import quote

#: The scripts themselves. Those in /usr/sbin are wrappers that insist on root or user rabbitmq.
SCRIPTS = Path("/usr/lib/rabbitmq/bin")
#: Seconds for a node to accept AMQP. It takes about 7 on two idle cores.
START_TIMEOUT = 45.0
#: Seconds for a node to end after SIGTERM, before it gets SIGKILL. It takes about 3.
STOP_TIMEOUT = 15.0
#: Seconds for the helpers of a broker to end by themselves once it has gone.
HELPERS_TIMEOUT = 1.0
#: Seconds within which ``erl_call`` has to reach a running node.
CONNECT_TIMEOUT = 15.0
#: Seconds for one ``rabbitmqctl``.
CTL_TIMEOUT = 60.0

# Port 0 would give a port of the range (from 32768 on) that the kernel also takes for outgoing
# connections: while a broker is down, a client that connects again and again can then get the
# broker's port as its own, reach itself, and keep the broker from coming back.
_PORTS = range(20000, 32000)

# Reads until end of file, which comes when the process that holds the other end is gone, however
# it ended: then ends the node's process group and removes its folder.
_WATCHDOG = 'read -r _; kill -s KILL -- "-$1"; rm -rf -- "$2"'


# How often queues count, in milliseconds, and how often that is collected, in seconds. RabbitMQ's
# own is 5 s for both.
_MANAGEMENT = """\
management.tcp.ip = 127.0.0.1
management.tcp.port = {port}
collect_statistics_interval = 1000
management.sample_retention_policies.global.minute = 1
management.sample_retention_policies.basic.minute = 1
management.sample_retention_policies.detailed.minute = 1
"""


class NodeError(Exception):
    """Raised when a node does not start or refuses a command; says what it answered."""


def missing() -> str | None:
    """Say what a private node needs and this machine lacks; None when all is there."""
    if not (SCRIPTS / "rabbitmq-server").exists():
        return "RabbitMQ is not installed (Debian package rabbitmq-server)"
    for program in ("epmd", "erl_call"):
        if shutil.which(program) is None:
            return f"{program} is not installed (Debian package erlang-base)"
    return None


class Node:
    """One RabbitMQ node on this machine, for the user ``guest`` with password ``guest``.

    Ports and data stay the same over :meth:`stop`, :meth:`kill` and :meth:`start`, until
    :meth:`close`. As a context manager it is started on entry and closed on exit. Should this
    process end without that, even by SIGKILL, a watchdog ends the node and removes its data.
    """

    def __init__(self, cluster: Cluster | None = None, *, management: bool = False) -> None:
        """Choose the ports and make the data folder; nothing runs yet.

        With ``management``, that is at ``management_port``, and its numbers are 2 s late at most.
        """
        self.port, self._dist_port, self._epmd_port, self.management_port = _free_ports(4)
        self._has_management = management
        self._cluster = cluster
        if cluster is not None:
            self._epmd_port = cluster.epmd_port
        self.name = f"tavrida-{self.port}@localhost"
        self.folder = Path(
            tempfile.mkdtemp(prefix="tavrida-rabbitmq-", dir=cluster.folder if cluster else None)
        )
        if cluster is not None:
            shutil.copy(cluster.cookie, self.folder)
        self._log = self.folder / "node.log"
        self._environment = self._make_environment()
        self._broker: subprocess.Popen[bytes] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The process id of the running broker, None while it is down."""
        return self._broker.pid if self._broker else None

    def url(self, vhost: str = "/", user: str = "guest", password: str = "guest") -> str:
        """Give the AMQP URL of a virtual host."""
        who = f"{quote(user, safe='')}:{quote(password, safe='')}"
        return f"amqp://{who}@127.0.0.1:{self.port}/{quote(vhost, safe='')}"

    # -- life ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the node, with the data of its former life, and wait until it accepts AMQP.

        Raises:
            NodeError: it ended or took longer than START_TIMEOUT; has the tail of its log.
        """
        if self._broker is not None:
            raise NodeError(f"{self.name} runs already, as process {self.pid}")
        with self._log.open("ab") as log:
            if self._cluster is not None:
                group = self._cluster.group
            else:
                # An epmd of its own, started before the broker: else the broker starts one that
                # detaches itself, outlives it, and is shared with every other Erlang program.
                self._epmd = self._spawn(["epmd", "-port", str(self._epmd_port)], log, group=0)
                group = self._epmd.pid
                self._watchdog = _watch(group, self.folder)
            self._broker = self._spawn([SCRIPTS / "rabbitmq-server"], log, group)
        try:
            self._wait_for_amqp()
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """Stop the node in good order and keep its data; no effect when it is down."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the node at once, as a crash of its machine would, and keep its data on disk."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop the node in good order and start it again: same port, same data."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Stop the broker's process (SIGSTOP): its connections stay, and nobody answers."""
        assert self._broker is not None
        self._broker.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused broker go on."""
        assert self._broker is not None
        self._broker.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End every process of the node and remove its data; it cannot be started again."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def processes(self) -> list[int]:
        """List the process ids of all that runs for this node, the helpers of Erlang too."""
        return [pid for pid in _pids() if self._owns(pid)]

    # -- administration ------------------------------------------------------------------------

    def ctl(self, *args: str) -> str:
        """Run ``rabbitmqctl`` against the node and return its output; takes about half a second.

        Raises:
            NodeError: it failed; has what it printed.
        """
        done = subprocess.run(
            [SCRIPTS / "rabbitmqctl", "--quiet", "--node", self.name, *args],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=CTL_TIMEOUT,
            check=False,
        )
        if done.returncode != 0:
            raise NodeError(f"rabbitmqctl {' '.join(args)}: {done.stdout}{done.stderr}")
        return done.stdout

    def eval(self, expression: str) -> str:
        """Run an Erlang expression inside the node and return its value as text; takes 3 ms.

        Raises:
            NodeError: the expression is wrong or failed; has what Erlang says.
        """
        # Far quicker than rabbitmqctl, which boots an Erlang machine of its own each time.
        deadline = time.monotonic() + CONNECT_TIMEOUT
        while True:
            # A name of its own: a node refuses one that it still takes for connected.
            name = f"tests{secrets.token_hex(6)}"
            done = subprocess.run(
                ["erl_call", "-h", name, "-address", f"127.0.0.1:{self._dist_port}", "-e"],
                env=self._environment,
                input=f"{expression}.\n",
                capture_output=True,
                text=True,
                timeout=CTL_TIMEOUT,
                check=False,
            )
            # The handshake has a limit of some seconds, which a busy machine can miss; nothing
            # was run then.
            if "failed to connect" not in done.stderr or time.monotonic() > deadline:
                break
        # The exit code is 0 for a failed expression too.
        if not done.stdout.startswith("{ok, "):
            raise NodeError(f"{expression}: {done.stdout}{done.stderr}")
        return done.stdout.removeprefix("{ok, ").removesuffix("}")

    def add_vhost(self, name: str, user: str = "guest") -> None:
        """Make a virtual host on which a user has every right; fails if it is there already."""
        if self.eval(f"rabbit_vhost:exists({_binary(name)})") == "true":
            raise NodeError(f"virtual host {name} is there already")
        self._must_be_ok(f"rabbit_vhost:add({_binary(name)}, {_BY})")
        self.permit(user, name)

    def delete_vhost(self, name: str) -> None:
        """Delete a virtual host with all in it; its connections are closed by the broker."""
        self._must_be_ok(f"rabbit_vhost:delete({_binary(name)}, {_BY})")

    def add_user(self, name: str, password: str) -> None:
        """Add a user, who has no right on any virtual host until :meth:`permit`."""
        self._must_be_ok(
            f"rabbit_auth_backend_internal:add_user({_binary(name)}, {_binary(password)}, {_BY})"
        )

    def delete_user(self, name: str) -> None:
        """Delete a user; their connections stay."""
        self._must_be_ok(f"rabbit_auth_backend_internal:delete_user({_binary(name)}, {_BY})")

    def permit(
        self, user: str, vhost: str, *, configure: str = ".*", write: str = ".*", read: str = ".*"
    ) -> None:
        """Give a user rights on what the patterns match in a virtual host; every one by default."""
        patterns = ", ".join(map(_binary, (configure, write, read)))
        self._must_be_ok(
            "rabbit_auth_backend_internal:set_permissions("
            f"{_binary(user)}, {_binary(vhost)}, {patterns}, {_BY})"
        )

    # -- inside --------------------------------------------------------------------------------

    def _make_environment(self) -> dict[str, str]:
        config = self.folder / "rabbitmq.conf"
        config.write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            # The default of 50 MB would block all publishers on a small /tmp.
            "disk_free_limit.absolute = 1MB\n"
        )
        plugins = self.folder / "enabled_plugins"
        plugins.write_text("[].\n")
        if self._has_management:
            plugins.write_text("[rabbitmq_management].\n")
            with config.open("a") as file:
                file.write(_MANAGEMENT.format(port=self.management_port))
        # Else /etc/rabbitmq/rabbitmq-env.conf of the machine's own broker is read.
        script_settings = self.folder / "rabbitmq-env.conf"
        script_settings.touch()
        # Not os.environ: RABBITMQ_* and NOTIFY_SOCKET of the caller must not reach the node.
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "HOME": str(self.folder),  # of the Erlang cookie; also how _owns() knows them
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_CONFIG_FILE": str(config),
            "RABBITMQ_CONF_ENV_FILE": str(script_settings),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(plugins),
            # Makes the script exec Erlang, so that the process started here is the broker itself
            # and no shell is left in between.
            "RUNNING_UNDER_SYSTEMD": "1",
        }

    def _spawn(
        self, command: Sequence[str | Path], log: IO[bytes], group: int
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            env=self._environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            process_group=group,
        )

    def _wait_for_amqp(self) -> None:
        assert self._broker is not None
        deadline = time.monotonic() + START_TIMEOUT
        while not _speaks_amqp(self.port):
            if self._broker.poll() is not None:
                raise NodeError(f"{self.name} ended while it started:\n{self._log_tail()}")
            if time.monotonic() > deadline:
                raise NodeError(
                    f"{self.name} does not accept AMQP after {START_TIMEOUT:.0f} s:\n"
                    + self._log_tail()
                )
            time.sleep(0.05)

    def _log_tail(self, lines: int = 60) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])

    def _end(self, first_signal: signal.Signals) -> None:
        """End the broker, then whatever else runs for the node."""
        if self._broker is not None:
            self._broker.send_signal(first_signal)
            try:
                self._broker.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._broker.kill()
                self._broker.wait()
            self._broker = None
        # First of all, because it must not act on a process group that is gone already.
        if self._watchdog is not None:
            self._watchdog.kill()
            with self._watchdog:  # closes the pipe and waits
                self._watchdog = None
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()
            self._epmd = None
        # Erlang's helpers end by themselves when the broker closes its pipes to them.
        if not _until(lambda: not self.processes(), HELPERS_TIMEOUT):
            for pid in self.processes():
                os.kill(pid, signal.SIGKILL)
            _until(lambda: not self.processes(), HELPERS_TIMEOUT)

    def _owns(self, pid: int) -> bool:
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:  # gone meanwhile, or somebody else's
            return False
        return f"HOME={self.folder}".encode() in environment.split(b"\0")

    def _must_be_ok(self, expression: str) -> None:
        answer = self.eval(expression)
        if answer != "ok":
            raise NodeError(f"{expression}: {answer}")


class Cluster:
    """Several nodes on this machine that know each other; a context manager like a Node.

    They share an epmd and a cookie. Each is a Node of :attr:`nodes`, which may be killed and
    started again by itself.
    """

    def __init__(self, size: int = 3) -> None:
        """Choose the ports and make the folders; nothing runs yet."""
        self.folder = Path(tempfile.mkdtemp(prefix="tavrida-cluster-"))
        self.cookie = self.folder / ".erlang.cookie"
        self.cookie.write_text(secrets.token_hex(10))
        self.cookie.chmod(0o400)
        (self.epmd_port,) = _free_ports(1)
        self.nodes = [Node(self) for _ in range(size)]
        self._epmd: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None

    @property
    def group(self) -> int:
        """The process group of everything that runs for the cluster."""
        assert self._epmd is not None
        return self._epmd.pid

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def start(self) -> None:
        """Start all nodes and join them; takes about half a minute on two cores."""
        self._epmd = subprocess.Popen(
            ["epmd", "-port", str(self.epmd_port), "-address", "127.0.0.1"],
            stdin=subprocess.DEVNULL,
            process_group=0,
        )
        self._watchdog = _watch(self.group, self.folder)
        first, *others = self.nodes
        with ThreadPoolExecutor() as threads:
            for started in [threads.submit(node.start) for node in self.nodes]:
                started.result()
        for node in others:
            node.ctl("stop_app")
            node.ctl("join_cluster", first.name)
            node.ctl("start_app")

    def urls(self) -> str:
        """The url of all nodes, as ``[connection] url`` takes it."""
        return ",".join(node.url() for node in self.nodes)

    def wait_until_in_sync(self, timeout: float = START_TIMEOUT) -> None:
        """Wait until all replicas of every quorum queue run, as an operator does before the next
        restart.
        """
        expression = (
            "lists:all(fun(Q) -> case rabbit_queue_type:info(Q, [type, online, members]) of "
            "[{type, quorum}, {online, O}, {members, M}] -> length(O) =:= length(M); "
            "_ -> true end end, rabbit_amqqueue:list())"
        )

        def is_in_sync() -> bool:
            try:
                return all(node.eval(expression) == "true" for node in self.nodes)
            except NodeError:  # it is not up yet
                return False

        if not _until(is_in_sync, timeout):
            raise NodeError(f"the cluster in {self.folder} is not in sync after {timeout:.0f} s")

    def close(self) -> None:
        """End every process and remove all data."""
        for node in self.nodes:
            node.close()
        if self._watchdog is not None:
            self._watchdog.kill()
            with self._watchdog:
                self._watchdog = None
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()
            self._epmd = None
        shutil.rmtree(self.folder, ignore_errors=True)


def _watch(group: int, folder: Path) -> subprocess.Popen[bytes]:
    """Have a process group ended and a folder removed when this process is gone."""
    return subprocess.Popen(
        ["/bin/sh", "-c", _WATCHDOG, "watchdog", str(group), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        process_group=0,  # a Ctrl-C in the terminal is for the tests, not for this one
    )


#: Who did it, for the broker's log.
_BY = '<<"tests">>'


def _binary(text: str) -> str:
    """Write a text as an Erlang binary."""
    return f"<<{','.join(map(str, text.encode()))}>>"


def free_port() -> int:
    """Find a port of 127.0.0.1 on which nobody listens now, and no outgoing connection will be."""
    return _free_ports(1)[0]


def _free_ports(count: int) -> list[int]:
    """Find ports of 127.0.0.1 that are free now."""
    found: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise NodeError(f"fewer than {count} free ports between {_PORTS.start} and {_PORTS.stop}")


def _speaks_amqp(port: int) -> bool:
    """Tell whether a broker answers on the port with the first frame of AMQP 0-9-1."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            # Frame type 1 on channel 0. A broker that wants another version answers "AMQP".
            return connection.recv(3) == b"\x01\x00\x00"
    except OSError:
        return False


def _pids() -> list[int]:
    return [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]


def _until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait for a condition; tell whether it came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _run_beside_a_node(command: list[str]) -> int:
    """Run a command while a fresh node is up, and return its exit code."""
    _say("starting a private RabbitMQ node (about 7 s)")
    began = time.monotonic()
    with Node() as node:
        took = time.monotonic() - began
        _say(f"RabbitMQ is up after {took:.1f} s, on port {node.port} of 127.0.0.1 only")
        child = subprocess.Popen(command, env=os.environ | {"OS_CONNECTION__URL": node.url()})

        def pass_on(number: int, _frame: FrameType | None) -> None:
            child.send_signal(number)

        # Ctrl-C in a terminal reaches the command by itself. Ending is up to the command; the
        # node goes after it.
        signal.signal(signal.SIGINT, lambda *_: None)
        signal.signal(signal.SIGTERM, pass_on)
        code = child.wait()
    _say("RabbitMQ is stopped and its data removed")
    return code if code >= 0 else 128 - code


def _say(text: str) -> None:
    print(f"rabbitmq: {text}", file=sys.stderr, flush=True)


def main() -> int:
    """Run the command line of this file."""
    parser = argparse.ArgumentParser(description="Run a command beside a private RabbitMQ node.")
    actions = parser.add_subparsers(dest="action", required=True)
    run = actions.add_parser("run", help="run COMMAND, with the node's URL in OS_CONNECTION__URL")
    run.add_argument("command", nargs="+", metavar="COMMAND", help="after --")
    command: list[str] = parser.parse_args().command
    reason = missing()
    if reason is not None:
        _say(reason)
        return 1
    try:
        return _run_beside_a_node(command)
    except NodeError as error:
        _say(str(error))
        return 1
    except KeyboardInterrupt:  # while the node starts or stops
        return 130


if __name__ == "__main__":
    sys.exit(main())
