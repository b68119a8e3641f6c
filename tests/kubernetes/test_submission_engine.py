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


def submit(inputs: TestCluster, folder: Path, run_id: str) -> subprocess.CompletedProcess[str]:
    cluster = specs.spec(training={"cluster": "serving", "pending_deadline_s": 60})
    text = script(cluster, replace(specs.job(), run_id=run_id), folder=str(folder))
    # The pod's image has the store that the cluster file names; here it is the tests'.
    text = text.replace(cluster.store.root, inputs.store.uri)
    env = os.environ | {
        "PATH": f"{interpreter('core').parent}:{os.environ['PATH']}",
        "RAY_ADDRESS": inputs.dashboard_url,
        "RAY_AUTH_MODE": "disabled",
    }
    return subprocess.run(["bash", "-c", text], env=env, capture_output=True, text=True, timeout=240)


def test_a_job_ends_as_its_run_and_a_second_try_follows_the_first(inputs: TestCluster, tmp_path: Path):
    spec = lesson("mounted", {"max_steps": 2}, scaling={"num_workers": 1, "gpus_per_worker": 0})
    folder = mounted(tmp_path / "train", spec)
    first = submit(inputs, folder, "mounted-0a1b2c3d")
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    run = inputs.store.run("mounted-0a1b2c3d")
    assert [line["step"] for line in run.metrics() if "loss" in line] == [1, 2]
    again = submit(inputs, folder, "mounted-0a1b2c3d")
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]
    assert len(run.attempts()) == 1


def test_a_job_whose_run_fails_fails(inputs: TestCluster, tmp_path: Path):
    spec = lesson("wrong", {"max_steps": 2}) | {"dataset": "nobody"}
    failed = submit(inputs, mounted(tmp_path / "train", spec), "wrong-0a1b2c3d")
    assert failed.returncode == 1
    assert "nobody" in failed.stdout
