"""Claims that end without their data: the volume is told to outlive its claim first."""

from __future__ import annotations

from cluster.kubernetes.client import Kubernetes
from cluster.kubernetes.workloads import Manifest


def keep_data(kubernetes: Kubernetes, claim: Manifest) -> str | None:
    """Set the reclaim policy of a claim's volume to Retain, before the claim is deleted.

    A volume that a storage class made is deleted with its claim, and every model, dataset and run on it.

    Returns:
        A sentence where the policy was another; None where there is no volume, or it stays anyway.

    Raises:
        ClusterError: the API server refuses: then the claim must stay, too.
    """
    name = (claim.get("spec") or {}).get("volumeName")
    volume = kubernetes.get("v1", "PersistentVolume", name) if name else None
    if volume is None or volume["spec"].get("persistentVolumeReclaimPolicy") == "Retain":
        return None
    body = {"spec": {"persistentVolumeReclaimPolicy": "Retain"}}
    kubernetes.patch("v1", "PersistentVolume", str(name), body)
    return f"PersistentVolume {name} and its data stay: its reclaim policy is now Retain"
