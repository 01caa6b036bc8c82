# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""RabbitMQ's management, over HTTP: what AMQP does not tell.

Its numbers are late: RabbitMQ counts every 5 seconds, and its management collects as often.
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import ssl
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import SplitResult, quote, unquote, urlsplit

from tavrida import exceptions
from tavrida.config import ConnectionConfig
from tavrida.loop import in_thread
from tavrida.plugins.transports import ConnectionState, passwords, tls

#: Seconds for all that is asked for.
TIMEOUT = 10.0

#: Bytes of an answer at most.
MAX_ANSWER = 64 << 20

#: Where it listens, where the url does not say.
_PORTS = {"http": 80, "https": 443}

#: What comes of reading what no management writes. RecursionError is of lists in lists in lists.
_NONSENSE = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)

_RIGHT = "is [connection] management_url right?"
_LATE = f"did not answer within {TIMEOUT:.0f} s: {_RIGHT}"

#: Why it does not answer, by what its HTTP status is.
_REMEDIES = {
    401: "refused user {user!r}{reason}: it wants the right password, rights on virtual host "
    "{vhost!r}, and a tag (rabbitmqctl set_user_tags {user} monitoring)",
    404: "knows no virtual host {vhost!r}, or is another program: " + _RIGHT,
}


@dataclass(frozen=True, slots=True)
class Survey:
    """What the management tells of a virtual host."""

    #: By queue; those that it has not counted yet are not there.
    unacknowledged: Mapping[str, int]
    connections: list[ConnectionState]


async def survey(config: ConnectionConfig) -> Survey:
    """Return what the management of ``management_url`` tells of the url's virtual host.

    Raises:
        TransportError: it cannot be reached, refuses us, or is no such management.
        ConnectionFailed: the password cannot be had.
        ConfigError: a file of TLS is missing or wrong.
    """
    management = await _management_of(config)
    try:
        async with asyncio.timeout(TIMEOUT):
            return await in_thread(management.survey, "tavrida-management")
    except TimeoutError:
        raise exceptions.TransportError(f"{management} {_LATE}") from None


async def _management_of(config: ConnectionConfig) -> _Management:
    place = urlsplit(config.management_url)
    if place.username:
        user, password = unquote(place.username), unquote(place.password or "")
    elif config.login == "certificate":
        raise exceptions.TransportError(
            "[connection] management_url needs a user: with login = certificate there is no "
            "password to take over. Write it as https://USER:PASSWORD@HOST:15671"
        )
    else:
        user, password = await passwords.user_and_password(config, config.urls[0])
    context = tls.context(config) if place.scheme == "https" else None
    vhost = unquote(urlsplit(config.urls[0]).path[1:]) or "/"
    return _Management(place, user, password, vhost, context)


