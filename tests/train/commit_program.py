"""Two ranks commit two checkpoints; for the first one the store is silent when rank 0 asks, and only it asks.

python -m tests.train.commit_program STORE PORT      # in the train environment
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch.distributed as dist

from runtime.core.errors import Unreachable
from storage.store import open_store
from train_jobs.engine.committing import commit_checkpoint
from train_jobs.engine.faults import Fault
from train_jobs.engine.orders import new_host_group


def main() -> None:
    """Both ranks, one of them in this process."""
    store, port = sys.argv[1:]
    rank = 1 if os.fork() == 0 else 0
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": str(rank), "WORLD_SIZE": "2"}
    dist.init_process_group("gloo")
    group = new_host_group()
    run = open_store(store).run("outage")

    def silent() -> None:
        raise Unreachable("the store does not answer")

    for step, before in ((10, silent if rank == 0 else None), (20, None)):
        folder = Path(store) / "scratch" / f"rank-{rank}" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / f"shard-{rank}").write_text(f"{step} of rank {rank}")
        try:
            commit_checkpoint(
                run, step, folder, group=group, metrics={}, before=before, check_owner=lambda: None
            )
        except Fault as fault:
            # In one write: two processes share the pipe.
            os.write(1, f"rank {rank} step {step}: {type(fault).__name__}\n".encode())
    dist.barrier()
    if rank == 0:
        os.wait()


if __name__ == "__main__":
    main()
