"""The small pieces around vLLM that need no vLLM: its command line, its error lines, Serve's messages."""

from __future__ import annotations

import argparse
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from serve_apps.build import deploy
from serve_apps.deployment import VllmReplica
from serve_apps.engine.command_line import command_line
from serve_apps.plan import plan_serve
from serve_apps.spec import ServeSpec
from serve_apps.status import why
from storage.store import Store
from tests.inventories import nodes

ROOT = Path(__file__).resolve().parents[2]


def test_arguments_become_the_words_that_vllms_parser_reads():
    parser = argparse.ArgumentParser()
    parser.add_argument("--enforce-eager", action=argparse.BooleanOptionalAction)
    parser.add_argument("--max-model-len", "-m", type=int)
    parser.add_argument("--served-model-name", nargs="+")
    parser.add_argument("--chat-template")
    parser.add_argument("--compilation-config")
    given = {
        "enforce_eager": False,
        "max_model_len": 512,
        "served_model_name": ["a", "a/v1"],
        "chat_template": "--{{ messages }}",
        "compilation_config": {"mode": 0},
    }
    words = command_line(parser, given)
    assert words[:2] == ["--no-enforce-eager", "--max-model-len=512"]
    read = vars(parser.parse_args(words))
    assert read == given | {"compilation_config": '{"mode": 0}'}
    assert command_line(parser, {"chat_template": None}) == []


# Stands for a replica whose engine process wrote the cause, while vLLM's own error only points there.
WRITES = """
import sys
from serve_apps.engine.last_words import last_error
print("(EngineCore pid=7) ERROR 11-24 09:33:20 [core.py:1210] ValueError: size 640 exceeds 512", flush=True)
print("(EngineCore pid=7) RuntimeError: Engine core initialization failed. See root cause above.", flush=True)
own = {own}
print(last_error(own), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("own", "shown"),
    [
        ("RuntimeError('Engine core initialization failed. See root cause above.')",
            "ValueError: size 640 exceeds 512"),
        ("KeyError('architectures')", "KeyError: 'architectures'"),
    ],
)  # fmt: skip
def test_the_error_line_is_the_cause_not_the_pointer_to_it(tmp_path: Path, own: str, shown: str):
    with (tmp_path / "out").open("w") as out:
        done = subprocess.run(
            [sys.executable, "-c", WRITES.format(own=own)],
            cwd=ROOT,
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.stderr.strip() == shown


def test_why_finds_our_message_in_what_serve_shows():
    message = (
        "The deployment failed to start 2 times in a row. Error:\n\x1b[36mray::initialize()\x1b[39m (pid=1)\n"
        '  File "replica.py", line 1928, in initialize\n    raise RuntimeError(traceback.format_exc())\n'
        "RuntimeError: Traceback (most recent call last):\n"
        "runtime.core.errors.ServeError: vLLM could not start with /m: ValueError: too long\n  by far"
    )
    failed = {
        "message": "Failed to update the deployments ['a'].",
        "deployments": {"a": {"message": message}},
    }
    assert why(failed) == "vLLM could not start with /m: ValueError: too long\n  by far"
    assert (
        why({"message": "Traceback:\n  x\nray.exceptions.RayError: gone"}) == "ray.exceptions.RayError: gone"
    )
    assert why({"message": "", "deployments": {"a": {"message": "waiting"}}}) == "waiting"
    assert why({"message": "", "deployments": {}}) == ""


def test_the_deployment_crosses_to_the_serve_environment_by_name(
    with_model: Store, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TANDEM_PYTHON_SERVE", sys.executable)
    monkeypatch.setenv("PYTHONPATH", "/code")
    spec = ServeSpec(name="assistant", model="tiny")
    plan = plan_serve(spec, store=with_model, inventory=nodes({"CPU": 2}))
    deployment = deploy(plan, free_resources={"CPU": 0.5})._bound_deployment
    options = deployment.ray_actor_options
    assert (options["num_cpus"], options["num_gpus"]) == (0.5, 0)
    assert options["runtime_env"]["py_executable"] == sys.executable
    assert options["runtime_env"]["env_vars"]["PYTHONPATH"].split(":")[-1] == "/code"
    config = deployment._deployment_config
    assert config.max_surge_percent == 100
    assert (
        deploy(plan, free_resources={"CPU": 0.4})._bound_deployment._deployment_config.max_surge_percent == 0
    )
    assert deployment.max_ongoing_requests > spec.max_ongoing_requests + spec.max_queued_requests
    # By name, not by value: the class is read from the serve environment's own copy of Ray and of this code.
    assert len(pickle.dumps(VllmReplica)) < 100
