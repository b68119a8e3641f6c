"""The cluster spec refuses what could not work, and what would show a secret to whoever sees a manifest."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.core.errors import ConfigError
from tests.kubernetes.specs import L4_GROUP, spec

SECRET = "hunter2"
NFS = {"nfs": {"server": "10.0.0.5", "path": "/x"}}
KAI = {"kind": "kai", "queue": "q"}
INGRESS = {"kind": "Ingress", "host": "llm.example.com"}
S3 = "s3://a/b"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "Lab"}, "name: is 'Lab'"),
        ({"namespace": "-x"}, "namespace: is '-x'"),
        ({"image": "no image"}, "image: is 'no image'"),
        ({"image": "a//b"}, "image: is 'a//b'"),
        ({"image": "tandem:"}, "image: is 'tandem:'"),
        ({"image": "reg.io/a:1:2"}, "image: is 'reg.io/a:1:2'"),
        ({"image": "reg.io/Team/App:1"}, "image: is 'reg.io/Team/App:1'"),
        ({"image": "Tandem:1"}, "image: is 'Tandem:1'"),
        ({"image": f"tandem@sha256:{'A' * 64}"}, "image: is 'tandem@sha256:AAA"),
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
        (
            {"store": NFS | {"uri": "/mnt/tandem-models"}},
            "uri is '/mnt/tandem-models', but the volume is mounted",
        ),
        (
            {"store": NFS | {"uri": "/mnt/tandem/../x"}},
            "uri is '/mnt/tandem/../x', but the volume is mounted",
        ),
        ({"store": NFS | {"uri": "file:///mnt/tandem/x"}}, "each pod would have a folder of its own"),
        ({"store": {"uri": "memory://a"}}, "store: uri is 'memory://a', where pods can have no store"),
        ({"store": {"uri": "az://a/b"}}, "store: uri is 'az://a/b', where pods can have no store"),
        ({"store": {"uri": "http://a/b"}}, "store: uri is 'http://a/b', where pods can have no store"),
        ({"store": {"uri": "hf://a/b"}}, "store: uri is 'hf://a/b', where pods can have no store"),
        ({"store": {"uri": "s3://"}}, "store: uri is 's3://', which names no bucket"),
        ({"store": {"uri": "gs:///a"}}, "store: uri is 'gs:///a', which names no bucket"),
        ({"store": {"uri": "gs://a/../b"}}, "'.' and '..' mean nothing in a store"),
        ({"store": NFS | {"uri": "az://a/b"}}, "store: uri is 'az://a/b', where pods can have no store"),
        ({"store": {"host_path": "/srv/../x"}}, "host_path is '/srv/../x'. Write an absolute path, without"),
        ({"store": {"host_path": "/data"}}, "the groups may have 3 nodes"),
        ({"store": {"uri": "gs://a/b", "host_path": "/data"}}, "holds no store"),
        ({"store": {"nfs": {"server": "nas"}}}, "Give server and path of an export"),
        ({"store": {"nfs": {"claim": "a", "storage_class": "b"}}}, "names storage_class, claim"),
        ({"store": {"uri": "gs://a/b", "service_account": "x@y"}}, "but provider is 'other'"),
        ({"endpoint": {"kind": "Ingress"}}, "kind is 'Ingress' without host"),
        ({"endpoint": {"kind": "Gateway", "host": "a.example.com"}}, "'Gateway' without class_name"),
        ({"endpoint": {"tls_secret": "x"}}, "knows no host, tls_secret or class_name"),
        ({"endpoint": {"source_ranges": ["10.0.0.0/8"]}}, "source_ranges are for a LoadBalancer"),
        (
            {"endpoint": {"load_balancer_class": "service.k8s.aws/nlb"}},
            "load_balancer_class is 'service.k8s.aws/nlb', but kind is 'ClusterIP'",
        ),
        ({"api_server_port": 65_536}, "api_server_port: is 65536"),
        (
            {"queueing": KAI | {"queue": "Team A"}},
            "queueing.queue: is 'Team A', which cannot be a queue's name",
        ),
        (
            {"queueing": {"kind": "volcano", "queue": "q"}, "training": {"cluster": "shared"}},
            "with which KubeRay begins no job in a cluster that is there already",
        ),
        ({"queueing": {"kind": "kueue"}}, "kind is 'kueue' and queue is None"),
        ({"priorities": ["batch", "training"]}, "priorities: is batch, training, but an order names each"),
        ({"priorities": ["urgent"]}, "priorities.0: is 'urgent'"),
        ({"serving": {"upgrade": "incremental"}}, "An incremental upgrade needs a GatewayClass"),
        (
            {
                "serving": {"upgrade": "incremental", "gateway_class_name": "istio"},
                "endpoint": {"kind": "LoadBalancer", "source_ranges": ["10.0.0.0/8"]},
            },
            "the only endpoint, but endpoint has kind, source_ranges. Leave endpoint out",
        ),
        ({"serving": {"longest_request_s": 200_000}}, "serving.longest_request_s: is 200000"),
        ({"training": {"ttl_s": 2**31}}, "training.ttl_s: is 2147483648"),
    ],
)
def test_what_cannot_work_is_refused_with_its_field(changes: dict[str, Any], said: str):
    with pytest.raises(ConfigError) as refused:
        spec(**changes)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "image",
    [
        "tandem",
        "team/tandem:0.1.0",
        "localhost/tandem",
        "localhost:5000/team/tandem",
        "Registry.example.com:5000/team/tan__dem-x.y:V1_rc.2",
        f"registry.example.com/team/tandem:0.1.0@sha256:{'a' * 64}",
        "[2001:db8::1]:5000/tandem",
    ],
)
def test_an_image_is_named_as_registries_name_it(image: str):
    assert spec(image=image).image == image


def test_a_store_is_a_bucket_in_storages_own_spelling():
    for uri in ("gs://team", "gcs://team/tandem", "s3://team/a/b"):
        assert spec(store={"uri": uri}).store.root == uri
    with pytest.raises(ConfigError, match=r"uri s3://\*\*\* holds credentials") as refused:
        spec(store={"uri": f"s3://key:{SECRET}@team/a"})
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"store": {"uri": "s3://a/b", "options": {"s3://a": {"secret": SECRET}}}},
        {"store": {"uri": "s3://a/b", "options": {"s3://a": {"endpoint_url": f"https://u:{SECRET}@minio"}}}},
        {"store": {"uri": "s3://a/b", "options": {"s3://a": {"endpoint_url": f"http://u:{SECRET}@m:90000"}}}},
        {"gcs_fault_tolerance": {"redis_address": f"redis://:{SECRET}@redis:6379"}},
        {"gcs_fault_tolerance": {"redis_address": f"redis://:{SECRET}@redis:port"}},
    ],
)
def test_a_secret_in_the_spec_is_refused_without_being_repeated(changes: dict[str, Any]):
    with pytest.raises(ConfigError) as refused:
        spec(**changes)
    assert "secret" in str(refused.value)
    assert SECRET not in str(refused.value)


def _group(**changes: Any) -> dict[str, Any]:
    return {"node_groups": [L4_GROUP | changes]}


def _ranges(*ranges: str) -> dict[str, Any]:
    return {"endpoint": {"kind": "LoadBalancer", "source_ranges": ranges}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"endpoint": INGRESS | {"host": "https://LLM.example.com/v1"}},
            "endpoint.host: is 'https://LLM.example.com/v1', which is no DNS name. Write the name alone",
        ),
        ({"endpoint": INGRESS | {"host": "10.0.0.5"}}, "endpoint.host: is '10.0.0.5', which is no DNS name"),
        ({"endpoint": INGRESS | {"host": "a.*.example.com"}}, "endpoint.host: is 'a.*.example.com'"),
        (
            {"endpoint": INGRESS | {"tls_secret": "My Secret"}},
            "endpoint.tls_secret: is 'My Secret', which no object in Kubernetes can be called. Use 1 to 253",
        ),
        (
            _ranges("10.0.0.5"),
            "endpoint.source_ranges.0: is '10.0.0.5', which is no range of addresses. Write",
        ),
        (_ranges("10.0.0.0/8", "office"), "endpoint.source_ranges.1: is 'office'"),
        (_ranges("10.0.0.0/255.0.0.0"), "endpoint.source_ranges.0: is '10.0.0.0/255.0.0.0'"),
        (_ranges("10.0.0.5/8"), "Write 10.0.0.0/8, or 10.0.0.5/32 for this address alone"),
        (_group(node_labels={"bad key": "x"}), "node_groups.0.node_labels: has the key 'bad key'"),
        (_group(node_labels={"pool": "-x"}), "node_groups.0.node_labels: has pool: '-x'"),
        (_group(labels={"team": "a b"}), "node_groups.0.labels: has team: 'a b', which cannot be a label's"),
        (_group(tolerations=[{"key": "we ird"}]), "node_groups.0.tolerations.0.key: is 'we ird'"),
        (
            {"store": {"uri": S3, "service_account_annotations": {"a b": "x"}}},
            "store.service_account_annotations: has the key 'a b', which cannot be an annotation's",
        ),
        ({"store": {"uri": S3, "access_key": "a_b"}}, "store.access_key: is 'a_b'"),
        ({"monitoring": {"release": "my release"}}, "monitoring.release: is 'my release'"),
    ],
)
def test_a_name_that_kubernetes_would_refuse_is_refused_with_its_field_and_a_remedy(
    changes: dict[str, Any], said: str
):
    with pytest.raises(ConfigError) as refused:
        spec(**changes)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("redis:port", "is 'redis:port', which is no address"),
        ("redis:90000", "is 'redis:90000', which is no address"),
        ("http://redis:6379", "which begins with none of redis://, rediss://"),
        (":6379", "which names no host"),
        ("a:6379,b:6379", "which is no address"),
        ("redis:0", "whose port is 0"),
    ],
)
def test_an_address_of_redis_that_leads_nowhere_is_refused(address: str, said: str):
    with pytest.raises(ConfigError) as refused:
        spec(gcs_fault_tolerance={"redis_address": address})
    assert said in str(refused.value) and "Write host:port, such as redis:6379." in str(refused.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://minio:90000", "is 'http://minio:90000', which is no address"),
        ("minio:9000", "which begins with none of http://, https://"),
        ("http://[::1", "which is no address"),
        ("https://", "which names no host"),
        (9000, "is 9000"),
    ],
)
def test_an_endpoint_of_the_store_that_leads_nowhere_is_refused(url: Any, said: str):
    with pytest.raises(ConfigError) as refused:
        spec(store={"uri": S3, "options": {"s3://a": {"endpoint_url": url}}})
    assert "options.s3://a.endpoint_url" in str(refused.value) and said in str(refused.value)
    assert "Write http://minio:9000 or https://HOST." in str(refused.value)
