"""Waiting for a cluster: by conditions, with what keeps it, until it is ready, fails, or time is over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from cluster.kubernetes.apply import apply
from cluster.kubernetes.client import Kubernetes
from cluster.kubernetes.readiness import State, state_of
from cluster.kubernetes.render import render
from cluster.kubernetes.trouble import troubles
from cluster.kubernetes.waiting import wait
from runtime.core.errors import ClusterError, WaitTimeout
from tests.kubernetes.running import PLACE, QUIET, condition, observed, pod
from tests.kubernetes.specs import app, job, spec
from tests.servers.kubernetes_api import Cluster

NO_NODE = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."


def applied(kubernetes: Kubernetes, **changes: Any) -> list[Any]:
    one = spec(**QUIET, **changes)
    manifests = render(one, apps=[app()])
    apply(kubernetes, one, manifests)
    return manifests


def unschedulable(name: str) -> dict[str, Any]:
    waits = condition("PodScheduled", False) | {"reason": "Unschedulable", "message": NO_NODE}
    return pod(name, phase="Pending", ready=False, conditions=[waits])


def waiting_container(reason: str, message: str = "") -> dict[str, Any]:
    return {
        "containerStatuses": [
            {"name": "ray-worker", "state": {"waiting": {"reason": reason, "message": message}}}
        ]
    }


def test_a_service_is_ready_by_its_condition_however_many_workers_are_not(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    manifests = applied(kubernetes)
    kubernetes_api.put(pod("lab-worker-idle", ready=False))
    pictures: list[Sequence[State]] = []

    def show(states: Sequence[State], _: Sequence[str]) -> None:
        pictures.append(states)
        observed(kubernetes_api, "RayService", "lab-serve", conditions=[condition("Ready")])

    wait(kubernetes, spec(**QUIET), manifests, timeout_s=30, show=show)
    assert [one[0].is_ready for one in pictures] == [False, True]


def test_an_account_that_may_not_see_events_or_logs_waits_and_is_told_so_once(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    manifests = applied(kubernetes)
    again = waiting_container("CrashLoopBackOff")
    kubernetes_api.put(pod("lab-worker-a", phase="Pending", ready=False, **again))
    kubernetes_api.forbidden |= {("list", "events"), ("get", "pods")}
    told: list[str] = []

    def show(_: Sequence[State], troubles: Sequence[str]) -> None:
        told.extend(troubles)
        observed(kubernetes_api, "RayService", "lab-serve", conditions=[condition("Ready")])

    wait(kubernetes, spec(**QUIET), manifests, timeout_s=30, show=show)
    crash, events = told
    assert "ends again and again. Its last lines:\n    (not looked at: " in crash
    assert events.startswith("not looked at: Events: you may not list it")


def test_a_status_of_the_spec_before_is_not_waited_out_as_ready() -> None:
    found = {"kind": "RayService", "metadata": {"name": "s", "generation": 7}}
    ready = {"conditions": [condition("Ready")]}
    assert not state_of({**found, "status": {**ready, "observedGeneration": 6}}).is_ready
    assert state_of({**found, "status": {**ready, "observedGeneration": 7}}).is_ready


def test_a_service_that_moves_to_a_new_cluster_is_not_ready_yet() -> None:
    moves = [condition("Ready"), condition("UpgradeInProgress", message="2 of 5 pods")]
    status = {"observedGeneration": 1, "conditions": moves}
    found = state_of({"kind": "RayService", "metadata": {"name": "s", "generation": 1}, "status": status})
    assert (found.is_ready, found.doing) == (False, "2 of 5 pods")


def test_a_ray_cluster_is_ready_with_its_head_and_all_its_workers() -> None:
    def found(*held: dict[str, Any]) -> State:
        counts = {"readyWorkerReplicas": 2, "desiredWorkerReplicas": 3, "observedGeneration": 1}
        metadata = {"name": "lab", "generation": 1}
        return state_of(
            {"kind": "RayCluster", "metadata": metadata, "status": {**counts, "conditions": held}}
        )

    assert found().doing == "the head starts"
    assert found(condition("HeadPodReady")) == State("RayCluster lab", False, "2 of 3 workers")
    assert found(condition("HeadPodReady"), condition("RayClusterProvisioned")).is_ready


def test_what_keeps_pods_and_apps_is_told_once_each(kubernetes: Kubernetes, kubernetes_api: Cluster) -> None:
    applied(kubernetes)
    for name in ("lab-worker-a", "lab-worker-b", "lab-worker-c"):
        kubernetes_api.put(unschedulable(name))
    image = waiting_container("ImagePullBackOff", 'Back-off pulling image "registry.example.com/nope"')
    kubernetes_api.put(pod("lab-head", role="head", group=None, phase="Pending", ready=False, **image))
    kubernetes_api.put(pod("lab-worker-d", ready=False, **waiting_container("CrashLoopBackOff")))
    kubernetes_api.put(
        pod("lab-worker-e", phase="Pending", ready=False, **waiting_container("ContainerCreating"))
    )
    kubernetes_api.logs[PLACE, "lab-worker-d"] = "starting\nImportError: no module named vllm\n"
    apps = {
        "qwen": {"status": "DEPLOY_FAILED", "message": "CUDA out of memory"},
        "front": {"status": "RUNNING"},
    }
    status = {"applicationStatuses": apps, "rayClusterName": "lab-serve-x7k2p"}
    kubernetes_api.set_status("RayService", "lab-serve", {"pendingServiceStatus": status}, namespace=PLACE)

    found = troubles(kubernetes, spec(**QUIET))
    assert f"lab-worker-a and 2 more waits for a node: {NO_NODE}" in found
    assert 'lab-head ImagePullBackOff: Back-off pulling image "registry.example.com/nope"' in found
    assert any(
        "lab-worker-d CrashLoop" in one and one.endswith("ImportError: no module named vllm") for one in found
    )
    assert "app qwen: DEPLOY_FAILED: CUDA out of memory" in found
    assert len(found) == 4


def test_when_time_is_over_it_says_what_is_not_ready_and_why(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    manifests = applied(kubernetes)
    kubernetes_api.put(unschedulable("lab-worker-a"))
    with pytest.raises(
        WaitTimeout, match=r"(?s)RayService lab-serve: .*3 Insufficient nvidia.com/gpu.*goes on"
    ):
        wait(kubernetes, spec(**QUIET), manifests, timeout_s=0)


def test_a_job_that_failed_ends_the_wait(kubernetes: Kubernetes, kubernetes_api: Cluster) -> None:
    one = spec(**QUIET)
    manifests = render(one, jobs=[job()])
    apply(kubernetes, one, manifests)
    failed = {"jobDeploymentStatus": "Failed", "reason": "PreRunningDeadlineExceeded"}
    observed(kubernetes_api, "RayJob", "lab-sft", **failed)
    with pytest.raises(ClusterError, match="RayJob lab-sft: Failed: PreRunningDeadlineExceeded"):
        wait(kubernetes, one, manifests, timeout_s=30)


def test_why_a_submission_failed_is_told_in_its_own_words(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    one = spec(**QUIET, training={"cluster": "serving"})
    manifests = render(one, apps=[app()], jobs=[job()])
    apply(kubernetes, one, manifests)
    (name,) = kubernetes_api.names("Job")
    for at, line in enumerate(("first", "dataset is 'nobody'")):
        began = {"phase": "Failed", "startTime": f"2026-11-27T10:00:0{at}Z"}
        tried = pod(f"{name}-{at}", role="submitter", group=None, part="training", ready=False, **began)
        tried["metadata"]["labels"]["batch.kubernetes.io/job-name"] = name
        kubernetes_api.put(tried)
        kubernetes_api.logs[PLACE, f"{name}-{at}"] = f"started\n{line}\n"
    failed = condition("Failed", message="Job has reached the specified backoff limit")
    kubernetes_api.set_status("Job", name, {"conditions": [failed]}, namespace=PLACE)
    with pytest.raises(
        ClusterError, match="(?s)backoff limit.*a try failed.*started\n    dataset is 'nobody'"
    ):
        wait(kubernetes, one, manifests, timeout_s=30)


def test_a_job_is_waited_for_until_it_runs_not_until_it_ends(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    one = spec(**QUIET)
    manifests = render(one, jobs=[job()])
    apply(kubernetes, one, manifests)
    observed(kubernetes_api, "RayJob", "lab-sft", jobDeploymentStatus="Running")
    wait(kubernetes, one, manifests, timeout_s=30)


def test_a_claim_is_waited_for_until_it_is_bound(kubernetes: Kubernetes, kubernetes_api: Cluster) -> None:
    one = spec(**QUIET, store={"nfs": {"server": "10.0.0.9", "path": "/export"}})
    manifests = [each for each in render(one, jobs=[job()]) if each["kind"] != "RayJob"]
    apply(kubernetes, one, manifests)
    with pytest.raises(WaitTimeout, match="PersistentVolumeClaim lab-store: Pending"):
        wait(kubernetes, one, manifests, timeout_s=0)
    kubernetes_api.set_status("PersistentVolumeClaim", "lab-store", {"phase": "Bound"}, namespace=PLACE)
    wait(kubernetes, one, manifests, timeout_s=30)


def test_an_api_server_that_is_away_for_a_while_does_not_end_the_wait(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    manifests = applied(kubernetes)
    # More than the official client tries by itself.
    kubernetes_api.outage = 7
    observed(kubernetes_api, "RayService", "lab-serve", conditions=[condition("Ready")])
    wait(kubernetes, spec(**QUIET), manifests, timeout_s=30)
    assert kubernetes_api.outage == 0


def test_what_the_operator_warned_of_is_told(kubernetes: Kubernetes, kubernetes_api: Cluster) -> None:
    manifests = applied(kubernetes)
    about = {"involvedObject": {"kind": "RayService", "name": "lab-serve"}, "type": "Warning"}
    for name, time, message in (
        ("b", "2026-11-27T10:00:09Z", "stepSize"),
        ("a", "2026-11-27T09:59:00Z", "old"),
    ):
        event = {"apiVersion": "v1", "kind": "Event", "metadata": {"name": name, "namespace": PLACE}}
        kubernetes_api.put(
            {**event, **about, "reason": "InvalidSpec", "message": message, "lastTimestamp": time}
        )
    with pytest.raises(WaitTimeout, match="RayService lab-serve InvalidSpec: stepSize"):
        wait(kubernetes, spec(**QUIET), manifests, timeout_s=0)
