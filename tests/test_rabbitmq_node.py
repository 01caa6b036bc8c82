# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The private RabbitMQ nodes that other tests stand on."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from tests.rabbitmq import Node, NodeError

ROOT = Path(__file__).parent.parent


@contextmanager
def channel_to(url: str) -> Iterator[BlockingChannel]:
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        yield connection.channel()


def publish_durably(channel: BlockingChannel, queue: str, body: bytes) -> None:
    channel.confirm_delivery()
    channel.queue_declare(queue, durable=True)
    properties = pika.BasicProperties(delivery_mode=2)
    channel.basic_publish("", queue, body, properties, mandatory=True)


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not so in time"
        time.sleep(0.02)


def test_a_message_goes_through_a_fresh_vhost(amqp_url: str) -> None:
    """The URL of the fixture is good for declaring, publishing and getting."""
    with channel_to(amqp_url) as channel:
        publish_durably(channel, "letters", b"hello")
        assert channel.basic_get("letters", auto_ack=True)[2] == b"hello"


@pytest.mark.parametrize("turn", [1, 2])
def test_each_test_gets_an_empty_vhost(amqp_url: str, turn: int) -> None:
    """What one turn leaves in its vhost is not there in the next."""
    with channel_to(amqp_url) as channel:
        declared = channel.queue_declare("left-behind", durable=True)
        assert declared.method.message_count == 0
        channel.confirm_delivery()
        channel.basic_publish("", "left-behind", b"%d" % turn, mandatory=True)


def test_a_vhost_takes_milliseconds(rabbitmq: Node) -> None:
    """Making ten costs less than a single `rabbitmqctl` would."""
    began = time.monotonic()
    for number in range(10):
        rabbitmq.add_vhost(f"quick-{number}")
    took = time.monotonic() - began
    for number in range(10):
        rabbitmq.delete_vhost(f"quick-{number}")
    assert took < 2


def test_a_vhost_is_never_given_twice(rabbitmq: Node, vhost: str) -> None:
    """A name that is taken is an error, not a vhost with somebody else's queues."""
    with pytest.raises(NodeError, match="there already"):
        rabbitmq.add_vhost(vhost)


def test_a_user_may_do_nothing_until_permitted(rabbitmq: Node, vhost: str) -> None:
    """A new user is refused on a vhost, and let in after `permit`."""
    rabbitmq.add_user("ann", "sécret/@:")
    url = rabbitmq.url(vhost, "ann", "sécret/@:")
    with pytest.raises(pika.exceptions.AMQPConnectionError), channel_to(url):
        pass
    rabbitmq.permit("ann", vhost)
    with channel_to(url) as channel:
        channel.queue_declare("hers", durable=True)


def test_ctl_talks_to_this_node(rabbitmq: Node, vhost: str) -> None:
    """`rabbitmqctl` lists what is on the node, and its failure is an error that tells why."""
    assert vhost in rabbitmq.ctl("list_vhosts").splitlines()
    with pytest.raises(NodeError, match="no-such-user"):
        rabbitmq.ctl("delete_user", "no-such-user")


@pytest.mark.parametrize("expression", ["this is wrong", "erlang:error(badarg)"])
def test_a_failed_expression_is_an_error(rabbitmq: Node, expression: str) -> None:
    """`eval` does not pass a failure off as a value."""
    with pytest.raises(NodeError, match="error"):
        rabbitmq.eval(expression)


@pytest.mark.slow
def test_durable_data_outlives_a_kill_and_a_restart(node: Callable[[], Node]) -> None:
    """A confirmed message in a durable queue is there after SIGKILL and after a restart."""
    own = node()
    with channel_to(own.url()) as channel:
        publish_durably(channel, "letters", b"hello")
    own.kill()
    assert own.processes() == []
    with pytest.raises(pika.exceptions.AMQPConnectionError), channel_to(own.url()):
        pass
    own.start()
    own.restart()
    with channel_to(own.url()) as channel:
        assert channel.basic_get("letters", auto_ack=True)[2] == b"hello"


@pytest.mark.slow
def test_nothing_is_left_behind(node: Callable[[], Node]) -> None:
    """A closed node leaves no process, no epmd, no open port and no folder."""
    own = node()
    assert len(own.processes()) > 1
    own.close()
    assert own.processes() == []
    assert not own.folder.exists()
    assert own.pid is None


@pytest.mark.slow
def test_a_node_ends_with_the_process_that_started_it(rabbitmq: Node) -> None:
    """SIGKILL for the tests ends the node too and removes its data."""
    # `rabbitmq` is asked for only to skip where there is none.
    program = (
        "import sys, tests.rabbitmq as r\n"
        "node = r.Node(); node.start()\n"
        "print(node.folder, *node.processes(), flush=True); sys.stdin.read()"
    )
    tests = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with tests:
        assert tests.stdout is not None
        folder, *pids = tests.stdout.readline().split()
        assert len(pids) > 2
        tests.kill()
    wait_until(lambda: not any(is_running(int(pid)) for pid in pids))
    wait_until(lambda: not Path(folder).exists())


@pytest.mark.slow
def test_run_gives_the_url_and_returns_the_exit_code(rabbitmq: Node) -> None:
    """The command finds the node in its environment; its exit code is that of the program."""
    # `rabbitmq` is asked for only to skip where there is none.
    program = (
        "import os, pika\n"
        "pika.BlockingConnection(pika.URLParameters(os.environ['OS_CONNECTION__URL'])).close()\n"
        "raise SystemExit(7)"
    )
    done = subprocess.run(
        [sys.executable, "tests/rabbitmq.py", "run", "--", sys.executable, "-c", program],
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 7


def test_a_node_that_cannot_start_shows_its_log(
    rabbitmq: Node,
) -> None:
    """A broker that ends at once is an error with its own words, and no process stays."""
    # `rabbitmq` is asked for only to skip where there is none.
    own = Node()
    try:
        (own.folder / "rabbitmq.conf").write_text("no_such_key = 1\n")
        with pytest.raises(NodeError, match="no_such_key"):
            own.start()
        assert own.processes() == []
    finally:
        own.close()


def is_running(pid: int) -> bool:
    """Tell whether a process is there and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
