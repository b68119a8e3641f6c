"""What a run takes of the cluster, as the ledger is asked for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from cluster.placement import Request
from cluster.placement.request import ANY, Strategy

if TYPE_CHECKING:
    from train_jobs.plan import TrainPlan


def request(plan: TrainPlan, workers: int) -> Request:
    """A place for so many workers."""
    wanted = plan.resources_per_worker
    gpus = wanted.get("GPU", 0.0)
    refuses = plan.memory_check == "refuse"
    return Request(
        name=str(plan.run_id),
        kind="train",
        workers_per_group=workers,
        gpus_per_worker=gpus,
        cpus_per_worker=wanted.get("CPU", 0.0),
        memory_bytes_per_worker=int(wanted.get("memory", 0)),
        card_bytes_per_worker=plan.memory.on_card if refuses and plan.memory and gpus else 0,
        # The plan says one product wherever there is a choice to make and none was left to Ray.
        accelerator_type=plan.accelerator_type or ANY,
        strategy=cast("Strategy", plan.placement_strategy),
    )
