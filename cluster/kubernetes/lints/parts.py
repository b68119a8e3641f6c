"""The parts of a manifest that lints look at: Ray clusters, jobs, pod templates, each with its field's path.

A manifest may be wrong in any way: what is of another type than it should be counts as not there, for the
schemas report it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from cluster.kubernetes.workloads import Manifest

_TEMPLATES = {
    "Deployment": "spec.template",
    "StatefulSet": "spec.template",
    "DaemonSet": "spec.template",
    "ReplicaSet": "spec.template",
    "Job": "spec.template",
    "CronJob": "spec.jobTemplate.spec.template",
}
_CLUSTERS = {
    "RayCluster": "spec",
    "RayService": "spec.rayClusterConfig",
    "RayJob": "spec.rayClusterSpec",
    "RayCronJob": "spec.jobTemplate.rayClusterSpec",
}
_JOBS = {"RayJob": "spec", "RayCronJob": "spec.jobTemplate"}

Role = Literal["head", "worker", "submitter", "other"]
"""What a pod is to Ray; a submitter only hands its job to the cluster."""

At = tuple[str, dict[str, Any]]
"""A field's path and the mapping there."""


@dataclass(frozen=True)
class PodTemplate:
    """A pod, or what pods are made of."""

    at: str
    """The template's path; empty: the manifest is a pod itself."""

    role: Role
    metadata: dict[str, Any]
    spec: dict[str, Any]
    group: dict[str, Any]
    """A Ray pod's headGroupSpec or entry of workerGroupSpecs."""

    def field(self, path: str) -> str:
        """The whole path of a field of the template."""
        return f"{self.at}.{path}".lstrip(".")

    def containers(self) -> Iterator[At]:
        """All containers, the first one's first: that one runs Ray. Init containers come last."""
        for kind in ("containers", "initContainers"):
            yield from rows(self.spec, kind, self.field(f"spec.{kind}"))

    def ray_container(self) -> At:
        """The container that runs Ray."""
        return next(rows(self.spec, "containers", self.field("spec.containers")), ("", {}))

    def gpus(self) -> float:
        """GPUs that the container with Ray gets."""
        limits = mapping(self.ray_container()[1], "resources", "limits")
        found = quantity(limits.get("nvidia.com/gpu"))
        return found or 0.0


def mapping(value: Any, *path: str) -> dict[str, Any]:
    """The mapping at a path below ``value``; an empty one where there is none."""
    for part in path:
        value = value.get(part) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def at(manifest: Manifest, path: str) -> At:
    """The mapping at a dotted path, and the path."""
    return path, mapping(manifest, *path.split("."))


def rows(holder: dict[str, Any], name: str, path: str) -> Iterator[At]:
    """The mappings in the list ``name``, each with its path."""
    found = holder.get(name)
    for index, row in enumerate(found if isinstance(found, list) else []):
        if isinstance(row, dict):
            yield f"{path}[{index}]", row


def words(entries: Iterable[At], name: str) -> set[str]:
    """The strings that ``entries`` have under ``name``; other values, such as a template's, do not count."""
    return {entry[name] for _, entry in entries if isinstance(entry.get(name), str)}


def ray_cluster(manifest: Manifest) -> At | None:
    """The Ray cluster's spec of any of KubeRay's kinds; None: it has none."""
    path = _CLUSTERS.get(str(manifest.get("kind"))) if is_rays(manifest) else None
    found = at(manifest, path) if path else None
    return found if found and found[1] else None


def ray_job(manifest: Manifest) -> At | None:
    """A RayJob's spec, or a RayCronJob's template of one."""
    path = _JOBS.get(str(manifest.get("kind"))) if is_rays(manifest) else None
    return at(manifest, path) if path else None


def is_rays(manifest: Manifest) -> bool:
    """Whether the kind is KubeRay's."""
    return str(manifest.get("apiVersion")).startswith("ray.io/")


def worker_groups(cluster: At) -> Iterator[At]:
    """A Ray cluster's worker groups."""
    path, spec = cluster
    return rows(spec, "workerGroupSpecs", f"{path}.workerGroupSpecs")


def pod_templates(manifest: Manifest) -> Iterator[PodTemplate]:
    """All that pods are made of: a pod itself, workloads' templates, Ray's heads, workers and submitters."""
    kind = str(manifest.get("kind"))
    if kind == "Pod":
        yield PodTemplate("", "other", mapping(manifest, "metadata"), mapping(manifest, "spec"), {})
    if kind in _TEMPLATES:
        yield _template(*at(manifest, _TEMPLATES[kind]), "other", {})
    job, cluster = ray_job(manifest), ray_cluster(manifest)
    if job and mapping(job[1], "submitterPodTemplate"):
        path, spec = job
        yield _template(f"{path}.submitterPodTemplate", spec["submitterPodTemplate"], "submitter", {})
    if cluster:
        yield from _ray_pods(cluster)


def ray_pods(manifest: Manifest) -> Iterator[PodTemplate]:
    """Those of Ray's heads and workers."""
    return (pod for pod in pod_templates(manifest) if pod.role in ("head", "worker"))


def _ray_pods(cluster: At) -> Iterator[PodTemplate]:
    path, spec = cluster
    head = mapping(spec, "headGroupSpec")
    if head:
        yield _template(f"{path}.headGroupSpec.template", mapping(head, "template"), "head", head)
    for where, group in worker_groups(cluster):
        yield _template(f"{where}.template", mapping(group, "template"), "worker", group)


def _template(path: str, template: dict[str, Any], role: Role, group: dict[str, Any]) -> PodTemplate:
    return PodTemplate(path, role, mapping(template, "metadata"), mapping(template, "spec"), group)


def environment(container: dict[str, Any]) -> dict[str, Any]:
    """A container's variables that have a value, by name."""
    return {str(row.get("name")): row.get("value") for _, row in rows(container, "env", "")}


def whole(value: Any) -> int | None:
    """A whole number, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def quantity(value: Any) -> float | None:
    """A Kubernetes quantity as a number; None where it is none."""
    from kubernetes.utils.quantity import parse_quantity

    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        found = float(parse_quantity(value))  # type: ignore[no-untyped-call]
    except ValueError:
        return None
    return found if math.isfinite(found) else None
