"""A worker's share: told on its node, and kept to before the first byte of the model is there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import ray
import torch

from cluster.estimator.calibration import calibration
from cluster.shares.cards import own_cards
from cluster.shares.holding import folder_of, told
from cluster.shares.memory_cap import cap_memory
from train_jobs.plan import TrainPlan


@contextmanager
def share(plan: TrainPlan, *, rank: int) -> Iterator[None]:
    """Hold this worker's share for as long as the context lasts.

    On a GPU of which it has a fraction, PyTorch takes no more than that. Without a GPU the kernel sees to it
    that the process takes no more than it was promised, where the spec says how much that is.
    """
    _keep_to(plan)
    context = ray.get_runtime_context()
    node_id = context.get_node_id()
    session = ray._private.worker._global_node.get_session_dir_path()
    wanted = plan.resources_per_worker
    with told(
        folder_of(session, node_id),
        holder=str(plan.run_id),
        worker=f"rank {rank}",
        kind="train",
        node_id=node_id,
        cards=own_cards(),
        fraction=wanted.get("GPU", 0.0),
        cpus=wanted.get("CPU", 0.0),
        memory_bytes=int(wanted.get("memory", 0)),
        promised_bytes=plan.promised_bytes,
        on="card" if plan.use_gpu else "host",
    ):
        yield


def _keep_to(plan: TrainPlan) -> None:
    fraction = plan.resources_per_worker.get("GPU", 0.0)
    if plan.use_gpu and 0 < fraction < 1 and torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        # PyTorch counts what it allocates; the context beside it is part of the share, too.
        context = calibration(torch.cuda.get_device_name(0)).train_process_bytes
        torch.cuda.set_per_process_memory_fraction(max(0.01, fraction - context / total))
    elif plan.caps_memory and plan.promised_bytes is not None:
        cap_memory(plan.promised_bytes)
