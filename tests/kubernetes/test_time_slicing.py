"""What is there of time-slicing and MPS, and the way out, from objects as plain data (pitfall 9)."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest

from cluster.kubernetes.budgets_seen import blocking
from cluster.kubernetes.leaving_advice import advice
from cluster.kubernetes.leaving_time_slicing import bare_pods, plan
from cluster.kubernetes.nodes_seen import NodeSeen
from cluster.kubernetes.pods_seen import reserved, reserved_by_daemons
from cluster.kubernetes.time_slicing import (
    CONFIG_LEFT,
    CORDONED_BY_US,
    Shared,
    config_map_seen,
    nodes_concerned,
    operators_plugin_namespace,
    plugins_seen,
    pods_on_replicas,
    policy_seen,
)
from tests.kubernetes.sliced import FOUR, HOME, config_map, node, pod, policy

Json = dict[str, Any]


def shared(
    *,
    policies: tuple[Json, ...] = (),
    config_maps: tuple[Json, ...] = (),
    nodes: tuple[Json, ...] = (),
    pods: tuple[Json, ...] = (),
    daemonsets: tuple[Json, ...] = (),
) -> Shared:
    concerned = nodes_concerned(NodeSeen(one) for one in nodes)
    return Shared(
        policies=tuple(policy_seen(one, operators_plugin_namespace(daemonsets)) for one in policies),
        config_maps=tuple(config_map_seen(one) for one in config_maps),
        nodes=concerned,
        pods=pods_on_replicas(pods, concerned),
        plugins=plugins_seen(daemonsets),
    )


def sliced(**changes: Any) -> Shared:
    """One node with 2 GPUs in 4 replicas each and one pod on one of them."""
    found: dict[str, Any] = {
        "policies": (policy(),),
        "config_maps": (config_map(),),
        "nodes": (node("gpu-1", replicas=4),),
        "pods": (pod("web-a", "gpu-1"),),
    }
    return shared(**(found | changes))


def daemonset(name: str, *, config: str | None, app: str = "nvdp") -> Json:
    volumes = [{"name": "config", "configMap": {"name": config}}] if config else []
    image = "nvcr.io/nvidia/k8s-device-plugin:v0.17.1"
    template = {"spec": {"containers": [{"name": "p", "image": image}], "volumes": volumes}}
    meta = {"name": name, "namespace": "plugins", "labels": {"app": app}}
    return {"kind": "DaemonSet", "metadata": meta, "spec": {"template": template}}


@pytest.mark.parametrize(
    ("key", "value", "sharing"),
    [
        ("nvidia.com/gpu.sharing-strategy", "time-slicing", "time-slicing"),
        ("nvidia.com/gpu.sharing-strategy", "mps", "MPS"),
        ("nvidia.com/gpu.product", "NVIDIA-L4-SHARED", "time-slicing"),
        ("nvidia.com/gpu.replicas", "2", "time-slicing"),
        ("nvidia.com/mig-1g.5gb.replicas", "3", "time-slicing"),
        ("nvidia.com/mig-1g.5gb.product", "NVIDIA-A100-PCIE-40GB-MIG-1g.5gb-SHARED", "time-slicing"),
        ("cloud.google.com/gke-gpu-sharing-strategy", "time-sharing", "time-slicing"),
        ("nvidia.com/gpu.sharing-strategy", "none", None),
        ("nvidia.com/gpu.replicas", "1", None),
        ("nvidia.com/gpu.replicas", "0", None),
        ("nvidia.com/gpu.product", "NVIDIA-L4", None),
    ],
)
def test_a_label_tells_whether_gpus_are_shared(key: str, value: str, sharing: str | None) -> None:
    seen = NodeSeen({"metadata": {"name": "n", "labels": {key: value}}})
    assert seen.sharing == sharing


def test_renamed_replicas_are_a_sign_though_the_product_has_none() -> None:
    seen = NodeSeen(
        {
            "metadata": {"name": "n", "labels": {"nvidia.com/gpu.product": "NVIDIA-L4"}},
            "status": {"allocatable": {"nvidia.com/gpu.shared": "8"}},
        }
    )
    assert seen.sharing == "time-slicing"
    assert seen.sharing_signs == ["allocatable nvidia.com/gpu.shared: 8"]


def test_a_node_is_whole_when_it_offers_as_many_gpus_as_it_has() -> None:
    assert NodeSeen(node("n", gpus=3)).whole
    too_many = node("n", gpus=3)
    too_many["status"]["allocatable"]["nvidia.com/gpu"] = "12"
    assert not NodeSeen(too_many).whole


def test_with_mixed_mig_the_divided_cards_are_not_counted() -> None:
    labels = {"nvidia.com/gpu.count": "2", "nvidia.com/mig-1g.5gb.count": "7"}
    offered = {"nvidia.com/gpu": "1", "nvidia.com/mig-1g.5gb": "7"}
    seen = NodeSeen({"metadata": {"name": "n", "labels": labels}, "status": {"allocatable": offered}})
    assert seen.whole_devices == {"nvidia.com/mig-1g.5gb": 7}
    assert seen.whole


def test_a_pod_reserves_its_containers_together_or_the_largest_before_them() -> None:
    spec = {
        "containers": [
            {"resources": {"requests": {"cpu": "250m", "memory": "1Gi"}}},
            {"resources": {"limits": {"cpu": "500m"}}},
        ],
        "initContainers": [
            {"resources": {"requests": {"cpu": "2", "memory": "512Mi"}}},
            {"restartPolicy": "Always", "resources": {"requests": {"memory": "256Mi"}}},
        ],
    }
    found = reserved({"metadata": {"name": "p"}, "spec": spec})
    assert found == {"cpu": 2.0, "memory": 1.25 * 2**30}


def test_daemons_are_summed_by_node_and_others_left_out() -> None:
    pods = [
        pod("a", "n1", gpus=0, owner="DaemonSet/a", cpu="300m"),
        pod("b", "n1", gpus=0, owner="DaemonSet/b", cpu="1"),
        pod("c", "n1", gpus=0, cpu="5"),
    ]
    assert reserved_by_daemons(pods) == {"n1": {"cpu": 1.3}}


def test_pods_on_replicas_are_those_with_gpus_on_shared_nodes() -> None:
    ended = pod("done", "gpu-1")
    ended["status"]["phase"] = "Succeeded"
    mirror = pod("static", "gpu-1", owner=None)
    mirror["metadata"]["annotations"] = {"kubernetes.io/config.mirror": "x"}
    found = shared(
        nodes=(node("gpu-1", replicas=4), node("gpu-2")),
        pods=(
            pod("web-a", "gpu-1", gpus=3),
            pod("whole", "gpu-2"),
            pod("cpu-only", "gpu-1", gpus=0),
            pod("exporter", "gpu-1", owner="DaemonSet/d"),
            ended,
            mirror,
        ),
    )
    assert [(one.name, one.reserves, one.controller) for one in found.pods] == [
        ("web-a", {"nvidia.com/gpu": 3}, "ReplicaSet/web")
    ]


def test_what_each_config_shares_and_sets_besides_is_read() -> None:
    mps = "sharing: {mps: {resources: [{name: nvidia.com/gpu, replicas: 10}]}}\nflags: {migStrategy: mixed}"
    found = config_map_seen(config_map(any=FOUR, mps=mps, broken="{", none="version: v1"))
    assert found.shares == {
        "any": "nvidia.com/gpu into 4 by time-slicing",
        "mps": "nvidia.com/gpu into 10 by MPS",
    }
    assert found.also == {"mps": ("flags.migStrategy=mixed",)}


def test_the_steps_come_in_the_order_in_which_they_are_safe() -> None:
    found = sliced(
        nodes=(node("gpu-1", replicas=4, labels={"nvidia.com/device-plugin.config": "any"}),),
    )
    assert [(step.verb, step.name) for step in plan(found)] == [
        ("cordon", "gpu-1"),
        ("evict", "web-a"),
        ("clear", "cluster-policy"),
        ("unlabel", "gpu-1"),
        ("delete", "slices"),
        ("wait", "gpu-1"),
        ("uncordon", "gpu-1"),
    ]


def test_the_commands_are_kubectls_own_with_names_and_context_quoted() -> None:
    found = sliced(
        nodes=(node("gpu-1", replicas=4, labels={"nvidia.com/device-plugin.config": "any"}),),
    )
    commands = {step.verb: step.commands for step in plan(found, context="my lab")}
    start = "kubectl --context 'my lab' "
    assert commands["cordon"] == (start + "cordon gpu-1",)
    assert commands["clear"] == (
        start + "patch clusterpolicies.nvidia.com/cluster-policy --type=merge --patch "
        """'{"spec":{"devicePlugin":{"config":null}}}'""",
    )
    assert commands["unlabel"] == (start + "label node gpu-1 nvidia.com/device-plugin.config-",)
    assert commands["delete"] == (
        start + "delete configmap slices --namespace nvidia-system --ignore-not-found",
    )
    assert commands["wait"] == (
        start + r"wait node/gpu-1 '--for=jsonpath={.metadata.labels.nvidia\.com/gpu\.sharing-strategy}=none' "
        "--timeout=600s",
        start + r"wait node/gpu-1 '--for=jsonpath={.status.allocatable.nvidia\.com/gpu}=2' --timeout=600s",
    )
    assert commands["uncordon"] == (start + "uncordon gpu-1",)


def test_the_eviction_by_hand_posts_to_the_pods_own_address() -> None:
    (command,) = next(step for step in plan(sliced()) if step.verb == "evict").commands
    said, _, posted = command.partition(" | ")
    body = json.loads(shlex.split(said)[1])
    assert (body["kind"], body["metadata"]) == ("Eviction", {"name": "web-a", "namespace": "default"})
    assert posted == "kubectl create --raw /api/v1/namespaces/default/pods/web-a/eviction --filename -"


def test_nothing_is_done_where_nothing_is_shared() -> None:
    found = shared(policies=(policy(config=None),), nodes=(node("gpu-1"),))
    assert (plan(found), advice(found)) == ([], [])


def test_a_config_that_shares_nothing_is_left_alone() -> None:
    found = shared(
        policies=(policy(config="mig"),),
        config_maps=(config_map("mig", any="version: v1\nflags: {migStrategy: single}"),),
        nodes=(node("gpu-1", labels={"nvidia.com/device-plugin.config": "any"}),),
    )
    assert plan(found) == []


def test_a_policy_that_names_a_config_map_which_is_gone_is_cleared() -> None:
    found = sliced(config_maps=(), nodes=(), pods=())
    assert [(step.verb, step.config_map) for step in plan(found)] == [("clear", None)]


def test_a_label_that_chooses_from_no_config_any_more_is_removed() -> None:
    found = shared(
        policies=(policy(config=None),),
        nodes=(node("gpu-1", labels={"nvidia.com/device-plugin.config": "any"}),),
    )
    assert [(step.verb, step.name) for step in plan(found)] == [("unlabel", "gpu-1")]


def test_a_node_that_somebody_else_cordoned_stays_so() -> None:
    found = sliced(nodes=(node("gpu-1", replicas=4, cordoned=True),))
    assert not {"cordon", "uncordon"} & {step.verb for step in plan(found)}


def test_a_node_that_an_earlier_run_cordoned_is_uncordoned() -> None:
    ours = node("gpu-1", cordoned=True)
    ours["metadata"]["annotations"] = {CORDONED_BY_US: "true"}
    found = shared(policies=(policy(config=None),), nodes=(ours,))
    assert [step.verb for step in plan(found)] == ["wait", "uncordon"]


def test_a_config_map_that_an_earlier_run_left_is_deleted() -> None:
    left = policy(config=None, annotations={CONFIG_LEFT: "elsewhere/slices"})
    (step,) = plan(shared(policies=(left,)))
    assert (step.verb, step.namespace, step.name, step.policy) == (
        "delete",
        "elsewhere",
        "slices",
        "cluster-policy",
    )


def test_each_of_several_policies_has_its_own_steps() -> None:
    found = shared(
        policies=(policy("one"), policy("two", config="other"), policy("three", config=None)),
        config_maps=(config_map(), config_map("other")),
    )
    assert [(step.verb, step.name) for step in plan(found)] == [
        ("clear", "one"),
        ("clear", "two"),
        ("delete", "slices"),
        ("delete", "other"),
    ]


def test_the_config_maps_namespace_is_the_operators_where_the_status_names_none() -> None:
    without = policy()
    del without["status"]["namespace"]
    plugin = daemonset("nvidia-device-plugin-daemonset", config=None, app="nvidia-device-plugin-daemonset")
    assert policy_seen(without, operators_plugin_namespace([plugin])).namespace == "plugins"


def test_a_pod_without_a_controller_is_told() -> None:
    found = sliced(pods=(pod("web-a", "gpu-1"), pod("notebook", "gpu-1", owner=None)))
    assert [one.name for one in bare_pods(found)] == ["notebook"]


def test_helm_is_told_too_with_the_release_the_chart_and_its_version() -> None:
    by_helm = policy(
        labels={"app.kubernetes.io/managed-by": "Helm", "helm.sh/chart": "gpu-operator-v25.3.4"},
        annotations={
            "meta.helm.sh/release-name": "gpu-operator-17",
            "meta.helm.sh/release-namespace": HOME,
        },
    )
    (line,) = advice(sliced(policies=(by_helm,)))
    assert line.endswith(
        "Change the values, too: helm upgrade gpu-operator-17 nvidia/gpu-operator --namespace nvidia-system "
        "--version v25.3.4 --reuse-values --set devicePlugin.config.create=false "
        "--set devicePlugin.config.name= --set devicePlugin.config.default="
    )


def test_argo_cd_would_put_it_back() -> None:
    by_argo = policy(annotations={"argocd.argoproj.io/tracking-id": "gpu:nvidia.com/ClusterPolicy"})
    (line,) = advice(sliced(policies=(by_argo,)))
    assert "managed by Argo CD" in line


def test_what_is_lost_with_the_config_map_is_told() -> None:
    both = FOUR.replace("migStrategy: none", "migStrategy: mixed")
    (line,) = advice(sliced(config_maps=(config_map(any=both),)))
    assert "also sets, under any: flags.migStrategy=mixed" in line


def test_pods_that_ask_for_renamed_replicas_are_told_to_change() -> None:
    asks = pod("web-a", "gpu-1", resource="nvidia.com/gpu.shared")
    (line,) = advice(sliced(pods=(asks,)))
    assert "ReplicaSet/web in default asks for nvidia.com/gpu.shared" in line
    assert "Change it to nvidia.com/gpu:" in line


def test_without_the_operator_nothing_is_done_and_the_way_is_told() -> None:
    found = shared(
        daemonsets=(daemonset("nvdp-plugin", config="nvdp-configs"),),
        nodes=(node("gpu-1", replicas=4, labels={"nvidia.com/device-plugin.config": "any"}),),
        pods=(pod("web-a", "gpu-1"),),
    )
    assert plan(found) == []
    (line,) = advice(found)
    assert "DaemonSet plugins/nvdp-plugin" in line and "ConfigMap nvdp-configs" in line
    assert "--set config.name= --set config.default= --set config.map=null" in line
    assert line.endswith("kubectl label nodes --all nvidia.com/device-plugin.config-")


def test_gkes_own_sharing_is_left_to_its_node_pool() -> None:
    gke = node("gke-1", gpus=0, labels={"cloud.google.com/gke-gpu-sharing-strategy": "time-sharing"})
    gke["status"]["allocatable"]["nvidia.com/gpu"] = "4"
    found = sliced(nodes=(gke,), pods=(pod("web-a", "gke-1"),))
    assert [step.verb for step in plan(found)] == ["clear", "delete"]
    assert any("gke-1: GKE shares" in line for line in advice(found))


def test_a_budget_blocks_only_the_pods_that_it_selects() -> None:
    def budget(name: str, allowed: int, selector: Json) -> Json:
        return {
            "metadata": {"name": name},
            "spec": {"selector": selector},
            "status": {"disruptionsAllowed": allowed},
        }

    budgets = [
        budget("mine", 0, {"matchLabels": {"app": "web"}}),
        budget("free", 1, {"matchLabels": {"app": "web"}}),
        budget("others", 0, {"matchLabels": {"app": "db"}}),
        budget("by-term", 0, {"matchExpressions": [{"key": "app", "operator": "In", "values": ["web"]}]}),
        budget("not-web", 0, {"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]}),
        budget("all", 0, {}),
    ]
    assert blocking(budgets, {"app": "web"}) == ["mine", "by-term", "all"]
