"""``python -m runtime.sweep_job FOLDER``: the job of a sweep, in which Ray Tune starts its trials.

Runs on the cluster, under its core environment; ``tandem sweep`` submits it.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from typing import Any

from cluster import local
from cluster.rest import answers
from runtime.core.errors import ClusterError, TandemError
from runtime.core.log import configure, get_logger
from runtime.run import ENDED
from runtime.sweep import Sweep
from runtime.sweep_folder import SweepFolder
from storage.location import locate
from train_jobs.sweep import SweepPlan

_STOP_TIMEOUT_S = 300.0

_log = get_logger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Run every trial, and write the result."""
    parser = argparse.ArgumentParser(prog="python -m runtime.sweep_job")
    parser.add_argument("folder", help="the sweep's folder in the store")
    parser.add_argument("--address", help="the cluster's dashboard (default: the local cluster)")
    options = parser.parse_args(argv)
    configure(verbose=True)
    sweep = Sweep(SweepFolder(locate(options.folder)))
    try:
        run_trials(sweep, options.address)
        _wait_for_the_stopped(sweep)
        result = sweep.outcome()
    except TandemError as error:
        result = sweep.outcome(str(error))
    sweep.folder.write_result(result)
    _log.info("sweep %s: %s", sweep.sweep_id, result.status)
    return 0 if result.status == "SUCCEEDED" else 1


def run_trials(sweep: Sweep, address: str | None) -> None:
    """Let Ray Tune run the trials; returns when all have ended, whichever way."""
    # Read when ray.tune is imported: no logger writes files that nobody reads.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    import ray
    from ray import tune

    from runtime.sweep_trial import RunTrial

    plan = sweep.plan
    context = ray.init(log_to_driver=False, logging_level="WARNING")
    space = {
        "sweep": sweep.folder.place.uri,
        "address": _reachable(address, f"http://{context.dashboard_url}"),
        "trial": tune.grid_search(list(range(1, len(plan.trials) + 1))),
    }
    with tempfile.TemporaryDirectory(prefix="tandem-sweep-") as storage:
        tune.Tuner(
            RunTrial,
            param_space=space,
            tune_config=tune.TuneConfig(
                metric=plan.metric,
                mode=plan.mode,
                max_concurrent_trials=plan.max_concurrent_trials,
                scheduler=_scheduler(plan),
            ),
            run_config=tune.RunConfig(name=sweep.sweep_id, storage_path=storage, verbose=0),
        ).fit()


def _scheduler(plan: SweepPlan) -> Any:
    if plan.asha is None:
        return None
    from ray.tune.schedulers import ASHAScheduler

    return ASHAScheduler(
        time_attr="step",
        grace_period=plan.asha.grace_period,
        max_t=plan.asha.max_t,
        reduction_factor=plan.asha.reduction_factor,
        # Otherwise a trial is stopped at max_t, before it has saved what it learned.
        stop_last_trials=False,
    )


def _reachable(address: str | None, own: str) -> str | None:
    """The dashboard's address from here; None means the local cluster.

    Raises:
        ClusterError: the local cluster is meant, and this is none.
    """
    if address is None:
        if local.current() is None:
            raise ClusterError(
                "the sweep was submitted to the local cluster, which cannot be found from its job. Use the "
                "TANDEM_HOME that the cluster was started with."
            )
        return None
    # The one that its owner gave may be a tunnel's end, which only the owner reaches.
    return address if answers(f"{address}/api/version") else own


def _wait_for_the_stopped(sweep: Sweep) -> None:
    """A run that ASHA stopped still saves a checkpoint."""
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    while time.monotonic() < deadline and any(row.status not in ENDED for row in sweep.trials()):
        time.sleep(1.0)


if __name__ == "__main__":
    sys.exit(main())
