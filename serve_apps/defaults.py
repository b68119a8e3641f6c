"""vLLM's arguments where the user said nothing, by the hardware: and what cannot be said on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.estimator.device import Device
from cluster.estimator.model import ModelShape
from runtime.core.errors import ConfigError
from serve_apps.memory import default_utilization
from serve_apps.plan_memory import cpu_cache_bytes

# One process fewer than vLLM's default for CPU: the worker lives inside the EngineCore process, which saves
# one import of vLLM (5 of 20 seconds on 2 cores) and its memory. Given by its path because vLLM turns the
# short name "uni" into "mp" on CPU; what it fears, threads bound too late, does not arise: we bind none.
_CPU_ONE_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"


def workers(engine: Mapping[str, Any]) -> int:
    """vLLM workers that hold one copy of the model."""
    return int(engine.get("tensor_parallel_size", 1)) * int(engine.get("pipeline_parallel_size", 1))


def gpu_arguments(engine: Mapping[str, Any], *, gpus: float, over_nodes: bool) -> dict[str, Any]:
    """On GPUs.

    Args:
        gpus: The share of one GPU that each worker has; 1: all of it.
        over_nodes: Whether the workers are on several nodes.

    Raises:
        ConfigError: the engine would take more of a GPU than its share.
    """
    # vLLM prefers Ray's own executor when it finds itself inside a Ray actor; "mp" keeps the workers
    # children of the replica, on the GPUs that the replica reserved.
    defaults: dict[str, Any] = {}
    if over_nodes:
        defaults["distributed_executor_backend"] = "ray"
    elif workers(engine) > 1:
        defaults["distributed_executor_backend"] = "mp"
    if (utilization := default_utilization(gpus)) is not None:
        defaults["gpu_memory_utilization"] = utilization
    arguments = {**defaults, **engine}
    # Ray's fraction is a count for its scheduler, not a memory limit: nothing would stop vLLM from taking
    # the neighbour's memory, so it is checked here.
    if arguments.get("gpu_memory_utilization", 0) > gpus:
        raise ConfigError(
            f"engine.gpu_memory_utilization is {arguments['gpu_memory_utilization']} but resources.gpus is "
            f"{gpus}: the replica reserves only that share of the GPU. "
            f"Lower gpu_memory_utilization to {gpus} or less, or set resources.gpus: 1."
        )
    return arguments


def cpu_arguments(engine: Mapping[str, Any], *, model: ModelShape | None, device: Device) -> dict[str, Any]:
    """Without a GPU.

    Args:
        model: What it serves; None where its files do not tell.
        device: The memory that each worker has.

    Raises:
        ConfigError: the engine cannot run so, or nothing of its share is left for the KV cache.
    """
    pipelined = engine.get("pipeline_parallel_size", 1) > 1
    if pipelined and engine.get("enforce_eager"):
        raise ConfigError(
            "engine.enforce_eager is true, but vLLM's CPU engine would end at its first request with "
            f"pipeline_parallel_size {engine['pipeline_parallel_size']}. Leave it out."
        )
    # Eager only so that a replica answers in seconds: compiling takes up to a minute more on 2 cores. For
    # throughput on CPU set engine.enforce_eager: false.
    defaults: dict[str, Any] = {"enforce_eager": not pipelined}
    if "kv_cache_memory_bytes" not in engine:
        # vLLM would take 90% of the machine's memory.
        defaults["kv_cache_memory_bytes"] = cpu_cache_bytes(engine, model=model, device=device)
    defaults["distributed_executor_backend"] = _CPU_ONE_PROCESS if workers(engine) == 1 else "mp"
    return {**defaults, **engine}
