"""A recipe as the rules look at it: LLaMA-Factory's arguments with their defaults, and where they run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_DEFAULTS: dict[str, Any] = {
    "stage": "sft",
    "finetuning_type": "lora",
    "do_train": True,  # Tandem's own default
    "pref_loss": "sigmoid",
    "quantization_method": "bnb",
    "eval_strategy": "no",
    "save_strategy": "steps",
    "badam_mode": "layer",
    "max_steps": -1,
    "mix_strategy": "concat",
    "infer_backend": "huggingface",
    "val_size": 0.0,
    "dpo_label_smoothing": 0.0,
}
"""Defaults that are not false, zero or nothing. Source: llamafactory 0.9.5, hparams/; transformers 5.6.0."""


@dataclass(frozen=True)
class Recipe:
    """LLaMA-Factory's arguments, and what else decides whether they can run."""

    arguments: Mapping[str, Any]
    zero_stage: int | None = None
    """ZeRO's stage; None without DeepSpeed."""
    on_cpu: bool = True
    merge: bool = False
    publishes: bool = False
    base_config: Mapping[str, Any] = field(default_factory=dict)
    """The base model's own ``config.json``."""
    packages: Mapping[str, str] | None = None
    """Versions of what the train environment holds; None where that is not known."""

    def __getitem__(self, argument: str) -> Any:
        """The argument's value or LLaMA-Factory's default; None where that is nothing."""
        value = self.arguments.get(argument)
        return _DEFAULTS.get(argument) if value is None else value

    @property
    def is_lora(self) -> bool:
        """Whether only a LoRA adapter is trained."""
        return bool(self["finetuning_type"] == "lora")

    @property
    def uses_ref_model(self) -> bool:
        """Whether the loss compares with a reference model."""
        dpo = self["stage"] == "dpo" and self["pref_loss"] not in ("orpo", "simpo")
        return dpo or self["stage"] == "kto"

    @property
    def evaluates(self) -> bool:
        """Whether rows are needed that are not trained on."""
        asked = self["do_eval"] or self["do_predict"] or self["predict_with_generate"]
        return bool(asked) or self["eval_strategy"] != "no"

    def words(self) -> dict[str, Any]:
        """What the rules' sentences may name."""
        names = ("stage", "finetuning_type", "quantization_method", "quantization_bit", "pref_loss")
        trl = (self.packages or {}).get("trl", "0.24.0")
        return {name: self[name] for name in names} | {"trl": trl}
