"""Who may talk to whom: NetworkPolicies of Kubernetes' own kind (KubeRay's are behind an alpha gate).

All is refused but what a policy here lets through. Two roads need no policy: the kubelet's probes, and
``tandem cluster connect``: a port-forward reaches the pod from inside, through API server and kubelet, so
whoever may forward ports (RBAC) reaches Ray's dashboard, and nobody else does. Policies act where the network
plugin knows them (Calico, Cilium, GKE's dataplane); others ignore them.
"""

from __future__ import annotations

from typing import Any

from cluster.cluster_spec import ClusterSpec
from cluster.haproxy import HAPROXY_METRICS_PORT
from cluster.host_and_port import HTTP_PORTS, host_and_port, redis_host_and_port
from cluster.kubernetes.names import CLUSTER_LABEL, PART_LABEL, ROLE_LABEL, labels
from cluster.kubernetes.workloads import Manifest

SERVE_PORT = 8000
"""Of Ray Serve's proxies, where ``/v1`` is."""

DASHBOARD_PORT = 8265
METRICS_PORT = 8080
"""Of every Ray node, engines' metrics among them."""

HEAD_METRICS_PORTS = (44217, 44227)
"""Of the autoscaler (``as-metrics``) and of the dashboard (``dash-metrics``)."""

_HTTPS, _NFS, _DNS = 443, 2049, 53
_METADATA = (("169.254.169.254/32", 80), ("169.254.169.252/32", 988), ("169.254.170.23/32", 80))
"""Where pods without keys ask for an identity: GKE and other clouds, GKE without dataplane V2, EKS."""

_OPERATOR = (
    {"app.kubernetes.io/name": "kuberay-operator"},
    {"app.kubernetes.io/component": "kuberay-operator"},
)
"""Labels of the operator's pods, from its Helm chart and from its plain manifests."""

Rule = dict[str, Any]


def network(spec: ClusterSpec, has_apps: bool, *, has_door: bool = True) -> list[Manifest]:
    """The policies of all pods of the cluster.

    Args:
        has_apps: Whether there is a RayService: its workers are the endpoint then, else the shared head.
        has_door: Whether there is an endpoint among what is rendered.
    """
    pods = {CLUSTER_LABEL: spec.name}
    heads = pods | {ROLE_LABEL: "head"}
    policies = [
        _policy(spec, "default-deny", pods, ingress=[], egress=[]),
        _within(spec, pods),
        _policy(spec, "operator", heads, ingress=[_from_operator()]),
        # The autoscaler. Policies look behind the API server's Service: 443 in clouds, else its own port.
        _policy(spec, "api-server", heads, egress=[{"ports": _tcp(*api_server_ports(spec))}]),
        _policy(spec, "store", pods, egress=_store(spec)),
    ]
    if has_door:
        door = [{"ports": _tcp(SERVE_PORT)}]
        policies.append(_policy(spec, "endpoint", endpoint_labels(spec, has_apps), ingress=door))
    if spec.monitoring.enabled:
        policies += _metrics(spec, pods, heads)
    if spec.gcs_fault_tolerance and has_apps:
        redis = [{"ports": _tcp(redis_host_and_port(spec.gcs_fault_tolerance.redis_address)[1])}]
        policies.append(_policy(spec, "redis", heads | {PART_LABEL: "serving"}, egress=redis))
    return policies


def api_server_ports(spec: ClusterSpec) -> tuple[int, ...]:
    """Where Ray's autoscaler may reach the API server."""
    return tuple(sorted({_HTTPS, spec.api_server_port}))


def endpoint_labels(spec: ClusterSpec, has_apps: bool) -> dict[str, str]:
    """What selects the pods to which clients may speak.

    With a RayService: the workers of all its clusters, not its head, which has no replica and other work to
    do. Which of them get requests is the Service's selector, which is the operator's. In the shared
    RayCluster workers are ready whether they have a proxy or not; there the head's is the one that is always
    there.
    """
    part, role = ("serving", "worker") if has_apps else ("shared", "head")
    return {CLUSTER_LABEL: spec.name, PART_LABEL: part, ROLE_LABEL: role}


def _within(spec: ClusterSpec, pods: dict[str, str]) -> Manifest:
    """Ray's nodes talk on many ports, some chosen at random; names are looked up by all."""
    ours = [{"podSelector": {"matchLabels": pods}}]
    names = {"ports": [{"protocol": protocol, "port": _DNS} for protocol in ("UDP", "TCP")]}
    return _policy(spec, "within", pods, ingress=[{"from": ours}], egress=[{"to": ours}, names])


def _from_operator() -> Rule:
    """The operator asks the dashboard of apps and jobs; the namespace that it runs in is anyone's choice."""
    peers = [{"namespaceSelector": {}, "podSelector": {"matchLabels": labels}} for labels in _OPERATOR]
    return {"from": peers, "ports": _tcp(DASHBOARD_PORT)}


def _metrics(spec: ClusterSpec, pods: dict[str, str], heads: dict[str, str]) -> list[Manifest]:
    namespace = {"kubernetes.io/metadata.name": spec.monitoring.namespace}
    peers = [{"namespaceSelector": {"matchLabels": namespace}}]
    apps = pods | {PART_LABEL: "serving"}
    return [
        _policy(spec, "metrics", pods, ingress=[{"from": peers, "ports": _tcp(METRICS_PORT)}]),
        _policy(
            spec, "haproxy-metrics", apps, ingress=[{"from": peers, "ports": _tcp(HAPROXY_METRICS_PORT)}]
        ),
        _policy(spec, "head-metrics", heads, ingress=[{"from": peers, "ports": _tcp(*HEAD_METRICS_PORTS)}]),
    ]


def _store(spec: ClusterSpec) -> list[Rule]:
    """The way to buckets and model hubs (HTTPS anywhere), to other object stores, to NFS, to an identity."""
    store = spec.store
    ports = {_HTTPS, *_endpoint_ports(store.options)}
    if store.nfs:
        # The kubelet mounts from the node, which no policy stops; a driver that mounts in pods needs it.
        ports.add(_NFS)
    rules: list[Rule] = [{"ports": _tcp(*sorted(ports))}]
    if "://" in store.root and not (store.key_file or store.access_key):
        rules += [{"to": [{"ipBlock": {"cidr": cidr}}], "ports": _tcp(port)} for cidr, port in _METADATA]
    return rules


def _endpoint_ports(options: dict[str, dict[str, Any]]) -> set[int]:
    """Ports of the ``endpoint_url`` of each address, such as MinIO's 9000."""
    urls = [str(of["endpoint_url"]) for of in options.values() if of.get("endpoint_url") is not None]
    return {host_and_port(url, HTTP_PORTS)[1] for url in urls}


def _policy(
    spec: ClusterSpec,
    subject: str,
    pods: dict[str, str],
    *,
    ingress: list[Rule] | None = None,
    egress: list[Rule] | None = None,
) -> Manifest:
    """One policy. An empty list lets nothing through; None leaves that direction to the other policies."""
    given = {"Ingress": ingress, "Egress": egress}
    rules = {way.lower(): rules for way, rules in given.items() if rules is not None}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {
            "name": f"{spec.name}-{subject}",
            "namespace": spec.in_namespace,
            "labels": labels(spec),
        },
        "spec": {
            "podSelector": {"matchLabels": pods},
            "policyTypes": [way for way, rules in given.items() if rules is not None],
            **rules,
        },
    }


def _tcp(*ports: int) -> list[Rule]:
    return [{"protocol": "TCP", "port": port} for port in ports]
