"""What the trainer reports while it runs: metrics to the run's folder and to Ray's Prometheus endpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from ray.util.metrics import Gauge
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from storage.metrics_log import MetricsLog
from train_jobs.engine.faults import NanLoss
from train_jobs.engine.throughput import Meter

_EXPORTED = (
    "step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm", "tokens_per_s", "samples_per_s",
    "step_time_s", "mfu", "memory_peak_bytes", "checkpoint_stall_s",
)  # fmt: skip
"""What Prometheus sees, each as ``ray_tandem_train_<name>{run=...}``."""

_CHECKPOINT_AT = "checkpoint_timestamp_seconds"
"""Since when nothing of the run is safe, in seconds since 1970: its last checkpoint, or its beginning."""


class NanCallback(TrainerCallback):
    """Ends a run whose loss is no number any more, before it is saved."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        logs = logs or {}
        # Half precision finds its loss scale by overflows: its gradients may be infinite for a step.
        watched = ("loss",) if args.fp16 else ("loss", "grad_norm")
        for name in watched:
            value = logs.get(name)
            if isinstance(value, float) and not math.isfinite(value):
                raise NanLoss(
                    f"{name} is {value} at step {state.global_step} (learning rate "
                    f"{logs.get('learning_rate')}). "
                    "The last checkpoint stands. Lower learning_rate, lengthen warmup_steps, or set "
                    "max_grad_norm."
                )


class MetricsCallback(TrainerCallback):
    """Adds every logged step to ``metrics.jsonl``. Given to rank 0 alone.

    Args:
        run_id: The label of the exported metrics.
        world_size: Workers; what rank 0 counts is counted so often.
        take_stall_s: Seconds that saves have blocked training since the last call.
        committed_at: When this attempt last committed a checkpoint, in seconds since 1970; 0: not yet.
        on_first_step: Called when the first step of this attempt is done.
    """

    def __init__(
        self,
        metrics: MetricsLog,
        run_id: str,
        *,
        world_size: int,
        take_stall_s: Callable[[], float],
        committed_at: Callable[[], float],
        on_first_step: Callable[[], None],
    ) -> None:
        self._metrics, self._take_stall_s, self._committed_at = metrics, take_stall_s, committed_at
        self._on_first_step: Callable[[], None] | None = on_first_step
        self._meter = Meter(world_size)
        self._began_s = 0.0
        self._began_at = 0.0
        self._first_step = 0
        self._gauges = {
            name: Gauge(f"tandem_train_{name}", description=f"{name} of a training run", tag_keys=("run",))
            for name in (*_EXPORTED, _CHECKPOINT_AT)
        }
        for gauge in self._gauges.values():
            gauge.set_default_tags({"run": run_id})
        self._told: dict[str, float] = {}

    def tell(self) -> None:
        """Tell Prometheus what was logged last. From any thread."""
        for name, value in dict(self._told).items():
            self._gauges[name].set(value)
        if self._began_at:
            self._gauges[_CHECKPOINT_AT].set(max(self._began_at, self._committed_at()))

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        self._began_s, self._first_step = time.monotonic(), state.global_step
        self._began_at = time.time()
        self.tell()
        self._metrics.forget_after(state.global_step)
        self._meter.watch(model)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._meter.step_done()
        if self._on_first_step:
            self._on_first_step()
            self._on_first_step = None

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
            self._add(state, logs, self._meter.take() if "loss" in logs else {})

    def on_predict(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, Any],
        **kwargs: Any,
    ) -> None:
        self._add(state, metrics, {})

    def _add(self, state: TrainerState, logs: dict[str, Any], speed: dict[str, float]) -> None:
        elapsed_s = time.monotonic() - self._began_s if self._began_s else 0.0
        done = max(state.global_step - self._first_step, 1)
        remaining_s = (state.max_steps - state.global_step) * elapsed_s / done
        line: dict[str, Any] = {"step": state.global_step, "max_steps": state.max_steps}
        # JSON has no word for what is no number.
        line |= {key: value for key, value in logs.items() if isinstance(value, str | int) or _finite(value)}
        line |= speed
        if "loss" in logs:
            line["checkpoint_stall_s"] = round(self._take_stall_s(), 4)
        line |= {"time_s": round(elapsed_s, 3), "remaining_s": round(remaining_s, 1), "at": time.time()}
        self._metrics.append(line)
        self._told |= {name: value for name in _EXPORTED if isinstance(value := line.get(name), int | float)}
        self.tell()


def _finite(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)
