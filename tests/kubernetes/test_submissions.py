"""Training in the cluster that serves: what is rendered. What its script does: test_submission_engine.py."""

from __future__ import annotations

from cluster.kubernetes.apply import apply
from cluster.kubernetes.client import Kubernetes
from cluster.kubernetes.diff import differences
from cluster.kubernetes.nodes_seen import tolerated
from cluster.kubernetes.readiness import state_of
from cluster.kubernetes.render import render
from tests.kubernetes.accepted import assert_accepted, only
from tests.kubernetes.running import PLACE, QUIET, condition
from tests.kubernetes.specs import app, job, spec
from tests.servers.kubernetes_api import Cluster

SERVING = {"cluster": "serving", "backoff_limit": 4}


def test_a_job_goes_into_the_rayservices_cluster_and_brings_no_pods_with_gpus():
    manifests = render(spec(training=SERVING), apps=[app()], jobs=[job()])
    assert_accepted(manifests)
    kinds = [one["kind"] for one in manifests]
    assert kinds.count("RayService") == kinds.count("Job") == 1
    assert "RayJob" not in kinds
    assert "RayCluster" not in kinds
    submitter = only(manifests, "Job")
    assert submitter["spec"]["backoffLimit"] == 4
    # A pod that is evicted is no try: the run goes on without it.
    (rule,) = submitter["spec"]["podFailurePolicy"]["rules"]
    assert rule == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert submitter["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    pod = submitter["spec"]["template"]["spec"]
    assert "nvidia.com/gpu" not in str(pod["containers"][0]["resources"])
    assert pod["automountServiceAccountToken"] is False


def test_a_submitter_may_be_wherever_the_head_may_where_all_nodes_have_a_taint():
    taint = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
    head = {"node_labels": {"pool": "lab"}, "tolerations": [{"key": "nvidia.com/gpu"}]}
    # On GKE nodes that run pods with their own identity have a label.
    gke = {
        "provider": "gke",
        "store": {"uri": "gs://team/t", "service_account": "t@p.iam.gserviceaccount.com"},
    }
    for place in ({}, gke):
        serving = render(spec(head=head, training=SERVING, **place), apps=[app()], jobs=[job()])
        own = render(spec(head=head, **place), jobs=[job()])
        assert_accepted([*serving, *own])
        pods = [
            only(serving, "Job")["spec"]["template"]["spec"],
            only(own, "RayJob")["spec"]["submitterPodTemplate"]["spec"],
        ]
        template = only(serving, "RayService")["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]
        for pod in pods:
            assert tolerated(taint, pod["tolerations"])
            assert pod["nodeSelector"] == template["spec"]["nodeSelector"]
            assert pod["nodeSelector"]["pool"] == "lab"
    nowhere_else = only(render(spec(training=SERVING), jobs=[job()]), "Job")["spec"]["template"]["spec"]
    assert not {"tolerations", "nodeSelector"} & nowhere_else.keys()


def test_it_is_submitted_to_a_service_that_follows_the_head_through_upgrades():
    manifests = render(spec(training=SERVING), apps=[app()], jobs=[job()])
    pod = only(manifests, "Job")["spec"]["template"]["spec"]
    env = {one["name"]: one for one in pod["containers"][0]["env"]}
    assert env["RAY_ADDRESS"]["value"] == "http://lab-head:8265"
    token = {"name": "lab-ray-token", "key": "auth_token"}
    assert env["RAY_AUTH_TOKEN"]["valueFrom"] == {"secretKeyRef": token}
    (service,) = [m for m in manifests if m["kind"] == "Service" and m["metadata"]["name"] == "lab-head"]
    head = only(manifests, "RayService")["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["metadata"]
    assert service["spec"]["selector"].items() <= head["labels"].items()
    assert not any(name.startswith("ray.io/") for name in service["spec"]["selector"])


def test_another_image_or_run_is_another_job_for_its_template_cannot_be_changed():
    def name(**changes: object) -> str:
        job_ = only(render(spec(training=SERVING, **changes), jobs=[job()]), "Job")
        return str(job_["metadata"]["name"])

    assert name() == name()
    assert name().startswith("lab-sft-")
    assert name(image="registry.example.com/team/tandem:0.2.0") != name()


def test_with_nothing_to_run_there_is_a_cluster_for_whoever_connects():
    manifests = render(spec(training=SERVING))
    assert only(manifests, "RayCluster")["metadata"]["name"] == "lab"


def test_its_pod_is_ready_only_once_the_run_is_on_a_cluster():
    container = only(render(spec(training=SERVING), apps=[app()], jobs=[job()]), "Job")["spec"]["template"][
        "spec"
    ]["containers"][0]
    (*_, file) = container["readinessProbe"]["exec"]["command"]
    text = container["command"][-1]
    submits, makes_it, follows = (
        text.index("ray job submit"),
        text.index(f"touch {file}"),
        text.index("--follow"),
    )
    assert submits < makes_it < follows


def waited_for(status):
    return state_of({"kind": "Job", "metadata": {"name": "lab-sft-1"}, "status": status})


def test_a_job_whose_pod_still_waits_for_the_cluster_is_not_ready():
    assert waited_for({"active": 1}).doing == "waits for its Ray cluster, to submit the run"
    assert not waited_for({"active": 1, "ready": 0}).is_ready
    assert waited_for({"active": 1, "ready": 1}).is_ready
    assert waited_for({"conditions": [condition("Failed", message="BackoffLimitExceeded")]}).has_failed


def test_a_job_that_failed_is_begun_again_by_another_apply_and_one_that_runs_is_left(
    kubernetes: Kubernetes, kubernetes_api: Cluster
):
    one = spec(**QUIET, training=SERVING)
    manifests = render(one, apps=[app()], jobs=[job()])
    apply(kubernetes, one, manifests)
    (name,) = kubernetes_api.names("Job")
    kubernetes_api.set_status("Job", name, {"active": 1, "ready": 1}, namespace=PLACE)
    before = kubernetes_api.get("Job", name, namespace=PLACE)
    assert apply(kubernetes, one, manifests).notes == []
    assert kubernetes_api.get("Job", name, namespace=PLACE) == before

    failed = {"ready": 0, "conditions": [condition("Failed", message="BackoffLimitExceeded")]}
    kubernetes_api.set_status("Job", name, failed, namespace=PLACE)
    assert [(each.title, each.kind) for each in differences(kubernetes, one, manifests)] == [
        (f"Job {name}", "failed, begun again")
    ]
    done = apply(kubernetes, one, manifests)
    assert done.notes == [f"Job {name} had failed, and is begun again"]
    now = kubernetes_api.get("Job", name, namespace=PLACE)
    assert now is not None and before is not None
    assert now["metadata"]["uid"] != before["metadata"]["uid"] and "status" not in now


def test_jobs_alone_train_in_a_cluster_for_all_until_there_are_apps(
    kubernetes: Kubernetes, kubernetes_api: Cluster
):
    def head():
        return kubernetes_api.get("Service", "lab-head", namespace=PLACE)["spec"]["selector"]

    one = spec(**QUIET, training=SERVING)
    alone = render(one, jobs=[job()])
    assert_accepted(alone)
    labels = only(alone, "RayCluster")["spec"]["headGroupSpec"]["template"]["metadata"]["labels"]
    apply(kubernetes, one, alone)
    assert head().items() <= labels.items()

    apply(kubernetes, one, render(one, apps=[app()], jobs=[job()]), prune=True)
    assert head()["tandem.dev/part"] == "serving" and kubernetes_api.names("RayCluster") == []
    apply(kubernetes, one, alone)
    assert head()["tandem.dev/part"] == "serving" and kubernetes_api.names("RayCluster") == []
