"""How fast a worker trains: tokens, samples, time of a step, peak memory, and MFU where the GPU is known."""

from __future__ import annotations

import resource
import time
from typing import Any

import torch

from cluster import gpus


class Meter:
    """Counts what passes through the model between two calls of ``take``.

    Counts shapes only, so that nothing waits for the GPU; padding counts as tokens, since it is computed.

    Args:
        world_size: Data-parallel workers, each taken to do what this one does.
    """

    def __init__(self, world_size: int) -> None:
        self._world_size = world_size
        self._tokens = self._samples = self._steps = 0
        self._since_s = time.monotonic()
        self._flops_per_token = 0.0
        gpu = gpus.find(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
        self._peak_flops = (gpu.bf16_flops or gpu.fp16_flops) if gpu else None

    def watch(self, model: Any) -> None:
        """Count what ``model`` is trained on from now on."""
        self._since_s = time.monotonic()
        self._flops_per_token = _flops_per_token(model)
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def step_done(self) -> None:
        """One optimizer step is done."""
        self._steps += 1

    def take(self) -> dict[str, float]:
        """Rates since the last call, and the peak of memory so far."""
        elapsed_s = max(time.monotonic() - self._since_s, 1e-9)
        tokens_per_s = self._tokens * self._world_size / elapsed_s
        found = {
            "tokens_per_s": round(tokens_per_s, 1),
            "samples_per_s": round(self._samples * self._world_size / elapsed_s, 3),
            "memory_peak_bytes": _memory_peak_bytes(),
        }
        if self._steps:
            found["step_time_s"] = round(elapsed_s / self._steps, 5)
        if self._peak_flops:
            found["mfu"] = round(
                tokens_per_s * self._flops_per_token / (self._peak_flops * self._world_size), 4
            )
        self._tokens = self._samples = self._steps = 0
        self._since_s = time.monotonic()
        return found

    def _count(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids")
        # Evaluation passes through the same model, and is no training.
        if module.training and isinstance(ids, torch.Tensor):
            self._tokens += ids.numel()
            self._samples += ids.shape[0]


def _flops_per_token(model: Any) -> float:
    """2 FLOPs a parameter forward, 2 for gradients of activations, 2 for those of trained weights.

    Attention's own products are left out, as in the usual 6N. Source: Kaplan et al. 2020, section 2.1.
    """
    total = sum(_count_of(p) for p in model.parameters())
    trained = sum(_count_of(p) for p in model.parameters() if p.requires_grad)
    return 4.0 * total + 2.0 * trained


def _count_of(parameter: Any) -> int:
    # ZeRO-3 leaves an empty shell here, and the true number beside it.
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _memory_peak_bytes() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    # Linux counts it in KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
