# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""What ``tavrida-server`` runs by, and how that changes when its files are read again."""

from __future__ import annotations

import logging
from collections.abc import Callable

from tavrida import exceptions, options
from tavrida.changes import Changes
from tavrida.config import LogSettings, ServerSettings
from tavrida.options import Configuration, Parsed
from tavrida.retries import Retries
from tavrida.server import Server

LOG = logging.getLogger(__name__)

#: What can take effect without a restart: what a master hands on to its workers.
Settings = tuple[LogSettings, ServerSettings, Retries]


def apply(server: Server, settings: Settings) -> bool:
    """Let settings take effect in this process; returns and raises as ``Server.reload``."""
    log, its, retries = settings
    if not server.reload(its, retries):
        return False
    logging.getLogger().setLevel(log.level)
    return True


def _settings_of(configuration: Configuration) -> Settings:
    return configuration.log, configuration.server, configuration.retries


class Running:
    """A configuration and the server that was made of it.

    In a master that server never starts; it is there to tell whether changes can work.
    """

    def __init__(
        self, parse: Callable[[], Parsed], configuration: Configuration, server: Server
    ) -> None:
        self._parse = parse
        self.configuration = configuration
        self.server = server

    @property
    def settings(self) -> Settings:
        """What can take effect without a restart, as it is now."""
        return _settings_of(self.configuration)

    def reload(self) -> bool:
        """Read the files again and let take effect what can; tell whether all went well.

        The log says what changed, what needs a restart, or what is wrong, so that all stays.
        """
        try:
            changes = Changes.between(self.configuration, options.read(self._parse()))
            if not apply(self.server, _settings_of(changes.configuration)):
                LOG.warning("Not reloaded: a stop was requested before there was a connection.")
                return False
        except exceptions.ConfigError as error:
            for fault in error.faults:
                text = exceptions.printable(fault)
                LOG.error("Not reloaded, all stays as it was: %s", text)  # noqa: TRY400
            return False
        except exceptions.TransportError as error:
            LOG.error("Not reloaded, or in part only: %s", error)  # noqa: TRY400
            return False
        except Exception:  # of a plugin: it must not end a server that runs
            LOG.exception("Not reloaded.")
            return False
        self.configuration = changes.configuration
        for name in changes.left:
            LOG.warning("%s was changed, which needs a restart.", name)
        for change in changes.applied:
            LOG.info("Reloaded: %s.", change)
        if not changes.applied:
            LOG.info("Reloaded: nothing was changed that takes effect without a restart.")
        return True
