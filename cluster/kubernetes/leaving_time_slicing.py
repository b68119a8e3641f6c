"""The way out of time-slicing and MPS: what is done, in which order, and kubectl's words for each step. Pure.

Pods leave first, since a device plugin without its replicas does not end what holds one. Every step looks at
what is there, so a plan that is made anew after an interruption is the rest of the first.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from cluster.kubernetes.nodes_seen import PLUGIN_CONFIG_LABEL, STRATEGY_LABEL, NodeSeen
from cluster.kubernetes.time_slicing import CORDONED_BY_US, PodOnReplica, Shared, on_gke

Verb = Literal["cordon", "evict", "clear", "unlabel", "delete", "wait", "uncordon"]
POLICY_KIND = ("nvidia.com/v1", "ClusterPolicy")
CLEARED: dict[str, Any] = {"spec": {"devicePlugin": {"config": None}}}
"""The merge patch. An empty name instead of null would leave ``default`` behind."""
WAIT_S = 600


@dataclass(frozen=True)
class Step:
    """One thing that is done."""

    verb: Verb
    name: str
    """Of the node, pod, policy or ConfigMap."""

    title: str
    commands: tuple[str, ...]
    """The same by hand."""

    namespace: str | None = None
    pod: PodOnReplica | None = None
    """For ``evict``."""

    policy: str | None = None
    """For ``delete``: the ClusterPolicy that named the ConfigMap."""

    config_map: str | None = None
    """For ``clear``: ``namespace/name`` of the ConfigMap that is deleted afterwards, if it is there."""


def plan(shared: Shared, *, context: str | None = None) -> list[Step]:
    """All that is left to do, in order; empty where nothing is.

    Args:
        context: The kubeconfig's context, for the commands.
    """
    steps = _Steps(shared, context)
    return [
        *steps.cordons(),
        *steps.evictions(),
        *steps.clearings(),
        *steps.unlabellings(),
        *steps.deletions(),
        *steps.waits(),
        *steps.uncordons(),
    ]


def bare_pods(shared: Shared) -> list[PodOnReplica]:
    """Pods on replicas that nobody would make anew."""
    return [pod for pod in shared.pods if pod.controller is None and pod.node in sliced_names(shared)]


def sliced_names(shared: Shared) -> set[str]:
    """Nodes that are shared by what the plan takes away: GKE's node pools are not."""
    if not shared.to_leave:
        return set()
    elsewhere = {node.name for node in on_gke(shared.nodes)}
    return {node.name for node in shared.nodes if node.sharing} - elsewhere


