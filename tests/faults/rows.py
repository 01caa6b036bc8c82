# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The rows of the table: each breaks something under load, again and again, and returns a verdict.

A row is a function of a bench, which lends brokers and folders, and of how often to do it.
"""

from __future__ import annotations

import contextlib
import random
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pika
from pika.adapters.blocking_connection import BlockingChannel

from tests.faults.journal import REFUSED
from tests.faults.laboratory import RECOVERY_TIMEOUT, Laboratory, Verdict
from tests.faults.proxy import Direction, Proxy
from tests.rabbitmq import Cluster, Node
from tests.waiting import eventually

#: Bytes of the disk that is filled: SQLite's log has up to 8 MB before it is taken over.
SMALL_DISK = 24_000_000


class NotHereError(Exception):
    """Raised when this machine does not let a row break what it breaks; says why."""


CLASSIC, QUORUM, EMBEDDED = "classic", "quorum", "embedded"


class Bench:
    """Lends what a row needs, and stops it at the end; a context manager.

    Journals and logs go to folders below ``root``, and stay there. ``shared`` is a node that no
    row stops; without one, the bench starts it when it is needed.
    """

    def __init__(self, root: Path, shared: Node | None = None) -> None:
        self._root = root
        self._shared = shared
        self._lent = ExitStack()
        self._own: Node | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._lent.close()

    def folder(self) -> Path:
        """An empty folder."""
        return Path(tempfile.mkdtemp(dir=self._root))

    def small_disk(self) -> Path:
        """A folder on a disk of SMALL_DISK bytes.

        Raises:
            NotHereError: this user may not mount one.
        """
        folder = self.folder()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tavrida-faults", str(folder)]
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise NotHereError(f"a small disk cannot be mounted: {done.stderr.strip()}")
        self._lent.callback(subprocess.run, ["umount", "--lazy", str(folder)], check=True)
        return folder

    def shared(self) -> Node:
        """A node that the row may not stop."""
        if self._shared is None:
            self._shared = self._lent.enter_context(Node())
        return self._shared

    def own(self) -> Node:
        """A node that the row may stop, kill and starve; up again when the row ends."""
        if self._own is None:
            self._own = self._lent.enter_context(Node())
        return self._own

    def cluster(self) -> Cluster:
        """Three nodes."""
        return self._lent.enter_context(Cluster())

    def vhost(self, node: Node) -> str:
        """The name of an empty virtual host."""
        name = f"faults-{random.randrange(10**9)}"
        node.add_vhost(name)
        return name

    def place(self, variant: str) -> str:
        """The url of an empty broker: a virtual host of the shared node, or a database."""
        if variant == EMBEDDED:
            return f"sqlite://{self.folder()}/bus.db"
        return self.shared().url(self.vhost(self.shared()))

    def laboratory(self, url: str, variant: str, **more: Any) -> Laboratory:
        """A laboratory at that url whose queues are of that type."""
        queue_type = CLASSIC if variant == CLASSIC else QUORUM
        return Laboratory(self.folder(), url, queue_type=queue_type, **more)


Play = Callable[[Bench, str, int], Verdict]


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table of docs/reliability.md."""

    name: str
    fault: str
    holds: str
    play: Play
    variants: tuple[str, ...]
    #: How often the fault comes, in full and in the short form that the tests run.
    full: int
    short: int

    @property
    def short_variants(self) -> list[str]:
        """What the tests run: without classic queues, which take less than quorum queues."""
        return [variant for variant in self.variants if variant != CLASSIC]


# -- processes that end


def kill_servers(bench: Bench, variant: str, times: int) -> Verdict:
    with bench.laboratory(bench.place(variant), variant) as lab:
        lab.begin(servers=1)
        for _ in range(times):
            time.sleep(random.uniform(0.0, 0.5))
            lab.kill(lab.servers[0])
            lab.start_server()
            lab.recover(time.monotonic())
        return lab.finish()


def kill_publishers(bench: Bench, variant: str, times: int) -> Verdict:
    with bench.laboratory(bench.place(variant), variant) as lab:
        lab.begin(servers=1, loads=2)
        for _ in range(times):
            time.sleep(random.uniform(0.0, 0.5))
            lab.kill(lab.loads[0])
            lab.start_load()
            lab.recover(time.monotonic())
        return lab.finish()


def terminate_servers(bench: Bench, variant: str, times: int) -> Verdict:
    with bench.laboratory(bench.place(variant), variant) as lab:
        lab.begin(servers=2)
        for _ in range(times):
            time.sleep(random.uniform(0.0, 0.5))
            lab.terminate(lab.servers[0])
            lab.recover(time.monotonic())
            lab.serve()
        return lab.finish(may_repeat=False)


