# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The ini: every oslo.config option, and reading the files into plain settings.

oslo.config's global ``CONF`` is never touched. Every fault in the files is told at once.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import os
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import methodcaller
from pathlib import Path
from typing import Any

from oslo_config import cfg

from tavrida import dispatcher, exceptions, inifiles, masks, plugins, state
from tavrida.config import (
    MAX_NUMBER,
    ClientSettings,
    ConnectionConfig,
    HealthSettings,
    LogSettings,
    OutboxSettings,
    ServerSettings,
    options_of,
    redact,
)
from tavrida.discovery import Discovery
from tavrida.middleware import Middleware
from tavrida.plugins.discovery.file import FileDiscovery
from tavrida.plugins.discovery.local import LocalBackend
from tavrida.plugins.middleware.dedup import Dedup
from tavrida.plugins.middleware.opentelemetry import OpenTelemetry
from tavrida.plugins.middleware.prometheus import Prometheus
from tavrida.retries import DEFAULT, Retries, Retry
from tavrida.service import ServiceController


class Parsed(cfg.ConfigOpts):
    """Files, environment and command line, parsed and not checked yet."""

    #: The files in the order of reading; the last one wins.
    files: tuple[Path, ...] = ()


#: By name, what makes middleware with its options; it raises ConfigError.
Makers = Mapping[str, Callable[[], Middleware]]

#: How a type of a settings field is read from the ini.
_OPTION_TYPES: dict[type, type[cfg.Opt]] = {
    str: cfg.StrOpt,
    bool: cfg.BoolOpt,
    int: cfg.IntOpt,
    float: cfg.FloatOpt,
    tuple: cfg.ListOpt,
}

#: The sections that are always there, and the settings each one fills.
SECTIONS: dict[str, type] = {
    "connection": ConnectionConfig,
    "server": ServerSettings,
    "client": ClientSettings,
    "log": LogSettings,
    "health": HealthSettings,
    "outbox": OutboxSettings,
}

# Python's words for what is no number.
_NOT_A_NUMBER = re.compile(
    r"invalid literal for int\(\) with base 10:|could not convert string to float:"
)

SERVICE_OPTIONS = [
    cfg.StrOpt(
        "controller",
        help="The plugin (tavrida.controllers) to run. Default: the name of the service.",
    ),
    cfg.StrOpt("exchange", help="Takes the requests. Default: the name of the service."),
    cfg.StrOpt("queue", help="What the service reads. Default: the name of the service."),
    cfg.StrOpt(
        "publish_exchange",
        help="Takes its notifications. Default: what its discovery says, by convention "
        "SERVICE.notifications.",
    ),
    cfg.StrOpt(
        "discovery",
        help="The [discovery:NAME] section that tells where other services are. Default: every "
        "service keeps to the convention.",
    ),
    cfg.ListOpt(
        "subscriptions",
        help="The services whose notifications it hears. Default: all that it has handlers for.",
    ),
]

DISCOVERY_OPTIONS = [
    cfg.StrOpt("backend", help="The plugin (tavrida.discovery). Default: the name of the section.")
]


def _retry_options(defaults: Retry) -> list[cfg.Opt]:
    """Return the options of a ``[retry]`` section; what it does not say is as the defaults say."""
    return [
        cfg.IntOpt(
            "attempts",
            mutable=True,
            default=defaults.attempts,
            min=1,
            max=10_000,
            help="How often a handler that fails is run in all; 1: never again.",
        ),
        cfg.FloatOpt(
            "first_delay",
            mutable=True,
            default=defaults.first_delay,
            min=0.001,
            help="Seconds before the second attempt.",
        ),
        cfg.FloatOpt(
            "factor",
            mutable=True,
            default=defaults.factor,
            min=1,
            max=1000,
            help="How many times longer each delay is than the one before.",
        ),
        cfg.FloatOpt(
            "max_delay",
            mutable=True,
            default=defaults.max_delay,
            min=0.001,
            help="Seconds of a delay at most.",
        ),
        cfg.FloatOpt(
            "jitter",
            mutable=True,
            default=defaults.jitter,
            min=0,
            max=1,
            help="The part of a delay, at random up to this, by which it is shortened.",
        ),
        cfg.ListOpt(
            "on",
            mutable=True,
            default=None if defaults.on is None else list(defaults.on),
            help="The exceptions after which a handler is run again, as ValueError or "
            "package.module.Error; subclasses count too. Where it names none: all but those that "
            "are the message's own fault, such as InvalidPayload.",
        ),
        cfg.ListOpt(
            "never",
            mutable=True,
            default=None if defaults.never is None else list(defaults.never),
            help="Exceptions after which it is not, whatever the other option says.",
        ),
    ]


