"""``tandem migrate time-slicing`` on a stand-in for a cluster: whole, interrupted, blocked, dry."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.kubernetes.client import Kubernetes
from cluster.kubernetes.leaving_time_slicing import Step, plan
from cluster.kubernetes.time_slicing import CONFIG_LEFT, CORDONED_BY_US
from cluster.kubernetes.time_slicing_steps import carry_out, look
from runtime.core.errors import ClusterError
from tests.conftest import ROOT
from tests.kubernetes.sliced import HOME, config_map, make_whole, node, operator, pod, policy, slice_up
from tests.servers.kubernetes_api import Cluster

WRITES = ("POST", "PATCH", "PUT", "DELETE")


@pytest.fixture
def sliced(kubernetes_api: Cluster) -> Cluster:
    slice_up(kubernetes_api)
    return kubernetes_api


def tandem(cluster: Cluster, folder: Path, *words: str) -> tuple[int, str]:
    """The command in a process of its own: Kubernetes' client reads KUBECONFIG when it is imported."""
    kubeconfig = str(cluster.kubeconfig(folder / "kubeconfig"))
    done = subprocess.run(
        [sys.executable, "-m", "runtime", "migrate", "time-slicing", *words],
        env=os.environ | {"KUBECONFIG": kubeconfig, "COLUMNS": "200", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout


def writes(cluster: Cluster) -> list[tuple[str, str]]:
    return [(method, path) for method, path in cluster.requests if method in WRITES]


def assert_left(cluster: Cluster) -> None:
    """All of time-slicing is gone, nothing of ours is left behind, and nodes take pods again."""
    found = cluster.get("ClusterPolicy", "cluster-policy")
    assert found is not None
    assert found["spec"] == {"devicePlugin": {"enabled": True}, "driver": {"enabled": True}}
    assert CONFIG_LEFT not in (found["metadata"].get("annotations") or {})
    assert cluster.get("ConfigMap", "slices", namespace=HOME) is None
    for name in ("gpu-1", "gpu-2", "gpu-3"):
        one = cluster.get("Node", name)
        assert one is not None
        assert one["spec"].get("unschedulable") is None
        assert CORDONED_BY_US not in (one["metadata"].get("annotations") or {})
        assert "nvidia.com/device-plugin.config" not in one["metadata"]["labels"]
        assert one["status"]["allocatable"]["nvidia.com/gpu"] == "2"
    assert sorted(cluster.names("Pod")) == ["exporter", "no-gpu", "on-a-whole-card"]


def run(kubernetes: Kubernetes, *, stop_before: int | None = None) -> list[Step]:
    """Carry out a plan made now, and stop as a killed process would before step number ``stop_before``."""
    steps = plan(look(kubernetes))
    carry_out(kubernetes, steps[:stop_before], timeout_s=20, on_step=lambda _: None)
    return steps


def test_the_whole_migration(sliced: Cluster, tmp_path: Path) -> None:
    with operator(sliced):
        code, output = tandem(sliced, tmp_path, "--yes")
    assert code == 0, output
    assert "[1/11] Keep new pods off node gpu-1" in output
    assert output.endswith("Done.\n")
    assert_left(sliced)


def test_without_yes_all_is_shown_and_nothing_is_written(sliced: Cluster, tmp_path: Path) -> None:
    code, output = tandem(sliced, tmp_path)
    assert code == 0, output
    assert writes(sliced) == []
    assert "any: nvidia.com/gpu into 4 by time-slicing" in output
    assert "default/web-b" in output and "ReplicaSet/web" in output
    assert "kubectl delete configmap slices --namespace nvidia-system --ignore-not-found" in output
    assert "Nothing was changed." in output


def test_as_json_the_same_is_plain_data(sliced: Cluster, tmp_path: Path) -> None:
    _, output = tandem(sliced, tmp_path, "--json", "--context", "stand-in")
    report = json.loads(output)
    assert writes(sliced) == []
    assert report["done"] is False
    assert [step["do"] for step in report["steps"]].count("evict") == 2
    assert report["steps"][0]["commands"] == ["kubectl --context stand-in cordon gpu-1"]
    assert [one["node"] for one in report["found"]["nodes"]] == ["gpu-1", "gpu-2"]
    assert report["found"]["nodes"][0]["offers"] == "8 nvidia.com/gpu"


def test_nothing_to_do(kubernetes_api: Cluster, tmp_path: Path) -> None:
    kubernetes_api.put(node("gpu-3"))
    assert tandem(kubernetes_api, tmp_path, "--yes") == (0, "Nothing to do.\n")
    assert writes(kubernetes_api) == []


def test_a_second_run_has_nothing_to_do(sliced: Cluster, tmp_path: Path) -> None:
    with operator(sliced):
        tandem(sliced, tmp_path, "--yes")
        sliced.requests.clear()
        _, output = tandem(sliced, tmp_path, "--yes")
    assert output.endswith("Nothing to do.\n")
    assert writes(sliced) == []


@pytest.mark.parametrize("done", range(12))
def test_interrupted_after_any_step_a_second_run_goes_on(
    sliced: Cluster, kubernetes: Kubernetes, done: int
) -> None:
    with operator(sliced):
        steps = run(kubernetes, stop_before=done)
        assert len(steps) == 11
        run(kubernetes)
    assert_left(sliced)


def test_a_node_that_was_cordoned_before_stays_cordoned(sliced: Cluster, kubernetes: Kubernetes) -> None:
    sliced.change("Node", "gpu-2", {"spec": {"unschedulable": True}})
    with operator(sliced):
        run(kubernetes, stop_before=3)
        run(kubernetes)
    theirs, ours = sliced.get("Node", "gpu-2"), sliced.get("Node", "gpu-1")
    assert theirs is not None and theirs["spec"]["unschedulable"] is True
    assert ours is not None and "unschedulable" not in ours["spec"]


def budget(name: str, allowed: int) -> dict[str, Any]:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"minAvailable": 2, "selector": {"matchLabels": {"app": "web"}}},
        "status": {"disruptionsAllowed": allowed},
    }


