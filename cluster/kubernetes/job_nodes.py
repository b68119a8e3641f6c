"""The nodes of a training job's own cluster: which groups can hold its workers, and how many it takes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cluster.cluster_spec import ClusterSpec
from cluster.kubernetes.workloads import TrainJob
from cluster.node_groups import RAYS_SHARE, NodeGroup
from runtime.core.errors import ConfigError

_ROUNDING = 1e-6
"""Ten tenths of a card are one card."""


def job_groups(spec: ClusterSpec, job: TrainJob) -> list[NodeGroup]:
    """The groups of the job's cluster: nodes for its least number of workers, and at most for its largest.

    Groups are filled in the order of the spec. Workers of one job are on GPUs of one product, the first that
    has room for all of them, else the one with most room; unless the job asks for one, or for ``any``. A job
    without GPUs gets nodes without GPUs, where there are enough.

    Raises:
        ConfigError: no group is of the kind, no node can hold one worker, or all together hold too few.
    """
    fitting = [group for group in _of_the_kind(spec, job) if workers_on_a_node(group, job)]
    if not fitting:
        raise ConfigError(_no_node(spec, job))
    least, most = job.num_workers
    choices = _choices(fitting, job)
    rooms = [_room(choice, job) for choice in choices]
    at = next((at for at, room in enumerate(rooms) if room >= most), rooms.index(max(rooms)))
    if rooms[at] < least:
        raise ConfigError(
            f"scaling.num_workers of {job.name} is {least} at least, but the node groups "
            f"{_names(choices[at])} hold {rooms[at]} such workers at most. Ask for fewer, or raise the "
            "groups' count or max."
        )
    return _filled(choices[at], job)


def workers_on_a_node(group: NodeGroup, job: TrainJob) -> int:
    """How many of the job's workers a node of the group holds."""
    room = {"cpus": group.cpus, "gpus": float(group.gpus), "memory": group.memory * RAYS_SHARE}
    asked = {
        "cpus": job.cpus_per_worker,
        "gpus": job.gpus_per_worker,
        "memory": job.memory_bytes_per_worker,
    }
    fitting = min(
        (int(room[name] / amount + _ROUNDING) for name, amount in asked.items() if amount), default=1
    )
    if 0 < job.gpus_per_worker < 1:
        # No worker is on parts of two cards.
        fitting = min(fitting, group.gpus * int(1 / job.gpus_per_worker + _ROUNDING))
    strategy = (job.spec.get("scaling") or {}).get("placement_strategy")
    if strategy == "STRICT_PACK" and fitting < job.num_workers[0]:
        return 0
    return min(fitting, 1) if strategy == "STRICT_SPREAD" else fitting


def _of_the_kind(spec: ClusterSpec, job: TrainJob) -> list[NodeGroup]:
    groups = [group for group in spec.node_groups if group.max_nodes]
    if not job.gpus_per_worker:
        found, remedy = groups, "Raise the groups' count or max"
    elif job.accelerator_type in (None, "any"):
        found = [group for group in groups if group.gpus]
        remedy = "Add a group with GPUs, or set scaling.gpus_per_worker: 0"
    else:
        found = [group for group in groups if group.ray_accelerator_type == job.accelerator_type]
        remedy = "Set scaling.accelerator_type to one of theirs, or leave it out"
    if not found:
        have = ", ".join(
            f"{group.name} ({group.ray_accelerator_type or 'no GPUs'})" for group in spec.node_groups
        )
        raise ConfigError(
            f"scaling of {job.name} asks for {job.gpus_per_worker:g} GPUs a worker "
            f"(accelerator_type: {job.accelerator_type or 'any one'}), but node_groups have {have}. "
            f"{remedy}, or set training.cluster: shared."
        )
    return found


def _choices(groups: Sequence[NodeGroup], job: TrainJob) -> list[list[NodeGroup]]:
    """Groups that one job may have together: those of one product."""
    if not job.gpus_per_worker:
        without = [group for group in groups if not group.gpus]
        enough = _room(without, job) >= job.num_workers[0]
        return [without if enough else without + [group for group in groups if group.gpus]]
    if job.accelerator_type == "any":
        return [list(groups)]
    products = dict.fromkeys(group.ray_accelerator_type for group in groups)
    return [[group for group in groups if group.ray_accelerator_type == product] for product in products]


def _room(groups: Sequence[NodeGroup], job: TrainJob) -> int:
    """Workers that all nodes of these groups hold."""
    return sum(workers_on_a_node(group, job) * group.max_nodes for group in groups)


def _filled(groups: Sequence[NodeGroup], job: TrainJob) -> list[NodeGroup]:
    least, most = job.num_workers
    found = []
    for group in groups:
        slots = workers_on_a_node(group, job)
        nodes = [min(group.max_nodes, math.ceil(max(0, left) / slots)) for left in (least, most)]
        if nodes[1]:
            found.append(group.model_copy(update={"count": None, "min": nodes[0], "max": nodes[1]}))
        least, most = least - nodes[0] * slots, most - nodes[1] * slots
    return found


def _no_node(spec: ClusterSpec, job: TrainJob) -> str:
    together = (
        f", and scaling.placement_strategy STRICT_PACK wants all {job.num_workers[0]} on one node"
        if (job.spec.get("scaling") or {}).get("placement_strategy") == "STRICT_PACK"
        else ""
    )
    return (
        f"scaling of {job.name} asks for {job.cpus_per_worker:g} CPUs, {job.gpus_per_worker:g} GPUs and "
        f"{job.memory_bytes_per_worker / 2**30:.1f} GiB a worker{together}, but no node of "
        f"{_names(_of_the_kind(spec, job))} has that ({RAYS_SHARE:.0%} of its memory is for workers). Ask "
        "for less, or describe larger nodes in node_groups."
    )


def _names(groups: Sequence[NodeGroup]) -> str:
    return ", ".join(group.name for group in groups)
