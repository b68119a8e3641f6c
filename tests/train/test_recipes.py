"""Recipes that fail only in the worker are refused before, and what runs otherwise than it says is told."""

from __future__ import annotations

from typing import Any

import pytest

from train_jobs.recipe_packages import train_packages
from train_jobs.recipe_view import Recipe
from train_jobs.recipes import judge

SFT = {"docs": {"file_name": "data.json", "columns": {"prompt": "question", "response": "answer"}}}
PAIRS = {"pairs": {"ranking": True, "columns": {"prompt": "q", "chosen": "good", "rejected": "bad"}}}
TAGGED = {"tagged": {"columns": {"messages": "talk", "kto_tag": "liked"}}}
TEXT = {"text": {"columns": {"prompt": "text"}}}
EVERYTHING = {"unsloth": "1", "galore-torch": "1", "apollo-torch": "1", "badam": "1", "trl": "0.24.0"}


def faults(datasets: dict[str, Any] | None = None, /, **given: Any) -> list[str]:
    about = {name: given.pop(name) for name in list(given) if name in Recipe.__dataclass_fields__}
    return judge(Recipe(given, **about), datasets or {}).faults


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (
            {"stage": "ppo", "packages": {"trl": "0.24.0"}},
            "llamafactory.stage: is 'ppo', but LLaMA-Factory's PPO runs with trl 0.8.6 to 0.9.6 only, the "
            "rest of it with trl 0.18 or newer (here: 0.24.0). Train with dpo or kto instead.",
        ),
        (
            {"quantization_bit": 4},
            "llamafactory.quantization_bit: is 4, but bnb needs a GPU, and the workers have none. Remove "
            "the line to train on the full base, or set scaling.gpus_per_worker.",
        ),
        (
            {"quantization_bit": 4, "finetuning_type": "full", "on_cpu": False},
            "llamafactory.quantization_bit: is 4, but quantized weights cannot be trained (finetuning_type "
            "is full).",
        ),
        (
            {"quantization_bit": 3, "on_cpu": False},
            "llamafactory.quantization_bit: is 3, but quantization_method bnb cannot do that: bnb takes 4 "
            "or 8",
        ),
        (
            {"quantization_bit": 4, "quantization_method": "gptq", "on_cpu": False},
            "llamafactory.quantization_method: is 'gptq', but only bnb, hqq and eetq quantize a model while",
        ),
        (
            {"quantization_bit": 8, "zero_stage": 3, "on_cpu": False},
            "llamafactory.quantization_bit: is 8, but ZeRO-3 can shard 4-bit bnb weights only.",
        ),
        (
            {"quantization_bit": 4, "pissa_init": True, "on_cpu": False},
            "llamafactory.pissa_init: is True, but PiSSA cannot take apart a quantized base.",
        ),
        (
            {"quantization_bit": 4, "adapter_name_or_path": "a,b", "on_cpu": False},
            "llamafactory.adapter_name_or_path: is 'a,b', but a quantized base takes one adapter only.",
        ),
        (
            {"adapter_name_or_path": "a", "finetuning_type": "full"},
            "llamafactory.adapter_name_or_path: is 'a', but only LoRA goes on from an adapter, and "
            "finetuning_type",
        ),
        (
            {"use_dora": True, "finetuning_type": "freeze"},
            "llamafactory.use_dora: is True, but it belongs to LoRA",
        ),
        (
            {"pissa_init": True, "stage": "kto"},
            "llamafactory.pissa_init: is True, but PiSSA changes the base",
        ),
        (
            {"pissa_init": True, "zero_stage": 3},
            "llamafactory.pissa_init: is True, but PiSSA cannot take apart what",
        ),
        (
            {"do_predict": True, "eval_dataset": "exam"},
            "llamafactory.do_predict: is True, but there are no predictions without predict_with_generate: "
            "true.",
        ),
        (
            {"predict_with_generate": True, "val_size": 0.1, "zero_stage": 3},
            "llamafactory.predict_with_generate: is True, but ZeRO-3 cannot generate.",
        ),
        (
            {"predict_with_generate": True, "stage": "dpo", "val_size": 0.1},
            "llamafactory.predict_with_generate: is True, but it is for stage sft only, and stage is dpo.",
        ),
        (
            {"neat_packing": True, "stage": "pt"},
            "llamafactory.neat_packing: is True, but it is for stage sft only",
        ),
        (
            {"do_eval": True},
            "llamafactory.eval_dataset: is not given, but evaluation and prediction need rows",
        ),
        ({"eval_strategy": "steps"}, "llamafactory.eval_dataset: is not given, but evaluation"),
        (
            {"val_size": 0.1, "eval_dataset": "exam"},
            "llamafactory.val_size: is 0.1, but eval_dataset is given too. Remove one of the two.",
        ),
        (
            {"streaming": True},
            "llamafactory.max_steps: is -1, but streamed rows cannot be counted: set max_steps",
        ),
        (
            {"load_best_model_at_end": True},
            "llamafactory.load_best_model_at_end: is True, but the best model is chosen among checkpoints "
            "that were",
        ),
        (
            {"load_best_model_at_end": True, "stage": "rm", "save_strategy": "no"},
            "llamafactory.load_best_model_at_end: is True, but stage rm cannot load its value head again.",
        ),
        ({"early_stopping_steps": 3}, "llamafactory.early_stopping_steps: is 3, but stopping early needs"),
        (
            {"dpo_label_smoothing": 0.1, "stage": "dpo", "pref_loss": "ipo"},
            "llamafactory.dpo_label_smoothing: is 0.1, but pref_loss ipo knows no smoothing",
        ),
        ({"fp16": True, "bf16": True}, "llamafactory.fp16: is True, but bf16 is true as well."),
        ({"pure_bf16": True}, "llamafactory.pure_bf16: is True, but LLaMA-Factory allows it on a GPU only."),
        ({"fp8": True}, "llamafactory.fp8: is True, but FP8 needs a GPU"),
        ({"tf32": True}, "llamafactory.tf32: is True, but TF32 is a GPU's arithmetic."),
        (
            {"flash_attn": "fa3"},
            "llamafactory.flash_attn: is 'fa3', but LLaMA-Factory takes FlashAttention-3 for",
        ),
        (
            {"use_unsloth": True, "zero_stage": 3},
            "llamafactory.use_unsloth: is True, but ZeRO-3 shards what it",
        ),
        (
            {"use_badam": True, "finetuning_type": "full"},
            "llamafactory.use_badam: is True, but among workers BAdam",
        ),
        (
            {"use_galore": True, "finetuning_type": "full", "zero_stage": 2},
            "llamafactory.use_galore: is True, but it does not work with DeepSpeed.",
        ),
        (
            {"use_llama_pro": True, "finetuning_type": "full"},
            "llamafactory.use_llama_pro: is True, but it trains",
        ),
        (
            {"lr_scheduler_type": "reduce_lr_on_plateau"},
            "llamafactory.lr_scheduler_type: is 'reduce_lr_on_plateau'",
        ),
        ({"infer_backend": "vllm"}, "llamafactory.infer_backend: is 'vllm', but training and prediction use"),
        (
            {"interleave_probs": "0.5,0.5"},
            "llamafactory.interleave_probs: is '0.5,0.5', but mix_strategy concat",
        ),
    ],
)
def test_a_recipe_that_would_fail_in_the_worker_is_refused(given: dict[str, Any], fault: str):
    told = faults(**given)
    assert any(one.startswith(fault) for one in told), told


