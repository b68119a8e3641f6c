"""What several objects say together: twice the same object, names that nothing has, stores and accounts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.kubernetes.faults import Fault, advice, name_of
from cluster.kubernetes.lints.parts import (
    PodTemplate,
    is_rays,
    mapping,
    pod_templates,
    ray_cluster,
    ray_job,
    rows,
)
from cluster.kubernetes.lints.queues import KAI, NOT_WITH_VOLCANO, VOLCANO
from cluster.kubernetes.workloads import Manifest

_GOOGLE_ACCOUNT = "iam.gke.io/gcp-service-account"
_METADATA_SERVER = "iam.gke.io/gke-metadata-server-enabled"
Key = tuple[str, str, str]
"""Kind, namespace (empty: not said) and name."""


@dataclass
class _Known:
    """All objects that are looked at together."""

    objects: dict[Key, Manifest] = field(default_factory=dict)
    accounts: dict[tuple[str, str], str] = field(default_factory=dict)
    """The first kind whose workers act as a service account, by namespace and name."""

    def find(self, kind: str, like: Manifest, name: Any) -> Manifest | None:
        return self.objects.get((kind, _namespace(like), str(name)))


def reference_faults(manifests: Sequence[Manifest]) -> list[tuple[int, Fault]]:
    """Faults between objects, each with the index of the manifest that it is in.

    What is named but not among them is advice: it may be in the cluster already.
    """
    known = _Known()
    found = [(index, fault) for index, one in enumerate(manifests) for fault in _remember(known, one)]
    for index, manifest in enumerate(manifests):
        found += [(index, fault) for fault in _of_one(known, manifest)]
    return found + list(_schedulers(manifests))


def _remember(known: _Known, manifest: Manifest) -> Iterator[Fault]:
    group = str(manifest.get("apiVersion")).rpartition("/")[0]
    key = (str(manifest.get("kind")), _namespace(manifest), name_of(manifest))
    before = known.objects.get(key)
    if before is not None and str(before.get("apiVersion")).rpartition("/")[0] == group:
        yield Fault(
            "metadata.name", key[2], f"Another {key[0]} of this name is here, and the later one would win.",
            "Leave one out, or rename it.",
        )  # fmt: skip
    known.objects[key] = manifest


def _schedulers(manifests: Sequence[Manifest]) -> Iterator[tuple[int, Fault]]:
    """Kueue is none: it admits whole objects, whatever schedules their pods."""
    used = [(index, key) for index, one in enumerate(manifests) for key in (VOLCANO, KAI)
            if is_rays(one) and key in mapping(one, "metadata", "labels")]  # fmt: skip
    for index, key in used:
        if key != used[0][1]:
            yield index, advice(
                f"metadata.labels.{key}", mapping(manifests[index], "metadata", "labels")[key],
                f"Others here have {used[0][1]}, and KubeRay's operator works with one scheduler.",
                "Use one kind of queue.",
            )  # fmt: skip
    for index, one in enumerate(manifests) if used else ():
        if is_rays(one) and not {VOLCANO, KAI} & mapping(one, "metadata", "labels").keys():
            yield from ((index, fault) for fault in _without_queue(one, used[0][1]))


def _without_queue(manifest: Manifest, scheduler: str) -> Iterator[Fault]:
    """What others' queue means for an object in none: the operator gives all pods to one scheduler."""
    job = ray_job(manifest)
    if manifest.get("kind") != "RayCronJob" and ray_cluster(manifest):
        where = "stay pending for ever" if scheduler == KAI else "go into Volcano's queue 'default'"
        yield advice(
            f"metadata.labels.{scheduler}", None,
            f"Others here have it: their scheduler gets these pods, too, and without a queue they {where}.",
            "Add the label, with the name of a queue.",
        )  # fmt: skip
    elif scheduler == VOLCANO and job and job[1].get("clusterSelector"):
        yield advice(
            f"{job[0]}.clusterSelector", job[1]["clusterSelector"],
            f"Others here are in a queue of Volcano. {NOT_WITH_VOLCANO}",
            "Write rayClusterSpec: a cluster of the job's own.",
        )  # fmt: skip


