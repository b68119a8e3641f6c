"""Training in the cluster that serves: the Job's own script, against a real Ray cluster."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.environments import interpreter
from cluster.kubernetes.submission import script
from cluster.rest import call
from tests.conftest import TestCluster
from tests.kubernetes import specs
from tests.train.living import lesson

pytestmark = pytest.mark.engine


def mounted(folder: Path, spec: dict[str, Any]) -> Path:
    """A ConfigMap as the kubelet mounts one: a link to a file below a link to a folder."""
    (folder / "..2026_11_27").mkdir(parents=True)
    (folder / "..2026_11_27" / "spec.json").write_text(json.dumps(spec))
    (folder / "..data").symlink_to("..2026_11_27")
    (folder / "spec.json").symlink_to("..data/spec.json")
    return folder


def start(inputs: TestCluster, folder: Path, run_id: str) -> subprocess.Popen[str]:
    """The Job's pod."""
    cluster = specs.spec(training={"cluster": "serving", "pending_deadline_s": 60})
    text = script(
        cluster,
        replace(specs.job(), run_id=run_id),
        folder=str(folder),
        submitted=str(folder.parent / "submitted"),
    )
    # The pod's image has the store that the cluster file names; here it is the tests'.
    text = text.replace(cluster.store.root, inputs.store.uri)
    env = os.environ | {
        "PATH": f"{interpreter('core').parent}:{os.environ['PATH']}",
        "RAY_ADDRESS": inputs.dashboard_url,
        "RAY_AUTH_MODE": "disabled",
    }
    return subprocess.Popen(
        ["bash", "-c", text], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def submit(inputs: TestCluster, folder: Path, run_id: str) -> tuple[int, str]:
    """One try: how it ended, and all that it said."""
    pod = start(inputs, folder, run_id)
    output, _ = pod.communicate(timeout=240)
    return pod.returncode, output


def submissions(inputs: TestCluster, run_id: str) -> dict[str, str]:
    """How each submission of a run ended, by the end of its id."""
    found = [one for one in call("GET", inputs.dashboard_url, "/api/jobs/") if one["submission_id"]]
    ours = [one for one in found if one["submission_id"].startswith(run_id)]
    return {one["submission_id"].removeprefix(run_id): one["status"] for one in ours}


def test_a_job_ends_as_its_run_and_pods_beside_and_after_it_follow_its_driver(
    inputs: TestCluster, tmp_path: Path
):
    spec = lesson("mounted", {"max_steps": 2}, scaling={"num_workers": 1, "gpus_per_worker": 0})
    folder = mounted(tmp_path / "train", spec)
    run_id = "mounted-0a1b2c3d"
    beside = start(inputs, folder, run_id)
    code, output = submit(inputs, folder, run_id)
    said, _ = beside.communicate(timeout=240)
    assert (code, beside.returncode) == (0, 0), output[-3000:] + said[-3000:]
    assert (tmp_path / "submitted").exists()
    run = inputs.store.run(run_id)
    assert [line["step"] for line in run.metrics() if "loss" in line] == [1, 2]
    code, output = submit(inputs, folder, run_id)
    assert code == 0, output[-3000:]
    assert submissions(inputs, run_id) == {"-1": "SUCCEEDED"}
    assert len(run.attempts()) == 1


def test_a_job_whose_run_could_not_begin_is_tried_again_with_the_same_run_once_that_is_mended(
    inputs: TestCluster, tmp_path: Path
):
    recipe = {"max_steps": 2}
    spec = lesson("mended", recipe, scaling={"num_workers": 1, "gpus_per_worker": 0}) | {
        "dataset": "mended-rows"
    }
    folder, run_id = mounted(tmp_path / "train", spec), "mended-0a1b2c3d"
    code, output = submit(inputs, folder, run_id)
    assert code == 1 and "mended-rows" in output
    inputs.store.add_dataset(
        "mended-rows", [{"instruction": f"add {n}", "output": str(n)} for n in range(40)]
    )
    code, output = submit(inputs, folder, run_id)
    assert code == 0, output[-3000:]
    assert submissions(inputs, run_id) == {"-1": "FAILED", "-2": "SUCCEEDED"}
    assert [line["step"] for line in inputs.store.run(run_id).metrics() if "loss" in line] == [1, 2]


def test_a_job_whose_run_has_failed_fails_again_and_says_how_to_go_on(inputs: TestCluster, tmp_path: Path):
    spec = lesson("wrong", {"max_steps": 2}, scaling={"num_workers": 1, "gpus_per_worker": 0})
    folder, run_id = mounted(tmp_path / "train", spec), "wrong-0a1b2c3d"
    # As the driver leaves a run that would fail again.
    run = inputs.store.new_run("wrong", json.dumps(spec), run_id=run_id)
    run.write_result({"status": "failed", "error": "CUDA out of memory"})
    for tries in ({"-1": "FAILED"}, {"-1": "FAILED", "-2": "FAILED"}):
        code, output = submit(inputs, folder, run_id)
        assert code == 1
        assert f"tandem train --resume {run_id}" in output and "CUDA out of memory" in output
        assert submissions(inputs, run_id) == tries
