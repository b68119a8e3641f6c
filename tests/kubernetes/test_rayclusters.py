"""Ray clusters and their pods: what the operator derives from them, and what Kubernetes places."""

from __future__ import annotations

from typing import Any

import pytest
from ray.autoscaler._private.kuberay.autoscaling_config import _get_ray_resources_from_group_spec

from cluster.cluster_spec import RAY_VERSION
from cluster.kubernetes import names
from cluster.kubernetes.affinity import products
from cluster.kubernetes.nodes_told import told
from cluster.kubernetes.raycluster import ray_cluster_spec, raycluster
from cluster.kubernetes.workloads import Manifest
from runtime.core.errors import ConfigError
from tests.kubernetes.accepted import assert_accepted, pod_templates
from tests.kubernetes.specs import A100_GROUP, CPU_GROUP, L4_GROUP, spec

GPU_NODES = [L4_GROUP, A100_GROUP, CPU_GROUP]


def head(manifest: Manifest) -> Manifest:
    """The head group."""
    found: Manifest = manifest["spec"]["headGroupSpec"]
    return found


def workers(manifest: Manifest, name: str = "l4") -> Manifest:
    """The worker group of this name."""
    found: Manifest = next(g for g in manifest["spec"]["workerGroupSpecs"] if g["groupName"] == name)
    return found


def container(group: Manifest) -> Manifest:
    """Ray's container."""
    found: Manifest = group["template"]["spec"]["containers"][0]
    return found


def env(group: Manifest) -> dict[str, str]:
    """The environment of Ray's container."""
    return {one["name"]: one.get("value", "") for one in container(group)["env"]}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"node_groups": GPU_NODES, "provider": "gke"},
        {"store": {"nfs": {"server": "10.0.0.2", "path": "/export"}, "cache_size": "100GiB"}},
        {"store": {"uri": "s3://lab/t", "access_key": "s3-keys"}, "auth": {"mode": "none"}},
        {"queueing": {"kind": "kueue", "queue": "team"}, "node_groups": [A100_GROUP]},
        {"image_pull_secrets": ["registry"], "head": {"cpus": 0.5, "tolerations": [{"key": "infra"}]}},
    ],
)
def test_every_cluster_is_one_that_the_schema_knows(changes: dict[str, Any]):
    assert_accepted([raycluster(spec(**changes))])


def test_pitfall_3_the_head_has_no_cpus_no_gpus_and_is_not_moved():
    group = head(raycluster(spec()))
    # A string: the API server refuses a number. And nothing in the group's resources besides.
    assert group["rayStartParams"]["num-cpus"] == "0"
    assert "resources" not in group
    assert "nvidia.com/gpu" not in container(group)["resources"]["limits"]
    annotations = group["template"]["metadata"]["annotations"]
    assert annotations == {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}


def test_pitfall_3_the_head_declares_every_port_that_services_and_scrapes_look_up_by_name():
    ports = {one["name"]: one["containerPort"] for one in container(head(raycluster(spec())))["ports"]}
    assert ports == {
        "gcs-server": 6379, "dashboard": 8265, "client": 10001, "metrics": 8080, "serve": 8000,
        "as-metrics": 44217, "dash-metrics": 44227,
    }  # fmt: skip


def test_pitfall_4_requests_equal_limits_for_what_the_operator_derives_from_limits():
    manifest = raycluster(spec(node_groups=[L4_GROUP | {"cpus": 6.5}]))
    for _, _, template in pod_templates([manifest]):
        found = template["spec"]["containers"][0]["resources"]
        assert found["requests"] == found["limits"]
    limits = container(workers(manifest))["resources"]["limits"]
    assert limits == {"cpu": "6500m", "memory": "28Gi", "nvidia.com/gpu": "1"}


def test_the_head_knows_the_order_of_the_priority_classes():
    manifest = raycluster(spec(priorities=["serving", "interactive", "training", "batch"]))
    assert env(head(manifest))["TANDEM_PRIORITIES"] == "serving,interactive,training,batch"
    # Only the ledger reads it: workers need not start anew for another order.
    assert "TANDEM_PRIORITIES" not in env(workers(manifest))