def test_a_plain_recipe_has_no_fault():
    for kind in ("full", "freeze", "lora"):
        assert faults(SFT, finetuning_type=kind, bf16=True, packages=EVERYTHING, publishes=True) == []


def test_qlora_is_planned_on_a_gpu():
    packages = train_packages(on_cpu=False)
    assert faults(SFT, quantization_bit=4, on_cpu=False, zero_stage=3, packages=packages) == []


@pytest.mark.parametrize("variant", ["use_dora", "use_rslora", "pissa_init"])
def test_the_variants_of_lora_are_planned_on_a_cpu(variant: str):
    assert faults(SFT, **{variant: True}) == []


@pytest.mark.parametrize(
    ("stage", "datasets", "reason"),
    [
        ("dpo", SFT, "dataset: 'docs' does not fit llamafactory.stage 'dpo', which learns from pairs"),
        ("rm", SFT, "which learns from pairs, a better and a worse answer"),
        (
            "sft",
            PAIRS,
            "dataset: 'pairs' does not fit llamafactory.stage 'sft', which cannot use pairs of answers",
        ),
        ("kto", PAIRS, "which cannot use pairs of answers"),
        ("kto", SFT, "which needs a kto_tag with each answer"),
        ("sft", TAGGED, "which cannot use answers with a kto_tag"),
        ("sft", TEXT, "which needs answers, and its rows are plain text"),
    ],
)
def test_a_dataset_from_which_the_stage_cannot_learn_is_refused(stage: str, datasets: Any, reason: str):
    [told] = faults(datasets, stage=stage)
    assert reason in told