# -- the network


def _through(
    bench: Bench, variant: str, act: Callable[[Laboratory, Proxy], None], **more: Any
) -> Verdict:
    """Play with a proxy between the broker and everybody else."""
    node = bench.shared()
    vhost = bench.vhost(node)
    with Proxy(node.port) as proxy:
        url = node.url(vhost).replace(f":{node.port}/", f":{proxy.port}/")
        with bench.laboratory(url, variant, **more) as lab:
            lab.begin(servers=1)
            act(lab, proxy)
            return lab.finish()


def cut_connections(bench: Bench, variant: str, times: int) -> Verdict:
    def act(lab: Laboratory, proxy: Proxy) -> None:
        for _ in range(times):
            time.sleep(random.uniform(0.0, 0.3))
            proxy.cut_in_frames()
            lab.recover(time.monotonic(), limit=2.0)

    return _through(bench, variant, act)


def take_the_network_away(bench: Bench, variant: str, times: int) -> Verdict:
    def act(lab: Laboratory, proxy: Proxy) -> None:
        for _ in range(times):
            proxy.go_down()
            time.sleep(random.uniform(2.0, 6.0))
            proxy.heal()
            lab.recover(time.monotonic(), limit=2.0)

    return _through(bench, variant, act)


def close_halves(bench: Bench, variant: str, times: int) -> Verdict:
    def act(lab: Laboratory, proxy: Proxy) -> None:
        for number in range(times):
            time.sleep(random.uniform(0.0, 0.3))
            proxy.close_half(list(Direction)[number % 2])
            lab.recover(time.monotonic(), limit=2.0)

    return _through(bench, variant, act)


#: Seconds. Short, so that rows in which nobody closes a connection need not last for minutes.
HEARTBEAT = 1

#: Seconds within which a peer that is silent is given up: pika looks each ``heartbeat`` + 5.
DETECTION = 2 * (HEARTBEAT + 5)


def swallow_everything(bench: Bench, variant: str, times: int) -> Verdict:
    def act(lab: Laboratory, proxy: Proxy) -> None:
        for _ in range(times):
            lost = _losses(lab)
            proxy.swallow()
            eventually(lambda: _losses(lab) > lost, DETECTION + 5)  # noqa: B023 - in this turn
            proxy.heal()
            lab.recover(time.monotonic())

    return _through(bench, variant, act, connection={"heartbeat": HEARTBEAT})


def slow_the_network_down(bench: Bench, variant: str, times: int) -> Verdict:
    def act(lab: Laboratory, proxy: Proxy) -> None:
        for _ in range(times):
            proxy.slow_down(delay=0.05, rate=50_000)
            time.sleep(5)
            proxy.heal()
            lab.recover(time.monotonic())

    return _through(bench, variant, act, connection={"heartbeat": 5})


def _losses(lab: Laboratory) -> int:
    """How many connections all processes together have lost, by what they log."""
    return sum(each.said("lost its connection") for each in [*lab.servers, *lab.loads])


# -- the broker


def restart_the_broker(bench: Bench, variant: str, times: int) -> Verdict:
    node = bench.own()
    with bench.laboratory(node.url(bench.vhost(node)), variant) as lab:
        lab.begin(servers=1)
        for number in range(times):
            time.sleep(random.uniform(0.0, 0.5))
            if number % 2:
                node.ctl("stop_app")
                node.ctl("start_app")
            else:
                node.kill()
                node.start()
            lab.recover(time.monotonic())
        return lab.finish()


def kill_nodes_of_a_cluster(bench: Bench, variant: str, times: int) -> Verdict:
    cluster = bench.cluster()
    with bench.laboratory(cluster.urls(), variant) as lab:
        lab.begin(servers=2)
        for number in range(times):
            time.sleep(random.uniform(0.0, 0.5))
            node = cluster.nodes[number % len(cluster.nodes)]
            node.kill()
            lab.recover(time.monotonic())
            node.start()
            cluster.wait_until_in_sync()
        return lab.finish()


def pause_the_broker(bench: Bench, variant: str, times: int) -> Verdict:
    node = bench.own()
    url = node.url(bench.vhost(node))
    with bench.laboratory(url, variant, connection={"heartbeat": HEARTBEAT}) as lab:
        lab.begin(servers=1)
        for _ in range(times):
            lost = _losses(lab)
            node.pause()
            try:
                # Two of the server, one of a client; the other client may be about to connect.
                eventually(lambda: _losses(lab) >= lost + 3, DETECTION + 5)  # noqa: B023 - now
            finally:
                node.resume()
            lab.recover(time.monotonic())
        return lab.finish()


