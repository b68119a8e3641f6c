"""A checkpoint of all ranks, committed as one: each rank sends its own files, the manifest comes last."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.train
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from storage.commit import finished, now, upload, write_manifest
from storage.location import locate
from storage.manifest import CheckpointManifest, FileEntry, entries_of
from storage.metrics_log import MetricsLog
from storage.runs import RunFolder


class CheckpointCallback(TrainerCallback):
    """Commits every checkpoint that the trainer writes to the run's folder in the store."""

    def __init__(self, run: RunFolder, metrics: MetricsLog | None) -> None:
        self._run = run
        self._metrics = metrics

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        # A rank that wrote nothing takes part all the same.
        folder.mkdir(exist_ok=True)
        if self._metrics:
            # A run that goes on from here finds every step until here.
            self._metrics.flush()
        commit_checkpoint(self._run, state.global_step, folder)
        if not args.load_best_model_at_end:
            shutil.rmtree(folder)
        if state.is_world_process_zero and args.save_total_limit:
            self._run.keep_checkpoints(args.save_total_limit)


def commit_checkpoint(run: RunFolder, step: int, folder: Path) -> None:
    """Commit what all ranks wrote for ``step``; each file leaves once, from the lowest rank that has it.

    Called by all ranks. Raises on all of them when one fails, so that none waits for ever.
    """
    context = ray.train.get_context()
    rank = context.get_world_rank()
    by_rank = _gathered(entries_of(folder))
    owner: dict[str, tuple[int, FileEntry]] = {}
    for number, entries in enumerate(by_rank):
        for entry in entries:
            owner.setdefault(entry.path, (number, entry))
    draft = CheckpointManifest(created_at=now(), step=step, num_workers=context.get_world_size())
    manifest = finished(draft, [entry for _, entry in owner.values()])
    place = run.checkpoint_place(step)
    mine = [(entry, locate(str(folder / entry.path))) for number, entry in owner.values() if number == rank]
    _together(lambda: upload(mine, place / manifest.prefix))
    _together(lambda: write_manifest(manifest, place) if rank == 0 else None)


def _together(action: Callable[[], None]) -> None:
    """Run ``action`` on every rank; when it fails on one, it has failed on all."""
    fault: Exception | None = None
    try:
        action()
    except Exception as error:  # whatever it is: the others wait, and must be told
        fault = error
    faults = [found for found in _gathered(fault) if found is not None]
    if faults:
        raise fault or faults[0]


def _gathered(mine: Any) -> list[Any]:
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [mine]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    return found
