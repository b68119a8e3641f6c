"""``tandem doctor``: problems have remedies and decide the exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCTOR = "from runtime.cli import main; main(['doctor', '--json'])"


def doctor(**variables: str) -> tuple[int, dict[str, Any]]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("TANDEM_")}
    done = subprocess.run(
        [sys.executable, "-c", DOCTOR], cwd=ROOT, env={**env, **variables}, capture_output=True, text=True
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_missing_environments_are_problems_with_a_remedy(tmp_path: Path):
    code, report = doctor(TANDEM_CACHE=str(tmp_path), TANDEM_HOME=str(tmp_path), TANDEM_FLAVOUR="cpu")
    assert code == 1
    assert [problem.split(" environment")[0] for problem in report["problems"]] == [
        "The core", "The train", "The serve",
    ]  # fmt: skip
    assert all("make setup" in problem for problem in report["problems"])
    assert report["disks"]["cache"]["path"] == str(tmp_path) and report["disks"]["cache"]["free_bytes"] > 0


def test_an_environment_that_does_not_import_says_why(tmp_path: Path):
    empty = tmp_path / "empty"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(empty)], check=True)
    python = str(empty / "bin" / "python")
    code, report = doctor(
        TANDEM_HOME=str(tmp_path), TANDEM_FLAVOUR="cpu",
        TANDEM_PYTHON_CORE=python, TANDEM_PYTHON_TRAIN=python, TANDEM_PYTHON_SERVE=python,
    )  # fmt: skip
    assert code == 1
    assert "train: ModuleNotFoundError: No module named 'ray'" in report["problems"][1]
    assert any("core environment has Ray none" in problem for problem in report["problems"])


def test_a_store_that_cannot_be_reached_is_a_problem(tmp_path: Path):
    code, report = doctor(
        TANDEM_CACHE=str(tmp_path), TANDEM_HOME=str(tmp_path), TANDEM_FLAVOUR="cpu",
        TANDEM_STORE="s3://team/tandem", TANDEM_STORAGE_PATIENCE_S="1",
        AWS_ENDPOINT_URL="http://127.0.0.1:9", AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b",
    )  # fmt: skip
    assert code == 1
    assert any("The store: s3://team/tandem: the connection is refused" in p for p in report["problems"])


@pytest.mark.engine
def test_what_setup_built_is_sound():
    # A cache or a flavour that the tests were given is what is checked here.
    given = {name: value for name, value in os.environ.items() if name.startswith("TANDEM_")}
    code, report = doctor(**given)
    assert (code, report["problems"]) == (0, [])
    assert {name for item in report["environments"] for name in item["engines"]} >= {"vllm", "llamafactory"}
