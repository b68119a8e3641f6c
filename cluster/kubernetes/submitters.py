"""Pods that hand a training job to its Ray cluster and follow its log: how large, on which nodes."""

from __future__ import annotations

from typing import Any

from cluster.cluster_spec import ClusterSpec
from cluster.kubernetes import affinity
from cluster.kubernetes.volumes import pod_storage

SUBMITTER_CPUS = 0.5
SUBMITTER_MEMORY_BYTES = 2**30


def has_submitters(spec: ClusterSpec) -> bool:
    """Whether training jobs bring such a pod: else the operator submits them over HTTP."""
    if spec.training.cluster == "own":
        return spec.queueing.kind != "kai"
    return spec.training.cluster == "serving"


def submitter_selector(spec: ClusterSpec) -> dict[str, str]:
    """Labels that its node must have: the head's, and those of the store.

    It does not look at the store, but its account could: not with the node's identity either.
    """
    return pod_storage(spec).node_selector | spec.head.node_labels


def submitter_tolerations(spec: ClusterSpec) -> list[dict[str, Any]]:
    """The head's: where all nodes have GPUs, and a taint for them, no other node is left for either."""
    return [affinity.toleration(given) for given in spec.head.tolerations]


def submitter_place(spec: ClusterSpec) -> dict[str, Any]:
    """Both, as a pod has them."""
    selector, tolerations = submitter_selector(spec), submitter_tolerations(spec)
    return {
        **({"nodeSelector": selector} if selector else {}),
        **({"tolerations": tolerations} if tolerations else {}),
    }
