"""Checkpoints of all ranks, committed as one while training goes on: each rank sends its own files, the
manifest comes last.
"""

from __future__ import annotations

import math
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from runtime.core.errors import Conflict, Unreachable
from runtime.core.log import get_logger
from storage.cache import cached, wanted_of
from storage.commit import finished, now, upload, write_manifest
from storage.location import locate
from storage.manifest import CheckpointManifest, FileEntry, entries_of
from storage.metrics_log import MetricsLog
from storage.runs import Checkpoint, RunFolder
from train_jobs.engine.orders import Left, Orders, gathered, together
from train_jobs.plan import TrainPlan

_log = get_logger(__name__)


class CheckpointCallback(TrainerCallback):
    """Takes every checkpoint that the trainer writes, and commits it to the run's folder in the background.

    Args:
        leaving: A folder on the file system of the trainer's output: checkpoints wait there for the store.
    """

    def __init__(
        self, plan: TrainPlan, run: RunFolder, leaving: Path, orders: Orders, metrics: MetricsLog | None
    ) -> None:
        self._run, self._leaving, self._orders = run, leaving, orders
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

    def finish(self) -> None:
        """Return when the last checkpoint is committed; raises what the committing failed of."""
        self._committer.wait()

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
        if self._stop:
            self._committer.wait()
            raise Left(step, self._stop)
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
        best = next(c for c in self._run.checkpoints() if c.manifest.step == state.best_global_step)
        folder = Path(str(args.output_dir)) / f"checkpoint-{best.manifest.step}"
        wanted = wanted_of(best.manifest.files, best.place / best.manifest.prefix)
        with cached(wanted, label=f"{self._run.run_id} step {best.manifest.step}") as found:
            shutil.copytree(found, folder, dirs_exist_ok=True)
        state.best_model_checkpoint = str(folder)


class Committer:
    """Commits one checkpoint at a time, in a thread. All ranks call its methods in the same order."""

    def __init__(self, run: RunFolder, plan: TrainPlan, orders: Orders, metrics: MetricsLog | None) -> None:
        self._run, self._orders, self._metrics = run, orders, metrics
        self._policy = _policy(plan)
        self._is_first = not dist.is_initialized() or dist.get_rank() == 0
        # Its own group: collectives of the training go on meanwhile.
        several = dist.is_initialized() and dist.get_world_size() > 1
        self._group = dist.new_group(backend="gloo") if several else None
        self._thread: threading.Thread | None = None
        self._fault: BaseException | None = None

    @property
    def busy(self) -> bool:
        """Whether the last checkpoint is still on its way."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, step: int, folder: Path, logged: dict[str, float]) -> None:
        """Commit ``folder`` as the checkpoint of ``step``; it is removed when that is done."""
        self._thread = threading.Thread(
            target=self._commit, args=(step, folder, logged), name=f"checkpoint-{step}", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Return when nothing is on its way; raises what it failed of."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.raise_if_failed()

    def raise_if_failed(self) -> None:
        """Raise what the last commit failed of, if it has failed."""
        if self._fault is not None:
            raise self._fault

    def _commit(self, step: int, folder: Path, logged: dict[str, float]) -> None:
        try:
            if self._metrics:
                # A run that goes on from here finds every step until here.
                self._metrics.flush()
            commit_checkpoint(
                self._run,
                step,
                folder,
                group=self._group,
                metrics={name: value for name, value in logged.items() if name != "step"},
                check_owner=self._orders.check_owner,
            )
            if self._is_first:
                self._prune()
        except Unreachable as error:
            # The store may be back for the next one; a run that fails now would lose more.
            _log.warning("the checkpoint of step %d was not committed: %s", step, error)
        except BaseException as error:  # raised again in the training thread
            self._fault = error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _prune(self) -> None:
        last, best, metric, greater = self._policy
        self._run.keep_checkpoints(last, best, metric=metric, greater_is_better=greater)


def _policy(plan: TrainPlan) -> tuple[int | None, int | None, str, bool]:
    """What ``keep_checkpoints`` takes: ``last``, ``best``, ``metric``, ``greater_is_better``."""
    given, arguments = plan.checkpoints, plan.llamafactory
    evaluates = arguments.get("eval_strategy", "no") != "no"
    metric = arguments.get("metric_for_best_model") or ("eval_loss" if evaluates else "loss")
    if evaluates and not metric.startswith("eval_") and metric != "loss":
        metric = f"eval_{metric}"
    if evaluates and metric == "loss":
        metric = "eval_loss"
    # As transformers decides where nothing is said.
    greater = arguments.get("greater_is_better")
    greater = not metric.endswith("loss") if greater is None else bool(greater)
    best = given.keep_best or (1 if arguments.get("load_best_model_at_end") else None)
    return given.keep_last or arguments.get("save_total_limit"), best, metric, greater


def commit_checkpoint(
    run: RunFolder,
    step: int,
    folder: Path,
    *,
    group: Any,
    metrics: dict[str, float],
    check_owner: Callable[[], None],
) -> None:
    """Commit what all ranks wrote for ``step``; each file leaves once, from the lowest rank that has it.

    Called by all ranks. Raises on all of them when one fails, so that none waits for ever.
    """
    rank = dist.get_rank() if group is not None else 0
    by_rank = gathered(entries_of(folder), group)
    owner: dict[str, tuple[int, FileEntry]] = {}
    for number, entries in enumerate(by_rank):
        for entry in entries:
            owner.setdefault(entry.path, (number, entry))
    draft = CheckpointManifest(created_at=now(), step=step, num_workers=len(by_rank), metrics=metrics)
    manifest = finished(draft, [entry for _, entry in owner.values()])
    place = run.checkpoint_place(step)
    mine = [(entry, locate(str(folder / entry.path))) for number, entry in owner.values() if number == rank]

    def make_visible() -> None:
        check_owner()
        try:
            write_manifest(manifest, place)
        except Conflict:
            # A worker of an attempt that was lost was still at it: its checkpoint of this run stands.
            _log.warning("%s was committed already", place)

    together(lambda: upload(mine, place / manifest.prefix, give_away=True), group)
    together(lambda: make_visible() if rank == 0 else None, group)


def last_checkpoint(run: RunFolder) -> Checkpoint | None:
    """The newest committed checkpoint."""
    found = run.checkpoints()
    return found[-1] if found else None
