"""Preflight on a stand-in for a cluster: what it asks for, what it says of it, and the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.kubernetes.client import Kubernetes
from cluster.kubernetes.findings import errors
from cluster.kubernetes.preflight import preflight
from tests.conftest import ROOT
from tests.kubernetes.preflight_inputs import NEW, about, operator, small_l4
from tests.kubernetes.sliced import node, policy
from tests.kubernetes.specs import spec
from tests.servers.kubernetes_api import Cluster

Json = dict[str, Any]
DATA = "Tm90IHRvbGQ="
"""What lies in Secrets here; it must never be seen."""


def put_secret(cluster: Cluster, name: str, *keys: str) -> None:
    place = {"name": name, "namespace": "tandem-lab"}
    cluster.put({"apiVersion": "v1", "kind": "Secret", "metadata": place, "data": dict.fromkeys(keys, DATA)})


def put_namespace(cluster: Cluster, name: str = "tandem-lab") -> None:
    cluster.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})


def storage_class(name: str, provisioner: str, *, default: bool = False) -> Json:
    notes = {"storageclass.kubernetes.io/is-default-class": "true"} if default else {}
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": name, "annotations": notes},
        "provisioner": provisioner,
    }


def good(cluster: Cluster) -> None:
    """All that ``spec`` with smaller pods counts on."""
    cluster.install("gpu-operator")
    for name in ("tandem-lab", "monitoring", "gpu-operator"):
        put_namespace(cluster, name)
    cluster.put(policy(config=None))
    cluster.put(operator("v1.7.0"))
    cluster.put(NEW)
    cluster.put(storage_class("standard", "pd.csi.storage.gke.io", default=True))
    for i in range(3):
        cluster.put(node(f"n{i}", gpus=1))


def small(**changes: Any) -> Any:
    return spec(node_groups=[small_l4()], head={"cpus": 2, "memory": "4GiB"}, **changes)


def test_a_cluster_that_has_all_is_fine_and_nothing_is_written(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    good(kubernetes_api)
    kubernetes_api.requests.clear()
    found = preflight(kubernetes, small())
    assert [one for one in found if one.level != "ok"] == []
    assert {method for method, _ in kubernetes_api.requests} == {"GET"}


def test_an_empty_cluster_lacks_all_that_is_named(kubernetes: Kubernetes) -> None:
    found = preflight(kubernetes, small(store={"nfs": {"storage_class": "shared"}}))
    assert {one.topic for one in errors(found)} == {
        "GPU operator", "NVIDIA-L4", "group l4", "head", "store.nfs.storage_class", "monitoring.namespace",
        "monitoring.dcgm_namespace",
    }  # fmt: skip
    assert {one.topic for one in found if one.level == "warning"} == {"KubeRay", "storage classes"}


def test_secrets_are_asked_for_by_name_and_key_and_never_told(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    good(kubernetes_api)
    put_secret(kubernetes_api, "google", "key.json")
    put_secret(kubernetes_api, "redis", "pass")
    wanted = small(
        image_pull_secrets=["registry"],
        store={"uri": "gs://team/tandem", "key_file": {"secret": "google", "key": "key.json"}},
        gcs_fault_tolerance={
            "redis_address": "redis:6379",
            "password": {"secret": "redis", "key": "password"},
        },
        endpoint={"kind": "Ingress", "host": "llm.example.com", "tls_secret": "llm-tls"},
        auth={"secret": "token"},
    )
    found = preflight(kubernetes, wanted)
    assert about(found, "store.key_file").level == "ok"
    assert about(found, "image_pull_secrets").seen == "Secret tandem-lab/registry is not there."
    redis = about(found, "gcs_fault_tolerance.password")
    assert (redis.level, redis.seen) == ("error", "Secret tandem-lab/redis has no key password.")
    assert about(found, "endpoint.tls_secret").remedy == (
        "Make it: kubectl create secret tls llm-tls --cert=tls.crt --key=tls.key --namespace tandem-lab"
    )
    assert about(found, "auth.secret").level == "error"
    assert DATA not in json.dumps([one.to_dict() for one in found])


def test_the_namespace_comes_before_the_secret(kubernetes: Kubernetes) -> None:
    one = about(preflight(kubernetes, small(image_pull_secrets=["registry"])), "image_pull_secrets")
    assert one.remedy.startswith("Make it: kubectl create namespace tandem-lab; kubectl create secret")


@pytest.mark.parametrize(("provisioner", "level"), [("ebs.csi.aws.com", "error"), ("efs.csi.aws.com", "ok")])
def test_the_stores_class_must_make_volumes_that_many_nodes_mount(
    kubernetes: Kubernetes, kubernetes_api: Cluster, provisioner: str, level: str
) -> None:
    kubernetes_api.put(storage_class("shared", provisioner))
    found = preflight(kubernetes, small(store={"nfs": {"storage_class": "shared"}}))
    assert about(found, "store.nfs.storage_class").level == level


def test_a_claim_that_one_node_mounts_cannot_hold_the_store(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    put_namespace(kubernetes_api)
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "models", "namespace": "tandem-lab"},
        "spec": {"accessModes": ["ReadWriteOnce"]},
    }
    kubernetes_api.put(claim)
    one = about(preflight(kubernetes, small(store={"nfs": {"claim": "models"}})), "store.nfs.claim")
    assert (one.level, one.seen) == ("error", "PersistentVolumeClaim tandem-lab/models is ReadWriteOnce.")


def test_gateway_classes_are_looked_up_by_name(kubernetes: Kubernetes, kubernetes_api: Cluster) -> None:
    wanted = small(endpoint={"kind": "Gateway", "host": "llm.example.com", "class_name": "envoy"})
    one = about(preflight(kubernetes, wanted), "endpoint.class_name")
    assert (one.level, one.seen) == ("error", "the cluster does not know the Gateway API.")
    kubernetes_api.install("gateway")
    kind = {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass"}
    kubernetes_api.put({**kind, "metadata": {"name": "istio"}})
    now = Kubernetes.connect(host=kubernetes_api.url)
    assert (
        "there is no GatewayClass envoy; there are: istio."
        in about(preflight(now, wanted), "endpoint.class_name").seen
    )
    kubernetes_api.put({**kind, "metadata": {"name": "envoy"}})
    assert about(preflight(now, wanted), "endpoint.class_name").level == "ok"


def test_the_load_balancers_class_that_a_webhook_wrote_must_be_the_specs(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    put_namespace(kubernetes_api)
    place = {"name": "lab-endpoint", "namespace": "tandem-lab"}
    body = {"type": "LoadBalancer", "loadBalancerClass": "service.k8s.aws/nlb"}
    kubernetes_api.put({"apiVersion": "v1", "kind": "Service", "metadata": place, "spec": body})
    one = about(
        preflight(kubernetes, small(endpoint={"kind": "LoadBalancer"})), "endpoint.load_balancer_class"
    )
    assert (one.level, one.seen) == (
        "error", "Service lab-endpoint has service.k8s.aws/nlb, and the spec None.",
    )  # fmt: skip
    assert one.remedy == "Write endpoint.load_balancer_class: service.k8s.aws/nlb."
    named = {"kind": "LoadBalancer", "load_balancer_class": "service.k8s.aws/nlb"}
    topics = {found.topic for found in preflight(kubernetes, small(endpoint=named))}
    assert "endpoint.load_balancer_class" not in topics


def test_the_api_servers_own_port_must_be_one_that_ray_may_reach(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    assert "api_server_port" not in {one.topic for one in preflight(kubernetes, small())}
    labels = {"kubernetes.io/service-name": "kubernetes"}
    kubernetes_api.put(
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": "kubernetes", "namespace": "default", "labels": labels},
            "endpoints": [{"addresses": ["10.0.0.2"]}],
            "ports": [{"name": "https", "port": 16443, "protocol": "TCP"}],
        }
    )
    grows = {"node_groups": [small_l4(count=None, min=0, max=3)], "head": {"cpus": 2, "memory": "4GiB"}}
    one = about(preflight(kubernetes, spec(**grows)), "api_server_port")
    assert (one.level, one.seen) == ("error", "the API server listens at 16443, but the spec says 6443.")
    assert one.remedy == "Write api_server_port: 16443."
    # Only jobs with a range of workers could miss it.
    assert about(preflight(kubernetes, small()), "api_server_port").level == "warning"
    assert about(preflight(kubernetes, spec(**grows, api_server_port=16443)), "api_server_port").level == "ok"


def test_kueues_queue_must_be_in_the_clusters_own_namespace(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    wanted = small(queueing={"kind": "kueue", "queue": "research"})
    assert "does not know LocalQueue" in about(preflight(kubernetes, wanted), "queueing").seen
    kubernetes_api.install("kueue")
    now = Kubernetes.connect(host=kubernetes_api.url)
    queue = {"apiVersion": "kueue.x-k8s.io/v1beta1", "kind": "LocalQueue"}
    kubernetes_api.put({**queue, "metadata": {"name": "research", "namespace": "default"}})
    assert about(preflight(now, wanted), "queueing").level == "error"
    put_namespace(kubernetes_api)
    kubernetes_api.put({**queue, "metadata": {"name": "research", "namespace": "tandem-lab"}})
    assert about(preflight(now, wanted), "queueing").level == "ok"


def test_what_the_account_may_not_read_is_a_warning(kubernetes: Kubernetes, kubernetes_api: Cluster) -> None:
    good(kubernetes_api)
    kubernetes_api.forbidden |= {("list", "nodes"), ("get", "customresourcedefinitions")}
    found = preflight(kubernetes, small())
    assert errors(found) == []
    assert {one.topic for one in found if one.level == "warning"} == {"GPUs", "nodes"}


def test_a_namespace_of_others_that_is_missing_is_named_with_its_field(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    good(kubernetes_api)
    kubernetes_api.delete("Namespace", "gpu-operator")
    (one,) = errors(preflight(kubernetes, small()))
    assert (one.topic, one.seen) == ("monitoring.dcgm_namespace", "there is no namespace gpu-operator.")
    assert "monitoring.dcgm: false" in one.remedy and "kubectl create namespace gpu-operator" in one.remedy
    for without in ({"dcgm": False}, {"enabled": False}, {"dcgm_namespace": "monitoring"}):
        assert errors(preflight(kubernetes, small(monitoring=without))) == []


def test_a_namespace_that_may_not_be_read_is_a_warning_of_its_field(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    good(kubernetes_api)
    kubernetes_api.only_in = "tandem-lab"
    found = preflight(kubernetes, small())
    assert errors(found) == []
    assert about(found, "monitoring.namespace").level == "warning"


def test_an_autoscaler_of_the_cluster_is_noticed(kubernetes: Kubernetes, kubernetes_api: Cluster) -> None:
    place = {"name": "cluster-autoscaler-status", "namespace": "kube-system"}
    kubernetes_api.put({"apiVersion": "v1", "kind": "ConfigMap", "metadata": place})
    assert about(preflight(kubernetes, small()), "NVIDIA-L4").level == "warning"


def command(cluster: Cluster, folder: Path, *words: str) -> tuple[int, str]:
    """The command in a process of its own: Kubernetes' client reads KUBECONFIG when it is imported."""
    file = folder / "cluster.yaml"
    file.write_text(json.dumps(small().model_dump(mode="json", exclude_unset=True)), encoding="utf-8")
    kubeconfig = str(cluster.kubeconfig(folder / "kubeconfig"))
    done = subprocess.run(
        [sys.executable, "-m", "runtime", "cluster", "preflight", str(file), *words],
        env=os.environ | {"KUBECONFIG": kubeconfig, "COLUMNS": "120", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout


def test_the_command_ends_with_1_where_something_would_not_work(
    kubernetes_api: Cluster, tmp_path: Path
) -> None:
    good(kubernetes_api)
    code, output = command(kubernetes_api, tmp_path)
    assert code == 0 and "0 errors, 0 warnings" in output
    kubernetes_api.put(node("n0", gpus=1, replicas=4))
    code, output = command(kubernetes_api, tmp_path)
    assert code == 1 and "tandem migrate time-slicing" in output


def test_the_command_as_json(kubernetes_api: Cluster, tmp_path: Path) -> None:
    good(kubernetes_api)
    code, output = command(kubernetes_api, tmp_path, "--json")
    assert code == 0
    assert set(json.loads(output)[0]) == {"level", "topic", "seen", "why", "remedy"}
