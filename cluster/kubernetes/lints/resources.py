"""Amounts: CPUs, memory and GPUs of containers, and the memory behind /dev/shm."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cluster.kubernetes.faults import Fault, advice
from cluster.kubernetes.lints.parts import PodTemplate, mapping, pod_templates, quantity, rows, words
from cluster.kubernetes.workloads import Manifest

_FOR_EXAMPLE = "Write it as Kubernetes does: 500m, 4, 56Gi."


def lint(manifest: Manifest) -> Iterator[Fault]:
    """Faults of amounts in pods, and in volumes and claims."""
    for pod in pod_templates(manifest):
        for where, container in pod.containers():
            resources = mapping(container, "resources")
            yield from _amounts(f"{where}.resources", resources)
            yield from _gpus(f"{where}.resources", resources)
        if pod.role in ("head", "worker"):
            yield from _what_ray_gets(pod)
        yield from _memory_volumes(pod)
    if manifest.get("kind") in ("PersistentVolume", "PersistentVolumeClaim"):
        spec = mapping(manifest, "spec")
        yield from _quantities("spec.capacity", mapping(spec, "capacity"))
        yield from _quantities("spec.resources.requests", mapping(spec, "resources", "requests"))


def _amounts(where: str, resources: dict[str, Any]) -> Iterator[Fault]:
    limits, requests = mapping(resources, "limits"), mapping(resources, "requests")
    yield from _quantities(f"{where}.limits", limits)
    yield from _quantities(f"{where}.requests", requests)
    for name, value in requests.items():
        asked, most = quantity(value), quantity(limits.get(name))
        if "/" not in str(name) and asked is not None and most is not None and asked > most:
            yield Fault(
                f"{where}.requests.{name}", value, f"It is more than the limit ({limits[name]}).",
                "Lower it, or raise the limit.",
            )  # fmt: skip


def _quantities(where: str, amounts: dict[str, Any]) -> Iterator[Fault]:
    for name, value in amounts.items():
        if quantity(value) is None:
            yield Fault(f"{where}.{name}", value, "That is no amount.", _FOR_EXAMPLE)


def _gpus(where: str, resources: dict[str, Any]) -> Iterator[Fault]:
    limits, requests = mapping(resources, "limits"), mapping(resources, "requests")
    for name in sorted(name for name in {*limits, *requests} if isinstance(name, str)):
        if not name.endswith("/gpu") and not name.startswith("nvidia.com/mig-"):
            continue
        limit = quantity(limits.get(name))
        if limit is None:
            yield Fault(f"{where}.limits.{name}", None, "A GPU that is asked for needs a limit.", "Add it.")
        elif limit != int(limit):
            yield Fault(
                f"{where}.limits.{name}", limits[name], "Kubernetes hands out whole GPUs only.",
                "Write 1 or more; shares of a GPU are Ray's (num_gpus).",
            )  # fmt: skip
        elif name in requests and quantity(requests[name]) != limit:
            yield Fault(
                f"{where}.requests.{name}", requests[name], f"It must equal the limit ({limits[name]}).",
                f"Write {limits[name]}.",
            )  # fmt: skip


def _what_ray_gets(pod: PodTemplate) -> Iterator[Fault]:
    where, container = pod.ray_container()
    limits, requests = (mapping(container, "resources", name) for name in ("limits", "requests"))
    for name in ("cpu", "memory"):
        limit = quantity(limits.get(name))
        given = {"num-cpus" if name == "cpu" else "memory"} & set(mapping(pod.group, "rayStartParams"))
        if limit is None and not given:
            yield advice(
                f"{where}.resources.limits.{name}", None, "KubeRay tells Ray what a node has by the limits.",
                "Add it, equal to the request.",
            )  # fmt: skip
        elif limit is not None and name in requests and quantity(requests[name]) != limit:
            yield advice(
                f"{where}.resources.requests.{name}", requests[name],
                f"Ray hands out the limit ({limits[name]}), but the node keeps only this free.",
                "Write requests equal to limits.",
            )  # fmt: skip


def _memory_volumes(pod: PodTemplate) -> Iterator[Fault]:
    path = pod.field("spec.volumes")
    limit = mapping(pod.ray_container()[1], "resources", "limits").get("memory")
    mounts = [one for _, c in pod.containers() for one in rows(c, "volumeMounts", "")
              if one[1].get("mountPath") == "/dev/shm"]  # fmt: skip
    shared = words(mounts, "name")
    for where, volume in rows(pod.spec, "volumes", path):
        empty = mapping(volume, "emptyDir")
        size = empty.get("sizeLimit")
        if size is not None and quantity(size) is None:
            yield Fault(f"{where}.emptyDir.sizeLimit", size, "That is no amount.", _FOR_EXAMPLE)
        elif words([(where, volume)], "name") & shared:
            yield from _shared_memory(where, empty, limit)


def _shared_memory(where: str, empty: dict[str, Any], limit: Any) -> Iterator[Fault]:
    medium, size = empty.get("medium"), empty.get("sizeLimit")
    if medium != "Memory":
        yield advice(
            f"{where}.emptyDir.medium", medium, "/dev/shm on a disk makes Ray's object store slow.",
            "Write medium: Memory.",
        )  # fmt: skip
    elif limit is not None and quantity(size) != quantity(limit):
        yield advice(
            f"{where}.emptyDir.sizeLimit", size, f"It counts toward the container's memory limit ({limit}).",
            f"Write {limit}.",
        )  # fmt: skip