@dataclass(frozen=True, slots=True)
class ServiceSection:
    """A ``[service:NAME]`` section, with its plugins loaded."""

    name: str
    controller: type[ServiceController]
    exchange: str
    queue: str
    publish_exchange: str | None
    discovery: Discovery
    subscriptions: tuple[str, ...] | None
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Setting:
    """An option as it is in force: its value, whose secrets are masked, and who gave it."""

    section: str
    name: str
    value: Any
    source: inifiles.Source
    #: What else gives it a value, which does not count; the nearest to count comes first.
    others: tuple[inifiles.Source, ...] = ()


@dataclass(frozen=True, slots=True)
class Configuration:
    """Everything that the files, the environment and the command line say."""

    connection: ConnectionConfig
    server: ServerSettings
    client: ClientSettings
    log: LogSettings
    health: HealthSettings
    outbox: OutboxSettings
    services: tuple[ServiceSection, ...]
    retries: Retries
    #: What makes the middleware that [server] names: one object for all services.
    middleware: Makers
    #: The value of every option that was read, by section and name; and which of tavrida's own
    #: take effect without a restart.
    values: Mapping[tuple[str, str], Any] = dataclasses.field(default_factory=dict, repr=False)
    mutable: frozenset[tuple[str, str]] = frozenset()


def _options(settings: type) -> list[cfg.Opt]:
    """Return the options that fill a settings class."""
    hints = typing.get_type_hints(settings)
    found = []
    for field in options_of(settings):
        kind = typing.get_origin(hints[field.name]) or hints[field.name]
        limits: dict[str, Any] = {}
        if field.metadata["minimum"] is not None:
            limits["min"] = field.metadata["minimum"]
        if kind in (int, float) and field.metadata["maximum"] != MAX_NUMBER:
            limits["max"] = field.metadata["maximum"]
        if field.metadata["choices"]:
            limits["choices"] = field.metadata["choices"]
        default: Any = field.default
        if kind is tuple:
            default = list(default)
        option = _OPTION_TYPES[kind](
            field.name,
            default=default,
            help=field.metadata["help"],
            secret=field.metadata["secret"],
            mutable=field.metadata["mutable"],
            **limits,
        )
        found.append(option)
    return found


def list_opts() -> list[tuple[str, list[cfg.Opt]]]:
    """Return all options by section, for oslo.config's generator and validator."""
    groups = [(name, _options(settings)) for name, settings in SECTIONS.items()]
    groups.append(("service:NAME", SERVICE_OPTIONS))
    groups.append(("retry", _retry_options(DEFAULT)))
    groups.append(("retry:NAME", _retry_options(Retry())))
    backends = [*LocalBackend.list_opts(), *FileDiscovery.list_opts()]
    groups.append(("discovery:NAME", [*DISCOVERY_OPTIONS, *backends]))
    groups.append(("middleware:dedup", Dedup.list_opts()))
    groups.append(("middleware:opentelemetry", OpenTelemetry.list_opts()))
    groups.append(("middleware:prometheus", Prometheus.list_opts()))
    return copy.deepcopy(groups)


