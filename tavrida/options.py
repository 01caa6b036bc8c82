# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The ini: every oslo.config option, and reading the files into plain settings.

oslo.config's global ``CONF`` is never touched. Every fault in the files is told at once.
"""

from __future__ import annotations

import contextlib
import copy
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oslo_config import cfg

from tavrida import dispatcher, exceptions, plugins
from tavrida.config import ConnectionConfig, LogSettings, ServerSettings, options_of
from tavrida.discovery import Discovery
from tavrida.plugins.discovery.file import FileDiscovery
from tavrida.plugins.discovery.local import LocalBackend
from tavrida.service import ServiceController

#: How a type of a settings field is read from the ini.
_OPTION_TYPES: dict[type, type[cfg.Opt]] = {
    str: cfg.StrOpt,
    int: cfg.IntOpt,
    float: cfg.FloatOpt,
    tuple: cfg.ListOpt,
}

#: The sections that are always there, and the settings each one fills.
SECTIONS: dict[str, type] = {
    "connection": ConnectionConfig,
    "server": ServerSettings,
    "log": LogSettings,
}

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
class Configuration:
    """Everything that the files, the environment and the command line say."""

    connection: ConnectionConfig
    server: ServerSettings
    log: LogSettings
    services: tuple[ServiceSection, ...]


def _options(settings: type) -> list[cfg.Opt]:
    """Return the options that fill a settings class."""
    hints = typing.get_type_hints(settings)
    found = []
    for field in options_of(settings):
        kind = typing.get_origin(hints[field.name]) or hints[field.name]
        limits: dict[str, Any] = {}
        if field.metadata["minimum"] is not None:
            limits["min"] = field.metadata["minimum"]
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
            **limits,
        )
        found.append(option)
    return found


def list_opts() -> list[tuple[str, list[cfg.Opt]]]:
    """Return all options by section, for oslo.config's generator and validator."""
    groups = [(name, _options(settings)) for name, settings in SECTIONS.items()]
    groups.append(("service:NAME", SERVICE_OPTIONS))
    backends = [*LocalBackend.list_opts(), *FileDiscovery.list_opts()]
    groups.append(("discovery:NAME", [*DISCOVERY_OPTIONS, *backends]))
    return copy.deepcopy(groups)


def parse(arguments: list[str], prog: str, command_line: Iterable[cfg.Opt] = ()) -> cfg.ConfigOpts:
    """Return the parsed files, environment and command line; values are not checked yet.

    Raises:
        ConfigError: a file is missing or is no ini; names it.
        SystemExit: the command line is wrong, or asked for help or the version.
    """
    conf = cfg.ConfigOpts()
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
    except (cfg.ConfigFileParseError, cfg.ConfigDirNotFoundError) as error:
        raise exceptions.ConfigError(" ".join(str(error).split())) from None
    return conf


def read(conf: cfg.ConfigOpts) -> Configuration:
    """Return the configuration of a server, with every plugin that it names loaded.

    Raises:
        ConfigError: lists every fault: unknown sections and options, wrong values, plugins that
            cannot be loaded, and what is missing.
    """
    faults = exceptions.Faults()
    settings = _read_settings(conf, faults)
    names = settings["server"].services if settings["server"] else ()
    if settings["server"] and not names:
        controllers = ", ".join(point.name for point in plugins.installed(plugins.CONTROLLERS))
        faults.add(
            "[server] services names none: name the services to run. Installed controllers: "
            f"{controllers or 'none'}."
        )
    services: list[ServiceSection] = []
    for name in dict.fromkeys(names):
        with faults.collected():
            services.append(_read_service(conf, name))
    _check_strangers(conf, faults)
    faults.check()
    return Configuration(**settings, services=tuple(services))


