"""Preflight: who offers the GPUs, whole or shared, and under which names. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.cluster_spec import ClusterSpec
from cluster.kubernetes.findings import Finding
from cluster.kubernetes.nodes_seen import GKE_PRODUCT_LABEL, PLUGIN_CONFIG_LABEL, NodeSeen
from cluster.kubernetes.time_slicing import is_device_plugin, on_gke, policy_seen
from cluster.kubernetes.workloads import Manifest


def check_gpus(
    spec: ClusterSpec,
    nodes: Sequence[NodeSeen],
    policies: Sequence[Manifest],
    daemonsets: Sequence[Manifest],
) -> list[Finding]:
    """Device plugin, product labels, sharing; empty where no group has GPUs.

    Args:
        policies: ClusterPolicies of NVIDIA's operator.
    """
    if not any(group.gpus for group in spec.node_groups):
        return []
    return [
        _plugin(nodes, policies, daemonsets),
        *_labels(nodes),
        *_sharing(nodes),
        *_configs(nodes, policies),
    ]


def _plugin(
    nodes: Sequence[NodeSeen], policies: Sequence[Manifest], daemonsets: Sequence[Manifest]
) -> Finding:
    if policies:
        states = {
            one["metadata"]["name"]: (one.get("status") or {}).get("state", "unknown") for one in policies
        }
        seen = "ClusterPolicy " + ", ".join(f"{name} ({state})" for name, state in states.items())
        if "ready" in states.values():
            return Finding("ok", "GPU operator", f"{seen}.")
        return Finding(
            "warning",
            "GPU operator",
            f"{seen}.",
            "Until it is ready, nodes may offer no GPUs.",
            "Look at its pods: kubectl get pods --all-namespaces --selector app.kubernetes.io/managed-by="
            "gpu-operator",
        )
    plugins = [one["metadata"]["name"] for one in daemonsets if is_device_plugin(one)]
    if plugins or any(GKE_PRODUCT_LABEL in node.labels for node in nodes):
        seen = f"device plugin without the operator: {', '.join(plugins) or 'that of GKE'}."
        return Finding("ok", "GPU operator", seen)
    return Finding(
        "error",
        "GPU operator",
        "no ClusterPolicy, and no DaemonSet with NVIDIA's device plugin.",
        "Without either, nodes offer no nvidia.com/gpu and GPU pods stay Pending.",
        "helm install gpu-operator nvidia/gpu-operator --namespace gpu-operator --create-namespace",
    )


def _labels(nodes: Sequence[NodeSeen]) -> list[Finding]:
    offering = [node for node in nodes if node.gpus]
    without = [node.name for node in offering if node.product is None]
    if not without:
        return [Finding("ok", "product labels", f"{len(offering)} nodes with GPUs, all labelled.")]
    return [
        Finding(
            "error",
            "product labels",
            f"{len(without)} of {len(offering)} nodes with GPUs lack nvidia.com/gpu.product: "
            f"{', '.join(without[:3])}.",
            "Pods choose their nodes by it, so that one job is on one GPU product.",
            "Run GPU feature discovery: gfd.enabled in the GPU operator, or gfd.enabled=true of the chart "
            "nvidia-device-plugin.",
        )
    ]


def _sharing(nodes: Sequence[NodeSeen]) -> list[Finding]:
    shared = [node for node in nodes if node.sharing]
    if not shared:
        return [Finding("ok", "time-slicing", "no node shares its GPUs by time-slicing or MPS.")]
    gke = {node.name for node in on_gke(shared)}
    remedy = "tandem migrate time-slicing"
    if gke:
        remedy = "On GKE a node pool's sharing is fixed: make a pool without it, and delete the other."
    return [
        Finding(
            "error",
            "time-slicing",
            "; ".join(f"{node.name}: {node.sharing} ({', '.join(node.sharing_signs)})" for node in shared),
            "Each nvidia.com/gpu there is a turn on a card, with no memory of its own. Our pods keep off "
            "such nodes, and Tandem's own shares need whole cards.",
            remedy,
        )
    ]


def _configs(nodes: Sequence[NodeSeen], policies: Sequence[Manifest]) -> list[Finding]:
    """A config or a label that may turn sharing on, though no node shows it yet."""
    if any(node.sharing for node in nodes):
        return []
    seen = [one for one in (policy_seen(policy, None) for policy in policies) if one.config]
    labelled = [node.name for node in nodes if PLUGIN_CONFIG_LABEL in node.labels]
    said = [f"ClusterPolicy {one.name} has devicePlugin.config {one.config}" for one in seen]
    said += [f"nodes with the label {PLUGIN_CONFIG_LABEL}: {', '.join(labelled[:3])}"] if labelled else []
    if not said:
        return []
    return [
        Finding(
            "warning",
            "time-slicing",
            "; ".join(said) + ".",
            "No node shares its GPUs now, but such a config can make it so.",
            "tandem migrate time-slicing shows what is in it.",
        )
    ]