def parse(arguments: list[str], prog: str, command_line: Iterable[cfg.Opt] = ()) -> Parsed:
    """Return the parsed files, environment and command line; values are not checked yet.

    Raises:
        ConfigError: a file is missing or is no ini; names it.
        SystemExit: the command line is wrong, or asked for help or the version.
    """
    conf = Parsed()
    conf.register_cli_opts(list(command_line))
    for name, settings in SECTIONS.items():
        conf.register_opts(_options(settings), name)
    try:
        conf(arguments, project="tavrida", prog=prog, version=plugins.version())
    except cfg.ConfigFilesNotFoundError as error:
        raise exceptions.ConfigError(
            f"cannot read {', '.join(error.config_files)}: is the path right?"
        ) from None
    except cfg.ConfigFilesPermissionDeniedError as error:
        raise exceptions.ConfigError(
            f"may not read {', '.join(error.config_files)}: check its permissions"
        ) from None
    except cfg.ConfigDirNotFoundError as error:
        raise exceptions.ConfigError(f"there is no folder {error.config_dir}") from None
    except IsADirectoryError as error:
        raise exceptions.ConfigError(
            f"{error.filename} is a folder, and no file: --config-dir takes a folder, of which it "
            "reads the *.conf"
        ) from None
    except (cfg.ConfigFileParseError, OSError) as error:
        hint = "; save it without the byte order mark" if "\\ufeff" in str(error) else ""
        raise exceptions.ConfigError(" ".join(str(error).split()) + hint) from None
    except UnicodeDecodeError as error:
        defaults = (conf.default_config_files, conf.default_config_dirs)
        places = map(inifiles.no_text_in, inifiles.files_of(arguments, *defaults))
        where = next(filter(None, places), "a file")
        raise exceptions.ConfigError(f"{where} is not UTF-8: {error.reason}") from None
    _check_folders(map(Path, conf.config_dir or ()))
    conf.files = tuple(
        inifiles.files_of(arguments, conf.default_config_files, conf.default_config_dirs)
    )
    return conf


def _check_folders(folders: Iterable[Path]) -> None:
    """Raise ConfigError for a folder in which oslo.config finds nothing without a word."""
    for folder in folders:
        if not folder.is_dir():
            raise exceptions.ConfigError(f"{folder} is no folder: --config-file takes a file")
        if not os.access(folder, os.R_OK | os.X_OK):
            raise exceptions.ConfigError(f"may not read {folder}: check its permissions")


def survey(conf: Parsed) -> tuple[Configuration, exceptions.Faults]:
    """Return the configuration of a server, every plugin that it names loaded, and its faults.

    Faults are unknown sections and options, wrong values, plugins that cannot be loaded, and what
    is missing. Where there are some, the configuration is what could be read: defaults stand for
    wrong values, and services that cannot work are left out.
    """
    reader = _Reader(conf)
    configuration = _survey(reader)
    is_wrong = reader.is_wrong("server", "services")
    if not reader.read.get(("server", "services")) and not is_wrong:
        controllers = ", ".join(point.name for point in plugins.installed(plugins.CONTROLLERS))
        reader.faults.add(
            "[server] services names none: name the services to run. Installed controllers: "
            f"{controllers or 'none'}."
        )
    return configuration, reader.faults


def _survey(reader: _Reader) -> Configuration:
    settings = reader.settings()
    names = settings["server"].services
    services = []
    for name in dict.fromkeys(names):
        with reader.faults.collected():
            services.append(reader.service(name))
    retries = reader.retries(names, {each.name: each.controller for each in services})
    server = settings["server"]
    middleware = reader.middleware((*server.incoming_middleware, *server.outgoing_middleware))
    # A server makes no use of it, but whoever checks the file wants to hear of all faults.
    reader.middleware(settings["client"].outgoing_middleware)
    reader.check_strangers()
    return Configuration(
        **settings,
        services=tuple(services),
        retries=retries,
        middleware=middleware,
        values=reader.read,
        mutable=frozenset(reader.mutable),
    )


def show(conf: Parsed) -> tuple[list[Setting], exceptions.Faults]:
    """Return every option as it is in force, and all faults.

    Those of plugins are among them, as far as their plugin can be loaded. The default stands
    for a wrong value.
    """
    reader = _Reader(conf)
    _survey(reader)
    return reader.shown(), reader.faults


def read(conf: Parsed) -> Configuration:
    """Return the configuration of a server; raise ConfigError with every fault of ``survey``."""
    configuration, faults = survey(conf)
    faults.check()
    return configuration


