"""The templates of Ray's pods: heads without GPUs, and workers, one to a node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cluster.cluster_spec import ClusterSpec
from cluster.haproxy import HAPROXY_METRICS_PORT
from cluster.kubernetes import affinity
from cluster.kubernetes.names import Part, Role, pod_labels, service_account
from cluster.kubernetes.pod_env import CACHE_FOLDER, ray_env, termination_grace_s
from cluster.kubernetes.quantities import memory_quantity, resources
from cluster.kubernetes.volumes import pod_storage
from cluster.kubernetes.workloads import Manifest
from cluster.node_groups import NodeGroup
from runtime.core.errors import ConfigError

CONTAINER_SECURITY = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
"""As Kubernetes' "restricted" standard wants it of every container."""

_USER = 1000
"""The image's user (cluster/images/Dockerfile)."""

_WORKER_PORTS = {"metrics": 8080, "serve": 8000}
_SERVING_PORTS = {"haproxy": HAPROXY_METRICS_PORT}
"""Besides, where apps are: HAProxy's own metrics. Prometheus finds a port only where a pod declares it."""
_HEAD_PORTS = {
    "gcs-server": 6379,
    "dashboard": 8265,
    "client": 10001,
    **_WORKER_PORTS,
    # Without these two nobody could scrape the autoscaler and the dashboard.
    "as-metrics": 44217,
    "dash-metrics": 44227,
}
_AGENT_PORT = 52365


def head_pod(
    spec: ClusterSpec,
    part: Part,
    *,
    autoscales: bool,
    env: Sequence[Manifest] = (),
    volumes: Sequence[Manifest] = (),
    volume_mounts: Sequence[Manifest] = (),
) -> Manifest:
    """The template of a head.

    Args:
        autoscales: Whether Ray's autoscaler runs beside it, which asks the API server for pods.
        env: Variables besides those that every pod has.
        volumes: Besides those that every pod has.
        volume_mounts: Of these.
    """
    head = spec.head
    amounts = resources(cpus=head.cpus, memory_bytes=head.memory)
    container = _container(spec, part, "head", amounts, _HEAD_PORTS, env)
    container["volumeMounts"] = [*container["volumeMounts"], *volume_mounts]
    pod = _pod(spec, part, "head", container, autoscales=autoscales) | {
        # With autoscaling the operator gives this very account a Role, and so does access.py: an account that
        # the spec names is not made by the operator.
        "serviceAccountName": service_account(spec, "head"),
        "automountServiceAccountToken": autoscales,
    }
    pod["volumes"] = [*pod["volumes"], *volumes]
    pod |= _placed(pod_storage(spec).node_selector | head.node_labels)
    if head.tolerations:
        pod["tolerations"] = [affinity.toleration(given) for given in head.tolerations]
    # The cluster autoscaler may empty a node of anything but this: without its head a Ray cluster is lost.
    annotations = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}
    return {"metadata": _metadata(spec, part, "head") | {"annotations": annotations}, "spec": pod}


def worker_pod(
    spec: ClusterSpec, group: NodeGroup, part: Part, *, autoscales: bool, env: Sequence[Manifest] = ()
) -> Manifest:
    """The template of the group's workers: one Ray pod a node, with all that the group says the node has.

    Args:
        autoscales: Whether Ray's autoscaler decides how many there are.
        env: Variables besides those that every pod has.
    """
    amounts = resources(cpus=group.cpus, memory_bytes=group.memory, gpus=group.gpus)
    container = _container(spec, part, "worker", amounts, _WORKER_PORTS, env)
    if part == "serving":
        container["readinessProbe"] = _serving_probe()
    pod = _pod(spec, part, "worker", container, autoscales=autoscales) | {
        "serviceAccountName": service_account(spec, "serving" if part == "serving" else "training"),
        # Whatever code runs in a worker has no token for the API server.
        "automountServiceAccountToken": False,
        "affinity": affinity.affinity(spec, group),
        **_placed(pod_storage(spec).node_selector | affinity.node_selector(spec, group)),
    }
    if found := affinity.tolerations(spec, group):
        pod["tolerations"] = found
    if part == "serving":
        pod["topologySpreadConstraints"] = affinity.spread(spec)
    return {"metadata": _metadata(spec, part, "worker", group), "spec": pod}


