"""Kubernetes' own kinds: the client's models judge as Kubernetes' schemas do, whatever is wrong."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.kubernetes.check import check
from cluster.kubernetes.core_kinds import core_schema, is_core, kinds
from cluster.kubernetes.render import render
from cluster.kubernetes.schema_faults import schema_faults
from cluster.kubernetes.workloads import Manifest
from tests.kubernetes.core_schemas import core_faults
from tests.kubernetes.specs import app, job, spec

Path = tuple[str | int, ...]
CONTAINER = {
    "name": "web",
    "image": "nginx:1",
    "ports": [{"containerPort": 80, "name": "http"}],
    "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
    "resources": {"limits": {"cpu": 2, "memory": "1Gi"}},
    "readinessProbe": {"httpGet": {"path": "/", "port": "http"}},
}
POD = {
    "containers": [CONTAINER],
    "volumes": [{"name": "cache", "emptyDir": {"sizeLimit": 1024}}],
    "tolerations": [{"key": "a", "effect": "NoExecute", "tolerationSeconds": 5}],
    "nodeSelector": {"pool": "gpu"},
}
DEPLOYMENT: Manifest = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "web", "labels": {"app": "web"}},
    "spec": {
        "replicas": 3,
        "strategy": {"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0}},
        "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": POD},
    },
}


def manifests() -> list[Manifest]:
    """One of each core kind that we render, and a Deployment."""
    nfs = {"nfs": {"server": "10.0.0.2", "path": "/models"}}
    endpoint = {"kind": "Ingress", "host": "llm.example.com", "tls_secret": "tls"}
    rendered = render(
        spec(store=nfs, endpoint=endpoint), apps=[app()], jobs=[job()], ray_dashboards={"a": {"b": 1}}
    )
    found = {one["kind"]: one for one in rendered if is_core(one["apiVersion"])}
    return [*found.values(), DEPLOYMENT]


@pytest.mark.parametrize("manifest", manifests(), ids=lambda manifest: manifest["kind"])
def test_every_change_is_judged_as_by_kubernetes_own_schemas(manifest: Manifest):
    schema = core_schema(manifest["apiVersion"], manifest["kind"])
    assert schema is not None and schema_faults(schema, manifest) == core_faults(manifest) == []
    verdicts = set()
    for path, changed in _changes(manifest):
        refused = bool(core_faults(changed))
        assert bool(schema_faults(schema, changed)) == refused, path
        verdicts.add(refused)
    assert verdicts == {True, False}


def _changes(manifest: Manifest) -> Iterator[tuple[Path, Manifest]]:
    """The manifest with each of its values removed, replaced by others, or given an unknown field."""
    for path, value in _values(manifest):
        others: list[Any] = [7, "x", True, 1.5, [], {}]
        if isinstance(value, dict):
            others.append(value | {"nonsense": 7})
        for other in others:
            yield path, _with(manifest, path, other)
        if isinstance(path[-1], str):
            yield path, _with(manifest, path, None)


def _values(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    if path and path[0] not in ("apiVersion", "kind"):
        yield path, value
    for part, child in _entries(value):
        yield from _values(child, (*path, part))


def _entries(value: Any) -> list[tuple[str | int, Any]]:
    """Of a list only the first: the others are like it."""
    if isinstance(value, dict):
        return list(value.items())
    return list(enumerate(value))[:1] if isinstance(value, list) else []


def _with(manifest: Manifest, path: Path, value: Any) -> Manifest:
    made = copy.deepcopy(manifest)
    holder: Any = made
    for part in path[:-1]:
        holder = holder[part]
    if value is None:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return made


def test_null_is_a_field_that_is_not_there():
    assert check([DEPLOYMENT | {"status": None}]) == []


def test_groups_of_kubernetes_are_told_from_others():
    ours = ["v1", "apps/v1", "rbac.authorization.k8s.io/v1", "policy/v1beta1"]
    others = ["ray.io/v1", "gateway.networking.k8s.io/v1", "kueue.x-k8s.io/v1beta2", "scheduling.run.ai/v2"]
    assert [is_core(version) for version in ours + others] == [True] * 4 + [False] * 4
    assert kinds("policy/v1beta1") == [] and "PodDisruptionBudget" in kinds("policy/v1")
    assert core_schema("apps/v1", "Service") is None


def test_the_schemas_that_we_compare_with_refuse_what_is_wrong():
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"port": []}}
    policy = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "spec": {"podSelector": 1}}
    assert len(core_faults(service)) == len(core_faults(policy)) == 1
