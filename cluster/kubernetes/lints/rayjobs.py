"""RayJobs and RayCronJobs: settings that exclude each other, deletion, queues."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cluster.kubernetes.faults import Fault, advice
from cluster.kubernetes.lints.parts import At, mapping, ray_job, ray_pods, rows, whole
from cluster.kubernetes.workloads import Manifest

_MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")


def lint(manifest: Manifest) -> Iterator[Fault]:
    """Faults of a RayJob's spec, or of a RayCronJob's and its template."""
    job = ray_job(manifest)
    if job is None:
        return
    if manifest.get("kind") == "RayCronJob":
        yield from _schedule(manifest)
    yield from _cluster(job)
    yield from _ending(job)
    yield from _deletion(job)
    yield from _numbers(job)
    yield from _mode(job)
    yield from _waiting(manifest, job)


def _schedule(manifest: Manifest) -> Iterator[Fault]:
    schedule = mapping(manifest, "spec").get("schedule")
    if isinstance(schedule, str) and not schedule.startswith("@") and len(schedule.split()) != 5:
        yield Fault(
            "spec.schedule", schedule, "It is no cron schedule.",
            'Write minute, hour, day, month and weekday: "0 3 * * *".',
        )  # fmt: skip


def _cluster(job: At) -> Iterator[Fault]:
    path, spec = job
    selector, own = spec.get("clusterSelector"), spec.get("rayClusterSpec")
    if not selector and not own:
        yield Fault(
            f"{path}.rayClusterSpec", None, "The job has neither a cluster of its own nor a clusterSelector.",
            "Add rayClusterSpec, or clusterSelector: {ray.io/cluster: NAME}.",
        )  # fmt: skip
    if selector and own:
        yield advice(
            f"{path}.rayClusterSpec",
            "given",
            "With clusterSelector nobody reads it.",
            "Leave one of the two out.",
        )
    if selector and "ray.io/cluster" not in mapping(spec, "clusterSelector"):
        yield Fault(
            f"{path}.clusterSelector", selector, "The operator finds a cluster by its label ray.io/cluster.",
            "Write clusterSelector: {ray.io/cluster: NAME}.",
        )  # fmt: skip
    if selector and (whole(spec.get("backoffLimit")) or 0) > 0:
        yield Fault(
            f"{path}.backoffLimit", spec["backoffLimit"],
            "A new try makes a new cluster, but clusterSelector names one that is there.",
            "Leave backoffLimit out, or give the job a rayClusterSpec.",
        )  # fmt: skip
    if selector and spec.get("suspend"):
        yield Fault(
            f"{path}.suspend", True, "To suspend ends the cluster, and clusterSelector's is not the job's.",
            "Leave suspend out, or give the job a rayClusterSpec.",
        )  # fmt: skip


def _ending(job: At) -> Iterator[Fault]:
    path, spec = job
    if spec.get("shutdownAfterJobFinishes"):
        return
    remedy = "Add shutdownAfterJobFinishes: true."
    if spec.get("suspend") and not spec.get("clusterSelector"):
        yield Fault(
            f"{path}.suspend", True, "Only a job whose cluster ends with it can be suspended.", remedy
        )
    if (whole(spec.get("ttlSecondsAfterFinished")) or 0) > 0:
        yield Fault(
            f"{path}.ttlSecondsAfterFinished", spec["ttlSecondsAfterFinished"],
            "It says how long the cluster stays, but the cluster never ends.", remedy,
        )  # fmt: skip
    if spec.get("rayClusterSpec") and not spec.get("deletionStrategy"):
        yield advice(
            f"{path}.shutdownAfterJobFinishes", None, "The cluster and its GPUs stay when the job has ended.",
            remedy,
        )  # fmt: skip


def _deletion(job: At) -> Iterator[Fault]:
    path, spec = job
    strategy = mapping(spec, "deletionStrategy")
    if not strategy:
        return
    where, rules = f"{path}.deletionStrategy", strategy.get("deletionRules")
    legacy = [name for name in ("onSuccess", "onFailure") if name in strategy]
    if spec.get("shutdownAfterJobFinishes"):
        yield Fault(
            f"{path}.shutdownAfterJobFinishes", True, "deletionStrategy says the same in another way.",
            "Leave one of the two out.",
        )  # fmt: skip
    if rules and legacy:
        yield Fault(f"{where}.{legacy[0]}", "given", "It excludes deletionRules.", "Leave it out.")
    if not rules and len(legacy) < 2:
        yield Fault(
            where, strategy, "It needs deletionRules, or onSuccess and onFailure.", "Add deletionRules."
        )
    yield from _rules(where, spec, strategy)


def _rules(where: str, spec: dict[str, Any], strategy: dict[str, Any]) -> Iterator[Fault]:
    autoscales = mapping(spec, "rayClusterSpec").get("enableInTreeAutoscaling")
    for at, rule in rows(strategy, "deletionRules", f"{where}.deletionRules"):
        condition = mapping(rule, "condition")
        if len({"jobStatus", "jobDeploymentStatus"} & set(condition)) != 1:
            yield Fault(
                f"{at}.condition", condition, "A rule looks at jobStatus or at jobDeploymentStatus.",
                "Write one of the two.",
            )  # fmt: skip
        policy = rule.get("policy")
        if spec.get("clusterSelector") and policy in ("DeleteCluster", "DeleteWorkers"):
            yield Fault(
                f"{at}.policy", policy, "clusterSelector's cluster is not the job's.", "Leave it out."
            )
        if policy == "DeleteWorkers" and autoscales:
            yield Fault(
                f"{at}.policy", policy, "The autoscaler would bring the workers back.", "Write DeleteCluster."
            )


def _numbers(job: At) -> Iterator[Fault]:
    path, spec = job
    least = {"backoffLimit": 0, "ttlSecondsAfterFinished": 0, "activeDeadlineSeconds": 1,
             "preRunningDeadlineSeconds": 1}  # fmt: skip
    for name, lowest in least.items():
        value = whole(spec.get(name))
        if value is not None and value < lowest:
            yield Fault(f"{path}.{name}", value, "It is too small.", f"Write {lowest} or more.")


def _mode(job: At) -> Iterator[Fault]:
    path, spec = job
    mode = spec.get("submissionMode", "K8sJobMode")
    if mode not in _MODES:
        yield Fault(f"{path}.submissionMode", mode, "There is no such mode.", f"Write {', '.join(_MODES)}.")
    if mode != "InteractiveMode" and not spec.get("entrypoint"):
        yield Fault(
            f"{path}.entrypoint", spec.get("entrypoint"), "There is nothing to run.", "Add a command."
        )
    if mode == "InteractiveMode" and (whole(spec.get("backoffLimit")) or 0) > 0:
        yield Fault(
            f"{path}.backoffLimit", spec["backoffLimit"], "Nobody submits an interactive job again.",
            "Leave it out.",
        )  # fmt: skip
    for name in (
        ("clusterSelector", "submitterPodTemplate", "submitterConfig") if mode == "SidecarMode" else ()
    ):
        if spec.get(name):
            yield Fault(
                f"{path}.{name}", "given", "SidecarMode has no submitter pod of its own.", "Leave it out."
            )


def _waiting(manifest: Manifest, job: At) -> Iterator[Fault]:
    path, spec = job
    gpus = sum(pod.gpus() for pod in ray_pods(manifest))
    if gpus and "preRunningDeadlineSeconds" not in spec:
        yield advice(
            f"{path}.preRunningDeadlineSeconds", None,
            "A job whose GPU pods find no node would wait for ever.", "Add preRunningDeadlineSeconds: 86400.",
        )  # fmt: skip
