"""Will a training fit, on what, and how fast would it be: asked before anything is submitted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial

from cluster.estimator.advice import Way, ways_to_fit
from cluster.estimator.device import Device, larger_share, share_of
from cluster.estimator.hardware import Hardware, least_of_each
from cluster.estimator.model import ModelShape
from cluster.estimator.speed import Speed, training_speed
from cluster.estimator.terms import Estimate
from cluster.estimator.training import estimate_training
from cluster.estimator.training_shape import TrainingShape
from cluster.estimator.words import gib
from cluster.gpus import Gpu
from train_jobs import deepspeed_presets
from train_jobs.advice import Draft, changes
from train_jobs.deepspeed_config import stage_of
from train_jobs.memory import training_shape
from train_jobs.recipe_view import Recipe


@dataclass(frozen=True)
class TrainEstimate:
    """What one worker of a training needs, and what follows."""

    draft: Draft
    shape: TrainingShape
    estimate: Estimate
    device: Device
    ways: list[Way]
    """To make it fit; empty where it does, or nothing helps."""

    workers_per_node: int
    """Workers that share a host."""

    most_gpus: int
    """That the run could have."""

    reference: ModelShape | None = None
    """The model that ``ref_model`` names."""

    node_bytes: int | None = None
    """What the largest node hands out of its memory; None where that is not known, and without a GPU, where
    ``device`` is that memory."""

    @property
    def speed(self) -> Speed | None:
        """Of all workers; None where the GPU's FLOPs are not known."""
        gpu = self.device.gpu
        flops = (gpu.bf16_flops or gpu.fp16_flops) if gpu else None
        return training_speed(self.shape, flops) if flops else None

    @property
    def host_bytes_per_node(self) -> int:
        """What all workers of a node take of its memory, beside what is on GPUs."""
        return self.workers_per_node * self.estimate.host_bytes

    @property
    def host_short_bytes(self) -> int:
        """What a node lacks of that; 0 where it has it or is not known."""
        return 0 if self.node_bytes is None else max(0, self.host_bytes_per_node - self.node_bytes)

    @property
    def fits(self) -> bool | None:
        """On its device and in its node's memory; None where the machine is not known."""
        if self.device.available_bytes is None:
            return None
        return not self.device.short_bytes(self.estimate.device_bytes) and not self.host_short_bytes

    @property
    def verdict(self) -> str:
        """In words: whether it fits, and where it does not."""
        needed = self.estimate.device_bytes
        if not self.host_short_bytes:
            return self.device.verdict(needed)
        count = self.workers_per_node
        host = (
            f"{count} {'workers need' if count > 1 else 'worker needs'} {gib(self.host_bytes_per_node)} of "
            f"their node's memory, and the largest node hands out {gib(self.node_bytes or 0)}"
        )
        if self.device.short_bytes(needed):
            return f"{self.device.verdict(needed)}; and {host}"
        return f"does not fit by {gib(self.host_short_bytes)}: {host}"


def estimate_train(
    draft: Draft,
    *,
    model: ModelShape,
    device: Device,
    workers_per_node: int,
    most_gpus: int,
    reference: ModelShape | None = None,
    node_bytes: int | None = None,
) -> TrainEstimate:
    """The estimate of one worker.

    Args:
        draft: The recipe.
        model: What it starts from.
        device: What one worker has.
        workers_per_node: Workers that share a host.
        most_gpus: GPUs that the run could have, for advice.
        reference: The model that ``ref_model`` names.
        node_bytes: What the largest node hands out of its memory; None where that is not known.
    """

    def estimated(other: Draft) -> TrainEstimate:
        recipe = Recipe(other.llamafactory, zero_stage=stage_of(other.deepspeed), on_cpu=device.gpu is None)
        shape = training_shape(
            recipe,
            other.deepspeed,
            model=model,
            num_workers=other.num_workers,
            reference=reference,
        )
        found = estimate_training(shape, device.calibration)
        return TrainEstimate(
            other,
            shape,
            found if device.gpu else found.on_one_memory(),
            device,
            [],
            # More workers could all come to one node: the worst case.
            workers_per_node + max(0, other.num_workers - draft.num_workers),
            most_gpus,
            reference,
            node_bytes if device.gpu else None,
        )

    def needed_bytes(other: Draft) -> int:
        return estimated(other).estimate.device_bytes

    def short_bytes(other: Draft) -> int:
        there = estimated(other)
        return device.short_bytes(there.estimate.device_bytes) + there.host_short_bytes

    found = estimated(draft)
    if found.fits is not False:
        return found
    ways = []
    if not found.host_short_bytes:
        ways = larger_share(device, found.estimate.device_bytes, "scaling.gpus_per_worker: 1")
    on_gpu = device.gpu is not None
    ways += ways_to_fit(draft, changes(on_gpu=on_gpu, most_gpus=most_gpus), needed_bytes, short_bytes)
    return replace(found, ways=ways)


def on_nodes(found: TrainEstimate, node_bytes: int | None) -> TrainEstimate:
    """The same estimate where the largest node hands out so much of its memory: what is offloaded counts.

    Ways that are no change of the recipe, such as another product of GPU, stay where the node is not short.
    """
    if found.node_bytes is not None or not found.device.gpu:
        return found
    there = replace(found, node_bytes=node_bytes)
    if there.fits is not False:
        return there
    again = partial(
        estimate_train,
        found.draft,
        model=found.shape.model,
        device=found.device,
        workers_per_node=found.workers_per_node,
        most_gpus=found.most_gpus,
        reference=found.reference,
    )
    of_recipe = again().ways
    others = [] if there.host_short_bytes else [way for way in found.ways if way not in of_recipe]
    return replace(there, ways=[*others, *again(node_bytes=node_bytes).ways])


def hardware_for(draft: Draft, *, model: ModelShape, gpus: Iterable[Gpu]) -> list[Hardware]:
    """The least number of each GPU that the training fits on, one worker each.

    On several GPUs everything is divided with ZeRO-3, but for QLoRA, whose weights are not: it then trains
    on each.
    """

    def needed(gpu: Gpu, count: int) -> int | None:
        if count > 1 and draft.llamafactory.get("quantization_bit"):
            return None
        deepspeed = draft.deepspeed
        if count > 1 and stage_of(deepspeed) != 3:
            deepspeed = deepspeed_presets.resolve("zero3")
        other = replace(draft, num_workers=count, deepspeed=deepspeed)
        return estimate_train(
            other,
            model=model,
            device=replace(share_of(gpu), available_bytes=None),
            workers_per_node=count,
            most_gpus=count,
        ).estimate.device_bytes

    return least_of_each(gpus, needed)
