"""The classes by which requests wait for room, and their order in this cluster."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal, get_args

from runtime.core.errors import ConfigError

Priority = Literal["interactive", "serving", "training", "batch"]

CLASSES: tuple[Priority, ...] = get_args(Priority)
"""The highest first, where a cluster says nothing else."""

VARIABLE = "TANDEM_PRIORITIES"
"""In the environment of a cluster's Ray processes: its order, with commas between."""


def priorities_env(priorities: Sequence[str]) -> dict[str, str]:
    """The variable for the Ray processes of a cluster with this order."""
    return {VARIABLE: ",".join(priorities)}


def priorities_here() -> tuple[str, ...]:
    """The order that this process's environment says.

    Raises:
        ConfigError: it does not name each class once.
    """
    said = os.environ.get(VARIABLE)
    if not said:
        return CLASSES
    priorities = tuple(name.strip() for name in said.split(","))
    try:
        check_order(priorities)
    except ValueError as error:
        raise ConfigError(f"{VARIABLE} {error}") from None
    return priorities


def check_order(priorities: Sequence[str]) -> None:
    """Refuse an order that does not name each class once: specs may be of any.

    Raises:
        ValueError: says which is missing, unknown, or there twice.
    """
    if sorted(priorities) != sorted(CLASSES):
        raise ValueError(
            f"is {', '.join(priorities) or 'empty'}, but an order names each class once, the highest first. "
            f"The classes: {', '.join(CLASSES)}."
        )
