"""Leaving time-slicing, done: each step against the API server, and waiting for what it brings about."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from cluster.kubernetes.budgets_seen import blocking
from cluster.kubernetes.client import Kubernetes
from cluster.kubernetes.leaving_time_slicing import CLEARED, POLICY_KIND, Step
from cluster.kubernetes.nodes_seen import PLUGIN_CONFIG_LABEL, NodeSeen
from cluster.kubernetes.refusals import Blocked
from cluster.kubernetes.time_slicing import (
    CONFIG_LEFT,
    CORDONED_BY_US,
    ConfigMapSeen,
    PolicySeen,
    Shared,
    config_map_seen,
    nodes_concerned,
    operators_plugin_namespace,
    plugins_seen,
    pods_on_replicas,
    policy_seen,
)
from runtime.core.errors import ClusterError
from runtime.core.log import get_logger

_LOG = get_logger(__name__)
_LOOK_AGAIN_S = 1.0


class StillShared(ClusterError):
    """A node did not come to offer whole GPUs in time."""


def look(client: Kubernetes) -> Shared:
    """All that is there of time-slicing and MPS. Changes nothing.

    Raises:
        ClusterError: the API server does not answer or refuses to list nodes, pods or policies.
    """
    daemonsets = client.list("apps/v1", "DaemonSet")
    home = operators_plugin_namespace(daemonsets)
    found = client.list(*POLICY_KIND) if client.has(*POLICY_KIND) else []
    policies = tuple(policy_seen(one, home) for one in found)
    nodes = nodes_concerned(NodeSeen(one) for one in client.list("v1", "Node"))
    return Shared(
        policies=policies,
        config_maps=_config_maps(client, policies),
        nodes=nodes,
        pods=pods_on_replicas(client.list("v1", "Pod"), nodes),
        plugins=plugins_seen(daemonsets),
    )


def carry_out(
    client: Kubernetes, steps: Iterable[Step], *, timeout_s: float, on_step: Callable[[Step], None]
) -> None:
    """Do the steps in order. Stopped at any point, a new plan has what is left.

    A node that goes on sharing stays cordoned, and is told at the end: it does not keep the others waiting.

    Args:
        timeout_s: For each pod to leave and each node to offer whole GPUs.
        on_step: Called before each step.

    Raises:
        ClusterError: something did not come about in time, with what is in its way; or it was refused.
    """
    doing: dict[str, Callable[[Kubernetes, Step, float], None]] = {
        "cordon": _cordon,
        "evict": _evict,
        "clear": _clear,
        "unlabel": _unlabel,
        "delete": _delete,
        "wait": _wait,
        "uncordon": _uncordon,
    }
    failed: dict[str, StillShared] = {}
    for step in steps:
        if step.verb == "uncordon" and step.name in failed:
            continue
        on_step(step)
        try:
            doing[step.verb](client, step, timeout_s)
        except StillShared as error:
            failed[step.name] = error
    if failed:
        raise StillShared("\n".join(str(error) for error in failed.values()))


def _config_maps(client: Kubernetes, policies: Iterable[PolicySeen]) -> tuple[ConfigMapSeen, ...]:
    places = {f"{one.namespace}/{one.config}" for one in policies if one.namespace and one.config}
    found = (_config_map(client, place) for place in sorted(places))
    return tuple(config_map_seen(one) for one in found if one is not None)


def _config_map(client: Kubernetes, place: str) -> dict[str, Any] | None:
    namespace, _, name = place.partition("/")
    return client.get("v1", "ConfigMap", name, namespace)


def _cordon(client: Kubernetes, step: Step, _: float) -> None:
    # In one patch, so that no interruption leaves a cordon that nobody knows to be ours.
    mark = {"metadata": {"annotations": {CORDONED_BY_US: "true"}}, "spec": {"unschedulable": True}}
    client.patch("v1", "Node", step.name, mark)


def _uncordon(client: Kubernetes, step: Step, _: float) -> None:
    mark = {"metadata": {"annotations": {CORDONED_BY_US: None}}, "spec": {"unschedulable": None}}
    client.patch("v1", "Node", step.name, mark)


def _evict(client: Kubernetes, step: Step, timeout_s: float) -> None:
    asked = False

    def gone() -> bool:
        nonlocal asked
        if not asked and _is_there(client, step):
            asked = _asked_to_leave(client, step)
        return not _is_there(client, step)

    _until(gone, timeout_s, lambda: ClusterError(_why_it_stays(client, step, asked, timeout_s)))


def _is_there(client: Kubernetes, step: Step) -> bool:
    """Whether this very pod runs; a StatefulSet makes another of the same name."""
    found = client.get("v1", "Pod", step.name, step.namespace)
    return found is not None and step.pod is not None and found["metadata"].get("uid", "") == step.pod.uid


def _asked_to_leave(client: Kubernetes, step: Step) -> bool:
    try:
        client.evict(step.name, str(step.namespace))
    except Blocked as error:
        _LOG.info("%s/%s stays for now: %s", step.namespace, step.name, error)
        return False
    return True


def _why_it_stays(client: Kubernetes, step: Step, asked: bool, timeout_s: float) -> str:
    place = f"Pod {step.namespace}/{step.name}"
    if asked:
        return (
            f"{place} was asked to end and has not within {timeout_s:.0f} s. Look at "
            f"`kubectl describe pod {step.name} --namespace {step.namespace}`: a finalizer, or a long grace "
            "period. Then run the command again; it goes on from here."
        )
    labels = step.pod.labels if step.pod else {}
    budgets = client.list("policy/v1", "PodDisruptionBudget", step.namespace)
    names = ", ".join(blocking(budgets, labels)) or "unknown"
    return (
        f"{place} could not be evicted within {timeout_s:.0f} s: PodDisruptionBudget {names} allows no "
        "disruption now. Let more of its pods become ready (they may need another node), or change the "
        "budget. Then run the command again; it goes on from here."
    )


def _clear(client: Kubernetes, step: Step, _: float) -> None:
    # Which ConfigMap the config named is known to a later run only by this note.
    note = {"metadata": {"annotations": {CONFIG_LEFT: step.config_map}}} if step.config_map else {}
    client.patch(*POLICY_KIND, step.name, note | CLEARED)


def _unlabel(client: Kubernetes, step: Step, _: float) -> None:
    client.patch("v1", "Node", step.name, {"metadata": {"labels": {PLUGIN_CONFIG_LABEL: None}}})


def _delete(client: Kubernetes, step: Step, _: float) -> None:
    client.delete("v1", "ConfigMap", step.name, step.namespace)
    client.patch(*POLICY_KIND, str(step.policy), {"metadata": {"annotations": {CONFIG_LEFT: None}}})


def _wait(client: Kubernetes, step: Step, timeout_s: float) -> None:
    def seen() -> NodeSeen | None:
        found = client.get("v1", "Node", step.name)
        return NodeSeen(found) if found else None

    def whole() -> bool:
        node = seen()
        # A node that left the cluster has nothing to wait for.
        return node is None or node.whole

    _until(whole, timeout_s, lambda: StillShared(_why_it_shares(client, step, seen(), timeout_s)))


def _why_it_shares(client: Kubernetes, step: Step, node: NodeSeen | None, timeout_s: float) -> str:
    signs = ", ".join(node.sharing_signs) if node else ""
    counts = f"it offers {node.gpus} and has {node.physical}" if node else "it is gone"
    now = look(client)
    put_back = [policy.name for policy in now.policies if now.shares(policy)]
    if put_back:
        return (
            f"Node {step.name} is still shared ({signs}): somebody set spec.devicePlugin.config of "
            f"ClusterPolicy {', '.join(put_back)} again. Change it where it comes from (Helm, Argo CD, "
            "Flux), then run the command again."
        )
    return (
        f"Node {step.name} did not offer whole GPUs within {timeout_s:.0f} s: {signs or counts}. It stays "
        "cordoned. Look at the pods of the device plugin and of GPU feature discovery on it, then run the "
        "command again; it goes on from here."
    )


def _until(condition: Callable[[], bool], timeout_s: float, error: Callable[[], ClusterError]) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            raise error()
        time.sleep(_LOOK_AGAIN_S)
