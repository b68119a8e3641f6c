"""What becomes of the trainer's checkpoints: taken out of its way, and committed while training goes on."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from runtime.core.log import get_logger
from storage.metrics_log import MetricsLog
from storage.runs import Checkpoint, RunFolder
from train_jobs.engine.committing import Committer, last_checkpoint
from train_jobs.engine.orders import Left, Orders
from train_jobs.plan import TrainPlan

_log = get_logger(__name__)


class CheckpointCallback(TrainerCallback):
    """Takes every checkpoint that the trainer writes, and commits it to the run's folder in the background.

    Args:
        leaving: A folder on the file system of the trainer's output: checkpoints wait there for the store.
        bring: Makes a folder of this node of a committed checkpoint, in the form that the engine can load.
    """

    def __init__(
        self,
        plan: TrainPlan,
        run: RunFolder,
        leaving: Path,
        orders: Orders,
        metrics: MetricsLog | None,
        bring: Callable[[Checkpoint], Path],
    ) -> None:
        self._run, self._leaving, self._orders, self._bring = run, leaving, orders, bring
        self._when_busy = plan.checkpoints.when_busy
        self._committer = Committer(run, plan, orders, metrics)
        self._stop: Any = None
        self._logged: dict[str, float] = {}
        self._began_s = 0.0
        self._stall_s = 0.0

    def take_stall_s(self) -> float:
        """Seconds that saves have blocked training since the last call."""
        stall_s, self._stall_s = self._stall_s, 0.0
        return stall_s

    def committed_at(self) -> float:
        """When this attempt last committed a checkpoint, in seconds since 1970; 0: not yet."""
        return self._committer.committed_at

    def finish(self) -> None:
        """Return when the last checkpoint is committed; raises what the committing failed of."""
        self._committer.wait()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step >= state.max_steps:
            # Nothing is left to train, and the trainer goes straight to the best one.
            self._bring_best(args, state)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        found = {
            name: value
            for name, value in (logs or {}).items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        self._logged = (self._logged if self._logged.get("step") == state.global_step else {}) | found
        self._logged["step"] = state.global_step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._committer.raise_if_failed()
        self._stop = self._orders.at_step_end()
        if self._stop:
            control.should_save = True
        self._before_save(control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._before_save(control)
        if control.should_training_stop and not control.should_save:
            self._bring_best(args, state)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Evaluation comes between a step's end and its save, and is no stall of the save.
        self._began_s = time.monotonic()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        step = state.global_step
        folder = Path(str(args.output_dir)) / f"checkpoint-{step}"
        # A rank that wrote nothing takes part all the same.
        folder.mkdir(exist_ok=True)
        self._committer.wait()
        leaving = self._leaving / folder.name
        shutil.rmtree(leaving, ignore_errors=True)
        folder.rename(leaving)
        self._committer.start(step, leaving, self._logged)
        # A stop at the very last step changes nothing: the training is done.
        if self._stop and step < state.max_steps:
            self._committer.wait()
            kept = last_checkpoint(self._run)
            raise Left(kept.manifest.step if kept else 0, self._stop)
        if control.should_training_stop or step >= state.max_steps:
            self._bring_best(args, state)
        self._stall_s += time.monotonic() - self._began_s

    def _before_save(self, control: TrainerControl) -> None:
        self._began_s = time.monotonic()
        if not control.should_save:
            return
        if self._when_busy == "skip" and not self._stop and self._orders.any_rank(self._committer.busy):
            control.should_save = False
            return
        # A logged loss is a mean since the last log: logged with the save, it is the same in a run that goes
        # on from here. And what is no number shows before it is saved.
        control.should_log = True

    def _bring_best(self, args: TrainingArguments, state: TrainerState) -> None:
        """Put the best checkpoint, with the files of all ranks, where the trainer will look for it."""
        if not args.load_best_model_at_end or not state.best_global_step:
            return
        self._committer.wait()
        best = next((c for c in self._run.checkpoints() if c.manifest.step == state.best_global_step), None)
        if best is None:
            _log.warning(
                "the best checkpoint, of step %d, was not kept: the last weights are handed in instead",
                state.best_global_step,
            )
            state.best_model_checkpoint = None
            return
        state.best_model_checkpoint = str(self._bring(best))
