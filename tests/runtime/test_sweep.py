"""Sweeps for real: runs with their own values, the best of them found, the poor ones stopped early."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from cluster import jobs, local
from cluster.processes import descendants
from runtime.sdk import Tandem
from runtime.sweep import Sweep, find_sweep, start_sweep
from storage.store import Store
from tests.conftest import TestCluster, wait_for

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

RATE = "llamafactory.learning_rate"
TRAIN: dict[str, Any] = {
    "model": "docstrings-base",
    "dataset": "docstrings",
    "llamafactory": {
        "stage": "sft",
        "finetuning_type": "full",
        "template": "qwen3_nothink",
        "max_steps": 3,
        "max_samples": 32,
        "per_device_train_batch_size": 4,
        "bf16": True,
        "logging_steps": 1,
        "save_strategy": "no",
    },
    "scaling": {"num_workers": 1, "gpus_per_worker": 0},
}


@pytest.fixture
def tandem(inputs: TestCluster) -> Iterator[Tandem]:
    """The SDK; no sweep of the test, and no run of one, outlives it."""
    tandem = inputs.tandem()
    yield tandem
    for sweep in sweeps(inputs.store):
        if sweep.status not in jobs.ENDED:
            sweep.stop()


def sweeps(store: Store) -> list[Sweep]:
    root = store.root / "sweeps"
    return [find_sweep(store, sweep_id) for name in root.folders() for sweep_id in (root / name).folders()]


def trial_processes() -> list[psutil.Process]:
    running = local.current()
    assert running is not None
    return [process for process in descendants(running.pid) if "RunTrial" in title(process)]


def title(process: psutil.Process) -> str:
    try:
        return "".join(process.cmdline())
    except psutil.Error:
        # Gone between the listing and the look.
        return ""


def test_each_trial_is_a_run_with_its_own_values_and_the_lowest_last_loss_is_the_best(
    tandem: Tandem, inputs: TestCluster
):
    spec = {"name": "rates", "train": TRAIN, "search": {RATE: {"grid_search": [0.000001, 0.005]}}}
    started = start_sweep(tandem, spec)
    wait_for(lambda: len(trial_processes()) == 2, "both trials at once")
    result = started.wait(timeout_s=400)
    assert result.status == "SUCCEEDED", started.logs()
    assert [row.status for row in result.trials] == ["SUCCEEDED", "SUCCEEDED"]

    runs = {run.run_id: run for run in inputs.store.runs("rates")}
    assert sorted(runs) == sorted(str(row.run_id) for row in result.trials)
    last = {}
    for row in result.trials:
        run = runs[str(row.run_id)]
        assert json.loads(run.spec_json())["llamafactory"]["learning_rate"] == row.params[RATE]
        assert (row.step, row.metric) == (3, run.metrics()[-1]["loss"])
        last[row.params[RATE]] = row.metric
    assert last[0.005] < last[0.000001]
    assert result.best is not None
    assert result.best.params == {RATE: 0.005}

    assert find_sweep(inputs.store, started.sweep_id).wait() == result
    wait_for(lambda: not trial_processes(), "the trials' processes are gone")


@pytest.mark.slow
def test_asha_stops_the_run_of_a_poor_trial_and_the_good_one_trains_to_its_end(tandem: Tandem):
    train = TRAIN | {"llamafactory": TRAIN["llamafactory"] | {"max_steps": 400, "max_samples": 400}}
    spec = {
        "name": "halving",
        "train": train | {"llamafactory": train["llamafactory"] | {"lr_scheduler_type": "constant"}},
        "search": {
            # One after the other: the second is compared with the first.
            RATE: {"grid_search": [0.005, 0.000001]}
        },
        "max_concurrent_trials": 1,
        "asha": {"grace_period": 20, "max_t": 400},
    }
    result = start_sweep(tandem, spec).wait(timeout_s=500)
    good, poor = result.trials
    assert (good.params[RATE], good.status, good.step, good.best) == (0.005, "SUCCEEDED", 400, True)
    assert (poor.params[RATE], poor.status, poor.best) == (0.000001, "STOPPED", False)
    assert poor.step is not None
    assert 20 <= poor.step < 400
