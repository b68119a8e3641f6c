"""What one Ray Train worker does: LLaMA-Factory's own training, with its result left in the run's folder."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import ray
import torch.distributed as dist
from llamafactory.train.tuner import run_exp
from transformers import TrainerCallback

from cluster.monitoring.store_metrics import StoreMetrics
from runtime.core.config import load_spec
from runtime.core.errors import StorageError
from runtime.core.log import get_logger
from storage.datasets import Dataset
from storage.location import locate
from storage.models import ModelVersion
from storage.runs import RunFolder, run_at
from storage.store import Store, open_store
from train_jobs.elastic import accumulation_for
from train_jobs.engine.callbacks import MetricsCallback, NanCallback
from train_jobs.engine.checkpoints import CheckpointCallback
from train_jobs.engine.faults import NanLoss, classified
from train_jobs.engine.handing_in import hand_in
from train_jobs.engine.ops import ensure_ops
from train_jobs.engine.orders import Left, Orders, listen_for_sigterm
from train_jobs.engine.resuming import Resuming
from train_jobs.engine.saving import mend_saving
from train_jobs.engine.share import share
from train_jobs.engine.telling import telling
from train_jobs.engine.tensorboard import tensorboard_files
from train_jobs.engine.universal import mend_engines
from train_jobs.plan import TrainPlan

_log = get_logger(__name__)


@dataclass(frozen=True)
class Attempt:
    """What the driver says of this attempt."""

    number: int
    """From 1 on."""
    driver: str
    """The random mark of the driver whose attempt it is."""
    failed_at: float | None
    """When the attempt before was lost, in seconds since 1970; None where none was."""


_NICENESS = 15
"""What Ray makes its workers by default."""


def train_loop(config: dict[str, Any]) -> dict[str, Any]:
    """Train as the plan says, and publish. Runs in every worker.

    Args:
        config: ``{"plan": <TrainPlan as JSON>, "attempt": <fields of Attempt>}``.

    Returns:
        ``{"ended": "succeeded"}``, or ``stopped``, ``preempted``, ``resized`` with ``reason`` and ``step``: a
        checkpoint of that step is committed.

    Raises:
        Fault: what it failed of, in one line.
    """
    try:
        _give_way()
        listen_for_sigterm()
        plan = load_spec(TrainPlan, json.loads(config["plan"]))
        node = ray.get_runtime_context().get_node_id()
        with share(plan, rank=dist.get_rank()):
            return train(plan, Attempt(**config["attempt"]), node=node)
    except Left as left:
        return {"ended": left.stop.ended, "reason": left.stop.reason, "step": left.step}
    except Exception as error:
        raise classified(error) from error


def _give_way() -> None:
    """Where training and a replica want the same core, the replica gets it: somebody waits for its answer."""
    os.nice(max(0, _NICENESS - os.nice(0)))


def train(plan: TrainPlan, attempt: Attempt, *, node: str) -> dict[str, Any]:
    """One rank's part, in a process group that exists. Knows nothing of Ray Train.

    Args:
        node: Which node this is: the ranks of one node share what is converted there.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    # `tandem logs --rank` finds a rank's lines by its process.
    print(f"rank {rank} of {world_size}: pid {os.getpid()} on {socket.gethostname()}", flush=True)
    run = run_at(locate(str(plan.run_uri)))
    store = open_store(plan.store_uri)
    # LLaMA-Factory's launcher and its reading of USE_RAY would start a Ray job inside this one.
    os.environ.pop("USE_RAY", None)
    if not plan.use_gpu:
        # Ray Train names a GPU here to a worker that holds a logical one.
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    mend_engines()
    mend_saving()
    if plan.deepspeed is not None:
        _init_deepspeed(plan)
    with ExitStack() as stack:
        scratch = stack.enter_context(_scratch(run.run_id, attempt, rank))
        orders = stack.enter_context(closing(Orders(run, attempt.driver, rank=rank)))
        metrics = stack.enter_context(closing(run.metrics_log())) if rank == 0 else None
        resuming = Resuming(plan, run, scratch.parent, orders, stack, node)
        checkpoints = CheckpointCallback(plan, run, scratch / "leaving", orders, metrics, resuming.bring)
        callbacks: list[TrainerCallback] = [NanCallback(), checkpoints]
        stack.enter_context(telling(StoreMetrics().tell))
        if metrics:
            logged = MetricsCallback(
                metrics,
                run.run_id,
                world_size=world_size,
                take_stall_s=checkpoints.take_stall_s,
                committed_at=checkpoints.committed_at,
                on_first_step=_FirstStep(run, attempt),
            )
            callbacks.append(logged)
            stack.enter_context(telling(logged.tell))
        arguments = _arguments(plan, store, scratch, stack, resuming)
        if rank == 0:
            stack.enter_context(tensorboard_files(plan, run, scratch, attempt.number))
        try:
            run_exp(dict(arguments), callbacks)
        except NanLoss:
            # Seen by all ranks at the same step. The checkpoint before it may still be on its way.
            checkpoints.finish()
            raise
        orders.settle()
        checkpoints.finish()
        if rank == 0:
            orders.check_owner()
            hand_in(plan, store, run, arguments, scratch / "output", scratch)
    return {"ended": "succeeded"}


