"""Applying a cluster: asked first, in order, others' fields told, the autoscaler's replicas left alone."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from cluster.kubernetes.apply import apply
from cluster.kubernetes.client import Kubernetes
from cluster.kubernetes.deletion import to_delete
from cluster.kubernetes.diff import differences
from cluster.kubernetes.refusals import Conflicted, Forbidden, NoSuchKind
from cluster.kubernetes.render import render
from cluster.kubernetes.workloads import Manifest
from runtime.core.errors import ClusterError, ConfigError
from tests.kubernetes.specs import A100_GROUP, L4_GROUP, app, job, spec
from tests.servers.kubernetes_api import Cluster, kubernetes_api

PLACE = "tandem-lab"
QUIET = {"monitoring": {"enabled": False}}


def manifests(**changes: Any) -> list[Manifest]:
    """A RayService on the cluster of ``spec``."""
    return render(spec(**QUIET, **changes), apps=[app()])


def group(kubernetes_api: Cluster, kind: str, name: str, group_name: str) -> dict[str, Any]:
    found = kubernetes_api.get(kind, name, namespace=PLACE)
    assert found is not None
    config = found["spec"].get("rayClusterConfig", found["spec"])
    return next(one for one in config["workerGroupSpecs"] if one["groupName"] == group_name)


def run_the_service(kubernetes_api: Cluster, status: str = "activeServiceStatus") -> None:
    """What KubeRay does: a RayCluster under a name of its own, with the service's labels."""
    service = kubernetes_api.get("RayService", "lab-serve", namespace=PLACE)
    assert service is not None
    owner = {
        "kind": "RayService",
        "name": "lab-serve",
        "uid": service["metadata"]["uid"],
        "apiVersion": "ray.io/v1",
    }
    metadata = {
        "name": "lab-serve-x7k2p",
        "namespace": PLACE,
        "labels": service["metadata"]["labels"],
        "ownerReferences": [owner],
    }
    cluster = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": metadata}
    kubernetes_api.put({**cluster, "spec": service["spec"]["rayClusterConfig"]}, manager="kuberay-operator")
    running = {status: {"rayClusterName": "lab-serve-x7k2p"}}
    kubernetes_api.set_status("RayService", "lab-serve", running, namespace=PLACE)