class _Steps:
    """The steps of one plan."""

    def __init__(self, shared: Shared, context: str | None) -> None:
        self._shared = shared
        self._context = context
        self._sliced = sliced_names(shared)

    def cordons(self) -> Iterator[Step]:
        for node in self._nodes():
            if node.name in self._sliced and not node.cordoned:
                yield Step(
                    "cordon",
                    node.name,
                    f"Keep new pods off node {node.name}",
                    (self._kubectl("cordon", node.name),),
                )

    def evictions(self) -> Iterator[Step]:
        for pod in self._shared.pods:
            if pod.node in self._sliced:
                back = f"{pod.controller} makes it anew" if pod.controller else "nobody makes it anew"
                yield Step(
                    "evict",
                    pod.name,
                    f"Evict pod {pod.namespace}/{pod.name} from node {pod.node}; {back}",
                    (self._eviction(pod),),
                    namespace=pod.namespace,
                    pod=pod,
                )

    def clearings(self) -> Iterator[Step]:
        for policy in self._shared.policies:
            if self._shared.shares(policy):
                patch = json.dumps(CLEARED, separators=(",", ":"))
                command = self._kubectl(
                    "patch", f"clusterpolicies.nvidia.com/{policy.name}", "--type=merge", "--patch", patch
                )
                yield Step(
                    "clear",
                    policy.name,
                    f"Clear spec.devicePlugin.config ({policy.config}) of ClusterPolicy {policy.name}",
                    (command,),
                    config_map=self._shared.place_of(policy),
                )

    def unlabellings(self) -> Iterator[Step]:
        if not _labels_mean_nothing_afterwards(self._shared):
            return
        for node in self._nodes():
            if value := node.labels.get(PLUGIN_CONFIG_LABEL):
                yield Step(
                    "unlabel",
                    node.name,
                    f"Remove the label {PLUGIN_CONFIG_LABEL}={value} of node {node.name}",
                    (self._kubectl("label", "node", node.name, f"{PLUGIN_CONFIG_LABEL}-"),),
                )

    def deletions(self) -> Iterator[Step]:
        for policy in self._shared.policies:
            here = self._shared.place_of(policy) if self._shared.shares(policy) else None
            for place in dict.fromkeys(one for one in (policy.left, here) if one):
                namespace, _, name = place.partition("/")
                words = ("delete", "configmap", name, "--namespace", namespace, "--ignore-not-found")
                yield Step(
                    "delete",
                    name,
                    f"Delete ConfigMap {place}",
                    (self._kubectl(*words),),
                    namespace=namespace,
                    policy=policy.name,
                )

    def waits(self) -> Iterator[Step]:
        for node in self._worked_on():
            yield Step(
                "wait",
                node.name,
                f"Wait until node {node.name} offers {_devices(node)}, each once",
                tuple(self._wait_commands(node)),
            )

    def uncordons(self) -> Iterator[Step]:
        for node in self._worked_on():
            if CORDONED_BY_US in node.annotations or not node.cordoned:
                yield Step(
                    "uncordon",
                    node.name,
                    f"Let pods onto node {node.name} again",
                    (self._kubectl("uncordon", node.name),),
                )

    def _nodes(self) -> Iterable[NodeSeen]:
        return self._shared.nodes

    def _worked_on(self) -> list[NodeSeen]:
        return [
            node for node in self._nodes() if node.name in self._sliced or CORDONED_BY_US in node.annotations
        ]

    def _kubectl(self, *words: str) -> str:
        context = ("--context", self._context) if self._context else ()
        return shlex.join(("kubectl", *context, *words))

    def _eviction(self, pod: PodOnReplica) -> str:
        """kubectl evicts only whole nodes (drain); one pod goes through the API's own address."""
        path = f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}/eviction"
        body = json.dumps(
            {
                "apiVersion": "policy/v1",
                "kind": "Eviction",
                "metadata": {"name": pod.name, "namespace": pod.namespace},
            }
        )
        return f"echo {shlex.quote(body)} | {self._kubectl('create', '--raw', path, '--filename', '-')}"

    def _wait_commands(self, node: NodeSeen) -> Iterator[str]:
        asked = {_label_path(STRATEGY_LABEL): "none"} if STRATEGY_LABEL in node.labels else {}
        asked |= {_allocatable_path(name): str(n) for name, n in node.whole_devices.items()}
        for path, value in asked.items():
            condition = f"--for=jsonpath={{{path}}}={value}"
            yield self._kubectl("wait", f"node/{node.name}", condition, f"--timeout={WAIT_S}s")


def _labels_mean_nothing_afterwards(shared: Shared) -> bool:
    """Whether no policy has a config any more that a node's label could choose from."""
    stays = any(policy.config and not shared.shares(policy) for policy in shared.policies)
    return bool(shared.policies) and not stays


def _devices(node: NodeSeen) -> str:
    found = [f"{n} {name}" for name, n in node.whole_devices.items()]
    return " and ".join(found) or "its GPUs"


def _label_path(label: str) -> str:
    return ".metadata.labels." + label.replace(".", r"\.")


def _allocatable_path(resource: str) -> str:
    return ".status.allocatable." + resource.replace(".", r"\.")
