"""The train environment: what it says of itself, and real runs through plain Ray tools."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.environments import interpreter, process_env
from storage.runs import RunFolder
from tests.conftest import ROOT, TestCluster, wait_for
from tests.train.living import lesson, workers
from train_jobs.arguments import catalogue

pytestmark = pytest.mark.engine

LESSON = lesson("lesson", deepspeed="zero3", publish={"name": "lesson"})


def in_train_environment(program: str) -> Any:
    """What ``program`` prints last, read as JSON."""
    env = process_env("train") | {"PYTHONPATH": str(ROOT)}
    command = [str(interpreter("train")), "-c", program]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=120)
    return json.loads(done.stdout.splitlines()[-1])


def submit(cluster: TestCluster, file: Path, *arguments: str) -> subprocess.Popen[str]:
    """``ray job submit`` of a spec, as the README says it; its output is the job's log."""
    ray = str(Path(sys.executable).with_name("ray"))
    entrypoint = ["python", "-m", "train_jobs", "run", str(file), "--store", cluster.store.uri, *arguments]
    command = [ray, "job", "submit", "--address", cluster.dashboard_url, "--", *entrypoint]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def output_of(job: subprocess.Popen[str]) -> str:
    return job.communicate(timeout=240)[0]


def write(file: Path, spec: dict[str, Any]) -> Path:
    file.write_text(yaml.safe_dump(spec))
    return file


def test_the_catalogue_is_what_the_installed_llamafactory_says():
    program = "import json; from train_jobs.engine.catalogue import build; print(json.dumps(build()))"
    assert in_train_environment(program) == catalogue(), "run: python -m train_jobs.engine.catalogue"


def test_a_chat_request_renders_the_prompt_that_the_model_was_trained_on(inputs: TestCluster):
    folder = inputs.store.model("docstrings-base").fetch()
    asked = in_train_environment(f"""
import json
from llamafactory.data.template import get_template_and_fix_tokenizer
from llamafactory.hparams import DataArguments
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained({str(folder.path)!r})
messages = [{{"role": "system", "content": "Be brief."}}, {{"role": "user", "content": "What does len do?"}}]
answer = {{"role": "assistant", "content": "Count."}}
served = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
template = get_template_and_fix_tokenizer(tokenizer, DataArguments(template="qwen3_nothink"))
prompt, taught = template.encode_oneturn(tokenizer, [messages[1], answer], "Be brief.")
print(json.dumps([served, tokenizer.decode(prompt), tokenizer.decode(taught), tokenizer.eos_token]))
""")
    served, trained, taught, end = asked
    assert served == trained
    assert taught.startswith(f"Count.{end}")


@pytest.mark.timeout(600)
def test_a_run_that_may_not_fail_says_why_it_did_and_goes_on_when_it_is_submitted_again(
    inputs: TestCluster, tmp_path: Path
):
    # So many steps that the kill comes before the last one, though the test may be held up for seconds.
    recipe = LESSON["llamafactory"] | {"max_steps": 40, "save_steps": 10}
    file = write(tmp_path / "lesson.yaml", LESSON | {"llamafactory": recipe, "failure": {"max_failures": 0}})
    job = submit(inputs, file)
    run = wait_for(lambda: next(iter(inputs.store.runs("lesson")), None), "a run folder")
    wait_for(run.checkpoints, "a committed checkpoint")
    workers()[0].kill()
    output = output_of(job)
    assert job.returncode == 1, output[-3000:]
    assert "the worker's process died" in str(run.result())
    assert f"run {run.run_id} failed: rank " in output
    assert f"ray job logs {run.record()['submission_id']}" in output

    again = submit(inputs, file, "--resume", run.run_id)
    output = output_of(again)
    assert again.returncode == 0, output[-3000:]
    assert "Resuming training from checkpoint" in output
    assert [checkpoint.manifest.step for checkpoint in run.checkpoints()] == [10, 20, 30, 40]
    assert [line["step"] for line in run.metrics()] == list(range(1, 41))
    assert run.result() == {"status": "succeeded", "model": "lesson/v1"}
    assert "rank 1 of 2: pid" in (run.place / "log.txt").read_bytes().decode()
    assert_servable(inputs, run)


def assert_servable(cluster: TestCluster, run: RunFolder) -> None:
    """The published folder holds the model and nothing else, and says where answers end."""
    model = cluster.store.model("lesson")
    assert model.manifest is not None
    assert (model.manifest.run, model.manifest.base) == (run.run_id, "docstrings-base/v1")
    assert sorted(entry.path for entry in model.manifest.files) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    with model.fetch() as folder:
        stops = json.loads((folder.path / "generation_config.json").read_text())["eos_token_id"]
    assert stops == [model.config()["eos_token_id"]]


def test_an_error_of_the_engine_arrives_as_one_line(inputs: TestCluster, tmp_path: Path):
    wrong = LESSON | {"name": "wrong", "llamafactory": LESSON["llamafactory"] | {"learning_rate": -1.0}}
    job = submit(inputs, write(tmp_path / "wrong.yaml", wrong))
    output = output_of(job)
    error = "ValueError: Invalid learning rate: -1.0"
    assert job.returncode == 1
    result = inputs.store.run("wrong").result()
    # All ranks fail of it; which one Ray Train hears of first is chance.
    assert result in [{"status": "failed", "error": f"rank {rank}: {error}"} for rank in (0, 1)]
    assert f"failed: {result['error']}\nThe whole log: ray job logs raysubmit_" in output


def test_a_spec_fault_ends_the_job_before_a_worker_starts(inputs: TestCluster, tmp_path: Path):
    greedy = LESSON | {"name": "greedy", "scaling": {"num_workers": 5, "cpus_per_worker": 1}}
    job = submit(inputs, write(tmp_path / "greedy.yaml", greedy))
    output = output_of(job)
    assert job.returncode == 1
    assert "exit code 2" in output
    assert "num_workers 5 x cpus_per_worker 1 is 5 CPUs, but the whole cluster has 2." in output
    assert "Traceback" not in output
    assert inputs.store.runs("greedy") == []
