"""Memory of a training while it evaluates."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.estimator.terms import Estimate
from tests.estimator.models import QWEN3_06B, llama, model_of
from tests.estimator.trainings import FULL, GIB, LLAMA_7B, LLAMA_8B, LORA, estimated, shape_of, sizes

QWEN25_7B = model_of(llama(3584, 18944, 28, 28, context=32768, num_key_value_heads=4, vocab_size=152_064))
EVALUATES = {"val_size": 0.1, "eval_strategy": "steps"}


def during_evaluation(found: Estimate) -> dict[str, int]:
    """Bytes on the GPU by name."""
    return {t.name: t.size_bytes for t in found.terms if "evaluation" in t.phases and t.on == "device"}


def test_an_evaluation_needs_the_logits_of_its_own_batch_on_top_of_what_stays():
    """Eight rows, transformers' default, whatever the training's batch."""
    found = estimated(QWEN25_7B, LORA | EVALUATES)
    there = during_evaluation(found)
    assert found.peak == "evaluation"
    assert there["logits of an evaluation"] == 10 * 152_064 * 8 * 2048 > 23 * GIB
    for name in ("frozen weights", "trained weights", "gradient buckets", "optimizer states", "process"):
        assert there[name] == sizes(found)[name]
    assert not there.keys() & {"gradients", "activations", "logits", "head's input"}
    assert found.device_bytes == sum(there.values())
    four = during_evaluation(estimated(QWEN25_7B, LORA | EVALUATES | {"per_device_eval_batch_size": 4}))
    assert there["logits of an evaluation"] == 2 * four["logits of an evaluation"]


def test_evaluated_row_by_row_a_training_needs_no_more_than_without():
    row_by_row = LORA | EVALUATES | {"per_device_eval_batch_size": 1}
    assert estimated(QWEN25_7B, row_by_row).device_bytes == estimated(QWEN25_7B, LORA).device_bytes


@pytest.mark.parametrize(
    ("recipe", "evaluates"),
    [
        ({}, False),
        ({"val_size": 0.1}, False),
        ({"val_size": 0.1, "eval_strategy": "no"}, False),
        (EVALUATES, True),
        ({"eval_dataset": "exam", "eval_strategy": "epoch"}, True),
        ({"eval_dataset": "exam", "do_eval": True}, True),
        ({"eval_dataset": "exam", "do_predict": True, "predict_with_generate": True}, True),
        ({"eval_dataset": "exam", "predict_with_generate": True}, False),
    ],
)
def test_only_a_recipe_that_evaluates_is_reckoned_to(recipe: dict[str, Any], evaluates: bool):
    assert (shape_of(LLAMA_7B, LORA | recipe).evaluation is not None) is evaluates


@pytest.mark.parametrize(
    ("recipe", "bytes_each"),
    [
        ({"compute_accuracy": True}, 10),
        ({"stage": "pt"}, 10),
        ({"stage": "dpo"}, 2 * 12),  # a pair is two rows; the policy's logits wait for the reference's
        ({"stage": "dpo", "pref_loss": "simpo"}, 2 * 10),
        ({"stage": "kto"}, 16),
    ],
)
def test_a_stage_that_compares_keeps_more_logits(recipe: dict[str, Any], bytes_each: int):
    there = during_evaluation(estimated(QWEN25_7B, LORA | EVALUATES | recipe))
    assert there["logits of an evaluation"] == bytes_each * 152_064 * 8 * 2048


def test_written_answers_need_keys_and_values_instead_of_logits():
    recipe = LORA | EVALUATES | {"predict_with_generate": True, "max_new_tokens": 512, "num_beams": 3}
    there = during_evaluation(estimated(LLAMA_8B, recipe))
    assert there["keys and values of answers"] == 2 * 2 * 32 * 8 * 128 * 8 * 3 * (2048 + 512)
    assert "logits of an evaluation" not in there
    usual = {name: value for name, value in recipe.items() if name not in ("max_new_tokens", "num_beams")}
    there = during_evaluation(estimated(LLAMA_8B, usual))
    assert there["keys and values of answers"] == 2 * 2 * 32 * 8 * 128 * 8 * (2048 + 1024)


def test_attention_without_a_kernel_counts_in_an_evaluation_too():
    recipe = LORA | EVALUATES | {"flash_attn": "disabled", "cutoff_len": 8192}
    there = during_evaluation(estimated(LLAMA_8B, recipe))
    assert there["a layer of an evaluation"] > 8 * 8 * 32 * 8192**2
    assert "logits of an evaluation" not in there, "they come later"


def test_an_evaluation_alone_trains_nothing():
    recipe = FULL | {"do_train": False, "do_eval": True, "eval_dataset": "exam"}
    found = estimated(LLAMA_7B, recipe)
    assert found.peak == "evaluation"
    assert sizes(found).keys() == {
        "process", "training itself", "frozen weights", "first broadcast", "logits of an evaluation",
        "fragmentation",
    }  # fmt: skip
    assert sizes(found)["frozen weights"] == 2 * 6_738_415_616
    assert found.device_bytes < estimated(LLAMA_7B, FULL).device_bytes / 4


def test_under_deepspeed_an_evaluation_has_the_states_and_gathers_what_is_divided():
    there = during_evaluation(estimated(LLAMA_7B, FULL | EVALUATES, deepspeed="zero3", num_workers=8))
    assert there["gathered weights"] == 2 * 1_000_000_000
    assert there["master weights"] == 4 * 6_738_415_616 // 8
    offloads = estimated(LLAMA_7B, FULL | EVALUATES, deepspeed="zero3-offload", num_workers=8)
    assert (
        offloads.host_bytes == estimated(LLAMA_7B, FULL, deepspeed="zero3-offload", num_workers=8).host_bytes
    )
    assert not during_evaluation(offloads).keys() & {"master weights", "optimizer states", "trained weights"}


def test_without_a_gpu_what_was_freed_and_kept_is_there_in_an_evaluation_and_as_much_as_without():
    small = model_of(QWEN3_06B)
    plain, evaluated = (estimated(small, FULL | more, None) for more in ({}, EVALUATES))
    assert sizes(evaluated)["freed and kept"] == sizes(plain)["freed and kept"]
    assert during_evaluation(evaluated)["freed and kept"] == sizes(plain)["freed and kept"]
    assert evaluated.device_bytes > plain.device_bytes
