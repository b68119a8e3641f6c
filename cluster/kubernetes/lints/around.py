"""What stands around Ray: volumes, budgets, monitors, ConfigMaps, Gateways, the GPU operator's policy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from cluster.kubernetes.faults import Fault, advice
from cluster.kubernetes.lints.parts import mapping, pod_templates, rows, words
from cluster.kubernetes.workloads import Manifest

_CLUSTER_LABEL = "ray.io/cluster"
_MOST_BYTES = 1024 * 1024
"""Of a ConfigMap's or a Secret's data: etcd takes no more."""


def lint(manifest: Manifest) -> Iterator[Fault]:
    """Faults of the kinds that this file knows."""
    look = _KINDS.get(str(manifest.get("kind")))
    if look:
        yield from look(mapping(manifest, "spec"), manifest)
    for pod in pod_templates(manifest):
        where = "topologySpreadConstraints"
        for at, constraint in rows(pod.spec, where, pod.field(f"spec.{where}")):
            yield from _by_cluster_name(f"{at}.labelSelector", mapping(constraint, "labelSelector"))


def _volume(spec: dict[str, Any], _: Manifest) -> Iterator[Fault]:
    if not mapping(spec, "nfs"):
        return
    modes = spec.get("accessModes")
    if modes != ["ReadWriteMany"]:
        yield advice("spec.accessModes", modes, "All nodes write to an export.", "Write [ReadWriteMany].")
    policy = spec.get("persistentVolumeReclaimPolicy", "Retain")
    if policy != "Retain":
        yield advice(
            "spec.persistentVolumeReclaimPolicy", policy, "With the claim models and runs would go.",
            "Write Retain.",
        )  # fmt: skip
    if not mapping(spec, "claimRef"):
        yield advice("spec.claimRef", None, "Any claim may take the volume.", "Name the claim.")


def _claim(spec: dict[str, Any], _: Manifest) -> Iterator[Fault]:
    if spec.get("volumeName") and spec.get("storageClassName") is None:
        yield Fault(
            "spec.storageClassName", None,
            "Left out it becomes the cluster's default class, and the claim never binds to its volume.",
            'Write storageClassName: "", here and in the volume.',
        )  # fmt: skip


def _budget(spec: dict[str, Any], _: Manifest) -> Iterator[Fault]:
    if "minAvailable" in spec and "maxUnavailable" in spec:
        yield Fault(
            "spec.maxUnavailable", spec["maxUnavailable"], "It excludes minAvailable.", "Leave it out."
        )
    yield from _by_cluster_name("spec.selector", mapping(spec, "selector"))
    labels = mapping(spec, "selector", "matchLabels")
    is_rays = any(str(key).startswith(("ray.io/", "tandem.dev/")) for key in labels)
    for name in ("minAvailable", "maxUnavailable"):
        counts = isinstance(spec.get(name), str) or (name == "maxUnavailable" and name in spec)
        if is_rays and counts:
            yield advice(
                f"spec.{name}", spec[name],
                "Kubernetes asks the pods' owner how many there should be, and a RayCluster does not say: "
                "nothing could be evicted.", "Write minAvailable with a whole number.",
            )  # fmt: skip


def _by_cluster_name(where: str, selector: dict[str, Any]) -> Iterator[Fault]:
    labels = mapping(selector, "matchLabels")
    if _CLUSTER_LABEL in labels:
        yield advice(
            f"{where}.matchLabels.{_CLUSTER_LABEL}", labels[_CLUSTER_LABEL],
            "A cluster's name changes with each upgrade, and then this selects nothing.",
            "Select by a label of your own in the pod templates.",
        )  # fmt: skip


def _service_monitor(spec: dict[str, Any], _: Manifest) -> Iterator[Fault]:
    labels = mapping(spec, "selector", "matchLabels")
    if any(str(key).startswith("ray.io/") for key in labels):
        yield advice(
            "spec.selector.matchLabels", labels, "A head has two Services, so all would be counted twice.",
            "Write a PodMonitor.",
        )  # fmt: skip


def _pod_monitor(spec: dict[str, Any], manifest: Manifest) -> Iterator[Fault]:
    labels = mapping(spec, "selector", "matchLabels")
    if not any(str(key).startswith(("ray.io/", "tandem.dev/")) for key in labels):
        return
    for where, endpoint in rows(spec, "podMetricsEndpoints", "spec.podMetricsEndpoints"):
        if "ray_io_cluster" not in words(rows(endpoint, "relabelings", ""), "targetLabel"):
            yield advice(
                f"{where}.relabelings", None, "All dashboards of Ray filter on ray_io_cluster.",
                "Copy __meta_kubernetes_pod_label_ray_io_cluster into it.",
            )  # fmt: skip
    if "release" not in mapping(manifest, "metadata", "labels"):
        yield advice(
            "metadata.labels.release", None, "Prometheus selects monitors by it.",
            "Write the Helm release of kube-prometheus-stack.",
        )  # fmt: skip


def _data(_: dict[str, Any], manifest: Manifest) -> Iterator[Fault]:
    texts = [mapping(manifest, name) for name in ("data", "binaryData", "stringData")]
    size = sum(len(str(key)) + len(str(value).encode()) for text in texts for key, value in text.items())
    if size > _MOST_BYTES:
        yield Fault("data", f"{size} bytes", f"It may have {_MOST_BYTES}.", "Split it into several.")


def _gateway(spec: dict[str, Any], _: Manifest) -> Iterator[Fault]:
    listeners = list(rows(spec, "listeners", "spec.listeners"))
    names = Counter(str(listener.get("name")) for _, listener in listeners)
    for where, listener in listeners:
        protocol, tls = listener.get("protocol"), mapping(listener, "tls")
        if names[str(listener.get("name"))] > 1:
            name = listener.get("name")
            yield Fault(f"{where}.name", name, "Two listeners have this name.", "Rename one.")
        if protocol == "HTTP" and tls:
            yield Fault(f"{where}.tls", "given", "HTTP has no TLS.", "Write protocol: HTTPS.")
        if (
            protocol == "HTTPS"
            and tls.get("mode", "Terminate") == "Terminate"
            and not tls.get("certificateRefs")
        ):
            yield Fault(
                f"{where}.tls.certificateRefs", None, "HTTPS needs a certificate.", "Name the TLS Secret."
            )


def _cluster_policy(spec: dict[str, Any], _: Manifest) -> Iterator[Fault]:
    config = mapping(spec, "devicePlugin", "config")
    if config:
        yield advice(
            "spec.devicePlugin.config", config,
            "With it the GPU operator may share GPUs by time, without any limit of memory.",
            "Run: tandem migrate time-slicing.",
        )  # fmt: skip


_KINDS = {
    "PersistentVolume": _volume,
    "PersistentVolumeClaim": _claim,
    "PodDisruptionBudget": _budget,
    "ServiceMonitor": _service_monitor,
    "PodMonitor": _pod_monitor,
    "ConfigMap": _data,
    "Secret": _data,
    "Gateway": _gateway,
    "ClusterPolicy": _cluster_policy,
}
