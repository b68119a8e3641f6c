"""The seam to the API server: dicts in and out, errors that say what is wrong and what to do."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from cluster.kubernetes.client import Kubernetes
from cluster.kubernetes.refusals import (
    AlreadyThere,
    Blocked,
    Changed,
    Conflicted,
    Forbidden,
    Held,
    Invalid,
    NoSuchKind,
    NoSuchNamespace,
)
from runtime.core.errors import ClusterError
from tests.servers.kubernetes_api import Cluster, kubernetes_api


def settings(name: str = "settings", **data: str) -> dict[str, Any]:
    place = {"name": name, "namespace": "default"}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": place, "data": data}


def pod(name: str, **labels: str) -> dict[str, Any]:
    place = {"name": name, "namespace": "default", "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": place, "spec": {}}


def test_what_was_applied_can_be_read_listed_and_deleted(kubernetes: Kubernetes) -> None:
    assert kubernetes.get("v1", "ConfigMap", "settings", "default") is None
    kubernetes.apply(settings(a="1"))
    found = kubernetes.get("v1", "ConfigMap", "settings", "default")
    assert found is not None and found["data"] == {"a": "1"}
    listed = kubernetes.list("v1", "ConfigMap")
    assert [(one["kind"], one["metadata"]["name"]) for one in listed] == [("ConfigMap", "settings")]
    assert kubernetes.delete("v1", "ConfigMap", "settings", "default") is True
    assert kubernetes.delete("v1", "ConfigMap", "settings", "default") is False


def test_a_list_asks_the_server_for_the_labels(kubernetes: Kubernetes, kubernetes_api: Cluster) -> None:
    kubernetes_api.put(pod("one", color="red", size="small"))
    kubernetes_api.put(pod("two", color="blue"))
    assert [one["metadata"]["name"] for one in kubernetes.list("v1", "Pod", label_selector="size")] == ["one"]
    assert [
        one["metadata"]["name"]
        for one in kubernetes.list("v1", "Pod", label_selector="color in (blue,green)")
    ] == ["two"]


def test_a_dry_run_changes_nothing(kubernetes: Kubernetes) -> None:
    assert kubernetes.apply(settings(a="1"), dry_run=True)["data"] == {"a": "1"}
    assert kubernetes.get("v1", "ConfigMap", "settings", "default") is None


def test_a_conflict_names_the_fields_and_their_managers(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    kubernetes.apply(settings(a="1", b="2"))
    kubernetes_api.change("ConfigMap", "settings", {"data": {"b": "8"}}, namespace="default", manager="anna")
    with pytest.raises(Conflicted, match=r"\.data\.b \(set by 'anna'\).*--force-conflicts") as refused:
        kubernetes.apply(settings(a="1", b="3"))
    assert refused.value.held == (Held(".data.b", "anna"),)
    assert kubernetes.apply(settings(a="1", b="3"), force=True)["data"]["b"] == "3"


def test_a_merge_patch_removes_with_null_and_holds_only_for_the_version_that_it_names(
    kubernetes: Kubernetes,
) -> None:
    read = kubernetes.apply(settings(a="1", b="2"))
    changed = kubernetes.patch("v1", "ConfigMap", "settings", {"data": {"b": None}}, namespace="default")
    assert changed["data"] == {"a": "1"}
    version = {"resourceVersion": read["metadata"]["resourceVersion"]}
    with pytest.raises(Changed, match="has been modified"):
        kubernetes.patch(
            "v1", "ConfigMap", "settings", {"metadata": version, "data": {"a": "9"}}, namespace="default"
        )


def test_a_json_patch_changes_one_entry_of_a_list(kubernetes: Kubernetes, kubernetes_api: Cluster) -> None:
    place = {"name": "small", "namespace": "default"}
    groups = [{"groupName": "a", "replicas": 1}, {"groupName": "b", "replicas": 1}]
    kubernetes_api.put(
        {
            "apiVersion": "ray.io/v1",
            "kind": "RayCluster",
            "metadata": place,
            "spec": {"workerGroupSpecs": groups},
        }
    )
    body = [{"op": "replace", "path": "/spec/workerGroupSpecs/1/replicas", "value": 5}]
    found = kubernetes.patch(
        "ray.io/v1", "RayCluster", "small", body, namespace="default", kind_of_patch="json"
    )
    assert [one["replicas"] for one in found["spec"]["workerGroupSpecs"]] == [1, 5]


def test_what_is_there_is_not_created_again(kubernetes: Kubernetes) -> None:
    kubernetes.create(settings(a="1"))
    with pytest.raises(AlreadyThere, match="ConfigMap settings is there already"):
        kubernetes.create(settings(a="2"))


def test_an_eviction_ends_a_pod_unless_a_budget_keeps_it(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    kubernetes_api.put(pod("free"))
    kubernetes_api.put(pod("kept", app="llm"))
    budget = {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget"}
    spec = {"selector": {"matchLabels": {"app": "llm"}}}
    kubernetes_api.put({**budget, "metadata": {"name": "llm", "namespace": "default"}, "spec": spec})
    kubernetes.evict("free", "default")
    kubernetes.evict("gone-long-ago", "default")
    with pytest.raises(Blocked, match="cannot evict now.*disruption budget"):
        kubernetes.evict("kept", "default")
    assert kubernetes_api.names("Pod") == ["kept"]


def test_a_watch_tells_what_is_there_and_what_becomes_of_it(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    kubernetes.apply(settings(a="1"))
    kubernetes.apply(settings("other", a="1"))
    seen = []
    for event in kubernetes.watch("v1", "ConfigMap", namespace="default", name="settings", timeout_s=20):
        seen.append((event["type"], event["object"]["data"]))
        if len(seen) == 1:
            kubernetes_api.change("ConfigMap", "other", {"data": {"a": "2"}}, namespace="default")
            kubernetes_api.change("ConfigMap", "settings", {"data": {"a": "7"}}, namespace="default")
        else:
            break
    assert seen == [("ADDED", {"a": "1"}), ("MODIFIED", {"a": "7"})]


def test_kubes_version_and_kinds(kubernetes: Kubernetes, kubernetes_api: Cluster) -> None:
    assert kubernetes.version() == "v1.36.1"
    assert kubernetes.has("ray.io/v1", "RayService")
    assert not kubernetes.has("nvidia.com/v1", "ClusterPolicy")
    kubernetes_api.install("gpu-operator")
    assert kubernetes.has("nvidia.com/v1", "ClusterPolicy")


def test_without_kuberay_the_error_says_what_to_install() -> None:
    with kubernetes_api() as bare, pytest.raises(NoSuchKind, match="RayCluster.*KubeRay is not installed"):
        Kubernetes.connect(host=bare.url).list("ray.io/v1", "RayCluster")


def test_who_may_not_is_told_so(kubernetes: Kubernetes, kubernetes_api: Cluster) -> None:
    kubernetes_api.forbidden.add(("patch", "configmaps"))
    with pytest.raises(Forbidden, match="ConfigMap settings: you may not apply it.*administrator"):
        kubernetes.apply(settings())


def test_a_bad_object_is_told_in_the_servers_words(kubernetes: Kubernetes) -> None:
    with pytest.raises(Invalid, match=r"metadata\.name"):
        kubernetes.apply(settings("Not_A_Name"))


def test_a_token_opens_the_server_and_a_wrong_one_does_not() -> None:
    with kubernetes_api(token="sesame") as cluster:
        assert Kubernetes.connect(host=cluster.url, token="sesame").version() == "v1.36.1"
        with pytest.raises(Forbidden, match="does not know you"):
            Kubernetes.connect(host=cluster.url, token="please")


def test_a_kubeconfig_and_its_contexts(
    kubernetes_api: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION",
        str(kubernetes_api.kubeconfig(tmp_path / "config")),
    )
    assert Kubernetes.connect().host == kubernetes_api.url
    assert Kubernetes.connect("stand-in").host == kubernetes_api.url
    with pytest.raises(ClusterError, match="cannot use the context 'elsewhere'.*kubectl config get-contexts"):
        Kubernetes.connect("elsewhere")


def test_a_server_that_is_not_there_is_named() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ClusterError, match=f"{url} does not answer"):
        Kubernetes.connect(host=url)


def test_a_namespace_that_is_missing_is_told_from_other_things_that_are_not_there(
    kubernetes: Kubernetes,
) -> None:
    away = settings() | {"metadata": {"name": "settings", "namespace": "away"}}
    with pytest.raises(NoSuchNamespace, match="no namespace 'away'.*kubectl create namespace away"):
        kubernetes.apply(away)
    with pytest.raises(ClusterError) as refused:
        kubernetes.patch("v1", "ConfigMap", "nothing", {"data": {}}, namespace="default")
    assert not isinstance(refused.value, NoSuchNamespace)
