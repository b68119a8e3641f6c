"""Commits checkpoints of all ranks, each as one: every rank sends its own files, the manifest comes last."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from runtime.core.errors import Conflict, StorageError
from runtime.core.log import get_logger
from storage.commit import finished, now, upload, write_manifest
from storage.location import locate
from storage.manifest import CheckpointManifest, FileEntry, entries_of
from storage.metrics_log import MetricsLog
from storage.runs import Checkpoint, RunFolder
from train_jobs.engine.faults import Unavailable
from train_jobs.engine.orders import Orders, gathered, new_host_group, together
from train_jobs.plan import TrainPlan

_log = get_logger(__name__)


class Committer:
    """Commits one checkpoint at a time, in a thread. All ranks call its methods in the same order."""

    def __init__(self, run: RunFolder, plan: TrainPlan, orders: Orders, metrics: MetricsLog | None) -> None:
        self._run, self._orders, self._metrics = run, orders, metrics
        self._policy = _policy(plan)
        self._is_first = not dist.is_initialized() or dist.get_rank() == 0
        # Its own group: collectives of the training go on meanwhile.
        self._group = new_host_group()
        self._thread: threading.Thread | None = None
        self._fault: BaseException | None = None
        self.committed_at = 0.0
        """When the last commit was done, in seconds since 1970; 0: none was."""

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
            commit_checkpoint(
                self._run,
                step,
                folder,
                group=self._group,
                metrics={name: value for name, value in logged.items() if name != "step"},
                # A run that goes on from here finds every step until here.
                before=self._metrics.flush if self._metrics else None,
                check_owner=self._orders.check_owner,
            )
            self.committed_at = time.time()
            if self._is_first:
                self._prune()
        except Unavailable as error:
            # On all ranks alike. The store may be back for the next one; to fail now would lose more.
            _log.warning("the checkpoint of step %d was not committed: %s", step, error)
        except BaseException as error:  # raised again in the training thread
            self._fault = error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _prune(self) -> None:
        last, best, metric, greater = self._policy
        try:
            self._run.keep_checkpoints(last, best, metric=metric, greater_is_better=greater)
        except StorageError as error:
            # They go with the next one.
            _log.warning("old checkpoints were not removed: %s", error)


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
    before: Callable[[], None] | None,
    check_owner: Callable[[], None],
) -> None:
    """Commit what all ranks wrote for ``step``; each file leaves once, from the lowest rank that has it.

    Called by all ranks. Raises the same on all of them when one fails, so that none waits for ever.

    Args:
        before: What this rank has to do first.
        check_owner: Raises where the run is another driver's by now.
    """
    rank = dist.get_rank() if group is not None else 0

    def listed() -> list[FileEntry]:
        if before:
            before()
        return entries_of(folder)

    by_rank = gathered(together(listed, group), group)
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
