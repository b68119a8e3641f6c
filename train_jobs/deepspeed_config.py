"""A DeepSpeed config and a LLaMA-Factory recipe say some things twice: here they agree, or are refused.

What only the config states moves into the recipe, and the config says ``"auto"`` for it: transformers fills
that in from the recipe, so that each value has one home, also when a run goes on with another number of
workers.

Source: transformers 5.6.0, integrations/deepspeed.py (``HfTrainerDeepSpeedConfig``).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from runtime.core.lookup import did_you_mean
from train_jobs.deepspeed_keys import OFFLOAD_DEVICES, TOP_LEVEL, ZERO
from train_jobs.precision import NAMES, without_fp16

AUTO = "auto"

_WHOLE = (
    "reduce_bucket_size", "allgather_bucket_size", "sub_group_size", "prefetch_bucket_size",
    "param_persistence_threshold", "model_persistence_threshold", "max_live_parameters",
    "max_reuse_distance", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold",
    "stage3_model_persistence_threshold", "stage3_max_live_parameters", "stage3_max_reuse_distance",
)  # fmt: skip
"""Whole numbers of ``zero_optimization``. Source: deepspeed 0.19.8, runtime/zero/config.py."""

_BATCH = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
_MICRO, _STEPS = "per_device_train_batch_size", "gradient_accumulation_steps"
_SECTIONS = (
    "zero_optimization", "fp16", "bf16", "optimizer", "optimizer.params", "scheduler", "scheduler.params",
    "zero_optimization.offload_optimizer", "zero_optimization.offload_param",
)  # fmt: skip
_SAME = {
    "gradient_clipping": "max_grad_norm",
    "optimizer.params.lr": "learning_rate",
    "optimizer.params.eps": "adam_epsilon",
    "optimizer.params.weight_decay": "weight_decay",
    "scheduler.params.warmup_max_lr": "learning_rate",
    "scheduler.params.warmup_num_steps": "warmup_steps",
    "scheduler.params.total_num_steps": "max_steps",
}
"""What both can state: the config's field, and the recipe's argument."""
_SAID_OTHERWISE = {"warmup_steps": "warmup_ratio", "max_steps": "num_train_epochs"}
"""Arguments that a recipe may state in another way: then the config follows the recipe."""


@dataclass
class Reconciled:
    """A config and a recipe that agree, where ``faults`` is empty."""

    deepspeed: dict[str, Any]
    llamafactory: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def at(self, path: str) -> Any:
        """What the config states at ``a.b.c``: None where it is silent or leaves it to the recipe."""
        place: Any = self.deepspeed
        for key in path.split("."):
            place = place.get(key) if isinstance(place, dict) else None
        return None if place == AUTO else place

    def give_up(self, path: str) -> None:
        """Leave ``a.b.c`` to the recipe."""
        *above, last = path.split(".")
        place = self.deepspeed
        for key in above:
            place = place[key]
        place[last] = AUTO

    def take_over(self, path: str, argument: str, value: Any) -> None:
        """Write what only the config states into the recipe."""
        self.llamafactory[argument] = value
        shown = str(value).lower() if isinstance(value, bool) else value
        self.notes.append(f"llamafactory.{argument} becomes {shown}, from deepspeed.{path}.")

    def differ(self, path: str, theirs: Any, argument: str, ours: Any) -> None:
        """Two values for one thing."""
        self.faults.append(
            f"deepspeed.{path}: is {theirs}, but llamafactory.{argument} is {ours}. State it once: remove "
            "one of "
            'the two, or write "auto" in the DeepSpeed config.'
        )


def stage_of(deepspeed: Mapping[str, Any] | None) -> int | None:
    """The ZeRO stage of a config, None without DeepSpeed."""
    if deepspeed is None:
        return None
    zero = deepspeed.get("zero_optimization")
    stage = zero.get("stage", 0) if isinstance(zero, Mapping) else 0
    return stage if isinstance(stage, int) else 0


def whole_number(value: Any) -> int | None:
    """A number as DeepSpeed's pydantic model reads it: digits in quotes are one; None: it would be refused.

    YAML takes ``5e8`` for text, and DeepSpeed does not read it either; ``5.0e+8`` is a number to both.
    """
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    is_whole = isinstance(value, int | float) and not isinstance(value, bool) and value % 1 == 0
    return int(value) if is_whole and value >= 0 else None


def reconcile(
    deepspeed: Mapping[str, Any], recipe: Mapping[str, Any], *, num_workers: int, on_cpu: bool
) -> Reconciled:
    """Bring a DeepSpeed config and a recipe to agree.

    Args:
        deepspeed: The config, as a preset or a person states it.
        recipe: LLaMA-Factory's arguments, as a person states them.
        num_workers: The workers that ``train_batch_size`` is meant for.
        on_cpu: Whether the workers train on CPUs.

    Returns:
        Both, with what had to change in ``notes`` and what cannot be in ``faults``.
    """
    found = Reconciled(copy.deepcopy(dict(deepspeed)), dict(recipe))
    _check_shape(found)
    if found.faults:
        return found
    _batch(found, num_workers)
    for path, argument in _SAME.items():
        _same(found, path, argument)
    _betas(found)
    _optimizer(found)
    _precision(found, on_cpu=on_cpu)
    _offload(found, on_cpu=on_cpu)
    return found


def _check_shape(found: Reconciled) -> None:
    """Keys and types: DeepSpeed tells of some only when the workers run, and of others never."""
    for key in sorted(found.deepspeed.keys() - TOP_LEVEL):
        remedy = did_you_mean(key, TOP_LEVEL)
        found.notes.append(f"deepspeed.{key}: DeepSpeed knows no such key, and passes over it. {remedy}")
    for path in _SECTIONS:
        section = found.at(path)
        if section is not None and not isinstance(section, dict):
            found.faults.append(f"deepspeed.{path}: is {section!r}, but it takes an object.")
    if "bfloat16" in found.deepspeed:
        found.faults.append(
            "deepspeed.bfloat16: transformers reads bf16 only, and would train in another precision. Rename "
            "it."
        )
    if found.faults:
        return
    zero = found.at("zero_optimization") or {}
    for key in sorted(zero.keys() - ZERO):
        found.faults.append(
            f"deepspeed.zero_optimization.{key}: DeepSpeed has no such key. {did_you_mean(key, ZERO)}"
        )
    stage = zero.get("stage", 0)
    if type(stage) is not int or stage not in range(4):
        found.faults.append(
            f"deepspeed.zero_optimization.stage: is {stage!r}, but ZeRO has the stages 0, 1, 2 and 3. Write "
            "one."
        )
    for part in ("offload_optimizer", "offload_param"):
        device = found.at(f"zero_optimization.{part}.device")
        if device is not None and device not in OFFLOAD_DEVICES:
            found.faults.append(
                f"deepspeed.zero_optimization.{part}.device: is {device!r}. Write one of "
                f"{', '.join(OFFLOAD_DEVICES)}."
            )
    _check_values(found)


def _check_values(found: Reconciled) -> None:
    for path in _BATCH:
        value = found.at(path)
        if value is not None and (type(value) is not int or value < 1):
            found.faults.append(
                f'deepspeed.{path}: is {value!r}, but it takes a whole number from 1 on, or "auto".'
            )
    for path in _SAME:
        value = found.at(path)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            found.faults.append(f'deepspeed.{path}: is {value!r}, but it takes a number, or "auto".')
    for key in _WHOLE:
        zero = found.at("zero_optimization") or {}
        if key in zero and zero[key] != AUTO and whole_number(zero[key]) is None:
            found.faults.append(
                f"deepspeed.zero_optimization.{key}: is {zero[key]!r}, but it takes a whole number from 0 "
                'on, or "auto". Write it out (500000000) or as 5.0e+8: 5e8 is text in YAML. Or leave it out.'
            )
    for name in NAMES:
        value = found.at(f"{name}.enabled")
        if value is not None and not isinstance(value, bool):
            found.faults.append(
                f'deepspeed.{name}.enabled: is {value!r}, but it takes true, false, or "auto".'
            )


def _batch(found: Reconciled, num_workers: int) -> None:
    """train_batch_size = num_workers x per_device_train_batch_size x gradient_accumulation_steps."""
    total, recipe = found.at("train_batch_size"), found.llamafactory
    for path, argument in (("train_micro_batch_size_per_gpu", _MICRO), (_STEPS, _STEPS)):
        _same(found, path, argument)
    micro, steps = recipe.get(_MICRO), recipe.get(_STEPS)
    # Written down even where the config leaves them out: DeepSpeed would derive them in another way.
    found.deepspeed |= dict.fromkeys(_BATCH, AUTO)
    given = [value for value in (micro, steps) if value is not None]
    if total is None or found.faults or not all(type(value) is int and value > 0 for value in given):
        return
    product = num_workers * (micro or 1) * (steps or 1)
    words = f"num_workers {num_workers}"
    words += f" x {_MICRO} {micro}" if micro else ""
    words += f" x {_STEPS} {steps}" if steps else ""
    if micro and steps:
        if product != total:
            found.faults.append(
                f"deepspeed.train_batch_size: is {total}, but {words} is {product}. Correct one of them, or "
                'write "auto" for train_batch_size.'
            )
        return
    if total % product:
        nearest = max(total // product, 1) * product
        found.faults.append(
            f"deepspeed.train_batch_size: is {total}, which is not divisible by {words} = {product}. Write a "
            f"multiple of {product} ({nearest} or {nearest + product}), or change the other numbers."
        )
        return
    found.take_over(f"train_batch_size {total} / ({words})", _STEPS if micro else _MICRO, total // product)


def _same(found: Reconciled, path: str, argument: str) -> None:
    """One number that both can state."""
    theirs, ours = found.at(path), found.llamafactory.get(argument)
    if theirs is None:
        return
    if ours is not None and ours != theirs:
        found.differ(path, theirs, argument, ours)
        return
    other = _SAID_OTHERWISE.get(argument)
    if ours is None and other and found.llamafactory.get(other) is not None:
        found.notes.append(
            f"deepspeed.{path} {theirs} is passed over: llamafactory.{other} "
            f"{found.llamafactory[other]} says it."
        )
    elif ours is None:
        found.take_over(path, argument, theirs)
    found.give_up(path)


def _betas(found: Reconciled) -> None:
    path, arguments = "optimizer.params.betas", ("adam_beta1", "adam_beta2")
    betas = found.at(path)
    if betas is None:
        return
    if not isinstance(betas, list) or len(betas) != len(arguments):
        found.faults.append(
            f"deepspeed.{path}: is {betas!r}, but it takes two numbers, such as [0.9, 0.999]."
        )
        return
    for argument, theirs in zip(arguments, betas, strict=True):
        ours = found.llamafactory.get(argument)
        if ours is None:
            found.take_over(path, argument, theirs)
        elif ours != theirs:
            found.differ(path, betas, argument, ours)
    found.give_up(path)


def _optimizer(found: Reconciled) -> None:
    """What changes when DeepSpeed makes the optimizer, or clips the gradients."""
    recipe = found.llamafactory
    if found.at("optimizer") is not None:
        if recipe.get("loraplus_lr_ratio") is not None:
            found.faults.append(
                f"llamafactory.loraplus_lr_ratio: is {recipe['loraplus_lr_ratio']}, but deepspeed.optimizer "
                "takes the place of LoRA+'s optimizer. Remove one of the two."
            )
        if "optim" in recipe:
            found.notes.append(
                f"llamafactory.optim {recipe['optim']} is passed over: deepspeed.optimizer "
                f"{found.at('optimizer.type')} takes its place."
            )
    if "gradient_clipping" not in found.deepspeed:
        # DeepSpeed clips, and transformers no longer does: without the key max_grad_norm has no effect.
        if "max_grad_norm" in recipe:
            found.deepspeed["gradient_clipping"] = AUTO
            found.notes.append(
                'deepspeed.gradient_clipping "auto" is added, without which llamafactory.max_grad_norm has '
                "no effect."
            )
        else:
            found.notes.append("Gradients are not clipped: the DeepSpeed config has no gradient_clipping.")


def _precision(found: Reconciled, *, on_cpu: bool) -> None:
    for name, other in (NAMES, NAMES[::-1]):
        theirs, ours = found.at(f"{name}.enabled"), found.llamafactory.get(name)
        if theirs is not None and ours is not None and theirs != ours:
            found.differ(f"{name}.enabled", str(theirs).lower(), name, str(ours).lower())
        elif theirs and found.llamafactory.get(other):
            found.differ(f"{name}.enabled", "true", other, "true")
        elif theirs and ours is None:
            found.take_over(f"{name}.enabled", name, theirs)
    if on_cpu:
        found.llamafactory, notes = without_fp16(found.llamafactory)
        found.notes += notes
    for name in NAMES:
        if name in found.deepspeed or found.llamafactory.get(name):
            found.deepspeed[name] = found.deepspeed.get(name, {}) | {"enabled": AUTO}


def _offload(found: Reconciled, *, on_cpu: bool) -> None:
    stage = stage_of(found.deepspeed)
    for part, least in (("offload_optimizer", 1), ("offload_param", 3)):
        device = found.at(f"zero_optimization.{part}.device")
        if device in (None, "none"):
            continue
        path = f"deepspeed.zero_optimization.{part}"
        if stage is not None and stage < least:
            found.notes.append(f"{path} has no effect with stage {stage}: it needs stage {least} or more.")
        elif on_cpu and device == "cpu":
            found.notes.append(f"{path} moves nothing: on CPU everything is in the CPU's memory already.")
