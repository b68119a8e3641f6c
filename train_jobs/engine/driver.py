"""The driver of one run: starts Ray Train, waits, and says how it ended.

python -m train_jobs.engine.driver RUN_URI      # in the train environment; `train_jobs run` does it
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from cluster import environments
from runtime.core.config import load_spec
from runtime.core.errors import RunFailed
from storage.location import locate
from storage.runs import RunFolder, run_at
from train_jobs.engine.failure import reason
from train_jobs.plan import TrainPlan


def train_loop(config: dict[str, Any]) -> None:
    """Runs in every worker. LLaMA-Factory is imported there only: the driver would take 5 s for nothing."""
    from train_jobs.engine import worker

    worker.train_loop(config)


def trainer(plan: TrainPlan, scratch: Path) -> TorchTrainer:
    """Ray Train's trainer for a plan.

    Args:
        scratch: For Ray Train's own notes. Checkpoints go to the store by our own commit.
    """
    return TorchTrainer(
        train_loop,
        train_loop_config={"plan": plan.to_json()},
        torch_config=TorchConfig(backend="nccl" if plan.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=plan.num_workers,
            use_gpu=plan.use_gpu,
            resources_per_worker=plan.resources_per_worker,
        ),
        run_config=RunConfig(name="train", storage_path=str(scratch)),
    )


def run(folder: RunFolder) -> dict[str, Any]:
    """Train, and write ``result.json``; the workers publish.

    Returns:
        The result: ``{"status": "succeeded", "model": ...}`` or ``{"status": "failed", "error": ...}``.
    """
    try:
        plan = load_spec(TrainPlan, folder.plan())
        _connect(plan)
        with tempfile.TemporaryDirectory(prefix="tandem-train-") as scratch:
            trainer(plan, Path(scratch)).fit()
        result = {"status": "succeeded", **folder.output()}
    except Exception as error:  # whatever it is, the run must say that it failed, and why
        result = {"status": "failed", "error": reason(error)}
    folder.write_result(result)
    return result


def _connect(plan: TrainPlan) -> None:
    # The cluster was started from the core environment: workers start from this one's interpreter instead.
    # Ours wins over what `ray job submit --runtime-env` says about the same keys.
    os.environ["RAY_OVERRIDE_JOB_RUNTIME_ENV"] = "1"
    env_vars = environments.process_env("train") | plan.env_vars
    address = os.environ.get("RAY_ADDRESS")
    if address:
        # Ray Train's own actors look for the cluster again, and fail where a machine runs two of them.
        env_vars["RAY_ADDRESS"] = address
    ray.init(address=address or "auto", runtime_env={"py_executable": sys.executable, "env_vars": env_vars})
    # `ray job stop` sends SIGTERM: leave in order, without the stack dump of Ray's own handler.
    signal.signal(signal.SIGTERM, _stopped)


def _stopped(signum: int, frame: object) -> None:
    print("stopped before its end (SIGTERM)", file=sys.stderr, flush=True)
    sys.exit(128 + signum)


def main() -> int:
    """Exit code 0 when the run succeeded, 1 when it failed."""
    folder = run_at(locate(sys.argv[1]))
    result = run(folder)
    # Ray prints the rest of the workers' lines now, so that ours is the last one.
    ray.shutdown()
    if result["status"] == "succeeded":
        print(f"run {folder.run_id} succeeded: {result['model'] or folder.place / 'output'}", flush=True)
        return 0
    failed = RunFailed(folder.run_id, result["error"], _log(folder))
    print(failed, file=sys.stderr, flush=True)
    return failed.exit_code


def _log(folder: RunFolder) -> str:
    submission_id = folder.record().get("submission_id")
    return f"ray job logs {submission_id}" if submission_id else "the lines above"


if __name__ == "__main__":
    sys.exit(main())
