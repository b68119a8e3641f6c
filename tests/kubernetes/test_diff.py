"""What an apply would change, without changing it."""

from __future__ import annotations

import copy
from typing import Any

from cluster.kubernetes.apply import apply
from cluster.kubernetes.client import Kubernetes
from cluster.kubernetes.diff import differences
from cluster.kubernetes.render import render
from cluster.kubernetes.workloads import Manifest
from tests.kubernetes.running import PLACE, QUIET, condition, observed
from tests.kubernetes.specs import L4_GROUP, app, job, spec
from tests.servers.kubernetes_api import Cluster


def manifests(**changes: Any) -> list[Manifest]:
    return render(spec(**QUIET, **changes), apps=[app()])


def test_before_the_first_apply_all_is_new_and_nothing_is_made(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    found = differences(kubernetes, spec(**QUIET), manifests())
    assert [one.kind for one in found] == ["new"] * len(manifests())
    assert "+kind: RayService" in next(one.text for one in found if one.title == "RayService lab-serve")
    assert PLACE not in kubernetes_api.names("Namespace")


def test_after_an_apply_nothing_differs_whatever_operators_wrote(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    apply(kubernetes, spec(**QUIET), manifests())
    observed(kubernetes_api, "RayService", "lab-serve", conditions=[condition("Ready")])
    assert differences(kubernetes, spec(**QUIET), manifests()) == []


def test_a_change_is_shown_as_the_lines_that_change(kubernetes: Kubernetes, kubernetes_api: Cluster) -> None:
    apply(kubernetes, spec(**QUIET), manifests())
    before = kubernetes_api.get("RayService", "lab-serve", namespace=PLACE)
    all_of_it = differences(kubernetes, spec(**QUIET), manifests(node_groups=[L4_GROUP | {"count": 7}]))
    found = next(one for one in all_of_it if one.title == "RayService lab-serve")
    assert found.kind == "changed"
    changed = [line.strip("+- ") for line in found.text.splitlines()[2:] if line[0] in "+-"]
    assert sorted(changed) == [
        *("maxReplicas: 3", "maxReplicas: 7", "minReplicas: 3", "minReplicas: 7"),
        *("replicas: 3", "replicas: 7"),
    ]
    assert kubernetes_api.get("RayService", "lab-serve", namespace=PLACE) == before


def test_a_conflict_is_shown_with_who_holds_the_field(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    apply(kubernetes, spec(**QUIET), manifests())
    by_hand = {"spec": {"rayClusterDeletionDelaySeconds": 5}}
    kubernetes_api.change("RayService", "lab-serve", by_hand, namespace=PLACE, manager="anna")
    (found,) = differences(kubernetes, spec(**QUIET), manifests())
    assert found.conflict is not None and "(set by 'anna')" in found.conflict
    assert "-  rayClusterDeletionDelaySeconds: 5" in found.text


def test_what_is_no_longer_rendered_is_listed_once_it_has_ended(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    apply(kubernetes, spec(**QUIET), render(spec(**QUIET), apps=[app()], jobs=[job()]))
    # While it runs, no apply ends it.
    assert differences(kubernetes, spec(**QUIET), manifests()) == []
    kubernetes_api.set_status("RayJob", "lab-sft", {"jobDeploymentStatus": "Complete"}, namespace=PLACE)
    found = differences(kubernetes, spec(**QUIET), manifests())
    assert {(one.title, one.kind) for one in found} >= {("RayJob lab-sft", "no longer rendered")}
    assert {one.kind for one in found} == {"no longer rendered"}


def test_an_apply_that_was_cut_off_before_the_running_cluster_is_shown(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    apply(kubernetes, spec(**QUIET), manifests())
    service = kubernetes_api.get("RayService", "lab-serve", namespace=PLACE)
    assert service is not None
    # The cluster is still as the apply before made it.
    behind = copy.deepcopy(service["spec"]["rayClusterConfig"])
    behind["workerGroupSpecs"][0] |= {"replicas": 2, "minReplicas": 2, "maxReplicas": 2}
    cluster = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "spec": behind}
    owner = {"apiVersion": "ray.io/v1", "kind": "RayService", "name": "lab-serve", "uid": "u"}
    place = {"name": "lab-serve-x7k2p", "namespace": PLACE, "ownerReferences": [owner]}
    kubernetes_api.put({**cluster, "metadata": place}, manager="kuberay-operator")
    active = {"activeServiceStatus": {"rayClusterName": "lab-serve-x7k2p"}}
    kubernetes_api.set_status("RayService", "lab-serve", active, namespace=PLACE)

    (found,) = differences(kubernetes, spec(**QUIET), manifests())
    assert (found.title, found.kind) == ("RayCluster lab-serve-x7k2p", "changed")
    changed = [line.strip("+- ") for line in found.text.splitlines()[2:] if line[0] in "+-"]
    assert sorted(changed) == [
        *("maxReplicas: 2", "maxReplicas: 3", "minReplicas: 2", "minReplicas: 3"),
        *("replicas: 2", "replicas: 3"),
    ]
    apply(kubernetes, spec(**QUIET), manifests())
    assert differences(kubernetes, spec(**QUIET), manifests()) == []
