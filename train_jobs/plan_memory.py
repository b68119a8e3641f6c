"""The memory part of a train plan: what each worker needs, against what it will have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from cluster.estimator.advice import Way
from cluster.estimator.device import Device, card_share, host_memory
from cluster.estimator.planned import fault, planned_memory
from cluster.estimator.reading import shape_or_none
from cluster.estimator.words import gib
from cluster.inventory import Inventory
from cluster.placement import Free, NoRoom, place
from storage.store import Store
from train_jobs.advice import Draft
from train_jobs.estimate import TrainEstimate, estimate_train
from train_jobs.request import request

if TYPE_CHECKING:
    from train_jobs.plan import TrainPlan
    from train_jobs.spec import TrainSpec

_NOT_RECKONED = (
    "enable_liger_kernel", "use_unsloth", "use_unsloth_gc", "use_galore", "use_apollo", "use_badam",
    "use_muon", "use_adam_mini", "use_kt",
)  # fmt: skip
"""Arguments of LLaMA-Factory that take other memory than what is reckoned here: nothing is said of a recipe
with one."""


class MemoryOf(Protocol):
    """What of a plan decides how much memory its workers need."""

    @property
    def llamafactory(self) -> Mapping[str, Any]:
        """LLaMA-Factory's arguments."""

    @property
    def deepspeed(self) -> Mapping[str, Any] | None:
        """DeepSpeed's config."""

    @property
    def num_workers(self) -> int:
        """Data-parallel workers."""

    @property
    def base(self) -> str:
        """The model to start from."""

    @property
    def models(self) -> Mapping[str, list[str]]:
        """Other models that arguments name, such as ``ref_model``."""


