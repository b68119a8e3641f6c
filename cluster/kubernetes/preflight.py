"""Preflight: reads a Kubernetes cluster and says what a cluster spec would find missing. Changes nothing."""

from __future__ import annotations

from collections.abc import Callable

from cluster.cluster_spec import ClusterSpec
from cluster.kubernetes.client import Kubernetes
from cluster.kubernetes.findings import Finding
from cluster.kubernetes.nodes_seen import NodeSeen
from cluster.kubernetes.preflight_api_server import check_api_server
from cluster.kubernetes.preflight_gpus import check_gpus
from cluster.kubernetes.preflight_namespaces import check_namespaces
from cluster.kubernetes.preflight_nodes import check_nodes
from cluster.kubernetes.preflight_operators import check_kuberay, check_monitoring
from cluster.kubernetes.preflight_references import check_doors, check_queue, check_secrets, check_storage
from cluster.kubernetes.refusals import Forbidden
from cluster.kubernetes.workloads import Manifest

_RAY, _MONITORING, _POLICY = "ray.io/v1", "monitoring.coreos.com/v1", ("nvidia.com/v1", "ClusterPolicy")
_DEFINITION = ("apiextensions.k8s.io/v1", "CustomResourceDefinition")


def preflight(client: Kubernetes, spec: ClusterSpec) -> list[Finding]:
    """What is missing, what is doubtful, and what is fine, in the order in which one would mend it.

    What this account may not read becomes a warning: somebody who may only work in one namespace can apply.

    Raises:
        ClusterError: the API server does not answer.
    """
    looks: dict[str, Callable[[Kubernetes, ClusterSpec], list[Finding]]] = {
        "KubeRay": _kuberay,
        "GPUs": _gpus,
        "nodes": _nodes,
        "storage": check_storage,
        "secrets": check_secrets,
        "endpoint": check_doors,
        "API server": check_api_server,
        "queueing": check_queue,
        "monitoring": _monitoring,
        "namespaces": check_namespaces,
    }
    return [finding for topic, look in looks.items() for finding in _allowed(topic, look, client, spec)]


def _allowed(
    topic: str,
    look: Callable[[Kubernetes, ClusterSpec], list[Finding]],
    client: Kubernetes,
    spec: ClusterSpec,
) -> list[Finding]:
    try:
        return look(client, spec)
    except Forbidden as error:
        return [Finding("warning", topic, f"could not be looked at: {error}")]


def _kuberay(client: Kubernetes, spec: ClusterSpec) -> list[Finding]:
    knows = all(client.has(_RAY, kind) for kind in ("RayCluster", "RayService", "RayJob"))
    return check_kuberay(
        spec,
        knows_kinds=knows,
        crd=_definition(client, "rayclusters.ray.io"),
        deployments=client.list("apps/v1", "Deployment"),
    )


def _definition(client: Kubernetes, name: str) -> Manifest | None:
    """The definition of a kind. Reading it is an administrator's right in many clusters."""
    try:
        return client.get(*_DEFINITION, name)
    except Forbidden:
        return None


def _gpus(client: Kubernetes, spec: ClusterSpec) -> list[Finding]:
    policies = client.list(*_POLICY) if client.has(*_POLICY) else []
    return check_gpus(spec, _all_nodes(client), policies, client.list("apps/v1", "DaemonSet"))


def _nodes(client: Kubernetes, spec: ClusterSpec) -> list[Finding]:
    return check_nodes(spec, _all_nodes(client), client.list("v1", "Pod"), more_come=_more_come(client))


def _more_come(client: Kubernetes) -> bool:
    """Whether something adds nodes for pods that wait: the cluster autoscaler's own report, or Karpenter."""
    report = client.get("v1", "ConfigMap", "cluster-autoscaler-status", "kube-system")
    return report is not None or client.has("karpenter.sh/v1", "NodePool")


def _monitoring(client: Kubernetes, spec: ClusterSpec) -> list[Finding]:
    kinds = ("PodMonitor", "ServiceMonitor", "PrometheusRule")
    has_prometheus = client.has(_MONITORING, "Prometheus")
    return check_monitoring(
        spec,
        knows_kinds=all(client.has(_MONITORING, kind) for kind in kinds),
        prometheuses=client.list(_MONITORING, "Prometheus") if has_prometheus else [],
    )


def _all_nodes(client: Kubernetes) -> list[NodeSeen]:
    return [NodeSeen(one) for one in client.list("v1", "Node")]
