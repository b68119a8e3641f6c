"""Amounts of CPU and memory, as Kubernetes writes them."""

from __future__ import annotations

from typing import Any

_UNITS = {"Gi": 2**30, "Mi": 2**20, "Ki": 2**10}


def cpu_quantity(cpus: float) -> str:
    """``7``, or ``7500m`` of 7.5; at least a thousandth."""
    thousandths = max(1, round(cpus * 1000))
    return f"{thousandths}m" if thousandths % 1000 else str(thousandths // 1000)


def memory_quantity(size_bytes: int) -> str:
    """``28Gi``: in the largest unit that leaves no rest."""
    for unit, size in _UNITS.items():
        if size_bytes % size == 0:
            return f"{size_bytes // size}{unit}"
    return str(size_bytes)


def resources(*, cpus: float, memory_bytes: int, gpus: int = 0) -> dict[str, Any]:
    """A container's resources. Requests equal limits: KubeRay tells Ray the limits, and what is promised to
    Ray has to be there (class Guaranteed, the last to be evicted)."""
    amounts = {"cpu": cpu_quantity(cpus), "memory": memory_quantity(memory_bytes)}
    if gpus:
        amounts["nvidia.com/gpu"] = str(gpus)
    return {"requests": dict(amounts), "limits": dict(amounts)}
