"""Preflight: whether the nodes can hold what the node groups ask for. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.cluster_spec import ClusterSpec
from cluster.kubernetes import affinity
from cluster.kubernetes.findings import Finding, Level
from cluster.kubernetes.names import CLUSTER_LABEL
from cluster.kubernetes.nodes_seen import NodeSeen, taint_text, tolerated
from cluster.kubernetes.pods_seen import full_name, gpus_reserved, has_ended, node_of, reserved_by_daemons
from cluster.kubernetes.quantities import cpu_quantity
from cluster.kubernetes.volumes import pod_storage
from cluster.kubernetes.workloads import Manifest
from cluster.node_groups import HeadGroup, NodeGroup

_GPU = "nvidia.com/gpu"
_NAMED = 3
"""So many nodes or pods are named in a finding."""


@dataclass(frozen=True)
class _Asked:
    """What a pod needs of its node."""

    amounts: Mapping[str, float]
    selector: Mapping[str, str]
    tolerations: Sequence[Mapping[str, str]]
    products: Sequence[str] = ()


def check_nodes(
    spec: ClusterSpec, nodes: Sequence[NodeSeen], pods: Sequence[Manifest], *, more_come: bool
) -> list[Finding]:
    """One finding or more for the head, for each node group, and for each GPU product.

    Args:
        more_come: Whether a cluster autoscaler adds nodes: then too few are no error.
    """
    kept = reserved_by_daemons(pods)
    found = [_head(spec, nodes, kept, more_come)]
    for group in spec.node_groups:
        found += _group(spec, group, nodes, kept, more_come)
    found += _products(spec, nodes, more_come)
    return found + _taken(spec, nodes, pods)


def _head(
    spec: ClusterSpec, nodes: Sequence[NodeSeen], kept: Mapping[str, Mapping[str, float]], more_come: bool
) -> Finding:
    head: HeadGroup = spec.head
    asked = _Asked(
        {"cpu": head.cpus, "memory": float(head.memory)},
        pod_storage(spec).node_selector | head.node_labels,
        [affinity.toleration(one) for one in head.tolerations],
    )
    what = f"the head ({cpu_quantity(head.cpus)} CPUs, {_gib(head.memory)})"
    return _fitting("head", what, 1, asked, nodes, kept, more_come)


def _group(
    spec: ClusterSpec,
    group: NodeGroup,
    nodes: Sequence[NodeSeen],
    kept: Mapping[str, Mapping[str, float]],
    more_come: bool,
) -> list[Finding]:
    amounts = {"cpu": group.cpus, "memory": float(group.memory)} | ({_GPU: group.gpus} if group.gpus else {})
    asked = _Asked(
        amounts,
        pod_storage(spec).node_selector | affinity.node_selector(spec, group),
        affinity.tolerations(spec, group),
        affinity.products(group.accelerator_type) if group.accelerator_type else (),
    )
    gpus = f", {group.gpus} {group.accelerator_type}" if group.gpus else ""
    what = f"a pod of node group {group.name} ({cpu_quantity(group.cpus)} CPUs, {_gib(group.memory)}{gpus})"
    found = [_fitting(f"group {group.name}", what, group.min_nodes, asked, nodes, kept, more_come)]
    return found + _taints(group, asked, nodes)


def _fitting(
    topic: str,
    what: str,
    wanted: int,
    asked: _Asked,
    nodes: Sequence[NodeSeen],
    kept: Mapping[str, Mapping[str, float]],
    more_come: bool,
) -> Finding:
    """Whether enough nodes could hold a pod each, were they empty but for daemons."""
    whys = {node.name: _why_not(node, asked, kept.get(node.name, {})) for node in nodes}
    fits = [name for name, why in whys.items() if why is None]
    seen = f"{len(fits)} of {len(nodes)} nodes can hold {what}; {wanted} wanted"
    if len(fits) >= max(1, wanted):
        return Finding("ok", topic, f"{seen}.")
    reasons = Counter(why for why in whys.values() if why)
    why = "; ".join(f"{_nodes(n)} {reason}" for reason, n in reasons.most_common(4))
    level: Level = "warning" if more_come or len(fits) >= wanted else "error"
    return Finding(
        level,
        topic,
        f"{seen}. {why[:1].upper()}{why[1:]}." if why else f"{seen}.",
        "Its pods would stay Pending"
        + (" until the cluster autoscaler adds nodes that can hold them." if more_come else "."),
        f"Change {'the group' if asked.products else topic} in the spec to what nodes have, or add nodes.",
    )


def _why_not(node: NodeSeen, asked: _Asked, kept: Mapping[str, float]) -> str | None:
    """Why a node cannot hold such a pod, in words that follow "2 nodes"; None where it can."""
    if not node.ready:
        return "not ready"
    if node.cordoned:
        return "cordoned"
    if asked.products:
        if node.product not in asked.products:
            return f"without the label nvidia.com/gpu.product={' or '.join(asked.products)}"
        if node.sharing:
            return f"with {node.sharing} on"
    for key, value in asked.selector.items():
        if node.labels.get(key) != value:
            return f"without the label {key}={value}"
    for taint in node.taints:
        if not tolerated(taint, asked.tolerations):
            return f"with the taint {taint_text(taint)}, which is not tolerated"
    return _too_small(node, asked.amounts, kept)


def _too_small(node: NodeSeen, amounts: Mapping[str, float], kept: Mapping[str, float]) -> str | None:
    for name, amount in amounts.items():
        left = node.allocatable.get(name, 0.0) - kept.get(name, 0.0)
        if left < amount:
            beside = " beside its DaemonSets' pods" if kept.get(name) else ""
            return f"with only {_amount(name, left)} to give{beside}"
    return None


def _taints(group: NodeGroup, asked: _Asked, nodes: Sequence[NodeSeen]) -> list[Finding]:
    """GPUs of the group's product that its pods cannot reach for a taint."""
    if not asked.products:
        return []
    found: dict[str, list[str]] = {}
    for node in nodes:
        for taint in node.taints:
            if node.product in asked.products and not tolerated(taint, asked.tolerations):
                found.setdefault(taint_text(taint), []).append(node.name)
    return [
        Finding(
            "warning",
            f"group {group.name}",
            f"{_some(names)} of its product {'has' if len(names) == 1 else 'have'} the taint {taint}.",
            "The group does not tolerate it, so no pod of it runs there.",
            f"If they are meant for it, add to the group: tolerations: [{_toleration(taint)}]",
        )
        for taint, names in found.items()
    ]


