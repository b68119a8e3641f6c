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
from cluster.estimator.words import gib
from cluster.gpus import Gpu
from serve_apps.advice import changes, utilization_for
from serve_apps.memory import (
    DEFAULT_UTILIZATION,
    default_utilization,
    max_model_len,
    not_reckoned,
    serving_shape,
)

_MIB = 1 << 20


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
    """To make it fit; empty where it does, or nothing that was tried helps."""

    not_reckoned: tuple[str, ...] = ()
    """Arguments that change its memory in ways that are not reckoned here: then nothing is known."""

    @property
    def allowed(self) -> Device:
        """What vLLM takes of the device; all of it where a cache of a given size has room for a sequence."""
        asked = self.asked_cache_bytes
        if self.budget_bytes is None or (asked is not None and asked >= self.estimate.bytes_per_sequence):
            return self.device
        share = self.device.share
        if self.device.gpu is not None and asked is None:
            share = _utilization(self.engine, self.device)
        return replace(self.device, share=share, available_bytes=self.budget_bytes)

    @property
    def asked_cache_bytes(self) -> int | None:
        """The size of the KV cache, where it is given; None: vLLM takes what there is."""
        return _asked(self.engine)

    @property
    def needed_bytes(self) -> int:
        """With which the engine starts: with its KV cache where the size of that is given."""
        return max(
            self.estimate.least_bytes, self.estimate.fixed.device_bytes + (self.asked_cache_bytes or 0)
        )

    @property
    def fits(self) -> bool | None:
        """Whether the engine starts: with room for one sequence of ``max_model_len``. None: not known."""
        if self.budget_bytes is None:
            return None
        if _short_bytes(self.engine, self.estimate, self.device):
            return False
        return True if self.estimate.cache else None

    @property
    def verdict(self) -> str:
        """In words: whether it fits."""
        if self.not_reckoned:
            named = ", ".join(f"engine.{name}" for name in self.not_reckoned)
            return f"needs an amount that is not known: it depends on {named}, which is not reckoned with"
        if self.fits is None and self.budget_bytes is not None:
            return (
                f"needs {gib(self.needed_bytes)} without its KV cache, whose size is not known, and "
                f"has {gib(self.budget_bytes)} ({self.allowed.name})"
            )
        return self.allowed.verdict(self.needed_bytes)

    @property
    def max_model_len(self) -> int:
        """As it is written, or the longest that fits, where vLLM shall choose it."""
        if max_model_len(self.engine) == -1:
            fitting = min(self.largest_max_model_len or 0, self.shape.model.context.unasked)
            return max(fitting, self.shape.max_model_len)
        return self.shape.max_model_len

    @property
    def tokens(self) -> int | None:
        """That its KV cache holds at once, over all sequences."""
        if self.budget_bytes is None:
            return None
        return replace(self.estimate, max_model_len=self.max_model_len).tokens(self.budget_bytes)

    @property
    def sequences(self) -> float | None:
        """Of ``max_model_len`` tokens at a time: vLLM's "maximum concurrency"."""
        if self.budget_bytes is None:
            return None
        return replace(self.estimate, max_model_len=self.max_model_len).sequences(self.budget_bytes)

    @property
    def largest_max_model_len(self) -> int | None:
        """The longest sequence that fits: not longer than the model's own. None: not known."""
        if self.budget_bytes is None or self.estimate.cache is None:
            return None
        longest, own = self.estimate.longest(self.budget_bytes), self.shape.model.context.longest
        if longest is None:
            return own or self.shape.max_model_len
        return longest if own is None else min(longest, own)


def estimate_serve(
    engine: Mapping[str, Any],
    *,
    model: ModelShape,
    device: Device,
    most_gpus: int,
    node_bytes: int | None = None,
) -> ServeEstimate:
    """The estimate of one worker.

    Args:
        engine: vLLM's arguments.
        model: What it serves.
        device: What one worker has.
        most_gpus: GPUs that one replica could have, for advice.
        node_bytes: What the largest node hands out of its memory, where the spec gives a replica without a
            GPU a part of it (``resources.memory_bytes``), for advice; None: all that there is was given.
    """

    def estimated(other: Mapping[str, Any]) -> ServingEstimate:
        return estimate_serving(_shape(other, model, device), device.calibration)

    shape, estimate = _shape(engine, model, device), estimated(engine)
    if unknown := not_reckoned(engine, model):
        return ServeEstimate(engine, shape, estimate, device, None, [], unknown)
    budget = _budget(engine, estimate, device)
    ways = []
    if budget is not None and _short_bytes(engine, estimate, device):
        ways = larger_memory(engine, estimate, device, node_bytes)
        ways += ways_to_fit(
            _without_planned_cache(engine, estimate, device),
            changes(
                model,
                device=device,
                estimate=estimate,
                budget_bytes=budget,
                most_gpus=most_gpus,
            ),
            lambda other: estimated(other).least_bytes,
            lambda other: _short_bytes(other, estimated(other), device),
        )
    return ServeEstimate(engine, shape, estimate, device, budget, ways)


