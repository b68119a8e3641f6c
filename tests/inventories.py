"""Clusters as data, for plans that need one."""

from __future__ import annotations

from collections.abc import Mapping

from cluster.inventory import Inventory
from cluster.nodes import node_of

GIB = 1 << 30


def nodes(*resources: Mapping[str, float], product: str | None = "A100", memory_gib: float = 16) -> Inventory:
    """One node for each of ``resources``, in Ray's names: ``{"CPU": 8, "GPU": 2}``.

    Args:
        product: Ray's word for the cards of nodes that name none of their own; None: logical cards.
    """
    found = []
    for number, node in enumerate(resources):
        named = any(name.startswith("accelerator_type:") for name in node)
        typed = {f"accelerator_type:{product}": 1.0} if product and node.get("GPU") and not named else {}
        found.append(node_of(f"node-{number}", {"memory": memory_gib * GIB, **node, **typed}))
    return Inventory.of(found)
