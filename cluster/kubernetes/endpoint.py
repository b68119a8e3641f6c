"""The door for clients: the Service where ``/v1`` answers, an Ingress or Gateway before it.

With serve apps KubeRay turns it. The Service is the RayService's ``serveService``, and its selector is the
operator's: the cluster whose apps have all run, so the old one until every app of the new one does, and for
good where one never does. Labels that both clusters have would not do: a new cluster's front is up in
seconds, its models in minutes, and a pod is ready as soon as any app answers there.

We apply that Service all the same, without a selector. The operator takes one that is there, and writes to it
only when it turns it, and then nothing but ``spec``; other annotations or another type would never arrive.
The ``spec`` that it writes is the template's in the RayService, so the template says the same.

Source: ray-operator/controllers/ray/rayservice_controller.go, reconcileServices, in KubeRay 1.7.0
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
from cluster.kubernetes.names import check_name, labels, service_name
from cluster.kubernetes.network import SERVE_PORT, endpoint_labels
from cluster.kubernetes.workloads import Manifest

_PORT_NAME = "serve"
"""As the head's container has it: of other ports the operator writes its own definition into the Service."""


def endpoint(spec: ClusterSpec, has_apps: bool = True) -> list[Manifest]:
    """The Service, and what ``endpoint.kind`` adds to it.

    Args:
        has_apps: Whether there is a RayService. Else the Service is for apps in the shared cluster.

    Returns:
        Nothing where KubeRay's own Gateway is the door of the apps: with incremental upgrades it sends each
        of two clusters its share, by Services whose names it makes.
    """
    if has_apps and spec.serving.upgrade == "incremental":
        return []
    found = [_service(spec, has_apps)]
    if spec.endpoint.kind == "Ingress":
        found.append(_ingress(spec, has_apps))
    if spec.endpoint.kind == "Gateway":
        found += [_gateway(spec), _route(spec, has_apps)]
    return found + gke_policies(spec, endpoint_name(spec), service=endpoint_service(spec, has_apps))


def endpoint_name(spec: ClusterSpec) -> str:
    """Of what stands before the Service, and of the Service of apps."""
    return check_name(f"{spec.name}-endpoint", kind="Service")


def endpoint_service(spec: ClusterSpec, has_apps: bool) -> str:
    """The Service's name.

    Two Services, for one would keep the shared head among its endpoints until the operator gives it a
    selector, and the operator takes any endpoint for a sign that the apps are ready.
    """
    return endpoint_name(spec) if has_apps else check_name(f"{spec.name}-shared-endpoint", kind="Service")


def operators_gateway(spec: ClusterSpec) -> str:
    """The name of the Gateway that KubeRay makes for incremental upgrades."""
    return f"{service_name(spec)}-gateway"


def serve_service(spec: ClusterSpec) -> dict[str, Manifest]:
    """``serveService`` of the RayService, which names the Service; none with incremental upgrades.

    The operator would ignore it then, and make Services of its own.
    """
    if spec.serving.upgrade == "incremental":
        return {}
    service = _service(spec, has_apps=True)
    # The operator knows the namespace: the RayService's.
    metadata = {field: value for field, value in service["metadata"].items() if field != "namespace"}
    return {"serveService": {"metadata": metadata, "spec": service["spec"]}}


def _service(spec: ClusterSpec, has_apps: bool) -> Manifest:
    door = spec.endpoint
    is_balancer = door.kind == "LoadBalancer"
    is_first = door.kind in ("ClusterIP", "LoadBalancer")
    annotations = door.annotations if is_first else gke_service_annotations(spec, endpoint_name(spec))
    port = {"name": _PORT_NAME, "protocol": "TCP", "port": SERVE_PORT, "targetPort": SERVE_PORT}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(spec, annotations, name=endpoint_service(spec, has_apps)),
        "spec": {
            "type": "LoadBalancer" if is_balancer else "ClusterIP",
            **({} if has_apps else {"selector": endpoint_labels(spec, has_apps)}),
            "ports": [port],
            **({"loadBalancerClass": door.load_balancer_class} if door.load_balancer_class else {}),
            **({"loadBalancerSourceRanges": list(door.source_ranges)} if door.source_ranges else {}),
        },
    }


def _ingress(spec: ClusterSpec, has_apps: bool) -> Manifest:
    door = spec.endpoint
    service = {"name": endpoint_service(spec, has_apps), "port": {"name": _PORT_NAME}}
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


def _route(spec: ClusterSpec, has_apps: bool) -> Manifest:
    backend = {"name": endpoint_service(spec, has_apps), "port": SERVE_PORT}
    rule: dict[str, Any] = {"backendRefs": [backend]}
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


def _metadata(
    spec: ClusterSpec, annotations: dict[str, str] | None = None, *, name: str | None = None
) -> dict[str, Any]:
    found = {
        "name": name or endpoint_name(spec),
        "namespace": spec.in_namespace,
        "labels": labels(spec),
    }
    return found | ({"annotations": dict(annotations)} if annotations else {})
