"""Preflight: whether Ray's autoscaler will reach the API server through the network policies."""

from __future__ import annotations

from cluster.cluster_spec import ClusterSpec
from cluster.kubernetes.client import Kubernetes
from cluster.kubernetes.findings import Finding
from cluster.kubernetes.network import api_server_ports

_SLICE = ("discovery.k8s.io/v1", "EndpointSlice")
_FIELD = "api_server_port"


def check_api_server(client: Kubernetes, spec: ClusterSpec) -> list[Finding]:
    """The ports at which the API server itself listens: policies look behind its Service.

    Nothing where the cluster does not tell.
    """
    if not client.has(*_SLICE):
        return []
    slices = client.list(*_SLICE, "default", "kubernetes.io/service-name=kubernetes")
    ports = sorted({port["port"] for one in slices for port in one.get("ports") or [] if port.get("port")})
    if not ports:
        return []
    missed = next((port for port in ports if port not in api_server_ports(spec)), None)
    if missed is not None:
        return [_missed(spec, missed)]
    return [Finding("ok", _FIELD, f"the API server listens at {ports[0]}, which Ray's heads may reach.")]


def _missed(spec: ClusterSpec, port: int) -> Finding:
    """Nothing else would tell: the autoscaler asks on, and its groups stay as they are."""
    return Finding(
        "error" if any(group.autoscales for group in spec.node_groups) else "warning",
        _FIELD,
        f"the API server listens at {port}, but the spec says {spec.api_server_port}.",
        "Where network policies are kept to, Ray's autoscaler could not ask for pods: groups with min and "
        "max, and jobs with a range of workers, would never grow.",
        f"Write {_FIELD}: {port}.",
    )
