"""The sweep's plan: what is drawn, where it ends up, and what is refused before anything starts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from runtime.core.config import load_spec
from runtime.core.errors import ConfigError
from runtime.sweep import plan_of
from runtime.sweep_folder import TrialRow, ranked
from storage.store import Store
from tests.conftest import ROOT
from tests.inventories import nodes
from train_jobs.sweep import SweepPlan, in_words
from train_jobs.sweep_spec import SweepSpec

EXAMPLES = sorted((ROOT / "examples" / "sweep").glob("*.yaml"))
RATE = "llamafactory.learning_rate"


@pytest.fixture
def sweep(spec: dict[str, Any]) -> dict[str, Any]:
    """A sweep that can run; tests change one thing."""
    return {"name": "rates", "train": spec, "search": {RATE: {"grid_search": [0.01, 0.001]}}}


def plan(sweep: Any, store: Store, cpus: float = 2.0) -> SweepPlan:
    return plan_of(sweep, store=store, inventory=nodes({"CPU": cpus}))


def refusal(sweep: Any, store: Store) -> str:
    with pytest.raises(ConfigError) as refused:
        plan(sweep, store)
    return str(refused.value)


def test_each_trial_is_the_train_spec_with_its_values_in_it(sweep: dict[str, Any], store: Store):
    planned = plan(sweep, store)
    assert [trial.params for trial in planned.trials] == [{RATE: 0.01}, {RATE: 0.001}]
    assert [trial.spec.llamafactory["learning_rate"] for trial in planned.trials] == [0.01, 0.001]
    assert {trial.spec.name for trial in planned.trials} == {"rates"}
    assert planned.trials[0].spec.llamafactory["max_steps"] == 3
    assert "learning_rate" not in sweep["train"]["llamafactory"]


def test_a_grid_is_repeated_num_samples_times_with_fresh_draws_from_the_seed(
    sweep: dict[str, Any], store: Store
):
    sweep["search"] = {
        RATE: {"loguniform": [1e-5, 1e-2]},
        "llamafactory.weight_decay": {"quniform": [0.0, 1.0, 0.1]},
        "llamafactory.warmup_steps": {"randint": [1, 9]},
        "deepspeed": {"grid_search": ["zero1", "zero2", None]},
    }
    sweep["num_samples"] = 4
    trials = plan(sweep, store).trials
    assert [trial.spec.deepspeed for trial in trials] == ["zero1", "zero2", None] * 4
    rates = [trial.params[RATE] for trial in trials]
    assert len(set(rates)) == 12
    assert all(1e-5 <= rate <= 1e-2 for rate in rates)
    # Even over the logarithm: two thirds lie below 1e-3, of draws that are even over the number a tenth.
    assert sum(rate < 1e-3 for rate in rates) >= 5
    decays = [trial.params["llamafactory.weight_decay"] for trial in trials]
    assert all(math.isclose(decay, round(decay, 1), abs_tol=0) for decay in decays)
    assert {type(trial.params["llamafactory.warmup_steps"]) for trial in trials} == {int}
    assert [trial.params for trial in plan(sweep, store).trials] == [trial.params for trial in trials]
    assert [trial.params[RATE] for trial in plan(sweep | {"seed": 1}, store).trials] != rates


def test_the_plan_is_the_same_after_a_trip_through_json(sweep: dict[str, Any], store: Store):
    sweep |= {"asha": {"grace_period": 2, "max_t": 8}, "mode": "max"}
    planned = plan(sweep, store)
    assert load_spec(SweepPlan, json.loads(planned.to_json())) == planned


def test_the_train_spec_may_be_a_file_next_to_the_sweeps(
    sweep: dict[str, Any], spec: dict[str, Any], store: Store, tmp_path: Path
):
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(spec))
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep | {"train": "train.yaml"}))
    assert plan(tmp_path / "sweep.yaml", store) == plan(sweep, store)


def test_as_many_trials_run_at_once_as_the_cluster_has_room_for(sweep: dict[str, Any], store: Store):
    sweep["search"] = {"scaling.num_workers": {"grid_search": [1, 2, 1, 1, 1]}}
    assert plan(sweep, store, cpus=2).max_concurrent_trials == 2
    assert plan(sweep, store, cpus=4.5).max_concurrent_trials == 4
    assert plan(sweep, store, cpus=64).max_concurrent_trials == 5
    assert plan(sweep | {"max_concurrent_trials": 1}, store, cpus=64).max_concurrent_trials == 1


def test_the_metric_is_the_evaluations_where_the_recipe_evaluates(sweep: dict[str, Any], store: Store):
    assert plan(sweep, store).metric == "loss"
    sweep["train"]["llamafactory"] |= {"eval_strategy": "steps", "val_size": 0.1}
    assert plan(sweep, store).metric == "eval_loss"
    assert plan(sweep | {"metric": "loss"}, store).metric == "loss"


@pytest.mark.parametrize(
    ("distribution", "fault"),
    [
        ({"loguniform": [0, 1]}, "loguniform: is [0, 1]: a logarithmic range begins above 0."),
        ({"uniform": [3, 1]}, "uniform: is [3, 1]: lower 3 is not below upper 1. Exchange them"),
        ({"uniform": [1]}, "uniform: is [1]; it takes [lower, upper]."),
        ({"loguniform": ["1e-5", 0.1]}, "of which '1e-5' is text. Write 1.0e-05 (YAML takes 1e-5 for text)."),
        ({"randint": [1.5, 3]}, "randint: is [1.5, 3]; randint draws whole numbers between whole numbers."),
        ({"quniform": [0, 1, 0]}, "quniform: is [0, 1, 0]: the step q must be above 0."),
        ({"choice": []}, "choice: is empty. Write the values in it."),
        ({"unifrom": [0, 1]}, "'unifrom' is no distribution of Tune. Did you mean 'uniform'?"),
        ({"choice": [1], "uniform": [0, 1]}, "has 2 distributions (choice, uniform). Write one."),
    ],
)
def test_a_range_that_cannot_be_drawn_from_is_refused_with_field_and_value(
    sweep: dict[str, Any], store: Store, distribution: dict[str, Any], fault: str
):
    sweep["search"] = {RATE: distribution}
    message = refusal(sweep, store)
    assert f"search: {RATE}: " in message
    assert fault in message


def test_a_value_that_the_recipe_cannot_take_is_refused_with_the_trial_it_belongs_to(
    sweep: dict[str, Any], store: Store
):
    sweep["search"] = {
        "llamafactory.per_device_train_batch_size": {"grid_search": [8, 16.5]},
        "scaling.num_workers": {"grid_search": [1]},
    }
    message = refusal(sweep, store)
    assert "trial 2 of 2 (per_device_train_batch_size=16.5, num_workers=1): cannot be run." in message
    assert "llamafactory.per_device_train_batch_size: is 16.5" in message
    sweep["search"] = {"scaling.num_workers": {"choice": [0]}}
    assert "trial 1 of 1 (num_workers=0): TrainSpec cannot be used.\n  scaling.num_workers: is 0" in refusal(
        sweep, store
    )


def test_a_field_that_no_train_spec_has_is_refused_with_the_one_that_was_meant(
    sweep: dict[str, Any], store: Store
):
    sweep["search"] = {
        "learning_rate": {"choice": [1]},
        "scalin.num_workers": {"choice": [1]},
        "publish.name": {"choice": ["a"]},
    }
    message = refusal(sweep, store)
    assert (
        "search.learning_rate: is an argument of LLaMA-Factory. Write llamafactory.learning_rate." in message
    )
    assert "search.scalin.num_workers: a train spec has no such field. Did you mean 'scaling'?" in message
    assert "search.publish.name: cannot be searched. A sweep publishes nothing. Remove it." in message


def test_a_field_inside_a_preset_is_refused(sweep: dict[str, Any], store: Store):
    sweep["train"]["deepspeed"] = "zero2"
    sweep["search"] = {"deepspeed.zero_optimization.stage": {"choice": [1, 2]}}
    assert "train.deepspeed is 'zero2', which has no fields." in refusal(sweep, store)


def test_a_sweep_publishes_nothing_and_says_how_to(sweep: dict[str, Any], store: Store):
    sweep["train"]["publish"] = {"name": "rates"}
    message = refusal(sweep, store)
    assert "train.publish: is {'name': 'rates'}" in message
    assert "tandem models publish NAME <the run's uri>/output" in message


def test_asha_that_could_never_compare_is_refused(sweep: dict[str, Any], store: Store):
    message = refusal(sweep | {"asha": {"grace_period": 9, "max_t": 3}}, store)
    assert "asha: max_t is 3, but grace_period is 9" in message


def test_the_best_trained_to_its_end_and_comes_first():
    rows = [
        TrialRow(trial=1, params={}, status="SUCCEEDED", metric=2.0),
        TrialRow(trial=2, params={}, status="STOPPED", metric=0.5),
        TrialRow(trial=3, params={}, status="SUCCEEDED", metric=1.0),
        TrialRow(trial=4, params={}, status="SUCCEEDED"),
        TrialRow(trial=5, params={}, status="FAILED", error="rank 0: ..."),
    ]
    lowest, highest = ranked(rows, mode="min"), ranked(rows, mode="max")
    assert [row.trial for row in lowest] == [3, 1, 4, 2, 5]
    assert [row.trial for row in highest] == [1, 3, 4, 2, 5]
    assert [row.trial for row in lowest if row.best] == [3]
    assert not any(row.best for row in ranked(rows[1:2], mode="min"))


def test_trials_are_called_by_the_last_word_of_their_fields():
    assert in_words({RATE: 0.000123456, "scaling.num_workers": 2}) == "learning_rate=0.0001235, num_workers=2"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_a_valid_sweep(example: Path, store: Store):
    model = store.model("tiny-base").fetch()
    store.publish_model(model.path, "docstrings-base")
    assert len(plan(example, store).trials) == 4
    assert load_spec(SweepSpec, example).metric == "loss"
