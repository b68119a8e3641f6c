"""How a cluster is: its objects, the pods of each node group, its address, and what keeps it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.cluster_spec import ClusterSpec
from cluster.kubernetes.client import Kubernetes
from cluster.kubernetes.endpoint import endpoint_service, operators_gateway
from cluster.kubernetes.names import GROUP_LABEL, PART_LABEL, ROLE_LABEL
from cluster.kubernetes.owned import owned, selector
from cluster.kubernetes.readiness import conditions, state_of
from cluster.kubernetes.trouble import troubles
from cluster.kubernetes.workloads import Manifest

_GATEWAY = ("gateway.networking.k8s.io/v1", "Gateway")


@dataclass(frozen=True)
class ObjectRow:
    """One object."""

    kind: str
    name: str
    is_ready: bool
    doing: str
    conditions: tuple[str, ...]
    """Those that are true."""


@dataclass(frozen=True)
class PodsRow:
    """The pods of one node group in one part; the head is a group of its own."""

    part: str
    group: str
    running: int
    ready: int
    waiting: int


@dataclass(frozen=True)
class ClusterStatus:
    """All of it."""

    name: str
    namespace: str
    objects: tuple[ObjectRow, ...]
    pods: tuple[PodsRow, ...]
    endpoint: str | None
    """The address of ``/v1``; None while there is none."""

    troubles: tuple[str, ...]


def status(kubernetes: Kubernetes, spec: ClusterSpec) -> ClusterStatus:
    """The cluster as it is now.

    Raises:
        ClusterError: the API server refuses or does not answer, or KubeRay is not installed.
    """
    pods = kubernetes.list("v1", "Pod", spec.in_namespace, selector(spec))
    found = owned(kubernetes, spec)
    return ClusterStatus(
        spec.name,
        spec.in_namespace,
        tuple(_row(one) for one in found.objects),
        tuple(pods_by_group(pods)),
        address(kubernetes, spec),
        (*troubles(kubernetes, spec), *found.unseen),
    )


def _row(manifest: Manifest) -> ObjectRow:
    state = state_of(manifest)
    true = tuple(type_ for type_, one in conditions(manifest).items() if one.get("status") == "True")
    return ObjectRow(manifest["kind"], manifest["metadata"]["name"], state.is_ready, state.doing, true)


def pods_by_group(pods: Sequence[Manifest]) -> list[PodsRow]:
    """How many pods of each part and node group run, are ready, and wait."""
    running, ready, waiting = (
        Counter[tuple[str, str]](),
        Counter[tuple[str, str]](),
        Counter[tuple[str, str]](),
    )
    for pod in pods:
        labels, phase = pod["metadata"].get("labels") or {}, (pod.get("status") or {}).get("phase")
        place = labels.get(PART_LABEL, "?"), labels.get(GROUP_LABEL) or labels.get(ROLE_LABEL, "?")
        running[place] += phase == "Running"
        waiting[place] += phase in (None, "Pending")
        ready[place] += is_ready(pod)
    return [PodsRow(*place, running[place], ready[place], waiting[place]) for place in sorted(running)]


def is_ready(pod: Manifest) -> bool:
    """Whether a pod answers its probes."""
    return conditions(pod).get("Ready", {}).get("status") == "True"


def address(kubernetes: Kubernetes, spec: ClusterSpec) -> str | None:
    """The URL of ``/v1``, as far as it is known."""
    door = spec.endpoint
    if spec.serving.upgrade == "incremental" and (gateway := _operators_gateway(kubernetes, spec)):
        return gateway
    if door.host:
        return f"{'https' if door.tls_secret else 'http'}://{door.host}/v1"
    service = _service(kubernetes, spec)
    if service is None:
        return None
    name, port = service["metadata"]["name"], service["spec"]["ports"][0]["port"]
    if door.kind == "ClusterIP":
        return f"http://{name}.{spec.in_namespace}.svc:{port}/v1"
    given = ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or []
    host = next((one.get("ip") or one.get("hostname") for one in given), None)
    return f"http://{host}:{port}/v1" if host else None


def _service(kubernetes: Kubernetes, spec: ClusterSpec) -> Manifest | None:
    """The Service of the apps, else that of the shared cluster."""
    names = (endpoint_service(spec, has_apps) for has_apps in (True, False))
    found = (kubernetes.get("v1", "Service", name, spec.in_namespace) for name in names)
    return next((one for one in found if one is not None), None)


def _operators_gateway(kubernetes: Kubernetes, spec: ClusterSpec) -> str | None:
    """The URL at the Gateway that KubeRay makes, once there is one with an address."""
    if not kubernetes.has(*_GATEWAY):
        return None
    gateway = kubernetes.get(*_GATEWAY, operators_gateway(spec), spec.in_namespace) or {}
    addresses = (gateway.get("status") or {}).get("addresses") or []
    # It listens for HTTP at 80, always.
    return next((f"http://{one['value']}/v1" for one in addresses), None)
