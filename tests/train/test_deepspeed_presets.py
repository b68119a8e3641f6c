"""DeepSpeed presets: one file each, and each says the stage that its name says."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.core.errors import ConfigError, StorageError
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


@pytest.mark.parametrize(("stage", "parts"), [(2, {"optimizer"}), (3, {"optimizer", "param"})])
def test_offloading_is_the_preset_of_its_stage_and_moves_things_to_pinned_memory(stage: int, parts: set[str]):
    plain, offloading = (deepspeed_presets.resolve(f"zero{stage}{ending}") for ending in ("", "-offload"))
    assert plain is not None
    assert offloading is not None
    moved = {f"offload_{part}": {"device": "cpu", "pin_memory": True} for part in parts}
    assert offloading["zero_optimization"] == plain["zero_optimization"] | moved
    assert {**offloading, "zero_optimization": {}} == {**plain, "zero_optimization": {}}


def test_there_is_nothing_but_the_six_presets():
    assert deepspeed_presets.names() == ["zero0", "zero1", "zero2", "zero2-offload", "zero3", "zero3-offload"]


def test_a_file_may_be_at_an_address(tmp_path: Path):
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 1}}')
    assert deepspeed_presets.resolve(f"file://{tmp_path}/ds.json") == {"zero_optimization": {"stage": 1}}


def test_an_address_where_nothing_is_is_refused_with_it(tmp_path: Path):
    with pytest.raises(StorageError, match=r"/none\.json: there is nothing"):
        deepspeed_presets.resolve(f"file://{tmp_path}/none.json")


def test_a_file_that_is_no_json_is_refused_with_its_place(tmp_path: Path):
    (tmp_path / "ds.json").write_text("{")
    with pytest.raises(ConfigError, match=r"ds\.json is not valid JSON: .*Repair the file"):
        deepspeed_presets.resolve(str(tmp_path / "ds.json"))


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
