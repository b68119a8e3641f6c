"""What a run asks the ledger for, and what its answer means to Ray Train."""

from __future__ import annotations

from cluster.ledger.client import Room
from cluster.placement import Request
from train_jobs.plan import TrainPlan
from train_jobs.request import request

_NODE_ID_LABEL = "ray.io/node-id"
"""Ray gives every node this label."""


def sizes(plan: TrainPlan, workers: int, possible: list[int]) -> list[Request]:
    """Requests for ``workers``, and for every smaller number that would do, the largest first."""
    return [request(plan, count) for count in sorted(possible, reverse=True) if count <= workers]


def node_labels(plan: TrainPlan, room: Room) -> list[dict[str, str]] | None:
    """The node of each worker, as Ray Train takes it; None where Ray may choose.

    Cards are what the ledger decides on: workers without any go where Ray finds CPUs.
    """
    if not plan.resources_per_worker.get("GPU") or not room.nodes:
        return None
    return [{_NODE_ID_LABEL: node} for node in room.nodes]
