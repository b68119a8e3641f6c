"""What there is of a cluster: the objects that carry its labels, in the order in which they are applied."""

from __future__ import annotations

import copy

from cluster.cluster_spec import ClusterSpec
from cluster.kubernetes.client import Kubernetes
from cluster.kubernetes.names import CLUSTER_LABEL
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

_SERVERS = ("managedFields", "resourceVersion", "generation", "uid", "creationTimestamp")
"""Metadata that the API server writes by itself."""


def selector(spec: ClusterSpec) -> str:
    """The label selector of a cluster's objects and pods.

    Without the application's name, which KubeRay writes anew on pods.
    """
    return f"app.kubernetes.io/managed-by=tandem,{CLUSTER_LABEL}={spec.name}"


def owned(kubernetes: Kubernetes, spec: ClusterSpec) -> list[Manifest]:
    """The cluster's objects, without its Namespace, its token and what operators made of them.

    Raises:
        ClusterError: the API server refuses or does not answer.
    """
    found = [
        one
        for kind, api_version in API_VERSIONS.items()
        if kubernetes.has(api_version, kind)
        for one in _of_kind(kubernetes, spec, api_version, kind)
    ]
    return sorted(found, key=_place)


def _of_kind(kubernetes: Kubernetes, spec: ClusterSpec, api_version: str, kind: str) -> list[Manifest]:
    if kind == "PersistentVolume":
        return [one for one in _listed(kubernetes, spec, api_version, kind, None) if _is_for(spec, one)]
    places = {spec.in_namespace, spec.monitoring.namespace, spec.monitoring.dcgm_namespace}
    return [one for place in sorted(places) for one in _listed(kubernetes, spec, api_version, kind, place)]


def _listed(
    kubernetes: Kubernetes, spec: ClusterSpec, api_version: str, kind: str, namespace: str | None
) -> list[Manifest]:
    found = kubernetes.list(api_version, kind, namespace, selector(spec))
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
