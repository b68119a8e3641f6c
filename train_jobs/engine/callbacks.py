"""What the trainer reports while it runs: metrics to the run's folder, checkpoints to Ray Train."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import ray.train
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from storage.runs import RunFolder


class MetricsCallback(TrainerCallback):
    """Rank 0 appends every logged step to ``metrics.jsonl``."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._began_s = 0.0
        self._first_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._began_s, self._first_step = time.monotonic(), state.global_step
        if state.is_world_process_zero:
            _forget_after(self._run, state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        # The last log is the summary of the whole training, which is no step.
        if state.is_world_process_zero and logs and "train_runtime" not in logs:
            self._run.append_metrics(self._line(state, logs))

    def _line(self, state: TrainerState, logs: dict[str, Any]) -> dict[str, Any]:
        elapsed_s = time.monotonic() - self._began_s
        done = max(state.global_step - self._first_step, 1)
        remaining_s = (state.max_steps - state.global_step) * elapsed_s / done
        line: dict[str, Any] = {"step": state.global_step, "max_steps": state.max_steps}
        line |= {key: value for key, value in logs.items() if isinstance(value, int | float | str)}
        return line | {"time_s": round(elapsed_s, 3), "remaining_s": round(remaining_s, 1)}


class CheckpointCallback(TrainerCallback):
    """Hands every checkpoint to Ray Train, which merges the ranks' files and counts it as committed."""

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        # A barrier: all ranks call it, equally often, each with the files that it wrote itself.
        folder.mkdir(exist_ok=True)
        ray.train.report({"step": state.global_step}, ray.train.Checkpoint.from_directory(folder))


def _forget_after(run: RunFolder, step: int) -> None:
    """Drop the metrics of steps that a resumed run does again, so that none is counted twice."""
    logged = run.metrics()
    kept = [line for line in logged if line["step"] <= step]
    if len(kept) < len(logged):
        scratch = run.path / ".metrics.jsonl"
        scratch.write_text("".join(json.dumps(line) + "\n" for line in kept))
        scratch.replace(run.path / "metrics.jsonl")
