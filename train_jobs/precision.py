"""fp16 and bf16: which of them a recipe trains in, and what becomes of fp16 where there is no GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NAMES = ("fp16", "bf16")


def without_fp16(recipe: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The recipe as it trains on CPU, and a note for what that changes.

    Source: accelerate 1.x, ``Accelerator.__init__``: on a CPU mixed precision is bf16 or nothing, and fp16 is
    passed over in silence.
    """
    if not recipe.get("fp16"):
        return dict(recipe), []
    changed = {name: value for name, value in recipe.items() if name != "fp16"} | {"bf16": True}
    return changed, ["fp16 becomes bf16: on CPU there is no mixed precision in fp16."]
