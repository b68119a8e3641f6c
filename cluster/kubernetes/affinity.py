"""Which nodes the pods of a node group may be on: the GPU's product, tolerations, one Ray pod a node."""

from __future__ import annotations

import re
from typing import Any

from cluster.cluster_spec import ClusterSpec
from cluster.gpus import catalogue, find
from cluster.kubernetes.names import CLUSTER_LABEL, ROLE_LABEL, pod_labels
from cluster.node_groups import NodeGroup, Toleration
from runtime.core.errors import ConfigError

_PRODUCT = "nvidia.com/gpu.product"
_SHARING = "nvidia.com/gpu.sharing-strategy"
_LABEL_VALUE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_GKE_SPOT = "cloud.google.com/gke-spot"


def products(accelerator_type: str) -> list[str]:
    """The products that an ``accelerator_type`` means, as the label ``nvidia.com/gpu.product`` has them.

    Ray's ``A100`` means several: their nodes have one word for Ray, and what is promised holds on all. A MIG
    slice has the label that the device plugin's "single" strategy gives, and is an ``nvidia.com/gpu``.

    Raises:
        ConfigError: it is not in the catalogue, and no label can be spelled so.
    """
    least, most = find(accelerator_type), find(accelerator_type, largest=True)
    if least is None or most is None:
        return [_label_of(accelerator_type)]
    if least == most:
        return [least.kubernetes]
    sizes = range(least.memory_bytes, most.memory_bytes + 1)
    return sorted(gpu.kubernetes for gpu in catalogue() if gpu.ray == least.ray and gpu.memory_bytes in sizes)


def node_selector(spec: ClusterSpec, group: NodeGroup) -> dict[str, str]:
    """Labels that a node must have for this group's pods."""
    return dict(group.node_labels) | ({_GKE_SPOT: "true"} if _is_gke_spot(spec, group) else {})


def tolerations(spec: ClusterSpec, group: NodeGroup) -> list[dict[str, Any]]:
    """Taints that a group's pods put up with: of GPU nodes, of GKE's spot nodes, and the spec's."""
    found: list[dict[str, Any]] = []
    if group.gpus:
        found.append({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"})
    if _is_gke_spot(spec, group):
        found.append({"key": _GKE_SPOT, "operator": "Equal", "value": "true", "effect": "NoSchedule"})
    return found + [written for given in group.tolerations if (written := toleration(given)) not in found]


def toleration(given: Toleration) -> dict[str, Any]:
    """One of the spec's tolerations, as a pod has it."""
    return given.model_dump(exclude_none=True)


def affinity(spec: ClusterSpec, group: NodeGroup) -> dict[str, Any]:
    """Whole GPUs of the group's product, and no second Ray worker of this cluster on the node."""
    found: dict[str, Any] = {"podAntiAffinity": {_REQUIRED: [_alone(spec)]}}
    if group.accelerator_type:
        terms = [{"matchExpressions": _whole_gpus(group.accelerator_type)}]
        found["nodeAffinity"] = {_REQUIRED: {"nodeSelectorTerms": terms}}
    return found


def spread(spec: ClusterSpec) -> list[dict[str, Any]]:
    """Serving pods over nodes and zones, where there is a choice: a lost zone takes few replicas with it."""
    ours = {"matchLabels": pod_labels(spec, part="serving", role="worker")}
    return [
        {
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": ours,
        }
        for key in ("topology.kubernetes.io/zone", "kubernetes.io/hostname")
    ]


_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


def _alone(spec: ClusterSpec) -> dict[str, Any]:
    # By our own labels: those of KubeRay name one Ray cluster, and an upgrade or a job makes another.
    ours = {CLUSTER_LABEL: spec.name, ROLE_LABEL: "worker"}
    return {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": ours}}


def _whole_gpus(accelerator_type: str) -> list[dict[str, Any]]:
    """Without the product one job's workers land on different products; without the strategy on a share of a
    GPU: while time-slicing is on, a node's ``nvidia.com/gpu`` are turns on one card."""
    return [
        {"key": _PRODUCT, "operator": "In", "values": products(accelerator_type)},
        {"key": _SHARING, "operator": "NotIn", "values": ["time-slicing", "mps"]},
    ]


def _label_of(accelerator_type: str) -> str:
    """As NVIDIA's feature discovery makes a label of a product's name."""
    label = accelerator_type.replace(" ", "-")
    if not _LABEL_VALUE.fullmatch(label):
        raise ConfigError(
            f"accelerator_type is {accelerator_type!r}, which is not in the catalogue and cannot be the "
            "value of the nodes' label. Copy that: kubectl get nodes -L nvidia.com/gpu.product."
        )
    return label


def _is_gke_spot(spec: ClusterSpec, group: NodeGroup) -> bool:
    return group.spot and spec.provider == "gke"
