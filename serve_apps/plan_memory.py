"""The memory part of a serve plan: what each of an engine's workers needs, against what it will have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cluster.estimator.advice import Way
from cluster.estimator.device import Device, card_share, host_memory
from cluster.estimator.model import ModelShape
from cluster.estimator.planned import PlannedMemory, fault, planned_memory
from cluster.estimator.words import gib
from cluster.inventory import Inventory
from serve_apps.estimate import ServeEstimate, estimate_serve

CPU_KV_CACHE_BYTES = 1 << 30
"""Of an engine without a GPU whose share of memory nobody said; vLLM would take 90% of the machine's."""


def device_of(
    *,
    inventory: Inventory,
    gpus: float,
    memory_bytes: int | None,
    workers: int,
    accelerator_type: str | None = None,
) -> Device | None:
    """What each worker of an engine will have: its share, or without one its part of the largest node.

    Args:
        gpus: What each reserves; 0 on CPUs.
        accelerator_type: Ray's word for the product of its GPU; None: any that the cluster has.
        memory_bytes: What the spec gives the replica of its node's memory.
        workers: Of one replica.

    Returns:
        None where the GPU is not in the catalogue: nothing can be said then.
    """
    if gpus and not inventory.is_logical:
        # Serve puts replicas on whatever cards of a product are free: the smallest must do.
        return card_share(inventory, accelerator_type, gpus)
    if memory_bytes is not None:
        return host_memory(memory_bytes // workers)
    if gpus:
        cards = [card.memory_bytes or 0 for node in inventory.nodes for card in node.cards]
        return host_memory(int(gpus * min(cards)))
    most = max((node.memory_bytes for node in inventory.nodes), default=0)
    return host_memory(most // workers or None)


def cpu_cache_bytes(engine: Mapping[str, Any], *, model: ModelShape | None, device: Device) -> int:
    """The KV cache of an engine without a GPU: what its share leaves beside all else.

    At least one sequence, which a share that is too small has no room for: ``check_memory`` says so.
    """
    if device.available_bytes is None or model is None:
        return CPU_KV_CACHE_BYTES
    found = estimate_serve(engine, model=model, device=device, most_gpus=0)
    return max(found.estimate.cache_bytes(device.available_bytes), found.estimate.bytes_per_sequence, 1)


def check_memory(
    engine: Mapping[str, Any],
    *,
    model: ModelShape,
    device: Device,
    most_gpus: int,
    elsewhere: Mapping[str, Device | None],
) -> tuple[PlannedMemory | None, list[str]]:
    """What each worker needs and has, and why that cannot be; None and nothing where it is not known.

    Args:
        engine: vLLM's arguments, as it will be started with.
        most_gpus: GPUs that one replica could have, for advice.
        elsewhere: What each worker would have on other products of the cluster, for advice.
    """
    found = estimate_serve(engine, model=model, device=device, most_gpus=most_gpus)
    if found.not_reckoned:
        return None, []
    if found.fits is False:
        found = replace(found, ways=[*_other_products(engine, model, elsewhere), *found.ways])
    cache = _cache_bytes(found)
    planned = planned_memory(found.estimate.fixed, device, more={"KV cache": cache})
    asked = engine.get("kv_cache_memory_bytes")
    least = planned.needed_bytes if isinstance(asked, int) else found.estimate.least_bytes
    return planned.model_copy(update={"least_bytes": least}), _faults(found, planned)


def _other_products(
    engine: Mapping[str, Any], model: ModelShape, elsewhere: Mapping[str, Device | None]
) -> list[Way]:
    """Products on which it fits as it is."""
    return [
        Way((f"resources.accelerator_type: {name}",), there.estimate.least_bytes)
        for name, device in elsewhere.items()
        if device and (there := estimate_serve(engine, model=model, device=device, most_gpus=0)).fits
    ]


def _cache_bytes(found: ServeEstimate) -> int:
    """What vLLM will take for it; at least one sequence of the longest."""
    asked = found.engine.get("kv_cache_memory_bytes")
    if isinstance(asked, int):
        return asked
    if found.budget_bytes is None:
        return found.estimate.bytes_per_sequence
    return max(found.estimate.bytes_per_sequence, found.estimate.cache_bytes(found.budget_bytes))


def _faults(found: ServeEstimate, planned: PlannedMemory) -> list[str]:
    available, sequence = found.device.available_bytes, found.estimate.bytes_per_sequence
    asked = found.engine.get("kv_cache_memory_bytes")
    left = 0 if available is None else found.estimate.cache_bytes(available)
    if isinstance(asked, int) and asked < sequence and (available is None or left >= sequence):
        return [_too_short(found, asked)]
    if available is None:
        return []
    # Where not even one sequence has room, another size of the cache is no remedy.
    if isinstance(asked, int) and planned.needed_bytes > available and left >= max(1, sequence):
        return [
            f"engine.kv_cache_memory_bytes is {_said(found, asked)}, but of the {gib(available)} that each "
            f"worker has ({found.device.name}) weights and engine leave {gib(left)}. Lower it to {left}, "
            + (
                "or use a node with more memory."
                if _is_ours(found, asked)
                else "leave it out, or give the replica a larger share."
            )
        ]
    if found.fits is False:
        return [fault("each worker of the engine", found.estimate.least_bytes, found.allowed, found.ways)]
    return []


def _too_short(found: ServeEstimate, asked: int) -> str:
    """A cache that has no room for one sequence: vLLM would not start."""
    sequence = found.estimate.bytes_per_sequence
    return (
        f"engine.kv_cache_memory_bytes is {_said(found, asked)}, but one sequence of max_model_len "
        f"{found.shape.max_model_len} needs {gib(sequence)}. Raise it to {sequence}, or set "
        f"engine.max_model_len: {found.largest_max_model_len} or less."
    )


def _is_ours(found: ServeEstimate, asked: int) -> bool:
    """Whether nobody asked for it: the cache of an engine on a CPU without a share."""
    return found.device.gpu is None and asked == CPU_KV_CACHE_BYTES


def _said(found: ServeEstimate, asked: int) -> str:
    ours = ", where neither it nor resources.memory_bytes is set" if _is_ours(found, asked) else ""
    return f"{asked} ({gib(asked)}{ours})"