@pytest.mark.parametrize(
    ("stage", "datasets"),
    [("sft", SFT), ("pt", TEXT), ("pt", SFT), ("dpo", PAIRS), ("rm", PAIRS), ("kto", TAGGED)],
)
def test_a_dataset_that_fits_is_taken(stage: str, datasets: Any):
    assert faults(datasets, stage=stage) == []


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("full", "its result is a full model already"),
        ("freeze", "a full model already"),
        ("oft", "no merged OFT"),
    ],
)
def test_only_lora_is_merged(kind: str, reason: str):
    [told] = faults(SFT, finetuning_type=kind, merge=True)
    assert told.startswith(f"merge: is True, but llamafactory.finetuning_type is {kind!r}")
    assert reason in told


def test_nothing_is_merged_into_a_quantized_base():
    base = {"quantization_config": {"quant_method": "awq"}}
    [told] = faults(SFT, merge=True, base_config=base)
    assert "the base is quantized (awq), and an adapter cannot be merged into it" in told
    assert faults(SFT, base_config=base) == []


def test_without_training_there_is_nothing_to_publish_or_merge():
    given = {"do_train": False, "do_eval": True, "eval_dataset": "docs"}
    assert faults(SFT, **given) == []
    told = faults(SFT, **given, publishes=True, merge=True)
    assert [one.partition(":")[0] for one in told] == ["merge", "publish"]


def test_a_recipe_that_does_nothing_is_refused():
    [told] = faults(SFT, do_train=False)
    assert "nothing is left to do" in told


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({"use_unsloth": True}, "unsloth"),
        ({"enable_liger_kernel": True}, "liger-kernel"),
        ({"report_to": "wandb"}, "wandb"),
        ({"report_to": ["tensorboard", "mlflow"]}, "mlflow"),
        ({"optim": "paged_adamw_8bit"}, "bitsandbytes"),
        ({"optim": "schedule_free_adamw"}, "schedulefree"),
    ],
)
def test_a_package_that_the_train_environment_lacks_is_named(given: dict[str, Any], missing: str):
    [told] = faults(SFT, **given, packages={"trl": "0.24.0"})
    assert f"which needs {missing}, and the train environment has none." in told


@pytest.mark.parametrize(
    "given", [{"optim": "adamw_torch_fused"}, {"report_to": "tensorboard"}, {"plot_loss": True}]
)
def test_what_is_there_is_not_missed(given: dict[str, Any]):
    assert faults(SFT, **given, packages=train_packages(on_cpu=True)) == []


def test_an_environment_of_ones_own_is_not_judged(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TANDEM_PYTHON_TRAIN", "/somewhere/python")
    assert train_packages(on_cpu=True) is None
    assert faults(SFT, use_unsloth=True, packages=None) == []


@pytest.mark.parametrize(
    ("given", "note"),
    [
        (
            {"template": None},
            "llamafactory.template: is not given, but LLaMA-Factory takes the tokenizer's own",
        ),
        ({"flash_attn": "fa2"}, "llamafactory.flash_attn: is 'fa2', but FlashAttention-2 is not there"),
        (
            {"stage": "dpo", "pref_loss": "orpo", "ref_model": "m"},
            "llamafactory.ref_model: is 'm', but stage dpo",
        ),
        (
            {"pissa_init": True},
            "llamafactory.pissa_init: is True, but without pissa_convert: true the adapter fits",
        ),
        (
            {"stage": "rm", "finetuning_type": "full"},
            "llamafactory.finetuning_type: is 'full', but LLaMA-Factory",
        ),
    ],
)
def test_what_runs_otherwise_than_it_says_is_told(given: dict[str, Any], note: str):
    [told] = judge(Recipe({"template": "qwen3_nothink"} | given), {}).notes
    assert told.startswith(note)
