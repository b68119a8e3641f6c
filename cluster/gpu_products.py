"""The GPU products of a cluster, counted from what its nodes hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

_PREFIX = "accelerator_type:"


def gpus_by_product(nodes: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """GPUs of each product, such as ``{"A100": 8.0, "L4": 2.0}``.

    Args:
        nodes: The resources of each living node, as Ray has them:
            ``{"GPU": 4.0, "accelerator_type:A100": 1.0}``. Ray says that a node has a product, not how many.
    """
    found: dict[str, float] = {}
    for node in nodes:
        for name in node:
            if name.startswith(_PREFIX) and node.get("GPU"):
                product = name.removeprefix(_PREFIX)
                found[product] = found.get(product, 0.0) + node["GPU"]
    return found
