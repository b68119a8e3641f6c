"""What GKE's own load balancers need beside the standard: how long to wait, and where to ask for health.

Left to themselves they end an answer after 30 s, and ask ``/``, where an app may well answer 404: then no pod
is good enough for them.
"""

from __future__ import annotations

import json
from typing import Any

from cluster.cluster_spec import ClusterSpec
from cluster.kubernetes.names import labels
from cluster.kubernetes.network import SERVE_PORT
from cluster.kubernetes.workloads import Manifest

HEALTH_PATH = "/-/healthz"
"""Serve's own, on every node that has a proxy: 200 while there is a replica to send to, else 503."""

_INGRESS_CLASSES = (None, "gce", "gce-internal")


def has_gke_gateway(spec: ClusterSpec) -> bool:
    """Whether the endpoint is a Gateway of GKE's own classes."""
    door = spec.endpoint
    return spec.provider == "gke" and door.kind == "Gateway" and str(door.class_name).startswith("gke-")


def has_gke_ingress(spec: ClusterSpec) -> bool:
    """Whether the endpoint is an Ingress of GKE's own controller, which also takes those without a class."""
    door = spec.endpoint
    return spec.provider == "gke" and door.kind == "Ingress" and door.class_name in _INGRESS_CLASSES


def gke_policies(spec: ClusterSpec, name: str, *, service: str) -> list[Manifest]:
    """The objects that GKE reads of a Service behind its Gateway or Ingress; none behind others.

    Args:
        name: What they are called.
        service: The Service's name.

    Source: https://cloud.google.com/kubernetes-engine/docs/how-to/configure-gateway-resources
    and https://cloud.google.com/kubernetes-engine/docs/how-to/ingress-configuration
    """
    wait_s = {"timeoutSec": spec.serving.longest_request_s}
    check = {"port": SERVE_PORT, "requestPath": HEALTH_PATH}
    if has_gke_gateway(spec):
        target = {"targetRef": {"group": "", "kind": "Service", "name": service}}
        config = {"config": {"type": "HTTP", "httpHealthCheck": check}}
        api = "networking.gke.io/v1"
        return [
            _object(spec, api, "GCPBackendPolicy", name, {"default": wait_s} | target),
            _object(spec, api, "HealthCheckPolicy", name, {"default": config} | target),
        ]
    if has_gke_ingress(spec):
        body = {**wait_s, "healthCheck": {"type": "HTTP", **check}}
        return [_object(spec, "cloud.google.com/v1", "BackendConfig", name, body)]
    return []


def gke_service_annotations(spec: ClusterSpec, config: str) -> dict[str, str]:
    """How the Service names its BackendConfig, and that the balancer goes to the pods themselves.

    Left to itself GKE does so only where the cluster has no network policies of GKE's and no Shared VPC. Else
    its Ingress takes no ClusterIP Service.

    Source: https://cloud.google.com/kubernetes-engine/docs/how-to/container-native-load-balancing

    Args:
        config: The BackendConfig's name.
    """
    if not has_gke_ingress(spec):
        return {}
    return {
        "cloud.google.com/backend-config": json.dumps({"default": config}),
        "cloud.google.com/neg": json.dumps({"ingress": True}),
    }


def gke_ingress_annotations(spec: ClusterSpec) -> dict[str, str]:
    """The class, where GKE's controller reads it: it passes ``ingressClassName`` over."""
    name = spec.endpoint.class_name
    return {"kubernetes.io/ingress.class": name} if name and has_gke_ingress(spec) else {}


def _object(spec: ClusterSpec, api_version: str, kind: str, name: str, body: dict[str, Any]) -> Manifest:
    metadata = {"name": name, "namespace": spec.in_namespace, "labels": labels(spec)}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": body}
