"""The cluster spec refuses what could not work, and what would show a secret to whoever sees a manifest."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.core.errors import ConfigError
from tests.kubernetes.specs import L4_GROUP, spec

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "Lab"}, "name: is 'Lab'"),
        ({"namespace": "-x"}, "namespace: is '-x'"),
        ({"image": "no image"}, "image: is 'no image'"),
        ({"ray_version": "2.9.0"}, "ray_version: is '2.9.0'"),
        ({"node_groups": []}, "node_groups: is []"),
        ({"node_groups": [L4_GROUP, L4_GROUP]}, "the name 'l4' is there twice"),
        ({"node_groups": [L4_GROUP | {"count": None}]}, "has neither count nor max"),
        ({"node_groups": [L4_GROUP | {"min": 1}]}, "has count (3) beside min or max"),
        ({"node_groups": [L4_GROUP | {"count": None, "min": 3, "max": 2}]}, "min is 3 but max is 2"),
        ({"node_groups": [L4_GROUP | {"accelerator_type": None}]}, "has 1 GPUs of no product"),
        ({"node_groups": [L4_GROUP | {"accelerator_type": "L5"}]}, "'L5', which is not in the catalogue"),
        ({"node_groups": [L4_GROUP | {"name": "head"}]}, "the name of Ray's own group"),
        ({"store": {}}, "uri is None, which no pod could reach"),
        ({"store": {"uri": "/data"}}, "uri is '/data'"),
        ({"store": {"uri": "/data", "host_path": "/data"}}, "the volume is mounted at /mnt/tandem"),
        ({"store": {"host_path": "/data"}}, "the groups may have 3 nodes"),
        ({"store": {"uri": "gs://a/b", "host_path": "/data"}}, "holds no store"),
        ({"store": {"nfs": {"server": "nas"}}}, "Give server and path of an export"),
        ({"store": {"nfs": {"claim": "a", "storage_class": "b"}}}, "names storage_class, claim"),
        ({"store": {"uri": "gs://a/b", "service_account": "x@y"}}, "but provider is 'other'"),
        ({"endpoint": {"kind": "Ingress"}}, "kind is 'Ingress' without host"),
        ({"endpoint": {"kind": "Gateway", "host": "a.example.com"}}, "'Gateway' without class_name"),
        ({"endpoint": {"tls_secret": "x"}}, "knows no host, tls_secret or class_name"),
        ({"endpoint": {"source_ranges": ["10.0.0.0/8"]}}, "source_ranges are for a LoadBalancer"),
        ({"queueing": {"kind": "kueue"}}, "kind is 'kueue' and queue is None"),
        ({"priorities": ["batch", "training"]}, "priorities: is batch, training, but an order names each"),
        ({"priorities": ["urgent"]}, "priorities.0: is 'urgent'"),
        ({"serving": {"upgrade": "incremental"}}, "An incremental upgrade needs a GatewayClass"),
    ],
)
def test_what_cannot_work_is_refused_with_its_field(changes: dict[str, Any], said: str):
    with pytest.raises(ConfigError) as refused:
        spec(**changes)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"store": {"uri": "s3://a/b", "options": {"s3://a": {"secret": SECRET}}}},
        {"store": {"uri": "s3://a/b", "options": {"s3://a": {"endpoint_url": f"https://u:{SECRET}@minio"}}}},
        {"gcs_fault_tolerance": {"redis_address": f"redis://:{SECRET}@redis:6379"}},
    ],
)
def test_a_secret_in_the_spec_is_refused_without_being_repeated(changes: dict[str, Any]):
    with pytest.raises(ConfigError) as refused:
        spec(**changes)
    assert "secret" in str(refused.value)
    assert SECRET not in str(refused.value)
