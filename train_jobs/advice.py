"""What to write otherwise in a train spec so that its workers fit, the cheapest changes first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cluster.estimator.advice import Change
from train_jobs import deepspeed_presets
from train_jobs.deepspeed_config import stage_of

_CUTOFF_LENS = (32768, 16384, 8192, 4096, 2048, 1024, 512)
_BATCH_SIZE = 8
"""LLaMA-Factory's, that is transformers', default of per_device_train_batch_size and of its sibling."""


@dataclass(frozen=True)
class Draft:
    """What of a train spec decides its memory."""

    llamafactory: Mapping[str, Any]
    deepspeed: Mapping[str, Any] | None
    num_workers: int

    def with_arguments(self, **arguments: Any) -> Draft:
        """The same with other arguments of LLaMA-Factory."""
        return replace(self, llamafactory={**self.llamafactory, **arguments})


def changes(*, on_gpu: bool, most_gpus: int) -> list[Change[Draft]]:
    """Changes of a train spec.

    Args:
        on_gpu: Whether its workers train on GPUs.
        most_gpus: GPUs that the run could have.
    """
    found = [
        Change("llamafactory.per_device_eval_batch_size: 1", _evaluation_by_rows),
        Change("llamafactory.disable_gradient_checkpointing: false", _checkpointing),
        Change("a smaller batch", _smaller_batch, _batch_words),
        Change("deepspeed: zero2", lambda draft: _preset(draft, "zero2")),
        Change("deepspeed: zero3", lambda draft: _preset(draft, "zero3")),
        Change("deepspeed: zero2-offload", lambda draft: _preset(draft, "zero2-offload")),
        Change("deepspeed: zero3-offload", lambda draft: _preset(draft, "zero3-offload")),
    ]
    if on_gpu:
        found.append(Change("llamafactory.optim: adamw_8bit", _optim_8bit))
    found.append(Change("llamafactory.finetuning_type: lora", _lora))
    if on_gpu:
        found.append(
            Change("llamafactory.finetuning_type: lora with llamafactory.quantization_bit: 4", _qlora)
        )
    found += [_shorter(length) for length in _CUTOFF_LENS]
    found += [_workers(count) for count in (2, 4, 8, 16) if count <= most_gpus]
    return found


def _checkpointing(draft: Draft) -> Draft | None:
    if not draft.llamafactory.get("disable_gradient_checkpointing"):
        return None
    return draft.with_arguments(disable_gradient_checkpointing=False)


def _evaluation_by_rows(draft: Draft) -> Draft | None:
    """Rows are evaluated one at a time, and the training stays as it is."""
    if int(draft.llamafactory.get("per_device_eval_batch_size", _BATCH_SIZE)) == 1:
        return None
    return draft.with_arguments(per_device_eval_batch_size=1)


def _smaller_batch(draft: Draft) -> Draft | None:
    """The same global batch, a row at a time."""
    batch = int(draft.llamafactory.get("per_device_train_batch_size", _BATCH_SIZE))
    if batch == 1:
        return None
    steps = int(draft.llamafactory.get("gradient_accumulation_steps", 1))
    return draft.with_arguments(per_device_train_batch_size=1, gradient_accumulation_steps=steps * batch)


def _batch_words(draft: Draft) -> str:
    return (
        "llamafactory.per_device_train_batch_size: 1 with gradient_accumulation_steps: "
        f"{draft.llamafactory['gradient_accumulation_steps']}"
    )


def _preset(draft: Draft, name: str) -> Draft | None:
    """A preset of ours that divides or offloads more than what there is."""
    preset = deepspeed_presets.resolve(name)
    offloads = name.endswith("-offload")
    now = stage_of(draft.deepspeed) or 0
    divides_more = draft.num_workers > 1 and (stage_of(preset) or 0) > now
    if not (divides_more or (offloads and not _offloads(draft.deepspeed))):
        return None
    if draft.llamafactory.get("quantization_bit") and stage_of(preset) == 3:
        return None
    return replace(draft, deepspeed=preset)


def _offloads(deepspeed: Mapping[str, Any] | None) -> bool:
    return bool(((deepspeed or {}).get("zero_optimization") or {}).get("offload_optimizer"))


def _optim_8bit(draft: Draft) -> Draft | None:
    return None if draft.llamafactory.get("optim") else draft.with_arguments(optim="adamw_8bit")


def _lora(draft: Draft) -> Draft | None:
    if draft.llamafactory.get("finetuning_type", "lora") == "lora":
        return None
    return draft.with_arguments(finetuning_type="lora")


def _qlora(draft: Draft) -> Draft | None:
    if draft.llamafactory.get("quantization_bit") or stage_of(draft.deepspeed) == 3:
        return None
    return draft.with_arguments(finetuning_type="lora", quantization_bit=4)


def _shorter(length: int) -> Change[Draft]:
    def apply(draft: Draft) -> Draft | None:
        is_shorter = length < int(draft.llamafactory.get("cutoff_len", 2048))
        return draft.with_arguments(cutoff_len=length) if is_shorter else None

    return Change(f"llamafactory.cutoff_len: {length}", apply, kind="cutoff_len")


def _workers(count: int) -> Change[Draft]:
    """More workers with ZeRO-3, which divides everything between them."""

    def apply(draft: Draft) -> Draft | None:
        if count <= draft.num_workers or draft.llamafactory.get("quantization_bit"):
            return None
        return replace(draft, num_workers=count, deepspeed=deepspeed_presets.resolve("zero3"))

    return Change(f"scaling.num_workers: {count} with deepspeed: zero3", apply, kind="num_workers")
