# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Controllers as a test gives them, with the options that an ini would give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tavrida import dispatcher, exceptions
from tavrida.service import ServiceController


def make(
    controller: type[ServiceController], options: Mapping[str, Any] | None = None
) -> ServiceController:
    """Return an object of a controller class; what ``options`` leaves out has its default.

    Values are converted and checked as those of an ini are: 5 and "5" are the same to an IntOpt.

    Raises:
        ConfigError: it is no controller class, or the options are none that ``list_opts``
            declares; names all of them.
    """
    if not (isinstance(controller, type) and issubclass(controller, ServiceController)):
        raise exceptions.ConfigError(
            f"{controller!r} is no controller: give a class that derives from "
            "tavrida.service.ServiceController"
        )
    service = dispatcher.service_of(controller)
    declared = {option.dest: option for option in controller.list_opts()}
    given = dict(options or {})
    faults = exceptions.Faults()
    for name in given.keys() - declared.keys():
        faults.add(
            f"option {name!r} of {service!r} is none that {controller.__name__}.list_opts() "
            f"declares{exceptions.did_you_mean(name, declared)}: there is "
            f"{', '.join(sorted(declared)) or 'none'}"
        )
    values = {}
    for name, option in declared.items():
        value = given.get(name, option.default)
        try:
            values[name] = value if value is None else option.type(value)
        except (ValueError, TypeError) as error:
            faults.add(f"option {name!r} of {service!r}: {error}")
        if value is None and option.required:
            faults.add(f"option {name!r} of {service!r} is missing: give it a value in options")
    faults.check()
    return controller(values)
