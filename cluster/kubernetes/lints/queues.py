"""Queues and gang scheduling: Kueue, Volcano, KAI, and what they cannot take."""

from __future__ import annotations

from collections.abc import Iterator

from cluster.kubernetes.faults import Fault
from cluster.kubernetes.lints.parts import is_rays, mapping, ray_cluster, ray_job
from cluster.kubernetes.workloads import Manifest

KUEUE, VOLCANO, KAI = "kueue.x-k8s.io/queue-name", "volcano.sh/queue-name", "kai.scheduler/queue"
NOT_WITH_VOLCANO = "An operator with Volcano begins no job in a cluster that is there already."
_ELASTIC = "kueue.x-k8s.io/elastic-job"


def lint(manifest: Manifest) -> Iterator[Fault]:
    """Faults of a KubeRay object that goes through a queue."""
    if not is_rays(manifest):
        return
    labels = mapping(manifest, "metadata", "labels")
    queues = [key for key in (KUEUE, VOLCANO, KAI) if key in labels]
    if len(queues) > 1:
        yield Fault(
            f"metadata.labels.{queues[1]}", labels[queues[1]],
            f"The object is in a queue of {queues[0].split('/')[0]}, too, and an operator has one scheduler.",
            "Leave one of the labels out.",
        )  # fmt: skip
    if VOLCANO in labels:
        yield from _volcano(manifest)
    if KAI in labels:
        yield from _kai(manifest)
    if KUEUE in labels:
        yield from _kueue(manifest)


def _volcano(manifest: Manifest) -> Iterator[Fault]:
    job = ray_job(manifest)
    if job and job[1].get("clusterSelector"):
        yield Fault(
            f"{job[0]}.clusterSelector", job[1]["clusterSelector"], NOT_WITH_VOLCANO,
            "Write rayClusterSpec: a cluster of the job's own.",
        )  # fmt: skip


def _kai(manifest: Manifest) -> Iterator[Fault]:
    job = ray_job(manifest)
    if job and job[1].get("submissionMode", "K8sJobMode") == "K8sJobMode":
        yield Fault(
            f"{job[0]}.submissionMode", job[1].get("submissionMode"),
            "KAI refuses K8sJobMode (the default): it cannot gang the submitter with the cluster.",
            "Write submissionMode: HTTPMode or SidecarMode.",
        )  # fmt: skip


def _kueue(manifest: Manifest) -> Iterator[Fault]:
    cluster, job = ray_cluster(manifest), ray_job(manifest)
    annotations = mapping(manifest, "metadata", "annotations")
    if cluster and cluster[1].get("enableInTreeAutoscaling") and annotations.get(_ELASTIC) != "true":
        yield Fault(
            f"{cluster[0]}.enableInTreeAutoscaling", True,
            "Kueue refuses a cluster that autoscales, unless it is an elastic job.",
            f'Add the annotation {_ELASTIC}: "true", or leave autoscaling out.',
        )  # fmt: skip
    if job and not job[1].get("shutdownAfterJobFinishes"):
        yield Fault(
            f"{job[0]}.shutdownAfterJobFinishes", job[1].get("shutdownAfterJobFinishes"),
            "Kueue refuses a job whose cluster would keep its quota after the end.", "Write true.",
        )  # fmt: skip