@dataclass(frozen=True, slots=True)
class _Management:
    place: SplitResult
    user: str
    password: str = field(repr=False)
    vhost: str
    context: ssl.SSLContext | None

    def __str__(self) -> str:
        return f"RabbitMQ's management at {self.place.hostname}:{self._port}"

    @property
    def _port(self) -> int:
        return self.place.port or _PORTS[self.place.scheme]

    def survey(self) -> Survey:
        with closing(self._connect()) as connection:
            try:
                return self._survey(connection)
            except _NONSENSE:
                raise exceptions.TransportError(
                    f"{self} answers what no management would: {_RIGHT}"
                ) from None

    def _connect(self) -> http.client.HTTPConnection:
        host, port = str(self.place.hostname), self._port
        if self.context is None:
            return http.client.HTTPConnection(host, port, timeout=TIMEOUT)
        return http.client.HTTPSConnection(host, port, timeout=TIMEOUT, context=self.context)

    def _survey(self, connection: http.client.HTTPConnection) -> Survey:
        vhost = quote(self.vhost, safe="")
        queues = self._get(connection, f"queues/{vhost}", "name", "messages_unacknowledged")
        connections = self._get(
            connection,
            f"vhosts/{vhost}/connections",
            *("name", "client_properties.connection_name", "user", "peer_host", "peer_port"),
            *("connected_at", "state"),
        )
        channels = self._get(
            connection,
            f"vhosts/{vhost}/channels",
            *("connection_details.name", "messages_unacknowledged"),
        )
        consumers = self._get(
            connection, f"consumers/{vhost}", "queue.name", "channel_details.connection_name"
        )
        held: Counter[str] = Counter()
        for each in channels:
            name = _inside(each, "connection_details", "name")
            held[name] += int(each.get("messages_unacknowledged", 0))
        read: defaultdict[str, set[str]] = defaultdict(set)
        for each in consumers:
            name = _inside(each, "channel_details", "connection_name")
            read[name].add(_inside(each, "queue", "name"))
        return Survey(
            {
                str(each["name"]): int(each["messages_unacknowledged"])
                for each in queues
                if "messages_unacknowledged" in each
            },
            [_state_of(each, read[each["name"]], held.get(each["name"])) for each in connections],
        )

    def _get(
        self, connection: http.client.HTTPConnection, what: str, *columns: str
    ) -> list[dict[str, Any]]:
        """Return a list that the management has; only these columns of it."""
        path = f"{self.place.path.rstrip('/')}/api/{what}?columns={','.join(columns)}"
        login = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        try:
            connection.request("GET", path, headers={"Authorization": f"Basic {login}"})
            answer = connection.getresponse()
            body = answer.read(MAX_ANSWER)
        except (http.client.HTTPException, ConnectionResetError):
            raise exceptions.TransportError(f"{self} does not speak HTTP: {_RIGHT}") from None
        except OSError as error:
            raise self._refusal(error) from None
        if answer.status != 200:
            raise self._denial(answer, body)
        found = json.loads(body)
        if not isinstance(found, list):
            raise TypeError(what)
        return found

    def _refusal(self, error: OSError) -> exceptions.TransportError:
        failed = tls.refusal(str(self), error, str(self.place.hostname))
        if failed is not None:
            return exceptions.TransportError(str(failed))
        if isinstance(error, TimeoutError):
            return exceptions.TransportError(f"{self} {_LATE}")
        why = (error.strerror or str(error)).lower()
        return exceptions.TransportError(
            f"{self} cannot be reached: {why}. Is its plugin enabled (rabbitmq-plugins enable "
            f"rabbitmq_management), and {_RIGHT}"
        )

    def _denial(self, answer: http.client.HTTPResponse, body: bytes) -> exceptions.TransportError:
        remedy = _REMEDIES.get(answer.status, "answered {status} {said}: " + _RIGHT)
        why = remedy.format(
            status=answer.status,
            said=exceptions.printable(answer.reason),
            user=self.user,
            vhost=self.vhost,
            reason=_reason_in(body),
        )
        return exceptions.TransportError(f"{self} {why}")


def _inside(told: dict[str, Any], thing: str, name: str) -> str:
    """Return a name inside of a thing, which the management writes as [] when it is gone."""
    return str(dict(told.get(thing) or {}).get(name, ""))


def _reason_in(body: bytes) -> str:
    """Return what the management says itself of why it refuses."""
    try:
        return f" ({exceptions.printable(str(json.loads(body)['reason']))})"
    except _NONSENSE:
        return ""


def _state_of(told: dict[str, Any], queues: Iterable[str], held: int | None) -> ConnectionState:
    since = told.get("connected_at")
    peer = told.get("peer_host")
    return ConnectionState(
        # Other programs may give none; then it is how RabbitMQ calls it.
        _inside(told, "client_properties", "connection_name") or str(told["name"]),
        str(told.get("user") or ""),
        f"{peer}:{told.get('peer_port')}" if peer else "",
        None if since is None else datetime.fromtimestamp(since / 1000, UTC),
        str(told.get("state") or ""),
        tuple(sorted(queues)),
        held,
    )
