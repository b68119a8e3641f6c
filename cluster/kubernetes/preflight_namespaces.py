"""Preflight: namespaces of others, in which a cluster's dashboards and monitors would be."""

from __future__ import annotations

from cluster.cluster_spec import ClusterSpec
from cluster.kubernetes.client import Kubernetes
from cluster.kubernetes.elsewhere import Place, places, remedy
from cluster.kubernetes.findings import Finding
from cluster.kubernetes.refusals import Forbidden


def check_namespaces(client: Kubernetes, spec: ClusterSpec) -> list[Finding]:
    """Each namespace besides the cluster's own, by the field that names it; its own an apply makes."""
    wanted = [one for one in places(spec) if one.is_used and one.namespace not in (None, spec.in_namespace)]
    return [_namespace(client, one) for one in wanted]


def _namespace(client: Kubernetes, place: Place) -> Finding:
    try:
        found = client.get("v1", "Namespace", str(place.namespace))
    except Forbidden as error:
        return Finding("warning", place.field, f"could not be looked at: {error}")
    if found is not None:
        return Finding("ok", place.field, f"Namespace {place.namespace} is there.")
    return Finding(
        "error",
        place.field,
        f"there is no namespace {place.namespace}.",
        f"It would be {place.make}, and the API server takes no {place.kind} without it.",
        f"{remedy(place)}.",
    )
