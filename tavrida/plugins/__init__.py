# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Plugins: the namespaces, and ``load``, the one road by which any plugin gets in.

tavrida's own plugins are registered in its setup.cfg like a stranger's in theirs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from tavrida import exceptions

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

CONTROLLERS = "tavrida.controllers"
DISCOVERY = "tavrida.discovery"
SERIALIZERS = "tavrida.serializers"
TRANSPORTS = "tavrida.transports"
MIDDLEWARE = "tavrida.middleware"
DEDUP_STORES = "tavrida.dedup_stores"
COMMANDS = "tavrida.commands"

NAMESPACES = (CONTROLLERS, DISCOVERY, SERIALIZERS, TRANSPORTS, MIDDLEWARE, DEDUP_STORES, COMMANDS)

Base = TypeVar("Base")


def installed(namespace: str) -> list[EntryPoint]:
    """Return the entry points of a namespace, read afresh; nothing is imported."""
    # Here, because it costs 50 ms that `import tavrida.client` need not pay.
    import importlib.metadata

    return sorted(importlib.metadata.entry_points(group=namespace), key=lambda point: point.name)


def refresh(namespace: str) -> list[EntryPoint]:
    """Have stevedore see the entry points of a namespace as they are now, and return them.

    Its own cache on disk can be stale for good and forgets the distribution.
    """
    # Clients that never load a plugin by name do not pay for this import.
    from stevedore.extension import ExtensionManager

    points = ExtensionManager.ENTRY_POINT_CACHE[namespace] = installed(namespace)
    return points


def origin_of(point: EntryPoint) -> str:
    """Return "module:Class of DISTRIBUTION VERSION" for messages."""
    return f"{point.value} of {point.dist.name} {point.dist.version}" if point.dist else point.value


def load(namespace: str, name: str, base: type[Base]) -> type[Base]:
    """Return the class that a plugin's name stands for; only that plugin is imported.

    Raises:
        PluginError: it is not installed, several packages give it, it cannot be imported, or it
            is no subclass of ``base``. Names the distribution, or the names that exist.
    """
    from stevedore import driver  # for those who load a plugin by name only

    points = refresh(namespace)
    same = [point for point in points if point.name == name]
    if len(same) != 1:
        raise exceptions.PluginError(_why_not_one(namespace, name, same, points))
    point = same[0]

    def fail(reason: BaseException) -> NoReturn:
        raise exceptions.PluginError(
            f"plugin {name!r} ({origin_of(point)}) in {namespace} cannot be imported: "
            f"{type(reason).__name__}: {reason}"
        ) from reason

    def failed(manager: Any, entry_point: EntryPoint, reason: BaseException) -> None:
        fail(reason)

    try:
        manager = driver.DriverManager(namespace, name, on_load_failure_callback=failed)
    except (AssertionError, SystemExit) as reason:  # these two pass stevedore's callback by
        fail(reason)
    plugin = manager.extensions[0].plugin  # manager.driver would test the truth of the class
    if not (isinstance(plugin, type) and issubclass(plugin, base)):
        raise exceptions.PluginError(
            f"plugin {name!r} ({origin_of(point)}) in {namespace} is not a {base.__name__}: "
            f"derive it from {base.__module__}.{base.__name__}"
        )
    return plugin


def make(namespace: str, name: str, base: type[Base]) -> Base:
    """Return an object of a plugin whose class takes no arguments; raises as ``load``."""
    cls = load(namespace, name, base)
    try:
        return cls()
    except Exception as error:
        (point,) = (point for point in installed(namespace) if point.name == name)
        raise exceptions.PluginError(
            f"plugin {name!r} ({origin_of(point)}) in {namespace} cannot be made: "
            f"{type(error).__name__}: {error}"
        ) from error


def _why_not_one(
    namespace: str, name: str, same: list[EntryPoint], points: list[EntryPoint]
) -> str:
    if same:
        return (
            f"plugin {name!r} in {namespace} is given by several packages: "
            f"{'; '.join(map(origin_of, same))}. Uninstall all but one of them."
        )
    names = [point.name for point in points]
    return (
        f"no plugin {name!r} in {namespace}{exceptions.did_you_mean(name, names)}. "
        f"Installed: {', '.join(sorted(set(names))) or 'none'}. Is its package installed in this "
        "environment?"
    )


def version() -> str:
    """Return the version of the installed tavrida."""
    import importlib.metadata

    return importlib.metadata.version("tavrida")