class _FirstStep:
    """Says in the run when this attempt's first step was done, and how long the recovery took."""

    def __init__(self, run: RunFolder, attempt: Attempt) -> None:
        self._run, self._attempt = run, attempt

    def __call__(self) -> None:
        now_s = time.time()
        said = {"first_step_at": now_s}
        if self._attempt.failed_at is not None:
            said["recovery_s"] = round(now_s - self._attempt.failed_at, 2)
        try:
            self._run.write_attempt(self._attempt.number, "first-step", **said)
        except StorageError as error:
            # Worth no attempt: training goes on while the store is away.
            _log.warning("the first step was not noted: %s", error)


def _arguments(
    plan: TrainPlan, store: Store, scratch: Path, stack: ExitStack, resuming: Resuming
) -> dict[str, Any]:
    """The plan's arguments with the paths of this node; what they name stays until ``stack`` ends."""

    def fetched(model: ModelVersion) -> str:
        return str(stack.enter_context(model.fetch()).path)

    dataset_dir = scratch / "datasets"
    dataset_dir.mkdir()
    info = {name: _located(entry, store.dataset(name), stack) for name, entry in plan.dataset_info.items()}
    (dataset_dir / "dataset_info.json").write_text(json.dumps(info))
    named = {name: ",".join(fetched(store.model(ref)) for ref in refs) for name, refs in plan.models.items()}
    return (
        plan.llamafactory
        | named
        | {
            "model_name_or_path": fetched(store.model(plan.base)),
            # Every rank its own: each sends the files that it wrote itself.
            "output_dir": str(scratch / "output"),
            "dataset_dir": str(dataset_dir),
            "gradient_accumulation_steps": accumulation_for(plan, dist.get_world_size()),
        }
        | resuming.arguments()
    )


def _located(entry: dict[str, Any], dataset: Dataset, stack: ExitStack) -> dict[str, Any]:
    folder = stack.enter_context(dataset.fetch()).path
    # LLaMA-Factory joins dataset_dir and file_name; an absolute name stays what it is.
    return entry | {"file_name": str(folder / entry["file_name"])}


def _init_deepspeed(plan: TrainPlan) -> None:
    if not plan.use_gpu:
        # DeepSpeed would compile its shared-memory collectives here, for 40 to 170 s. Plain gloo gives the
        # same losses and needs no compiler.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    ensure_ops(plan.deepspeed or {}, use_gpu=plan.use_gpu)
    # Without this call ZeRO-3 takes the world for one process ("train_batch_size is not equal to ...").
    deepspeed.init_distributed(dist_backend="nccl" if plan.use_gpu else "gloo", auto_mpi_discovery=False)


@contextmanager
def _scratch(run_id: str, attempt: Attempt, rank: int) -> Iterator[Path]:
    """A folder on this node for one rank, gone afterwards; what a killed attempt left is removed first."""
    # Ray Train starts a worker in a folder of the Ray session: what a kill leaves goes with the session. Each
    # driver has its own: the workers of one that was superseded clean up while the next ones work.
    mine = Path.cwd() / run_id / f"{attempt.driver}-{attempt.number:04d}"
    for earlier in mine.parent.glob(f"{attempt.driver}-*"):
        if earlier != mine:
            shutil.rmtree(earlier, ignore_errors=True)
    folder = mine / f"rank-{rank}"
    for name in ("output", "leaving"):
        (folder / name).mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # another rank of this node is still at work
            mine.rmdir()
            mine.parent.rmdir()
