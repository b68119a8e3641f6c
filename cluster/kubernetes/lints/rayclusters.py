"""Ray clusters, of whichever kind: what KubeRay's operator refuses after the API server took it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cluster.kubernetes.faults import Fault, advice
from cluster.kubernetes.lints.parts import (
    At,
    environment,
    mapping,
    ray_cluster,
    ray_pods,
    whole,
    worker_groups,
)
from cluster.kubernetes.workloads import Manifest

_TOKENS_SINCE = (2, 52, 0)
_MANAGERS = ("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue")
_RESOURCE_PARAMS = ("num-cpus", "num-gpus", "memory", "resources")
_REDIS_VARIABLES = ("RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME")
_EXTERNAL_STORAGE = "ray.io/external-storage-namespace"


def lint(manifest: Manifest) -> Iterator[Fault]:
    """Faults of the Ray cluster in a RayCluster, RayService, RayJob or RayCronJob."""
    cluster = ray_cluster(manifest)
    if cluster is None:
        return
    yield from _containers(manifest)
    yield from _groups(cluster)
    yield from _start_params(cluster)
    yield from _autoscaler(manifest, cluster)
    yield from _authentication(cluster)
    yield from _fault_tolerance(manifest, cluster)
    yield from _of_the_operator(cluster)


def _containers(manifest: Manifest) -> Iterator[Fault]:
    for pod in ray_pods(manifest):
        if not pod.spec.get("containers"):
            yield Fault(
                pod.field("spec.containers"), pod.spec.get("containers"),
                "The operator refuses a group without a container.", "Add the container that runs Ray.",
            )  # fmt: skip


def _groups(cluster: At) -> Iterator[Fault]:
    seen: set[str] = set()
    for where, group in worker_groups(cluster):
        name = group.get("groupName")
        if isinstance(name, str) and name in seen:
            yield Fault(
                f"{where}.groupName", name, "A group before it has this name.",
                "Give each group a name of its own.",
            )  # fmt: skip
        seen.add(str(name))
        yield from _replicas(where, group)


def _replicas(where: str, group: dict[str, Any]) -> Iterator[Fault]:
    least, most = whole(group.get("minReplicas")), whole(group.get("maxReplicas"))
    for name in ("minReplicas", "maxReplicas", "replicas", "numOfHosts"):
        if (whole(group.get(name)) or 0) < 0:
            yield Fault(f"{where}.{name}", group[name], "It cannot be negative.", "Write 0 or more.")
    if least is not None and most is not None and least > most:
        yield Fault(
            f"{where}.minReplicas", least, f"It is more than maxReplicas ({most}).",
            f"Raise maxReplicas to {least} or more.",
        )  # fmt: skip
    replicas = whole(group.get("replicas"))
    if replicas is not None and not (least or 0) <= replicas <= (replicas if most is None else most):
        yield Fault(
            f"{where}.replicas", replicas, f"It is not from minReplicas ({least}) to maxReplicas ({most}).",
            "Write a number between them.",
        )  # fmt: skip


def _start_params(cluster: At) -> Iterator[Fault]:
    path, spec = cluster
    groups = [(f"{path}.headGroupSpec", mapping(spec, "headGroupSpec")), *worker_groups(cluster)]
    for where, group in groups:
        params = mapping(group, "rayStartParams")
        for name in _RESOURCE_PARAMS if mapping(group, "resources") else ():
            if name in params:
                yield Fault(
                    f"{where}.rayStartParams.{name}", params[name],
                    "The group has resources, too, and the operator refuses both.",
                    "Leave one of the two out.",
                )  # fmt: skip
        if mapping(group, "labels") and "labels" in params:
            yield Fault(
                f"{where}.rayStartParams.labels", params["labels"],
                "The group has labels, too, and the operator refuses both.", "Leave it out.",
            )  # fmt: skip


def _autoscaler(manifest: Manifest, cluster: At) -> Iterator[Fault]:
    path, spec = cluster
    if not spec.get("enableInTreeAutoscaling"):
        return
    is_v1 = mapping(spec, "autoscalerOptions").get("version") == "v1"
    for pod in ray_pods(manifest):
        policy = pod.spec.get("restartPolicy")
        if not is_v1 and policy not in (None, "Never"):
            yield Fault(
                pod.field("spec.restartPolicy"), policy,
                "Autoscaler v2 replaces pods itself, and the operator refuses ones that restart.",
                "Write Never, or leave it out.",
            )  # fmt: skip
    for where, group in worker_groups(cluster):
        if is_v1 and "idleTimeoutSeconds" in group:
            yield Fault(
                f"{where}.idleTimeoutSeconds", group["idleTimeoutSeconds"],
                "Only autoscaler v2 has an idle timeout of each group.",
                f"Leave {path}.autoscalerOptions.version out, or this.",
            )  # fmt: skip
        if group.get("suspend"):
            yield Fault(
                f"{where}.suspend", True, "The operator suspends no group of a cluster that autoscales.",
                "Leave it out, or enableInTreeAutoscaling.",
            )  # fmt: skip


def _authentication(cluster: At) -> Iterator[Fault]:
    path, spec = cluster
    version, mode = spec.get("rayVersion"), mapping(spec, "authOptions").get("mode")
    if mode == "token" and (not isinstance(version, str) or _older(version)):
        yield Fault(
            f"{path}.rayVersion", version, "Token authentication needs Ray 2.52.0 or later, said here.",
            'Write the version of the image: "2.60.0".',
        )  # fmt: skip
    elif version is None:
        yield advice(
            f"{path}.rayVersion", None, "Probes and authentication of newer Ray depend on it.",
            'Write the version of the image: "2.60.0".',
        )  # fmt: skip
    if mode != "token":
        yield advice(
            f"{path}.authOptions.mode", mode,
            "Whoever reaches the dashboard's port can run any code in the cluster.",
            "Write authOptions: {mode: token, secretName: ...}.",
        )  # fmt: skip


def _older(version: str) -> bool:
    numbers = [int(part) for part in version.split(".")[:3] if part.isdigit()]
    return tuple(numbers) < _TOKENS_SINCE


def _fault_tolerance(manifest: Manifest, cluster: At) -> Iterator[Fault]:
    path, spec = cluster
    if not mapping(spec, "gcsFaultToleranceOptions"):
        return
    annotations = mapping(manifest, "metadata", "annotations")
    if _EXTERNAL_STORAGE in annotations or str(annotations.get("ray.io/ft-enabled")).lower() == "false":
        name = _EXTERNAL_STORAGE if _EXTERNAL_STORAGE in annotations else "ray.io/ft-enabled"
        yield _old_redis(f"metadata.annotations.{name}", annotations[name])
    params = mapping(spec, "headGroupSpec", "rayStartParams")
    for name in ("redis-password", "redis-username"):
        if name in params:
            yield _old_redis(f"{path}.headGroupSpec.rayStartParams.{name}", params[name])
    for pod in ray_pods(manifest):
        where, container = pod.ray_container()
        for name in _REDIS_VARIABLES if pod.role == "head" else ():
            if name in environment(container):
                yield _old_redis(f"{where}.env.{name}", name)
    if manifest.get("kind") in ("RayJob", "RayCronJob"):
        yield advice(
            f"{path}.gcsFaultToleranceOptions", "given", "A job's cluster that lost its head is made anew.",
            "Leave it out: training resumes from its checkpoint. It is for RayServices.",
        )  # fmt: skip


def _old_redis(field: str, value: Any) -> Fault:
    return Fault(
        field, value, "The operator refuses the old Redis settings beside gcsFaultToleranceOptions.",
        "Leave it out, and write it in gcsFaultToleranceOptions.",
    )  # fmt: skip


def _of_the_operator(cluster: At) -> Iterator[Fault]:
    path, spec = cluster
    if mapping(spec, "networkPolicy"):
        yield advice(
            f"{path}.networkPolicy", "given", "It is an alpha feature, which operators have switched off.",
            "Write NetworkPolicies.",
        )  # fmt: skip
    value = spec.get("managedBy")
    if value is not None and value not in _MANAGERS:
        yield Fault(
            f"{path}.managedBy",
            value,
            "The API server knows two managers.",
            f"Write {' or '.join(_MANAGERS)}.",
        )
