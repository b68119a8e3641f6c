"""Every valid cluster spec, whatever runs on it, becomes manifests that Kubernetes and the operator take."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings

from cluster.cluster_spec import ClusterSpec
from cluster.kubernetes.check import check
from cluster.kubernetes.core_kinds import is_core
from cluster.kubernetes.render import render
from cluster.kubernetes.workloads import ServeApp, TrainJob
from runtime.core.errors import ConfigError
from tests.kubernetes.accepted import crds
from tests.kubernetes.cluster_specs import cluster_specs, clusters, serve_apps
from tests.kubernetes.core_schemas import core_faults
from tests.kubernetes.specs import L4_GROUP, app, job, spec

DASHBOARDS = {"cards": {"title": "Cards", "panels": [{"gridPos": {"y": 1}}]}}


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(clusters())
def test_every_valid_spec_becomes_manifests_that_a_cluster_takes(
    cluster: tuple[ClusterSpec, list[ServeApp], list[TrainJob]],
):
    spec, apps, jobs = cluster
    schemas = crds()
    manifests = render(spec, apps=apps, jobs=jobs, ray_dashboards=DASHBOARDS)
    found = check(manifests, schemas)
    # What the folder does not hold is in the cluster already; of the rest all advice is followed.
    elsewhere = [fault for fault in found if "is among these manifests" in fault.why]
    said = [fault for fault in found if fault not in elsewhere and fault.value != "disabled"]
    assert [str(fault) for fault in said] == []
    assert (spec.auth.mode == "token") == (not any(fault.value == "disabled" for fault in found))
    assert {fault.value for fault in elsewhere} <= {spec.store.nfs and spec.store.nfs.claim}
    for manifest in manifests:
        if is_core(manifest["apiVersion"]):
            assert core_faults(manifest) == []
    assert render(spec, apps=apps, jobs=jobs, ray_dashboards=DASHBOARDS) == manifests


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(spec=cluster_specs(), apps=serve_apps())
def test_serves_config_survives_as_text(spec: ClusterSpec, apps: list[ServeApp]):
    for manifest in render(spec, apps=apps):
        if manifest["kind"] == "RayService":
            config = yaml.safe_load(manifest["spec"]["serveConfigV2"])
            assert config["applications"] == [dict(app.application) for app in apps]
        assert json.loads(json.dumps(manifest)) == manifest


ODD = ("a b", "A_b", "-a", "a-", "a.b", "*.a.b", "https://LLM.example.com/v1", "10.0.0.5", "10.0.0.5/8",
       "10.0.0.0/8", "redis:port", "http://minio:90000", "a/b/c", "/a", "../x", "a..b", "a" * 64, "a" * 254,
       "", "\u00e4", "\n")  # fmt: skip
"""Each is what somebody may have written in some field; hardly one is right in all."""


def _group(**changes: Any) -> dict[str, Any]:
    return {"node_groups": [L4_GROUP | changes]}


def _door(kind: str, **changes: Any) -> dict[str, Any]:
    named = {"host": "llm.example.com", "class_name": "nginx"} if kind != "LoadBalancer" else {}
    return {"endpoint": {"kind": kind} | named | changes}


def _nfs(**changes: Any) -> dict[str, Any]:
    return {"store": {"nfs": {"server": "10.0.0.5", "path": "/x"}} | changes}


FIELDS = {
    "namespace": lambda word: {"namespace": word},
    "image_pull_secrets": lambda word: {"image_pull_secrets": [word]},
    "auth.secret": lambda word: {"auth": {"secret": word}},
    "monitoring.release": lambda word: {"monitoring": {"release": word}},
    "monitoring.namespace": lambda word: {"monitoring": {"namespace": word}},
    "monitoring.dcgm_namespace": lambda word: {"monitoring": {"dcgm_namespace": word}},
    "queueing.queue": lambda word: {"queueing": {"kind": "kai", "queue": word}},
    "endpoint.host of an Ingress": lambda word: _door("Ingress", host=word, tls_secret="tls"),
    "endpoint.host of a Gateway": lambda word: _door("Gateway", host=word, tls_secret="tls"),
    "endpoint.tls_secret of an Ingress": lambda word: _door("Ingress", tls_secret=word),
    "endpoint.tls_secret of a Gateway": lambda word: _door("Gateway", tls_secret=word),
    "endpoint.load_balancer_class": lambda word: _door("LoadBalancer", load_balancer_class=word),
    "endpoint.class_name of an Ingress": lambda word: _door("Ingress", class_name=word),
    "endpoint.class_name of a Gateway": lambda word: _door("Gateway", class_name=word),
    "endpoint.annotations": lambda word: _door("Ingress", annotations={word: "x"}),
    "endpoint.source_ranges": lambda word: _door("LoadBalancer", source_ranges=[word]),
    "head.node_labels, a key": lambda word: {"head": {"node_labels": {word: "x"}}},
    "head.tolerations": lambda word: {"head": {"tolerations": [{"key": word}]}},
    "node_groups.accelerator_type": lambda word: _group(accelerator_type=word, gpu_memory="80GiB"),
    "node_groups.name": lambda word: _group(name=word),
    "node_groups.labels, a key": lambda word: _group(labels={word: "x"}),
    "node_groups.labels, a value": lambda word: _group(labels={"x": word}),
    "node_groups.node_labels, a key": lambda word: _group(node_labels={word: "x"}),
    "node_groups.node_labels, a value": lambda word: _group(node_labels={"x": word}),
    "node_groups.tolerations, a key": lambda word: _group(tolerations=[{"key": word}]),
    "node_groups.tolerations, a value": lambda word: _group(
        tolerations=[{"key": "x", "operator": "Equal", "value": word}]
    ),
    "store.uri": lambda word: _nfs(uri=word),
    "store.uri below the mount": lambda word: _nfs(uri=f"/mnt/tandem/{word}"),
    "store.service_account_annotations": lambda word: _nfs(service_account_annotations={word: "x"}),
    "store.access_key": lambda word: {"store": {"uri": "s3://b/p", "access_key": word}},
    "store.nfs.claim": lambda word: {"store": {"nfs": {"claim": word}}},
    "store.nfs.storage_class": lambda word: {"store": {"nfs": {"storage_class": word}}},
    "store.options.endpoint_url": lambda word: {
        "store": {"uri": "s3://b/p", "options": {"s3://b": {"endpoint_url": word}}}
    },
    "key_file.secret": lambda word: {"store": {"uri": "gs://b/p", "key_file": {"secret": word, "key": "k"}}},
    "key_file.key": lambda word: {"store": {"uri": "gs://b/p", "key_file": {"secret": "s", "key": word}}},
    "gcs_fault_tolerance.redis_address": lambda word: {"gcs_fault_tolerance": {"redis_address": word}},
    "serving.gateway_class_name": lambda word: {
        "serving": {"upgrade": "incremental", "gateway_class_name": word}, **_group(count=None, min=1, max=3)
    },
}  # fmt: skip


@pytest.mark.parametrize("field", FIELDS)
def test_an_odd_word_is_refused_with_its_field_or_becomes_manifests_that_a_cluster_takes(field: str):
    schemas, refused = crds(), 0
    name = re.split("[ ,]", field)[0].rpartition(".")[2]
    for word in ODD:
        try:
            manifests = render(spec(**FIELDS[field](word)), apps=[app()], jobs=[job()])
        except ConfigError as error:
            refused += 1
            assert name in str(error), (word, str(error))
            continue
        found = [str(fault) for fault in check(manifests, schemas) if not fault.warning]
        assert found == [], repr(word)
        for manifest in manifests:
            if is_core(manifest["apiVersion"]):
                assert core_faults(manifest) == [], repr(word)
    assert refused > 0
