"""A recipe as the estimator looks at it: what is trained, in which types, and how it is divided."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.estimator.activations import Precision
from cluster.estimator.model import ModelShape
from cluster.estimator.training_shape import Evaluation, Swap, TrainingShape, Zero
from train_jobs.deepspeed_config import stage_of, whole_number
from train_jobs.recipe_view import Recipe

_NF4_BYTES = 0.5 + 4 / 64
"""bitsandbytes: 4 bits, and a scale in 32 bits for every 64 parameters."""
_NF4_DOUBLE_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""With the scales quantized to 8 bits in blocks of 256: LLaMA-Factory's default."""
_PAIRED_STAGES = ("dpo", "rm")
_COMPARED_LOGITS_BYTES = {"dpo": 12, "kto": 16}
"""For each token and word, where an evaluation compares with a reference: the logits that are kept meanwhile,
too. Source: LLaMA-Factory, get_batch_loss_metrics of dpo/trainer.py and kto/trainer.py."""


def training_shape(
    recipe: Recipe,
    deepspeed: Mapping[str, Any] | None,
    *,
    model: ModelShape,
    num_workers: int,
    reference: ModelShape | None = None,
) -> TrainingShape:
    """What the estimator is told of a recipe.

    Args:
        recipe: LLaMA-Factory's arguments.
        deepspeed: DeepSpeed's config with its own numbers, or None.
        model: The model to start from.
        num_workers: Data-parallel workers.
        reference: The model named by ``ref_model``; None: the one to start from.
    """
    trains = bool(recipe["do_train"])
    trained = _trained(recipe, model) if trains else 0
    lora_rank = int(recipe["lora_rank"] or 8)
    return TrainingShape(
        model=model,
        trained=trained,
        frozen_bytes=_frozen_bytes(recipe, model, trained),
        precision=_precision(recipe, has_deepspeed=deepspeed is not None),
        optim=str(recipe["optim"] or "adamw_torch"),
        zero=None if deepspeed is None else _zero(deepspeed, model),
        num_workers=num_workers,
        per_device_train_batch_size=int(recipe["per_device_train_batch_size"] or 8) if trains else 0,
        gradient_accumulation_steps=int(recipe["gradient_accumulation_steps"] or 1),
        cutoff_len=int(recipe["cutoff_len"] or 2048),
        rows_at_once=2 if recipe["stage"] in _PAIRED_STAGES else 1,
        gradient_checkpointing=not recipe["disable_gradient_checkpointing"],
        lora_rank=lora_rank if recipe.is_lora else 0,
        # A LoRA adapter that is switched off leaves the reference.
        reference_bytes=(reference or model).bytes_16bit
        if recipe.uses_ref_model and not recipe.is_lora
        else 0,
        flash_attention=recipe["flash_attn"] != "disabled",
        evaluation=_evaluation(recipe),
    )


def _evaluation(recipe: Recipe) -> Evaluation | None:
    """What it evaluates at a time.

    ``compute_accuracy`` needs no more: it keeps the likeliest word of each token. Nor do logits outlive their
    batch, for without metrics the trainer asks for the loss alone.
    """
    if not (recipe["do_eval"] or recipe["do_predict"] or recipe["eval_strategy"] != "no"):
        return None
    batch = int(recipe["per_device_eval_batch_size"] or 8)
    if recipe["predict_with_generate"]:
        answer = int(recipe["max_new_tokens"] or 1024)
        return Evaluation(
            batch, logits_bytes=0, max_new_tokens=answer, num_beams=int(recipe["num_beams"] or 1)
        )
    compared = _COMPARED_LOGITS_BYTES.get(str(recipe["stage"])) if recipe.uses_ref_model else None
    return Evaluation(batch, logits_bytes=compared) if compared else Evaluation(batch)


def _precision(recipe: Recipe, *, has_deepspeed: bool) -> Precision:
    if recipe["pure_bf16"] or has_deepspeed:
        return "half lora" if recipe.is_lora else "half"
    if recipe.is_lora:
        return "lora"
    return "autocast" if recipe["bf16"] or recipe["fp16"] else "single"


