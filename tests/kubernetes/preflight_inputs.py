"""What preflight's tests look at: a group that fits on the tests' nodes, KubeRay's operator and its CRD."""

from __future__ import annotations

from typing import Any

from cluster.kubernetes.findings import Finding
from tests.kubernetes.specs import L4_GROUP

Json = dict[str, Any]


def small_l4(**changes: Any) -> Json:
    """Three pods with one L4 each; they fit on ``node()``."""
    return {**L4_GROUP, "cpus": 6, "memory": "24GiB"} | changes


def about(found: list[Finding], topic: str) -> Finding:
    """The first finding about something."""
    return next(one for one in found if one.topic == topic)


def operator(tag: str, *args: str, ready: int = 1) -> Json:
    container = {"name": "o", "image": f"quay.io/kuberay/operator:{tag}", "args": list(args)}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "kuberay-operator", "namespace": "kube-system"},
        "spec": {"template": {"spec": {"containers": [container]}}},
        "status": {"readyReplicas": ready},
    }


def ray_cluster_crd(*auth_fields: str) -> Json:
    fields = {"authOptions": {"properties": {name: {} for name in auth_fields}}} if auth_fields else {}
    schema = {"openAPIV3Schema": {"properties": {"spec": {"properties": fields}}}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "rayclusters.ray.io"},
        "spec": {"versions": [{"name": "v1", "schema": schema}]},
    }


NEW = ray_cluster_crd("mode", "secretName")
