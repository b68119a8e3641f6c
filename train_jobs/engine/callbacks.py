"""What the trainer reports while it runs: metrics to the run's folder."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from storage.metrics_log import MetricsLog


class MetricsCallback(TrainerCallback):
    """Adds every logged step to ``metrics.jsonl``. Given to rank 0 alone."""

    def __init__(self, metrics: MetricsLog) -> None:
        self._metrics = metrics
        self._began_s = 0.0
        self._first_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._began_s, self._first_step = time.monotonic(), state.global_step
        self._metrics.forget_after(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        # The last log is the summary of the whole training, which is no step.
        if logs and "train_runtime" not in logs:
            self._metrics.append(self._line(state, logs))

    def _line(self, state: TrainerState, logs: dict[str, Any]) -> dict[str, Any]:
        elapsed_s = time.monotonic() - self._began_s
        done = max(state.global_step - self._first_step, 1)
        remaining_s = (state.max_steps - state.global_step) * elapsed_s / done
        line: dict[str, Any] = {"step": state.global_step, "max_steps": state.max_steps}
        line |= {key: value for key, value in logs.items() if isinstance(value, int | float | str)}
        return line | {"time_s": round(elapsed_s, 3), "remaining_s": round(remaining_s, 1)}
