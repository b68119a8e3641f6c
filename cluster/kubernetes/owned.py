"""What there is of a cluster: the objects that carry its labels, in the order in which they are applied."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from cluster.cluster_spec import ClusterSpec
from cluster.kubernetes.client import Kubernetes
from cluster.kubernetes.elsewhere import NAMESPACE_LABEL, Place, places
from cluster.kubernetes.names import CLUSTER_LABEL
from cluster.kubernetes.refusals import Forbidden
from cluster.kubernetes.render import APPLY_ORDER
from cluster.kubernetes.workloads import Manifest

_RBAC = "rbac.authorization.k8s.io/v1"
_MONITORING = "monitoring.coreos.com/v1"
_GATEWAY = "gateway.networking.k8s.io/v1"
_GKE = "networking.gke.io/v1"
API_VERSIONS = {
    "ServiceAccount": "v1",
    "Role": _RBAC,
    "RoleBinding": _RBAC,
    "ConfigMap": "v1",
    "PersistentVolume": "v1",
    "PersistentVolumeClaim": "v1",
    "NetworkPolicy": "networking.k8s.io/v1",
    "PodDisruptionBudget": "policy/v1",
    "Service": "v1",
    "RayCluster": "ray.io/v1",
    "RayService": "ray.io/v1",
    "RayJob": "ray.io/v1",
    "Job": "batch/v1",
    "Ingress": "networking.k8s.io/v1",
    "Gateway": _GATEWAY,
    "HTTPRoute": _GATEWAY,
    "BackendConfig": "cloud.google.com/v1",
    "GCPBackendPolicy": _GKE,
    "HealthCheckPolicy": _GKE,
    "PodMonitor": _MONITORING,
    "ServiceMonitor": _MONITORING,
    "PrometheusRule": _MONITORING,
}
"""Of every kind that is rendered but Namespace. Secrets are not: nobody deletes them by mistake."""

_IN_THE_NAMESPACE = tuple(kind for kind in API_VERSIONS if kind != "PersistentVolume")
_SERVERS = ("managedFields", "resourceVersion", "generation", "uid", "creationTimestamp")
"""Metadata that the API server writes by itself."""


def selector(spec: ClusterSpec) -> str:
    """The label selector of a cluster's objects and pods.

    Without the application's name, which KubeRay writes anew on pods.
    """
    return f"app.kubernetes.io/managed-by=tandem,{CLUSTER_LABEL}={spec.name}"


@dataclass(frozen=True)
class Owned:
    """What there is of a cluster, as far as this account may look."""

    objects: list[Manifest]
    """Without its Namespace, its token and what operators made of them."""

    unseen: list[str]
    """What it may not look at, a sentence each: there may be more."""


def owned(kubernetes: Kubernetes, spec: ClusterSpec) -> Owned:
    """The cluster's objects, in its namespace and outside.

    An account that may only work in the cluster's namespace gets what is there. Where it may not look, and
    the spec as it is puts nothing, nothing is said: it cannot have made anything there either.

    Raises:
        ClusterError: the API server does not answer.
    """
    objects: list[Manifest] = []
    unseen: list[str] = []
    outside = [one for one in places(spec) if one.namespace != spec.in_namespace]
    for place in [*(Place(kind, spec.in_namespace) for kind in _IN_THE_NAMESPACE), *outside]:
        api_version = API_VERSIONS[place.kind]
        if not kubernetes.has(api_version, place.kind):
            continue
        try:
            objects += _listed(kubernetes, spec, api_version, place)
        except Forbidden as error:
            unseen += [f"not looked at: {error}".rstrip(".")] if place.is_used else []
    return Owned(sorted(objects, key=_place), unseen)


def _listed(kubernetes: Kubernetes, spec: ClusterSpec, api_version: str, place: Place) -> list[Manifest]:
    wanted = selector(spec)
    if place.namespace not in (None, spec.in_namespace):
        # One of the same name in another namespace has its objects here, too.
        wanted += f",{NAMESPACE_LABEL}={spec.in_namespace}"
    found = kubernetes.list(api_version, place.kind, place.namespace, wanted)
    if place.namespace is None:
        found = [one for one in found if _is_for(spec, one)]
    # KubeRay copies the labels of a RayService to the clusters that it makes of it: they are not ours.
    return [one for one in found if not one["metadata"].get("ownerReferences")]


def _is_for(spec: ClusterSpec, volume: Manifest) -> bool:
    """Whether a volume is this cluster's, not that of one with the same name in another namespace."""
    claim = volume.get("spec", {}).get("claimRef") or {}
    return bool(claim.get("namespace") == spec.in_namespace)


def _place(one: Manifest) -> int:
    return APPLY_ORDER.index(one["kind"]) if one["kind"] in APPLY_ORDER else len(APPLY_ORDER)


def key(manifest: Manifest) -> tuple[str, str | None, str]:
    """What tells objects of one cluster apart: kind, namespace, name."""
    metadata = manifest["metadata"]
    return manifest["kind"], metadata.get("namespace"), metadata["name"]


def title(manifest: Manifest) -> str:
    """An object in a sentence: ``RayService lab-serve``."""
    return f"{manifest['kind']} {manifest['metadata']['name']}"


def live(kubernetes: Kubernetes, manifest: Manifest) -> Manifest | None:
    """The object as the cluster has it."""
    kind, namespace, name = key(manifest)
    return kubernetes.get(manifest["apiVersion"], kind, name, namespace)


def without_the_servers(manifest: Manifest) -> Manifest:
    """An object without what the API server and operators write: status, versions, managers."""
    kept = {field: copy.deepcopy(value) for field, value in manifest.items() if field != "status"}
    for field in _SERVERS:
        kept["metadata"].pop(field, None)
    return kept