def made(makers: Makers) -> dict[str, Middleware]:
    """Return middleware by name, in the same order; raise ConfigError with all that cannot be."""
    faults = exceptions.Faults()
    found = {}
    for name, make in makers.items():
        with faults.collected():
            found[name] = make()
    faults.check()
    return found


def read_client(conf: Parsed, service: str) -> tuple[ConnectionConfig, Discovery, Makers]:
    """Return what a client of a service needs: connection, where the service is, middleware.

    Where it is says the exchange of its ``[service:NAME]`` section, or what the first
    ``[discovery:NAME]`` section says that knows it, or else the convention.

    Raises:
        ConfigError: as ``read``, for the sections that are read here.
    """
    reader = _Reader(conf)
    settings = reader.settings()
    discovery = _default_discovery()
    for name in reader.discoveries():
        with reader.faults.collected():
            found = reader.discovery(name)
            if found is not None:
                _copy(service, found, discovery)
    group = f"service:{service}"
    if group in conf.list_all_sections():
        values = reader.client_values(group)
        discovery.register_remote_service(service, values["exchange"] or service)
        if values["publish_exchange"]:
            discovery.register_local_publisher(service, values["publish_exchange"])
    middleware = reader.middleware(settings["client"].outgoing_middleware)
    _check(reader)
    return settings["connection"], discovery, middleware


def read_clients(conf: Parsed) -> tuple[ConnectionConfig, Discovery, Makers]:
    """Return what a client of any service needs; as ``read_client``."""
    reader, settings, everywhere, _ = _read_everywhere(conf)
    middleware = reader.middleware(settings["client"].outgoing_middleware)
    _check(reader)
    return settings["connection"], everywhere, middleware


def read_queues(conf: Parsed) -> tuple[ConnectionConfig, dict[str, str]]:
    """Return the connection, and by name the queue of every service that the files speak of.

    No controller is loaded: where an operator sits, it need not be installed.

    Raises:
        ConfigError: as ``read``, for the sections that are read here.
    """
    reader = _Reader(conf)
    settings = reader.settings()
    sections = conf.list_all_sections()
    names = [section.partition(":")[2] for section in sections if section.startswith("service:")]
    queues = {}
    for name in dict.fromkeys([*settings["server"].services, *names]):
        queues[name] = reader.client_values(f"service:{name}")["queue"] or name
    _check(reader)
    return settings["connection"], queues


def read_outbox(
    conf: Parsed,
) -> tuple[ConnectionConfig, Discovery, OutboxSettings, LogSettings]:
    """Return what the relay of an outbox needs: it sends to any service, for any source.

    Where a service is, is said as for ``read_client``.

    Raises:
        ConfigError: as ``read``, for the sections that are read here.
    """
    reader, settings, everywhere, _ = _read_everywhere(conf)
    _check(reader)
    return settings["connection"], everywhere, settings["outbox"], settings["log"]


def read_services(conf: Parsed) -> tuple[ConnectionConfig, Discovery, tuple[str, ...]]:
    """Return the connection, where any service is, and the names of those the files speak of.

    Where a service is, is said as for ``read_client``.

    Raises:
        ConfigError: as ``read``, for the sections that are read here.
    """
    reader, settings, everywhere, names = _read_everywhere(conf)
    _check(reader)
    return settings["connection"], everywhere, tuple(dict.fromkeys(names))


def _read_everywhere(conf: Parsed) -> tuple[_Reader, dict[str, Any], Discovery, list[str]]:
    """Return the fixed sections, the discovery of all services, and the names of those named.

    What is wrong with them the reader knows.
    """
    reader = _Reader(conf)
    settings = reader.settings()
    names = [*settings["server"].services]
    own = Discovery()
    discoveries = [own]
    for name in reader.discoveries():
        with reader.faults.collected():
            found = reader.discovery(name)
            discoveries += [found] if found is not None else []
    for section in conf.list_all_sections():
        kind, _, name = section.partition(":")
        if kind == "service":
            names.append(name)
            values = reader.client_values(section)
            own.register_remote_service(name, values["exchange"] or name)
            if values["publish_exchange"]:
                own.register_local_publisher(name, values["publish_exchange"])
    names += [name for each in discoveries for name in each.registered]
    return reader, settings, _Everywhere([*discoveries, _default_discovery()]), names


