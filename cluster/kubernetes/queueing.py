"""The queue that pods go through before they are made or placed: Kueue's, Volcano's or KAI's words for it."""

from __future__ import annotations

from cluster.cluster_spec import ClusterSpec

_QUEUE_LABELS = {
    "kueue": "kueue.x-k8s.io/queue-name",
    "volcano": "volcano.sh/queue-name",
    "kai": "kai.scheduler/queue",
}


def queue_labels(spec: ClusterSpec) -> dict[str, str]:
    """Labels of what brings the pods for training: a RayJob with its own cluster, or the RayCluster for all.

    Never of a RayJob that goes into a running cluster: it brings none, and Kueue refuses it. Nor do we write
    ``suspend``: Kueue sets and clears it, and would lose it at every apply.
    """
    queueing = spec.queueing
    return {_QUEUE_LABELS[queueing.kind]: queueing.queue} if queueing.queue else {}


def serving_queue_labels(spec: ClusterSpec) -> dict[str, str]:
    """Labels of the RayService, which KubeRay copies to its RayClusters and from there to their pods.

    An operator with Volcano or KAI gives all of Ray's pods to that scheduler: KAI leaves those without a
    queue pending, and Volcano puts them into its queue ``default``. Kueue takes no part in what has no
    label, and serving is not to wait until training has ended.

    Source: ray-operator/controllers/ray/batchscheduler/{kai-scheduler,volcano} of KubeRay 1.7.0
    """
    return {} if spec.queueing.kind == "kueue" else queue_labels(spec)


def queue_annotations(spec: ClusterSpec, *, autoscales: bool) -> dict[str, str]:
    """Annotations beside the label. Kueue admits what autoscales only as an elastic job."""
    is_elastic = spec.queueing.kind == "kueue" and autoscales
    return {"kueue.x-k8s.io/elastic-job": "true"} if is_elastic else {}
