# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Assembly: from a configuration to the server or client that it describes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tavrida import exceptions, options, plugins, state
from tavrida.addresses import AddressBook
from tavrida.client import AsyncRPCClient, RPCClient
from tavrida.config import ServerSettings, redact
from tavrida.dispatcher import Dispatcher
from tavrida.middleware import Middleware
from tavrida.options import Configuration, ServiceSection
from tavrida.plugins.transports import Transport
from tavrida.server import Server
from tavrida.topology import Placement

Client = TypeVar("Client", bound=RPCClient | AsyncRPCClient)


def new_client(cls: type[Client], files: Iterable[str | Path] = (), **arguments: Any) -> Client:
    """Return a client for the services that ini files speak of, with what ``[client]`` names.

    Without ``files``, those that ``tavrida-server`` reads. The arguments are those of the class:
    ``new_client(RPCClient, ["/etc/shop.conf"], source="web")``. Their ``outgoing_middleware``
    comes before that of the files.

    Raises:
        ConfigError: lists everything that is wrong, in the files and in what they name.
    """
    conf = options.parse([f"--config-file={path}" for path in files], "tavrida-server")
    config, discovery, makers = options.read_clients(conf)
    chain = (*arguments.pop("outgoing_middleware", ()), *options.made(makers).values())
    state.prepare(config.urls)
    return cls(config, discovery=discovery, outgoing_middleware=chain, **arguments)


def load(conf: options.Parsed) -> tuple[Server, Configuration]:
    """Return the server that the parsed files describe, and their configuration.

    Raises:
        ConfigError: lists everything that is wrong, in the files and in what they name.
    """
    configuration, faults = options.survey(conf)
    with faults.collected():
        server = assemble(configuration)
        _check_workers(configuration)
    faults.check()
    return server, configuration


def _check_workers(configuration: Configuration) -> None:
    """Raise ConfigError where several processes could not meet."""
    config, workers = configuration.connection, configuration.server.workers
    if workers == 1:
        return
    transport: type[Transport] = plugins.load(
        plugins.TRANSPORTS,
        config.scheme,
        Transport,  # type: ignore[type-abstract]
    )
    if not transport.is_shared(config):
        raise exceptions.ConfigError(
            f"[server] workers = {workers} cannot share [connection] url {redact(config.urls[0])}, "
            "which is in the memory of one process: name a file, sqlite:///PATH/bus.db, or a "
            "broker, or leave workers at 1"
        )


def assemble(configuration: Configuration) -> Server:
    """Return a server that the configuration describes, with controllers of its own.

    It is not started.

    Raises:
        ConfigError: lists everything that cannot work.
    """
    services = configuration.services
    exchanges = {service.name: service.exchange for service in services}
    publishers = {
        service.name: service.publish_exchange for service in services if service.publish_exchange
    }
    faults = exceptions.Faults()
    middleware: dict[str, Middleware] = {}
    with faults.collected():
        middleware = options.made(configuration.middleware)
    placements = []
    for service in services:
        with faults.collected(f"[service:{service.name}] "):
            placement = _place(service, AddressBook(service.discovery, exchanges, publishers))
            placements.append(_with_middleware(placement, configuration.server, middleware))
    faults.check()
    # The middleware is there already, made with its options.
    settings = dataclasses.replace(
        configuration.server, incoming_middleware=(), outgoing_middleware=()
    )
    return Server.from_placements(
        configuration.connection,
        placements,
        settings,
        configuration.retries,
        health=configuration.health,
    )


def _with_middleware(
    placement: Placement, settings: ServerSettings, made: Mapping[str, Middleware]
) -> Placement:
    """Put the middleware that the files name around that of the controller."""
    incoming = [made[name] for name in settings.incoming_middleware if name in made]
    outgoing = [made[name] for name in settings.outgoing_middleware if name in made]
    return dataclasses.replace(
        placement,
        incoming=(*incoming, *placement.incoming),
        outgoing=(*placement.outgoing, *outgoing),
    )


def _place(service: ServiceSection, addresses: AddressBook) -> Placement:
    try:
        controller = service.controller(service.options)
    except exceptions.ConfigError:
        raise
    except Exception as error:
        raise exceptions.ConfigError(
            f"{service.controller.__name__}() of controller cannot be made: "
            f"{type(error).__name__}: {error}"
        ) from error
    dispatcher = Dispatcher(controller)
    heard = {mark.entry_point.service for mark in dispatcher.subscriptions()}
    for publisher in service.subscriptions or ():
        if publisher not in heard:
            raise exceptions.ConfigError(
                f"subscriptions names {publisher!r}, but the controller has no "
                f"subscription_method for it{exceptions.did_you_mean(publisher, heard)}"
            )
    return Placement(
        dispatcher,
        service.queue,
        service.exchange,
        addresses,
        service.subscriptions,
        tuple(controller.incoming_middleware),
        tuple(controller.outgoing_middleware),
    )
