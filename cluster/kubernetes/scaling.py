"""How many workers there are, where others decide it too: the autoscaler, and a RayService's operator.

A Ray cluster's worker groups are one field for the API server: whoever changes a replica owns all of them,
and who leaves out ``replicas`` sets it to 0. So we send back what the autoscaler decided, instead of leaving
it out.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from cluster.kubernetes.client import Kubernetes
from cluster.kubernetes.refusals import Changed, Conflicted
from cluster.kubernetes.workloads import Manifest

_CONFIG = {"RayCluster": (), "RayService": ("rayClusterConfig",), "RayJob": ("rayClusterSpec",)}
_OPERATORS = frozenset({"manager", "kuberay-operator", "python-requests"})
"""Field managers of KubeRay, also as its program is called, and of Ray's autoscaler, which uses requests."""
_TRIES = 5


def worker_groups(manifest: Manifest) -> list[dict[str, Any]]:
    """The worker groups of a RayCluster, RayService or RayJob; of other kinds none."""
    place: Any = manifest.get("spec") or {}
    for step in _CONFIG.get(manifest["kind"], ("",)):
        place = place.get(step) or {}
    return place.get("workerGroupSpecs") or []


def with_the_autoscalers(manifest: Manifest, live: Manifest | None) -> Manifest:
    """``manifest`` with what Ray's autoscaler decided in ``live``: replicas and who goes."""
    if live is None or not worker_groups(manifest):
        return manifest
    sent = copy.deepcopy(manifest)
    decided = {group["groupName"]: group for group in worker_groups(live)}
    for group in worker_groups(sent):
        before = decided.get(group["groupName"])
        if before and _autoscales(group):
            group["replicas"] = _within(group, before.get("replicas", group["replicas"]))
            if "scaleStrategy" in before:
                group["scaleStrategy"] = before["scaleStrategy"]
    return sent


def only_the_operators(refused: Conflicted) -> bool:
    """Whether the conflict is over worker groups alone, with KubeRay or the autoscaler alone.

    What they decided was sent back, so taking the field over undoes nothing of theirs.
    """
    return all(one.manager in _OPERATORS and one.field.endswith(".workerGroupSpecs") for one in refused.held)


def scale_running(kubernetes: Kubernetes, service: Manifest) -> list[str]:
    """Bring the worker groups of a RayService's running cluster to what ``service`` says.

    KubeRay hands changes of replicas, of their limits and of tolerations to new clusters only: the running
    one we patch ourselves.

    Args:
        service: The RayService as it was applied.

    Returns:
        What changed, a sentence each; empty where it runs no cluster, or one that is right.

    Raises:
        ClusterError: the API server refuses; Changed: others changed the cluster too often meanwhile.
    """
    for tries in range(_TRIES):
        try:
            return _scale_once(kubernetes, service)
        except Changed:
            # The autoscaler was faster: look again at what it decided.
            if tries == _TRIES - 1:
                raise
    return []


def _scale_once(kubernetes: Kubernetes, service: Manifest) -> list[str]:
    namespace = service["metadata"]["namespace"]
    running = kubernetes.get("ray.io/v1", "RayService", service["metadata"]["name"], namespace)
    name = running_cluster(running)
    cluster = kubernetes.get("ray.io/v1", "RayCluster", name, namespace) if name else None
    if name is None or cluster is None:
        return []
    groups, changes = scaled(worker_groups(cluster), worker_groups(service))
    if changes:
        version = {"resourceVersion": cluster["metadata"]["resourceVersion"]}
        body = {"metadata": version, "spec": {"workerGroupSpecs": groups}}
        kubernetes.patch("ray.io/v1", "RayCluster", name, body, namespace=namespace)
    return [f"the running RayCluster {name}: {change}" for change in changes]


def running_cluster(service: Manifest | None) -> str | None:
    """The name of the RayCluster that serves now."""
    active = ((service or {}).get("status") or {}).get("activeServiceStatus") or {}
    return active.get("rayClusterName") or None


def scaled(
    running: Iterable[dict[str, Any]], wanted: Iterable[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[str]]:
    """The running worker groups as they should be, and what that changes, in words."""
    groups, changes = copy.deepcopy(list(running)), []
    named = {group["groupName"]: group for group in wanted}
    for group in groups:
        wish = named.get(group["groupName"])
        for field, value in _wishes(group, wish).items() if wish else ():
            if group.get(field) != value:
                changes.append(f"group {group['groupName']}: {field} {group.get(field)} -> {value}")
                group[field] = value
        # Added, never taken away: queueing systems add their own to a running cluster.
        missing = [one for one in _tolerations(wish or {}) if one not in _tolerations(group)]
        if missing:
            changes.append(f"group {group['groupName']}: more tolerations (of pods made from now on)")
            group["template"]["spec"]["tolerations"] = [*_tolerations(group), *missing]
    return groups, changes


def _wishes(group: dict[str, Any], wish: dict[str, Any]) -> dict[str, int]:
    replicas = wish["replicas"]
    if _autoscales(wish):
        replicas = _within(wish, group.get("replicas", replicas))
    return {"minReplicas": wish["minReplicas"], "maxReplicas": wish["maxReplicas"], "replicas": replicas}


def _autoscales(group: dict[str, Any]) -> bool:
    return bool(group.get("minReplicas") != group.get("maxReplicas"))


def _within(group: dict[str, Any], replicas: int) -> int:
    return int(min(max(replicas, group["minReplicas"]), group["maxReplicas"]))


def _tolerations(group: dict[str, Any]) -> list[Any]:
    return ((group.get("template") or {}).get("spec") or {}).get("tolerations") or []
