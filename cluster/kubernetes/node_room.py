"""Whether a node, but for daemons empty, can hold a pod, and if not why. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.kubernetes.nodes_seen import NodeSeen, taint_text, tolerated

GPU = "nvidia.com/gpu"


@dataclass(frozen=True)
class Asked:
    """What a pod needs of its node."""

    amounts: Mapping[str, float]
    selector: Mapping[str, str]
    tolerations: Sequence[Mapping[str, str]]
    products: Sequence[str] = ()


def why_not(node: NodeSeen, asked: Asked, kept: Mapping[str, float]) -> str | None:
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


def gib(size_bytes: float) -> str:
    """A size in a sentence."""
    return f"{size_bytes / 2**30:.4g} GiB"


def _amount(name: str, amount: float) -> str:
    if name == "memory":
        return gib(max(0.0, amount))
    return f"{max(0.0, amount):.4g} {'CPUs' if name == 'cpu' else name}"
