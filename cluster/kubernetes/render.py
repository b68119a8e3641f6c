"""All objects of a cluster and of what runs on it, in apply order. Pure: data in, data out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.cluster_spec import ClusterSpec
from cluster.kubernetes.access import access
from cluster.kubernetes.disruption import disruption
from cluster.kubernetes.endpoint import endpoint
from cluster.kubernetes.names import job_name
from cluster.kubernetes.network import network
from cluster.kubernetes.nodes_told import nodes_config_map
from cluster.kubernetes.observing import observing
from cluster.kubernetes.raycluster import raycluster
from cluster.kubernetes.rayjob import rayjob
from cluster.kubernetes.rayservice import rayservice
from cluster.kubernetes.submission import head_service
from cluster.kubernetes.volumes import volumes
from cluster.kubernetes.workloads import Manifest, ServeApp, TrainJob
from runtime.core.errors import ConfigError

APPLY_ORDER = (
    "Namespace", "ServiceAccount", "Role", "RoleBinding", "ConfigMap", "PersistentVolume",
    "PersistentVolumeClaim", "NetworkPolicy", "PodDisruptionBudget", "Service", "RayCluster", "RayService",
    "RayJob", "Job", "Ingress", "Gateway", "HTTPRoute", "PodMonitor", "ServiceMonitor", "PrometheusRule",
)  # fmt: skip
"""What others need comes before them; kinds that are not here come last. Secrets are never rendered."""


def render(
    spec: ClusterSpec,
    *,
    apps: Sequence[ServeApp] = (),
    jobs: Sequence[TrainJob] = (),
    ray_dashboards: Mapping[str, Any] | None = None,
) -> list[Manifest]:
    """Every object, in the order in which they are applied.

    Args:
        apps: All that the RayService serves, the front among them; empty: there is none.
        jobs: Training jobs: a RayJob each.
        ray_dashboards: Grafana dashboards by name.

    Returns:
        The RayCluster for all is among them where training is shared, or where nothing else runs.

    Raises:
        ConfigError: something in the spec, the apps or the jobs cannot work together.
    """
    _check_names(spec, jobs)
    has_apps = bool(apps)
    in_serving = spec.training.cluster == "serving"
    # Jobs for the cluster of the apps train in the one for all where there are no apps.
    has_cluster = spec.training.cluster == "shared" or not (apps or (jobs and not in_serving))
    # Jobs alone are applied beside what serves already: its door stays as it is.
    has_door = has_apps or has_cluster
    found = [*access(spec), *volumes(spec), *disruption(spec, has_apps)]
    found += network(spec, has_apps, has_door=has_door)
    if has_cluster:
        found.append(raycluster(spec))
    if has_door:
        found += [nodes_config_map(spec), *endpoint(spec, has_apps)]
    if apps:
        found.append(rayservice(spec, apps))
    if in_serving and (apps or jobs):
        found.append(head_service(spec, "serving" if apps else "shared"))
    for job in jobs:
        found += rayjob(spec, job)
    return sorted([*found, *observing(spec, ray_dashboards or {})], key=_place)


def _place(manifest: Manifest) -> int:
    kind = manifest["kind"]
    return APPLY_ORDER.index(kind) if kind in APPLY_ORDER else len(APPLY_ORDER)


def _check_names(spec: ClusterSpec, jobs: Sequence[TrainJob]) -> None:
    counts = Counter(job_name(spec, job.name) for job in jobs)
    twice = next((job.name for job in jobs if counts[job_name(spec, job.name)] > 1), None)
    if twice:
        raise ConfigError(f"name is {twice!r} in two train specs. Give each job a name of its own.")
