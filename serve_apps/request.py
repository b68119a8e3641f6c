"""What an app takes of the cluster, as the ledger is asked for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.placement import Request
from cluster.placement.request import ANY
from serve_apps.defaults import workers

if TYPE_CHECKING:
    from serve_apps.plan import ServePlan


def request(plan: ServePlan) -> Request:
    """A place for its first replicas: ``min_replicas``, and one where that is 0."""
    spec = plan.spec
    gpus = spec.resources.gpus or 0.0
    refuses = spec.memory_check == "refuse"
    count = workers(plan.engine) if gpus else 1
    return Request(
        name=spec.name,
        kind="serve",
        groups=max(1, spec.autoscaling.min_replicas),
        workers_per_group=count,
        gpus_per_worker=gpus,
        cpus_per_worker=spec.resources.cpus / count,
        memory_bytes_per_worker=(spec.resources.memory_bytes or 0) // count,
        card_bytes_per_worker=plan.memory.on_card if refuses and plan.memory and gpus else 0,
        # The plan says one product wherever there is a choice to make and none was left to Serve.
        accelerator_type=plan.accelerator_type or ANY,
    )