def test_a_budget_that_allows_nothing_stops_it_before_anything_is_lost(
    sliced: Cluster, kubernetes: Kubernetes
) -> None:
    sliced.put(budget("keep-web", 0))
    with pytest.raises(ClusterError, match="default/web-a.*PodDisruptionBudget keep-web allows no"):
        carry_out(kubernetes, plan(look(kubernetes)), timeout_s=0, on_step=lambda _: None)
    assert "web-a" in sliced.names("Pod")
    found = sliced.get("ClusterPolicy", "cluster-policy")
    assert found is not None and found["spec"]["devicePlugin"]["config"]["name"] == "slices"


def test_once_the_budget_allows_it_the_next_run_goes_on(sliced: Cluster, kubernetes: Kubernetes) -> None:
    sliced.put(budget("keep-web", 1))
    with operator(sliced):
        # The first pod uses up what the budget allows.
        with pytest.raises(ClusterError, match="default/web-b"):
            carry_out(kubernetes, plan(look(kubernetes)), timeout_s=0, on_step=lambda _: None)
        sliced.put(budget("keep-web", 1))
        run(kubernetes)
    assert_left(sliced)


def test_a_pod_that_does_not_end_is_named(sliced: Cluster, kubernetes: Kubernetes) -> None:
    sliced.change("Pod", "web-a", {"metadata": {"finalizers": ["example.com/slow"]}}, namespace="default")
    with pytest.raises(ClusterError, match="default/web-a was asked to end and has not.*finalizer"):
        carry_out(kubernetes, plan(look(kubernetes)), timeout_s=0, on_step=lambda _: None)


def test_a_node_that_goes_on_sharing_is_named_and_stays_cordoned(
    sliced: Cluster, kubernetes: Kubernetes
) -> None:
    # No operator runs: nobody takes the replicas away.
    with pytest.raises(ClusterError, match="gpu-1 did not offer whole GPUs.*sharing-strategy=time-slicing"):
        carry_out(kubernetes, plan(look(kubernetes)), timeout_s=0, on_step=lambda _: None)
    found = sliced.get("Node", "gpu-1")
    assert found is not None and found["spec"]["unschedulable"] is True


def test_a_node_that_goes_on_sharing_does_not_keep_the_others(
    sliced: Cluster, kubernetes: Kubernetes
) -> None:
    steps = plan(look(kubernetes))
    make_whole(sliced, "gpu-2")
    with pytest.raises(ClusterError, match="Node gpu-1 did not offer whole GPUs"):
        carry_out(kubernetes, steps, timeout_s=0, on_step=lambda _: None)
    shared, whole = sliced.get("Node", "gpu-1"), sliced.get("Node", "gpu-2")
    assert shared is not None and shared["spec"]["unschedulable"] is True
    assert whole is not None and "unschedulable" not in whole["spec"]


def test_a_config_that_somebody_put_back_is_told(sliced: Cluster, kubernetes: Kubernetes) -> None:
    steps = plan(look(kubernetes))
    waits = [step.verb for step in steps].index("wait")
    carry_out(kubernetes, steps[:waits], timeout_s=20, on_step=lambda _: None)
    sliced.put(policy(), manager="argocd-controller")
    sliced.put(config_map())
    with pytest.raises(ClusterError, match="somebody set spec.devicePlugin.config of ClusterPolicy cluster"):
        carry_out(kubernetes, steps[waits:], timeout_s=0, on_step=lambda _: None)


def test_a_pod_that_nobody_would_make_anew_stops_it_before_any_change(
    sliced: Cluster, tmp_path: Path
) -> None:
    sliced.put(pod("notebook", "gpu-1", owner=None))
    code, output = tandem(sliced, tmp_path, "--yes")
    assert code == 1 and "default/notebook: nobody makes these pods anew" in output
    assert writes(sliced) == []
    with operator(sliced):
        assert tandem(sliced, tmp_path, "--yes", "--force")[0] == 0
    assert_left(sliced)
