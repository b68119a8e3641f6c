"""The Kubernetes stand-in behaves as the API server does, where Tandem relies on it."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from typing import Any

import httpx
import pytest

from tests.servers.kubernetes_api import Cluster, kubernetes_api

APPLY = {"Content-Type": "application/apply-patch+yaml"}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with kubernetes_api() as cluster:
        yield cluster


def config_map(**data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": data}


def apply(cluster: Cluster, body: dict[str, Any], manager: str, **query: str) -> httpx.Response:
    url = f"{cluster.url}/api/v1/namespaces/default/configmaps/settings"
    return httpx.patch(url, json=body, headers=APPLY, params={"fieldManager": manager, **query})


def test_two_managers_own_what_each_applied_and_conflict_over_the_same_field(cluster: Cluster) -> None:
    assert apply(cluster, config_map(a="1", b="2"), "first").status_code == 200
    assert apply(cluster, config_map(c="3"), "second").json()["data"] == {"a": "1", "b": "2", "c": "3"}

    refused = apply(cluster, config_map(b="7"), "second")
    assert refused.status_code == 409
    assert refused.json()["details"]["causes"] == [
        {"reason": "FieldManagerConflict", "message": 'conflict with "first" using v1', "field": ".data.b"}
    ]

    # Forced, b changes hands; c, which second no longer applies, is gone; a stays the first's.
    taken = apply(cluster, config_map(b="7"), "second", force="true").json()
    assert taken["data"] == {"a": "1", "b": "7"}
    owned = {one["manager"]: one["fieldsV1"]["f:data"] for one in taken["metadata"]["managedFields"]}
    assert owned == {"first": {"f:a": {}}, "second": {"f:b": {}}}


def test_a_dry_run_answers_as_if_and_keeps_nothing(cluster: Cluster) -> None:
    assert apply(cluster, config_map(a="1"), "first", dryRun="All").json()["data"] == {"a": "1"}
    assert cluster.get("ConfigMap", "settings", namespace="default") is None


def test_an_apply_that_changes_nothing_makes_no_new_version(cluster: Cluster) -> None:
    once = apply(cluster, config_map(a="1"), "first").json()
    assert apply(cluster, config_map(a="1"), "first").json() == once


def test_ports_of_a_service_are_fields_of_their_own(cluster: Cluster) -> None:
    def ports(*numbers: int) -> dict[str, Any]:
        entries = [{"port": number, "targetPort": number} for number in numbers]
        return {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "door"},
            "spec": {"ports": entries},
        }

    url = f"{cluster.url}/api/v1/namespaces/default/services/door"
    for manager, body in (("first", ports(80)), ("second", ports(443))):
        answer = httpx.patch(url, json=body, headers=APPLY, params={"fieldManager": manager})
    assert [one["port"] for one in answer.json()["spec"]["ports"]] == [80, 443]


def test_a_watch_begins_with_what_is_there_and_goes_on_with_what_comes(cluster: Cluster) -> None:
    cluster.put({**config_map(), "metadata": {"name": "old", "namespace": "default"}})
    url = f"{cluster.url}/api/v1/namespaces/default/configmaps"

    def watched(timeout_s: int) -> Generator[tuple[str, str], None, None]:
        how = {"watch": "true", "timeoutSeconds": str(timeout_s)}
        with httpx.stream("GET", url, params=how, timeout=60) as answer:
            for line in answer.iter_lines():
                event = json.loads(line)
                yield event["type"], event["object"]["metadata"]["name"]

    events = watched(60)
    assert next(events) == ("ADDED", "old")
    cluster.put({**config_map(), "metadata": {"name": "new", "namespace": "default"}})
    assert next(events) == ("ADDED", "new")
    events.close()
    # And ends by itself.
    assert sorted(watched(1)) == [("ADDED", "new"), ("ADDED", "old")]


def test_an_object_with_a_finalizer_stays_until_it_is_taken_off(cluster: Cluster) -> None:
    place = {"name": "kept", "namespace": "default", "finalizers": ["tests.local/hold"]}
    cluster.put({**config_map(), "metadata": place})
    url = f"{cluster.url}/api/v1/namespaces/default/configmaps/kept"
    assert httpx.delete(url).status_code == 200
    assert "deletionTimestamp" in httpx.get(url).json()["metadata"]
    cluster.change("ConfigMap", "kept", {"metadata": {"finalizers": None}}, namespace="default")
    assert httpx.get(url).status_code == 404


def test_the_end_of_an_owner_is_the_end_of_what_it_owns(cluster: Cluster) -> None:
    owner = cluster.put({**config_map(), "metadata": {"name": "owner", "namespace": "default"}})
    reference = {"uid": owner["metadata"]["uid"], "kind": "ConfigMap", "name": "owner", "apiVersion": "v1"}
    place = {"name": "owned", "namespace": "default", "ownerReferences": [reference]}
    cluster.put({**config_map(), "metadata": place})
    cluster.delete("ConfigMap", "owner", namespace="default")
    assert cluster.names("ConfigMap") == []


def test_a_kind_is_unknown_until_its_project_is_installed(cluster: Cluster) -> None:
    url = f"{cluster.url}/apis/ray.io/v1"
    assert httpx.get(url).status_code == 404
    cluster.install("kuberay")
    assert [one["kind"] for one in httpx.get(url).json()["resources"]] == [
        "RayCluster",
        "RayService",
        "RayJob",
    ]


def test_who_shows_no_token_is_refused() -> None:
    with kubernetes_api(token="sesame") as cluster:
        url = f"{cluster.url}/api/v1/nodes"
        assert httpx.get(url).json()["reason"] == "Unauthorized"
        assert httpx.get(url, headers={"Authorization": "Bearer sesame"}).json()["items"] == []
