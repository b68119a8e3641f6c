"""Preflight: whether head, the least number of workers and a submitter find nodes at the same time. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.kubernetes.findings import Finding
from cluster.kubernetes.node_room import Asked, why_not
from cluster.kubernetes.nodes_seen import NodeSeen

Able = dict[str, frozenset[str]]
"""By node, the groups of which it can hold a pod."""


@dataclass(frozen=True)
class Wanted:
    """Pods that are alike."""

    name: str
    """``head``, ``submitter``, or the node group's."""

    what: str
    """One of them, in a sentence."""

    count: int
    asked: Asked


def check_together(
    head: Wanted,
    groups: Sequence[Wanted],
    nodes: Sequence[NodeSeen],
    kept: Mapping[str, Mapping[str, float]],
    *,
    more_come: bool,
) -> list[Finding]:
    """All at once on nodes that are empty but for daemons: one Ray worker on each, and the head beside one or
    alone. Nothing where no group has pods from the beginning.

    Args:
        kept: By node, what its daemons reserve.
    """
    count = sum(group.count for group in groups)
    if not count:
        return []
    left = _left_over([head], groups, nodes, kept)
    if not left:
        return [Finding("ok", "together", f"the head and {count} workers, the groups' least, fit at once.")]
    wanted = {group.name: group.count for group in groups}
    because_of_the_head = not _left_over([], groups, nodes, kept)
    told = " and ".join(f"{n} of {wanted[name]} pods of node group {name}" for name, n in left.items())
    return [
        Finding(
            "warning" if more_come else "error",
            "together",
            f"each fits, but not all at once: {told} would find no node"
            + (f" once {head.what} has one." if because_of_the_head else "."),
            "A node has one Ray worker of this cluster, whatever its group, and the head beside it only "
            "where both fit. Pods stay Pending"
            + (" until the cluster autoscaler adds nodes." if more_come else "."),
            "Lower cpus and memory of the group or of head, lower the groups' count or min, or add nodes.",
        )
    ]


def check_submitter(
    submitter: Wanted,
    head: Wanted,
    groups: Sequence[Wanted],
    nodes: Sequence[NodeSeen],
    kept: Mapping[str, Mapping[str, float]],
    *,
    more_come: bool,
) -> Finding:
    """Whether the pod that submits a training job finds a node beside all these, which fit at once.

    No error: it comes with a job, and a cluster may have none.

    Args:
        kept: By node, what its daemons reserve.
    """
    count = sum(group.count for group in groups)
    workers = f"{count} workers" if count > 1 else "1 worker"
    beside = f"beside the head and {workers}, the groups' least" if count else "beside the head"
    if _left_over([head, submitter], groups, nodes, kept) == {}:
        return Finding("ok", submitter.name, f"{submitter.what} finds a node {beside}.")
    return Finding(
        "warning",
        submitter.name,
        f"{submitter.what} would find no node {beside}.",
        "A training job's first pod would stay Pending, and the job with it"
        + (", until the cluster autoscaler adds a node." if more_come else "."),
        "Lower cpus and memory of a group or of head, or add a node that the head could be on as well: the "
        "submitter has head.node_labels and head.tolerations.",
    )


def _left_over(
    beside: Sequence[Wanted],
    groups: Sequence[Wanted],
    nodes: Sequence[NodeSeen],
    taken: Mapping[str, Mapping[str, float]],
) -> dict[str, int] | None:
    """How many pods of which groups have no node, wherever the pods ``beside`` workers are.

    Args:
        taken: By node, what nobody else can have.

    Returns:
        None where a pod of ``beside`` has no node either way.
    """
    if not beside:
        return unplaced(groups, {node.name: _able(node, groups, taken.get(node.name, {})) for node in nodes})
    first, others = beside[0], beside[1:]
    # Nodes that are alike in what they can hold are one choice.
    choices: dict[tuple[object, object], dict[str, Mapping[str, float]]] = {}
    for node in nodes:
        before = taken.get(node.name, {})
        if why_not(node, first.asked, before) is None:
            after = _with(first, before)
            alike = _holds(node, others, groups, before), _holds(node, others, groups, after)
            choices[alike] = {node.name: after}
    best: dict[str, int] | None = None
    for choice in choices.values():
        left = _left_over(others, groups, nodes, {**taken, **choice})
        if left is not None and (best is None or sum(left.values()) < sum(best.values())):
            best = left
        if best == {}:
            break
    return best


def _holds(
    node: NodeSeen, beside: Sequence[Wanted], groups: Sequence[Wanted], taken: Mapping[str, float]
) -> tuple[object, ...]:
    """The groups whose pods it can hold, with and without each of ``beside``."""
    if not beside:
        return (_able(node, groups, taken),)
    without = _holds(node, beside[1:], groups, taken)
    if why_not(node, beside[0].asked, taken) is not None:
        return (without,)
    return (without, _holds(node, beside[1:], groups, _with(beside[0], taken)))


def _with(pod: Wanted, taken: Mapping[str, float]) -> dict[str, float]:
    return {**taken, **{name: taken.get(name, 0.0) + amount for name, amount in pod.asked.amounts.items()}}


def _able(node: NodeSeen, groups: Sequence[Wanted], taken: Mapping[str, float]) -> frozenset[str]:
    return frozenset(group.name for group in groups if why_not(node, group.asked, taken) is None)


def unplaced(groups: Sequence[Wanted], able: Able) -> dict[str, int]:
    """The pods that find no node, by group, in the best of all ways to give each node to one pod."""
    holder: dict[str, str] = {}

    def place(name: str, asking: set[str]) -> bool:
        """Give the group one node more: a free one, or one whose group can have another for it."""
        asking.add(name)
        mine = [node for node, names in able.items() if name in names]
        # Free ones first, which a stable sort brings to the front.
        for node in sorted(mine, key=lambda one: one in holder):
            if node not in holder or (holder[node] not in asking and place(holder[node], asking)):
                holder[node] = name
                return True
        return False

    left = {group.name: sum(not place(group.name, set()) for _ in range(group.count)) for group in groups}
    return {name: count for name, count in left.items() if count}
