"""Preflight: whether the head and the least number of workers find nodes at the same time. Pure."""

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
    """``head``, or the node group's."""

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
    left, because_of_the_head = _left_over(head, groups, nodes, kept)
    if not left:
        return [Finding("ok", "together", f"the head and {count} workers, the groups' least, fit at once.")]
    wanted = {group.name: group.count for group in groups}
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


def _left_over(
    head: Wanted,
    groups: Sequence[Wanted],
    nodes: Sequence[NodeSeen],
    kept: Mapping[str, Mapping[str, float]],
) -> tuple[dict[str, int], bool]:
    """How many pods of which groups have no node, wherever the head is, and whether that is for the head."""
    alone = {node.name: _able(node, groups, kept.get(node.name, {})) for node in nodes}
    without_head = unplaced(groups, alone)
    # Nodes that are alike in this are one choice.
    choices: dict[tuple[frozenset[str], frozenset[str]], str] = {}
    for node in nodes:
        taken = kept.get(node.name, {})
        if why_not(node, head.asked, taken) is None:
            beside = {name: taken.get(name, 0.0) + amount for name, amount in head.asked.amounts.items()}
            choices[alone[node.name], _able(node, groups, {**taken, **beside})] = node.name
    tries = (unplaced(groups, alone | {node: beside}) for (_, beside), node in choices.items())
    best = min(tries, key=lambda left: sum(left.values()))
    return best, not without_head


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
