"""What operators, scheduler and kubelets would do to an applied cluster, for tests on the stand-in."""

from __future__ import annotations

from typing import Any

from cluster.kubernetes.names import pod_labels
from tests.kubernetes.specs import spec
from tests.servers.kubernetes_api import Cluster

PLACE = "tandem-lab"
QUIET: dict[str, Any] = {"monitoring": {"enabled": False}}


def condition(type_: str, status: bool = True, **more: str) -> dict[str, Any]:
    return {"type": type_, "status": str(status), "reason": type_, **more}


def observed(api: Cluster, kind: str, name: str, **status: Any) -> None:
    """A status of the object's spec as it is now."""
    found = api.get(kind, name, namespace=PLACE)
    assert found is not None
    generation = found["metadata"]["generation"]
    api.set_status(kind, name, {"observedGeneration": generation, **status}, namespace=PLACE)


def pod(
    name: str,
    *,
    role: Any = "worker",
    group: str | None = "l4",
    part: Any = "serving",
    ray_cluster: str = "lab-serve-x7k2p",
    phase: str = "Running",
    ready: bool = True,
    **status: Any,
) -> dict[str, Any]:
    """A pod of the cluster, as KubeRay makes and the kubelet reports it."""
    labels = pod_labels(spec(**QUIET), part=part, role=role, group=group) | {"ray.io/cluster": ray_cluster}
    conditions = [condition("Ready", ready), *status.pop("conditions", [])]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": PLACE, "labels": labels},
        "spec": {"containers": [{"name": "ray-worker"}]},
        "status": {"phase": phase, "conditions": conditions, **status},
    }


def operator_turns(api: Cluster, ray_cluster: str) -> None:
    """What KubeRay 1.7 does once all apps of a cluster run (rayservice_controller.go, reconcileServices).

    The Service of that name is taken as it is, and gets the template's ``spec`` with a selector of its own;
    nothing is written to one that is there and leads to that cluster already.
    """
    service = api.get("RayService", "lab-serve", namespace=PLACE)
    assert service is not None
    template = service["spec"]["serveService"]
    found = api.get("Service", template["metadata"]["name"], namespace=PLACE)
    assert found is not None
    chosen = {"ray.io/cluster": ray_cluster, "ray.io/serve": "true"}
    if found["spec"].get("selector") != chosen:
        api.put({**found, "spec": {**template["spec"], "selector": chosen}}, manager="manager")