def alarm_the_broker(bench: Bench, variant: str, times: int) -> Verdict:
    node = bench.own()
    url = node.url(bench.vhost(node))
    # So small that publishers meet all of their limits during the alarm.
    connection = {"publish_timeout": 4.0, "max_unconfirmed": 10}
    with bench.laboratory(url, variant, connection=connection, load={"call_timeout": 2.0}) as lab:
        lab.begin(servers=1)
        for _ in range(times):
            node.eval("vm_memory_monitor:set_vm_memory_high_watermark(0.00001)")
            time.sleep(10)
            node.eval("vm_memory_monitor:set_vm_memory_high_watermark(0.4)")
            lab.recover(time.monotonic())
        return lab.finish()


def fill_the_disk(bench: Bench, variant: str, times: int) -> Verdict:
    disk = bench.small_disk()
    url = f"sqlite://{disk}/bus.db"
    with bench.laboratory(url, variant, connection={"publish_timeout": 2.0}) as lab:
        lab.begin(servers=1)
        for _ in range(times):
            refused = lab.count(REFUSED)
            filler = disk / "filler"
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
            eventually(lambda: lab.count(REFUSED) > refused, 30.0)  # noqa: B023 - in this turn
            time.sleep(random.uniform(0.0, 2.0))  # for acknowledgements to meet it too
            filler.unlink()
            lab.recover(time.monotonic())
        return lab.finish()


# -- handlers that cannot end well

#: How often a handler that fails is run in all.
ATTEMPTS = 3

#: How often a message that kills its process comes again. Bystanders are delivered in vain as
#: well, and have to be done before that.
LIMIT = 5


def fail_always(bench: Bench, variant: str, times: int) -> Verdict:
    retry = {"attempts": ATTEMPTS, "first_delay": 0.2, "factor": 2, "jitter": 0}
    with bench.laboratory(bench.place(variant), variant, retry=retry) as lab:
        lab.begin(servers=1)
        lab.doom("fail", times)
        lab.faults = times
        expected = dict.fromkeys(lab.doomed, ATTEMPTS)
        eventually(lambda: lab.attempts() == expected)
        return lab.finish()


def die_always(bench: Bench, variant: str, times: int) -> Verdict:
    server = {"delivery_limit": LIMIT}
    with bench.laboratory(bench.place(variant), variant, server=server) as lab:
        lab.begin(servers=1)
        for _ in range(times):
            lab.doom("die", 1)
            for _ in range(LIMIT + 1):
                eventually(lambda: not lab.servers[0].is_running, RECOVERY_TIMEOUT)
                lab.kill(lab.servers[0])
                lab.start_server()
            lab.recover(time.monotonic())
        # A suspect is counted when it is its turn, which takes a moment after the last crash.
        eventually(lambda: lab.count_dead_letters() >= times, RECOVERY_TIMEOUT)
        if set(lab.attempts().values()) != {LIMIT + 1}:
            lab.complain(f"handlers that die were run so often: {lab.attempts()}")
        return lab.finish()


# -- what an operator changes


def change_the_password(bench: Bench, variant: str, times: int) -> Verdict:
    node = bench.shared()
    vhost, user, password = bench.vhost(node), f"lab-{random.randrange(10**9)}", "first"
    node.add_user(user, password)
    node.permit(user, vhost)
    file = bench.folder() / "password"
    file.write_text(password)
    url = f"amqp://{user}@127.0.0.1:{node.port}/{vhost}"
    connection = {"password_file": str(file)}
    with bench.laboratory(url, variant, broker=node.url(vhost), connection=connection) as lab:
        lab.begin(servers=1)
        for number in range(times):
            node.ctl("change_password", user, f"next-{number}")
            node.ctl("close_all_connections", "--vhost", vhost, "the password has changed")
            # For that long the old one is in the file, and refused.
            time.sleep(random.uniform(0.0, 2.0))
            file.write_text(f"next-{number}")
            lab.recover(time.monotonic())
        return lab.finish()


# -- what an operator deletes


def delete_the_queue(bench: Bench, variant: str, times: int) -> Verdict:
    def delete(channel: BlockingChannel) -> None:
        channel.queue_delete("lab")

    return _delete(bench, variant, times, delete)


