"""Advice on the pods of Ray clusters: heads, workers, GPUs, who they are, how they end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cluster.kubernetes.faults import Fault, advice
from cluster.kubernetes.lints.parts import (
    At,
    PodTemplate,
    environment,
    mapping,
    ray_cluster,
    ray_pods,
    rows,
    whole,
    words,
    worker_groups,
)
from cluster.kubernetes.workloads import Manifest

_HEAD_PORTS = {"as-metrics": 44217, "dash-metrics": 44227}
_SAFE_TO_EVICT = "cluster-autoscaler.kubernetes.io/safe-to-evict"
_PRODUCT, _SHARING = "nvidia.com/gpu.product", "nvidia.com/gpu.sharing-strategy"
_HA_PROXY = "RAY_SERVE_ENABLE_HA_PROXY"
_KUBERNETES_GRACE_S = 30
"""Kubernetes' default, which is also what ``ray start`` takes to drain: then SIGKILL races."""
_SHORTEST_IDLE_S = 300
"""A model takes longer to load than Ray's 60 s."""


def lint(manifest: Manifest) -> Iterator[Fault]:
    """What nobody refuses, but works badly."""
    cluster = ray_cluster(manifest)
    if cluster is None:
        return
    serves = manifest.get("kind") == "RayService"
    for pod in ray_pods(manifest):
        yield from _head(pod, serves) if pod.role == "head" else _worker(pod, serves)
        yield from _not_root(pod)
    yield from _idle(cluster)
    yield from _alike(manifest)


def _head(pod: PodTemplate, serves: bool) -> Iterator[Fault]:
    where, container = pod.ray_container()
    start = f"{pod.at.removesuffix('.template')}.rayStartParams.num-cpus"
    cpus = mapping(pod.group, "rayStartParams").get("num-cpus")
    if str(cpus) != "0":
        yield advice(
            start, cpus, "Tasks and replicas would run beside the cluster's state.", 'Write num-cpus: "0".'
        )
    if pod.gpus():
        limit = f"{where}.resources.limits.nvidia.com/gpu"
        yield advice(limit, pod.gpus(), "Nothing runs on the head that needs it.", "Leave it out.")
    if mapping(pod.metadata, "annotations").get(_SAFE_TO_EVICT) != "false":
        yield advice(
            pod.field(f"metadata.annotations.{_SAFE_TO_EVICT}"),
            mapping(pod.metadata, "annotations").get(_SAFE_TO_EVICT),
            "The cluster autoscaler may empty the head's node: the Ray cluster is lost.", 'Write "false".',
        )  # fmt: skip
    yield from _head_ports(where, container, serves)


def _head_ports(where: str, container: dict[str, Any], serves: bool) -> Iterator[Fault]:
    ports = words(rows(container, "ports", ""), "name")
    for name, number in _HEAD_PORTS.items():
        if name not in ports:
            yield advice(
                f"{where}.ports", name, "Without this port nobody can scrape its metrics.",
                f"Add {{name: {name}, containerPort: {number}}}.",
            )  # fmt: skip
    if serves and "serve" not in ports:
        yield advice(
            f"{where}.ports", "serve", "The operator takes Serve's port from the head's ports by this name.",
            "Add {name: serve, containerPort: 8000}.",
        )  # fmt: skip


def _worker(pod: PodTemplate, serves: bool) -> Iterator[Fault]:
    where, container = pod.ray_container()
    if pod.gpus():
        yield from _product(pod)
    if pod.spec.get("automountServiceAccountToken") is not False:
        yield advice(
            pod.field("spec.automountServiceAccountToken"), pod.spec.get("automountServiceAccountToken"),
            "Whatever code runs in a worker could talk to the API server.", "Write false.",
        )  # fmt: skip
    if serves and pod.gpus() and not mapping(container, "readinessProbe"):
        yield advice(
            f"{where}.readinessProbe", None,
            "KubeRay's own probe gives 2 s and one try, which a busy LLM worker misses.",
            "Add a readinessProbe with a longer timeoutSeconds and failureThreshold: 3.",
        )  # fmt: skip
    grace = whole(pod.spec.get("terminationGracePeriodSeconds"))
    if serves and (grace or 0) <= _KUBERNETES_GRACE_S:
        yield advice(
            pod.field("spec.terminationGracePeriodSeconds"), grace,
            "Ray drains for 30 s, and then answers that still stream are killed.",
            "Write the drain, the longest answer and 15 s together.",
        )  # fmt: skip


def _product(pod: PodTemplate) -> Iterator[Fault]:
    must = "requiredDuringSchedulingIgnoredDuringExecution"
    terms = mapping(pod.spec, "affinity", "nodeAffinity", must)
    expressions = [
        one for _, t in rows(terms, "nodeSelectorTerms", "") for one in rows(t, "matchExpressions", "")
    ]
    keys = words(expressions, "key")
    where = pod.field("spec.affinity.nodeAffinity")
    if _PRODUCT not in keys and _PRODUCT not in mapping(pod.spec, "nodeSelector"):
        yield advice(
            where, None, "One job's workers may land on different GPU products.",
            f"Require {_PRODUCT} In [...] of the node.",
        )  # fmt: skip
    if _SHARING not in keys:
        yield advice(
            where, None, "A node whose GPUs are shared by time-slicing or MPS would do, too.",
            f"Require {_SHARING} NotIn [time-slicing, mps] of the node.",
        )  # fmt: skip


def _not_root(pod: PodTemplate) -> Iterator[Fault]:
    contexts = (mapping(pod.spec, "securityContext"), mapping(pod.ray_container()[1], "securityContext"))
    if not any(context.get("runAsNonRoot") for context in contexts):
        yield advice(
            pod.field("spec.securityContext.runAsNonRoot"), None, "Ray and what it runs may be root.",
            "Write true, with an image that has a user.",
        )  # fmt: skip


def _idle(cluster: At) -> Iterator[Fault]:
    spec = cluster[1]
    if not spec.get("enableInTreeAutoscaling"):
        return
    default = mapping(spec, "autoscalerOptions").get("idleTimeoutSeconds", 60)
    for where, group in worker_groups(cluster):
        seconds = whole(group.get("idleTimeoutSeconds", default))
        if seconds is not None and seconds < _SHORTEST_IDLE_S:
            yield advice(
                f"{where}.idleTimeoutSeconds", seconds, "Nodes whose engine is still loading would end.",
                f"Write {_SHORTEST_IDLE_S} to 900.",
            )  # fmt: skip


def _alike(manifest: Manifest) -> Iterator[Fault]:
    """Serve's proxy in C is there on all nodes or on none."""
    pods = [(pod.ray_container(), pod) for pod in ray_pods(manifest)]
    with_it = [environment(container).get(_HA_PROXY) == "1" for (_, container), _ in pods]
    if any(with_it) and not all(with_it):
        where = pods[with_it.index(False)][0][0]
        yield advice(
            f"{where}.env", _HA_PROXY, "Other pods of the cluster have it, and this one has not.",
            "Set it on head and workers alike.",
        )  # fmt: skip
