"""An apply beside what is there: others' namespaces, apps that serve already, a cluster that holds the
nodes."""

from __future__ import annotations

from typing import Any

from cluster.kubernetes.apply import apply
from cluster.kubernetes.client import Kubernetes
from cluster.kubernetes.diff import differences
from cluster.kubernetes.owned import API_VERSIONS
from cluster.kubernetes.render import render
from tests.kubernetes.running import operator_turns
from tests.kubernetes.specs import app, job, spec
from tests.servers.kubernetes_api import Cluster

PLACE = "tandem-lab"
ENFORCED = "pod-security.kubernetes.io/enforce"
QUIET: dict[str, Any] = {"monitoring": {"enabled": False}}


def selected(kubernetes_api: Cluster) -> dict[str, str]:
    """What the endpoint's Service selects."""
    found = kubernetes_api.get("Service", "lab-endpoint", namespace=PLACE)
    assert found is not None
    return dict(found["spec"]["selector"])


def test_a_namespace_that_was_there_keeps_its_labels_and_one_that_was_made_is_labelled(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    kubernetes_api.put(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": PLACE}}, manager="others"
    )
    done = apply(kubernetes, spec(**QUIET), render(spec(**QUIET), apps=[app()]))
    found = kubernetes_api.get("Namespace", PLACE)
    assert found is not None
    assert ENFORCED not in (found["metadata"].get("labels") or {})
    assert any(
        "stays as it is; it must let in pods of the standard 'restricted'" in note for note in done.notes
    )

    ours = spec(**QUIET, namespace="new-one")
    apply(kubernetes, ours, render(ours, apps=[app()]))
    made = kubernetes_api.get("Namespace", "new-one")
    assert made is not None
    assert made["metadata"]["labels"][ENFORCED] == "restricted"


def test_an_apply_without_the_serve_specs_leaves_the_door_of_running_apps(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    served = spec(**QUIET, training={"cluster": "shared"})
    apply(kubernetes, served, render(served, apps=[app()]))
    operator_turns(kubernetes_api, "lab-serve-a")
    before = selected(kubernetes_api)
    assert before["ray.io/cluster"] == "lab-serve-a"
    done = apply(kubernetes, served, render(served, jobs=[job()]))
    assert selected(kubernetes_api) == before
    assert any("its endpoint stays as it is" in note for note in done.notes)
    assert "lab-shared-endpoint" not in kubernetes_api.names("Service")
    assert kubernetes_api.names("RayJob") == ["lab-sft"]


def test_a_cluster_file_alone_makes_no_second_cluster_beside_the_apps(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    alone = spec(**QUIET)
    apply(kubernetes, alone, render(alone, apps=[app()]))
    apply(kubernetes, alone, render(alone))
    assert kubernetes_api.names("RayCluster") == []
    changed = [
        one.title for one in differences(kubernetes, alone, render(alone)) if one.kind != "no longer rendered"
    ]
    assert changed == []


def test_a_cluster_that_holds_the_nodes_of_the_apps_is_named(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    alone = spec(**QUIET)
    apply(kubernetes, alone, render(alone))
    done = apply(kubernetes, alone, render(alone, apps=[app()]))
    assert any("RayCluster lab is no longer rendered and holds its nodes" in note for note in done.notes)


def test_every_kind_that_is_rendered_is_found_again() -> None:
    for endpoint in (
        {"kind": "LoadBalancer"},
        {"kind": "Ingress", "host": "a.example.com", "class_name": "gce"},
        {"kind": "Gateway", "host": "a.example.com", "class_name": "gke-l7-regional-external-managed"},
    ):
        for cluster in ("own", "serving", "shared"):
            whole = spec(provider="gke", endpoint=endpoint, training={"cluster": cluster})
            for one in render(whole, apps=[app()], jobs=[job()]):
                if one["kind"] != "Namespace":
                    assert API_VERSIONS[one["kind"]] == one["apiVersion"]