def workers_per_node(num_workers: int, inventory: Inventory | None, *, on_gpu: bool) -> int:
    """The most workers that share a node, when they are packed."""
    if inventory is None or not inventory.nodes:
        return num_workers
    if on_gpu:
        return min(num_workers, max(1, inventory.most_cards_on_a_node))
    return -(-num_workers // len(inventory.nodes))


def device_of(
    *,
    inventory: Inventory | None,
    gpus_per_worker: float,
    accelerator_type: str | None,
    num_workers: int,
    memory_bytes: int | None,
) -> Device | None:
    """What one worker will have.

    Args:
        gpus_per_worker: What it reserves; 0 on CPUs.
        accelerator_type: Ray's word for the product of its GPU; None: any that the cluster has.
        memory_bytes: What the spec gives it of its node's memory; None: its part of a node.

    Returns:
        None where the GPU is not known, or not in the catalogue: nothing can be said then.
    """
    if gpus_per_worker and inventory is None:
        return None
    if gpus_per_worker and inventory is not None and not inventory.is_logical:
        # Workers are pinned to the nodes that were decided, and only to cards that are large enough.
        return card_share(inventory, accelerator_type, gpus_per_worker, cards=num_workers)
    if memory_bytes is not None:
        return host_memory(memory_bytes)
    if inventory is None or not inventory.nodes:
        return host_memory(None)
    if gpus_per_worker:
        cards = [card.memory_bytes or 0 for node in inventory.nodes for card in node.cards]
        return host_memory(int(gpus_per_worker * max(cards)))
    each = max(node.memory_bytes for node in inventory.nodes)
    return host_memory(each // workers_per_node(num_workers, inventory, on_gpu=False) or None)


def estimate_plan(
    plan: MemoryOf,
    *,
    store: Store,
    inventory: Inventory | None,
    device: Device,
    accelerator_type: str | None = None,
) -> TrainEstimate | None:
    """The estimate of a plan's workers; None where the model's files do not tell.

    Args:
        plan: What of the plan decides it.
        store: Where its models are.
        device: What each worker will have.
        accelerator_type: The product that all of them are on; None: any.
    """
    model = shape_or_none(store.model(plan.base))
    references = plan.models.get("ref_model", [])
    if model is None or any(plan.llamafactory.get(name) for name in _NOT_RECKONED):
        return None
    nodes = inventory.with_product(accelerator_type) if inventory and accelerator_type else inventory
    estimated = partial(
        estimate_train,
        Draft(plan.llamafactory, plan.deepspeed, plan.num_workers),
        model=model,
        workers_per_node=workers_per_node(plan.num_workers, nodes, on_gpu=device.gpu is not None),
        most_gpus=nodes.cards if nodes else 0,
        reference=shape_or_none(store.model(references[0])) if references else None,
        node_bytes=_most_memory(nodes),
    )
    found = estimated(device=device)
    if found.fits is not False or inventory is None or device.gpu is None:
        return found
    others = [name for name in inventory.products if name != accelerator_type]
    return replace(found, ways=[*_other_products(others, plan, inventory, device, estimated), *found.ways])


def _most_memory(inventory: Inventory | None) -> int | None:
    """What the largest node hands out; None where that is not known."""
    if inventory is None:
        return None
    return max((node.memory_bytes for node in inventory.nodes), default=0) or None


def _other_products(
    others: Sequence[str],
    plan: MemoryOf,
    inventory: Inventory,
    device: Device,
    estimated: Callable[..., TrainEstimate],
) -> list[Way]:
    """Products of the cluster, with cards enough, on which the run fits as it is."""
    ways = []
    for name in others:
        there = card_share(inventory, name, device.share, cards=plan.num_workers)
        if there and inventory.accelerators[name] >= plan.num_workers * device.share:
            found = estimated(device=there)
            if found.fits:
                ways.append(Way((f"scaling.accelerator_type: {name}",), found.estimate.device_bytes))
    return ways


def memory_faults(found: TrainEstimate) -> list[str]:
    """A line for what holds too little: the card, else the node's memory."""
    needed = found.estimate.device_bytes
    if found.device.short_bytes(needed):
        when = ", while it evaluates," if found.estimate.peak == "evaluation" else ""
        return [fault(f"each worker{when}", needed, found.device, found.ways)]
    if not found.host_short_bytes:
        return []
    ways = f"It fits with {'; or with '.join(str(way) for way in found.ways)}. " if found.ways else ""
    return [
        f"memory: {found.workers_per_node} workers need {gib(found.host_bytes_per_node)} of their node's "
        f"memory for what is offloaded, and the largest node hands out {gib(found.node_bytes or 0)}. {ways}"
        "Offload less (deepspeed), or spread the workers (scaling.placement_strategy: SPREAD)."
    ]


def never(plan: TrainPlan, inventory: Inventory) -> list[str]:
    """Why even the empty cluster has no place for the least number of workers."""
    found = place(Free.of(inventory), request(plan, plan.min_workers))
    return [f"scaling: {found.reason}"] if isinstance(found, NoRoom) else []


def with_memory(
    plan: TrainPlan, spec: TrainSpec, store: Store, inventory: Inventory | None, gpus_per_worker: float
) -> tuple[TrainPlan, list[str]]:
    """The plan with what each worker needs and has, and why that cannot be.

    Args:
        gpus_per_worker: What each worker reserves.
    """
    device = device_of(
        inventory=inventory,
        gpus_per_worker=gpus_per_worker,
        accelerator_type=plan.accelerator_type,
        num_workers=plan.num_workers,
        memory_bytes=spec.scaling.memory_bytes_per_worker,
    )
    is_shared = gpus_per_worker > 0 or spec.scaling.memory_bytes_per_worker is not None
    if device is not None and is_shared:
        plan = plan.model_copy(update={"share_bytes": device.available_bytes})
    found = device and estimate_plan(
        plan, store=store, inventory=inventory, device=device, accelerator_type=plan.accelerator_type
    )
    if not found:
        return plan, []
    memory = planned_memory(found.estimate, found.device)
    return plan.model_copy(update={"memory": memory}), memory_faults(found)
