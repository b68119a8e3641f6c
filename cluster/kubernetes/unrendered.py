"""What there is of a cluster and is not rendered: what runs for specs that were not given, and the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.cluster_spec import ClusterSpec
from cluster.kubernetes.client import Kubernetes
from cluster.kubernetes.owned import key, owned
from cluster.kubernetes.readiness import conditions
from cluster.kubernetes.submission import head_name
from cluster.kubernetes.workloads import Manifest

_OF_A_DOOR = (
    *("PodDisruptionBudget", "NetworkPolicy", "Service", "Ingress", "Gateway", "HTTPRoute"),
    *("BackendConfig", "GCPBackendPolicy", "HealthCheckPolicy"),
)
"""Kinds by which what runs is reached and kept up."""

_ENDED = ("Complete", "Failed", "ValidationFailed")
"""``jobDeploymentStatus`` of a RayJob that does nothing more."""


@dataclass(frozen=True)
class Unrendered:
    """Objects of a cluster that are not among what is rendered."""

    objects: list[Manifest]
    """All of them, in the order in which they are applied."""

    running: list[Manifest]
    """Of these: apps and jobs that have not ended, and what they stand on. Nobody gave their specs now, which
    does not say that they are to end."""

    unseen: list[str]
    """What this account may not look at, a sentence each: there may be more."""

    @property
    def rest(self) -> list[Manifest]:
        """What nothing that runs needs."""
        return [one for one in self.objects if one not in self.running]


def no_longer_rendered(
    kubernetes: Kubernetes, spec: ClusterSpec, manifests: Sequence[Manifest]
) -> Unrendered:
    """What of the cluster ``manifests`` does not have.

    Raises:
        ClusterError: the API server does not answer.
    """
    rendered = {key(one) for one in manifests}
    found = owned(kubernetes, spec)
    gone = [one for one in found.objects if key(one) not in rendered]
    return Unrendered(gone, _running(spec, gone), found.unseen)


def _running(spec: ClusterSpec, gone: Sequence[Manifest]) -> list[Manifest]:
    jobs = [one for one in gone if one["kind"] in ("RayJob", "Job") and not _has_ended(one)]
    carriers = [one for one in gone if one["kind"] == "RayService"]
    if any(_goes_into_a_running_cluster(one) for one in jobs):
        carriers += [one for one in gone if one["kind"] == "RayCluster"]
    config_maps = {name for one in [*jobs, *carriers] for name in _config_maps(one)}
    return [
        one
        for one in gone
        if one in jobs
        or one in carriers
        or (one["kind"] == "ConfigMap" and one["metadata"]["name"] in config_maps)
        or (one["kind"] in _OF_A_DOOR and carriers)
        or (key(one)[::2] == ("Service", head_name(spec)) and jobs)
    ]


def _has_ended(job: Manifest) -> bool:
    if job["kind"] == "RayJob":
        return (job.get("status") or {}).get("jobDeploymentStatus") in _ENDED
    return any(conditions(job).get(one, {}).get("status") == "True" for one in ("Complete", "Failed"))


def _goes_into_a_running_cluster(job: Manifest) -> bool:
    """A Job hands its run to the cluster of all; so does a RayJob that selects one."""
    return job["kind"] == "Job" or bool(job["spec"].get("clusterSelector"))


def _config_maps(value: Any) -> Iterator[str]:
    """The names of the ConfigMaps that an object's pods mount or read."""
    if isinstance(value, dict):
        for field, inner in value.items():
            if field in ("configMap", "configMapKeyRef", "configMapRef"):
                yield inner["name"]
            else:
                yield from _config_maps(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _config_maps(inner)
