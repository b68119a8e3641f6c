"""What no formula tells and a measurement does: what a process takes by itself, what its allocator wastes.

Each file of ``calibrations/`` is one product of GPU, or ``cpu``; ``benchmarks/memory.py`` writes them.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from pydantic import Field

from runtime.core.config import ConfigModel, load_spec

_FOLDER = Path(__file__).with_name("calibrations")


class Calibration(ConfigModel):
    """Of one product of GPU, or of a machine without one."""

    product: str
    """As NVML spells it; ``cpu``; or ``gpu`` for those that nobody measured."""

    train_process_bytes: int = Field(ge=0)
    """A training worker before its model: interpreter and libraries on a CPU, the CUDA context on a GPU."""

    serve_process_bytes: int = Field(ge=0)
    """An engine's worker before its model."""

    train_engine_bytes: int = Field(ge=0)
    """What trainer and data need beside it, whatever the model."""

    train_deepspeed_bytes: int = Field(ge=0)
    """The same under DeepSpeed."""

    optimizer_temporary_bytes: int = Field(ge=0)
    """Per parameter of the tensor that the optimizer is at; 0 for a fused one."""

    fragmentation: float = Field(ge=0, lt=1)
    """What the allocator holds beyond what it was asked for, as a share of that."""

    communication_bytes: int = Field(ge=0)
    """Buffers of a process group of several workers."""

    graphs_bytes: int = Field(ge=0)
    """CUDA graphs of an engine that captures them."""

    source: str
    """What was measured, where and when."""

    @property
    def is_cpu(self) -> bool:
        """Whether it is of a machine without a GPU."""
        return self.product == "cpu"


def slug(product: str) -> str:
    """The name of a product's file."""
    return re.sub(r"[^a-z0-9]+", "-", product.lower()).strip("-")


@cache
def calibration(product: str | None) -> Calibration:
    """That of a product; where nobody measured it, what GPUs have in common.

    Args:
        product: As NVML spells it; None: no GPU.
    """
    name = "cpu" if product is None else slug(product)
    file = _FOLDER / f"{name}.json"
    return load_spec(Calibration, file if file.exists() else _FOLDER / "gpu.json")
