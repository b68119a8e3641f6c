"""The classes by which requests wait for room."""

from __future__ import annotations

from typing import Literal, get_args

Priority = Literal["interactive", "serving", "training", "batch"]

CLASSES: tuple[str, ...] = get_args(Priority)
"""The highest first."""