def _check(reader: _Reader) -> None:
    """Raise ConfigError with every fault of the sections that were read, and what nobody reads."""
    reader.retries((), None)
    reader.check_strangers()
    reader.faults.check()


class _Everywhere(Discovery):
    """What the first of several discoveries says that knows a service."""

    def __init__(self, discoveries: Iterable[Discovery]) -> None:
        super().__init__()
        self._discoveries = tuple(discoveries)

    def get_remote(self, service_name: str) -> str:
        return self._first(methodcaller("get_remote", service_name))

    def get_remote_publisher(self, service_name: str) -> str:
        return self._first(methodcaller("get_remote_publisher", service_name))

    def get_local_publisher(self, service_name: str) -> str:
        return self._first(methodcaller("get_local_publisher", service_name))

    def _first(self, ask: Callable[[Discovery], str]) -> str:
        *others, last = self._discoveries
        for each in others:
            with contextlib.suppress(exceptions.ServiceUnknown):
                return ask(each)
        return ask(last)


def _copy(service: str, source: Discovery, target: Discovery) -> None:
    """Register what one discovery knows of a service with another that does not know it yet."""
    if target.is_registered(service):
        return
    with contextlib.suppress(exceptions.ServiceUnknown):
        target.register_remote_service(service, source.get_remote(service))
    with contextlib.suppress(exceptions.ServiceUnknown):
        target.register_local_publisher(service, source.get_local_publisher(service))


def _default_discovery() -> Discovery:
    return plugins.make(plugins.DISCOVERY, "convention", Discovery)


