# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Settings as plain, frozen data: the connection, the server, the log.

Each field carries its help text and limits, so that the ini options (``tavrida.options``), the
sample file and the checks of a program that sets them in code have one source.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import re
import typing
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from tavrida import exceptions

#: The largest number that an option takes, where it does not say otherwise: AMQP has 32 bits.
MAX_NUMBER = 2_147_483_647


def option(
    default: Any,
    help: str,  # noqa: A002 - the word that every configuration library uses
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
    secret: bool = False,
    mutable: bool = False,
) -> Any:
    """Return a dataclass field that is an option with a help text and limits as well.

    One that is ``mutable`` takes effect when the files are read again, without a restart.
    """
    return dataclasses.field(
        default=default,
        repr=not secret,
        metadata={
            "help": help,
            "minimum": minimum,
            # What no number of seconds, bytes or messages needs overflows somewhere.
            "maximum": MAX_NUMBER if maximum is None else maximum,
            "choices": choices,
            "secret": secret,
            "mutable": mutable,
        },
    )


def options_of(cls: type) -> list[dataclasses.Field[Any]]:
    """Return those fields of a settings class that are options."""
    return [field for field in dataclasses.fields(cls) if field.metadata]


def _check(settings: Any) -> None:
    """Raise ConfigError with every option that is out of its limits or of the wrong type."""
    faults = []
    types = typing.get_type_hints(type(settings))
    for field in options_of(type(settings)):
        value = getattr(settings, field.name)
        minimum, maximum = field.metadata["minimum"], field.metadata["maximum"]
        choices = field.metadata["choices"]
        expected = typing.get_origin(types[field.name]) or types[field.name]
        accepted = (int, float) if expected is float else expected
        shown = f"{field.name}=***" if field.metadata["secret"] else f"{field.name}={value!r}"
        if not isinstance(value, accepted) or (isinstance(value, bool) and expected is not bool):
            faults.append(f"{shown} should be of type {expected.__name__}")
        elif expected is float and not math.isfinite(value):
            faults.append(f"{shown} should be a finite number")
        elif minimum is not None and value < minimum:
            faults.append(f"{field.name}={value!r} should be at least {minimum}")
        elif isinstance(value, int | float) and value > maximum:
            faults.append(f"{field.name}={value!r} should be at most {maximum}")
        elif choices and value not in choices:
            faults.append(f"{field.name}={value!r} should be one of {', '.join(choices)}")
    if faults:
        raise exceptions.ConfigError(*faults)


#: What may be a password: all between the user name and the last @, also where it is no url.
_SECRET = re.compile(r"^([A-Za-z0-9+.-]*://[^:@]*:)?.*@", re.DOTALL)


def redact(url: str) -> str:
    """Return the url with the password left out, fit for logs and messages."""
    found = _SECRET.match(url)
    if found is None or (found[1] is None and "://" in url):  # a user name without a password
        return url
    return f"{found[1] or ''}***@{url[found.end() :]}"


def _fault_of(url: str) -> str:
    """Return why a url is none that any transport could read, or nothing."""
    why = ""
    try:
        parts = urlsplit(url)
        if not parts.scheme or "://" not in url:
            why = f"{redact(url)!r} has no scheme"
        elif parts.scheme.startswith("amqp") and "@" in parts.path + parts.query + parts.fragment:
            why = f"{redact(url)!r} has an @ behind its host"
    except ValueError:  # its text may have the password
        why = f"{redact(url)!r} cannot be read"
    if not why:
        return ""
    return (
        f"{why}: write it as amqp://USER:PASSWORD@HOST:PORT/VIRTUAL_HOST, and the characters "
        "/ # ? @ : , in a user name or password as %2F %23 %3F %40 %3A %2C"
    )


