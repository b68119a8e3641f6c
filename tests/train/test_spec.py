"""The train spec: strict fields, and the same spec at the other end of a JSON file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runtime.core.config import load_spec
from runtime.core.errors import ConfigError
from train_jobs.plan import resolve
from train_jobs.spec import TrainSpec

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "train").glob("*.yaml"))


def test_the_resolved_spec_is_the_same_after_a_trip_through_json(spec: dict[str, Any], tmp_path: Path):
    spec |= {"deepspeed": {"zero_optimization": {"stage": 2}}, "publish": {"name": "lesson", "version": "v7"}}
    sent = load_spec(TrainSpec, spec)
    (tmp_path / "spec.json").write_text(sent.to_json())
    assert load_spec(TrainSpec, tmp_path / "spec.json") == sent


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_a_valid_spec(example: Path):
    assert load_spec(TrainSpec, example).name


def test_a_field_that_does_not_exist_is_refused_with_the_nearest_one(spec: dict[str, Any]):
    spec["scaling"] = {"num_worker": 2}
    with pytest.raises(
        ConfigError, match=r"scaling\.num_worker: unknown field .*Did you mean 'num_workers'\?"
    ):
        load_spec(TrainSpec, spec)


def test_a_worker_count_of_zero_is_refused_with_its_value(spec: dict[str, Any]):
    spec["scaling"] = {"num_workers": 0}
    with pytest.raises(ConfigError, match=r"scaling\.num_workers: is 0\. Give a number from 1 on"):
        load_spec(TrainSpec, spec)


def test_more_than_one_gpu_for_a_worker_is_refused_with_what_to_set_instead(spec: dict[str, Any]):
    spec["scaling"] = {"gpus_per_worker": 1.5}
    with pytest.raises(
        ConfigError,
        match=r"scaling\.gpus_per_worker: is 1\.5, but a worker .* num_workers to the number of GPUs",
    ):
        load_spec(TrainSpec, spec)


def test_a_name_that_could_not_be_a_folder_and_a_url_is_refused(spec: dict[str, Any]):
    spec["publish"] = {"name": "My Model"}
    with pytest.raises(ConfigError, match=r"publish\.name: .*'My Model'.*lower-case"):
        load_spec(TrainSpec, spec)


def test_an_empty_list_of_datasets_is_refused(spec: dict[str, Any]):
    spec["dataset"] = []
    with pytest.raises(ConfigError, match=r"dataset: .*Name at least one dataset"):
        load_spec(TrainSpec, spec)


def test_a_deepspeed_file_and_a_relative_folder_are_resolved_before_the_spec_travels(
    spec: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("my.json").write_text('{"zero_optimization": {"stage": 1}}')
    spec["llamafactory"]["adapter_name_or_path"] = "first/v1,./second"
    resolved = resolve(load_spec(TrainSpec, spec | {"deepspeed": "my.json", "model": "./folder"}))
    assert resolved.llamafactory["adapter_name_or_path"] == f"first/v1,{tmp_path}/second"
    assert resolved.deepspeed == {"zero_optimization": {"stage": 1}}
    assert resolved.model == str(tmp_path / "folder")
