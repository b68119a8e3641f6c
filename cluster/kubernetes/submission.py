"""Training in the Ray cluster that serves: one ledger over all GPUs, and jobs that are submitted into it.

A RayJob cannot go there: it selects a cluster by its name, and that of a RayService's cluster changes with
every upgrade. So a Job of Kubernetes' own does what a person would: ``ray job submit``, to a Service that
follows the head. Where that cluster is lost, the next try submits the same run to the one in its place.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from typing import Any

from cluster.cluster_spec import ClusterSpec
from cluster.kubernetes.names import (
    CLUSTER_LABEL,
    PART_LABEL,
    ROLE_LABEL,
    check_name,
    job_name,
    labels,
    pod_labels,
    service_account,
    token_secret,
    train_spec_name,
)
from cluster.kubernetes.network import DASHBOARD_PORT
from cluster.kubernetes.pods import CONTAINER_SECURITY, image, pod_security, pull_secrets
from cluster.kubernetes.quantities import resources
from cluster.kubernetes.workloads import Manifest, TrainJob

_FOLDER = "/etc/tandem/train"
_FILE = "spec.json"

_SCRIPT = """\
# The cluster may still wait for its nodes.
timeout {patience_s} bash -c 'until ray job list > /dev/null 2>&1; do sleep 5; done' || exit 1
# Refused where a try before this one has submitted it: then it is followed.
ray job submit --no-wait --submission-id {run_id} --working-dir {folder} -- {entrypoint}
unknown=0
while [ $unknown -lt 12 ]; do
  # The log's connection may break while the run goes on.
  ray job logs --follow {run_id}
  case "$(ray job status {run_id} 2>&1)" in
    *"' succeeded"*) exit 0 ;;
    *"' failed"* | *"' was stopped"*) exit 1 ;;
    *RUNNING* | *PENDING*) unknown=0 ;;
    *) unknown=$((unknown + 1)) ;;
  esac
  sleep 5
done
exit 1
"""

_EVICTIONS_DO_NOT_COUNT = {
    # The run goes on meanwhile; the next pod follows it.
    "rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]
}


def head_name(spec: ClusterSpec) -> str:
    """The Service of the serving cluster's head."""
    return check_name(f"{spec.name}-head", kind="Service")


def head_service(spec: ClusterSpec) -> Manifest:
    """An address for the head that stays when the cluster behind it is another."""
    ports = {"name": "dashboard", "protocol": "TCP", "port": DASHBOARD_PORT, "targetPort": DASHBOARD_PORT}
    selected = {CLUSTER_LABEL: spec.name, PART_LABEL: "serving", ROLE_LABEL: "head"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(spec, head_name(spec)),
        "spec": {"type": "ClusterIP", "selector": selected, "ports": [ports]},
    }


def submission(spec: ClusterSpec, job: TrainJob, config_map: Manifest) -> list[Manifest]:
    """The ConfigMap with the train spec, and the Job that submits it and follows its log.

    Args:
        config_map: With the spec as ``spec.json``.
    """
    body = {
        # Each try goes on with the same run, from its last checkpoint.
        "backoffLimit": spec.training.backoff_limit,
        "podFailurePolicy": _EVICTIONS_DO_NOT_COUNT,
        "ttlSecondsAfterFinished": spec.training.ttl_s,
        "template": {
            "metadata": {"labels": pod_labels(spec, part="training", role="submitter")},
            "spec": _pod(spec, job),
        },
    }
    # Its template can never be changed: another spec or image is another Job.
    mark = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:8]
    metadata = _metadata(spec, job_name(spec, f"{job.name}-{mark}"))
    return [config_map, {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": body}]


def script(spec: ClusterSpec, job: TrainJob, *, folder: str = _FOLDER) -> str:
    """What the Job's pod runs: submit, follow, and end as the run ends.

    Args:
        folder: Holds the train spec; Ray takes it to the head.
    """
    words = ["python", "-m", "train_jobs", "run", _FILE, "--store", spec.store.root, "--run-id", job.run_id]
    return _SCRIPT.format(
        patience_s=spec.training.pending_deadline_s,
        run_id=shlex.quote(job.run_id),
        folder=shlex.quote(folder),
        entrypoint=shlex.join(words),
    )


def _pod(spec: ClusterSpec, job: TrainJob) -> Manifest:
    container = {
        "name": "submitter",
        **image(spec),
        "command": ["bash", "-c", script(spec, job)],
        "env": _env(spec),
        "resources": resources(cpus=0.5, memory_bytes=2**30),
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": [{"name": "train-spec", "mountPath": _FOLDER, "readOnly": True}],
    }
    return {
        "restartPolicy": "Never",
        "serviceAccountName": service_account(spec, "training"),
        "automountServiceAccountToken": False,
        "securityContext": pod_security(spec),
        **pull_secrets(spec),
        "containers": [container],
        "volumes": [{"name": "train-spec", "configMap": {"name": train_spec_name(spec, job.name)}}],
    }


def _env(spec: ClusterSpec) -> list[dict[str, Any]]:
    env: list[dict[str, Any]] = [
        {"name": "RAY_ADDRESS", "value": f"http://{head_name(spec)}:{DASHBOARD_PORT}"},
        {"name": "RAY_AUTH_MODE", "value": "disabled" if spec.auth.mode == "none" else "token"},
    ]
    if spec.auth.mode == "token":
        token = {"name": token_secret(spec), "key": "auth_token"}
        env.append({"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": token}})
    return env


def _metadata(spec: ClusterSpec, name: str) -> Manifest:
    return {"name": name, "namespace": spec.in_namespace, "labels": labels(spec)}
