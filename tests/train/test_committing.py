"""What all ranks commit together, where one of them finds the store silent."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cluster.environments import interpreter, process_env
from cluster.processes import free_port
from storage.store import open_store
from tests.conftest import ROOT

pytestmark = pytest.mark.engine


def test_a_checkpoint_that_one_rank_cannot_commit_is_left_out_by_all_and_the_next_one_is_whole(
    home: Path, tmp_path: Path
):
    store = open_store(str(tmp_path / "store"))
    run = store.new_run("outage", "{}")
    command = [str(interpreter("train")), "-m", "tests.train.commit_program", store.uri, str(free_port())]
    env = os.environ | process_env("train") | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    said = sorted(line for line in done.stdout.splitlines() if line.startswith("rank"))
    assert said == ["rank 0 step 10: Unavailable", "rank 1 step 10: Unavailable"]
    (kept,) = run.checkpoints()
    assert kept.manifest.step == 20
    assert [file.path for file in kept.manifest.files] == ["shard-0", "shard-1"]
