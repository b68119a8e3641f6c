"""LLaMA-Factory's own files become specs that plan, and nothing in them is lost without a word."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from runtime.core.errors import ConfigError
from storage.store import Store
from tests.inventories import nodes
from train_jobs.llamafactory_data import legal_name
from train_jobs.llamafactory_file import LlamaFactoryFile, read_llamafactory, spec_from_llamafactory
from train_jobs.plan import plan_train
from train_jobs.source import read_source

EXAMPLES = Path(__file__).parents[2] / "examples" / "llamafactory"
ROWS = [{"question": "What does len do?", "reply": "Count."}]
ENTRY = {"file_name": "facts.json", "columns": {"prompt": "question", "response": "reply"}}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, which is not the file's."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, Any]:
    """A recipe that can run; tests change one thing. Its data lies beside the file."""
    data = tmp_path / "wild" / "data"
    data.mkdir(parents=True)
    (data / "facts.json").write_text(json.dumps(ROWS))
    (data / "dataset_info.json").write_text(json.dumps({"facts": ENTRY, "hub": {"hf_hub_url": "org/data"}}))
    return {
        "model_name_or_path": "tiny-base",
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "dataset": "facts",
        "template": "qwen3_nothink",
        "output_dir": "saves/qwen3/lora/Facts SFT",
        "per_device_train_batch_size": 2,
    }


def read(recipe: dict[str, Any], store: Store, tmp_path: Path, **options: Any) -> LlamaFactoryFile:
    file = tmp_path / "wild" / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return read_llamafactory(file, store=store, **options)


def refusal(recipe: dict[str, Any], store: Store, tmp_path: Path) -> str:
    with pytest.raises(ConfigError) as refused:
        read(recipe, store, tmp_path)
    return str(refused.value)


def test_a_file_of_the_wild_becomes_a_spec_that_plans(recipe: dict[str, Any], store: Store, tmp_path: Path):
    found = read(recipe, store, tmp_path, num_workers=2)
    spec = found.spec
    assert (spec.name, spec.model, spec.datasets) == ("facts-sft", "tiny-base", ["facts"])
    assert spec.publish is not None
    assert (spec.publish.name, spec.scaling.num_workers) == ("facts-sft", 2)
    assert spec.llamafactory == {
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "template": "qwen3_nothink",
        "per_device_train_batch_size": 2,
    }
    assert (
        "The result goes to the store as the model facts-sft and not to saves/qwen3/lora/Facts SFT."
        in found.notes
    )
    planned = plan_train(spec, store=store, new_datasets=found.new_entries)
    assert planned.dataset_info["facts"]["columns"] == {"prompt": "question", "response": "reply"}


def test_numbers_are_read_as_llamafactory_reads_them(store: Store, recipe: dict[str, Any], tmp_path: Path):
    file = tmp_path / "wild" / "numbers.yaml"
    recipe["run_name"] = "2024-01-01"
    text = yaml.safe_dump(recipe).replace("'2024-01-01'", "2024-01-01")
    file.write_text(f"{text}learning_rate: 1e-4\nadam_epsilon: 5E-6\nwarmup_ratio: .1e0\nmax_steps: 1000\n")
    spec = read_llamafactory(file, store=store).spec
    assert spec.llamafactory["learning_rate"] == 0.0001
    assert spec.llamafactory["adam_epsilon"] == 0.000005
    assert (spec.llamafactory["warmup_ratio"], spec.llamafactory["max_steps"]) == (0.1, 1000)
    assert spec.name == "2024-01-01"


def test_its_dataset_is_registered_once_and_found_again(recipe: dict[str, Any], store: Store, tmp_path: Path):
    file = tmp_path / "wild" / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    _, notes = spec_from_llamafactory(file, store=store)
    assert any(note.startswith("dataset facts of") and note.endswith("into the store.") for note in notes)
    assert store.dataset("facts").rows() == ROWS
    again = read_llamafactory(file, store=store)
    assert (again.spec.datasets, again.new_datasets) == (["facts"], {})


def test_other_data_under_a_name_that_is_taken_gets_a_name_of_its_own(
    recipe: dict[str, Any], store: Store, tmp_path: Path
):
    store.add_dataset("facts", [{"instruction": "?", "output": "!"}])
    found = read(recipe, store, tmp_path)
    [name] = found.spec.datasets
    assert name.startswith("facts-")
    assert any(note.endswith(f"goes into the store as {name}.") for note in found.notes)
    found.register(store)
    assert store.dataset(name).rows() == ROWS
    assert read(recipe, store, tmp_path).spec.datasets == [name]


def test_nothing_is_registered_before_the_plan_holds(recipe: dict[str, Any], store: Store, tmp_path: Path):
    read(recipe, store, tmp_path)
    assert [dataset.name for dataset in store.datasets()] == ["docstrings"]


def test_a_folder_of_files_is_one_dataset(recipe: dict[str, Any], store: Store, tmp_path: Path):
    data = tmp_path / "wild" / "data"
    (data / "parts").mkdir()
    for part in ("a.json", "b.json"):
        (data / "parts" / part).write_text(json.dumps(ROWS))
    (data / "dataset_info.json").write_text(json.dumps({"parts": ENTRY | {"file_name": "parts"}}))
    found = read(recipe | {"dataset": "parts"}, store, tmp_path)
    found.register(store)
    assert store.dataset("parts").manifest.rows == 2
    assert read(recipe | {"dataset": "parts"}, store, tmp_path).new_datasets == {}


def test_the_current_folder_counts_before_the_files(
    recipe: dict[str, Any], store: Store, tmp_path: Path, elsewhere: Path
):
    (elsewhere / "data").mkdir()
    (elsewhere / "data" / "facts.json").write_text(json.dumps(ROWS * 3))
    (elsewhere / "data" / "dataset_info.json").write_text(json.dumps({"facts": ENTRY}))
    read(recipe, store, tmp_path).register(store)
    assert store.dataset("facts").manifest.rows == 3


def test_datasets_of_the_store_and_of_the_file_are_used_together(
    recipe: dict[str, Any], store: Store, tmp_path: Path
):
    found = read(recipe | {"dataset": "docstrings, facts", "eval_dataset": "docstrings"}, store, tmp_path)
    assert found.spec.datasets == ["docstrings", "facts"]
    assert found.spec.llamafactory["eval_dataset"] == "docstrings"
    assert list(found.new_datasets) == ["facts"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "fact"}, r"dataset is 'fact', which is neither in .* Did you mean 'facts'\?"),
        (
            {"dataset": "hub"},
            r"dataset hub: hf_hub_url is 'org/data' in .*Download it, then register it: tandem",
        ),
        ({"dataset_dir": "ONLINE"}, r"dataset_dir is 'ONLINE': data that lies on a hub is not read"),
        ({"dataset_dir": "nowhere"}, r"dataset_dir is 'nowhere', but no dataset_info.json is in it"),
        ({"dataset": None}, r"names no dataset, so that it is no file for training"),
        ({"export_dir": "out"}, r"export_dir is for llamafactory-cli export"),
        ({"model_name_or_path": None}, r"names no model. Add model_name_or_path"),
        ({"model_name_or_path": "./none"}, r"model_name_or_path is './none', and there is no such folder"),
        ({"deepspeed": "mine.json"}, r"deepspeed is 'mine.json', and there is no such file"),
        (
            {"resume_from_checkpoint": "saves/x"},
            r"resume_from_checkpoint is 'saves/x', a checkpoint of another",
        ),
        ({"output_dir": "${oc.env:HOME}"}, r"output_dir takes its value from elsewhere"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_file_and_the_remedy(
    recipe: dict[str, Any], store: Store, tmp_path: Path, changes: dict[str, Any], message: str
):
    told = refusal(recipe | changes, store, tmp_path)
    assert told.startswith(f"{tmp_path}/wild/recipe.yaml: ")
    assert re.search(message, told), told


def test_a_bad_row_is_refused_with_its_line(recipe: dict[str, Any], store: Store, tmp_path: Path):
    (tmp_path / "wild" / "data" / "facts.json").write_text(json.dumps([*ROWS, {"question": "?", "reply": 7}]))
    assert "dataset facts: " in refusal(recipe, store, tmp_path)


@pytest.mark.parametrize(
    ("value", "taken"),
    [
        ("examples/deepspeed/ds_z3_config.json", "zero3"),
        ("examples/deepspeed/ds_z2_offload_config.json", "zero2-offload"),
        ("ds_z0_config.json", "zero0"),
        ("gs://bucket/ds.json", "gs://bucket/ds.json"),
        (None, None),
    ],
)
def test_the_deepspeed_configs_of_llamafactorys_examples_are_presets(
    recipe: dict[str, Any], store: Store, tmp_path: Path, value: str | None, taken: str | None
):
    found = read(recipe | {"deepspeed": value}, store, tmp_path)
    assert found.spec.deepspeed == taken
    assert any("takes its place" in note for note in found.notes) == bool(value and "gs:" not in value)


def test_a_deepspeed_config_beside_the_file_is_that_file(
    recipe: dict[str, Any], store: Store, tmp_path: Path
):
    file = tmp_path / "wild" / "ds_z3_config.json"
    file.write_text("{}")
    assert read(recipe | {"deepspeed": "ds_z3_config.json"}, store, tmp_path).spec.deepspeed == str(file)


def test_a_model_is_a_folder_a_name_in_the_store_or_one_of_the_hub(
    recipe: dict[str, Any], store: Store, tmp_path: Path, elsewhere: Path
):
    def model(named: str) -> str:
        return read(recipe | {"model_name_or_path": named}, store, tmp_path).spec.model

    (elsewhere / "models" / "mine").mkdir(parents=True)
    assert model("models/mine") == str(elsewhere / "models" / "mine")
    assert model("tiny-base/v1") == "tiny-base/v1"
    assert model("Qwen/Qwen3-4B") == "hf://Qwen/Qwen3-4B"
    assert model("s3://bucket/model") == "s3://bucket/model"
    found = read(recipe | {"adapter_name_or_path": "tiny-base,org/lora"}, store, tmp_path)
    assert found.spec.llamafactory["adapter_name_or_path"] == "tiny-base,hf://org/lora"
    assert any("adapter_name_or_path org/lora is no folder" in note for note in found.notes)


def test_what_the_launcher_decides_goes_into_scaling_or_is_left_out_with_a_note(
    recipe: dict[str, Any], store: Store, tmp_path: Path
):
    launcher = {
        "ray_num_workers": 4,
        "placement_strategy": "SPREAD",
        "resources_per_worker": {"GPU": 1},
        "ray_storage_path": "./saves",
        "overwrite_output_dir": True,
        "ddp_backend": "nccl",
        "resume_from_checkpoint": None,
        "ddp_timeout": 180000000,
    }
    found = read(recipe | launcher, store, tmp_path)
    scaling = found.spec.scaling
    assert (scaling.num_workers, scaling.placement_strategy, scaling.gpus_per_worker) == (4, "SPREAD", 1)
    assert found.spec.llamafactory["ddp_timeout"] == 180000000
    left_out = {note.split(" ")[0] for note in found.notes if " is left out. " in note}
    assert left_out == {
        "placement_strategy",
        "resources_per_worker",
        "ray_storage_path",
        "overwrite_output_dir",
        "ddp_backend",
    }
    assert read(recipe | launcher, store, tmp_path, num_workers=2).spec.scaling.num_workers == 2
    assert read(recipe | {"use_cpu": True}, store, tmp_path).spec.scaling.gpus_per_worker == 0


def test_a_secret_is_refused_in_the_plan_and_not_repeated(
    recipe: dict[str, Any], store: Store, tmp_path: Path
):
    found = read(recipe | {"hf_hub_token": "hf_abc"}, store, tmp_path)
    with pytest.raises(ConfigError) as refused:
        plan_train(found.spec, store=store, new_datasets=found.new_entries)
    assert ("HF_TOKEN" in str(refused.value), "hf_abc" in str(refused.value)) == (True, False)


def test_a_file_that_only_evaluates_publishes_nothing(recipe: dict[str, Any], store: Store, tmp_path: Path):
    del recipe["do_train"], recipe["dataset"]
    found = read(recipe | {"do_eval": True, "eval_dataset": "facts"}, store, tmp_path)
    assert (found.spec.publish, found.spec.llamafactory["do_train"]) == (None, False)
    planned = plan_train(found.spec, store=store, new_datasets=found.new_entries)
    assert (list(planned.dataset_info), "dataset" in planned.llamafactory) == (["facts"], False)


@pytest.mark.parametrize(
    ("text", "name"),
    [("Qwen3 LoRA_SFT", "qwen3-lora_sft"), ("--x--", "x"), ("é" * 3, "run"), ("a" * 80, "a" * 63)],
)
def test_any_text_becomes_a_legal_name(text: str, name: str):
    assert legal_name(text) == name


def test_the_example_in_llamafactorys_own_form_plans(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    base = tmp_path / "example-base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    store.publish_model(base, "docstrings-base")
    monkeypatch.chdir(EXAMPLES)
    source = read_source(None, "qwen3_lora_sft.yaml", store=store, num_workers=2)
    planned = source.plan(store, inventory=nodes({"CPU": 2.0}))
    assert (planned.num_workers, planned.kind, planned.llamafactory["learning_rate"]) == (2, "adapter", 1e-4)
    source.register(store)
    assert store.dataset("capitals_demo").manifest.rows == 16
