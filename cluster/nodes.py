"""The inventory of a cluster, from what Ray says of its nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.gpus import find
from cluster.inventory import Card, Inventory, Node

_PREFIX = "accelerator_type:"


def node_of(node_id: str, resources: Mapping[str, Any], *, address: str = "") -> Node:
    """One node.

    Several products may answer to Ray's word (``A100``: 40 or 80 GB): its cards are taken for the largest, so
    that nothing is refused which they may hold. The ledger reads NVML, and has the last word.

    Args:
        resources: All that it has, as Ray tells it: ``{"CPU": 8.0, "GPU": 2.0, "memory": 3e10,
            "accelerator_type:A100": 1.0}``. GPUs without an accelerator type are logical: ``--num-gpus`` on a
            machine that has none.
    """
    accelerator_type = next(
        (name.removeprefix(_PREFIX) for name in sorted(resources) if name.startswith(_PREFIX)), None
    )
    count, memory_bytes = int(resources.get("GPU", 0)), int(resources.get("memory", 0))
    gpu = find(accelerator_type, largest=True) if accelerator_type else None
    card_bytes: int | None = memory_bytes // max(1, count)
    if accelerator_type is not None:
        card_bytes = gpu.memory_bytes if gpu else None
    return Node(
        node_id=node_id,
        cpus=float(resources.get("CPU", 0)),
        memory_bytes=memory_bytes,
        cards=tuple(Card(index, card_bytes, gpu.nvml if gpu else None) for index in range(count)),
        accelerator_type=accelerator_type if count else None,
        address=address,
    )


def inventory_of(nodes: list[dict[str, Any]]) -> Inventory:
    """The living nodes of Ray's state API: ``state``, ``node_id``, ``node_ip``, ``resources_total``."""
    return Inventory.of(
        node_of(node["node_id"], node["resources_total"] or {}, address=node.get("node_ip") or "")
        for node in nodes
        if node["state"] == "ALIVE"
    )
