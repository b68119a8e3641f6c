"""What a cluster has outside its namespace: which kinds, where, and the field that puts them there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cluster.cluster_spec import ClusterSpec
from cluster.kubernetes.names import labels
from cluster.kubernetes.refusals import Forbidden, NoSuchNamespace
from cluster.kubernetes.workloads import Manifest
from runtime.core.errors import ClusterError

NAMESPACE_LABEL = "tandem.dev/namespace"
"""Of objects in others' namespaces: that of their cluster, for another one may have a cluster of its name."""

_HASH_CHARS = 8


@dataclass(frozen=True)
class Place:
    """Where a cluster has objects of a kind."""

    kind: str
    namespace: str | None
    """None: the kind is in no namespace."""

    is_used: bool = True
    """Whether the spec as it is puts any there; before, it may have."""

    field: str = ""
    """The field that names the namespace."""

    make: str = ""
    """What makes that namespace, by what lives in it."""

    without: str = ""
    """What to write to do without."""


def places(spec: ClusterSpec) -> list[Place]:
    """All of them outside the cluster's namespace, used or not."""
    seen = spec.monitoring
    nfs = spec.store.nfs
    return [
        Place(
            "PersistentVolume",
            None,
            is_used=nfs is not None and nfs.server is not None,
            field="store.nfs.server",
            without="store.nfs.claim and a claim that is there",
        ),
        Place(
            "ConfigMap",
            seen.namespace,
            is_used=seen.enabled and seen.dashboards,
            field="monitoring.namespace",
            make="Grafana's, which reads the dashboards there",
            without="monitoring.dashboards: false",
        ),
        Place(
            "ServiceMonitor",
            seen.dcgm_namespace,
            is_used=seen.enabled and seen.dcgm,
            field="monitoring.dcgm_namespace",
            make="the GPU operator's, whose DCGM exporter is looked for there",
            without="monitoring.dcgm: false",
        ),
    ]


def labels_there(spec: ClusterSpec, namespace: str) -> dict[str, str]:
    """The labels of an object of ours in ``namespace``."""
    if namespace == spec.in_namespace:
        return labels(spec)
    return labels(spec) | {NAMESPACE_LABEL: spec.in_namespace}


def stem(spec: ClusterSpec) -> str:
    """What the names of objects in others' namespaces begin with: no two clusters have the same.

    The cluster's name where its namespace is called so. Else a mark of the namespace follows: the two names
    side by side could be another cluster's name.
    """
    if spec.in_namespace == spec.name:
        return spec.name
    mark = hashlib.sha256(f"{spec.in_namespace}/{spec.name}".encode()).hexdigest()[:_HASH_CHARS]
    return f"{spec.name}-{mark}"


@contextmanager
def explained(spec: ClusterSpec, manifest: Manifest) -> Iterator[None]:
    """Refusals of an object in another namespace name the field that puts it there, and what to do."""
    try:
        yield
    except (NoSuchNamespace, Forbidden) as error:
        place = next((one for one in places(spec) if _is_in(one, manifest, spec)), None)
        if place is None:
            raise
        if isinstance(error, NoSuchNamespace):
            raise ClusterError(missing(place)) from None
        raise Forbidden(
            f"{error} {place.field} puts it there; to do without, write {place.without}."
        ) from None


def missing(place: Place) -> str:
    """The sentence about a namespace that is not there."""
    return (
        f"{place.field} is {place.namespace!r}, and there is no such namespace. It would be {place.make}. "
        f"{remedy(place)}"
    )


def remedy(place: Place) -> str:
    """What to do about a namespace that is not there."""
    return (
        f"Name the right one as {place.field}, write {place.without}, or make it: kubectl create namespace "
        f"{place.namespace}"
    )


def _is_in(place: Place, manifest: Manifest, spec: ClusterSpec) -> bool:
    namespace = manifest["metadata"].get("namespace")
    return (place.kind, place.namespace) == (manifest["kind"], namespace) and namespace != spec.in_namespace
