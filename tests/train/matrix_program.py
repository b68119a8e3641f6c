"""Runs train plans for tests without Ray: imports the engine once, then forks the ranks of every training.

    python -m tests.train.matrix_program FD      # in the train environment; tests.train.forked starts it

A line of JSON on stdin is a task: ``plan`` (a TrainPlan as JSON), ``num_workers``, ``folder`` (an empty one,
for logs) and ``timeout_s``. A line of JSON on the file descriptor FD is its outcome: ``faults``, one a rank,
None where there was none.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch.distributed as dist

from runtime.core.config import load_spec
from train_jobs.engine import worker
from train_jobs.plan import TrainPlan

_GRACE_S = 10.0
"""How long the other ranks may go on once one has failed: they may say why themselves."""


def main() -> None:
    """Work until stdin ends."""
    outcomes = os.fdopen(int(sys.argv[1]), "w")
    print(json.dumps({"ready": os.getpid()}), file=outcomes, flush=True)
    for line in sys.stdin:
        print(json.dumps(_outcome(json.loads(line))), file=outcomes, flush=True)


def _outcome(task: dict[str, Any]) -> dict[str, Any]:
    folder, num_workers = Path(task["folder"]), int(task["num_workers"])
    port = _free_port()
    ranks = {_forked(rank, num_workers, port, task["plan"], folder): rank for rank in range(num_workers)}
    killed = _wait(set(ranks), task["timeout_s"])
    said = [_said(folder / f"rank-{rank}.json") for rank in range(num_workers)]
    for pid in killed:
        said[ranks[pid]]["fault"] = f"killed: not at its end within {task['timeout_s']} s, or after another's"
    return {"faults": [one.get("fault") for one in said]}


def _said(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.exists() else {"fault": "the process died"}


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _wait(running: set[int], timeout_s: float) -> set[int]:
    """Return when all have ended; those that had to be killed."""
    deadline = time.monotonic() + timeout_s
    while running and time.monotonic() < deadline:
        for pid in list(running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                running.discard(pid)
                if status:
                    deadline = min(deadline, time.monotonic() + _GRACE_S)
        time.sleep(0.02)
    for pid in running:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return running


def _forked(rank: int, num_workers: int, port: int, plan: str, folder: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        code = _be_rank(rank, num_workers, port, plan, folder)
    finally:
        # Not sys.exit: what the parent registered for its own end is not this process's to run.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _be_rank(rank: int, num_workers: int, port: int, plan: str, folder: Path) -> int:
    """What Ray Train does for a worker, then the engine's own code."""
    log = os.open(folder / f"rank-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(folder)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_workers),
        "LOCAL_WORLD_SIZE": str(num_workers),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    said: dict[str, Any] = {}
    try:
        dist.init_process_group("gloo")
        # LLaMA-Factory ends the group after training unless Ray is initialized, as it is in a worker; the
        # last checkpoint is committed after that.
        dist.destroy_process_group = lambda *args, **kwargs: None
        attempt = worker.Attempt(number=1, driver="tests", failed_at=None)
        said = worker.train(load_spec(TrainPlan, json.loads(plan)), attempt, node="here")
    except BaseException as error:  # whatever it is: the test is told
        traceback.print_exc()
        said = {"fault": f"{type(error).__name__}: {error}"}
    (folder / f"rank-{rank}.json").write_text(json.dumps(said))
    return 1 if "fault" in said else 0


if __name__ == "__main__":
    main()