class _Reader:
    """Reads sections and loads their plugins, each one once; collects what is wrong."""

    def __init__(self, conf: Parsed) -> None:
        self._conf = conf
        self.files = conf.files
        self._discoveries: dict[str, Discovery | None] = {}
        #: Sections whose plugin could not be loaded, so that nobody knows its options.
        self._opaque: set[str] = set()
        # What each section may have; oslo.config does not tell, nor does it ask for required
        # options after plugins have declared theirs.
        self._options: dict[str, dict[str, cfg.Opt]] = {}
        for name, settings in SECTIONS.items():
            self._declare(name, _options(settings))
        self._wrong: set[tuple[str, str]] = set()
        #: All that was read, by section and name; those of tavrida's options that are mutable.
        self.read: dict[tuple[str, str], Any] = {}
        self.mutable: set[tuple[str, str]] = set()
        self.faults = exceptions.Faults()

    def _declare(self, group: str, options: Iterable[cfg.Opt]) -> None:
        options = list(options)
        self._conf.register_group(cfg.OptGroup(group))  # also where it has no options at all
        self._conf.register_opts(options, group)
        self._options.setdefault(group, {}).update({opt.dest: opt for opt in options})

    def settings(self) -> dict[str, Any]:
        """Return the object of each fixed section."""
        found: dict[str, Any] = {}
        for name, settings in SECTIONS.items():
            found[name] = settings()
            values = {
                key: tuple(value) if isinstance(value, list) else value
                for key, value in self.values(name).items()
            }
            with self.faults.collected(), self._placed(name):
                if name == "connection":
                    values["async_engine"] = True  # the ini has concurrency = 1 for one at a time
                    if not values["url"]:
                        self._refuse_empty_url()
                        values["url"] = (state.default_url(),)
                found[name] = settings(**values)
        return found

    def _refuse_empty_url(self) -> None:
        """Tell of a variable that is there and empty: its value was to come from elsewhere.

        Who serves on the embedded bus then serves nobody.
        """
        first, *_ = (*inifiles.sources_of(self.files, "connection", "url"), None)
        is_wrong = self.is_wrong("connection", "url")
        if first is not None and first.kind == "environment" and not is_wrong:
            remedy = "name the broker, or unset it, which is the embedded bus without another url"
            self._fault("connection", "url", f"is empty: {remedy}", joint=" ")

    @contextlib.contextmanager
    def _placed(self, group: str) -> Iterator[None]:
        """Put the place of an option, or of its section, before the faults that the block raises.

        Those begin with its name.
        """
        try:
            yield
        except exceptions.ConfigError as error:
            faults = []
            for fault in error.faults:
                word = re.match(r"\w*", fault)
                place = inifiles.place_of(self.files, group, word[0] if word else "")
                faults.append(f"{place}[{group}] {fault}")
            raise exceptions.ConfigError(*faults) from error.__cause__

    def retries(self, services: Iterable[str], controllers: Mapping[str, type] | None) -> Retries:
        """Return what the ``[retry]`` sections say, also those of services and entry points.

        ``services`` are those to run, ``controllers`` those of them whose class is known; with
        None, every name may be one.
        """
        default, named = self._retry("retry", DEFAULT), {}
        sections = [s for s in self._conf.list_all_sections() if s.startswith("retry:")]
        names = [section.partition(":")[2] for section in sections]
        known = set(names)
        if controllers is not None:
            opaque = set(services) - controllers.keys()
            known = {name for name in names if name.partition(".")[0] in opaque}
            known |= controllers.keys()
            for controller in controllers.values():
                known |= dispatcher.entry_points_of(controller)
        for name in known:
            self._declare(f"retry:{name}", _retry_options(Retry()))
        for name in known.intersection(names):
            named[name] = self._retry(f"retry:{name}", Retry())
        return Retries(default, named)

    def _retry(self, group: str, defaults: Retry) -> Retry:
        self._declare(group, _retry_options(defaults))
        values = self.values(group)
        with self.faults.collected(), _said_of(group):
            return Retry(**values)
        return Retry()

    def is_wrong(self, group: str, name: str) -> bool:
        """Tell whether the value of an option was found to be wrong."""
        return (group, name) in self._wrong

    def client_values(self, group: str) -> dict[str, Any]:
        """Return tavrida's own values of a ``[service:NAME]`` section, without its plugin's."""
        self._declare(group, SERVICE_OPTIONS)
        self._opaque.add(group)
        return self.values(group)

    def service(self, name: str) -> ServiceSection:
        """Return a ``[service:NAME]`` section, which may be missing from the files."""
        group = f"service:{name}"
        self._declare(group, SERVICE_OPTIONS)
        values = self.values(group)
        faults = exceptions.Faults()
        with faults.collected():
            cls = self._controller(group, name, values["controller"] or name)
        discovery = _default_discovery()
        with faults.collected():
            if values["discovery"]:
                discovery = self.discovery(values["discovery"], asked_by=group) or discovery
        values = self.values(group)
        faults.check()
        own = {opt.dest for opt in SERVICE_OPTIONS}
        subscriptions = values["subscriptions"]
        return ServiceSection(
            name,
            cls,
            values["exchange"] or name,
            values["queue"] or name,
            values["publish_exchange"],
            discovery,
            None if subscriptions is None else tuple(subscriptions),
            {key: value for key, value in values.items() if key not in own},
        )

    def _controller(self, group: str, service: str, name: str) -> type[ServiceController]:
        self._opaque.add(group)
        with _said_of(group, "controller: "):
            cls = plugins.load(plugins.CONTROLLERS, name, ServiceController)
            self._register(group, cls.list_opts, f"controller {name!r}")
            self._opaque.discard(group)
            own = dispatcher.service_of(cls)
        if own != service:
            raise exceptions.ConfigError(
                f"[{group}] runs controller {name!r}, which serves {own!r}: name the section "
                f"[service:{own}], and so in [server] services"
            )
        return cls

    def discoveries(self) -> list[str]:
        """Return the names of the [discovery:NAME] sections that set anything.

        One that sets nothing, as in a copy of the sample, is nobody's.
        """
        filled = {
            name
            for path in self.files
            for name, options in _parsed(path).items()
            if options and name.startswith("discovery:")
        }
        sections = self._conf.list_all_sections()
        return [name.partition(":")[2] for name in sections if name in filled]

    def discovery(self, name: str, asked_by: str = "") -> Discovery | None:
        """Return the backend of a ``[discovery:NAME]`` section; None if its faults were told."""
        if name not in self._discoveries:
            self._discoveries[name] = None
            self._discoveries[name] = self._read_discovery(name, asked_by)
        return self._discoveries[name]

    def _read_discovery(self, name: str, asked_by: str) -> Discovery:
        group = f"discovery:{name}"
        sections = [s for s in self._conf.list_all_sections() if s.startswith("discovery:")]
        if group not in sections and name != "convention":
            names = [section.partition(":")[2] for section in sections]
            raise exceptions.ConfigError(
                f"[{asked_by}] discovery names {name!r}, but there is no section [{group}]"
                f"{exceptions.did_you_mean(name, names)}: add it, or leave discovery out"
            )
        self._declare(group, DISCOVERY_OPTIONS)
        backend = self.values(group)["backend"] or name
        self._opaque.add(group)
        with _said_of(group):
            cls = plugins.load(plugins.DISCOVERY, backend, Discovery)
            self._register(group, cls.list_opts, f"backend {backend!r}")
        self._opaque.discard(group)
        values = self.values(group)
        with _said_of(group):
            return cls.from_options(values)

    def middleware(self, names: Iterable[str]) -> dict[str, Callable[[], Middleware]]:
        """Return by name what makes middleware, with its options.

        What cannot be loaded is left out; its faults were told.
        """
        makers: dict[str, Callable[[], Middleware]] = {}
        for name in dict.fromkeys(names):
            group = f"middleware:{name}"
            self._declare(group, ())
            self._opaque.add(group)
            with self.faults.collected(), _said_of(group):
                cls = plugins.load(plugins.MIDDLEWARE, name, Middleware)
                self._register(group, cls.list_opts, f"middleware {name!r}")
                self._opaque.discard(group)
                makers[name] = functools.partial(_make, group, cls, self.values(group))
        return makers

    def _register(self, group: str, list_opts: Callable[[], list[Any]], owner: str) -> None:
        """Add the options that a plugin declares; nothing that a stranger returns is trusted."""
        try:
            self._declare(group, list_opts())
        except cfg.DuplicateOptError as error:
            raise exceptions.ConfigError(
                f"{owner} declares the option {error.opt_name!r}, a name that tavrida uses "
                "itself: the plugin has to rename it"
            ) from None
        except Exception as error:
            raise exceptions.ConfigError(
                f"{owner}: list_opts() is wrong: {type(error).__name__}: {error}"
            ) from error

    def values(self, group: str) -> dict[str, Any]:
        """Return all values of a section; the default stands for one that is wrong.

        oslo.config checks each value only when it is read.
        """
        values: dict[str, Any] = {}
        section = self._conf[group]
        for name, option in self._options[group].items():
            values[name] = option.default
            try:
                values[name] = section[name]
                if option.secret and values[name]:
                    masks.learn(map(str, _all_of(values[name])))
                if values[name] is None and option.required:
                    self._fault(group, name, "is missing: give it a value", joint=" ")
                elif values[name] is None and option.default is not None:
                    self._fault(
                        group, name, "is empty: give it a value, or leave it out", joint=" "
                    )
                    values[name] = option.default
            except (cfg.TemplateSubstitutionError, cfg.NoSuchOptError):
                # Not oslo.config's own words: they repeat a part of the value, maybe a password.
                reason = "what follows the dollar sign is no option: a dollar sign is written $$"
                self._fault(group, name, reason)
            except ValueError as error:
                # What stands before this only repeats the option, and oslo.config's place.
                reason = str(error).rpartition("is not valid: ")[2]
                reason = _NOT_A_NUMBER.sub("should be a number, not", reason)
                if option.secret:
                    reason = f"its value, which is not shown here, should be {option.type!r}"
                self._fault(group, name, reason)
            self.read[group, name] = values[name]
            if option.mutable and _is_own(group):
                self.mutable.add((group, name))
        return values

    def shown(self) -> list[Setting]:
        """Return every option of the sections that were read, as it is in force."""
        found = []
        for group, options in self._options.items():
            for name, value in self.values(group).items():
                given = inifiles.sources_of(self.files, group, name)
                first, *others = [*given, inifiles.Source("default")]
                shown = _implied(group, name) if value in (None, "", []) else value
                shown = _masked(group, shown) if options[name].secret and shown else _hidden(shown)
                found.append(Setting(group, name, shown, first, tuple(others[:-1])))
        return found

    def _fault(self, group: str, name: str, reason: str, joint: str = ": ") -> None:
        self._wrong.add((group, name))
        place = inifiles.place_of(self.files, group, name)
        self.faults.add(f"{place}[{group}] {name}{joint}{reason}")

    def check_strangers(self) -> None:
        """Tell what the files say that nobody reads: mostly slips of the pen."""
        known: dict[str, set[str]] = {"DEFAULT": {"config_file", "config_dir"}}
        for name in self._conf:
            if isinstance(self._conf[name], cfg.ConfigOpts.GroupAttr):
                known[name] = set(self._conf[name])
        for path in self.files:
            for fault in inifiles.strangers(path, _parsed(path), known, self._opaque):
                self.faults.add(fault)
        reachable = {name: known[name] for name in (*SECTIONS, "retry") if name in known}
        for fault in inifiles.strange_variables(reachable):
            self.faults.add(fault)


