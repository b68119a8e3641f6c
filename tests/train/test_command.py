"""``python -m train_jobs run``: what a person sees of it, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from runtime.core.errors import ConfigError, Conflict
from storage.store import Store

ROOT = Path(__file__).parents[2]


@pytest.fixture
def spec_file(spec: dict[str, Any], tmp_path: Path) -> Path:
    # The same plan whatever cluster, with or without GPUs, this machine happens to run.
    spec["scaling"] = {"gpus_per_worker": 0}
    return write(tmp_path / "spec.yaml", spec)


def write(file: Path, spec: dict[str, Any]) -> Path:
    file.write_text(yaml.safe_dump(spec))
    return file


def train_jobs(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "train_jobs", *arguments]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)


def test_a_dry_run_prints_the_plan_and_leaves_nothing_behind(spec_file: Path, store: Store):
    done = train_jobs("run", str(spec_file), "--dry-run", "--store", store.uri)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["llamafactory"]["template"] == "qwen3_nothink"
    assert store.runs() == []


def test_a_spec_that_cannot_run_exits_2_with_one_message_and_no_traceback(
    spec: dict[str, Any], store: Store, tmp_path: Path
):
    spec["llamafactory"]["cutof_len"] = 64
    file = write(tmp_path / "wrong.yaml", spec)
    done = train_jobs("run", str(file), "--store", store.uri)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"{file}: cannot be run.",
        "  llamafactory.cutof_len: LLaMA-Factory 0.9.5 has no such argument (value 64). "
        "Did you mean 'cutoff_len'?",
    ]
    assert store.runs() == []


def test_a_run_that_was_made_before_it_was_refused_says_why(
    spec: dict[str, Any], store: Store, tmp_path: Path
):
    run = store.new_run("lesson", "{}")
    file = write(tmp_path / "wrong.yaml", spec | {"model": "nobody"})
    done = train_jobs("run", str(file), "--store", store.uri, "--run", run.run_id)
    assert done.returncode == 2
    result = run.result()
    assert result is not None
    assert (result["status"], "has no model 'nobody'" in result["error"]) == ("failed", True)


def test_a_llamafactory_file_is_planned_and_its_datasets_are_not_registered_in_a_dry_run(
    store: Store, tmp_path: Path
):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "facts.json").write_text(
        '[{"instruction": "What does len do?", "output": "Count."}]'
    )
    (tmp_path / "data" / "dataset_info.json").write_text('{"facts": {"file_name": "facts.json"}}')
    file = tmp_path / "facts_sft.yaml"
    file.write_text(
        "model_name_or_path: tiny-base\nstage: sft\ndo_train: true\ndataset: facts\ntemplate: qwen3_nothink\n"
        "output_dir: saves/facts\nlearning_rate: 1e-4\nuse_cpu: true\n"
    )
    done = train_jobs(
        "run", "--llamafactory", str(file), "--num-workers", "3", "--dry-run", "--store", store.uri
    )
    assert done.returncode == 0, done.stderr
    planned = json.loads(done.stdout)
    assert (planned["num_workers"], planned["publish"]["name"]) == (3, "facts")
    assert planned["llamafactory"]["learning_rate"] == 0.0001
    assert planned["dataset_info"]["facts"]["file_name"] == "facts.json"
    assert [dataset.name for dataset in store.datasets()] == ["docstrings"]


def test_the_number_of_workers_on_the_command_line_counts_more_than_the_specs(spec_file: Path, store: Store):
    done = train_jobs("run", str(spec_file), "--num-workers", "4", "--dry-run", "--store", store.uri)
    assert json.loads(done.stdout)["num_workers"] == 4, done.stderr
    assert train_jobs("run", str(spec_file), "--num-workers", "0").returncode == 2


def test_a_spec_and_a_llamafactory_file_at_once_are_refused(spec_file: Path, store: Store):
    done = train_jobs("run", str(spec_file), "--llamafactory", "x.yaml", "--store", store.uri)
    assert (done.returncode, done.stderr.startswith("Give one of both: a train spec (SPEC)")) == (2, True)


def test_the_help_names_the_exit_codes_and_the_job_command():
    shown = train_jobs("--help").stdout
    assert "Exit code 2" in shown
    assert "ray job submit" in shown


def test_a_job_that_is_tried_again_goes_on_with_the_run_that_it_began(spec_file: Path, store: Store):
    arguments = ("run", str(spec_file), "--dry-run", "--store", store.uri, "--run-id", "lesson-0a1b2c3d")
    assert json.loads(train_jobs(*arguments).stdout)["llamafactory"]["max_steps"] == 3
    assert store.runs() == []
    begun = yaml.safe_load(spec_file.read_text())
    begun["llamafactory"]["max_steps"] = 5
    run = store.new_run("lesson", json.dumps(begun), run_id="lesson-0a1b2c3d")
    assert store.run("lesson-0a1b2c3d").uri == run.uri
    # Its own spec, whatever the file says by now.
    assert json.loads(train_jobs(*arguments).stdout)["llamafactory"]["max_steps"] == 5
    with pytest.raises(Conflict):
        store.new_run("lesson", "{}", run_id="lesson-0a1b2c3d")


def test_a_job_that_is_tried_again_ends_as_its_run_has_ended(spec_file: Path, store: Store):
    arguments = ("run", str(spec_file), "--store", store.uri, "--run-id", "lesson-0a1b2c3d")
    run = store.new_run("lesson", "{}", run_id="lesson-0a1b2c3d")
    run.write_result({"status": "succeeded", "model": "lesson/v1"})
    assert train_jobs(*arguments).returncode == 0
    run.write_result({"status": "failed", "error": "loss is NaN at step 7"})
    done = train_jobs(*arguments)
    assert done.returncode == 1
    assert "loss is NaN at step 7" in done.stderr
    assert "tandem train --resume lesson-0a1b2c3d" in done.stderr


@pytest.mark.parametrize("run_id", ["lesson", "other-0a1b2c3d", "lesson-0A1B2C3D", "lesson-../../x"])
def test_an_id_that_is_none_of_the_runs_name_is_refused(run_id: str, store: Store):
    with pytest.raises(ConfigError, match="Write lesson- and 8 hexadecimal digits"):
        store.new_run("lesson", "{}", run_id=run_id)
