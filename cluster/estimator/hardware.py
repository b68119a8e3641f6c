"""On what it would fit: over a catalogue of GPUs, the least number of each product."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cluster.gpus import Gpu

USABLE = 0.97
"""Of what NVML calls a card's memory, a program finds so much: the driver keeps the rest. Seen: 0.99 of an
A100-80GB, 0.98 of an RTX 3090, 0.97 of a T4 (``total_gpu_memory`` in vLLM's logs)."""

COUNTS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Hardware:
    """So many GPUs of one product."""

    gpu: Gpu
    count: int
    needed_bytes: int
    """On each of them."""

    @property
    def filled(self) -> float:
        """How much of each is taken, from 0 to 1."""
        return self.needed_bytes / usable_bytes(self.gpu)


def usable_bytes(gpu: Gpu) -> int:
    """What a program finds of its memory."""
    return int(USABLE * gpu.memory_bytes)


def least_of_each(
    gpus: Iterable[Gpu],
    needed_bytes: Callable[[Gpu, int], int | None],
    *,
    counts: Iterable[int] = COUNTS,
    share: float = 1.0,
) -> list[Hardware]:
    """The least number of each product on which it fits, those with the least memory in all first.

    Args:
        needed_bytes: On each of so many GPUs of a product; None: it cannot be divided so.
        share: Of each GPU's memory that may be used.
    """
    found = []
    for gpu in gpus:
        for count in sorted(counts):
            needed = needed_bytes(gpu, count)
            if needed is not None and needed <= share * usable_bytes(gpu):
                found.append(Hardware(gpu, count, needed))
                break
    return sorted(found, key=lambda one: (one.count * one.gpu.memory_bytes, one.count, one.gpu.name))
