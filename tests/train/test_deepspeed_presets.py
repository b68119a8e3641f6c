"""DeepSpeed presets: one file each, and each says the stage that its name says."""

from __future__ import annotations

import pytest

from runtime.core.errors import ConfigError
from train_jobs import deepspeed_presets


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_preset_of_a_stage_has_that_stage_and_leaves_batch_sizes_to_the_arguments(stage: int):
    preset = deepspeed_presets.resolve(f"zero{stage}")
    assert preset is not None
    assert preset["zero_optimization"]["stage"] == stage
    assert preset["train_batch_size"] == preset["train_micro_batch_size_per_gpu"] == "auto"


def test_zero3_gathers_the_weights_so_that_the_saved_model_is_whole():
    preset = deepspeed_presets.resolve("zero3")
    assert preset is not None
    assert preset["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is True


def test_there_is_nothing_but_the_four_presets():
    assert deepspeed_presets.names() == ["zero0", "zero1", "zero2", "zero3"]


def test_an_unknown_preset_is_refused_with_the_nearest():
    with pytest.raises(
        ConfigError, match=r"deepspeed: is 'zero-2', which is no preset\. Did you mean 'zero2'\?"
    ):
        deepspeed_presets.resolve("zero-2")


def test_a_missing_file_is_refused_with_its_path():
    with pytest.raises(
        ConfigError, match=r"deepspeed: is '/nowhere/ds\.json', which cannot be read .*No such file"
    ):
        deepspeed_presets.resolve("/nowhere/ds.json")


def test_no_deepspeed_stays_none():
    assert deepspeed_presets.resolve(None) is None
