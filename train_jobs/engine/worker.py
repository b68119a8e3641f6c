"""What one Ray Train worker does: LLaMA-Factory's own training, with its result left in the run's folder."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import deepspeed
import ray.train
from llamafactory.train.tuner import run_exp
from transformers import TrainerCallback

from runtime.core.config import load_spec
from runtime.core.errors import StorageError
from runtime.core.places import cache_root
from storage.cache import cached, wanted_of
from storage.commit import commit_folder, now, remove_committed
from storage.datasets import Dataset
from storage.location import locate
from storage.manifest import OutputManifest
from storage.models import ModelVersion
from storage.runs import RunFolder, run_at
from storage.store import Store, open_store
from train_jobs.engine.callbacks import MetricsCallback
from train_jobs.engine.checkpoints import CheckpointCallback
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
    """Train as the plan says, and publish. Runs in every worker; raises what LLaMA-Factory raises.

    Args:
        config: ``{"plan": <TrainPlan as JSON>}``.
    """
    plan = load_spec(TrainPlan, json.loads(config["plan"]))
    run = run_at(locate(str(plan.run_uri)))
    store = open_store(plan.store_uri)
    rank = ray.train.get_context().get_world_rank()
    # LLaMA-Factory's launcher and its reading of USE_RAY would start a Ray job inside this one.
    os.environ.pop("USE_RAY", None)
    if plan.deepspeed is not None:
        _init_deepspeed(use_gpu=plan.use_gpu)
    with ExitStack() as stack:
        scratch = stack.enter_context(_scratch(run.run_id, rank))
        metrics = stack.enter_context(closing(run.metrics_log())) if rank == 0 else None
        callbacks: list[TrainerCallback] = [MetricsCallback(metrics)] if metrics else []
        callbacks.append(CheckpointCallback(run, metrics))
        run_exp(_arguments(plan, store, run, scratch, stack), callbacks)
        if rank == 0:
            hand_in(plan, store, run, model_only(scratch / "output", scratch / "model"))


def _arguments(
    plan: TrainPlan, store: Store, run: RunFolder, scratch: Path, stack: ExitStack
) -> dict[str, Any]:
    """The plan's arguments with the paths of this node; what they name stays until ``stack`` ends."""

    def fetched(model: ModelVersion) -> str:
        return str(stack.enter_context(model.fetch()).path)

    dataset_dir = scratch / "datasets"
    dataset_dir.mkdir()
    info = {name: _located(entry, store.dataset(name), stack) for name, entry in plan.dataset_info.items()}
    (dataset_dir / "dataset_info.json").write_text(json.dumps(info))
    adapters = [fetched(store.model(ref)) for ref in plan.adapters]
    return (
        plan.llamafactory
        | ({"adapter_name_or_path": ",".join(adapters)} if adapters else {})
        | {
            "model_name_or_path": fetched(store.model(plan.base)),
            # Every rank its own: each sends the files that it wrote itself.
            "output_dir": str(scratch / "output"),
            "dataset_dir": str(dataset_dir),
            "deepspeed": plan.deepspeed,
            "resume_from_checkpoint": _last_checkpoint(run, stack),
        }
    )


def _located(entry: dict[str, Any], dataset: Dataset, stack: ExitStack) -> dict[str, Any]:
    folder = stack.enter_context(dataset.fetch()).path
    # LLaMA-Factory joins dataset_dir and file_name; an absolute name stays what it is.
    return entry | {"file_name": str(folder / entry["file_name"])}


def _last_checkpoint(run: RunFolder, stack: ExitStack) -> str | None:
    """The run's last committed checkpoint as a folder of this node, or None at the first attempt."""
    checkpoints = run.checkpoints()
    if not checkpoints:
        return None
    manifest, place = checkpoints[-1].manifest, checkpoints[-1].place
    wanted = wanted_of(manifest.files, place / manifest.prefix)
    return str(stack.enter_context(cached(wanted, label=f"{run.run_id} step {manifest.step}")))


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


def hand_in(plan: TrainPlan, store: Store, run: RunFolder, folder: Path) -> None:
    """Publish the model, or keep it with the run where the spec publishes nothing; say which in the run.

    Raises:
        StorageError: the store takes neither. The model stays on this node, and the message says where.
    """
    try:
        run.write_output(_published(plan, store, run, folder))
    except StorageError as error:
        kept = cache_root() / "unpublished" / run.run_id
        shutil.copytree(folder, kept, dirs_exist_ok=True)
        raise type(error)(f"{error} The trained model is kept in {kept} on {socket.gethostname()}.") from None


def _published(plan: TrainPlan, store: Store, run: RunFolder, folder: Path) -> dict[str, Any]:
    if plan.publish is None:
        place = run.place / "output"
        # Of an earlier attempt of this very run.
        remove_committed(place)
        commit_folder(folder, place, OutputManifest(created_at=now()))
        return {"model": None}
    last = (run.metrics() or [{}])[-1]
    version = store.publish_model(
        folder,
        plan.publish.name,
        kind=plan.kind,
        base=plan.base,
        base_revision=plan.base_revision,
        template=plan.template,
        run=plan.run_id,
        version=plan.publish.version,
        llamafactory=plan.llamafactory,
        metrics={key: value for key, value in last.items() if isinstance(value, int | float)},
    )
    return {"model": version.ref}


def model_only(source: Path, target: Path) -> Path:
    """A folder of the model's files, and only those, that can be served as it is. Hard links, no copies."""
    target.mkdir()
    found = {file for pattern in MODEL_FILES for file in source.glob(pattern)}
    for file in sorted(found):
        if file.name not in _NOT_MODEL_FILES:
            (target / file.name).hardlink_to(file)
    return target
