"""A run that goes on: the same to the bit with as many workers, and the same curve with more or fewer."""

from __future__ import annotations

import pytest

from tests.train.forked import Trainings, lesson

pytestmark = pytest.mark.engine

LORA = {"finetuning_type": "lora", "lora_rank": 8, "lora_target": "all"}

SAME = 1e-3
"""Gradients are summed in another order and rounded to 16 bits: seen up to 3e-4, where losses are 4 to 8."""

RECIPES = [
    *(pytest.param(preset, {}, id=f"{preset or 'ddp'}-full") for preset in (None, "zero0", "zero1")),
    # The others say nearly all that it says.
    pytest.param("zero2", {}, id="zero2-full", marks=pytest.mark.slow),
    pytest.param("zero3", {}, id="zero3-full"),
    pytest.param("zero2", LORA, id="zero2-lora"),
    pytest.param("zero3", LORA, id="zero3-lora"),
]


@pytest.mark.parametrize(("deepspeed", "recipe"), RECIPES)
def test_two_workers_become_one_and_two_again_and_the_curve_goes_on(
    deepspeed: str | None, recipe: dict[str, object], trainings: Trainings
):
    whole = trainings.train_once(lesson(deepspeed, recipe))
    alone = trainings.resume(whole, from_step=3, num_workers=1)
    together = trainings.resume(alone, from_step=6, num_workers=2)
    assert alone.run.checkpoints()[-1].manifest.num_workers == 1
    assert together.run.checkpoints()[-1].manifest.num_workers == 2
    for done in (alone, together):
        assert done.losses() == pytest.approx(whole.losses(), abs=SAME)
        assert done.curve("learning_rate") == whole.curve("learning_rate")


@pytest.mark.parametrize(
    ("deepspeed", "recipe"),
    [
        pytest.param(None, LORA, id="ddp-lora"),
        pytest.param("zero1", {}, id="zero1-full"),
        pytest.param("zero3", {}, id="zero3-full"),
    ],
)
def test_a_run_that_goes_on_with_as_many_workers_ends_with_the_very_weights_of_one_that_was_not_interrupted(
    deepspeed: str | None, recipe: dict[str, object], trainings: Trainings
):
    whole = trainings.train_once(lesson(deepspeed, recipe))
    again = trainings.resume(whole, from_step=3)
    names = ("loss", "grad_norm", "learning_rate", "epoch")
    assert again.curve(*names) == whole.curve(*names)
    assert again.weights() == whole.weights()


@pytest.mark.parametrize("deepspeed", [None, "zero2"], ids=["ddp", "zero2"])
def test_a_run_that_was_lost_after_its_last_step_hands_in_the_same_weights_and_trains_no_step_more(
    deepspeed: str | None, trainings: Trainings
):
    whole = trainings.train_once(lesson(deepspeed))
    again = trainings.resume(whole, from_step=9)
    assert again.curve("loss") == whole.curve("loss")
    assert again.saved_steps() == [9]
    assert again.weights() == whole.weights()


def test_the_best_checkpoint_is_handed_in_though_it_was_written_by_another_number_of_workers(
    trainings: Trainings,
):
    # The learning rate blows up after a while: the best step is not the last one.
    best = {
        "eval_dataset": "docstrings",
        "eval_strategy": "steps",
        "eval_steps": 3,
        "load_best_model_at_end": True,
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
    }
    whole = trainings.train_once(lesson("zero2", best))
    kept = {one.manifest.step: one.manifest.metrics["eval_loss"] for one in whole.run.checkpoints()}
    step = min(kept, key=lambda step: kept[step])
    alone = trainings.resume(whole, from_step=step, num_workers=1)
    assert alone.plan.max_workers == 1
    found = {one.manifest.step: one.manifest for one in alone.run.checkpoints()}
    best_step = min(found, key=lambda step: found[step].metrics["eval_loss"])
    weights = {file.sha256 for file in found[best_step].files if file.path == "model.safetensors"}
    assert {file.sha256 for file in alone.weights()} == weights
