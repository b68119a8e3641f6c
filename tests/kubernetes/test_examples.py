"""The cluster specs in examples/clusters: each renders as its header says, and Kubernetes would take it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.cluster_spec import ClusterSpec
from cluster.kubernetes.check import check
from cluster.kubernetes.render import render
from cluster.kubernetes.workloads import Manifest
from cluster.simulation_spec import load_cluster
from runtime.core.config import load_spec
from tests.conftest import ROOT
from tests.kubernetes.accepted import assert_accepted, crds, only, pod_templates
from tests.kubernetes.specs import app, job

FOLDER = ROOT / "examples" / "clusters"
FILES = sorted(FOLDER.glob("*.yaml"))
ALONE = {"level-0", "level-1"}
"""Levels of one node, which training and serving share: rendered without train and serve specs."""


def rendered(name: str, *, gpus_per_worker: float = 1.0) -> list[Manifest]:
    spec = load_spec(ClusterSpec, FOLDER / f"{name}.yaml")
    if name in ALONE:
        return render(spec)
    return render(spec, apps=[app()], jobs=[job(gpus_per_worker=gpus_per_worker)])


def workers(found: list[Manifest], kind: str) -> dict[str, Any]:
    """Least and most nodes by group, of the only object of the kind."""
    body = only(found, kind)["spec"]
    cluster = body.get("rayClusterSpec") or body.get("rayClusterConfig") or body
    return {
        group["groupName"]: (group["minReplicas"], group["maxReplicas"])
        for group in cluster["workerGroupSpecs"]
    }


def test_there_is_an_example_for_every_level_and_for_both_kinds_of_sites():
    names = {file.stem for file in FILES}
    assert names == {"level-0", "level-1", "level-2-nfs", "level-2-gke", "on-premises"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_example_says_its_command_is_short_and_renders_to_what_kubernetes_takes(file: Path):
    text = file.read_text()
    assert f"#   tandem render examples/clusters/{file.name}" in text.splitlines()[2]
    assert len([line for line in text.splitlines() if not line.startswith("#")]) < 45
    found = rendered(file.stem)
    assert_accepted(found)
    assert [fault for fault in check(found, crds()) if not fault.warning] == []
    # Names of Secrets only.
    assert "Secret" not in {one["kind"] for one in found}


@pytest.mark.parametrize(("name", "gpus"), [("level-0", 1), ("level-1", 4)])
def test_one_node_is_one_ray_cluster_whose_worker_has_all_cards(name: str, gpus: int):
    found = rendered(name)
    assert [one["kind"] for one in found if one["apiVersion"] == "ray.io/v1"] == ["RayCluster"]
    assert only(found, "RayCluster")["metadata"]["name"] == name
    head, worker = [template["spec"] for _, _, template in pod_templates(found)]
    assert worker["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == str(gpus)
    for pod in (head, worker):
        assert {"path": "/srv/tandem", "type": "Directory"} in [one.get("hostPath") for one in pod["volumes"]]
    endpoint = only(found, "Service")["spec"]
    assert (endpoint["type"], endpoint["selector"]["tandem.dev/role"]) == ("ClusterIP", "head")


def test_the_nfs_example_serves_on_one_to_three_nodes_and_trains_on_one():
    found = rendered("level-2-nfs")
    assert only(found, "PersistentVolume")["spec"]["nfs"]["path"] == "/exports/tandem"
    assert workers(found, "RayService") == {"a100": (1, 3)}
    assert workers(found, "RayJob") == {"a100": (1, 1)}  # three workers on a node of four cards
    balancer = only(found, "Service")["spec"]
    assert (balancer["type"], balancer["loadBalancerSourceRanges"]) == ("LoadBalancer", ["10.0.0.0/8"])
    assert only(found, "PodDisruptionBudget")


def test_the_gke_example_has_identities_instead_of_keys_spot_nodes_and_a_gateway():
    found = rendered("level-2-gke")
    accounts = [one for one in found if one["kind"] == "ServiceAccount"]
    assert len([one for one in accounts if one["metadata"]["annotations"]]) == 3
    assert workers(found, "RayService") == {"l4": (1, 6), "a100-spot": (0, 2)}
    kinds = {one["kind"] for one in found}
    assert {"Gateway", "HTTPRoute", "GCPBackendPolicy", "HealthCheckPolicy"} <= kinds
    # GKE's own device plugin has no namespace gpu-operator.
    assert "ServiceMonitor" not in kinds
    spot = [
        template["spec"]["nodeSelector"]
        for _, _, template in pod_templates(found)
        if template["metadata"]["labels"].get("tandem.dev/group") == "a100-spot"
    ]
    assert spot and all(one["cloud.google.com/gke-spot"] == "true" for one in spot)
    assert all(one["iam.gke.io/gke-metadata-server-enabled"] == "true" for one in spot)


def test_the_example_on_premises_has_redis_a_queue_an_ingress_and_keys_from_a_secret():
    found = rendered("on-premises")
    cluster = only(found, "RayService")["spec"]["rayClusterConfig"]
    assert cluster["gcsFaultToleranceOptions"]["redisAddress"] == "redis.example.com:6379"
    assert only(found, "RayJob")["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "training"
    assert only(found, "Ingress")["spec"]["tls"][0]["secretName"] == "llm-tls"
    pods = [template["spec"] for _, name, template in pod_templates(found) if name in ("head", "worker")]
    assert {pod["containers"][0]["envFrom"][0]["secretRef"]["name"] for pod in pods} == {"minio"}
    egress = only(found, "NetworkPolicy", "lab-store")["spec"]["egress"]
    assert {"protocol": "TCP", "port": 9000} in egress[0]["ports"]


@pytest.mark.parametrize(
    ("name", "cards"),
    [("level-0", 1), ("level-1", 4), ("level-2-nfs", 12), ("level-2-gke", 22), ("on-premises", 32)],
)
def test_every_example_can_be_simulated(name: str, cards: int):
    inventory, classes = load_cluster(FOLDER / f"{name}.yaml")
    assert (inventory.cards, classes[0]) == (cards, "interactive")
