"""Arguments that need a package which LLaMA-Factory does not bring: the train environment may lack it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

from cluster.environments import pins
from train_jobs.recipe_view import Recipe

_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", re.MULTILINE)

_NEEDED: dict[str, tuple[str, ...]] = {
    "use_unsloth": ("unsloth",),
    "enable_liger_kernel": ("liger-kernel",),
    "mixture_of_depths": ("mixture-of-depth",),
    "use_galore": ("galore-torch",),
    "use_apollo": ("apollo-torch",),
    "use_badam": ("badam",),
    "use_adam_mini": ("adam-mini",),
    "use_swanlab": ("swanlab",),
    "use_kt": ("kt-kernel",),
    "use_hyper_parallel": ("hyper-parallel",),
    "predict_with_generate": ("jieba", "nltk", "rouge-chinese"),
}
"""By argument, once it is set. Source: llamafactory 0.9.5, hparams/parser.py."""
_REPORTS = {
    "wandb": "wandb", "mlflow": "mlflow", "swanlab": "swanlab", "trackio": "trackio", "comet_ml": "comet-ml",
    "neptune": "neptune", "clearml": "clearml", "codecarbon": "codecarbon", "dvclive": "dvclive",
    "dagshub": "dagshub", "flyte": "flytekit", "azure_ml": "azureml-core",
}  # fmt: skip
"""By name in ``report_to``. Source: transformers 5.6.0, integrations/integration_utils.py."""
_OPTIMIZERS = {
    r"galore_.*": "galore-torch", r"apollo_.*": "apollo-torch", r"(ada)?lomo": "lomo-optim",
    r"grokadamw": "grokadamw", r"schedule_free_.*": "schedulefree", r"adamw_torch_(4|8)bit": "torchao",
    r"(?!adamw_torch).*(bit|bnb|ademamix).*": "bitsandbytes",
}  # fmt: skip
"""By name in ``optim``. Source: transformers 5.6.0, trainer_optimizer.py."""
_METHODS = {"bnb": "bitsandbytes", "hqq": "hqq", "eetq": "eetq"}


def train_packages(*, on_cpu: bool) -> dict[str, str] | None:
    """Versions of what the train environment holds, by the pins; None where it is a person's own."""
    if os.environ.get("TANDEM_PYTHON_TRAIN"):
        return None
    return dict(_PIN.findall(pins("train", "cpu" if on_cpu else "cuda").read_text().lower()))


def package_faults(recipe: Recipe) -> list[str]:
    """One line for each argument whose package is missing."""
    if recipe.packages is None:
        return []
    lacking = [
        (argument, value, [p for p in needed if p not in recipe.packages])
        for argument, value, needed in _needs(recipe)
    ]
    return [
        f"llamafactory.{argument}: is {value!r}, which needs {', '.join(missing)}, and the train "
        "environment has none. Remove the line, or set TANDEM_PYTHON_TRAIN to the python of an environment "
        "that has it."
        for argument, value, missing in lacking
        if missing
    ]


def _needs(recipe: Recipe) -> Iterator[tuple[str, Any, tuple[str, ...]]]:
    for argument, packages in _NEEDED.items():
        if recipe[argument]:
            yield argument, recipe[argument], packages
    reports = recipe["report_to"] or []
    for name in [reports] if isinstance(reports, str) else reports:
        if name in _REPORTS:
            yield "report_to", name, (_REPORTS[name],)
    for pattern, package in _OPTIMIZERS.items():
        if re.fullmatch(pattern, str(recipe["optim"] or "")):
            yield "optim", recipe["optim"], (package,)
    if (
        recipe["quantization_bit"] is not None
        and not recipe.on_cpu
        and recipe["quantization_method"] in _METHODS
    ):
        yield "quantization_bit", recipe["quantization_bit"], (_METHODS[recipe["quantization_method"]],)
