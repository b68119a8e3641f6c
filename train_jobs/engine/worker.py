"""What one Ray Train worker does: LLaMA-Factory's own training, with its result left in the run's folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import deepspeed
import ray.train
from llamafactory.train.tuner import run_exp

from runtime.core.config import load_spec
from storage.runs import RunFolder
from train_jobs.engine.callbacks import CheckpointCallback, MetricsCallback
from train_jobs.plan import TrainPlan

MODEL_FILES = (
    "*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.model", "*.tiktoken",
    "config.json", "generation_config.json", "adapter_config.json", "tokenizer*.json", "vocab.json",
    "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*",
    "*preprocessor_config.json", "processor_config.json", "*.py",
)  # fmt: skip
"""What of the trainer's output is the model. Not: ``training_args.bin``, its own logs, plots and states."""

_NOT_MODEL_FILES = {"training_args.bin", "optimizer.bin", "scheduler.bin"}


def train_loop(config: dict[str, Any]) -> None:
    """Train as the plan says. Runs in every worker; raises what LLaMA-Factory raises.

    Args:
        config: ``{"plan": <TrainPlan as JSON>}``.
    """
    plan = load_spec(TrainPlan, json.loads(config["plan"]))
    run = RunFolder(run_id=str(plan.run_id), path=Path(str(plan.run_uri)))
    rank = ray.train.get_context().get_world_rank()
    # LLaMA-Factory's launcher and its reading of USE_RAY would start a Ray job inside this one.
    os.environ.pop("USE_RAY", None)
    if plan.deepspeed is not None:
        _init_deepspeed(use_gpu=plan.use_gpu)
    with _scratch(run.run_id, rank) as scratch, _checkpoint() as checkpoint:
        run_exp(_arguments(plan, scratch, checkpoint), [MetricsCallback(run), CheckpointCallback()])
        if rank == 0:
            copy_model(scratch / "output", run.path / "output")


def _arguments(plan: TrainPlan, scratch: Path, checkpoint: Path | None) -> dict[str, Any]:
    """The plan's arguments with those that differ by rank and attempt."""
    dataset_dir = scratch / "datasets"
    dataset_dir.mkdir()
    (dataset_dir / "dataset_info.json").write_text(json.dumps(plan.dataset_info))
    return plan.llamafactory | {
        # Every rank its own: Ray merges what the ranks wrote into one checkpoint, so each sends its own part.
        "output_dir": str(scratch / "output"),
        "dataset_dir": str(dataset_dir),
        "deepspeed": plan.deepspeed,
        "resume_from_checkpoint": str(checkpoint) if checkpoint else None,
    }


def _init_deepspeed(*, use_gpu: bool) -> None:
    if not use_gpu:
        # DeepSpeed would compile its shared-memory collectives here, for 40 to 170 s. Plain gloo gives the
        # same losses and needs no compiler.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # Without this call ZeRO-3 takes the world for one process ("train_batch_size is not equal to ...").
    deepspeed.init_distributed(dist_backend="nccl" if use_gpu else "gloo", auto_mpi_discovery=False)


@contextmanager
def _scratch(run_id: str, rank: int) -> Iterator[Path]:
    """A folder on this node for one rank, gone afterwards; what a killed attempt left is removed first."""
    # Ray Train starts a worker in a folder of the Ray session: what a kill leaves goes with the session.
    folder = Path.cwd() / run_id / f"rank-{rank}"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "output").mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # another rank of this node is still at work
            folder.parent.rmdir()


@contextmanager
def _checkpoint() -> Iterator[Path | None]:
    """The run's last committed checkpoint as a folder, or None at the first attempt."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        yield None
        return
    with checkpoint.as_directory() as folder:
        yield Path(folder)


def copy_model(source: Path, target: Path) -> None:
    """Copy the model's files, and only those, so that ``target`` can be served as it is."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    found = {file for pattern in MODEL_FILES for file in source.glob(pattern)}
    for file in sorted(found):
        if file.name not in _NOT_MODEL_FILES:
            shutil.copy2(file, target / file.name)
