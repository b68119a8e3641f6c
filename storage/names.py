"""Names in the store: what may be one, and how versions count."""

from __future__ import annotations

import re
from collections.abc import Iterable

from runtime.core.errors import ConfigError

# A name is a folder, a Ray Serve application, a URL path and, on Kubernetes, part of an object's name.
_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")


def check_name(name: str, *, field: str) -> str:
    """``name`` unchanged.

    Raises:
        ConfigError: it is not 1 to 63 lower-case letters, digits, ``.``, ``_`` or ``-``, beginning
            and ending with a letter or digit.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{field} is {name!r}. A name has 1 to 63 lower-case letters, digits, '.', '_' or '-', and "
            "begins and ends with a letter or digit."
        )
    return name


def next_version(existing: Iterable[str]) -> str:
    """``v1``, or one more than the highest ``vN``."""
    numbers = [int(version[1:]) for version in existing if re.fullmatch(r"v\d+", version)]
    return f"v{max(numbers, default=0) + 1}"


def version_key(version: str) -> tuple[int, str]:
    """Sorts ``v2`` before ``v10``, and other names after them by the alphabet."""
    return (int(version[1:]), "") if re.fullmatch(r"v\d+", version) else (1 << 62, version)
