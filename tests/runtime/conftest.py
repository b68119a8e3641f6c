"""Runs in a store, as a driver and its workers leave them, and the command line on that store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from runtime.cli import main
from storage.commit import commit_folder
from storage.manifest import CheckpointManifest
from storage.runs import RunFolder
from storage.store import Store

BEGAN_AT = 1_700_000_000.0
SPEC = {
    "name": "poems",
    "model": "base/v1",
    "dataset": "rows",
    "llamafactory": {"stage": "sft", "finetuning_type": "full", "template": "qwen3", "learning_rate": 0.005},
    "deepspeed": "zero2",
    "scaling": {"num_workers": 2},
    "publish": {"name": "poems"},
}

MakeRun = Callable[..., RunFolder]
Command = Callable[..., Result]


def log_steps(run: RunFolder, first: int, last: int, *, of: int = 40, loss: float = 8.0) -> None:
    """Lines of metrics for the steps from ``first`` to ``last``; the loss is ``loss / step``."""
    log = run.metrics_log()
    for step in range(first, last + 1):
        log.append(
            {
                "step": step, "max_steps": of, "epoch": step / 10, "loss": loss / step, "learning_rate": 1e-3,
                "grad_norm": 0.5, "tokens_per_s": 1000.0 + step, "samples_per_s": 32.0, "step_time_s": 0.25,
                "memory_peak_bytes": 2_000_000_000 - step, "checkpoint_stall_s": 0.125, "time_s": step * 0.25,
                "remaining_s": (of - step) * 0.25, "at": BEGAN_AT + step,
            }
        )  # fmt: skip
    log.close()


def commit_checkpoint(run: RunFolder, step: int, folder: Path, *, size_bytes: int = 1_500_000) -> None:
    """A committed checkpoint of ``size_bytes``."""
    folder.mkdir()
    (folder / "state").write_bytes(bytes([step % 251]) * size_bytes)
    draft = CheckpointManifest(
        created_at="2026-11-25T01:02:03.000000", step=step, num_workers=2, metrics={"eval_loss": 0.75}
    )
    commit_folder(folder, run.checkpoint_place(step), draft)


@pytest.fixture
def make_run(store: Store) -> MakeRun:
    """A new run of a spec; keywords change its fields."""

    def make(**changes: object) -> RunFolder:
        spec = SPEC | changes
        return store.new_run(str(spec["name"]), json.dumps(spec))

    return make


@pytest.fixture
def recovered(make_run: MakeRun, tmp_path: Path) -> RunFolder:
    """A run that lost a worker at step 25, went on from its checkpoint of step 20 and succeeded."""
    run = make_run()
    run.write_attempt(1, "began", attempt=1, began_at=BEGAN_AT, num_workers=2, from_step=0)
    run.write_attempt(1, "first-step", first_step_at=BEGAN_AT + 1)
    run.write_attempt(
        1, "ended", ended="failed", ended_at=BEGAN_AT + 25, reason="a worker was killed (SIGKILL)", step=20
    )
    run.write_attempt(2, "began", attempt=2, began_at=BEGAN_AT + 26, num_workers=2, from_step=20)
    run.write_attempt(2, "first-step", first_step_at=BEGAN_AT + 42.5, recovery_s=17.5)
    run.write_attempt(2, "ended", ended="succeeded", ended_at=BEGAN_AT + 99, step=40)
    log_steps(run, 1, 20)
    run.metrics_log().append({"step": 20, "max_steps": 40, "eval_loss": 0.75, "eval_runtime": 3.0})
    log_steps(run, 21, 40)
    for step in (20, 40):
        commit_checkpoint(run, step, tmp_path / f"checkpoint-{step}")
    run.write_result({"status": "succeeded", "model": "poems/v1"})
    return run


@pytest.fixture
def tandem(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Runs one command on the test's store; fails unless the exit code is the expected one."""
    monkeypatch.setenv("TANDEM_STORE", store.uri)
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "120")

    def command(*words: str, code: int = 0) -> Result:
        result = CliRunner().invoke(main, words)
        assert result.exit_code == code, result.output + repr(result.exception)
        return result

    return command
