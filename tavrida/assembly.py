# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Assembly: from a configuration to the server that it describes."""

from __future__ import annotations

import dataclasses

from tavrida import exceptions, options
from tavrida.addresses import AddressBook
from tavrida.dispatcher import Dispatcher
from tavrida.options import Configuration, ServiceSection
from tavrida.server import Server
from tavrida.topology import Placement


def load(conf: options.Parsed) -> tuple[Server, Configuration]:
    """Return the server that the parsed files describe, and their configuration.

    Raises:
        ConfigError: lists everything that is wrong, in the files and in what they name.
    """
    configuration, faults = options.survey(conf)
    with faults.collected():
        server = assemble(configuration)
    faults.check()
    return server, configuration


def assemble(configuration: Configuration) -> Server:
    """Return the server that the configuration describes; it is not started.

    Raises:
        ConfigError: lists everything that cannot work.
    """
    services = configuration.services
    exchanges = {service.name: service.exchange for service in services}
    publishers = {
        service.name: service.publish_exchange for service in services if service.publish_exchange
    }
    faults = exceptions.Faults()
    placements = []
    for service in services:
        with faults.collected(f"[service:{service.name}] "):
            placement = _place(service, AddressBook(service.discovery, exchanges, publishers))
            placements.append(_with_middleware(placement, configuration))
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


def _with_middleware(placement: Placement, configuration: Configuration) -> Placement:
    """Put the middleware that the files name around that of the controller."""
    made, settings = configuration.middleware, configuration.server
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