def test_rays_autoscaler_reads_from_a_group_what_placement_promises_of_its_nodes():
    """Of a group without a node Ray knows only what its own autoscaler reads here."""
    given = spec(node_groups=GPU_NODES)
    nodes = {node.node_id.partition("-")[0]: node for node in given.inventory().nodes}
    for name, product, gpus in (("l4", "L4", 1), ("a100", "A100", 8), ("cpu", None, 0)):
        found = _get_ray_resources_from_group_spec(workers(raycluster(given), name), is_head=False)
        accelerator = {f"accelerator_type:{product}": 1, "GPU": gpus} if product else {}
        promised = {"CPU": nodes[name].cpus, "memory": nodes[name].memory_bytes}
        assert found == promised | accelerator
    # 0.7 of 28 GiB; the rest of the limit is the object store's.
    assert nodes["l4"].memory_bytes == int(0.7 * 28 * 2**30)
    none = _get_ray_resources_from_group_spec(head(raycluster(given)), is_head=True)
    assert (none["CPU"], none["GPU"]) == (0, 0)


def test_pitfall_4_one_ray_worker_on_a_node_whichever_ray_cluster_it_is_of():
    pod = workers(raycluster(spec()))["template"]["spec"]
    (term,) = pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == "kubernetes.io/hostname"
    for part in ("serving", "training", "shared"):
        labels = names.pod_labels(spec(), part=part, role="worker", group="l4")  # type: ignore[arg-type]
        assert term["labelSelector"]["matchLabels"].items() <= labels.items()


def test_pitfall_6_pods_have_labels_of_ours_and_none_that_the_operators_services_select_by():
    """Head services of a RayService select pods whose application is kuberay, as the operator labels them."""
    for _, role, template in pod_templates([raycluster(spec())]):
        labels = template["metadata"]["labels"]
        assert labels["tandem.dev/cluster"] == "lab"
        assert (labels["tandem.dev/part"], labels["tandem.dev/role"]) == ("shared", role)
        assert "app.kubernetes.io/name" not in labels


