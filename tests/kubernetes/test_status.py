"""The status of a cluster: objects, pods by group, address, troubles; as a table and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cluster.kubernetes.apply import apply
from cluster.kubernetes.client import Kubernetes
from cluster.kubernetes.render import render
from cluster.kubernetes.status import PodsRow, status
from runtime.cli_cluster import cluster
from tests.kubernetes.running import PLACE, QUIET, condition, observed, pod
from tests.kubernetes.specs import A100_GROUP, app, spec
from tests.servers.kubernetes_api import Cluster


def applied(kubernetes: Kubernetes, **changes: Any) -> None:
    one = spec(**QUIET, **changes)
    apply(kubernetes, one, render(one, apps=[app()]))


@pytest.fixture
def spec_file(tmp_path: Path) -> Path:
    path = tmp_path / "cluster.yaml"
    path.write_text(json.dumps(spec(**QUIET).model_dump(mode="json", exclude_unset=True)), encoding="utf-8")
    return path


@pytest.fixture
def kubeconfig(kubernetes_api: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the official client reads when it is imported is the environment, and then this."""
    path = kubernetes_api.kubeconfig(tmp_path / "kubeconfig")
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))


def run(*args: str) -> Result:
    return CliRunner().invoke(cluster, args, catch_exceptions=False)


def test_pods_are_counted_by_part_and_group(kubernetes: Kubernetes, kubernetes_api: Cluster) -> None:
    applied(kubernetes)
    kubernetes_api.put(pod("lab-head", role="head", group=None))
    for name, ready in (("a", True), ("b", True), ("c", False)):
        kubernetes_api.put(pod(f"lab-worker-{name}", ready=ready))
    kubernetes_api.put(pod("lab-worker-d", phase="Pending", ready=False))
    assert status(kubernetes, spec(**QUIET)).pods == (
        PodsRow("serving", "head", running=1, ready=1, waiting=0),
        PodsRow("serving", "l4", running=3, ready=2, waiting=1),
    )


def test_a_load_balancers_address_is_that_which_the_cloud_gave(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    balanced = {"endpoint": {"kind": "LoadBalancer"}}
    applied(kubernetes, **balanced)
    assert status(kubernetes, spec(**QUIET, **balanced)).endpoint is None
    given = {"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}}
    kubernetes_api.set_status("Service", "lab-endpoint", given, namespace=PLACE)
    assert status(kubernetes, spec(**QUIET, **balanced)).endpoint == "http://203.0.113.7:8000/v1"


def test_the_shared_clusters_address_is_its_own_services(kubernetes: Kubernetes) -> None:
    alone = spec(**QUIET)
    apply(kubernetes, alone, render(alone))
    assert status(kubernetes, alone).endpoint == "http://lab-shared-endpoint.tandem-lab.svc:8000/v1"
    apply(kubernetes, alone, render(alone, apps=[app()]))
    assert status(kubernetes, alone).endpoint == "http://lab-endpoint.tandem-lab.svc:8000/v1"


def test_with_incremental_upgrades_the_address_is_that_of_the_operators_gateway(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    changes: dict[str, Any] = {
        "serving": {"upgrade": "incremental", "gateway_class_name": "istio"},
        "node_groups": [A100_GROUP],
    }
    applied(kubernetes, **changes)
    assert status(kubernetes, spec(**QUIET, **changes)).endpoint is None
    kubernetes_api.install("gateway")
    kubernetes_api.put(
        {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "Gateway",
            "metadata": {"name": "lab-serve-gateway", "namespace": PLACE},
        }
    )
    now = Kubernetes.connect(host=kubernetes_api.url)
    assert status(now, spec(**QUIET, **changes)).endpoint is None
    given = {"addresses": [{"type": "IPAddress", "value": "203.0.113.9"}]}
    kubernetes_api.set_status("Gateway", "lab-serve-gateway", given, namespace=PLACE)
    assert status(now, spec(**QUIET, **changes)).endpoint == "http://203.0.113.9/v1"


def test_an_ingress_address_is_its_host(kubernetes: Kubernetes) -> None:
    named = {"endpoint": {"kind": "Ingress", "host": "llm.example.com", "tls_secret": "tls"}}
    applied(kubernetes, **named)
    assert status(kubernetes, spec(**QUIET, **named)).endpoint == "https://llm.example.com/v1"


def test_the_command_shows_objects_conditions_and_troubles(
    kubernetes: Kubernetes, kubernetes_api: Cluster, spec_file: Path, kubeconfig: None
) -> None:
    applied(kubernetes)
    observed(kubernetes_api, "RayService", "lab-serve", conditions=[condition("Ready")])
    waits = condition("PodScheduled", False) | {"reason": "Unschedulable", "message": "no L4 is free"}
    kubernetes_api.put(pod("lab-worker-a", phase="Pending", ready=False, conditions=[waits]))

    found = json.loads(run("status", str(spec_file), "--json").output)
    service = next(one for one in found["objects"] if one["kind"] == "RayService")
    assert service == {
        "kind": "RayService",
        "name": "lab-serve",
        "is_ready": True,
        "doing": "serves",
        "conditions": ["Ready"],
    }
    assert found["troubles"] == ["lab-worker-a waits for a node: no L4 is free"]

    shown = run("status", str(spec_file)).output
    assert "lab-serve" in shown and "no L4 is free" in shown
    assert "http://lab-endpoint.tandem-lab.svc:8000/v1" in shown


def test_an_account_of_one_namespace_sees_what_is_there_and_is_told_what_it_may_not_look_at(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    on_nfs = {"store": {"nfs": {"server": "10.0.0.9", "path": "/export"}}}
    applied(kubernetes, **on_nfs)
    kubernetes_api.only_in = PLACE
    found = status(kubernetes, spec(**QUIET))
    assert "lab-serve" in {one.name for one in found.objects}
    assert found.troubles == ()
    (told,) = status(kubernetes, spec(**QUIET, **on_nfs)).troubles
    assert told.startswith("not looked at: PersistentVolumes: you may not list it")


def test_a_cluster_that_is_not_there_is_told_so(spec_file: Path, kubeconfig: None) -> None:
    assert "Nothing of lab is in namespace tandem-lab" in run("status", str(spec_file)).output
