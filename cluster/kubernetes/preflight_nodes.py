"""Preflight: whether the nodes can hold what the node groups ask for. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from cluster.cluster_spec import ClusterSpec
from cluster.kubernetes import affinity
from cluster.kubernetes.findings import Finding, Level
from cluster.kubernetes.names import CLUSTER_LABEL
from cluster.kubernetes.node_room import GPU, Asked, gib, why_not
from cluster.kubernetes.nodes_seen import NodeSeen, taint_text, tolerated
from cluster.kubernetes.pods_seen import full_name, gpus_reserved, has_ended, node_of, reserved_by_daemons
from cluster.kubernetes.preflight_placing import Wanted, check_submitter, check_together
from cluster.kubernetes.quantities import cpu_quantity
from cluster.kubernetes.submitters import (
    SUBMITTER_CPUS,
    SUBMITTER_MEMORY_BYTES,
    has_submitters,
    submitter_selector,
    submitter_tolerations,
)
from cluster.kubernetes.volumes import pod_storage
from cluster.kubernetes.workloads import Manifest
from cluster.node_groups import HeadGroup, NodeGroup

_NAMED = 3
"""So many nodes or pods are named in a finding."""


def check_nodes(
    spec: ClusterSpec, nodes: Sequence[NodeSeen], pods: Sequence[Manifest], *, more_come: bool
) -> list[Finding]:
    """One finding or more for the head, for each node group, for all together, and for each GPU product.

    Args:
        more_come: Whether a cluster autoscaler adds nodes: then too few are no error.
    """
    kept = reserved_by_daemons(pods)
    head = _head(spec)
    groups = [_pod(spec, group) for group in spec.node_groups]
    found = [_fitting("head", head, nodes, kept, more_come)]
    each_fits = found[0].level == "ok"
    for group in groups:
        alone = _fitting(f"group {group.name}", group, nodes, kept, more_come)
        each_fits &= alone.level == "ok" or not group.count
        found += [alone, *_taints(group, nodes)]
    if each_fits:
        together = check_together(head, groups, nodes, kept, more_come=more_come)
        found += together
        if has_submitters(spec) and all(one.level == "ok" for one in together):
            found.append(check_submitter(_submitter(spec), head, groups, nodes, kept, more_come=more_come))
    found += _products(spec, nodes, more_come)
    return found + _taken(spec, nodes, pods)


def _head(spec: ClusterSpec) -> Wanted:
    head: HeadGroup = spec.head
    asked = Asked(
        {"cpu": head.cpus, "memory": float(head.memory)},
        pod_storage(spec).node_selector | head.node_labels,
        [affinity.toleration(one) for one in head.tolerations],
    )
    return Wanted("head", f"the head ({cpu_quantity(head.cpus)} CPUs, {gib(head.memory)})", 1, asked)


def _submitter(spec: ClusterSpec) -> Wanted:
    asked = Asked(
        {"cpu": SUBMITTER_CPUS, "memory": float(SUBMITTER_MEMORY_BYTES)},
        submitter_selector(spec),
        submitter_tolerations(spec),
    )
    size = f"{SUBMITTER_CPUS:g} CPUs, {gib(SUBMITTER_MEMORY_BYTES)}"
    return Wanted("submitter", f"the submitter of a training job ({size})", 1, asked)


def _pod(spec: ClusterSpec, group: NodeGroup) -> Wanted:
    """The least number of pods of a node group."""
    amounts = {"cpu": group.cpus, "memory": float(group.memory)} | ({GPU: group.gpus} if group.gpus else {})
    asked = Asked(
        amounts,
        pod_storage(spec).node_selector | affinity.node_selector(spec, group),
        affinity.tolerations(spec, group),
        affinity.products(group.accelerator_type) if group.accelerator_type else (),
    )
    gpus = f", {group.gpus} {group.accelerator_type}" if group.gpus else ""
    what = f"a pod of node group {group.name} ({cpu_quantity(group.cpus)} CPUs, {gib(group.memory)}{gpus})"
    return Wanted(group.name, what, group.min_nodes, asked)


def _fitting(
    topic: str,
    wanted: Wanted,
    nodes: Sequence[NodeSeen],
    kept: Mapping[str, Mapping[str, float]],
    more_come: bool,
) -> Finding:
    """Whether enough nodes could hold a pod each, were they empty but for daemons."""
    whys = {node.name: why_not(node, wanted.asked, kept.get(node.name, {})) for node in nodes}
    fits = [name for name, why in whys.items() if why is None]
    seen = f"{len(fits)} of {len(nodes)} nodes can hold {wanted.what}; {wanted.count} wanted"
    if len(fits) >= max(1, wanted.count):
        return Finding("ok", topic, f"{seen}.")
    reasons = Counter(why for why in whys.values() if why)
    why = "; ".join(f"{_nodes(n)} {reason}" for reason, n in reasons.most_common(4))
    level: Level = "warning" if more_come or len(fits) >= wanted.count else "error"
    field = "the group" if wanted.asked.products else topic
    return Finding(
        level,
        topic,
        f"{seen}. {why[:1].upper()}{why[1:]}." if why else f"{seen}.",
        "Its pods would stay Pending"
        + (" until the cluster autoscaler adds nodes that can hold them." if more_come else "."),
        f"Change {field} in the spec to what nodes have, or add nodes.",
    )


def _taints(group: Wanted, nodes: Sequence[NodeSeen]) -> list[Finding]:
    """GPUs of the group's product that its pods cannot reach for a taint."""
    asked = group.asked
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
    there = sum(node.gpus.get(GPU, 0) for node in mine if not node.sharing)
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
        total.update({name: n for name, n in node.gpus.items() if name != GPU})
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
        full_name(pod): gpus_reserved(pod).get(GPU, 0)
        for pod in pods
        if node_of(pod) in mine and not has_ended(pod) and not _is_ours(pod, spec)
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


def _is_ours(pod: Manifest, spec: ClusterSpec) -> bool:
    metadata = pod["metadata"]
    label = (metadata.get("labels") or {}).get(CLUSTER_LABEL)
    return (metadata["namespace"], label) == (spec.in_namespace, spec.name)


def _nodes(count: int) -> str:
    return f"{count} node{'' if count == 1 else 's'}"


def _some(names: Sequence[str], kind: str = "nodes") -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    word = kind if len(names) != 1 else kind.removesuffix("s")
    return f"{word} {', '.join(names[:_NAMED])}{more}"
