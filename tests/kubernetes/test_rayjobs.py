"""RayJobs: the train spec, the cluster that is made for it, and the one that is there."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cluster.kubernetes import names
from cluster.kubernetes.job_nodes import job_groups
from cluster.kubernetes.rayjob import rayjob
from cluster.kubernetes.workloads import Manifest, TrainJob
from cluster.nodes_to_come import VARIABLE
from runtime.core.errors import ConfigError
from tests.kubernetes.accepted import assert_accepted, only, pod_templates
from tests.kubernetes.specs import A100_GROUP, CPU_GROUP, GIB, L4_GROUP, job, spec

SHARED = {"cluster": "shared"}
ALL_GROUPS = [L4_GROUP, A100_GROUP, CPU_GROUP]


def body(manifests: list[Manifest]) -> Manifest:
    """The spec of the one RayJob."""
    found: Manifest = only(manifests, "RayJob")["spec"]
    return found


def nodes(train_job: TrainJob, groups: list[dict[str, Any]] | None = None) -> dict[str, tuple[int, int]]:
    """Least and most nodes by group."""
    found = job_groups(spec(node_groups=groups or ALL_GROUPS), train_job)
    return {group.name: (group.min_nodes, group.max_nodes) for group in found}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"training": SHARED},
        {"queueing": {"kind": "kai", "queue": "team"}},
        {"queueing": {"kind": "kueue", "queue": "team"}, "node_groups": [A100_GROUP]},
        {"store": {"nfs": {"storage_class": "filestore"}}, "provider": "gke"},
    ],
)
def test_every_job_is_one_that_the_schema_knows(changes: dict[str, Any]):
    assert_accepted(rayjob(spec(**changes), job(num_workers=(2, 3))))


def test_the_head_reads_the_train_spec_from_a_config_map_as_json():
    given = {"name": "sft", "llamafactory": {"learning_rate": 1e-4, "template": "qwen3"}, "note": "ä"}
    manifests = rayjob(spec(), job(spec=given))
    config = only(manifests, "ConfigMap")
    assert json.loads(config["data"]["spec.json"]) == given
    head = body(manifests)["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    volumes = {one["name"]: one for one in head["volumes"]}
    mounts = {one["mountPath"]: one for one in head["containers"][0]["volumeMounts"]}
    mount = mounts["/etc/tandem/train"]
    assert mount["readOnly"] is True
    assert volumes[mount["name"]]["configMap"]["name"] == config["metadata"]["name"] == "lab-sft-spec"
    # No worker needs it: the driver hands out what they do.
    worker = body(manifests)["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    assert mount["name"] not in {one["name"] for one in worker["volumes"]}


def test_pitfall_16_each_try_goes_on_with_the_run_of_one_id():
    found = body(rayjob(spec(training={"backoff_limit": 4, "pending_deadline_s": 7200, "ttl_s": 60}), job()))
    assert found["entrypoint"] == (
        "python -m train_jobs run /etc/tandem/train/spec.json --store gs://team/tandem --run-id sft-0a1b2c3d"
    )
    assert found["backoffLimit"] == 4
    assert found["preRunningDeadlineSeconds"] == 7200
    assert found["ttlSecondsAfterFinished"] == 60
    assert found["shutdownAfterJobFinishes"] is True  # which both of a queue and a time to live need
    assert not {"suspend", "activeDeadlineSeconds", "deletionStrategy"} & found.keys()


def test_a_shared_cluster_is_selected_by_name_without_what_the_operator_refuses_beside_it():
    manifests = rayjob(spec(training=SHARED), job())
    found = body(manifests)
    assert [one["kind"] for one in manifests] == ["RayJob"]
    assert found["clusterSelector"] == {"ray.io/cluster": names.cluster_name(spec())}
    assert found["submissionMode"] == "HTTPMode"
    refused = {"rayClusterSpec", "backoffLimit", "suspend", "ttlSecondsAfterFinished", "submitterPodTemplate"}
    assert not refused & found.keys()


def test_the_command_for_a_shared_cluster_brings_its_spec_through_any_shell(tmp_path: Path):
    """Ray runs it with /bin/sh. Here `python` only says what it was given."""
    given = {"name": "it's", "note": 'a "b" $HOME `id` %s \\n ä', "deepspeed": {"zero": [1, 2]}}
    found = body(rayjob(spec(training=SHARED), job("its", spec=given)))["entrypoint"]
    (tmp_path / "python").write_text('#!/bin/sh\necho "$@"\ncat "$4"\n')
    (tmp_path / "python").chmod(0o755)
    moved = found.replace("/tmp/tandem-train", shlex.quote(str(tmp_path / "specs")))
    said = subprocess.run(
        moved,
        shell=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    command, _, text = said.partition("\n")
    assert command.endswith("its-0a1b2c3d.json --store gs://team/tandem --run-id its-0a1b2c3d")
    assert json.loads(text) == given


def test_pitfall_14_the_submitter_keeps_to_the_restricted_standard():
    manifests = rayjob(spec(image_pull_secrets=["registry"]), job())
    assert body(manifests)["submissionMode"] == "K8sJobMode"
    (template,) = [t for _, role, t in pod_templates(manifests) if role not in ("head", "worker")]
    pod = template["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["containers"][0]["securityContext"]["allowPrivilegeEscalation"] is False
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    # The operator writes the command, which knows the address and the token.
    assert "command" not in pod["containers"][0]
    assert template["metadata"]["labels"]["tandem.dev/cluster"] == "lab"


def test_a_job_gets_as_many_nodes_as_its_workers_need():
    assert nodes(job(num_workers=(3, 3))) == {"l4": (3, 3)}
    # 20 workers on nodes of 8 GPUs; the L4 nodes hold 3 of them at most.
    assert nodes(job(num_workers=(20, 20))) == {"a100": (3, 3)}
    assert nodes(job(num_workers=(20, 20), accelerator_type="A100")) == {"a100": (3, 3)}


def test_an_elastic_job_starts_with_nodes_for_its_least_workers_and_may_get_more():
    assert nodes(job(num_workers=(8, 30), accelerator_type="A100")) == {"a100": (1, 4)}
    found = body(rayjob(spec(node_groups=[A100_GROUP]), job(num_workers=(8, 30))))["rayClusterSpec"]
    (group,) = found["workerGroupSpecs"]
    env = group["template"]["spec"]["containers"][0]["env"]
    (nodes_to_come,) = [one["value"] for one in env if one["name"] == VARIABLE]
    assert [one["count"] for one in json.loads(nodes_to_come)] == [4]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (1, 1, 4)
    assert found["enableInTreeAutoscaling"] is True


def test_a_job_of_fixed_size_does_not_autoscale_even_where_its_nodes_could():
    found = body(rayjob(spec(node_groups=[A100_GROUP]), job(num_workers=(9, 9))))["rayClusterSpec"]
    assert "enableInTreeAutoscaling" not in found
    (group,) = found["workerGroupSpecs"]
    assert (group["minReplicas"], group["maxReplicas"]) == (2, 2)


def test_workers_of_one_job_are_on_one_product_unless_it_says_any():
    # 3 L4 and 32 A100: 33 workers have no room on either alone.
    with pytest.raises(ConfigError, match=r"scaling\.num_workers of sft is 33.*a100 hold 32"):
        nodes(job(num_workers=(33, 33)))
    assert nodes(job(num_workers=(33, 33), accelerator_type="any")) == {"l4": (3, 3), "a100": (4, 4)}


def test_groups_of_one_product_are_used_together_in_the_order_of_the_spec():
    spot = L4_GROUP | {"name": "l4-spot", "spot": True, "count": 5}
    assert nodes(job(num_workers=(6, 6)), [L4_GROUP, spot]) == {"l4": (3, 3), "l4-spot": (3, 3)}


def test_a_job_without_gpus_gets_nodes_without_gpus_where_there_are_enough():
    # 39.2 GiB of a node are Ray's to hand out, 8 a worker: 4 workers.
    assert nodes(job(num_workers=(8, 8), gpus_per_worker=0)) == {"cpu": (2, 2)}
    # An L4 node has 19.6 GiB: 2 workers.
    assert nodes(job(num_workers=(9, 9), gpus_per_worker=0), [L4_GROUP, CPU_GROUP]) == {
        "cpu": (2, 2), "l4": (1, 1),
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"is 15 at least, but the node groups cpu, l4 hold 14"):
        nodes(job(num_workers=(15, 15), gpus_per_worker=0), [L4_GROUP, CPU_GROUP])
    nothing = {"name": "off", "cpus": 15, "memory": "56GiB", "count": 0}
    with pytest.raises(ConfigError, match=r"off \(no GPUs\).*Raise the groups' count"):
        nodes(job(gpus_per_worker=0), [nothing])


def test_shares_of_a_gpu_do_not_reach_over_two_cards():
    # 0.4 of a GPU: two a card, so 16 on a node of 8, not 20.
    assert nodes(job(num_workers=(17, 17), gpus_per_worker=0.4, accelerator_type="A100")) == {"a100": (2, 2)}
    tenths = job(num_workers=(80, 80), gpus_per_worker=0.1, cpus_per_worker=1, accelerator_type="A100")
    assert nodes(tenths) == {"a100": (1, 1)}


def test_memory_counts_as_far_as_it_is_rays_to_hand_out():
    # 0.7 of 28 GiB are 19.6.
    assert nodes(job(memory_bytes_per_worker=19 * GIB), [L4_GROUP]) == {"l4": (3, 3)}
    with pytest.raises(ConfigError, match=r"20\.0 GiB a worker, but no node of l4 has that \(70% of"):
        nodes(job(memory_bytes_per_worker=20 * GIB), [L4_GROUP])


def test_a_product_that_is_not_there_is_refused_by_its_field():
    with pytest.raises(ConfigError, match=r"accelerator_type: H100.*l4 \(L4\).*scaling\.accelerator_type"):
        nodes(job(accelerator_type="H100"))


def test_strict_placement_counts():
    packed = {"scaling": {"placement_strategy": "STRICT_PACK"}}
    assert nodes(job(num_workers=(3, 3), spec=packed)) == {"a100": (1, 1)}  # the L4 nodes have one GPU each
    spread = {"scaling": {"placement_strategy": "STRICT_SPREAD"}}
    assert nodes(job(num_workers=(4, 4), spec=spread)) == {"a100": (4, 4)}
    with pytest.raises(ConfigError, match="STRICT_PACK wants all 9 on one node"):
        nodes(job(num_workers=(9, 9), spec=packed))


def test_a_jobs_name_is_cut_with_a_hash_and_stays_its_own():
    assert names.job_name(spec(), "sft") == "lab-sft"
    long = [names.job_name(spec(), "a" * 50 + end) for end in ("-v1", "-v2")]
    assert all(len(name) <= 47 for name in long)
    assert long[0] != long[1]
    # Dots and underscores are in names of runs, but not in those of Kubernetes.
    changed = {names.job_name(spec(), name) for name in ("my.job", "my_job", "my-job")}
    assert len(changed) == 3
    assert all(names.check_name(name, kind="RayJob").startswith("lab-my-job") for name in changed)
