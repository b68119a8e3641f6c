"""The kinds that the Kubernetes stand-in knows, and how it tells of them (discovery)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_VERBS = ["create", "delete", "get", "list", "patch", "watch"]


@dataclass(frozen=True)
class Kind:
    """One kind of object."""

    api_version: str
    name: str
    plural: str
    namespaced: bool = True
    custom: bool = False
    """Whether its API server knows it only through a CRD."""

    @property
    def group(self) -> str:
        """Empty for the core kinds."""
        return self.api_version.rpartition("/")[0]

    @property
    def version(self) -> str:
        """Such as ``v1``."""
        return self.api_version.rpartition("/")[2]


def _kinds(api_version: str, *names: str, namespaced: bool = True) -> list[Kind]:
    return [Kind(api_version, name, _plural(name), namespaced) for name in names]


def _plural(name: str) -> str:
    word = name.lower()
    if word.endswith("y"):
        return f"{word[:-1]}ies"
    return f"{word}es" if word.endswith(("s", "ss")) else f"{word}s"


KINDS = [
    *_kinds("v1", "Namespace", "Node", "PersistentVolume", namespaced=False),
    *_kinds(
        "v1", "ConfigMap", "Event", "PersistentVolumeClaim", "Pod", "Secret", "Service", "ServiceAccount"
    ),
    *_kinds("apps/v1", "DaemonSet", "Deployment", "StatefulSet"),
    *_kinds("batch/v1", "Job"),
    *_kinds("discovery.k8s.io/v1", "EndpointSlice"),
    *_kinds("networking.k8s.io/v1", "NetworkPolicy", "Ingress"),
    *_kinds("policy/v1", "PodDisruptionBudget"),
    *_kinds("rbac.authorization.k8s.io/v1", "Role", "RoleBinding"),
    *_kinds("rbac.authorization.k8s.io/v1", "ClusterRole", "ClusterRoleBinding", namespaced=False),
    *_kinds("storage.k8s.io/v1", "StorageClass", namespaced=False),
    *_kinds("apiextensions.k8s.io/v1", "CustomResourceDefinition", namespaced=False),
]
"""What every API server has, as far as Tandem uses it."""

CUSTOM = {
    "kuberay": [
        Kind("ray.io/v1", "RayCluster", "rayclusters", custom=True),
        Kind("ray.io/v1", "RayService", "rayservices", custom=True),
        Kind("ray.io/v1", "RayJob", "rayjobs", custom=True),
    ],
    "prometheus": [
        Kind("monitoring.coreos.com/v1", "PodMonitor", "podmonitors", custom=True),
        Kind("monitoring.coreos.com/v1", "ServiceMonitor", "servicemonitors", custom=True),
        Kind("monitoring.coreos.com/v1", "PrometheusRule", "prometheusrules", custom=True),
    ],
    "gpu-operator": [Kind("nvidia.com/v1", "ClusterPolicy", "clusterpolicies", False, custom=True)],
    "gateway": [
        Kind("gateway.networking.k8s.io/v1", "GatewayClass", "gatewayclasses", False, custom=True),
        Kind("gateway.networking.k8s.io/v1", "Gateway", "gateways", custom=True),
        Kind("gateway.networking.k8s.io/v1", "HTTPRoute", "httproutes", custom=True),
    ],
    "kueue": [Kind("kueue.x-k8s.io/v1beta1", "LocalQueue", "localqueues", custom=True)],
}
"""What a project brings when somebody installs it."""


def groups(kinds: Iterable[Kind]) -> dict[str, Any]:
    """``/apis``: the named groups and their versions."""
    versions: dict[str, list[str]] = {}
    for kind in kinds:
        if kind.group and kind.version not in versions.setdefault(kind.group, []):
            versions[kind.group].append(kind.version)
    return {
        "kind": "APIGroupList",
        "apiVersion": "v1",
        "groups": [_group(group, found) for group, found in versions.items()],
    }


def _group(group: str, versions: list[str]) -> dict[str, Any]:
    words = [{"groupVersion": f"{group}/{version}", "version": version} for version in versions]
    return {"name": group, "versions": words, "preferredVersion": words[0]}


def resources(kinds: Iterable[Kind], api_version: str) -> dict[str, Any] | None:
    """``/apis/GROUP/VERSION``: its kinds; None where there are none."""
    found = [kind for kind in kinds if kind.api_version == api_version]
    if not found:
        return None
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": api_version,
        "resources": [
            {
                "name": kind.plural,
                "singularName": kind.name.lower(),
                "namespaced": kind.namespaced,
                "kind": kind.name,
                "verbs": _VERBS,
            }
            for kind in found
        ],
    }
