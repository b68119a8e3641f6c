"""A cluster with time-slicing, for tests: its objects as NVIDIA's operator leaves them, and its operator."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.servers.kubernetes_api import Cluster

Json = dict[str, Any]
HOME, CONFIG = "nvidia-system", "slices"
"""Neither is called as in NVIDIA's documentation: nothing may count on that."""

FOUR = """
version: v1
flags:
  migStrategy: none
sharing:
  timeSlicing:
    resources:
    - name: nvidia.com/gpu
      replicas: 4
"""


def node(
    name: str,
    *,
    gpus: int = 2,
    replicas: int = 1,
    product: str = "NVIDIA-L4",
    labels: dict[str, str] | None = None,
    cordoned: bool = False,
    taints: list[Json] | None = None,
    cpu: str = "8",
    memory: str = "32Gi",
) -> Json:
    """A ready node, labelled as GPU feature discovery does; without GPUs where ``gpus`` is 0."""
    shared = replicas > 1
    found = {
        "nvidia.com/gpu.product": f"{product}-SHARED" if shared else product,
        "nvidia.com/gpu.count": str(gpus),
        "nvidia.com/gpu.replicas": str(replicas),
        "nvidia.com/gpu.sharing-strategy": "time-slicing" if shared else "none",
    }
    devices = {"nvidia.com/gpu": str(gpus * replicas)} if gpus else {}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": (found if gpus else {}) | (labels or {})},
        "spec": ({"unschedulable": True} if cordoned else {}) | ({"taints": taints} if taints else {}),
        "status": {
            "allocatable": {"cpu": cpu, "memory": memory, **devices},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def pod(
    name: str,
    on: str,
    *,
    gpus: int = 1,
    owner: str | None = "ReplicaSet/web",
    labels: dict[str, str] | None = None,
    resource: str = "nvidia.com/gpu",
    cpu: str = "1",
) -> Json:
    """A running pod that holds GPUs of a node."""
    kind, _, owned_by = (owner or "").partition("/")
    owners = [{"apiVersion": "apps/v1", "kind": kind, "name": owned_by, "uid": "u", "controller": True}]
    amounts = {"cpu": cpu} | ({resource: str(gpus)} if gpus else {})
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "default",
            "labels": labels or {},
            "ownerReferences": owners if owner else [],
        },
        "spec": {"nodeName": on, "containers": [{"name": "c", "resources": {"limits": amounts}}]},
        "status": {"phase": "Running"},
    }


def policy(
    name: str = "cluster-policy",
    *,
    config: str | None = CONFIG,
    default: str | None = "any",
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
) -> Json:
    """A ClusterPolicy of NVIDIA's GPU operator."""
    plugin: Json = {"enabled": True}
    if config:
        plugin["config"] = {"name": config} | ({"default": default} if default else {})
    return {
        "apiVersion": "nvidia.com/v1",
        "kind": "ClusterPolicy",
        "metadata": {"name": name, "labels": labels or {}, "annotations": annotations or {}},
        "spec": {"devicePlugin": plugin, "driver": {"enabled": True}},
        "status": {"state": "ready", "namespace": HOME},
    }


def config_map(name: str = CONFIG, **data: str) -> Json:
    """The device plugin's configs."""
    place = {"name": name, "namespace": HOME}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": place, "data": data or {"any": FOUR}}


def slice_up(cluster: Cluster) -> None:
    """Two nodes with 2 GPUs in 4 replicas each, one of them chosen by a label, and one with whole GPUs."""
    cluster.install("gpu-operator")
    cluster.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": HOME}})
    cluster.put(policy())
    cluster.put(config_map())
    cluster.put(node("gpu-1", replicas=4, labels={"nvidia.com/device-plugin.config": "any"}))
    cluster.put(node("gpu-2", replicas=4))
    cluster.put(node("gpu-3"))
    cluster.put(pod("web-a", "gpu-1", labels={"app": "web"}))
    cluster.put(pod("web-b", "gpu-2", labels={"app": "web"}))
    cluster.put(pod("on-a-whole-card", "gpu-3"))
    cluster.put(pod("exporter", "gpu-1", owner="DaemonSet/dcgm-exporter"))
    cluster.put(pod("no-gpu", "gpu-1", gpus=0))


@contextmanager
def operator(cluster: Cluster) -> Iterator[None]:
    """NVIDIA's operator in a thread: once no policy has a config, nodes offer whole GPUs."""
    over = threading.Event()

    def work() -> None:
        while not over.wait(0.02):
            if not any(_has_config(cluster, name) for name in cluster.names("ClusterPolicy")):
                for name in cluster.names("Node"):
                    make_whole(cluster, name)

    thread = threading.Thread(target=work, name="gpu-operator", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(10)


def make_whole(cluster: Cluster, name: str) -> None:
    """What device plugin and GPU feature discovery write of a node that shares nothing."""
    found = cluster.get("Node", name)
    assert found is not None
    labels = found["metadata"]["labels"]
    if labels.get("nvidia.com/gpu.sharing-strategy") != "time-slicing":
        return
    whole = {
        "nvidia.com/gpu.product": labels["nvidia.com/gpu.product"].removesuffix("-SHARED"),
        "nvidia.com/gpu.replicas": "1",
        "nvidia.com/gpu.sharing-strategy": "none",
    }
    cluster.change("Node", name, {"metadata": {"labels": whole}})
    offered = {"nvidia.com/gpu": labels["nvidia.com/gpu.count"]}
    cluster.set_status("Node", name, {"allocatable": offered})


def _has_config(cluster: Cluster, name: str) -> bool:
    found = cluster.get("ClusterPolicy", name)
    return bool(found and found["spec"]["devicePlugin"].get("config"))
