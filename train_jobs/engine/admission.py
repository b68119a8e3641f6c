"""What a run asks the ledger for, and what its answer means to Ray Train."""

from __future__ import annotations

from typing import cast

from cluster.ledger.client import Room
from cluster.placement import Request
from cluster.placement.request import Strategy
from train_jobs.plan import TrainPlan

_NODE_ID_LABEL = "ray.io/node-id"
"""Ray gives every node this label."""


def sizes(plan: TrainPlan, workers: int, possible: list[int]) -> list[Request]:
    """Requests for ``workers``, and for every smaller number that would do, the largest first."""
    return [_request(plan, count) for count in sorted(possible, reverse=True) if count <= workers]


def node_labels(plan: TrainPlan, room: Room) -> list[dict[str, str]] | None:
    """The node of each worker, as Ray Train takes it; None where Ray may choose.

    Cards are what the ledger decides on: workers without any go where Ray finds CPUs.
    """
    if not plan.resources_per_worker.get("GPU") or not room.nodes:
        return None
    return [{_NODE_ID_LABEL: node} for node in room.nodes]


def _request(plan: TrainPlan, workers: int) -> Request:
    wanted = plan.resources_per_worker
    gpus = wanted.get("GPU", 0.0)
    return Request(
        name=str(plan.run_id),
        kind="train",
        workers_per_group=workers,
        gpus_per_worker=gpus,
        cpus_per_worker=wanted.get("CPU", 0.0),
        memory_bytes_per_worker=int(wanted.get("memory", 0)),
        card_bytes_per_worker=plan.memory.needed_bytes if plan.memory and gpus else 0,
        accelerator_type=plan.accelerator_type,
        strategy=cast("Strategy", plan.placement_strategy),
    )
