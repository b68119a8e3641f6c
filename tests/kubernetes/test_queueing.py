"""Queues: training goes through them with all its pods, in the words of each scheduler."""

from __future__ import annotations

import pytest

from cluster.kubernetes.check import check
from cluster.kubernetes.raycluster import raycluster
from cluster.kubernetes.rayjob import rayjob
from cluster.kubernetes.rayservice import rayservice
from cluster.kubernetes.render import render
from runtime.core.errors import ConfigError
from tests.kubernetes.accepted import crds, only
from tests.kubernetes.specs import A100_GROUP, app, job, spec

QUEUES = {
    "kueue": "kueue.x-k8s.io/queue-name",
    "volcano": "volcano.sh/queue-name",
    "kai": "kai.scheduler/queue",
}


@pytest.mark.parametrize(("kind", "label"), QUEUES.items())
def test_pitfall_16_a_job_with_its_own_cluster_has_its_queues_label(kind: str, label: str):
    queued = spec(queueing={"kind": kind, "queue": "team-a"})
    metadata = only(rayjob(queued, job()), "RayJob")["metadata"]
    assert metadata["labels"][label] == "team-a"
    assert sum(other in metadata["labels"] for other in QUEUES.values()) == 1  # one scheduler per operator
    assert "annotations" not in metadata


def test_pitfall_16_kueue_admits_what_autoscales_as_an_elastic_job():
    queued = spec(queueing={"kind": "kueue", "queue": "team-a"}, node_groups=[A100_GROUP])
    elastic = only(rayjob(queued, job(num_workers=(8, 16))), "RayJob")
    assert elastic["metadata"]["annotations"] == {"kueue.x-k8s.io/elastic-job": "true"}
    fixed = only(rayjob(queued, job(num_workers=(8, 8))), "RayJob")
    assert "annotations" not in fixed["metadata"]


def test_pitfall_16_kueue_alone_suspends_and_resumes():
    queued = spec(queueing={"kind": "kueue", "queue": "team-a"})
    assert "suspend" not in only(rayjob(queued, job()), "RayJob")["spec"]


def test_pitfall_16_kai_gets_no_submitter_that_comes_after_its_gang():
    for kind, mode in (("kai", "HTTPMode"), ("volcano", "K8sJobMode"), ("kueue", "K8sJobMode")):
        body = only(rayjob(spec(queueing={"kind": kind, "queue": "q"}), job()), "RayJob")["spec"]
        assert body["submissionMode"] == mode
        assert ("submitterPodTemplate" in body) == (mode == "K8sJobMode")


def test_in_a_shared_cluster_the_cluster_is_queued_not_the_jobs_that_find_it_running():
    shared = spec(queueing={"kind": "kueue", "queue": "team-a"}, training={"cluster": "shared"})
    assert raycluster(shared)["metadata"]["labels"][QUEUES["kueue"]] == "team-a"
    assert QUEUES["kueue"] not in only(rayjob(shared, job()), "RayJob")["metadata"]["labels"]


@pytest.mark.parametrize("kind", ["volcano", "kai"])
def test_serving_is_in_the_queue_where_one_scheduler_gets_all_of_rays_pods(kind: str):
    """KubeRay copies the label from the RayService to its RayClusters, and from them to their pods."""
    queued = spec(queueing={"kind": kind, "queue": "team-a"})
    labels = rayservice(queued, [app()])["metadata"]["labels"]
    assert {key: labels.get(key) for key in QUEUES.values()} == {
        key: "team-a" if key == QUEUES[kind] else None for key in QUEUES.values()
    }


def test_serving_waits_in_no_queue_of_kueue():
    queued = spec(queueing={"kind": "kueue", "queue": "team-a"})
    assert not set(QUEUES.values()) & rayservice(queued, [app()])["metadata"]["labels"].keys()


def test_a_queue_through_which_nothing_would_go_is_refused():
    """With Kueue neither the RayService nor what runs in its cluster is in a queue."""
    in_serving = {"queueing": {"kind": "kueue", "queue": "team-a"}, "training": {"cluster": "serving"}}
    with pytest.raises(
        ConfigError,
        match=r"training\.cluster is 'serving', but queueing\.kind is 'kueue'.*'team-a'.*own or shared",
    ):
        spec(**in_serving)
    assert spec(training={"cluster": "serving"}).queueing.kind == "none"


@pytest.mark.parametrize(
    ("kind", "cluster"),
    # Volcano and "shared", Kueue and "serving" the spec refuses.
    [("kai", "own"), ("kai", "serving"), ("kai", "shared"), ("volcano", "own"), ("volcano", "serving"),
     ("kueue", "own"), ("kueue", "shared")],
)  # fmt: skip
def test_nothing_that_brings_rays_pods_is_left_out_of_the_queue_of_its_scheduler(kind: str, cluster: str):
    queued = spec(queueing={"kind": kind, "queue": "team-a"}, training={"cluster": cluster})
    said = [str(fault) for fault in check(render(queued, apps=[app()], jobs=[job()]), crds())]
    assert said == []