def _fault_of_management(url: str) -> str:
    """Return why a url cannot be that of RabbitMQ's management, or nothing."""
    try:
        parts = urlsplit(url)
        behind = (parts.path, parts.query, parts.fragment)
        faults = {
            "is no url of HTTP": parts.scheme not in ("http", "https"),
            "has an @ behind its host": any("@" in part for part in behind),
            "has no host": not parts.hostname,
            "has port 0": parts.port == 0,
            "has a user and no password": bool(parts.username and not parts.password),
            "has a ? or #": bool(parts.query or parts.fragment),
        }
    except ValueError:  # its text may have the password
        faults = {"cannot be read": True}
    why = next((fault for fault, is_so in faults.items() if is_so), "")
    if not why:
        return ""
    return (
        f"{redact(url)!r} {why}: write it as http://HOST:15672 or http://USER:PASSWORD@HOST:15672, "
        "and the characters / # ? @ : in a user name or password as %2F %23 %3F %40 %3A"
    )


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user name and password for the broker. The password never shows in ``repr``.

    A password that changes is given as a function without arguments. It is called before each
    connection, in a thread of its own, and has 10 seconds.
    """

    username: str
    password: str | Callable[[], str] = dataclasses.field(repr=False)


@dataclass(frozen=True, slots=True)
class ConnectionConfig:
    """How to reach the broker; the ``[connection]`` section of the ini.

    Either a host with credentials, as in ``ConnectionConfig("localhost", Credentials("guest",
    "guest"))``, or ``url``, which may name several nodes of a cluster and wins over the host. What
    a url leaves out, user name or password, is taken from the credentials.

    ``async_engine`` belongs to servers made in code: True runs up to ``concurrency`` handlers
    side by side, False one at a time in the order of the queue.

    Raises:
        ConfigError: an option is of the wrong type or out of its limits; names all of them.
    """

    host: str = "localhost"
    credentials: Credentials = Credentials("guest", "guest")
    port: int = 5672
    virtual_host: str = "/"
    _: KW_ONLY
    async_engine: bool = False
    url: tuple[str, ...] = option(
        (),
        "Where the broker is: amqp://USER:PASSWORD@HOST:PORT/VIRTUAL_HOST, amqps:// with TLS. "
        "Several nodes of a cluster: a comma between the urls. The scheme picks the transport. "
        "A virtual host '/' is written %2F, a dollar sign $$. sqlite:///PATH/bus.db needs no "
        "broker and connects the processes of one machine; without any url it is such a file in "
        "the user's state folder, $XDG_STATE_HOME/tavrida/bus.db.",
        secret=True,
    )
    management_url: str = option(
        "",
        "RabbitMQ's management (its plugin rabbitmq_management), which tavrida status asks for "
        "what AMQP does not tell: http://HOST:15672, or https. User and password, where it has "
        "none, are those of the connection, and need the tag monitoring. A dollar sign is "
        "written $$.",
        secret=True,
    )
    password_file: str = option(
        "",
        "A file that holds the password, read before each connection: a changed password needs "
        "no restart. Wins over that of the url.",
    )
    password_command: str = option(
        "",
        "A command that prints the password, run before each connection without a shell; it has "
        "10 seconds. Wins over that of the url.",
        secret=True,
    )
    login: str = option(
        "password",
        "How to log in: by user name and password, or by the client certificate (SASL EXTERNAL; "
        "RabbitMQ needs its plugin rabbitmq_auth_mechanism_ssl).",
        choices=("password", "certificate"),
    )
    tls_ca_file: str = option(
        "",
        "The CA certificates (PEM) that the broker's certificate is checked against. Default: "
        "those of the system. This and the other files are read before each connection.",
    )
    tls_cert_file: str = option(
        "", "The certificate (PEM) to show to the broker, where it asks for one."
    )
    tls_key_file: str = option(
        "", "The private key (PEM) of tls_cert_file. Default: it is in that file too."
    )
    tls_key_password_file: str = option("", "A file that holds the password of that key.")
    tls_server_name: str = option(
        "",
        "The name that has to be in the broker's certificate. Default: the host of the url.",
    )
    heartbeat: int = option(
        15,
        "Seconds between heartbeats; a broker that hangs is noticed within twice as long and 10 "
        "seconds more. 0 turns them off, below 5 gives false alarms.",
        minimum=0,
        maximum=65_535,
    )
    socket_timeout: float = option(
        5.0, "Seconds that one attempt to connect to one node may take.", minimum=0.1
    )
    connection_attempts: int = option(
        3, "How often a client tries all nodes before its call fails.", minimum=1
    )
    reconnect_attempts: int = option(
        -1,
        "How often a server tries all nodes, at start and after a loss; -1 for ever.",
        minimum=-1,
    )
    retry_delay: float = option(
        0.5,
        "Seconds between the first two attempts; doubles with each one, with jitter.",
        minimum=0.01,
    )
    max_retry_delay: float = option(
        1.0,
        "Seconds between two attempts at most: with so many, services are at work again within 2 "
        "seconds of their broker. Where thousands of processes share one, longer is kinder to it.",
        minimum=0.01,
    )
    publish_timeout: float = option(
        30.0, "Seconds within which the broker has to confirm a message.", minimum=0.1
    )
    call_timeout: float = option(
        30.0,
        "Seconds that a call waits for its answer where the caller gives no time-out.",
        minimum=0.001,
    )
    max_unconfirmed: int = option(
        500,
        "Messages that may await their confirm; a sender over that waits. More only pile up in the "
        "broker, where it is near.",
        minimum=1,
    )
    max_message_size: int = option(
        16_777_216,
        "Bytes of a body at most; larger ones are refused before they are sent. RabbitMQ 4's own "
        "limit is the default here.",
        minimum=1,
    )

    def __post_init__(self) -> None:
        if isinstance(self.url, str):
            urls = [url.strip() for url in self.url.split(",")]
            object.__setattr__(self, "url", tuple(filter(None, urls)))
        _check(self)
        faults = [
            f"{name} should be of type {kind.__name__}, not {type(value).__name__}"
            for name, value, kind in (
                ("host", self.host, str),
                ("port", self.port, int),
                ("virtual_host", self.virtual_host, str),
                ("credentials", self.credentials, Credentials),
                *(("each url", url, str) for url in self.url),
            )
            if not isinstance(value, kind)
        ]
        if not faults:
            password = self.credentials.password
            if not isinstance(self.credentials.username, str):
                faults.append("credentials: the user name should be of type str")
            if not (isinstance(password, str) or callable(password)):
                faults.append("credentials: the password should be a str or a function")
            if not 0 < self.port < 65536:
                faults.append(f"port={self.port!r} should be from 1 to 65535")
            faults += [f"url: {fault}" for fault in map(_fault_of, self.url) if fault]
            if self.management_url and (fault := _fault_of_management(self.management_url)):
                faults.append(f"management_url: {fault}")
        if faults:
            raise exceptions.ConfigError(*faults)
        if self.password_file and self.password_command:
            raise exceptions.ConfigError(
                "password_file and password_command are both set: leave one of them out"
            )
        schemes = {urlsplit(url).scheme for url in self.urls}
        if len(schemes) > 1:
            raise exceptions.ConfigError(
                f"url names several transports, {', '.join(sorted(schemes))}: "
                "all nodes of one cluster have the same scheme"
            )

    @property
    def urls(self) -> tuple[str, ...]:
        """The url of every node; made from host and credentials where ``url`` is not given."""
        if self.url:
            return self.url
        user = quote(self.credentials.username, safe="")
        if isinstance(self.credentials.password, str):  # else it is asked for when needed
            user += ":" + quote(self.credentials.password, safe="")
        vhost = quote(self.virtual_host, safe="")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (f"amqp://{user}@{host}:{self.port}/{vhost}",)

    @property
    def scheme(self) -> str:
        """The part of the url before "://", which is the name of the transport plugin."""
        return urlsplit(self.urls[0]).scheme


#: Options of ``[server]`` that mean nothing to a server in a program of its own.
_FOR_THE_COMMAND = ("services", "workers")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """What a server may be told; the ``[server]`` section and the keyword arguments of Server.

    Raises:
        ConfigError: an option is of the wrong type or out of its limits; names all of them.
    """

    services: tuple[str, ...] = option(
        (), "The services to run: names of [service:NAME] sections, or of installed controllers."
    )
    workers: int = option(
        1,
        "How many processes of tavrida-server serve, each with handlers of its own. One that dies "
        "is started again.",
        minimum=1,
        maximum=1024,
    )
    concurrency: int = option(
        10,
        "How many handlers a process runs side by side; 1 keeps the order of the queue.",
        minimum=1,
        mutable=True,
    )
    prefetch: int = option(
        0,
        "Deliveries that a queue hands over ahead of their handlers; 0 follows concurrency, and "
        "the limits of handlers where all of a queue have one.",
        minimum=0,
        mutable=True,
    )
    queue_type: str = option(
        "quorum",
        "The type of the queues. Quorum queues are replicated in a cluster; classic ones are "
        "faster on a single node. A queue that exists keeps its type.",
        choices=("quorum", "classic"),
    )
    delivery_limit: int = option(
        20,
        "How often a message that kills its process is delivered again before it goes to "
        "QUEUE.dead.",
        minimum=1,
    )
    handler_concurrency: tuple[str, ...] = option(
        (),
        "How many of a handler run side by side: SERVICE.METHOD:NUMBER, with commas between. "
        "Others have no limit but concurrency, or what their decorators say.",
        mutable=True,
    )
    failure_threshold: float = option(
        0.0,
        "The part of a queue's last messages, from 0 to 1, that may fail before the queue is "
        "paused; 0 for never. Calls, whose callers are told, and messages that are themselves "
        "wrong do not count.",
        minimum=0,
        maximum=1,
        mutable=True,
    )
    failure_window: int = option(
        20,
        "How many of its last messages that is a part of.",
        minimum=1,
        maximum=1_000_000,
        mutable=True,
    )
    failure_pause: float = option(
        60.0,
        "Seconds until a paused queue is tried again, with one message.",
        minimum=0.1,
        mutable=True,
    )
    serializer: str = option("json", "The plugin that writes bodies (tavrida.serializers).")
    accept: tuple[str, ...] = option(
        ("json", "msgpack"), "The plugins that read bodies, chosen by their content type."
    )
    incoming_middleware: tuple[str, ...] = option(
        (), "Plugins (tavrida.middleware) that see every message before its handler, in order."
    )
    outgoing_middleware: tuple[str, ...] = option(
        (), "Plugins (tavrida.middleware) that see every message before it is sent, in order."
    )
    describe: bool = option(
        True,
        "Whether the services answer their built-in method __describe__: methods with JSON "
        "Schemas, subscriptions, version, host.",
    )
    debug_tracebacks: bool = option(
        False,
        "Whether error answers carry the traceback, as details.traceback. It shows code and "
        "paths to every caller: for development only.",
    )
    consumer_timeout: float = option(
        1800.0,
        "Seconds after which RabbitMQ takes a message back from its handler: its own option "
        "consumer_timeout, whose default is this. A handler that has had one for half as long gets "
        "a warning in the log; 0 for none.",
        minimum=0,
    )
    graceful_timeout: float = option(
        30.0,
        "Seconds that running handlers get to finish when the server stops.",
        minimum=0,
        mutable=True,
    )

    def __post_init__(self) -> None:
        _check(self)

    @classmethod
    def from_keywords(cls, keywords: dict[str, Any]) -> ServerSettings:
        """Return the settings that keyword arguments give.

        Raises:
            ConfigError: for a keyword that is no option, with the nearest one that is.
        """
        names = [field.name for field in options_of(cls) if field.name not in _FOR_THE_COMMAND]
        unknown = [
            f"Server() has no argument {name!r}{exceptions.did_you_mean(name, names)}"
            for name in keywords
            if name not in names
        ]
        if unknown:
            raise exceptions.ConfigError(*unknown)
        return cls(**keywords)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """The ``[client]`` section: clients that are made from the files."""

    outgoing_middleware: tuple[str, ...] = option(
        (),
        "Plugins (tavrida.middleware) that see every message of a client before it is sent, in "
        "order.",
    )

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxSettings:
    """The ``[outbox]`` section; used by ``tavrida outbox relay``."""

    url: str = option(
        "",
        "The database whose outbox is published: sqlite:///PATH/orders.db, or "
        "postgresql://USER:PASSWORD@HOST/DATABASE, which needs psycopg. A dollar sign is "
        "written $$.",
        secret=True,
    )
    poll: float = option(
        0.5, "Seconds between two looks for messages that were stored.", minimum=0.001
    )
    batch: int = option(100, "Messages that are on their way at a time.", minimum=1)
    lease: float = option(
        10.0, "Seconds after which another relay takes over from one that is gone.", minimum=0.1
    )
    max_pause: float = option(
        60.0, "Seconds at most until a message that failed is tried again.", minimum=0.001
    )

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthSettings:
    """The ``[health]`` section, and ``Server(health=)``."""

    port: int = option(
        0,
        "The port at which /live, /ready and /metrics answer over HTTP; 0 for none.",
        minimum=0,
        maximum=65_535,
    )
    host: str = option(
        "127.0.0.1",
        "The address to listen at. Whoever reaches it sees names of services and queues; 0.0.0.0 "
        "is for probes from outside, as those of Kubernetes are.",
    )
    stuck_loop: float = option(
        10.0,
        "Seconds that the event loop may be held up, by an async def handler that blocks for "
        "instance, until /live fails and an orchestrator may restart the process.",
        minimum=0.1,
    )
    stuck_handler: float = option(
        60.0,
        "Seconds after which a handler that still runs is logged and told of by /ready; it stays "
        "ready. 0 for never.",
        minimum=0,
    )

    def __post_init__(self) -> None:
        _check(self)


#: The format of a line of the log where none is given.
TEXT_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

#: What a format may name beside what Python's logging has, with examples.
LOG_FIELDS = {
    "correlation_id": "",
    "entry_point": "",
    "service": "",
    "request_id": "",
    "message_id": "",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """The ``[log]`` section; used by the commands, never by the library."""

    level: str = option(
        "INFO",
        "The lowest level that is logged.",
        choices=("DEBUG", "INFO", "WARNING", "ERROR"),
        mutable=True,
    )
    format: str = option(
        TEXT_FORMAT,
        "json: an object a line, with all fields of a record; pretty: for people, in colour on a "
        "screen; text: the default; or a format as Python's logging takes it, with "
        "%(correlation_id)s, %(entry_point)s, %(service)s, %(request_id)s and %(message_id)s of "
        "the message that is handled. A percent sign is written once.",
    )
    mask: tuple[str, ...] = option(
        ("password", "passwd", "secret", "token", "authorization", "cookie", "api_key"),
        "Words: the values of headers, payload keys and other fields that have one of these in "
        "their name are logged as ***.",
    )

    def __post_init__(self) -> None:
        _check(self)
        if self.format in ("json", "text", "pretty"):
            return
        try:
            record = logging.makeLogRecord(LOG_FIELDS)
            logging.Formatter(self.format).format(record)
        except (ValueError, KeyError, TypeError) as error:
            raise exceptions.ConfigError(
                f"format: {self.format!r} cannot be written: {error}; it should be json, text, "
                "pretty, or a format in which %(message)s is the text, and Python's logging "
                "documents the others"
            ) from None