def test_pitfall_6_kubernetes_waits_longer_than_ray_drains_and_ray_as_long_as_a_stream_may_take():
    manifest = raycluster(spec(serving={"longest_request_s": 900}))
    for group in (head(manifest), workers(manifest)):
        drain_s = int(env(group)["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] == drain_s + 900 + 15
    # Ray ends what runs on a node when the drain is over: a stream of 900 s has to fit in.
    assert int(env(workers(manifest))["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]) > 900


def test_pitfall_6_a_training_node_has_time_for_its_last_checkpoint():
    own = ray_cluster_spec(spec(), "training", spec().node_groups, nodes=told(spec().node_groups))
    pod = own["workerGroupSpecs"][0]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 300 + 15


def test_pitfall_7_shared_memory_is_a_memory_volume_of_the_limits_size():
    manifest = raycluster(spec())
    for group, size in ((head(manifest), "16Gi"), (workers(manifest), "28Gi")):
        volumes = {one["name"]: one for one in group["template"]["spec"]["volumes"]}
        mounts = {one["mountPath"]: one["name"] for one in container(group)["volumeMounts"]}
        assert volumes[mounts["/dev/shm"]]["emptyDir"] == {"medium": "Memory", "sizeLimit": size}


def test_pitfall_8_gpu_workers_want_the_product_and_no_share_of_a_card():
    pod = workers(raycluster(spec(node_groups=GPU_NODES)), "a100")["template"]["spec"]
    required = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert required["nodeSelectorTerms"] == [
        {
            "matchExpressions": [
                {"key": "nvidia.com/gpu.product", "operator": "In", "values": ["NVIDIA-A100-SXM4-80GB"]},
                {
                    "key": "nvidia.com/gpu.sharing-strategy",
                    "operator": "NotIn",
                    "values": ["time-slicing", "mps"],
                },
            ]
        }
    ]
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]


def test_a_group_without_gpus_may_be_on_any_node_and_asks_for_none():
    group = workers(raycluster(spec(node_groups=[CPU_GROUP])), "cpu")
    assert "nodeAffinity" not in group["template"]["spec"]["affinity"]
    assert "tolerations" not in group["template"]["spec"]
    assert container(group)["resources"]["limits"] == {"cpu": "15", "memory": "56Gi"}


@pytest.mark.parametrize(
    ("given", "labelled"),
    [
        ("NVIDIA-L4", ["NVIDIA-L4"]),
        ("NVIDIA L4", ["NVIDIA-L4"]),
        ("L4", ["NVIDIA-L4"]),
        ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", ["NVIDIA-A100-SXM4-80GB-MIG-3g.40gb"]),
        # In no catalogue: as NVIDIA's feature discovery makes a label of the name.
        ("Contoso X1", ["Contoso-X1"]),
    ],
)
def test_a_product_is_spelled_as_kubernetes_labels_it(given: str, labelled: list[str]):
    assert products(given) == labelled


def test_a_product_that_no_label_can_hold_is_refused():
    group = L4_GROUP | {"accelerator_type": "Contoso's X1", "gpu_memory": "8GiB"}
    with pytest.raises(
        ConfigError, match=r"accelerator_type is \"Contoso's X1\".*kubectl get nodes -L nvidia"
    ):
        raycluster(spec(node_groups=[group]))


def test_rays_word_for_several_products_means_all_of_them_and_a_size_narrows_it():
    assert {"NVIDIA-A100-SXM4-40GB", "NVIDIA-A100-SXM4-80GB"} < set(products("A100"))
    assert "NVIDIA-A100-SXM4-80GB" in products("A100-80G")
    assert "NVIDIA-A100-SXM4-40GB" not in products("A100-80G")


def test_on_gke_spot_pods_choose_and_tolerate_spot_nodes():
    spot = [L4_GROUP | {"spot": True, "node_labels": {"pool": "cheap"}}]
    pod = workers(raycluster(spec(node_groups=spot, provider="gke")))["template"]["spec"]
    assert pod["nodeSelector"] == {"pool": "cheap", "cloud.google.com/gke-spot": "true"}
    assert {
        "key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule",
    } in pod["tolerations"]  # fmt: skip
    elsewhere = workers(raycluster(spec(node_groups=spot)))["template"]["spec"]
    assert elsewhere["nodeSelector"] == {"pool": "cheap"}


def test_pitfall_13_ray_asks_for_the_token_that_the_named_secret_holds():
    found = raycluster(spec())["spec"]
    assert found["authOptions"] == {"mode": "token", "secretName": "lab-ray-token"}
    # A token without a version is refused; newer probes depend on it, too (pitfall 1).
    assert found["rayVersion"] == RAY_VERSION
    named = raycluster(spec(auth={"secret": "mine"}))["spec"]
    assert named["authOptions"]["secretName"] == "mine"


def test_without_a_token_ray_is_told_so_and_looks_for_none():
    manifest = raycluster(spec(auth={"mode": "none"}))
    assert manifest["spec"]["authOptions"] == {"mode": "disabled"}
    assert env(head(manifest))["RAY_AUTH_MODE"] == env(workers(manifest))["RAY_AUTH_MODE"] == "disabled"
    assert "RAY_AUTH_MODE" not in env(head(raycluster(spec())))


def test_pitfall_14_pods_run_as_nobody_of_importance():
    manifest = raycluster(spec(store={"nfs": {"server": "nfs", "path": "/x", "fs_group": 2345}}))
    for _, role, template in pod_templates([manifest]):
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 1000
        assert pod["securityContext"]["fsGroup"] == 2345  # the export's
        assert pod["containers"][0]["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        assert pod["automountServiceAccountToken"] is False
        assert pod["serviceAccountName"] == {"head": "lab-head", "worker": "lab-training"}[role]


def test_pitfall_15_the_autoscaler_is_v2_and_patient_with_every_group():
    slow = A100_GROUP | {"idle_timeout_s": 900}
    manifest = raycluster(spec(node_groups=[L4_GROUP, slow]))
    assert manifest["spec"]["enableInTreeAutoscaling"] is True
    assert manifest["spec"]["autoscalerOptions"]["version"] == "v2"
    assert workers(manifest, "a100")["idleTimeoutSeconds"] == 900
    assert workers(manifest)["idleTimeoutSeconds"] == 600  # not Ray's 60
    for _, _, template in pod_templates([manifest]):
        assert template["spec"]["restartPolicy"] == "Never"  # the operator refuses others with v2
    assert head(manifest)["template"]["spec"]["automountServiceAccountToken"] is True


def test_nothing_autoscales_where_every_group_has_a_count():
    """The operator refuses an idle timeout without autoscaler v2."""
    manifest = raycluster(spec())
    assert not {"enableInTreeAutoscaling", "autoscalerOptions"} & manifest["spec"].keys()
    assert "idleTimeoutSeconds" not in workers(manifest)
    group = workers(manifest)
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (3, 3, 3)


def test_pitfall_15_the_head_of_training_and_shared_clusters_has_no_redis():
    given = spec(gcs_fault_tolerance={"redis_address": "redis:6379"})
    assert "gcsFaultToleranceOptions" not in raycluster(given)["spec"]
    own = ray_cluster_spec(given, "training", given.node_groups, nodes=told(given.node_groups))
    assert "gcsFaultToleranceOptions" not in own


def test_pitfall_12_requests_go_through_haproxy_on_every_node():
    manifest = raycluster(spec())
    for group in (head(manifest), workers(manifest)):
        assert env(group)["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
        assert env(group)["VLLM_USE_RAY_V2_EXECUTOR_BACKEND"] == "1"


def test_every_pod_knows_the_store_and_keeps_its_cache_in_a_volume_of_limited_size():
    options = {"s3://lab": {"endpoint_url": "http://minio:9000"}}
    manifest = raycluster(spec(store={"uri": "s3://lab/t", "options": options, "cache_size": "64GiB"}))
    for group in (head(manifest), workers(manifest)):
        assert env(group)["TANDEM_STORE"] == "s3://lab/t"
        assert env(group)["TANDEM_STORAGE_OPTIONS"] == '{"s3://lab": {"endpoint_url": "http://minio:9000"}}'
        volumes = {one["name"]: one for one in group["template"]["spec"]["volumes"]}
        mounts = {one["mountPath"]: one["name"] for one in container(group)["volumeMounts"]}
        assert volumes[mounts[env(group)["TANDEM_CACHE"]]]["emptyDir"] == {"sizeLimit": "64Gi"}


def test_names_of_environment_variables_and_volumes_are_there_once():
    manifest = raycluster(spec(store={"uri": "gs://b/t", "key_file": {"secret": "k", "key": "j"}}))
    for _, _, template in pod_templates([manifest]):
        pod = template["spec"]
        for listed in (pod["containers"][0]["env"], pod["volumes"], pod["containers"][0]["ports"]):
            found = [one["name"] for one in listed]
            assert len(found) == len(set(found)) > 1
        mounted = {one["name"] for one in pod["containers"][0]["volumeMounts"]}
        assert mounted == {one["name"] for one in pod["volumes"]}


def test_the_specs_own_labels_do_not_replace_those_that_select():
    group = L4_GROUP | {"labels": {"team": "nlp", "tandem.dev/part": "other"}}
    labels = workers(raycluster(spec(node_groups=[group])))["template"]["metadata"]["labels"]
    assert (labels["team"], labels["tandem.dev/part"]) == ("nlp", "shared")


def test_a_cluster_without_an_image_is_refused():
    with pytest.raises(ConfigError, match=r"image is not set.*cluster/images/Dockerfile"):
        raycluster(spec(image=None))


def test_a_name_that_the_operator_would_refuse_is_refused():
    assert names.check_name("a" * 47, kind="RayService") == "a" * 47
    with pytest.raises(ConfigError, match=r"RayService's name would be 'a{48}' \(48 characters\)"):
        names.check_name("a" * 48, kind="RayService")
    with pytest.raises(ConfigError, match="takes 1 to 36"):
        names.check_name("a" * 37, kind="RayCronJob")
    with pytest.raises(ConfigError, match="lower-case"):
        names.check_name("4lab", kind="RayCluster")
