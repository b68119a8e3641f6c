"""Will a training fit, on what, and how fast would it be: asked before anything is submitted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from cluster.estimator.advice import Way, ways_to_fit
from cluster.estimator.device import Device, larger_share, share_of
from cluster.estimator.hardware import Hardware, least_of_each
from cluster.estimator.model import ModelShape
from cluster.estimator.speed import Speed, training_speed
from cluster.estimator.terms import Estimate
from cluster.estimator.training import estimate_training
from cluster.estimator.training_shape import TrainingShape
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

    speed: Speed | None
    """Of all workers; None where the GPU's FLOPs are not known."""

    workers_per_node: int
    """Workers that share a host."""

    @property
    def host_bytes_per_node(self) -> int:
        """What all workers of a node take of its memory, beside what is on GPUs."""
        return self.workers_per_node * self.estimate.host_bytes

    @property
    def fits(self) -> bool | None:
        """None where the machine is not known."""
        if self.device.available_bytes is None:
            return None
        return self.device.short_bytes(self.estimate.device_bytes) == 0


def estimate_train(
    draft: Draft,
    *,
    model: ModelShape,
    device: Device,
    workers_per_node: int,
    most_gpus: int,
    reference: ModelShape | None = None,
) -> TrainEstimate:
    """The estimate of one worker.

    Args:
        draft: The recipe.
        model: What it starts from.
        device: What one worker has.
        workers_per_node: Workers that share a host.
        most_gpus: GPUs that the run could have, for advice.
        reference: The model that ``ref_model`` names.
    """

    def shape_of(other: Draft) -> TrainingShape:
        recipe = Recipe(other.llamafactory, zero_stage=stage_of(other.deepspeed), on_cpu=device.gpu is None)
        return training_shape(
            recipe,
            other.deepspeed,
            model=model,
            num_workers=other.num_workers,
            reference=reference,
        )

    def estimated(other: Draft) -> Estimate:
        found = estimate_training(shape_of(other), device.calibration)
        return found if device.gpu else found.on_one_memory()

    estimate, shape = estimated(draft), shape_of(draft)
    ways = []
    if device.available_bytes is not None and device.short_bytes(estimate.device_bytes):
        ways = larger_share(device, estimate.device_bytes, "scaling.gpus_per_worker: 1")
        ways += ways_to_fit(
            draft,
            changes(on_gpu=device.gpu is not None, most_gpus=most_gpus),
            lambda other: estimated(other).device_bytes,
            device.available_bytes,
        )
    flops = (device.gpu.bf16_flops or device.gpu.fp16_flops) if device.gpu else None
    speed = training_speed(shape, flops) if flops else None
    return TrainEstimate(draft, shape, estimate, device, ways, speed, workers_per_node)


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
