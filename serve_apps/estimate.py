"""Will an engine fit, on what, and for how many tokens: asked before anything is deployed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cluster.estimator.advice import Way, ways_to_fit
from cluster.estimator.device import Device, larger_share, share_of
from cluster.estimator.hardware import Hardware, least_of_each
from cluster.estimator.model import ModelShape
from cluster.estimator.serving import ServingEstimate, ServingShape, estimate_serving
from cluster.gpus import Gpu
from serve_apps.advice import changes
from serve_apps.memory import DEFAULT_UTILIZATION, serving_shape


@dataclass(frozen=True)
class ServeEstimate:
    """What one worker of an engine needs, and what follows."""

    engine: Mapping[str, Any]
    shape: ServingShape
    estimate: ServingEstimate
    device: Device
    budget_bytes: int | None
    """What vLLM takes on each GPU: its utilization, or what is fixed and the cache that was asked for."""

    ways: list[Way]
    """To make it fit; empty where it does, or nothing helps."""

    @property
    def allowed(self) -> Device:
        """What vLLM takes of the device."""
        if self.budget_bytes is None:
            return self.device
        share = self.device.share
        if self.device.gpu is not None and "kv_cache_memory_bytes" not in self.engine:
            share = _utilization(self.engine, self.device)
        return replace(self.device, share=share, available_bytes=self.budget_bytes)

    @property
    def fits(self) -> bool | None:
        """Whether the engine starts: with room for one sequence of ``max_model_len``. None: not known."""
        if self.budget_bytes is None:
            return None
        return self.estimate.least_bytes <= self.budget_bytes

    @property
    def tokens(self) -> int | None:
        """That its KV cache holds at once, over all sequences."""
        return None if self.budget_bytes is None else self.estimate.tokens(self.budget_bytes)

    @property
    def sequences(self) -> float | None:
        """Of ``max_model_len`` tokens at a time: vLLM's "maximum concurrency"."""
        if self.budget_bytes is None:
            return None
        return self.estimate.sequences(self.budget_bytes, self.shape.max_model_len)

    @property
    def largest_max_model_len(self) -> int | None:
        """The longest sequence that fits: not longer than the model's own."""
        if self.tokens is None:
            return None
        return min(self.tokens, int(self.shape.model.text.get("max_position_embeddings") or self.tokens))


def estimate_serve(
    engine: Mapping[str, Any], *, model: ModelShape, device: Device, most_gpus: int
) -> ServeEstimate:
    """The estimate of one worker.

    Args:
        engine: vLLM's arguments.
        model: What it serves.
        device: What one worker has.
        most_gpus: GPUs that one replica could have, for advice.
    """

    def estimated(other: Mapping[str, Any]) -> ServingEstimate:
        return estimate_serving(_shape(other, model, device), device.calibration)

    shape, estimate = _shape(engine, model, device), estimated(engine)
    budget = _budget(engine, estimate, device)
    ways = []
    if budget is not None and estimate.least_bytes > budget:
        ways = larger_share(device, estimate.least_bytes, "resources.gpus: 1", DEFAULT_UTILIZATION)
        ways += ways_to_fit(
            engine,
            changes(
                model,
                on_gpu=device.gpu is not None,
                estimate=estimate,
                budget_bytes=budget,
                most_gpus=most_gpus,
            ),
            lambda other: estimated(other).least_bytes,
            budget,
        )
    return ServeEstimate(engine, shape, estimate, device, budget, ways)


def _shape(engine: Mapping[str, Any], model: ModelShape, device: Device) -> ServingShape:
    gpu = device.gpu
    return serving_shape(
        engine,
        model=model,
        card_bytes=gpu.memory_bytes if gpu else None,
        product=gpu.nvml if gpu else None,
    )


def _budget(engine: Mapping[str, Any], estimate: ServingEstimate, device: Device) -> int | None:
    asked = engine.get("kv_cache_memory_bytes")
    if isinstance(asked, int):
        wanted = estimate.fixed.device_bytes + asked
        return wanted if device.available_bytes is None else min(wanted, device.available_bytes)
    if device.gpu is None or device.available_bytes is None:
        return device.available_bytes
    return int(_utilization(engine, device) * device.available_bytes / device.share)


def _utilization(engine: Mapping[str, Any], device: Device) -> float:
    """Of the whole GPU."""
    return float(engine.get("gpu_memory_utilization", round(DEFAULT_UTILIZATION * device.share, 4)))


def hardware_for(engine: Mapping[str, Any], *, model: ModelShape, gpus: Iterable[Gpu]) -> list[Hardware]:
    """The least number of each GPU that the engine fits on, with tensor parallelism over them."""

    def needed(gpu: Gpu, count: int) -> int | None:
        if model.attention_heads % count:
            return None
        other = {**engine, "tensor_parallel_size": count, "pipeline_parallel_size": 1}
        return estimate_serve(other, model=model, device=share_of(gpu), most_gpus=count).estimate.least_bytes

    return least_of_each(gpus, needed, share=DEFAULT_UTILIZATION)
