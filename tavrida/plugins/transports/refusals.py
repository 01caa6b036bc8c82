# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Refusals: why there is no connection to RabbitMQ, in one sentence, and what to do."""

from __future__ import annotations

import pika.exceptions
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.connection import Parameters

from tavrida import exceptions
from tavrida.plugins.transports import tls

_CLOSED = (
    "{where} closed the connection before it was open: is it starting or stopping, or does it want "
    "TLS there (amqps://)?"
)

#: Words in pika's errors about the network, and what they mean.
_NETWORK = {
    "StreamLostError": _CLOSED,
    "ConnectionResetError": _CLOSED,
    "IncompatibleProtocolError": "{where} does not speak AMQP 0-9-1",
    "Connection refused": "cannot reach {where}: connection refused. Is RabbitMQ running there?",
    "gaierror": "cannot reach {where}: the host name {host!r} is not known",
    "imeout": "cannot reach {where}: no answer in time (socket_timeout)",
}


def refusal(parameters: Parameters, error: BaseException | str) -> exceptions.ConnectionFailed:
    """Return why a connection with these parameters failed."""
    where = f"RabbitMQ at {parameters.host}:{parameters.port}"
    if parameters.ssl_options is not None:
        failed = tls.refusal(where, error, parameters.ssl_options.server_hostname or "")
        if failed is not None:
            return failed
    text = error if isinstance(error, str) else repr(error)  # str() of some of pika's is empty
    denied = _denial(parameters, error, text)
    if denied:
        return exceptions.ConnectionFailed(f"{where}{denied}", is_final=True)
    for word, sentence in _NETWORK.items():
        if word in text:
            return exceptions.ConnectionFailed(sentence.format(where=where, host=parameters.host))
    if isinstance(error, AMQPConnectorException):
        return exceptions.ConnectionFailed(_NETWORK["imeout"].format(where=where))
    return exceptions.ConnectionFailed(f"cannot reach {where}: {text}")


def _denial(parameters: Parameters, error: BaseException | str, text: str) -> str:
    """Return what the broker has against this login, or nothing."""
    is_refused = "403" in text or "ACCESS_REFUSED" in text
    if isinstance(error, pika.exceptions.ProbableAuthenticationError) and is_refused:
        user = getattr(parameters.credentials, "username", None)
        if user is None:
            return (
                " does not know the user of the client certificate: add one with the name that "
                "RabbitMQ takes from it (ssl_cert_login_from), without a password"
            )
        return (
            f" refused user {user!r}: wrong user name or password (or 'guest' from another "
            "machine, which RabbitMQ does not allow)"
        )
    if isinstance(error, pika.exceptions.ProbableAccessDeniedError):
        why = "does not exist" if "not found" in text else "is closed to this user"
        return (
            f": virtual host {parameters.virtual_host!r} {why}. The virtual host is the part of "
            "the url after the port and a slash; a slash in its name is written %2F"
        )
    if isinstance(error, pika.exceptions.AuthenticationError):
        return (
            " does not offer this way to log in: for login = certificate it needs its plugin "
            "rabbitmq_auth_mechanism_ssl and EXTERNAL in auth_mechanisms, else PLAIN there"
        )
    return ""