def pod_security(spec: ClusterSpec) -> Manifest:
    """The security context of a pod: the image's user, no root, the store's group."""
    return {
        "runAsNonRoot": True,
        "runAsUser": _USER,
        "runAsGroup": _USER,
        "fsGroup": pod_storage(spec).fs_group,
        # A store of a million files would have its owners changed, one by one, before each start.
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def image(spec: ClusterSpec) -> dict[str, Any]:
    """The image, as a container has it.

    Raises:
        ConfigError: the spec names none.
    """
    if spec.image is None:
        raise ConfigError(
            "image is not set, and pods need one. Build it (cluster/images/Dockerfile says how), push it, "
            "and add image: registry.example.com/team/tandem:0.1.0."
        )
    return {"image": spec.image, "imagePullPolicy": spec.image_pull_policy}


def pull_secrets(spec: ClusterSpec) -> dict[str, Any]:
    """The Secrets of the image's registry, as a pod has them."""
    names = [{"name": name} for name in spec.image_pull_secrets]
    return {"imagePullSecrets": names} if names else {}


def _pod(spec: ClusterSpec, part: Part, role: Role, container: Manifest, *, autoscales: bool) -> Manifest:
    memory = container["resources"]["limits"]["memory"]
    cache_size = spec.store.cache_size
    limit = {"sizeLimit": memory_quantity(cache_size)} if cache_size else {}
    return {
        # Ray's autoscaler (v2) counts pods that it knows. Where there is none, a container that ended starts
        # again in its pod, with the node cache still there.
        "restartPolicy": "Never" if autoscales else "Always",
        "terminationGracePeriodSeconds": termination_grace_s(spec, part, role),
        "securityContext": pod_security(spec),
        **pull_secrets(spec),
        "containers": [container],
        "volumes": [
            # Ray's object store and NCCL's buffers. What is in it counts toward the container's memory limit,
            # so a larger sizeLimit would only move the kill; Kubernetes' own 64 MiB stop both at once.
            {"name": "dshm", "emptyDir": {"medium": "Memory", "sizeLimit": memory}},
            {"name": "cache", "emptyDir": limit},
            *pod_storage(spec).volumes,
        ],
    }


def _container(
    spec: ClusterSpec,
    part: Part,
    role: Role,
    amounts: Manifest,
    ports: dict[str, int],
    env: Sequence[Manifest],
) -> Manifest:
    storage = pod_storage(spec)
    listened = ports | (_SERVING_PORTS if part == "serving" else {})
    return {
        "name": f"ray-{role}",
        **image(spec),
        "resources": amounts,
        "ports": [{"name": name, "containerPort": port} for name, port in listened.items()],
        "env": [*ray_env(spec, part, role), *env],
        **({"envFrom": storage.env_from} if storage.env_from else {}),
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": [
            {"name": "dshm", "mountPath": "/dev/shm"},
            {"name": "cache", "mountPath": CACHE_FOLDER},
            *storage.volume_mounts,
        ],
    }


def _metadata(spec: ClusterSpec, part: Part, role: Role, group: NodeGroup | None = None) -> Manifest:
    ours = pod_labels(spec, part=part, role=role, group=group.name if group else None)
    # Ours win: selectors depend on them.
    return {"labels": (group.labels if group else {}) | ours}


def _placed(labels: dict[str, str]) -> dict[str, Any]:
    return {"nodeSelector": labels} if labels else {}


def _serving_probe() -> Manifest:
    """Whether Serve's proxy sends requests on from here; a worker without a replica stays NotReady by design.

    It answers as soon as one app has a replica, such as the front, whose models may still load. Which cluster
    is the endpoint's is for the operator to say, which waits for all apps (endpoint.py).

    The operator's own probe has 2 s and one try: an engine that loads keeps the CPUs so busy that a good pod
    would leave its Service. Both addresses answer "success".
    """
    urls = (
        f"http://localhost:{_AGENT_PORT}/api/local_raylet_healthz",
        f"http://localhost:{_WORKER_PORTS['serve']}/-/healthz",
    )
    asked = [f"wget --tries 1 -T 10 -q -O- {url} | grep success" for url in urls]
    return {
        "exec": {"command": ["bash", "-c", " && ".join(asked)]},
        "initialDelaySeconds": 10,
        "periodSeconds": 10,
        "timeoutSeconds": 25,
        "failureThreshold": 3,
    }
