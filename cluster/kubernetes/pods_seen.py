"""A pod as Kubernetes tells of it: what it reserves, of which node, and who brings it back. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cluster.kubernetes.nodes_seen import number
from cluster.kubernetes.workloads import Manifest

_MIRROR = "kubernetes.io/config.mirror"


def full_name(pod: Manifest) -> str:
    """``namespace/name``."""
    return f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"


def node_of(pod: Manifest) -> str | None:
    """The node it is on; None while it waits for one."""
    return (pod.get("spec") or {}).get("nodeName")


def has_ended(pod: Manifest) -> bool:
    """Whether all its processes ended: it reserves nothing any more."""
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def reserved(pod: Manifest) -> dict[str, float]:
    """What it reserves, by resource: all containers together, or the largest that runs before them."""
    spec = pod.get("spec") or {}
    before = spec.get("initContainers") or []
    stays = [one for one in before if one.get("restartPolicy") == "Always"]
    total = _sum(_requests(one) for one in [*(spec.get("containers") or []), *stays])
    for one in before:
        for name, amount in _requests(one).items():
            total[name] = max(total.get(name, 0.0), amount)
    return total


def gpus_reserved(pod: Manifest) -> dict[str, int]:
    """GPUs, MIG devices or replicas of them that it reserves, by resource."""
    return {name: int(n) for name, n in reserved(pod).items() if name.startswith("nvidia.com/") and n}


def controller(pod: Manifest) -> str | None:
    """Who made it and would make it again, as ``ReplicaSet/web-5d9``; None for a pod made by hand."""
    for owner in pod["metadata"].get("ownerReferences") or []:
        if owner.get("controller"):
            return f"{owner['kind']}/{owner['name']}"
    return None


def stays_on_its_node(pod: Manifest) -> bool:
    """Whether eviction is no use: a DaemonSet's pod, or the image of one that the kubelet runs by itself."""
    daemon = (controller(pod) or "").startswith("DaemonSet/")
    return daemon or _MIRROR in (pod["metadata"].get("annotations") or {})


def reserved_by_daemons(pods: Sequence[Manifest]) -> dict[str, dict[str, float]]:
    """By node, what pods reserve that every pod of ours must fit beside."""
    found: dict[str, list[Mapping[str, float]]] = {}
    for pod in pods:
        if (node := node_of(pod)) and not has_ended(pod) and stays_on_its_node(pod):
            found.setdefault(node, []).append(reserved(pod))
    return {node: _sum(parts) for node, parts in found.items()}


def _requests(container: Mapping[str, Any]) -> dict[str, float]:
    resources = container.get("resources") or {}
    # Where only a limit is given, the API server takes it for the request.
    wanted = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    return {name: number(quantity) for name, quantity in wanted.items()}


def _sum(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)  # type: ignore[arg-type]
    return dict(total)
