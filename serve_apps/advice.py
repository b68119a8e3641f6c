"""What to write otherwise in a serve spec so that its engine fits, the cheapest changes first."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from cluster.estimator.advice import Change
from cluster.estimator.device import Device
from cluster.estimator.model import ModelShape
from cluster.estimator.serving import ServingEstimate
from cluster.gpus import Gpu
from serve_apps.memory import DEFAULT_UTILIZATION
from serve_apps.quantization import ONLINE, can_compute

Engine = Mapping[str, Any]
_LEAST_MODEL_LEN = 1024
_MOST_WORKERS = 8
_QUANTIZATIONS = ("fp8", "mxfp4")
"""From the most bits to the fewest. ``bitsandbytes`` is not among them: the pinned vLLM has it in a plugin
only, which is not installed."""
_FP8_CACHE = 80
"""The least compute capability, times ten, of a backend with an FP8 cache, FlashInfer's.
Source: vllm/v1/attention/backends/flashinfer.py, supports_compute_capability; triton_attn.py needs 89."""


def changes(
    model: ModelShape, *, device: Device, estimate: ServingEstimate, budget_bytes: int, most_gpus: int
) -> list[Change[Engine]]:
    """Changes of ``engine``.

    Args:
        model: What it serves.
        device: What each of its workers has.
        estimate: Of the engine as it is.
        budget_bytes: What each of its workers may take.
        most_gpus: GPUs that one replica could have.
    """
    found = [_cache_of_a_size(estimate, device), _shorter(estimate, budget_bytes)]
    if device.gpu is not None:
        found.insert(0, _more_of_the_card(estimate, device))
        found += [
            _set("max_num_seqs", 64, when=lambda engine: _above(engine, "max_num_seqs", 64)),
            _set("enforce_eager", True, when=lambda engine: not engine.get("enforce_eager")),
        ]
        if can_compute(device.gpu, _FP8_CACHE):
            found.append(_set("kv_cache_dtype", "fp8", when=lambda e: e.get("kv_cache_dtype") is None))
        found += [*_parallel(model, most_gpus), *_quantized(model, device.gpu)]
    return found


def _quantized(model: ModelShape, gpu: Gpu) -> list[Change[Engine]]:
    """Weights in 8 bits, then in 4, where the card has what vLLM needs for it."""
    if model.quantized:
        return []

    def larger_than(bytes_each: float) -> Callable[[Engine], bool]:
        # Offloading quantized weights is not reckoned with.
        return lambda engine: _bytes_each(engine) > bytes_each and not engine.get("cpu_offload_gb")

    return [
        _set("quantization", name, when=larger_than(ONLINE[name].expert_bytes), kind="quantization")
        for name in _QUANTIZATIONS
        if can_compute(gpu, ONLINE[name].capability)
    ]


def _bytes_each(engine: Engine) -> float:
    """Of a parameter in a linear layer."""
    online = ONLINE.get(str(engine.get("quantization")))
    return (online.linear_bytes if online else None) or 2.0


def utilization_for(needed_bytes: int, device: Device) -> float:
    """The least ``gpu_memory_utilization``, in hundredths of the card, with which vLLM takes so much."""
    whole = (device.available_bytes or 0) / device.share
    return math.ceil(100 * needed_bytes / max(1.0, whole)) / 100


def _more_of_the_card(estimate: ServingEstimate, device: Device) -> Change[Engine]:
    """vLLM takes more of what the app holds; at most what it takes unasked: beyond that it may not start."""
    enough = utilization_for(estimate.least_bytes, device)

    def apply(engine: Engine) -> Engine | None:
        said = engine.get("gpu_memory_utilization")
        if said is None or not said < enough <= DEFAULT_UTILIZATION * device.share:
            return None
        return {**engine, "gpu_memory_utilization": enough}

    return Change(f"engine.gpu_memory_utilization: {enough}", apply)


def _cache_of_a_size(estimate: ServingEstimate, device: Device) -> Change[Engine]:
    """As large as one sequence, or as the device has room for."""
    room = estimate.cache_bytes(device.available_bytes or 0)

    def apply(engine: Engine) -> Engine | None:
        asked = engine.get("kv_cache_memory_bytes")
        if not isinstance(asked, int):
            return None
        fitting = max(asked, estimate.bytes_per_sequence)
        fitting = fitting if device.available_bytes is None else min(fitting, room)
        return {**engine, "kv_cache_memory_bytes": fitting} if 0 < fitting != asked else None

    def words(engine: Engine) -> str:
        return f"engine.kv_cache_memory_bytes: {engine['kv_cache_memory_bytes']}"

    return Change("engine.kv_cache_memory_bytes", apply, words)


def _shorter(estimate: ServingEstimate, budget_bytes: int) -> Change[Engine]:
    """The longest context that the cache has room for as things are, in whole 256s."""
    longest = estimate.longest(budget_bytes)

    def apply(engine: Engine) -> Engine | None:
        if longest is None:
            return None
        shorter = max(_LEAST_MODEL_LEN, longest // 256 * 256)
        return {**engine, "max_model_len": shorter} if shorter < estimate.max_model_len else None

    return Change("engine.max_model_len", apply, _length_words)


def _length_words(engine: Engine) -> str:
    return f"engine.max_model_len: {engine['max_model_len']}"


def _parallel(model: ModelShape, most_gpus: int) -> list[Change[Engine]]:
    def more(ways: int) -> Callable[[Engine], bool]:
        return lambda engine: engine.get("tensor_parallel_size", 1) < ways

    return [
        _set("tensor_parallel_size", ways, when=more(ways), kind="tensor_parallel_size")
        for ways in (2, 4, _MOST_WORKERS)
        if ways <= most_gpus and model.attention_heads % ways == 0
    ]


def _set(name: str, value: Any, *, when: Callable[[Engine], bool], kind: str = "") -> Change[Engine]:
    said = str(value).lower() if isinstance(value, bool) else value
    return Change(
        f"engine.{name}: {said}",
        lambda engine: {**engine, name: value} if when(engine) else None,
        kind=kind,
    )


def _above(engine: Engine, name: str, limit: int) -> bool:
    value = engine.get(name)
    return value is None or (isinstance(value, int) and value > limit)