def read_client(conf: cfg.ConfigOpts, service: str) -> tuple[ConnectionConfig, Discovery]:
    """Return what a client needs to reach a service: the connection, and where the service is.

    That is the exchange of its ``[service:NAME]`` section, or what the first
    ``[discovery:NAME]`` section says that knows it, or else the convention.

    Raises:
        ConfigError: as ``read``, for the sections that are read here.
    """
    faults = exceptions.Faults()
    settings = _read_settings(conf, faults)
    discovery = _default_discovery()
    sections = conf.list_all_sections()
    for section in [s for s in sections if s.startswith("discovery:")]:
        with faults.collected():
            found = _read_discovery(conf, section.partition(":")[2])
            with contextlib.suppress(exceptions.ServiceUnknown):
                discovery.register_remote_service(service, found.get_remote(service))
            with contextlib.suppress(exceptions.ServiceUnknown):
                discovery.register_local_publisher(service, found.get_local_publisher(service))
    if f"service:{service}" in sections:
        group = f"service:{service}"
        conf.register_opts(SERVICE_OPTIONS, group)
        with faults.collected():
            values = _values(conf, group)
            discovery.register_remote_service(service, values["exchange"] or service)
            if values["publish_exchange"]:
                discovery.register_local_publisher(service, values["publish_exchange"])
    faults.check()
    return settings["connection"], discovery


def _read_settings(conf: cfg.ConfigOpts, faults: exceptions.Faults) -> dict[str, Any]:
    """Return the object of each fixed section; None where it has faults."""
    found: dict[str, Any] = dict.fromkeys(SECTIONS)
    for name, settings in SECTIONS.items():
        with faults.collected():
            values = _values(conf, name)
        with faults.collected(f"[{name}] "):
            tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
            if name == "connection":
                tuples["async_engine"] = True  # the ini has concurrency = 1 for one at a time
            found[name] = settings(**tuples)
    return found


def _read_service(conf: cfg.ConfigOpts, name: str) -> ServiceSection:
    group = f"service:{name}"
    conf.register_opts(SERVICE_OPTIONS, group)
    values = _values(conf, group)
    controller_name = values["controller"] or name
    faults = exceptions.Faults()
    cls: type[ServiceController] | None = None
    with faults.collected(f"[{group}] controller: "):
        cls = plugins.load(plugins.CONTROLLERS, controller_name, ServiceController)
        _register(conf, group, cls.list_opts, f"controller {controller_name!r}")
        own = dispatcher.service_of(cls)
        if own != name:
            faults.add(
                f"[{group}] runs controller {controller_name!r}, which serves {own!r}: name the "
                f"section [service:{own}], and so in [server] services"
            )
    discovery = _default_discovery()
    with faults.collected():
        if values["discovery"]:
            discovery = _read_discovery(conf, values["discovery"], asked_by=group)
    with faults.collected():
        values = _values(conf, group)
    faults.check()
    assert cls is not None
    own_options = {opt.dest for opt in SERVICE_OPTIONS}
    subscriptions = values["subscriptions"]
    return ServiceSection(
        name,
        cls,
        values["exchange"] or name,
        values["queue"] or name,
        values["publish_exchange"],
        discovery,
        None if subscriptions is None else tuple(subscriptions),
        {key: value for key, value in values.items() if key not in own_options},
    )


def _read_discovery(conf: cfg.ConfigOpts, name: str, asked_by: str = "") -> Discovery:
    group = f"discovery:{name}"
    sections = [s for s in conf.list_all_sections() if s.startswith("discovery:")]
    if group not in sections and name != "convention":
        names = [section.partition(":")[2] for section in sections]
        raise exceptions.ConfigError(
            f"[{asked_by}] discovery names {name!r}, but there is no section [{group}]"
            f"{exceptions.did_you_mean(name, names)}: add it, or leave discovery out"
        )
    conf.register_opts(DISCOVERY_OPTIONS, group)
    backend = _values(conf, group)["backend"] or name
    faults = exceptions.Faults()
    with faults.collected(f"[{group}] "):
        cls = plugins.load(plugins.DISCOVERY, backend, Discovery)
        _register(conf, group, cls.list_opts, f"backend {backend!r}")
    faults.check()
    values = _values(conf, group)
    try:
        return cls.from_options(values)
    except exceptions.ConfigError as error:
        raise exceptions.ConfigError(*(f"[{group}] {fault}" for fault in error.faults)) from None


