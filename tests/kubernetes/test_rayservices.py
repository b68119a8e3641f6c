"""RayServices: the apps, their cluster, and how it is upgraded."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import yaml

from cluster.kubernetes.nodes_told import nodes_config_map
from cluster.kubernetes.rayservice import rayservice, serve_config
from cluster.kubernetes.workloads import Manifest
from cluster.nodes_to_come import VARIABLE
from runtime.core.errors import ConfigError
from tests.kubernetes.accepted import assert_accepted, pod_templates
from tests.kubernetes.specs import A100_GROUP, L4_GROUP, app, spec

INCREMENTAL = {"upgrade": "incremental", "gateway_class_name": "istio"}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"serving": INCREMENTAL, "node_groups": [A100_GROUP]},
        {"gcs_fault_tolerance": {"redis_address": "redis:6379", "password": {"secret": "r", "key": "p"}}},
    ],
)
def test_every_service_is_one_that_the_schema_knows(changes: dict[str, Any]):
    assert_accepted([rayservice(spec(**changes), [app()])])


def test_serves_config_is_text_in_json_with_the_apps_as_everywhere():
    text = rayservice(spec(), [app("qwen"), app("llama")])["spec"]["serveConfigV2"]
    config = json.loads(text)
    assert yaml.safe_load(text) == config  # the operator reads YAML
    assert config["proxy_location"] == "EveryNode"
    assert config["http_options"] == {"host": "0.0.0.0", "port": 8000}
    assert config["applications"] == [app("qwen").application, app("llama").application]


def test_serves_config_is_text_in_yaml_too_whatever_its_words_are():
    words = "\x7f \x85 \u2028 \ufeff \uffff ä 🙂 'a' \"b\""
    odd = replace(app(), application=dict(app().application, args={"system": words}))
    text = serve_config([odd])
    assert yaml.safe_load(text) == json.loads(text)
    assert json.loads(text)["applications"][0]["args"]["system"] == words


def test_pitfall_3_the_head_gets_no_requests():
    assert rayservice(spec(), [app()])["spec"]["excludeHeadPodFromServeSvc"] is True


def test_pitfall_1_workers_have_a_probe_of_ours_that_is_patient_while_an_engine_loads():
    manifest = rayservice(spec(), [app()])
    probes = {
        role: t["spec"]["containers"][0].get("readinessProbe") for _, role, t in pod_templates([manifest])
    }
    assert probes["head"] is None  # the operator's own asks more than Serve
    probe = probes["worker"]
    bash, flag, command = probe["exec"]["command"]
    assert (bash, flag) == ("bash", "-c")
    assert "http://localhost:8000/-/healthz" in command
    assert command.count("wget ") == 2
    # The operator's have 2 s and one try. Two questions of 10 s each fit into ours.
    assert probe["timeoutSeconds"] > 2 * 10
    assert probe["failureThreshold"] == 3


def test_pitfall_5_replicas_and_autoscaling_are_the_clusters():
    cluster = rayservice(spec(node_groups=[L4_GROUP, A100_GROUP]), [app()])["spec"]["rayClusterConfig"]
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert (groups["l4"]["replicas"], groups["l4"]["maxReplicas"]) == (3, 3)
    assert (groups["a100"]["replicas"], groups["a100"]["maxReplicas"]) == (0, 4)


def test_pitfall_5_no_pod_template_changes_with_the_number_of_nodes():
    """Of another template the operator makes a second cluster, with double the GPUs, instead of one node."""

    def templates(most: int) -> list[Manifest]:
        given = spec(node_groups=[A100_GROUP | {"max": most}])
        return [template for _, _, template in pod_templates([rayservice(given, [app()])])]

    assert templates(4) == templates(40)
    assert VARIABLE in [one["name"] for one in templates(4)[0]["spec"]["containers"][0]["env"]]
    (config,) = nodes_config_map(spec(node_groups=[A100_GROUP]))["data"].values()
    assert [(one["name"], one["count"]) for one in json.loads(config)] == [("a100", 4)]


def test_pitfall_6_the_old_cluster_stays_longer_than_its_longest_stream():
    body = rayservice(spec(serving={"longest_request_s": 1200}), [app()])["spec"]
    assert body["rayClusterDeletionDelaySeconds"] > 1200
    patient = rayservice(spec(), [app(graceful_shutdown_timeout_s=3000.5)])["spec"]
    assert patient["rayClusterDeletionDelaySeconds"] > 3001


def test_pitfall_6_serving_pods_are_spread_by_labels_that_upgrades_keep():
    manifest = rayservice(spec(), [app()])
    (template,) = [t for _, role, t in pod_templates([manifest]) if role == "worker"]
    for constraint in template["spec"]["topologySpreadConstraints"]:
        selected = constraint["labelSelector"]["matchLabels"]
        assert selected.items() <= template["metadata"]["labels"].items()
        assert selected["tandem.dev/part"] == "serving"
        assert constraint["whenUnsatisfiable"] == "ScheduleAnyway"


def test_pitfall_14_serving_has_an_account_of_its_own():
    manifest = rayservice(spec(), [app()])
    accounts = {role: t["spec"]["serviceAccountName"] for _, role, t in pod_templates([manifest])}
    assert accounts == {"head": "lab-head", "worker": "lab-serving"}


def test_pitfall_15_the_state_of_a_serving_head_is_in_redis_with_the_password_by_reference():
    redis = {"redis_address": "redis:6379", "password": {"secret": "redis", "key": "word"}}
    manifest = rayservice(spec(gcs_fault_tolerance=redis), [app()])
    cluster = manifest["spec"]["rayClusterConfig"]
    assert cluster["gcsFaultToleranceOptions"] == {
        "redisAddress": "redis:6379",
        "redisPassword": {"valueFrom": {"secretKeyRef": {"name": "redis", "key": "word"}}},
    }
    # The old ways exclude the new one.
    assert "annotations" not in manifest["metadata"]
    assert "redis" not in json.dumps(cluster["headGroupSpec"]).lower()


@pytest.mark.parametrize(("upgrade", "kind"), [("new_cluster", "NewCluster"), ("none", "None")])
def test_a_plain_upgrade_is_spelled_as_the_operator_knows_it(upgrade: str, kind: str):
    assert rayservice(spec(serving={"upgrade": upgrade}), [app()])["spec"]["upgradeStrategy"] == {
        "type": kind
    }


def test_an_incremental_upgrade_has_a_gateway_and_steps_that_fit_its_surge():
    given = spec(serving=INCREMENTAL, node_groups=[A100_GROUP])
    strategy = rayservice(given, [app()])["spec"]["upgradeStrategy"]
    assert strategy["type"] == "NewClusterWithIncrementalUpgrade"
    options = strategy["clusterUpgradeOptions"]
    assert options["gatewayClassName"] == "istio"
    assert 0 < options["stepSizePercent"] <= options["maxSurgePercent"] <= 100
    assert options["intervalSeconds"] > 0


def test_an_incremental_upgrade_without_autoscaling_is_refused():
    with pytest.raises(ConfigError, match=r"serving\.upgrade is 'incremental'.*min and max instead of count"):
        rayservice(spec(serving=INCREMENTAL), [app()])


def test_pitfall_17_the_cluster_is_where_the_crd_has_it_and_the_head_service_has_no_name():
    body = rayservice(spec(), [app()])["spec"]
    assert "rayClusterSpec" not in body
    assert "headService" not in body["rayClusterConfig"]["headGroupSpec"]


def test_two_apps_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="name is 'qwen' in two serve specs"):
        rayservice(spec(), [app(), app("llama"), app()])