def delete_the_exchanges(bench: Bench, variant: str, times: int) -> Verdict:
    def delete(channel: BlockingChannel) -> None:
        channel.exchange_delete("lab")
        channel.exchange_delete("lab_events.notifications")

    return _delete(bench, variant, times, delete)


def _delete(
    bench: Bench, variant: str, times: int, delete: Callable[[BlockingChannel], None]
) -> Verdict:
    url = bench.place(variant)
    with (
        bench.laboratory(url, variant) as lab,
        pika.BlockingConnection(pika.URLParameters(url)) as operator,
    ):
        lab.begin(servers=1)
        for _ in range(times):
            delete(operator.channel())
            deleted_at = time.monotonic()
            lab.recover(deleted_at)
            lab.excuse(deleted_at, time.monotonic())
            lab.catch_up()
        return lab.finish()


ROWS = (
    Row(
        "server-killed",
        "server killed (`kill -9`) at random points",
        "every confirmed message is handled, every call ends",
        kill_servers,
        (CLASSIC, QUORUM, EMBEDDED),
        20,
        2,
    ),
    Row(
        "publisher-killed",
        "publisher killed (`kill -9`) at random points",
        "the same",
        kill_publishers,
        (QUORUM, EMBEDDED),
        20,
        2,
    ),
    Row(
        "connection-cut",
        "connections cut in the middle of a frame",
        "the same, and consuming again within 2 s",
        cut_connections,
        (CLASSIC, QUORUM),
        50,
        4,
    ),
    Row(
        "network-away",
        "network away for seconds",
        "the same, within 2 s of its return",
        take_the_network_away,
        (QUORUM,),
        10,
        1,
    ),
    Row(
        "half-closed",
        "one direction of the connections closed",
        "the same",
        close_halves,
        (QUORUM,),
        10,
        2,
    ),
    Row(
        "black-hole",
        "network that swallows everything and closes nothing",
        "noticed by missing heartbeats, the same",
        swallow_everything,
        (QUORUM,),
        3,
        1,
    ),
    Row(
        "slow-network",
        "network of 50 kB/s with 50 ms delay",
        "the same",
        slow_the_network_down,
        (QUORUM,),
        3,
        1,
    ),
    Row(
        "broker-restarted",
        "broker killed and started, stopped and started (`stop_app`)",
        "the same",
        restart_the_broker,
        (CLASSIC, QUORUM),
        6,
        2,
    ),
    Row(
        "node-killed",
        "one of three nodes killed, then another when it is back",
        "the same, without an operator",
        kill_nodes_of_a_cluster,
        (QUORUM,),
        6,
        2,
    ),
    Row(
        "broker-paused",
        "broker stopped by SIGSTOP for longer than two heartbeats",
        "noticed, connected again, the same",
        pause_the_broker,
        (QUORUM,),
        3,
        1,
    ),
    Row(
        "memory-alarm",
        "memory alarm of the broker for 10 s",
        "publishers wait or fail by their deadline, nothing hangs, all goes on after",
        alarm_the_broker,
        (QUORUM,),
        3,
        1,
    ),
    Row(
        "queue-deleted",
        "queue deleted under its consumer",
        "declared and consumed again; what comes meanwhile is refused at its sender",
        delete_the_queue,
        (CLASSIC, QUORUM),
        10,
        2,
    ),
    Row(
        "exchanges-deleted",
        "exchanges of requests and notifications deleted under their publishers",
        "declared and bound again; what comes meanwhile is refused at its sender",
        delete_the_exchanges,
        (QUORUM,),
        10,
        1,
    ),
    Row(
        "disk-full",
        "disk full",
        "the publisher gets an error, what was confirmed stays, all goes on when there is room",
        fill_the_disk,
        (EMBEDDED,),
        5,
        1,
    ),
    Row(
        "handler-fails",
        "handler that fails always",
        "tried again as configured, then a dead letter; all others are handled",
        fail_always,
        (CLASSIC, QUORUM, EMBEDDED),
        100,
        10,
    ),
    Row(
        "handler-dies",
        "handler that kills its process always",
        "a dead letter after `delivery_limit`; all others are handled",
        die_always,
        (CLASSIC, QUORUM, EMBEDDED),
        3,
        1,
    ),
    Row(
        "password-changed",
        "password changed on the broker, then in `password_file`",
        "connected again with the new one, nothing lost",
        change_the_password,
        (QUORUM,),
        5,
        1,
    ),
    Row(
        "server-terminated",
        "server stopped (SIGTERM)",
        "nothing is handled twice, exit code 0",
        terminate_servers,
        (CLASSIC, QUORUM, EMBEDDED),
        20,
        3,
    ),
)
