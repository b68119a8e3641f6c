"""Training jobs: a RayJob with its own cluster or in the shared one, or a Job that submits to the apps'."""

from __future__ import annotations

import json
import shlex
from typing import Any

from cluster.cluster_spec import ClusterSpec
from cluster.kubernetes.job_nodes import job_groups
from cluster.kubernetes.names import (
    cluster_name,
    job_name,
    labels,
    pod_labels,
    service_account,
    train_spec_name,
)
from cluster.kubernetes.nodes_told import told
from cluster.kubernetes.pods import CONTAINER_SECURITY, image, pod_security, pull_secrets
from cluster.kubernetes.quantities import resources
from cluster.kubernetes.queueing import queue_annotations, queue_labels
from cluster.kubernetes.raycluster import RAY_API, ray_cluster_spec
from cluster.kubernetes.submission import submission
from cluster.kubernetes.submitters import SUBMITTER_CPUS, SUBMITTER_MEMORY_BYTES, submitter_place
from cluster.kubernetes.workloads import Manifest, TrainJob

SPEC_FILE = "/etc/tandem/train/spec.json"
"""Where the head of a job's own cluster has the train spec."""

_SHARED_FOLDER = "/tmp/tandem-train"
_VOLUME = "train-spec"


def rayjob(spec: ClusterSpec, job: TrainJob) -> list[Manifest]:
    """The RayJob or Job, and before it the ConfigMap with its spec.

    Raises:
        ConfigError: no node group can hold the job's workers.
    """
    if spec.training.cluster == "serving":
        return submission(spec, job, _config_map(spec, job))
    if spec.training.cluster == "shared":
        return [_rayjob(spec, job, _in_the_shared_cluster(spec, job), {}, {})]
    body = _with_its_own_cluster(spec, job)
    autoscales = "enableInTreeAutoscaling" in body["rayClusterSpec"]
    annotations = queue_annotations(spec, autoscales=autoscales)
    return [_config_map(spec, job), _rayjob(spec, job, body, queue_labels(spec), annotations)]


def _rayjob(
    spec: ClusterSpec, job: TrainJob, body: Manifest, more_labels: dict[str, str], annotations: dict[str, str]
) -> Manifest:
    metadata = _metadata(spec, job_name(spec, job.name))
    metadata["labels"] |= more_labels
    if annotations:
        metadata["annotations"] = annotations
    # No activeDeadlineSeconds: nobody knows how long a training takes. It may wait so long for its pods.
    waiting = {"preRunningDeadlineSeconds": spec.training.pending_deadline_s}
    return {"apiVersion": RAY_API, "kind": "RayJob", "metadata": metadata, "spec": waiting | body}


def _with_its_own_cluster(spec: ClusterSpec, job: TrainJob) -> Manifest:
    volume = {"name": _VOLUME, "configMap": {"name": train_spec_name(spec, job.name)}}
    mount = {"name": _VOLUME, "mountPath": SPEC_FILE.rpartition("/")[0], "readOnly": True}
    groups = job_groups(spec, job)
    return {
        "entrypoint": _entrypoint(spec, job, SPEC_FILE),
        **_submission(spec),
        # A time to live, and being suspended by a queue, both want a cluster that goes away.
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": spec.training.ttl_s,
        # Each try is a new cluster. Its run has the same id, so it goes on from the last checkpoint in the
        # store.
        "backoffLimit": spec.training.backoff_limit,
        "rayClusterSpec": ray_cluster_spec(
            spec, "training", groups, nodes=told(groups), volumes=[volume], volume_mounts=[mount]
        ),
    }


def _in_the_shared_cluster(spec: ClusterSpec, job: TrainJob) -> Manifest:
    """No tries (the operator refuses them with a selector), no time to live: the cluster stays.

    The running head mounts no ConfigMap of a job that came later, so the spec is in the command. Over HTTP,
    for the submitter's shell would unpack its quotes.
    """
    file = f"{_SHARED_FOLDER}/{job.run_id}.json"
    written = f"mkdir -p {_SHARED_FOLDER} && printf %s {shlex.quote(json.dumps(dict(job.spec)))} > {file}"
    return {
        "entrypoint": f"{written} && exec {_entrypoint(spec, job, file)}",
        "submissionMode": "HTTPMode",
        "clusterSelector": {"ray.io/cluster": cluster_name(spec)},
    }


def _entrypoint(spec: ClusterSpec, job: TrainJob, file: str) -> str:
    words = ["python", "-m", "train_jobs", "run", file, "--store", spec.store.root, "--run-id", job.run_id]
    return shlex.join(words)


def _submission(spec: ClusterSpec) -> dict[str, Any]:
    """How the job is handed to its cluster, with the token either way: the operator knows the Secret.

    A pod of its own (K8sJobMode) follows the log, so ``kubectl logs job/...`` shows it. KAI refuses that: the
    pod would come after its gang. Not SidecarMode: the container that the operator adds to the head then does
    not keep to the "restricted" standard, and the head would be refused.
    """
    if spec.queueing.kind == "kai":
        return {"submissionMode": "HTTPMode"}
    return {"submissionMode": "K8sJobMode", "submitterPodTemplate": _submitter(spec)}


def _submitter(spec: ClusterSpec) -> Manifest:
    """The operator fills in the command, the address and the token."""
    container = {
        "name": "ray-job-submitter",
        **image(spec),
        "resources": resources(cpus=SUBMITTER_CPUS, memory_bytes=SUBMITTER_MEMORY_BYTES),
        "securityContext": CONTAINER_SECURITY,
    }
    return {
        # The network policies let the pods of one cluster talk to each other.
        "metadata": {"labels": pod_labels(spec, part="training", role="submitter")},
        "spec": {
            "restartPolicy": "Never",
            "serviceAccountName": service_account(spec, "training"),
            "automountServiceAccountToken": False,
            "securityContext": pod_security(spec),
            **pull_secrets(spec),
            **submitter_place(spec),
            "containers": [container],
        },
    }


def _config_map(spec: ClusterSpec, job: TrainJob) -> Manifest:
    text = json.dumps(dict(job.spec), indent=2, ensure_ascii=False)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(spec, train_spec_name(spec, job.name)),
        "data": {SPEC_FILE.rpartition("/")[2]: text},
    }


def _metadata(spec: ClusterSpec, name: str) -> Manifest:
    return {"name": name, "namespace": spec.in_namespace, "labels": labels(spec)}
