"""The schemas of custom kinds: what the one pass makes of them, and where they are from."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.kubernetes.client import Kubernetes
from cluster.kubernetes.manifest_files import read_manifests
from cluster.kubernetes.schema_faults import schema_faults
from cluster.kubernetes.schemas import Schemas, strict
from runtime.core.errors import ConfigError
from tests.kubernetes.accepted import SCHEMAS, crds
from tests.servers.kubernetes_api import Cluster


def test_a_default_makes_a_field_optional_and_nullable_allows_null():
    schema = strict(
        {
            "type": "object",
            "required": ["a", "b"],
            "properties": {
                "a": {"type": "integer", "default": 1},
                "b": {"type": "string", "nullable": True, "enum": ["x"]},
                "c": {
                    "anyOf": [{"type": "integer"}],
                    "x-kubernetes-int-or-string": True,
                    "pattern": "^[0-9]+%$",
                },
                "free": {
                    "type": "object",
                    "properties": {"d": {}},
                    "x-kubernetes-preserve-unknown-fields": True,
                },
                "map": {"type": "object", "additionalProperties": {"properties": {"e": {"type": "string"}}}},
            },
        }
    )
    assert schema_faults(schema, {"b": None, "c": 5, "free": {"z": 1}}) == []
    assert schema_faults(schema, {"b": "x", "c": "5%"}) == []
    wrong = {"b": "y", "c": "5", "map": {"k": {"f": 1}}, "z": 0}
    assert [fault.field for fault in schema_faults(schema, wrong)] == ["z", "b", "c", "map.k.f"]
    assert [fault.field for fault in schema_faults(schema, {})] == ["b"]


def test_a_clusters_schemas_are_those_of_its_definitions(kubernetes_api: Cluster, kubernetes: Kubernetes):
    crds()
    key = ("kueue.x-k8s.io/v1beta2", "LocalQueue")
    for written in read_manifests([SCHEMAS / "kueue.x-k8s.io_localqueues.yaml"]):
        kubernetes_api.put(written.manifest)
    assert Schemas.from_cluster(kubernetes).find(*key) == crds().find(*key) is not None


def test_a_folder_without_definitions_is_no_folder_of_schemas(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n")
    with pytest.raises(ConfigError, match=r"holds no CustomResourceDefinition\. Give the folder"):
        Schemas.from_folder(tmp_path)