def _of_one(known: _Known, manifest: Manifest) -> Iterator[Fault]:
    for pod in pod_templates(manifest):
        yield from _account(known, manifest, pod)
        for where, volume in rows(pod.spec, "volumes", pod.field("spec.volumes")):
            yield from _volume(known, manifest, pod, where, volume)
        for where, container in pod.containers():
            yield from _config_maps(known, manifest, where, container)
    job = ray_job(manifest)
    cluster = mapping(job[1], "clusterSelector").get("ray.io/cluster") if job else None
    if job and cluster and not known.find("RayCluster", manifest, cluster):
        yield _nowhere(f"{job[0]}.clusterSelector.ray.io/cluster", cluster, "RayCluster")


def _account(known: _Known, manifest: Manifest, pod: PodTemplate) -> Iterator[Fault]:
    name, where = pod.spec.get("serviceAccountName"), pod.field("spec.serviceAccountName")
    if not name or name == "default":
        return
    account = known.find("ServiceAccount", manifest, name)
    if account is None:
        yield _nowhere(where, name, "ServiceAccount")
    elif pod.role != "submitter" and _GOOGLE_ACCOUNT in mapping(account, "metadata", "annotations"):
        yield from _workload_identity(pod)
    if pod.role == "worker":
        kind = str(manifest.get("kind"))
        first = known.accounts.setdefault((_namespace(manifest), str(name)), kind)
        if {first, kind} == {"RayService", "RayJob"}:
            yield advice(
                where, name, "Serving and training act as the same account: what one may write, both may.",
                "Give each a ServiceAccount of its own.",
            )  # fmt: skip


def _workload_identity(pod: PodTemplate) -> Iterator[Fault]:
    if mapping(pod.spec, "nodeSelector").get(_METADATA_SERVER) != "true":
        yield advice(
            pod.field(f"spec.nodeSelector.{_METADATA_SERVER}"), None,
            "On a node without GKE's metadata server the pod has the node's identity, not its account's.",
            'Write "true".',
        )  # fmt: skip


def _volume(
    known: _Known, manifest: Manifest, pod: PodTemplate, where: str, volume: dict[str, Any]
) -> Iterator[Fault]:
    config_map, claim = mapping(volume, "configMap"), mapping(volume, "persistentVolumeClaim")
    name = config_map.get("name")
    if name and not config_map.get("optional") and not known.find("ConfigMap", manifest, name):
        yield _nowhere(f"{where}.configMap.name", name, "ConfigMap")
    if not claim:
        return
    found = known.find("PersistentVolumeClaim", manifest, claim.get("claimName"))
    if found is None:
        yield _nowhere(
            f"{where}.persistentVolumeClaim.claimName", claim.get("claimName"), "PersistentVolumeClaim"
        )
    elif _is_nfs(known, found) and "fsGroup" not in mapping(pod.spec, "securityContext"):
        yield advice(
            pod.field("spec.securityContext.fsGroup"), None,
            "The pod mounts an NFS export, which belongs to a group.", "Write that group's number.",
        )  # fmt: skip


def _is_nfs(known: _Known, claim: Manifest) -> bool:
    volume = known.objects.get(("PersistentVolume", "", str(mapping(claim, "spec").get("volumeName"))))
    return bool(volume and mapping(volume, "spec", "nfs"))


def _config_maps(known: _Known, manifest: Manifest, where: str, container: dict[str, Any]) -> Iterator[Fault]:
    named = [
        (f"{at}.valueFrom.configMapKeyRef.name", mapping(variable, "valueFrom", "configMapKeyRef"))
        for at, variable in rows(container, "env", f"{where}.env")
    ]
    named += [
        (f"{at}.configMapRef.name", mapping(source, "configMapRef"))
        for at, source in rows(container, "envFrom", f"{where}.envFrom")
    ]
    for at, reference in named:
        name = reference.get("name")
        if name and not reference.get("optional") and not known.find("ConfigMap", manifest, name):
            yield _nowhere(at, name, "ConfigMap")


def _nowhere(where: str, name: Any, kind: str) -> Fault:
    return advice(
        where, name, f"No {kind} of this name is among these manifests in the object's namespace.",
        "Add it, or make sure that the cluster has it.",
    )  # fmt: skip


def _namespace(manifest: Manifest) -> str:
    return str(mapping(manifest, "metadata").get("namespace") or "")
