"""Preflight's checks of nodes, GPUs, KubeRay and monitoring, from objects as plain data."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.kubernetes.findings import Finding, errors
from cluster.kubernetes.nodes_seen import NodeSeen
from cluster.kubernetes.preflight_gpus import check_gpus
from cluster.kubernetes.preflight_nodes import check_nodes
from cluster.kubernetes.preflight_operators import check_kuberay, check_monitoring
from tests.kubernetes.preflight_inputs import NEW, about, operator, ray_cluster_crd, small_l4
from tests.kubernetes.sliced import node, pod, policy
from tests.kubernetes.specs import CPU_GROUP, spec

Json = dict[str, Any]


def nodes_said(
    groups: list[Json], nodes: list[Json], pods: list[Json] | None = None, *, more_come: bool = False
) -> list[Finding]:
    wanted = spec(node_groups=groups, head={"cpus": 2, "memory": "4GiB"})
    return check_nodes(wanted, [NodeSeen(one) for one in nodes], pods or [], more_come=more_come)


def test_enough_nodes_that_can_hold_a_pod_each_are_fine() -> None:
    found = nodes_said([small_l4()], [node(f"n{i}", gpus=1) for i in range(3)])
    assert {one.level for one in found} == {"ok"}
    assert about(found, "group l4").seen.startswith("3 of 3 nodes can hold a pod of node group l4")
    assert about(found, "NVIDIA-L4").seen == "3 whole GPUs on 3 nodes; the node groups' least is 3."


def test_fewer_gpus_than_the_groups_least_is_an_error_with_the_number() -> None:
    groups = [small_l4(), small_l4(name="more", count=2)]
    one = about(nodes_said(groups, [node(f"n{i}", gpus=1) for i in range(3)]), "NVIDIA-L4")
    assert one.level == "error"
    assert one.seen == "3 whole GPUs on 3 nodes; the node groups' least is 5."
    assert one.why.startswith("2 are missing")


def test_where_an_autoscaler_adds_nodes_too_few_are_a_warning() -> None:
    found = nodes_said([small_l4()], [node("n0", gpus=1)], more_come=True)
    assert {about(found, topic).level for topic in ("group l4", "NVIDIA-L4")} == {"warning"}


def test_what_daemons_reserve_is_not_there_for_a_pod() -> None:
    daemon = pod("proxy", "n0", gpus=0, owner="DaemonSet/proxy", cpu="2500m")
    nodes = [node(f"n{i}", gpus=1) for i in range(3)]
    one = about(nodes_said([small_l4()], nodes, [daemon]), "group l4")
    assert one.level == "error"
    assert "1 node with only 5.5 CPUs to give beside its DaemonSets' pods" in one.seen


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"memory": "20Gi"}, "with only 20 GiB to give"),
        ({"cordoned": True}, "cordoned"),
        ({"product": "Tesla-T4"}, "without the label nvidia.com/gpu.product=NVIDIA-L4"),
        ({"replicas": 4}, "with time-slicing on"),
        ({"labels": {"zone": "b"}}, "without the label zone=a"),
        (
            {"taints": [{"key": "team", "value": "x", "effect": "NoSchedule"}]},
            "with the taint team=x:NoSchedule, which is not tolerated",
        ),
    ],
)
def test_why_a_node_cannot_hold_a_groups_pod_is_told(changes: Json, reason: str) -> None:
    labels = {"zone": "a"} | changes.pop("labels", {})
    group = small_l4(count=1, node_labels={"zone": "a"})
    one = about(nodes_said([group], [node("n0", gpus=1, labels=labels, **changes)]), "group l4")
    assert one.level == "error"
    assert reason in one.seen


def test_a_node_that_is_not_ready_holds_nothing() -> None:
    down = node("n0", gpus=1)
    down["status"]["conditions"] = [{"type": "Ready", "status": "Unknown"}]
    assert "1 node not ready" in about(nodes_said([small_l4(count=1)], [down]), "group l4").seen


def test_the_taint_of_gpu_nodes_is_tolerated_by_gpu_groups_only() -> None:
    tainted = node(
        "n0", gpus=1, taints=[{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}]
    )
    groups = [small_l4(count=1), {**CPU_GROUP, "count": 1, "cpus": 1, "memory": "1GiB"}]
    found = nodes_said(groups, [tainted])
    assert about(found, "group l4").level == "ok"
    assert about(found, "group cpu").level == "error"


def test_a_taint_in_the_way_comes_with_the_toleration_to_write() -> None:
    tainted = node("n3", gpus=1, taints=[{"key": "team", "value": "x", "effect": "NoSchedule"}])
    nodes = [*(node(f"n{i}", gpus=1) for i in range(3)), tainted]
    found = nodes_said([small_l4()], nodes)
    (one,) = (one for one in found if one.level == "warning")
    assert one.seen == "node n3 of its product has the taint team=x:NoSchedule."
    assert one.remedy.endswith("tolerations: [{key: team, operator: Equal, value: x, effect: NoSchedule}]")


def test_spot_groups_on_gke_want_spot_nodes_and_tolerate_them() -> None:
    taint = {"key": "cloud.google.com/gke-spot", "value": "true", "effect": "NoSchedule"}
    spot = NodeSeen(node("n0", gpus=1, labels={"cloud.google.com/gke-spot": "true"}, taints=[taint]))
    plain = NodeSeen(node("n1", gpus=1))
    wanted = spec(provider="gke", node_groups=[small_l4(count=1, spot=True)])
    one = about(check_nodes(wanted, [spot, plain], [], more_come=False), "group l4")
    assert (one.level, one.seen.split(" can")[0]) == ("ok", "1 of 2 nodes")


def test_gpus_that_others_hold_are_told_and_our_own_are_not() -> None:
    ours = pod("ours", "n0", labels={"tandem.dev/cluster": "lab"})
    ours["metadata"]["namespace"] = "tandem-lab"
    named_alike = pod("named-alike", "n1", labels={"tandem.dev/cluster": "lab"})
    found = nodes_said(
        [small_l4(count=1)],
        [node("n0", gpus=4), node("n1", gpus=1)],
        [pod("theirs", "n0", gpus=3), ours, named_alike],
    )
    one = about(found, "GPUs in use")
    assert (one.level, one.seen) == (
        "warning",
        "4 GPUs are held by pods default/theirs, default/named-alike.",
    )


def test_mig_devices_under_their_own_names_are_told_apart() -> None:
    mixed = node("n0", gpus=1)
    mixed["status"]["allocatable"]["nvidia.com/mig-1g.5gb"] = "7"
    one = about(nodes_said([small_l4(count=1)], [mixed]), "NVIDIA-L4")
    assert "Besides: 7 nvidia.com/mig-1g.5gb, which pods that ask for nvidia.com/gpu do not get." in one.seen


def test_a_head_that_no_node_can_hold_is_an_error() -> None:
    wanted = spec(node_groups=[small_l4(count=1)], head={"cpus": 64, "memory": "4GiB"})
    one = about(check_nodes(wanted, [NodeSeen(node("n0", gpus=1))], [], more_come=False), "head")
    assert one.level == "error" and "1 node with only 8 CPUs to give" in one.seen


def test_a_head_and_a_worker_that_fit_on_one_node_only_alone_are_an_error() -> None:
    # 6 CPUs and 2 on a node of 8; a CPU more is one too many.
    group = small_l4(count=1)
    assert about(nodes_said([group], [node("n0", gpus=1)]), "together").level == "ok"
    found = nodes_said([group | {"cpus": 7}], [node("n0", gpus=1)])
    assert {about(found, topic).level for topic in ("head", "group l4")} == {"ok"}
    one = about(found, "together")
    assert one.level == "error"
    assert one.seen == (
        "each fits, but not all at once: 1 of 1 pods of node group l4 would find no node once the head "
        "(2 CPUs, 4 GiB) has one."
    )
    # A second node, without GPUs, is for the head.
    nodes = [node("n0", gpus=1), node("n1", gpus=0)]
    assert about(nodes_said([group | {"cpus": 7}], nodes), "together").level == "ok"


def test_workers_of_two_groups_do_not_share_a_node() -> None:
    group = {"cpus": 2, "memory": "4GiB", "count": 1}
    two = [small_l4(**group), small_l4(name="more", **group)]
    one = about(nodes_said(two, [node("n0", gpus=4)]), "together")
    assert one.level == "error"
    assert one.seen == "each fits, but not all at once: 1 of 1 pods of node group more would find no node."
    assert about(nodes_said(two, [node("n0", gpus=4)], more_come=True), "together").level == "warning"
    assert about(nodes_said(two, [node("n0", gpus=4), node("n1", gpus=4)]), "together").level == "ok"


def test_a_group_that_can_be_anywhere_makes_room_for_one_that_cannot() -> None:
    anywhere = small_l4(count=2, cpus=2, memory="4GiB")
    in_zone_a = small_l4(name="a", count=2, cpus=2, memory="4GiB", node_labels={"zone": "a"})
    nodes = [node(f"n{i}", gpus=1, labels={"zone": "a"} if i < 3 else {}) for i in range(4)]
    for groups in ([anywhere, in_zone_a], [in_zone_a, anywhere]):
        assert about(nodes_said(groups, nodes), "together").level == "ok"
        assert "1 of 2 pods" in about(nodes_said(groups, nodes[:3]), "together").seen


def test_the_head_goes_where_it_takes_nobodys_node() -> None:
    # Beside a worker of 7 CPUs it does not fit, beside one of 6 it does.
    large, small = small_l4(name="large", cpus=7, count=1), small_l4(name="small", cpus=6, count=1)
    found = nodes_said([large, small], [node("n0", gpus=1), node("n1", gpus=1)])
    assert about(found, "together").seen == "the head and 2 workers, the groups' least, fit at once."


def submitter_said(nodes: list[Json], *, group: Json | None = None, **changes: Any) -> list[Finding]:
    """What is said of submitters where the head has 2 CPUs and a pod of the group, unless changed, 6."""
    head = {"cpus": 2, "memory": "4GiB"} | changes.pop("head", {})
    wanted = spec(node_groups=[group or small_l4(count=1)], head=head, **changes)
    found = check_nodes(wanted, [NodeSeen(one) for one in nodes], [], more_come=False)
    return [one for one in found if one.topic == "submitter"]


@pytest.mark.parametrize("cluster", ["own", "serving"])
def test_the_pod_that_submits_a_job_needs_room_beside_the_head_and_the_workers(cluster: str) -> None:
    training = {"cluster": cluster}
    (one,) = submitter_said([node("n0", gpus=1)], training=training)
    assert one.level == "warning"
    assert one.seen == (
        "the submitter of a training job (0.5 CPUs, 1 GiB) would find no node beside the head and 1 worker, "
        "the groups' least."
    )
    # 0.5 CPUs of 8.
    for cpus, level in ((5.5, "ok"), (5.6, "warning")):
        group = small_l4(count=1, cpus=cpus)
        assert [one.level for one in submitter_said([node("n0", gpus=1)], group=group)] == [level]
    # Memory: 24 GiB, 4 and 1 of 32; 28, 4 and 1.
    group = small_l4(count=1, cpus=5, memory="28GiB")
    assert [one.level for one in submitter_said([node("n0", gpus=1)], group=group)] == ["warning"]
    assert [one.level for one in submitter_said([node("n0", gpus=1), node("n1", gpus=0)])] == ["ok"]


def test_a_submitter_goes_where_the_head_may_go_and_the_head_makes_room_for_it() -> None:
    taint = {"key": "team", "value": "x", "effect": "NoSchedule"}
    closed = node("n1", gpus=0, taints=[taint])
    nodes = [node("n0", gpus=1), closed]
    (one,) = submitter_said(nodes)
    assert one.level == "warning" and "head.tolerations" in one.remedy
    assert [one.level for one in submitter_said(nodes, head={"tolerations": [{"key": "team"}]})] == ["ok"]
    labelled = [node("n0", gpus=1, labels={"pool": "a"}), node("n1", gpus=0, labels={"pool": "b"})]
    assert [one.level for one in submitter_said(labelled, head={"node_labels": {"pool": "a"}})] == ["warning"]
    assert [one.level for one in submitter_said(labelled, head={"node_labels": {"pool": "b"}})] == ["ok"]
    # A worker on one node, the head on the other: the submitter is beside the one that leaves half a CPU.
    for cpu, level in (("6500m", "ok"), ("6400m", "warning")):
        two = [node("n0", gpus=1, cpu=cpu), node("n1", gpus=0, cpu="2")]
        assert [one.level for one in submitter_said(two)] == [level]


@pytest.mark.parametrize(
    "changes", [{"training": {"cluster": "shared"}}, {"queueing": {"kind": "kai", "queue": "q"}}]
)
def test_where_the_operator_submits_jobs_itself_no_room_is_looked_for(changes: Json) -> None:
    assert submitter_said([node("n0", gpus=1)], **changes) == []


def gpus_said(nodes: list[Json], policies: list[Json], daemonsets: list[Json] | None = None) -> list[Finding]:
    return check_gpus(spec(), [NodeSeen(one) for one in nodes], policies, daemonsets or [])


def test_whole_labelled_gpus_of_a_ready_operator_are_fine() -> None:
    found = gpus_said([node("n0")], [policy(config=None)])
    assert [one.level for one in found] == ["ok", "ok", "ok"]


def test_time_slicing_is_an_error_with_its_signs_and_the_command() -> None:
    one = about(gpus_said([node("n0", replicas=4)], [policy()]), "time-slicing")
    assert one.level == "error"
    assert "n0: time-slicing (" in one.seen and "nvidia.com/gpu.replicas=4" in one.seen
    assert one.remedy == "tandem migrate time-slicing"


def test_a_config_that_no_node_shows_yet_is_a_warning() -> None:
    labelled = node("n0", labels={"nvidia.com/device-plugin.config": "any"})
    found = gpus_said([labelled], [policy()])
    one = next(one for one in found if one.level == "warning")
    assert "devicePlugin.config slices" in one.seen and "n0" in one.seen


def test_no_operator_and_no_device_plugin_is_an_error() -> None:
    assert about(gpus_said([], []), "GPU operator").level == "error"


def test_a_device_plugin_without_the_operator_is_enough() -> None:
    containers = [{"name": "p", "image": "nvcr.io/nvidia/k8s-device-plugin:v0.17.1"}]
    plugin = {"metadata": {"name": "nvdp"}, "spec": {"template": {"spec": {"containers": containers}}}}
    one = about(gpus_said([node("n0")], [], [plugin]), "GPU operator")
    assert (one.level, one.seen) == ("ok", "device plugin without the operator: nvdp.")


def test_gpus_without_a_product_label_are_an_error() -> None:
    bare = node("n0")
    bare["metadata"]["labels"] = {}
    one = about(gpus_said([bare, node("n1")], [policy(config=None)]), "product labels")
    assert one.level == "error"
    assert one.seen == "1 of 2 nodes with GPUs lack nvidia.com/gpu.product: n0."


def test_clusters_without_gpus_are_not_asked_about_them() -> None:
    assert check_gpus(spec(node_groups=[CPU_GROUP]), [], [], []) == []


def kuberay_said(crd: Json | None, *deployments: Json, knows: bool = True, **changes: Any) -> list[Finding]:
    return check_kuberay(spec(**changes), knows_kinds=knows, crd=crd, deployments=deployments)


def test_kuberay_1_7_is_fine() -> None:
    assert [one.level for one in kuberay_said(NEW, operator("v1.7.0"))] == ["ok"]


def test_without_kuberays_kinds_nothing_can_be_made() -> None:
    (one,) = kuberay_said(None, knows=False)
    assert one.level == "error" and "--version 1.7.0" in one.remedy


@pytest.mark.parametrize("crd", [ray_cluster_crd(), ray_cluster_crd("mode")])
def test_a_schema_without_the_tokens_secret_is_too_old_whatever_the_image_is_called(crd: Json) -> None:
    found = kuberay_said(crd, operator("v1.7.0"))
    assert "no spec.authOptions.secretName" in errors(found)[0].seen


def test_without_tokens_the_old_schema_is_enough() -> None:
    assert errors(kuberay_said(ray_cluster_crd(), operator("v1.7.0"), auth={"mode": "none"})) == []


def test_an_old_image_is_an_error_where_the_schema_could_not_be_read() -> None:
    assert [one.level for one in kuberay_said(None, operator("v1.4.2"))] == ["error"]
    assert [one.level for one in kuberay_said(NEW, operator("v1.4.2"))] == ["warning"]


def test_an_operator_without_a_ready_pod_makes_nothing() -> None:
    (one,) = kuberay_said(NEW, operator("v1.7.0", ready=0))
    assert one.level == "error" and "has no ready pod" in one.seen


def test_the_operator_must_know_the_batch_scheduler() -> None:
    queueing = {"kind": "volcano", "queue": "research"}
    (one,) = errors(kuberay_said(NEW, operator("v1.7.0"), queueing=queueing))
    assert "--batch-scheduler=volcano" in one.seen
    knows = operator("v1.7.0", "--batch-scheduler=volcano")
    assert errors(kuberay_said(NEW, knows, queueing=queueing)) == []


def test_a_prometheus_that_selects_another_release_is_a_warning() -> None:
    def selects(**labels: str) -> Json:
        return {"metadata": {"name": "k8s"}, "spec": {"podMonitorSelector": {"matchLabels": labels}}}

    (one,) = check_monitoring(spec(), knows_kinds=True, prometheuses=[selects(release="mon")])
    assert one.level == "warning" and "{'release': 'mon'}" in one.seen.replace("matchLabels': ", "")
    for fits in (selects(release="prometheus"), selects()):
        (one,) = check_monitoring(spec(), knows_kinds=True, prometheuses=[fits])
        assert one.level == "ok"


def test_monitoring_that_is_off_needs_nothing() -> None:
    off = spec(monitoring={"enabled": False})
    assert check_monitoring(off, knows_kinds=False, prometheuses=[]) == []