def _trained(recipe: Recipe, model: ModelShape) -> int:
    """Parameters with gradients."""
    if recipe["finetuning_type"] == "freeze":
        count = min(model.layers, abs(int(recipe["freeze_trainable_layers"] or 2)))
        return count * model.per_layer + _extra(recipe["freeze_extra_modules"], model)
    if recipe["finetuning_type"] in ("lora", "oft"):
        rank = int(recipe["lora_rank"] or 8)
        linear = model.linear_layers(_words(recipe["lora_target"] or "all"))
        dora = sum(tensor.shape[0] for tensor in linear) if recipe["use_dora"] else 0
        adapters = sum(rank * sum(tensor.shape) for tensor in linear)
        return adapters + dora + _extra(recipe["additional_target"], model)
    frozen = [] if recipe["freeze_vision_tower"] is False else ["vision", "audio"]
    return model.total - sum(part.parameters for part in model.parameters.parts if part.name in frozen)


def _extra(named: Any, model: ModelShape) -> int:
    """Modules that are trained as a whole beside the others."""
    words = _words(named or "")
    found = {"embed_tokens": model.embedding, "lm_head": model.head or model.embedding}
    return sum(size for word, size in found.items() if word in words)


def _words(value: Any) -> list[str]:
    listed = value if isinstance(value, list) else str(value).split(",")
    return [word.strip() for word in listed if word.strip()]


def _frozen_bytes(recipe: Recipe, model: ModelShape, trained: int) -> int:
    if not recipe.is_lora:
        return max(0, 2 * (model.total - trained))
    bits = recipe["quantization_bit"]
    if bits is None or model.quantized:
        return model.bytes_16bit
    double = recipe["double_quantization"] is not False
    each = (_NF4_DOUBLE_BYTES if double else _NF4_BYTES) if int(bits) == 4 else int(bits) / 8
    # What is no linear layer of a block stays in 16 bits. In transformers 5 experts are none (bitsandbytes
    # takes nn.Linear only, and they are one parameter), so QLoRA saves little on a mixture of experts.
    linear = sum(tensor.elements for tensor in model.linear_layers(["all"]))
    return round(each * linear) + 2 * (model.total - linear)


def _zero(deepspeed: Mapping[str, Any], model: ModelShape) -> Zero:
    """ZeRO's own numbers; ``auto`` as transformers fills it in."""
    section = deepspeed.get("zero_optimization")
    config = section if isinstance(section, Mapping) else {}

    def number(name: str, auto: int, default: int) -> int:
        value = config.get(name, default)
        found = auto if value == "auto" else whole_number(value)
        return default if found is None else found  # the plan refuses it

    hidden = model.hidden_size
    stage = stage_of(deepspeed) or 0
    optimizer, param = (_offloaded(config.get(f"offload_{part}")) for part in ("optimizer", "param"))
    # Stages 1 and 2 take a disk for the host's memory.
    on_disk = [stage == 3 and part.get("device") == "nvme" for part in (optimizer, param)]
    return Zero(
        stage=stage,
        offload_optimizer=bool(optimizer),
        offload_param=bool(param),
        optimizer_buffer_count=_number(optimizer, "buffer_count", 4) if on_disk[0] else None,
        param_swap=Swap(
            buffer_count=_number(param, "buffer_count", Swap.buffer_count),
            buffer_size=_number(param, "buffer_size", Swap.buffer_size),
            max_in_cpu=_number(param, "max_in_cpu", Swap.max_in_cpu),
        )
        if on_disk[1]
        else None,
        sub_group_size=number("sub_group_size", Zero.sub_group_size, Zero.sub_group_size),
        reduce_bucket_size=number("reduce_bucket_size", hidden * hidden, 500_000_000),
        max_live_parameters=number("stage3_max_live_parameters", 1_000_000_000, 1_000_000_000),
        overlap_comm=bool(config.get("overlap_comm", False)),
    )


def _offloaded(section: Any) -> Mapping[str, Any]:
    """What it says of offloading; nothing where nothing is offloaded."""
    there = isinstance(section, Mapping) and section.get("device") not in (None, "none")
    return section if there else {}


def _number(section: Mapping[str, Any], name: str, default: int) -> int:
    found = whole_number(section.get(name, default))
    return default if found is None else found
