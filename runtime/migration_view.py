"""How ``tandem migrate time-slicing`` shows what is there: tables, and plain data for JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from runtime.show import print_table

if TYPE_CHECKING:
    from cluster.kubernetes.nodes_seen import NodeSeen
    from cluster.kubernetes.time_slicing import ConfigMapSeen, PodOnReplica, PolicySeen, Shared


def described(shared: Shared) -> dict[str, list[dict[str, Any]]]:
    """All that was found, by kind, as plain data."""
    return {
        "policies": [_policy(one) for one in shared.policies],
        "config_maps": [_config_map(one) for one in shared.config_maps],
        "nodes": [_node(one) for one in shared.nodes],
        "pods": [_pod(one) for one in shared.pods],
        "plugins": [asdict(one) for one in shared.plugins],
    }


def print_shared(shared: Shared) -> None:
    """Print what was found, a table for each kind that there is any of."""
    found = described(shared)
    titles = {
        "policies": ("ClusterPolicies", ["policy", "config", "default", "managed by"]),
        "config_maps": (
            "ConfigMaps of the device plugin",
            ["config map", "shares", "also sets", "managed by"],
        ),
        "nodes": ("Nodes", ["node", "sharing", "replicas", "GPUs", "offers", "config label", "cordoned"]),
        "pods": ("Pods on replicas", ["pod", "node", "holds", "made by"]),
    }
    for kind, (title, columns) in titles.items():
        if found[kind]:
            print_table(found[kind], columns, title=title)


def _policy(one: PolicySeen) -> dict[str, Any]:
    tool = one.keeper.tool if one.keeper else None
    return {"policy": one.name, "config": one.config, "default": one.default, "managed by": tool}


def _config_map(one: ConfigMapSeen) -> dict[str, Any]:
    return {
        "config map": f"{one.namespace}/{one.name}",
        "shares": "; ".join(f"{key}: {text}" for key, text in one.shares.items()),
        "also sets": "; ".join(f"{key}: {', '.join(words)}" for key, words in one.also.items()),
        "managed by": one.keeper.tool if one.keeper else None,
    }


def _node(node: NodeSeen) -> dict[str, Any]:
    from cluster.kubernetes.nodes_seen import PLUGIN_CONFIG_LABEL

    return {
        "node": node.name,
        "sharing": node.sharing,
        "replicas": node.replicas,
        "GPUs": _counts(node.whole_devices),
        "offers": _counts(node.gpus),
        "config label": node.labels.get(PLUGIN_CONFIG_LABEL),
        "cordoned": "yes" if node.cordoned else "no",
    }


def _pod(pod: PodOnReplica) -> dict[str, Any]:
    return {
        "pod": f"{pod.namespace}/{pod.name}",
        "node": pod.node,
        "holds": _counts(pod.reserves),
        "made by": pod.controller or "nobody: evicted, it is gone",
    }


def _counts(devices: Any) -> str:
    return ", ".join(f"{n} {name}" for name, n in devices.items())