def _parsed(path: Path) -> dict[str, dict[str, list[str]]]:
    """Return what a file says, by section and option."""
    sections: dict[str, dict[str, list[str]]] = {}
    cfg.ConfigParser(str(path), sections).parse()
    return sections


#: The options that are the name of their section where they say nothing.
_NAMED_BY_SECTION = {
    ("service", "controller"),
    ("service", "exchange"),
    ("service", "queue"),
    ("discovery", "backend"),
}

#: A password among the parameters of a url.
_PASSWORD = re.compile(r"(password=)[^&]*", re.IGNORECASE)


def _implied(group: str, name: str) -> Any:
    """Return what holds where an option says nothing; None where that is nothing."""
    kind, _, own = group.partition(":")
    if (group, name) == ("connection", "url"):
        with contextlib.suppress(exceptions.ConfigError):  # told already
            return [state.default_url()]
    return own if (kind, name) in _NAMED_BY_SECTION else None


def _masked(group: str, value: Any) -> Any:
    """Return a secret as it may be shown: of tavrida's own urls, all but the password."""
    if group in SECTIONS and "://" in str(value):
        urls = value if isinstance(value, list) else [value]
        shown = [_PASSWORD.sub(r"\1***", redact(url)) for url in urls]
        return shown if isinstance(value, list) else shown[0]
    return masks.MASKED


def _hidden(value: Any) -> Any:
    """Return a value that is no secret without those that are in it, as in a url."""
    if isinstance(value, str):
        return masks.hide(value)
    if isinstance(value, list):
        return [_hidden(each) for each in value]
    if isinstance(value, dict):
        return {key: _hidden(each) for key, each in value.items()}
    return value


def _all_of(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list | tuple) else (value,)


def _is_own(group: str) -> bool:
    """Tell whether a section has tavrida's own options only; others' we could not apply."""
    return group in SECTIONS or group.partition(":")[0] == "retry"


def _make(group: str, cls: type[Middleware], values: Mapping[str, Any]) -> Middleware:
    with _said_of(group):
        try:
            return cls.from_options(values)
        except exceptions.ConfigError:
            raise
        except Exception as error:
            raise exceptions.ConfigError(
                f"{cls.__name__} cannot be made: {type(error).__name__}: {error}"
            ) from error


@contextlib.contextmanager
def _said_of(group: str, more: str = "") -> Iterator[None]:
    """Put the name of a section before the faults that the block raises."""
    try:
        yield
    except exceptions.ConfigError as error:
        faults = [f"[{group}] {more}{fault}" for fault in error.faults]
        raise exceptions.ConfigError(*faults) from error.__cause__
