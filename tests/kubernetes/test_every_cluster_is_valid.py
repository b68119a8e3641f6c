"""Every valid cluster spec, whatever runs on it, becomes manifests that Kubernetes and the operator take."""

from __future__ import annotations

import json

import yaml
from hypothesis import HealthCheck, given, settings

from cluster.cluster_spec import ClusterSpec
from cluster.kubernetes.check import check
from cluster.kubernetes.core_kinds import is_core
from cluster.kubernetes.render import render
from cluster.kubernetes.workloads import ServeApp, TrainJob
from tests.kubernetes.accepted import crds
from tests.kubernetes.cluster_specs import cluster_specs, clusters, serve_apps
from tests.kubernetes.core_schemas import core_faults

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
