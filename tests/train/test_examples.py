"""The examples: each can run as its header says, with the data that it names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from runtime.core.config import load_spec
from runtime.core.errors import ConfigError
from storage.store import Store
from tests.conftest import ROOT
from tests.inventories import nodes
from tests.train.forked import EXAMPLES, add_example_data
from train_jobs.plan import TrainPlan, plan_train, resolve
from train_jobs.spec import TrainSpec

NAMES = sorted(file.stem for file in EXAMPLES.glob("*.yaml"))
GPU = {"CPU": 8.0, "GPU": 1.0}


@pytest.fixture
def filled(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store with all that examples name, and the top of the clone as the current folder."""
    monkeypatch.chdir(ROOT)
    with store.model("tiny-base").fetch() as base:
        store.publish_model(base.path, "docstrings-base")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    store.publish_model(adapter, "docstrings-lora", kind="adapter", base="docstrings-base/v1")
    add_example_data(store)
    return store


def planned(name: str, store: Store, resources: dict[str, float]) -> TrainPlan:
    spec = resolve(load_spec(TrainSpec, EXAMPLES / f"{name}.yaml"))
    return plan_train(spec, store=store, inventory=nodes(resources))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "sft_qlora"])
def test_every_example_can_run_on_two_cpus(name: str, filled: Store):
    assert not planned(name, filled, {"CPU": 2.0}).use_gpu


def test_qlora_can_run_on_a_gpu_and_is_refused_without_one(filled: Store):
    plan = planned("sft_qlora", filled, GPU)
    assert plan.use_gpu
    assert plan.llamafactory["quantization_bit"] == 4
    with pytest.raises(
        ConfigError, match="llamafactory.quantization_bit: is 4, but bnb needs a GPU"
    ) as error:
        planned("sft_qlora", filled, {"CPU": 2.0})
    # The header says it in the same words.
    said = next(line for line in str(error.value).splitlines() if "quantization_bit" in line).strip()
    assert said.partition(". ")[0] in (EXAMPLES / "sft_qlora.yaml").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_the_commands_of_a_header_name_files_that_are_there_and_the_datasets_of_the_spec(name: str):
    text = (EXAMPLES / f"{name}.yaml").read_text()
    spec = yaml.safe_load(text)
    header = text[: text.index("\nname:")]
    assert f"examples/train/{name}.yaml" in header
    assert all((ROOT / file).exists() for file in re.findall(r"examples/\S+?\.(?:yaml|jsonl|json)", header))
    added = re.findall(r"tandem datasets add (\S+) examples/data/(\S+)\.jsonl", header)
    assert all(dataset == spec["dataset"] == file for dataset, file in added)
    assert added or spec["dataset"] == "docstrings"
