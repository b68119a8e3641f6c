"""What of the rendered objects is applied beside what is there already, and why the rest is not."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.cluster_spec import ClusterSpec
from cluster.kubernetes.access import pod_security
from cluster.kubernetes.client import Kubernetes
from cluster.kubernetes.endpoint import endpoint_name, endpoint_service
from cluster.kubernetes.names import CLUSTER_LABEL, cluster_name, service_name
from cluster.kubernetes.refusals import Forbidden
from cluster.kubernetes.submission import head_name, head_service
from cluster.kubernetes.workloads import Manifest

MADE_BY_US = "tandem.dev/made"
"""Annotation of a namespace that was not there before: it is ours to label, and may go with the cluster."""

_RAY = "ray.io/v1"


def fitted(
    kubernetes: Kubernetes, spec: ClusterSpec, manifests: Sequence[Manifest]
) -> tuple[list[Manifest], list[str]]:
    """The objects to apply, and a sentence about each that is left as it is.

    A namespace of somebody else's keeps its labels: what it enforces would hold for their pods too. And where
    apps serve already, an apply without their specs does not turn the door to another cluster.

    Raises:
        ClusterError: the API server refuses or does not answer.
    """
    kept, notes = list(manifests), []
    if any(_is_namespace(one, spec) for one in kept) and not _is_ours(kubernetes, spec):
        kept = [one for one in kept if not _is_namespace(one, spec)]
        notes.append(
            f"Namespace {spec.in_namespace} was there before and stays as it is; it must let in pods of the "
            f"standard {pod_security(spec)!r}"
        )
    if any(one["kind"] == "RayService" for one in kept):
        return kept, notes + _cluster_in_the_way(kubernetes, spec, kept)
    if not _there(kubernetes, "RayService", service_name(spec), spec):
        return kept, notes
    served = [_to_the_apps(one, spec) for one in kept if not _would_move_the_door(one, spec)]
    if len(served) < len(kept):
        notes.append(
            f"RayService {service_name(spec)} serves already, so its endpoint stays as it is. Give its serve "
            "specs, too, to change it, or delete it first"
        )
    return served, notes


def is_there(kubernetes: Kubernetes, namespace: str) -> bool:
    """Whether there is such a namespace. One that this account may not read is taken to be there."""
    try:
        return kubernetes.get("v1", "Namespace", namespace) is not None
    except Forbidden:
        return True


def _is_namespace(manifest: Manifest, spec: ClusterSpec) -> bool:
    return bool(manifest["kind"] == "Namespace" and manifest["metadata"]["name"] == spec.in_namespace)


def _is_ours(kubernetes: Kubernetes, spec: ClusterSpec) -> bool:
    """Whether there is no such namespace, or one that an apply of this very cluster made."""
    try:
        found = kubernetes.get("v1", "Namespace", spec.in_namespace)
    except Forbidden:
        # Whoever may not read it did not make it.
        return False
    if found is None:
        return True
    metadata = found["metadata"]
    holder = (metadata.get("labels") or {}).get(CLUSTER_LABEL, spec.name)
    return MADE_BY_US in (metadata.get("annotations") or {}) and holder == spec.name


def _to_the_apps(manifest: Manifest, spec: ClusterSpec) -> Manifest:
    """Jobs alone are rendered for the cluster for all; where apps serve, they go into theirs."""
    is_head = (manifest["kind"], manifest["metadata"]["name"]) == ("Service", head_name(spec))
    return head_service(spec, "serving") if is_head else manifest


def _would_move_the_door(manifest: Manifest, spec: ClusterSpec) -> bool:
    doors = (endpoint_name(spec), endpoint_service(spec, has_apps=False))
    is_door = manifest["metadata"]["name"] in doors
    is_idle_cluster = manifest["kind"] == "RayCluster" and spec.training.cluster != "shared"
    return is_door or is_idle_cluster


def _cluster_in_the_way(
    kubernetes: Kubernetes, spec: ClusterSpec, manifests: Sequence[Manifest]
) -> list[str]:
    """A RayCluster that was applied without specs has one pod on each node, where the apps' pods would be."""
    is_rendered = any(one["kind"] == "RayCluster" for one in manifests)
    if is_rendered or not _there(kubernetes, "RayCluster", cluster_name(spec), spec):
        return []
    return [
        f"RayCluster {cluster_name(spec)} is no longer rendered and holds its nodes: the RayService may wait "
        "for them. End it with --prune"
    ]


def _there(kubernetes: Kubernetes, kind: str, name: str, spec: ClusterSpec) -> bool:
    return kubernetes.has(_RAY, kind) and kubernetes.get(_RAY, kind, name, spec.in_namespace) is not None
