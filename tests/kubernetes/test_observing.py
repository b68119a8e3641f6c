"""What Prometheus and Grafana get, and that they find it."""

import json

import pytest

from cluster.kubernetes.elsewhere import stem
from cluster.kubernetes.names import pod_labels
from cluster.kubernetes.observing import observing
from cluster.kubernetes.render import render
from cluster.monitoring.rules import rule_groups
from runtime.core.errors import ConfigError
from tests.kubernetes.accepted import assert_accepted, only, pod_templates
from tests.kubernetes.specs import app, job, spec

LAB = stem(spec())
"""What the names of objects in others' namespaces begin with."""
DASHBOARDS = {"serve": {"title": "Serve", "uid": "rayServe"}, "tandem": {"title": "Tandem"}}


def of(dashboards=DASHBOARDS, **monitoring):
    found = observing(spec(monitoring=monitoring), dashboards)
    assert_accepted(found)
    return found


def test_pitfall_11_pods_are_scraped_not_services_which_would_count_the_head_twice():
    found = of()
    assert [one["metadata"]["name"] for one in found if one["kind"] == "ServiceMonitor"] == [f"{LAB}-dcgm"]
    head, worker = only(found, "PodMonitor", "lab-head"), only(found, "PodMonitor", "lab-worker")
    ports = [one["port"] for one in head["spec"]["podMetricsEndpoints"]]
    assert ports == ["metrics", "as-metrics", "dash-metrics", "haproxy"]
    assert [one["port"] for one in worker["spec"]["podMetricsEndpoints"]] == ["metrics", "haproxy"]
    for part in ("serving", "training", "shared"):
        for role, monitor in (("head", head), ("worker", worker)):
            selector = monitor["spec"]["selector"]["matchLabels"]
            labels = pod_labels(spec(), part=part, role=role)
            assert selector.items() <= labels.items()


def test_pitfall_11_every_sample_says_which_ray_cluster_it_is_of():
    monitors = [one for one in of() if one["kind"] == "PodMonitor"]
    endpoints = [one for monitor in monitors for one in monitor["spec"]["podMetricsEndpoints"]]
    assert len(endpoints) == 6
    for one in endpoints:
        relabeling, *_ = one["relabelings"]
        # Prometheus' name for the pod's label ray.io/cluster.
        assert relabeling["sourceLabels"] == ["__meta_kubernetes_pod_label_ray_io_cluster"]
        assert relabeling["targetLabel"] == "ray_io_cluster"


def test_pitfall_11_prometheus_selects_by_the_release_label():
    found = [one for one in of(release="kps") if one["apiVersion"].startswith("monitoring.coreos.com")]
    assert {one["kind"] for one in found} == {"PodMonitor", "ServiceMonitor", "PrometheusRule"}
    assert {one["metadata"]["labels"]["release"] for one in found} == {"kps"}


def test_every_port_that_is_scraped_is_one_that_pods_declare_and_haproxys_only_where_apps_are():
    manifests = render(spec(training={"cluster": "shared"}), apps=[app()], jobs=[job()])
    manifests += render(spec(), jobs=[job()])
    ready_only = {"sourceLabels": ["__meta_kubernetes_pod_ready"], "regex": "true", "action": "keep"}
    scraped = {
        (one["metadata"]["name"].removeprefix("lab-"), endpoint["port"]): endpoint
        for one in of()
        if one["kind"] == "PodMonitor"
        for endpoint in one["spec"]["podMetricsEndpoints"]
    }
    declared: dict[tuple[str, str], set[tuple[str, int]]] = {}
    for manifest, role, template in pod_templates(manifests):
        for port in template["spec"]["containers"][0].get("ports", ()):
            where = declared.setdefault((role, port["name"]), set())
            where.add((manifest["kind"], port["containerPort"]))
    assert scraped.keys() <= declared.keys()
    for role in ("head", "worker"):
        assert declared[role, "haproxy"] == {("RayService", 9101)}
        # A worker without a replica has no HAProxy, and is not ready.
        assert ready_only in scraped[role, "haproxy"]["relabelings"]
        assert ready_only not in scraped[role, "metrics"]["relabelings"]
        # The alert about nodes that do not answer leaves this job out.
        job_label = {"targetLabel": "job", "replacement": "haproxy", "action": "replace"}
        assert job_label in scraped[role, "haproxy"]["relabelings"]


def test_the_gpus_exporter_is_scraped_where_it_runs():
    monitor = only(of(dcgm_namespace="nvidia"), "ServiceMonitor")
    assert monitor["metadata"]["namespace"] == "nvidia"
    assert monitor["spec"]["selector"] == {"matchLabels": {"app": "nvidia-dcgm-exporter"}}
    # assets/state-dcgm-exporter/0600_service.yaml of NVIDIA/gpu-operator.
    service_labels, service_ports = {"app": "nvidia-dcgm-exporter"}, {"gpu-metrics": 9400}
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service_labels.items()
    assert [service_ports.get(one["port"]) for one in monitor["spec"]["endpoints"]] == [9400]
    assert not [one for one in of(dcgm=False) if one["kind"] == "ServiceMonitor"]


def test_the_alerts_are_those_of_every_other_prometheus():
    assert only(of(), "PrometheusRule")["spec"]["groups"] == rule_groups()


def test_each_dashboard_is_a_config_map_beside_grafana_with_the_label_its_sidecar_looks_for():
    found = [one for one in of(namespace="observing") if one["kind"] == "ConfigMap"]
    assert [one["metadata"]["name"] for one in found] == [
        f"{LAB}-dashboard-serve",
        f"{LAB}-dashboard-tandem",
    ]
    for one in found:
        assert one["metadata"]["namespace"] == "observing"
        assert one["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(found[0]["data"][f"{LAB}-dashboard-serve.json"]) == DASHBOARDS["serve"]


def test_names_that_kubernetes_would_refuse_are_changed_and_stay_different():
    names = ["Serve LLM", "serve_llm", "serve-llm", "x" * 80, "x" * 81]
    found = [one for one in of({name: {} for name in names}) if one["kind"] == "ConfigMap"]
    made = {one["metadata"]["name"] for one in found}
    assert len(made) == 5
    assert f"{LAB}-dashboard-serve-llm" in made
    assert all(len(name) <= 63 for name in made)


def test_a_dashboard_that_no_config_map_holds_is_refused():
    with pytest.raises(ConfigError, match=r"'huge' has 1048\d{3} bytes, but a ConfigMap holds 1048576"):
        of({"huge": {"text": "a" * (1 << 20)}})
    fits = {"text": "a" * ((1 << 20) - len('{"text":""}'))}
    assert only(of({"large": fits}), "ConfigMap")


def test_nothing_is_left_where_monitoring_is_off_and_no_dashboard_where_those_are():
    assert of(enabled=False) == []
    without = observing(spec(monitoring={"dashboards": False}), DASHBOARDS)
    assert "PodMonitor" in {one["kind"] for one in without}
    assert "ConfigMap" not in {one["kind"] for one in without}


def test_clusters_of_one_name_in_two_namespaces_do_not_share_an_object():
    def made(**place):
        return {
            (one["kind"], one["metadata"]["namespace"], one["metadata"]["name"])
            for one in observing(spec(**place), DASHBOARDS)
        }

    a, b = made(namespace="team-a"), made(namespace="team-b")
    assert a & b == set()
    # Nor one with a cluster whose name is both of theirs.
    assert made(namespace="team-a") & made(name="team-a-lab", namespace=None) == set()
    assert ("ServiceMonitor", "gpu-operator", "lab-dcgm") in made(namespace=None)
