"""What a cluster's user should know before applying: Ray clusters that wait for each other's nodes."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.cluster_spec import ClusterSpec
from cluster.kubernetes.job_nodes import job_groups
from cluster.kubernetes.workloads import ServeApp, TrainJob


def notes(spec: ClusterSpec, *, apps: Sequence[ServeApp] = (), jobs: Sequence[TrainJob] = ()) -> list[str]:
    """Sentences about pods that will find no node, as long as the others keep theirs.

    A node has one Ray pod. The RayService's cluster keeps the least number of nodes of every group, and so
    does the shared RayCluster; a training job's own cluster needs nodes besides.

    Raises:
        ConfigError: no node group can hold a job's workers at all.
    """
    held = {group.name: group.min_nodes if apps else 0 for group in spec.node_groups}
    if spec.training.cluster == "serving":
        return []
    if spec.training.cluster == "shared":
        return _shared(spec) if apps else []
    return [note for job in jobs for note in _own(spec, job, held)]


def _shared(spec: ClusterSpec) -> list[str]:
    return [
        f"node group {group.name} has {group.max_nodes} nodes: the RayService and the shared RayCluster want "
        f"{group.min_nodes} each, and one of them will wait. Write training.cluster: serving, which trains "
        "in the RayService's cluster, or raise the group's max."
        for group in spec.node_groups
        if 2 * group.min_nodes > group.max_nodes
    ]


def _own(spec: ClusterSpec, job: TrainJob, held: dict[str, int]) -> list[str]:
    there = {group.name: group.max_nodes for group in spec.node_groups}
    return [
        f"{job.name} needs {group.min_nodes} nodes of group {group.name}, and serving keeps "
        f"{held[group.name]} of its {there[group.name]}: the job will wait. Give the group a smaller min, or "
        "more nodes."
        for group in job_groups(spec, job)
        if group.min_nodes + held[group.name] > there[group.name]
    ]
