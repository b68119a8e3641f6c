"""The rules of ``recipes``: an argument, when it cannot work, and why, with what to write instead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from train_jobs.recipe_view import Recipe

_BITS = {"bnb": (4, 8), "hqq": (1, 2, 3, 4, 5, 6, 8), "eetq": (8,)}
"""Methods that quantize while the model is loaded, and to how many bits."""


@dataclass(frozen=True)
class Rule:
    """``because`` completes the sentence ``llamafactory.<argument>: is <value>, but ...``."""

    argument: str
    applies: Callable[[Recipe], bool]
    because: str


def _given(argument: str, when: Callable[[Recipe], bool]) -> Callable[[Recipe], bool]:
    """Whether the argument is set to something, and ``when`` holds."""
    return lambda recipe: bool(recipe[argument]) and when(recipe)


def _rule(argument: str, when: Callable[[Recipe], bool], because: str) -> Rule:
    return Rule(argument, _given(argument, when), because)


def _not_sft(recipe: Recipe) -> bool:
    return bool(recipe["stage"] != "sft")


def _zero3(recipe: Recipe) -> bool:
    return recipe.zero_stage == 3


def _not_lora(recipe: Recipe) -> bool:
    return not recipe.is_lora


def _on_cpu(recipe: Recipe) -> bool:
    return recipe.on_cpu


def _always(recipe: Recipe) -> bool:
    return True


def _has_no_eval_rows(recipe: Recipe) -> bool:
    return recipe.evaluates and not recipe["eval_dataset"] and recipe["val_size"] < 1e-6


def _adapters(recipe: Recipe) -> int:
    named = recipe["adapter_name_or_path"]
    return len(str(named).split(",")) if named else 0


def _saves_when_it_evaluates(recipe: Recipe) -> bool:
    return recipe["save_strategy"] in ("best", recipe["eval_strategy"])


RULES: tuple[Rule, ...] = (
    Rule(
        "stage",
        lambda r: r["stage"] == "ppo",
        "LLaMA-Factory's PPO runs with trl 0.8.6 to 0.9.6 only, the rest of it with trl 0.18 or newer "
        "(here: {trl}). Train with dpo or kto instead.",
    ),
    # adapters
    _rule(
        "adapter_name_or_path",
        _not_lora,
        "only LoRA goes on from an adapter, and finetuning_type is {finetuning_type}. Set finetuning_type: "
        "lora, or remove the line.",
    ),
    *(
        _rule(
            name, _not_lora, "it belongs to LoRA, and finetuning_type is {finetuning_type}. Remove the line."
        )
        for name in ("loraplus_lr_ratio", "use_rslora", "use_dora", "pissa_init")
    ),
    _rule(
        "pissa_init",
        lambda r: r.is_lora and r.uses_ref_model,
        "PiSSA changes the base, which stage {stage} compares with. Remove the line, or train in stage sft.",
    ),
    _rule("pissa_init", _zero3, "PiSSA cannot take apart what ZeRO-3 has sharded. Use deepspeed: zero2."),
    # quantization
    Rule(
        "quantization_bit",
        lambda r: r["quantization_bit"] is not None and r["finetuning_type"] in ("full", "freeze"),
        "quantized weights cannot be trained (finetuning_type is {finetuning_type}). Set finetuning_type: "
        "lora.",
    ),
    Rule(
        "quantization_bit",
        lambda r: r["quantization_bit"] is not None and r.on_cpu,
        "{quantization_method} needs a GPU, and the workers have none. Remove the line to train on the full "
        "base, or set scaling.gpus_per_worker.",
    ),
    Rule(
        "quantization_bit",
        lambda r: (
            r["quantization_bit"] is not None
            and r["quantization_bit"] not in _BITS.get(r["quantization_method"], (r["quantization_bit"],))
        ),
        "quantization_method {quantization_method} cannot do that: bnb takes 4 or 8, hqq 1 to 6 or 8, eetq "
        "8.",
    ),
    Rule(
        "quantization_method",
        lambda r: r["quantization_bit"] is not None and r["quantization_method"] not in _BITS,
        "only bnb, hqq and eetq quantize a model while it is loaded. Use bnb, or remove quantization_bit "
        "and start from a model that is quantized already.",
    ),
    Rule(
        "quantization_bit",
        lambda r: (
            r["quantization_bit"] is not None
            and _zero3(r)
            and not (r["quantization_method"] == "bnb" and r["quantization_bit"] == 4)
        ),
        "ZeRO-3 can shard 4-bit bnb weights only. Use deepspeed: zero2, or quantization_bit: 4.",
    ),
    *(
        _rule(name, lambda r: r["quantization_bit"] is not None, because)
        for name, because in (
            ("pissa_init", "PiSSA cannot take apart a quantized base. Remove one of the two."),
            ("resize_vocab", "a quantized model's embeddings cannot grow. Remove one of the two."),
            ("fp8", "FP8 training and quantization exclude each other. Remove one of the two."),
        )
    ),
    Rule(
        "create_new_adapter",
        lambda r: bool(r["create_new_adapter"]) and r["quantization_bit"] is not None and _adapters(r) > 0,
        "a quantized base cannot have one adapter merged and another begun. Remove the line, or "
        "quantization_bit.",
    ),
    Rule(
        "adapter_name_or_path",
        lambda r: r["quantization_bit"] is not None and _adapters(r) > 1,
        "a quantized base takes one adapter only. Merge them first.",
    ),
    _rule(
        "quantization_device_map",
        lambda r: bool(r["do_train"]),
        "training places the model itself. Remove the line.",
    ),
    # stages
    *(
        _rule(name, _not_sft, "it is for stage sft only, and stage is {stage}. Remove the line.")
        for name in ("predict_with_generate", "neat_packing", "train_on_prompt", "mask_history")
    ),
    _rule(
        "mask_history",
        lambda r: bool(r["train_on_prompt"]),
        "train_on_prompt excludes it. Remove one of the two.",
    ),
    _rule(
        "do_predict",
        lambda r: r["stage"] == "sft" and not r["predict_with_generate"],
        "there are no predictions without predict_with_generate: true. Add it.",
    ),
    _rule("predict_with_generate", _zero3, "ZeRO-3 cannot generate. Use deepspeed: zero2."),
    _rule(
        "predict_with_generate",
        lambda r: bool(r["compute_accuracy"]),
        "compute_accuracy needs logits, which generating does not give. Remove one of the two.",
    ),
    _rule(
        "load_best_model_at_end",
        lambda r: r["stage"] in ("rm", "ppo"),
        "stage {stage} cannot load its value head again. Remove the line.",
    ),
    _rule(
        "load_best_model_at_end",
        lambda r: not _saves_when_it_evaluates(r),
        "the best model is chosen among checkpoints that were evaluated: set eval_strategy and "
        "save_strategy alike.",
    ),
    _rule(
        "early_stopping_steps",
        lambda r: (
            r["eval_strategy"] == "no" or not (r["metric_for_best_model"] or r["load_best_model_at_end"])
        ),
        "stopping early needs eval_strategy and metric_for_best_model. Set both.",
    ),
    _rule(
        "dpo_label_smoothing",
        lambda r: r["stage"] == "dpo" and r["pref_loss"] != "sigmoid",
        "pref_loss {pref_loss} knows no smoothing, only sigmoid does. Remove the line.",
    ),
    _rule(
        "use_llama_pro",
        lambda r: r["finetuning_type"] == "full",
        "it trains added blocks alone: set finetuning_type: freeze or lora.",
    ),
    # rows
    Rule(
        "eval_dataset",
        _has_no_eval_rows,
        "evaluation and prediction need rows: name an eval_dataset, or set val_size.",
    ),
    _rule(
        "val_size",
        lambda r: bool(r["eval_dataset"]),
        "eval_dataset is given too. Remove one of the two.",
    ),
    Rule(
        "max_steps",
        lambda r: bool(r["streaming"]) and r["max_steps"] < 1,
        "streamed rows cannot be counted: set max_steps, or remove streaming.",
    ),
    _rule(
        "max_samples",
        lambda r: bool(r["streaming"]),
        "streamed rows cannot be counted. Remove one of the two.",
    ),
    _rule(
        "val_size",
        lambda r: bool(r["streaming"]) and r["val_size"] < 1,
        "streaming takes a number of rows here.",
    ),
    _rule(
        "interleave_probs",
        lambda r: r["mix_strategy"] == "concat",
        "mix_strategy concat takes every row once. Set mix_strategy: interleave_under or interleave_over.",
    ),
    # precision and kernels
    _rule("fp16", lambda r: bool(r["bf16"]), "bf16 is true as well. Remove one of the two."),
    _rule("pure_bf16", _on_cpu, "LLaMA-Factory allows it on a GPU only. Write bf16: true instead."),
    _rule("pure_bf16", _zero3, "ZeRO-3 keeps its own master weights. Write bf16: true instead."),
    _rule("fp8", _on_cpu, "FP8 needs a GPU of the Hopper generation. Write bf16: true instead."),
    _rule("tf32", _on_cpu, "TF32 is a GPU's arithmetic. Remove the line."),
    _rule("use_unsloth_gc", _on_cpu, "it keeps activations on a GPU. Remove the line."),
    Rule(
        "flash_attn",
        lambda r: r["flash_attn"] == "fa3",
        "LLaMA-Factory takes FlashAttention-3 for gpt-oss by itself, and refuses it by name. Write "
        "flash_attn: auto.",
    ),
    *(
        _rule(name, _zero3, "ZeRO-3 shards what it patches. Use deepspeed: zero2.")
        for name in ("use_unsloth", "use_kt")
    ),
    # optimizers
    *(
        _rule(name, lambda r: r.is_lora, "LoRA excludes it. Set finetuning_type: full, or remove the line.")
        for name in ("use_galore", "use_apollo", "use_badam")
    ),
    *(
        _rule(
            name,
            lambda r: r.zero_stage is not None,
            "it does not work with DeepSpeed. Remove one of the two.",
        )
        for name in ("use_galore", "use_apollo")
    ),
    *(
        _rule(name, _always, "workers are distributed here, which it does not support. Remove the line.")
        for name in ("galore_layerwise", "apollo_layerwise")
    ),
    _rule(
        "use_badam",
        lambda r: r["badam_mode"] == "ratio" or not _zero3(r),
        "among workers BAdam runs layer-wise under ZeRO-3 only. Set badam_mode: layer and deepspeed: zero3.",
    ),
    Rule(
        "lr_scheduler_type",
        lambda r: r["lr_scheduler_type"] in ("reduce_lr_on_plateau", "greedy") and r["eval_strategy"] == "no",
        "it follows the evaluation: set eval_strategy.",
    ),
    Rule(
        "infer_backend",
        lambda r: r["infer_backend"] != "huggingface",
        "training and prediction use huggingface. Remove the line.",
    ),
)
"""What cannot run."""

NOTES: tuple[Rule, ...] = (
    Rule(
        "template",
        lambda r: not r["template"] and r["stage"] != "pt",
        "LLaMA-Factory takes the tokenizer's own chat template then, and `empty` where it has none.",
    ),
    Rule(
        "flash_attn",
        lambda r: (
            r["flash_attn"] == "fa2" and (r.on_cpu or "flash-attn" not in (r.packages or {"flash-attn": ""}))
        ),
        "FlashAttention-2 is not there: LLaMA-Factory takes the model's default attention.",
    ),
    Rule(
        "ref_model",
        lambda r: bool(r["ref_model"]) and not r.uses_ref_model,
        "stage {stage} with pref_loss {pref_loss} has no reference model: it is not loaded.",
    ),
    _rule("reward_model", lambda r: r["stage"] != "ppo", "only ppo has a reward model: it is not loaded."),
    _rule(
        "pissa_init",
        lambda r: not r["pissa_convert"],
        "without pissa_convert: true the adapter fits only a base that was taken apart as here.",
    ),
    Rule(
        "quantization_bit",
        lambda r: r["quantization_bit"] is not None and r.merge,
        "merge: true merges into the base as it is in the store, unquantized.",
    ),
    Rule(
        "finetuning_type",
        lambda r: r["stage"] == "rm" and r["finetuning_type"] in ("full", "freeze"),
        "LLaMA-Factory resumes no reward model but LoRA's: after a lost worker the training begins again.",
    ),
)
"""What runs, but not as its words say."""
