"""Every stage and kind of finetuning, by the examples themselves: trained for real, published, looked at."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from storage.manifest import FileEntry, ModelManifest
from tests.conftest import ROOT
from tests.train.forked import Trained, Trainings, example
from train_jobs.source import read_source

pytestmark = pytest.mark.engine

ALONE = {"num_workers": 1, "gpus_per_worker": 0}
AT_THE_END = {
    "do_eval": True,
    "eval_dataset": "docstrings",
    "val_size": 0.0,
    "eval_strategy": "no",
    "load_best_model_at_end": False,
}
"""Changes to the example of LoRA: one evaluation, on the rows that it trains on."""


def published(trainings: Trainings, name: str) -> ModelManifest:
    manifest = trainings.store.model(name).manifest
    assert manifest is not None
    return manifest


def weights(manifest: ModelManifest) -> list[str]:
    return sorted(file.path for file in manifest.files if file.path.endswith((".safetensors", ".bin")))


@pytest.mark.parametrize(
    ("name", "kind", "files", "loss"),
    [
        pytest.param("pt_full", "full", ["model.safetensors"], 5.5, id="pt"),
        pytest.param("sft_freeze", "full", ["model.safetensors"], 7.2, id="freeze"),
        pytest.param(
            "rm_lora", "adapter", ["adapter_model.safetensors", "value_head.safetensors"], 0.1, id="rm"
        ),
        pytest.param("dpo_lora", "adapter", ["adapter_model.safetensors"], 0.5, id="dpo"),
        pytest.param("kto_lora", "adapter", ["adapter_model.safetensors"], 0.4, id="kto"),
    ],
)
def test_the_example_of_a_stage_learns_and_publishes(
    name: str, kind: str, files: list[str], loss: float, trainings: Trainings
):
    spec = example(name)
    done = trainings.train_once(spec)
    manifest = published(trainings, spec["publish"]["name"])
    recipe = spec["llamafactory"]
    assert (manifest.kind, manifest.stage, manifest.merged) == (kind, recipe["stage"], False)
    assert manifest.finetuning_type == recipe["finetuning_type"]
    assert weights(manifest) == files
    assert [step for step, *_ in done.curve()] == list(range(1, 13))
    assert done.losses()[-1] < loss
    assert done.saved_steps() == [6, 12]


VARIANTS: dict[str, dict[str, Any]] = {
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "pissa": {"pissa_init": True, "pissa_iter": 4, "pissa_convert": True},
    "loraplus": {"loraplus_lr_ratio": 16.0},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_of_lora_publishes_an_adapter_that_does_on_its_base_what_it_did_in_training(
    name: str, trainings: Trainings
):
    recipe = AT_THE_END | VARIANTS[name] | {"max_steps": 6, "learning_rate": 0.003}
    done = trainings.train(example("sft_lora", recipe, scaling=ALONE, publish={"name": name}, checkpoints={}))
    assert done.losses()[-1] < done.losses()[0] - 0.5
    assert evaluated(trainings, f"{name}/v1") == pytest.approx(last_eval_loss(done), abs=1e-3)
    if name == "pissa":
        # Its conversion takes off the adapter that it began with, which a run that goes on must know too.
        again = trainings.resume(done, from_step=3)
        assert again.losses() == done.losses()
        assert evaluated(trainings, "pissa/v2") == pytest.approx(last_eval_loss(done), abs=1e-3)
        with trainings.store.model("pissa/v2").fetch() as folder:
            config = json.loads((folder.path / "adapter_config.json").read_text())
        assert config["init_lora_weights"] is True


def last_eval_loss(done: Trained) -> float:
    return float(done.lines("eval_loss")[-1]["eval_loss"])


def evaluated(trainings: Trainings, adapter: str) -> float:
    """The loss of a published adapter on its base, by a run that only evaluates."""
    recipe = AT_THE_END | {"do_train": False, "adapter_name_or_path": adapter}
    return last_eval_loss(trainings.train(example("sft_lora", recipe, scaling=ALONE, publish=None)))


def test_two_workers_evaluate_and_the_run_of_the_example_predicts_with_what_they_publish(
    trainings: Trainings,
):
    done = trainings.train(example("sft_lora"))
    # Four times while it trains, and do_eval once more at the end.
    assert [line["step"] for line in done.lines("eval_loss")] == [3, 6, 9, 12, 12]
    assert done.lines("eval_loss")[-1]["eval_loss"] < 7.5

    predicted = trainings.train(example("predict"))
    [line] = predicted.lines("predict_")
    assert {"predict_rouge-l", "predict_bleu-4", "predict_runtime"} <= set(line)
    report = (predicted.run.place / "reports" / "generated_predictions.jsonl").read_bytes().decode()
    rows = [json.loads(row) for row in report.splitlines()]
    right = [row["output"] for row in trainings.store.dataset("docstrings").rows(8)]
    assert [row["label"].strip() for row in rows] == right
    assert all({"prompt", "predict"} <= set(row) for row in rows)
    assert predicted.run.output() == {"model": None}


def test_the_best_checkpoint_is_kept_and_handed_in_also_where_the_last_one_is_another(trainings: Trainings):
    # The loss only falls: with greater_is_better the first evaluation is the best.
    done = trainings.train(example("sft_lora", {"greater_is_better": True}, publish={"name": "best"}))
    found = done.lines("eval_loss")
    assert found[0]["eval_loss"] > found[1]["eval_loss"]
    assert done.saved_steps() == [3, 12]
    best, last = (sha256_of_adapter(one.manifest.files) for one in done.run.checkpoints())
    assert best != last
    assert sha256_of_adapter(published(trainings, "best").files) == best
    assert found[-1]["eval_loss"] == pytest.approx(found[0]["eval_loss"], abs=1e-3)


def sha256_of_adapter(files: list[FileEntry]) -> str:
    return next(file.sha256 for file in files if file.path == "adapter_model.safetensors")


def test_a_reward_model_goes_on_with_its_adapter_and_its_value_head(trainings: Trainings):
    whole = trainings.train_once(example("rm_lora"))
    again = trainings.resume(whole, from_step=6)
    assert again.curve("loss", "grad_norm") == whole.curve("loss", "grad_norm")


def test_a_merged_adapter_is_a_full_model_that_says_what_it_is(trainings: Trainings):
    done = trainings.train(example("sft_lora_merged"))
    manifest = published(trainings, "docstrings-merged")
    assert (manifest.kind, manifest.merged) == ("full", True)
    assert (manifest.stage, manifest.finetuning_type) == ("sft", "lora")
    assert manifest.base == "docstrings-base/v1"
    assert weights(manifest) == ["model.safetensors"]
    assert "differ from the base" in done.log


def test_an_adapter_that_changes_nothing_is_not_merged(trainings: Trainings):
    still = {"max_steps": 1, "learning_rate": 0.0}
    refused = trainings.attempt(example("sft_lora_merged", still, publish={"name": "nothing"}))
    assert "merge: the merged weights equal the base's, to the last bit" in str(refused.fault)
    assert "nothing" not in [model.name for model in trainings.store.models()]


def test_a_full_reward_model_says_that_it_would_begin_again(trainings: Trainings):
    spec = example("rm_lora", {"finetuning_type": "full", "max_steps": 3}, publish={"name": "rm-full"})
    del spec["llamafactory"]["lora_rank"], spec["llamafactory"]["lora_target"]
    done = trainings.train(spec)
    assert any("resumes no reward model but LoRA's" in note for note in done.plan.notes)
    assert weights(published(trainings, "rm-full")) == ["model.safetensors", "value_head.safetensors"]
    assert all(math.isfinite(loss) for loss in done.losses())


def test_a_file_of_llamafactorys_own_runs_as_it_is(trainings: Trainings):
    file = ROOT / "examples" / "llamafactory" / "qwen3_lora_sft.yaml"
    source = read_source(None, str(file), store=trainings.store, num_workers=2)
    source.register(trainings.store)
    done = trainings.train(source.spec.model_dump(mode="json"))
    manifest = published(trainings, source.spec.name)
    assert (manifest.kind, manifest.finetuning_type, manifest.run) == ("adapter", "lora", done.run.run_id)
    assert done.losses()[-1] < done.losses()[0]
