"""The driver of one run: takes it up with Ray Train as often as it takes, and says how it ended.

python -m train_jobs.engine.driver RUN_URI      # in the train environment; `train_jobs run` does it
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
from pathlib import Path
from typing import Any

import ray

from cluster import environments
from runtime.core.config import load_spec
from runtime.core.errors import RunFailed, StorageError
from storage.location import locate
from storage.patience import patience
from storage.runs import RunFolder, run_at
from train_jobs.engine.attempts import Attempts
from train_jobs.engine.failure import Failure, failure
from train_jobs.plan import TrainPlan

_STORE_PATIENCE_S = 600.0


def run(folder: RunFolder) -> dict[str, Any] | None:
    """Train, and write ``result.json``; the workers publish.

    Returns:
        The result: ``{"status": "succeeded", "model": ...}``, ``{"status": "failed", "error": ...}`` or
        ``{"status": "stopped", "error": ...}``; None where another driver has taken up the run.
    """
    driver = secrets.token_hex(8)
    # A store that is away for minutes costs a run no more than those.
    with patience(_STORE_PATIENCE_S):
        try:
            plan = load_spec(TrainPlan, folder.plan())
            # From here on the workers of an earlier driver find that the run is not theirs any more.
            folder.take_up(driver)
            folder.set_waiting(None)
            _connect(plan, folder)
            ended = Attempts(folder, plan, driver).until_end()
        except Exception as error:  # whatever it is, the run must say that it failed, and why
            ended = failure(error)
        if folder.driver() != driver or (isinstance(ended, Failure) and ended.superseded):
            return None
        result = _result(folder, ended)
        folder.write_result(result)
        return result


def _result(folder: RunFolder, ended: Failure | dict[str, Any]) -> dict[str, Any]:
    if isinstance(ended, Failure):
        return {"status": "failed", "error": ended.reason}
    if ended["ended"] == "succeeded":
        return {"status": "succeeded", **folder.output()}
    return {
        "status": "stopped",
        "error": f"{ended['reason']}, with a checkpoint at step {ended['step']}",
        "step": ended["step"],
    }


def _connect(plan: TrainPlan, folder: RunFolder) -> None:
    # The cluster was started from the core environment: workers start from this one's interpreter instead.
    # Ours wins over what `ray job submit --runtime-env` says about the same keys.
    os.environ["RAY_OVERRIDE_JOB_RUNTIME_ENV"] = "1"
    env_vars = environments.process_env("train") | plan.env_vars
    address = os.environ.get("RAY_ADDRESS")
    if address:
        # Ray Train's own actors look for the cluster again, and fail where a machine runs two of them.
        env_vars["RAY_ADDRESS"] = address
    ray.init(address=address or "auto", runtime_env={"py_executable": sys.executable, "env_vars": env_vars})
    # `ray job stop` sends SIGTERM, and gives a job so long to leave as RAY_JOB_STOP_WAIT_TIME_S says.
    signal.signal(signal.SIGTERM, lambda signum, frame: _leave(folder))


def _leave(folder: RunFolder) -> None:
    """What SIGTERM means: end with a checkpoint; at once where it is written already how the run ended."""
    try:
        if folder.result() is not None:
            os._exit(128 + signal.SIGTERM)
        asked = folder.stop_request()
        if asked is None or asked.ended != "stopped":
            folder.request_stop("stopped by SIGTERM")
    except StorageError as error:
        # Raised from here it would end the run in the middle of whatever it does.
        print(f"SIGTERM came, and the store does not answer: {error}", file=sys.stderr, flush=True)


def main() -> int:
    """Exit code 0 when the run succeeded, 1 when it did not."""
    folder = run_at(locate(sys.argv[1]))
    result = run(folder)
    if result is None:
        ray.shutdown()
        print(f"run {folder.run_id}: another driver has taken it up; this one leaves it alone", flush=True)
        return 1
    log = _job_log(folder)
    # Ray prints the rest of the workers' lines now, so that ours is the last one.
    ray.shutdown()
    ending = _ending(folder, result)
    print(ending, file=sys.stdout if result["status"] == "succeeded" else sys.stderr, flush=True)
    _keep_log(folder, log)
    return 0 if result["status"] == "succeeded" else 1


def _ending(folder: RunFolder, result: dict[str, Any]) -> str:
    if result["status"] == "succeeded":
        return f"run {folder.run_id} succeeded: {result['model'] or folder.place / 'output'}"
    if result["status"] == "stopped":
        return f"run {folder.run_id} {result['error']}. Go on with: tandem train --resume {folder.run_id}"
    submission_id = folder.record().get("submission_id")
    log = f"ray job logs {submission_id}" if submission_id else "the lines above"
    return str(RunFailed(folder.run_id, result["error"], log))


def _job_log(folder: RunFolder) -> Path | None:
    """The file to which Ray's job API writes what this process prints; None outside of it."""
    submission_id = folder.record().get("submission_id")
    node = ray._private.worker._global_node
    file = Path(node.get_logs_dir_path()) / f"job-driver-{submission_id}.log" if node else None
    return file if file and file.exists() else None


def _keep_log(folder: RunFolder, log: Path | None) -> None:
    """The log outlives the cluster, behind those of the run's earlier drivers. A store that does not take it
    costs the log and nothing else.
    """
    if log is None:
        return
    place = folder.place / "log.txt"
    try:
        earlier = place.read_bytes() if place.stat() else b""
        place.write_bytes(earlier + log.read_bytes())
    except StorageError as error:
        print(f"the log was not kept with the run: {error}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