def _toleration(taint: str) -> str:
    key_value, _, effect = taint.rpartition(":")
    key, equal, value = key_value.partition("=")
    middle = f"operator: Equal, value: {value}, " if equal else ""
    return f"{{key: {key}, {middle}effect: {effect}}}"


def _products(spec: ClusterSpec, nodes: Sequence[NodeSeen], more_come: bool) -> list[Finding]:
    """GPUs of each product against all groups' least together."""
    wanted: Counter[tuple[str, ...]] = Counter()
    for group in spec.node_groups:
        if group.accelerator_type:
            wanted[tuple(affinity.products(group.accelerator_type))] += group.min_nodes * group.gpus
    return [_product(names, n, nodes, more_come) for names, n in wanted.items()]


def _product(names: Sequence[str], wanted: int, nodes: Sequence[NodeSeen], more_come: bool) -> Finding:
    mine = [node for node in nodes if node.product in names]
    there = sum(node.gpus.get(_GPU, 0) for node in mine if not node.sharing)
    sliced = [node.name for node in mine if node.sharing]
    product = " or ".join(names)
    seen = f"{there} whole GPUs on {_nodes(len(mine) - len(sliced))}; the node groups' least is {wanted}."
    seen += f" {_some(sliced)} with sharing on are not counted." if sliced else ""
    if other := _devices(mine):
        seen += f" Besides: {other}, which pods that ask for nvidia.com/gpu do not get."
    if there >= wanted:
        return Finding("ok", product, seen)
    return Finding(
        "warning" if more_come else "error",
        product,
        seen,
        f"{wanted - there} are missing, so pods stay Pending"
        + (" until the cluster autoscaler adds nodes." if more_come else "."),
        "Lower count or min of the groups, or add nodes.",
    )


def _devices(nodes: Sequence[NodeSeen]) -> str:
    """Devices under other names: MIG's "mixed" strategy, renamed replicas."""
    total: Counter[str] = Counter()
    for node in nodes:
        total.update({name: n for name, n in node.gpus.items() if name != _GPU})
    return ", ".join(f"{n} {name}" for name, n in sorted(total.items()))


def _taken(spec: ClusterSpec, nodes: Sequence[NodeSeen], pods: Sequence[Manifest]) -> list[Finding]:
    """GPUs of the groups' products that pods of others hold now."""
    products = {
        name
        for group in spec.node_groups
        if group.accelerator_type
        for name in affinity.products(group.accelerator_type)
    }
    # On a shared node they hold replicas, and none of the GPUs that are counted here.
    mine = {node.name for node in nodes if node.product in products and not node.sharing}
    holders = {
        full_name(pod): gpus_reserved(pod).get(_GPU, 0)
        for pod in pods
        if node_of(pod) in mine
        and not has_ended(pod)
        and (pod["metadata"].get("labels") or {}).get(CLUSTER_LABEL) != spec.name
    }
    held = {name: n for name, n in holders.items() if n}
    if not held:
        return []
    return [
        Finding(
            "warning",
            "GPUs in use",
            f"{sum(held.values())} GPUs are held by {_some(list(held), 'pods')}.",
            "As long as they hold them, pods of this cluster wait.",
        )
    ]


def _nodes(count: int) -> str:
    return f"{count} node{'' if count == 1 else 's'}"


def _some(names: Sequence[str], kind: str = "nodes") -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    word = kind if len(names) != 1 else kind.removesuffix("s")
    return f"{word} {', '.join(names[:_NAMED])}{more}"


def _gib(size_bytes: float) -> str:
    return f"{size_bytes / 2**30:.4g} GiB"


def _amount(name: str, amount: float) -> str:
    if name == "memory":
        return _gib(max(0.0, amount))
    return f"{max(0.0, amount):.4g} {'CPUs' if name == 'cpu' else name}"
