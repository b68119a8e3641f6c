"""Training in the Ray cluster that serves: one ledger over all GPUs, and jobs that are submitted into it.

A RayJob cannot go there: it selects a cluster by its name, and that of a RayService's cluster changes with
every upgrade. So a Job of Kubernetes' own does what a person would: ``ray job submit``, to a Service that
follows the head. Where the cluster is lost, or the driver, the next try submits the same run again, to the
cluster that is there then.
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
    Part,
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
from cluster.kubernetes.submitters import SUBMITTER_CPUS, SUBMITTER_MEMORY_BYTES, submitter_place
from cluster.kubernetes.workloads import Manifest, TrainJob

_FOLDER = "/etc/tandem/train"
_FILE = "spec.json"

_SUBMITTED = "/tmp/tandem-submitted"
"""A file that is there once the run is on a cluster: only then the pod is ready."""

_SCRIPT = """\
# The cluster may still wait for its nodes.
timeout {patience_s} bash -c 'until ray job list > /dev/null 2>&1; do sleep 5; done' || exit 1
# A Ray cluster keeps the id of a submission for as long as it lives. So a try after one that ended has an id
# of its own; the run is the same, and says by itself whether it goes on.
try=1
while true; do
  id={run_id}-$try
  case "$(ray job status $id 2>&1)" in
    *"Job '$id' failed"* | *"Job '$id' was stopped"*) try=$((try + 1)) ;;
    *) break ;;
  esac
done
# Refused where another pod has submitted it: then it is followed, for a run has one driver.
ray job submit --no-wait --submission-id $id --working-dir {folder} -- {entrypoint}
unknown=0
while [ $unknown -lt 12 ]; do
  if ray job status $id > /dev/null 2>&1; then touch {submitted}; fi
  # The log's connection may break while the run goes on.
  ray job logs --follow $id
  case "$(ray job status $id 2>&1)" in
    *"Job '$id' succeeded"*) exit 0 ;;
    *"Job '$id' failed"* | *"Job '$id' was stopped"*) exit 1 ;;
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
    """The Service of the head to which jobs are submitted."""
    return check_name(f"{spec.name}-head", kind="Service")


def head_service(spec: ClusterSpec, part: Part) -> Manifest:
    """An address for the head that stays when the cluster behind it is another.

    Args:
        part: Whose cluster: of the apps, or, where there are none, the one for all.
    """
    ports = {"name": "dashboard", "protocol": "TCP", "port": DASHBOARD_PORT, "targetPort": DASHBOARD_PORT}
    selected = {CLUSTER_LABEL: spec.name, PART_LABEL: part, ROLE_LABEL: "head"}
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


def script(spec: ClusterSpec, job: TrainJob, *, folder: str = _FOLDER, submitted: str = _SUBMITTED) -> str:
    """What the Job's pod runs: submit, follow, and end as the run ends.

    Args:
        folder: Holds the train spec; Ray takes it to the head.
        submitted: The file that it makes once the run is on the cluster.
    """
    words = ["python", "-m", "train_jobs", "run", _FILE, "--store", spec.store.root, "--run-id", job.run_id]
    return _SCRIPT.format(
        patience_s=spec.training.pending_deadline_s,
        run_id=shlex.quote(job.run_id),
        folder=shlex.quote(folder),
        submitted=shlex.quote(submitted),
        entrypoint=shlex.join(words),
    )


def _pod(spec: ClusterSpec, job: TrainJob) -> Manifest:
    container = {
        "name": "submitter",
        **image(spec),
        "command": ["bash", "-c", script(spec, job)],
        "env": _env(spec),
        "resources": resources(cpus=SUBMITTER_CPUS, memory_bytes=SUBMITTER_MEMORY_BYTES),
        "securityContext": CONTAINER_SECURITY,
        # A pod that still waits for a cluster trains nothing, however well it runs.
        "readinessProbe": {"exec": {"command": ["test", "-e", _SUBMITTED]}, "periodSeconds": 5},
        "volumeMounts": [{"name": "train-spec", "mountPath": _FOLDER, "readOnly": True}],
    }
    return {
        "restartPolicy": "Never",
        "serviceAccountName": service_account(spec, "training"),
        "automountServiceAccountToken": False,
        "securityContext": pod_security(spec),
        **pull_secrets(spec),
        **submitter_place(spec),
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
