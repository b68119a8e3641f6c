"""The door for clients: a Service over the pods where ``/v1`` answers, an Ingress or Gateway before it.

The Service is an object of its own, not the RayService's ``serveService``, of which the operator ignores a
LoadBalancer during incremental upgrades: a Gateway of its own becomes the entry. Ours selects by labels that
all clusters of the RayService have, whose pods are ready only where a replica is: its address and its load
balancer stay through every upgrade. While two clusters are there, requests go to the replicas of both.
"""

from __future__ import annotations

from typing import Any

from cluster.cluster_spec import ClusterSpec
from cluster.kubernetes.gke import (
    gke_ingress_annotations,
    gke_policies,
    gke_service_annotations,
    has_gke_gateway,
    has_gke_ingress,
)
from cluster.kubernetes.names import check_name, labels
from cluster.kubernetes.network import SERVE_PORT, endpoint_labels
from cluster.kubernetes.workloads import Manifest


def endpoint(spec: ClusterSpec, has_apps: bool = True) -> list[Manifest]:
    """The Service, and what ``endpoint.kind`` adds to it.

    Args:
        has_apps: Whether there is a RayService. Else the Service is for apps in the shared cluster.
    """
    found = [_service(spec, has_apps)]
    if spec.endpoint.kind == "Ingress":
        found.append(_ingress(spec))
    if spec.endpoint.kind == "Gateway":
        found += [_gateway(spec), _route(spec)]
    return found + gke_policies(spec, endpoint_name(spec))


def endpoint_name(spec: ClusterSpec) -> str:
    """Of the Service, and of what stands before it."""
    return check_name(f"{spec.name}-endpoint", kind="Service")


def _service(spec: ClusterSpec, has_apps: bool) -> Manifest:
    door = spec.endpoint
    is_balancer = door.kind == "LoadBalancer"
    is_first = door.kind in ("ClusterIP", "LoadBalancer")
    annotations = door.annotations if is_first else gke_service_annotations(spec, endpoint_name(spec))
    ranges = {"loadBalancerSourceRanges": list(door.source_ranges)} if door.source_ranges else {}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(spec, annotations),
        "spec": {
            "type": "LoadBalancer" if is_balancer else "ClusterIP",
            "selector": endpoint_labels(spec, has_apps),
            "ports": [{"name": "http", "protocol": "TCP", "port": SERVE_PORT, "targetPort": SERVE_PORT}],
            **ranges,
        },
    }


def _ingress(spec: ClusterSpec) -> Manifest:
    door = spec.endpoint
    service = {"name": endpoint_name(spec), "port": {"name": "http"}}
    path = {"path": "/", "pathType": "Prefix", "backend": {"service": service}}
    body: dict[str, Any] = {"rules": [{"host": door.host, "http": {"paths": [path]}}]}
    if door.class_name and not has_gke_ingress(spec):
        body["ingressClassName"] = door.class_name
    if door.tls_secret:
        body["tls"] = [{"hosts": [door.host], "secretName": door.tls_secret}]
    metadata = _metadata(spec, _nginx(spec) | gke_ingress_annotations(spec) | door.annotations)
    return {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": metadata, "spec": body}


def _nginx(spec: ClusterSpec) -> dict[str, str]:
    """What ingress-nginx would cut: answers after 60 s, requests of over 1 MiB; and buffer: streams.

    An Ingress has no fields for these. Other controllers: ``endpoint.annotations``.
    """
    if spec.endpoint.class_name != "nginx":
        return {}
    prefix, seconds = "nginx.ingress.kubernetes.io", str(spec.serving.longest_request_s)
    return {
        f"{prefix}/proxy-read-timeout": seconds,
        f"{prefix}/proxy-send-timeout": seconds,
        f"{prefix}/proxy-body-size": "64m",
        f"{prefix}/proxy-buffering": "off",
    }


def _gateway(spec: ClusterSpec) -> Manifest:
    door = spec.endpoint
    listener: dict[str, Any] = {"name": "http", "protocol": "HTTP", "port": 80, "hostname": door.host}
    if door.tls_secret:
        tls = {"mode": "Terminate", "certificateRefs": [{"kind": "Secret", "name": door.tls_secret}]}
        listener |= {"name": "https", "protocol": "HTTPS", "port": 443, "tls": tls}
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": _metadata(spec, door.annotations),
        "spec": {"gatewayClassName": door.class_name, "listeners": [listener]},
    }


def _route(spec: ClusterSpec) -> Manifest:
    rule: dict[str, Any] = {"backendRefs": [{"name": endpoint_name(spec), "port": SERVE_PORT}]}
    if not has_gke_gateway(spec):
        rule["timeouts"] = {"request": f"{spec.serving.longest_request_s}s"}
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": _metadata(spec),
        "spec": {
            "parentRefs": [{"name": endpoint_name(spec)}],
            "hostnames": [spec.endpoint.host],
            "rules": [rule],
        },
    }


def _metadata(spec: ClusterSpec, annotations: dict[str, str] | None = None) -> dict[str, Any]:
    found = {"name": endpoint_name(spec), "namespace": spec.in_namespace, "labels": labels(spec)}
    return found | ({"annotations": dict(annotations)} if annotations else {})
