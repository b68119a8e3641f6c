"""Lookup by name: the name in the YAML is the name of a file in a package's folder."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterable
from types import ModuleType

from runtime.core.errors import ConfigError


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A remedy for an unknown name: the nearest known one, or all of them when few."""
    choices = sorted(known)
    near = difflib.get_close_matches(name, choices, n=1)
    if near:
        return f"Did you mean {near[0]!r}?"
    shown = ", ".join(choices[:20]) + (", ..." if len(choices) > 20 else "")
    return f"Known: {shown or 'none'}."


def names_in(package: ModuleType) -> list[str]:
    """Names of the public modules in ``package``, sorted."""
    found = (info.name for info in pkgutil.iter_modules(package.__path__))
    return sorted(name for name in found if not name.startswith("_"))


def load(package: ModuleType, name: str, *, field: str) -> ModuleType:
    """The module ``name`` of ``package``.

    Raises:
        ConfigError: there is no such file; names ``field`` and the names that exist.
    """
    known = names_in(package)
    if name not in known:
        raise ConfigError(f"{field} is {name!r}, which does not exist. {did_you_mean(name, known)}")
    return importlib.import_module(f"{package.__name__}.{name}")
