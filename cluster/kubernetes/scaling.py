"""How many workers there are, where others decide it too: the autoscaler, and a RayService's operator.

A Ray cluster's worker groups are one field for the API server: whoever changes a replica owns all of them,
and who leaves out ``replicas`` sets it to 0. So we send back what the autoscaler decided, instead of leaving
it out.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Rescaled:
    """A Ray cluster of a RayService whose worker groups are not what the service says."""

    before: Manifest
    after: Manifest
    told: list[str]
    """What changes, a sentence each."""


def rescaled(kubernetes: Kubernetes, service: Manifest) -> list[Rescaled]:
    """What is to change in the clusters that a RayService has, the one that serves and the one that starts.

    KubeRay hands changes of replicas, of their limits and of tolerations to clusters that it makes from then
    on: those that are there we change ourselves.

    Args:
        service: The RayService as it is applied.

    Raises:
        ClusterError: the API server refuses or does not answer.
    """
    namespace = service["metadata"]["namespace"]
    live = kubernetes.get("ray.io/v1", "RayService", service["metadata"]["name"], namespace)
    found = []
    for word, name in (("running", running_cluster(live)), ("starting", starting_cluster(live))):
        cluster = kubernetes.get("ray.io/v1", "RayCluster", name, namespace) if name else None
        if cluster is None:
            continue
        groups, changes = scaled(worker_groups(cluster), worker_groups(service))
        if changes:
            after = {**cluster, "spec": {**cluster["spec"], "workerGroupSpecs": groups}}
            whole = f"the {word} RayCluster {name}: "
            changes += outgrown(worker_groups(cluster), groups)
            found.append(Rescaled(cluster, after, [whole + change for change in changes]))
    return found


def scale_running(kubernetes: Kubernetes, service: Manifest) -> list[str]:
    """Bring the worker groups of a RayService's clusters to what ``service`` says.

    Args:
        service: The RayService as it was applied.

    Returns:
        What changed, a sentence each; empty where it has no cluster, or all are right.

    Raises:
        ClusterError: the API server refuses; Changed: others changed a cluster too often meanwhile.
    """
    told: list[str] = []
    for tries in range(_TRIES):
        try:
            for one in rescaled(kubernetes, service):
                _change(kubernetes, one)
                told += one.told
            break
        except Changed:
            # The autoscaler was faster: look again at what it decided.
            if tries == _TRIES - 1:
                raise
    return told


def _change(kubernetes: Kubernetes, one: Rescaled) -> None:
    metadata = one.before["metadata"]
    body = {
        "metadata": {"resourceVersion": metadata["resourceVersion"]},
        "spec": {"workerGroupSpecs": worker_groups(one.after)},
    }
    kubernetes.patch("ray.io/v1", "RayCluster", metadata["name"], body, namespace=metadata["namespace"])


def outgrown(before: Iterable[dict[str, Any]], after: Iterable[dict[str, Any]]) -> list[str]:
    """A sentence about each group that may become larger than the head of a running cluster was told.

    The head has that number in its environment, which no process reads a second time.
    """
    told = {group["groupName"]: group.get("maxReplicas", 0) for group in before}
    return [
        f"group {name}: the head was told {told.get(name, 0)} nodes at most when it began, and refuses what "
        f"only {most} could hold until they are there, or until its pod is made anew"
        for name, most in ((group["groupName"], group["maxReplicas"]) for group in after)
        if most > told.get(name, 0)
    ]


def running_cluster(service: Manifest | None) -> str | None:
    """The name of the RayCluster that serves now."""
    return _cluster_in(service, "activeServiceStatus")


def starting_cluster(service: Manifest | None) -> str | None:
    """The name of the RayCluster that will serve: of the first start, or of an upgrade."""
    return _cluster_in(service, "pendingServiceStatus")


def _cluster_in(service: Manifest | None, place: str) -> str | None:
    found = ((service or {}).get("status") or {}).get(place) or {}
    return found.get("rayClusterName") or None


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
