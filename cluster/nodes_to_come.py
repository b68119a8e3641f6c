"""Nodes that a cluster may still get: a spec that only they could hold waits for them, and is not refused.

Whoever starts a cluster that grows says so in the environment of its Ray processes, since Ray itself tells
nobody how large a cluster may become.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from cluster.inventory import Card, Inventory, Node
from cluster.node_groups import NodeGroup

VARIABLE = "TANDEM_NODES_TO_COME"


def nodes_to_come_env(groups: Iterable[NodeGroup]) -> dict[str, str]:
    """The variable for the Ray processes of a cluster with these groups."""
    told = [
        {
            "name": group.name,
            "count": group.max_nodes,
            "cpus": group.cpus,
            "memory_bytes": group.inventory_nodes()[0].memory_bytes,
            "cards": group.gpus,
            "card_bytes": group.card_bytes,
            "product": group.largest_product.nvml if group.largest_product else None,
            "accelerator_type": group.ray_accelerator_type,
        }
        for group in groups
        if group.max_nodes
    ]
    return {VARIABLE: json.dumps(told)}


def at_its_largest(living: Inventory) -> Inventory:
    """The living nodes, and those of this process's cluster that are not there yet."""
    return joined(living, groups_to_come())


def groups_to_come() -> list[dict[str, Any]]:
    """What the variable says; empty where the cluster does not grow."""
    return list(json.loads(os.environ.get(VARIABLE) or "[]"))


def joined(living: Inventory, groups: Iterable[Mapping[str, Any]]) -> Inventory:
    """``living``, with every group filled up to its largest number of nodes.

    Args:
        groups: As ``groups_to_come`` gives them.
    """
    there = Counter(_likeness(len(node.cards), node.accelerator_type, node.cpus) for node in living.nodes)
    nodes = list(living.nodes)
    for group in groups:
        likeness = _likeness(group["cards"], group["accelerator_type"], group["cpus"])
        known = min(there[likeness], group["count"])
        there[likeness] -= known
        nodes += [_node(group, number) for number in range(group["count"] - known)]
    return Inventory.of(nodes)


def _likeness(cards: int, accelerator_type: str | None, cpus: float) -> tuple[int, str | None, float]:
    return cards, accelerator_type if cards else None, cpus


def _node(group: Mapping[str, Any], number: int) -> Node:
    cards = tuple(
        Card(index, group["card_bytes"], group["product"] or group["accelerator_type"])
        for index in range(group["cards"])
    )
    name = f"{group['name']}-to-come-{number}"
    return Node(name, group["cpus"], group["memory_bytes"], cards, group["accelerator_type"])
