"""Recipes and models as the estimator looks at them, and what it says of them."""

from __future__ import annotations

from typing import Any

from cluster.estimator.calibration import calibration
from cluster.estimator.model import ModelShape
from cluster.estimator.terms import Estimate
from cluster.estimator.training import estimate_training
from cluster.estimator.training_shape import TrainingShape
from tests.estimator.models import LLAMA_2_7B, LLAMA_3_8B, model_of
from train_jobs import deepspeed_presets
from train_jobs.deepspeed_config import stage_of
from train_jobs.memory import training_shape
from train_jobs.recipe_view import Recipe

GIB = 1 << 30
LLAMA_8B = model_of(LLAMA_3_8B)
LLAMA_7B = model_of(LLAMA_2_7B)
FULL = {"finetuning_type": "full", "bf16": True, "per_device_train_batch_size": 1, "cutoff_len": 2048}
LORA = FULL | {"finetuning_type": "lora"}


def shape_of(
    model: ModelShape,
    recipe: dict[str, Any],
    *,
    deepspeed: str | None = None,
    num_workers: int = 1,
    on_cpu: bool = False,
) -> TrainingShape:
    config = deepspeed_presets.resolve(deepspeed)
    view = Recipe(recipe, zero_stage=stage_of(config), on_cpu=on_cpu)
    return training_shape(view, config, model=model, num_workers=num_workers)


def estimated(
    model: ModelShape, recipe: dict[str, Any], product: str | None = "gpu", **where: Any
) -> Estimate:
    found = estimate_training(shape_of(model, recipe, on_cpu=product is None, **where), calibration(product))
    return found if product else found.on_one_memory()


def sizes(found: Estimate, on: str | None = None) -> dict[str, int]:
    """Bytes by name, the largest where a term differs by phase."""
    made: dict[str, int] = {}
    for term in found.terms:
        if on in (None, term.on):
            made[term.name] = max(made.get(term.name, 0), term.size_bytes)
    return made