def _default_discovery() -> Discovery:
    return plugins.load(plugins.DISCOVERY, "convention", Discovery)()


def _register(
    conf: cfg.ConfigOpts, group: str, list_opts: Callable[[], list[Any]], owner: str
) -> None:
    try:
        conf.register_opts(list_opts(), group)
    except cfg.DuplicateOptError as error:
        raise exceptions.ConfigError(
            f"{owner} declares the option {error.opt_name!r}, a name that tavrida uses itself: "
            "the plugin has to rename it"
        ) from None


def _values(conf: cfg.ConfigOpts, group: str) -> dict[str, Any]:
    """Return all values of a section; oslo.config checks each one only when it is read."""
    values, faults = {}, exceptions.Faults()
    for name in conf[group]:
        try:
            values[name] = conf[group][name]
        except cfg.TemplateSubstitutionError as error:
            faults.add(f"[{group}] {name}: {error}; a dollar sign is written $$")
        except ValueError as error:
            # What stands before this only repeats the option, and where it comes from in Python.
            reason = str(error).rpartition("is not valid: ")[2]
            faults.add(f"{_place_of(conf, group, name)}[{group}] {name}: {reason}")
    faults.check()
    return values


def _files(conf: cfg.ConfigOpts) -> list[Path]:
    files = [Path(path) for path in conf.config_file or ()]
    for folder in conf.config_dir or ():
        files += sorted(Path(folder).glob("*.conf"))
    return files


def _place_of(conf: cfg.ConfigOpts, group: str, name: str) -> str:
    """Return "FILE:LINE: " of the last place that sets an option, or nothing."""
    for path in reversed(_files(conf)):
        line = _line_of(path, group, name)
        if line:
            return f"{path}:{line}: "
    return ""


def _line_of(path: Path, section: str, name: str | None) -> int:
    """Return the number of the line with a section's heading, or with an option in it; or 0."""
    here = ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        heading = re.match(r"\[(.+?)\]", line)
        if heading:
            here = heading[1]
            if name is None and here == section:
                return number
        elif name and here.lower() == section.lower():
            key = re.match(r"([^\s=:]+)\s*[=:]", line)
            if key and key[1].replace("-", "_") == name.replace("-", "_"):
                return number
    return 0


def _check_strangers(conf: cfg.ConfigOpts, faults: exceptions.Faults) -> None:
    """Tell what the files say that nobody reads: mostly slips of the pen."""
    known = {"DEFAULT": {"config_file", "config_dir"}}
    for name in conf:
        if isinstance(conf[name], cfg.ConfigOpts.GroupAttr):
            known[name] = set(conf[name])
    for path in _files(conf):
        sections: dict[str, dict[str, list[str]]] = {}
        cfg.ConfigParser(str(path), sections).parse()
        for section, values in sections.items():
            if section not in known:
                if section.partition(":")[0] in ("service", "discovery") and values:
                    # A section that another set-up of the same file may use is no slip, unless
                    # it looks like one that is used here.
                    used = [k for k in known if k.startswith(section.partition(":")[0])]
                    near = exceptions.did_you_mean(section, used)
                    if not near:
                        continue
                else:
                    near = exceptions.did_you_mean(section, known)
                line = _line_of(path, section, None)
                faults.add(f"{path}:{line}: section [{section}] is unknown{near}")
                continue
            for name in values:
                if name.replace("-", "_") not in known[section]:
                    near = exceptions.did_you_mean(name, known[section])
                    line = _line_of(path, section, name)
                    faults.add(f"{path}:{line}: [{section}] {name} is unknown{near}")
