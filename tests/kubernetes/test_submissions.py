"""Training in the cluster that serves: what is rendered. What its script does: test_submission_engine.py."""

from __future__ import annotations

from cluster.kubernetes.render import render
from tests.kubernetes.accepted import assert_accepted, only
from tests.kubernetes.specs import app, job, spec

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


def test_jobs_that_are_applied_alone_leave_the_door_of_the_apps_as_it_is():
    alone = render(spec(training=SERVING), jobs=[job()])
    names = {(one["kind"], one["metadata"]["name"]) for one in alone}
    assert ("NetworkPolicy", "lab-endpoint") not in names
    assert ("Service", "lab-endpoint") not in names
    assert ("Service", "lab-head") in names


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
