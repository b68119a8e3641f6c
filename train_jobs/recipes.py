"""What a recipe asks that LLaMA-Factory would refuse only in the worker, or pass over without a word.

Source: llamafactory 0.9.5, hparams/parser.py, hparams/*_args.py, data/loader.py, model/model_utils/*.py;
transformers 5.6.0, training_args.py. The rules themselves are in ``recipe_rules`` and ``recipe_packages``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from train_jobs.recipe_packages import package_faults
from train_jobs.recipe_rules import NOTES, RULES, Rule
from train_jobs.recipe_view import Recipe

__all__ = ["Recipe", "Verdict", "judge"]

_UNQUANTIZED = ("mxfp4", "fp8")
"""Quantized models whose weights LLaMA-Factory turns back into plain ones when it loads them."""


@dataclass(frozen=True)
class Verdict:
    """What is wrong with a recipe, and what a person should know of it."""

    faults: list[str]
    notes: list[str]


def judge(recipe: Recipe, datasets: Mapping[str, Mapping[str, Any]]) -> Verdict:
    """Every fault and every note, one a line.

    Args:
        recipe: The recipe, where it runs, and what is to become of the result.
        datasets: The entries of ``dataset_info.json`` for all its datasets.
    """
    faults = [_told(rule, recipe) for rule in RULES if rule.applies(recipe)]
    notes = [_told(rule, recipe) for rule in NOTES if rule.applies(recipe)]
    faults += package_faults(recipe) + _result_faults(recipe) + _base_faults(recipe)
    for name, entry in datasets.items():
        faults += _dataset_faults(recipe, name, entry)
    return Verdict(faults, notes)


def _told(rule: Rule, recipe: Recipe) -> str:
    value = recipe[rule.argument]
    shown = "not given" if value is None else repr(value)
    return f"llamafactory.{rule.argument}: is {shown}, but {rule.because.format_map(recipe.words())}"


def _result_faults(recipe: Recipe) -> list[str]:
    """``merge`` and ``publish`` need something that was trained, and merged weights need an adapter."""
    faults = []
    if not recipe["do_train"]:
        for name, wanted in (("merge", recipe.merge), ("publish", recipe.publishes)):
            if wanted:
                faults.append(
                    f"{name}: is set, but llamafactory.do_train is false, and there is no result without "
                    f"training. Remove {name}, or set do_train: true."
                )
        if not recipe["do_eval"] and not recipe["do_predict"]:
            faults.append(
                "llamafactory.do_train: is False, and neither do_eval nor do_predict is true: nothing is "
                "left to do. Set one of the three."
            )
    elif recipe.merge and recipe["finetuning_type"] != "lora":
        kind = recipe["finetuning_type"]
        why = "LLaMA-Factory exports no merged OFT" if kind == "oft" else "its result is a full model already"
        faults.append(f"merge: is True, but llamafactory.finetuning_type is {kind!r}: {why}. Remove merge.")
    return faults


def _base_faults(recipe: Recipe) -> list[str]:
    """What a base that is quantized itself cannot have done to it."""
    method = (recipe.base_config.get("quantization_config") or {}).get("quant_method")
    if method is None or method in _UNQUANTIZED:
        return []
    faults = []
    if recipe.merge:
        faults.append(
            f"merge: is True, but the base is quantized ({method}), and an adapter cannot be merged into it. "
            "Remove merge, or train on the unquantized model."
        )
    if recipe.zero_stage == 3:
        faults.append(
            f"deepspeed: is ZeRO-3, but the base is quantized ({method}), which ZeRO-3 cannot shard. Use "
            "zero2, or the unquantized model."
        )
    return faults


def _dataset_faults(recipe: Recipe, name: str, entry: Mapping[str, Any]) -> list[str]:
    """Whether the stage can learn from the dataset: LLaMA-Factory refuses it, or drops every row."""
    stage, columns = recipe["stage"], entry.get("columns") or {}
    is_ranking, is_kto = bool(entry.get("ranking")), "kto_tag" in columns
    has_answers = "messages" in columns or "response" in columns or not columns
    why = None
    if stage in ("rm", "dpo") and not is_ranking:
        why = "learns from pairs, a better and a worse answer (chosen, rejected, and ranking: true)"
    elif stage in ("sft", "pt", "kto") and is_ranking:
        why = "cannot use pairs of answers (ranking: true): they are for dpo and rm"
    elif stage == "kto" and not is_kto:
        why = "needs a kto_tag with each answer, true or false"
    elif stage == "sft" and is_kto:
        why = "cannot use answers with a kto_tag: they are for kto"
    elif stage == "sft" and not has_answers:
        why = "needs answers, and its rows are plain text: that is for pt"
    if why is None:
        return []
    return [
        f"dataset: {name!r} does not fit llamafactory.stage {stage!r}, which {why}. Change one of the two."
    ]