def test_everything_is_asked_for_before_anything_is_made(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    kubernetes_api.refuse("RayService", "lab-serve", "no serving on Fridays")
    with pytest.raises(ClusterError, match="RayService lab-serve.*no serving on Fridays"):
        apply(kubernetes, spec(**QUIET), manifests())
    assert kubernetes_api.names("ServiceAccount") == []
    assert kubernetes_api.names("Secret") == []
    # Also the namespace, which the dry runs needed, is gone again.
    assert PLACE not in kubernetes_api.names("Namespace")


def test_all_that_is_refused_is_told_at_once(kubernetes: Kubernetes, kubernetes_api: Cluster) -> None:
    kubernetes_api.refuse("RayService", "lab-serve", "no serving")
    kubernetes_api.refuse("Service", "lab-endpoint", "no doors")
    with pytest.raises(ClusterError, match=r"(?s)2 objects.*nothing was changed.*no doors.*no serving"):
        apply(kubernetes, spec(**QUIET), manifests())


def test_a_refusal_leaves_a_namespace_that_was_there(kubernetes: Kubernetes, kubernetes_api: Cluster) -> None:
    kubernetes_api.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": PLACE}})
    kubernetes_api.refuse("RayService", "lab-serve", "no serving")
    with pytest.raises(ClusterError):
        apply(kubernetes, spec(**QUIET), manifests())
    assert PLACE in kubernetes_api.names("Namespace")


def test_objects_are_applied_in_their_order_and_a_second_time_nothing_changes(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    wanted = manifests()
    told: list[str] = []
    first = apply(kubernetes, spec(**QUIET), wanted, tell=told.append)
    assert [line.split()[0] for line in told] == [one["kind"] for one in wanted]
    # The namespace was made before the others were asked for.
    assert len(first.created) == len(wanted) - 1
    assert first.changed == ["Namespace tandem-lab"]

    second = apply(kubernetes, spec(**QUIET), wanted)
    assert (second.created, second.changed) == ([], [])
    assert len(second.unchanged) == len(wanted)
    owners = kubernetes_api.get("RayService", "lab-serve", namespace=PLACE)["metadata"]["managedFields"]  # type: ignore[index]
    assert [(one["manager"], one["operation"]) for one in owners] == [("tandem", "Apply")]


def test_without_kuberay_nothing_is_tried() -> None:
    with kubernetes_api() as bare:
        with pytest.raises(NoSuchKind, match="KubeRay is not installed"):
            apply(Kubernetes.connect(host=bare.url), spec(**QUIET), manifests())
        assert bare.asked("PATCH", "/") == 0


def test_rays_token_is_made_once_and_never_replaced(kubernetes: Kubernetes, kubernetes_api: Cluster) -> None:
    done = apply(kubernetes, spec(**QUIET), manifests())
    secret = kubernetes_api.get("Secret", "lab-ray-token", namespace=PLACE)
    assert secret is not None
    token = base64.b64decode(secret["data"]["auth_token"]).decode()
    assert len(token) >= 40
    assert any("token" in note for note in done.notes) and token not in str(done)

    assert apply(kubernetes, spec(**QUIET), manifests()).notes == []
    assert kubernetes_api.get("Secret", "lab-ray-token", namespace=PLACE) == secret


def test_a_secret_without_a_token_is_refused(kubernetes: Kubernetes, kubernetes_api: Cluster) -> None:
    kubernetes_api.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": PLACE}})
    place = {"name": "mine", "namespace": PLACE}
    kubernetes_api.put(
        {"apiVersion": "v1", "kind": "Secret", "metadata": place, "data": {"password": "eA=="}}
    )
    with pytest.raises(ConfigError, match=r"auth\.secret.*'mine'.*no auth_token"):
        apply(kubernetes, spec(**QUIET, auth={"secret": "mine"}), manifests(auth={"secret": "mine"}))


def no_token(kubernetes_api: Cluster, *verbs: str) -> None:
    kubernetes_api.forbidden |= {(verb, "secrets") for verb in verbs}


def test_an_account_that_may_not_make_the_token_changes_nothing_and_hears_who_could(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    no_token(kubernetes_api, "create")
    makes_it = r"kubectl -n tandem-lab create secret generic lab-ray-token --from-literal=auth_token="
    with pytest.raises(Forbidden, match=f"Secret lab-ray-token: you may not create it.*{makes_it}"):
        apply(kubernetes, spec(**QUIET), manifests())
    assert PLACE not in kubernetes_api.names("Namespace")
    assert kubernetes_api.names("ServiceAccount") == []
    # Nor is a token in a namespace that is made now.
    no_token(kubernetes_api, "get")
    with pytest.raises(Forbidden, match=makes_it):
        apply(kubernetes, spec(**QUIET), manifests())
    assert PLACE not in kubernetes_api.names("Namespace")

    # Where the namespace must stay, the reason is told all the same.
    kubernetes_api.forbidden.add(("delete", "namespaces"))
    told: list[str] = []
    with pytest.raises(Forbidden, match=makes_it):
        apply(kubernetes, spec(**QUIET), manifests(), tell=told.append)
    assert told[0].startswith("Namespace tandem-lab was made and stays, empty")


def test_a_token_that_is_there_and_may_not_be_read_will_do(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    apply(kubernetes, spec(**QUIET), manifests())
    secret = kubernetes_api.get("Secret", "lab-ray-token", namespace=PLACE)
    no_token(kubernetes_api, "get")
    assert apply(kubernetes, spec(**QUIET), manifests(head={"cpus": 6})).notes == []
    assert kubernetes_api.get("Secret", "lab-ray-token", namespace=PLACE) == secret
    # Where it may not be made either, nobody knows: somebody else made it, perhaps.
    no_token(kubernetes_api, "create")
    (note,) = apply(kubernetes, spec(**QUIET), manifests(head={"cpus": 5})).notes
    assert note.startswith("Ray's token was not looked at") and "openssl rand -hex 32" in note


def test_a_field_that_a_person_changed_is_told_and_taken_over_only_by_force(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    apply(kubernetes, spec(**QUIET), manifests())
    changed = {"spec": {"rayClusterDeletionDelaySeconds": 5}}
    kubernetes_api.change("RayService", "lab-serve", changed, namespace=PLACE, manager="anna")
    other = manifests(head={"cpus": 6})
    with pytest.raises(Conflicted, match=r"rayClusterDeletionDelaySeconds \(set by 'anna'\)"):
        apply(kubernetes, spec(**QUIET), other)
    assert (
        kubernetes_api.get("RayService", "lab-serve", namespace=PLACE)["spec"][
            "rayClusterDeletionDelaySeconds"
        ]
        == 5
    )  # type: ignore[index]

    apply(kubernetes, spec(**QUIET), other, force=True)
    found = kubernetes_api.get("RayService", "lab-serve", namespace=PLACE)
    assert found is not None and found["spec"]["rayClusterDeletionDelaySeconds"] != 5


def test_pitfall_5_the_autoscalers_replicas_stay_through_an_apply(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    shared = {"training": {"cluster": "shared"}, "node_groups": [A100_GROUP]}
    apply(kubernetes, spec(**QUIET, **shared), render(spec(**QUIET, **shared)))
    groups = kubernetes_api.get("RayCluster", "lab", namespace=PLACE)["spec"]["workerGroupSpecs"]  # type: ignore[index]
    decided = [{**groups[0], "replicas": 3, "scaleStrategy": {"workersToDelete": ["lab-a100-q"]}}]
    by_the_autoscaler = {"spec": {"workerGroupSpecs": decided}}
    kubernetes_api.change("RayCluster", "lab", by_the_autoscaler, namespace=PLACE, manager="python-requests")

    larger = {**shared, "node_groups": [A100_GROUP | {"max": 6}]}
    done = apply(kubernetes, spec(**QUIET, **larger), render(spec(**QUIET, **larger)))
    now = group(kubernetes_api, "RayCluster", "lab", "a100")
    assert (now["replicas"], now["maxReplicas"]) == (3, 6)
    assert now["scaleStrategy"] == {"workersToDelete": ["lab-a100-q"]}
    assert any("took over its worker groups" in note for note in done.notes)

    # Fewer than the autoscaler has: it is the limit that counts.
    smaller = {**shared, "node_groups": [A100_GROUP | {"max": 2}]}
    apply(kubernetes, spec(**QUIET, **smaller), render(spec(**QUIET, **smaller)))
    assert group(kubernetes_api, "RayCluster", "lab", "a100")["replicas"] == 2


def test_worker_groups_that_a_person_changed_are_a_conflict(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    shared = {"training": {"cluster": "shared"}}
    apply(kubernetes, spec(**QUIET, **shared), render(spec(**QUIET, **shared)))
    groups = kubernetes_api.get("RayCluster", "lab", namespace=PLACE)["spec"]["workerGroupSpecs"]  # type: ignore[index]
    by_hand = {"spec": {"workerGroupSpecs": [{**groups[0], "replicas": 7, "maxReplicas": 7}]}}
    kubernetes_api.change("RayCluster", "lab", by_hand, namespace=PLACE, manager="kubectl-edit")
    with pytest.raises(Conflicted, match=r"workerGroupSpecs \(set by 'kubectl-edit'\)"):
        apply(kubernetes, spec(**QUIET, **shared), render(spec(**QUIET, **shared)))


def test_pitfall_5_scaling_a_running_service_patches_its_ray_cluster(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    apply(kubernetes, spec(**QUIET), manifests())
    run_the_service(kubernetes_api)
    taint = {"key": "reserved", "operator": "Exists"}
    more = {"node_groups": [L4_GROUP | {"count": 5, "tolerations": [taint]}]}
    done = apply(kubernetes, spec(**QUIET, **more), manifests(**more))

    for kind, name in (("RayService", "lab-serve"), ("RayCluster", "lab-serve-x7k2p")):
        now = group(kubernetes_api, kind, name, "l4")
        assert (now["replicas"], now["minReplicas"], now["maxReplicas"]) == (5, 5, 5)
        assert (
            taint.items()
            <= next(one for one in now["template"]["spec"]["tolerations"] if one["key"] == "reserved").items()
        )
    assert "the running RayCluster lab-serve-x7k2p: group l4: replicas 3 -> 5" in done.notes
    assert apply(kubernetes, spec(**QUIET, **more), manifests(**more)).notes == []


def test_a_running_services_autoscaled_replicas_are_only_kept_within_new_limits(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    auto = {"node_groups": [A100_GROUP]}
    apply(kubernetes, spec(**QUIET, **auto), manifests(**auto))
    run_the_service(kubernetes_api)
    groups = kubernetes_api.get("RayCluster", "lab-serve-x7k2p", namespace=PLACE)["spec"]["workerGroupSpecs"]  # type: ignore[index]
    decided = {"spec": {"workerGroupSpecs": [{**groups[0], "replicas": 2}]}}
    kubernetes_api.change(
        "RayCluster", "lab-serve-x7k2p", decided, namespace=PLACE, manager="python-requests"
    )

    for limits, replicas in (({"min": 1, "max": 6}, 2), ({"min": 3, "max": 6}, 3)):
        changed = {"node_groups": [A100_GROUP | limits]}
        apply(kubernetes, spec(**QUIET, **changed), manifests(**changed))
        now = group(kubernetes_api, "RayCluster", "lab-serve-x7k2p", "a100")
        assert (now["replicas"], now["maxReplicas"]) == (replicas, 6)


def test_a_cluster_that_is_only_starting_is_scaled_too(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    apply(kubernetes, spec(**QUIET), manifests())
    run_the_service(kubernetes_api, "pendingServiceStatus")
    fewer = {"node_groups": [L4_GROUP | {"count": 2}]}
    done = apply(kubernetes, spec(**QUIET, **fewer), manifests(**fewer))
    now = group(kubernetes_api, "RayCluster", "lab-serve-x7k2p", "l4")
    assert (now["replicas"], now["minReplicas"], now["maxReplicas"]) == (2, 2, 2)
    assert "the starting RayCluster lab-serve-x7k2p: group l4: replicas 3 -> 2" in done.notes


def test_a_head_that_was_told_a_smaller_maximum_is_named_and_one_that_shrinks_is_not(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    def notes(most: int, *, shared: bool) -> list[str]:
        where = {"training": {"cluster": "shared"}} if shared else {}
        one = spec(**QUIET, node_groups=[A100_GROUP | {"max": most}], **where)
        done = apply(kubernetes, one, render(one, apps=[] if shared else [app()]))
        return [note for note in done.notes if "the head was told" in note]

    for shared, name in ((True, "RayCluster lab:"), (False, "the running RayCluster lab-serve-x7k2p:")):
        notes(4, shared=shared)
        if not shared:
            run_the_service(kubernetes_api)
        (told,) = notes(6, shared=shared)
        assert told.startswith(f"{name} group a100: the head was told 4 nodes at most when it began")
        assert "refuses what only 6 could hold" in told
        assert notes(6, shared=shared) == notes(2, shared=shared) == []


def end_the_job(kubernetes_api: Cluster, name: str) -> None:
    kubernetes_api.set_status("RayJob", name, {"jobDeploymentStatus": "Complete"}, namespace=PLACE)


@pytest.mark.parametrize("cluster", ["own", "serving", "shared"])
def test_apps_whose_specs_are_not_given_run_on_with_their_door_unless_told_to_end(
    kubernetes: Kubernetes, kubernetes_api: Cluster, cluster: str
) -> None:
    one = spec(**QUIET, training={"cluster": cluster})
    apply(kubernetes, one, render(one, apps=[app()]))
    training = render(one, jobs=[job()])
    done = apply(kubernetes, one, training)
    assert done.left == []
    assert {"RayService lab-serve", "PodDisruptionBudget lab-serving"} <= set(done.running)
    assert differences(kubernetes, one, training) == []

    pruned = apply(kubernetes, one, training, prune=True)
    assert (pruned.pruned, pruned.running) == ([], done.running)
    assert any("--prune-running ends it" in note for note in pruned.notes)
    assert kubernetes_api.names("RayService") == ["lab-serve"]
    assert "lab-endpoint" in kubernetes_api.names("Service")

    ended = apply(kubernetes, one, training, prune_running=True)
    assert set(ended.pruned) == set(done.running)
    assert kubernetes_api.names("RayService") == []


@pytest.mark.parametrize("cluster", ["own", "serving", "shared"])
def test_a_job_that_runs_is_left_with_what_it_stands_on_until_it_has_ended(
    kubernetes: Kubernetes, kubernetes_api: Cluster, cluster: str
) -> None:
    one = spec(**QUIET, training={"cluster": cluster})
    apply(kubernetes, one, render(one, jobs=[job()]))
    serving = render(one, apps=[app()])
    done = apply(kubernetes, one, serving, prune=True)
    kind = "Job" if cluster == "serving" else "RayJob"
    (name,) = kubernetes_api.names(kind)
    assert f"{kind} {name}" in done.running
    assert not {one.split()[0] for one in done.pruned} - {"Service"}
    if cluster != "shared":
        assert "ConfigMap lab-sft-spec" in done.running
    # A run that is submitted goes into the cluster that was there for all.
    assert kubernetes_api.names("RayCluster") == ([] if cluster == "own" else ["lab"])

    ended = {"jobDeploymentStatus": "Failed", "conditions": [{"type": "Complete", "status": "True"}]}
    kubernetes_api.set_status(kind, name, ended, namespace=PLACE)
    assert f"{kind} {name}" in apply(kubernetes, one, serving, prune=True).pruned
    assert kubernetes_api.names(kind) == []


def test_what_is_no_longer_rendered_is_left_until_prune_and_operators_objects_are_never_pruned(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    with_job = render(spec(**QUIET), apps=[app()], jobs=[job("tune")])
    apply(kubernetes, spec(**QUIET), with_job)
    end_the_job(kubernetes_api, "lab-tune")
    run_the_service(kubernetes_api)
    left = apply(kubernetes, spec(**QUIET), manifests()).left
    assert {"RayJob lab-tune", "ConfigMap lab-tune-spec"} <= set(left)
    assert kubernetes_api.names("RayJob") == ["lab-tune"]

    done = apply(kubernetes, spec(**QUIET), manifests(), prune=True)
    assert set(done.pruned) == set(left) and done.left == []
    assert kubernetes_api.names("RayJob") == []
    # KubeRay gave its cluster our labels; and the token is nobody's to prune.
    assert kubernetes_api.names("RayCluster") == ["lab-serve-x7k2p"]
    assert kubernetes_api.names("Secret") == ["lab-ray-token"]


def test_another_cluster_in_the_namespace_is_not_pruned(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    other = spec(**QUIET, name="annex")
    apply(kubernetes, other, render(other, jobs=[job()]))
    done = apply(kubernetes, spec(**QUIET), manifests(), prune=True)
    assert done.pruned == []
    assert kubernetes_api.names("RayJob") == ["annex-sft"]


def test_a_job_that_began_is_not_begun_again_by_another_spec_and_that_is_told(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    one = spec(**QUIET)
    apply(kubernetes, one, render(one, jobs=[job()]))
    kubernetes_api.set_status("RayJob", "lab-sft", {"jobDeploymentStatus": "Running"}, namespace=PLACE)
    assert apply(kubernetes, one, render(one, jobs=[job()])).notes == []
    done = apply(kubernetes, one, render(one, jobs=[job(num_workers=(2, 2))]))
    assert any("RayJob lab-sft began before this change" in note for note in done.notes)


def put_namespaces(kubernetes_api: Cluster, *names: str) -> None:
    for name in names:
        kubernetes_api.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})


def test_an_account_of_one_namespace_applies_prunes_and_is_told_nothing_that_it_need_not_know(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    put_namespaces(kubernetes_api, PLACE, "monitoring", "gpu-operator")
    kubernetes_api.only_in = PLACE
    with_job = render(spec(**QUIET), apps=[app()], jobs=[job("tune")])
    apply(kubernetes, spec(**QUIET), with_job)
    end_the_job(kubernetes_api, "lab-tune")
    done = apply(kubernetes, spec(**QUIET), manifests(), prune=True)
    assert "RayJob lab-tune" in done.pruned
    assert not any("not looked at" in note for note in done.notes)


def test_what_an_account_may_not_look_at_though_the_spec_puts_something_there_is_told(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    put_namespaces(kubernetes_api, PLACE)
    kubernetes_api.forbidden |= {("list", "persistentvolumes"), ("list", "rayjobs")}
    on_nfs = {"store": {"nfs": {"server": "10.0.0.9", "path": "/export"}}}
    done = apply(kubernetes, spec(**QUIET, **on_nfs), manifests(**on_nfs), prune=True)
    unseen = [note for note in done.notes if note.startswith("not looked at")]
    assert [one.split()[3] for one in unseen] == ["RayJobs:", "PersistentVolumes:"]
    assert kubernetes_api.names("RayService") == ["lab-serve"]


def test_what_could_be_pruned_is_looked_up_before_anything_is_changed(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    apply(kubernetes, spec(**QUIET), manifests())
    kubernetes_api.requests.clear()
    apply(kubernetes, spec(**QUIET), manifests(head={"cpus": 6}), prune=True)
    asked = kubernetes_api.requests
    last_look = max(
        at for at, (method, path) in enumerate(asked) if method == "GET" and path.endswith("jobs")
    )
    # One dry run and one change of each object.
    writes = [at for at, (method, _) in enumerate(asked) if method == "PATCH"]
    assert writes[len(writes) // 2 - 1] < last_look < writes[len(writes) // 2]


def test_what_an_account_may_not_delete_is_left_and_told(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    apply(kubernetes, spec(**QUIET), render(spec(**QUIET), apps=[app()], jobs=[job("tune")]))
    end_the_job(kubernetes_api, "lab-tune")
    kubernetes_api.forbidden.add(("delete", "rayjobs"))
    done = apply(kubernetes, spec(**QUIET), manifests(), prune=True)
    assert done.left == ["RayJob lab-tune"] and "ConfigMap lab-tune-spec" in done.pruned
    assert any("you may not delete it" in note for note in done.notes)


def test_a_cluster_of_the_same_name_in_another_namespace_keeps_its_monitoring(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    put_namespaces(kubernetes_api, "monitoring", "gpu-operator")
    shown = {"serve": {"title": "Serve"}}
    a, b = spec(namespace="team-a"), spec(namespace="team-b")
    apply(kubernetes, a, render(a, apps=[app()], ray_dashboards=shown))
    apply(kubernetes, b, render(b, apps=[app()], ray_dashboards=shown))
    assert len(kubernetes_api.names("ServiceMonitor", namespace="gpu-operator")) == 2

    less = spec(namespace="team-b", monitoring={"dcgm": False, "dashboards": False})
    done = apply(kubernetes, less, render(less, apps=[app()]), prune=True)
    assert sorted(one.split()[0] for one in done.pruned) == ["ConfigMap", "ServiceMonitor"]
    assert apply(kubernetes, a, render(a, apps=[app()], ray_dashboards=shown)).created == []
    assert all(
        one["metadata"].get("namespace") in ("team-b", None) for one in to_delete(kubernetes, less).objects
    )


@pytest.mark.parametrize(
    ("missing", "field", "without"),
    [
        ("monitoring", "monitoring.namespace", "monitoring.dashboards: false"),
        ("gpu-operator", "monitoring.dcgm_namespace", "monitoring.dcgm: false"),
    ],
)
def test_a_namespace_that_is_missing_is_refused_by_its_field_once(
    kubernetes: Kubernetes, kubernetes_api: Cluster, missing: str, field: str, without: str
) -> None:
    put_namespaces(kubernetes_api, *({"monitoring", "gpu-operator"} - {missing}))
    shown = {"serve": {"title": "Serve"}, "train": {"title": "Train"}}
    with pytest.raises(ClusterError) as refused:
        apply(kubernetes, spec(), render(spec(), apps=[app()], ray_dashboards=shown))
    said = str(refused.value)
    assert said.startswith(f"{field} is {missing!r}, and there is no such namespace")
    assert without in said and f"kubectl create namespace {missing}" in said
    assert kubernetes_api.names("ServiceAccount") == []


def test_a_namespace_that_is_not_this_accounts_is_told_by_its_field(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    put_namespaces(kubernetes_api, PLACE, "monitoring", "gpu-operator")
    kubernetes_api.only_in = PLACE
    with pytest.raises(
        ClusterError, match=r"monitoring\.dcgm_namespace puts it there.*monitoring\.dcgm: false"
    ):
        apply(kubernetes, spec(), render(spec(), apps=[app()]))