def larger_memory(
    engine: Mapping[str, Any], estimate: ServingEstimate, device: Device, node_bytes: int | None
) -> list[Way]:
    """More of the card or of the node's memory, where that is enough: the cheapest change of all."""
    least = estimate.least_bytes
    if device.gpu is None:
        workers = int(engine.get("tensor_parallel_size", 1)) * int(engine.get("pipeline_parallel_size", 1))
        wanted = -(-workers * max(least, estimate.fixed.device_bytes + (_asked(engine) or 0)) // _MIB)
        if node_bytes is None or wanted * _MIB > node_bytes:
            return []
        return [Way((f"resources.memory_bytes: {wanted}MiB",), least)]
    if _asked(engine) is not None:
        return []
    # With a fraction of a card a plan says the utilization itself: it is the user's where it is another.
    said = engine.get("gpu_memory_utilization")
    if said is None or said == default_utilization(device.share):
        return larger_share(device, least, "resources.gpus: 1", DEFAULT_UTILIZATION)
    whole = utilization_for(least, share_of(device.gpu))
    words = f"resources.gpus: 1 with engine.gpu_memory_utilization: {whole}"
    return larger_share(device, least, words, DEFAULT_UTILIZATION)


def _shape(engine: Mapping[str, Any], model: ModelShape, device: Device) -> ServingShape:
    gpu = device.gpu
    return serving_shape(
        engine,
        model=model,
        card_bytes=gpu.memory_bytes if gpu else None,
        product=gpu.nvml if gpu else None,
    )


def _asked(engine: Mapping[str, Any]) -> int | None:
    asked = engine.get("kv_cache_memory_bytes")
    return asked if isinstance(asked, int) else None


def _without_planned_cache(
    engine: Mapping[str, Any], estimate: ServingEstimate, device: Device
) -> Mapping[str, Any]:
    """Without the cache that a plan gives an engine on a CPU: what its share leaves, whatever that is."""
    planned = max(estimate.cache_bytes(device.available_bytes or 0), estimate.bytes_per_sequence, 1)
    if device.gpu is None and _asked(engine) == planned:
        return {name: value for name, value in engine.items() if name != "kv_cache_memory_bytes"}
    return engine


def _budget(engine: Mapping[str, Any], estimate: ServingEstimate, device: Device) -> int | None:
    asked = _asked(engine)
    if asked is not None:
        wanted = estimate.fixed.device_bytes + asked
        return wanted if device.available_bytes is None else min(wanted, device.available_bytes)
    if device.gpu is None or device.available_bytes is None:
        return device.available_bytes
    return int(_utilization(engine, device) * device.available_bytes / device.share)


def _short_bytes(engine: Mapping[str, Any], estimate: ServingEstimate, device: Device) -> int:
    """What the engine lacks to start; 0 where it has it or the machine is not known.

    Of a cache of a given size: room for one sequence in it, and for it on the device.
    """
    asked, budget = _asked(engine), _budget(engine, estimate, device)
    if budget is None:
        return 0
    if asked is None:
        return max(0, estimate.least_bytes - budget)
    in_cache = max(0, estimate.bytes_per_sequence - asked)
    return in_cache + device.short_bytes(estimate.fixed.device_bytes + asked)


def _utilization(engine: Mapping[str, Any], device: Device) -> float:
    """Of the whole GPU."""
    return float(engine.get("gpu_memory_utilization", round(DEFAULT_UTILIZATION * device.share, 4)))


def hardware_for(engine: Mapping[str, Any], *, model: ModelShape, gpus: Iterable[Gpu]) -> list[Hardware]:
    """The least number of each GPU that the engine fits on, with tensor parallelism over them.

    None where the size of its KV cache is not known.
    """

    def needed(gpu: Gpu, count: int) -> int | None:
        if model.attention_heads % count:
            return None
        other = {**engine, "tensor_parallel_size": count, "pipeline_parallel_size": 1}
        found = estimate_serve(other, model=model, device=share_of(gpu), most_gpus=count)
        return found.estimate.least_bytes if found.estimate.cache and not found.not_reckoned else None

    return least_of_each(gpus, needed, share=DEFAULT_UTILIZATION)
