"""Checks LLaMA-Factory arguments against the catalogue, without LLaMA-Factory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from runtime.core.lookup import did_you_mean

OWNED: dict[str, str] = {
    "model_name_or_path": "Write `model:` at the top of the spec.",
    "dataset": "Write `dataset:` at the top of the spec.",
    "dataset_dir": "Register the data in the store and name it in `dataset:`.",
    "deepspeed": "Write `deepspeed:` at the top of the spec.",
    "output_dir": "The result goes to the run's folder, or to the store with `publish:`.",
    "overwrite_output_dir": "Every run has a fresh folder.",
    "resume_from_checkpoint": "A run resumes from its own last checkpoint by itself.",
    "use_cpu": "`scaling.gpus_per_worker` decides (0: the CPU).",
    "local_rank": "Ray Train sets the ranks.",
    "master_addr": "Ray Train connects the workers.",
    "master_port": "Ray Train connects the workers.",
    "ddp_backend": "It follows `scaling.gpus_per_worker` (nccl, or gloo on CPU).",
    "ray_num_workers": "Write `scaling.num_workers`.",
    "ray_init_kwargs": "The job already runs on a Ray cluster.",
}
"""Arguments of LLaMA-Factory that Tandem sets itself, each with what to write instead."""

SECRET = {
    "hub_token": "HF_TOKEN",
    "hf_hub_token": "HF_TOKEN",
    "ms_hub_token": "MODELSCOPE_API_TOKEN",
    "om_hub_token": "OM_TOKEN",
    "swanlab_api_key": "SWANLAB_API_KEY",
    "swanlab_lark_secret": "SWANLAB_LARK_SECRET",
}
"""Arguments that hold a secret, and the environment variable to use instead: specs are kept and shown."""

_PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (float, int),
    "str": (str,),
    "dict": (dict,),
    "list": (list,),
    "null": (type(None),),
}
_IN_WORDS = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "text"}


@cache
def catalogue() -> dict[str, Any]:
    """``catalogue.json``: version, templates and arguments of the pinned LLaMA-Factory."""
    return dict(json.loads((Path(__file__).parent / "catalogue.json").read_text()))


def faults(arguments: Mapping[str, Any]) -> list[str]:
    """One line for each argument that cannot work: field, value, reason, remedy."""
    found = (_fault(name, value) for name, value in arguments.items())
    return [fault for fault in found if fault]


def _fault(name: str, value: Any) -> str | None:
    field, known = f"llamafactory.{name}", catalogue()["arguments"]
    if name in OWNED:
        return f"{field}: is {value!r}, but Tandem sets this itself. {OWNED[name]} Remove the line."
    if name in SECRET:
        return (
            f"{field}: holds a secret, and specs are stored and shown. Remove the line and set the "
            f"environment variable {SECRET[name]} on the cluster."
        )
    if name not in known:
        usable = [argument for argument in known if argument not in OWNED]
        return (
            f"{field}: LLaMA-Factory {catalogue()['version']} has no such argument (value {value!r}). "
            f"{did_you_mean(name, usable)}"
        )
    return _type_fault(field, value, known[name]["types"]) or _choice_fault(name, value, known[name])


def _type_fault(field: str, value: Any, types: list[str]) -> str | None:
    if "any" in types or any(_is(value, type_) for type_ in types):
        return None
    wanted = " or ".join(_IN_WORDS.get(type_, f"a {type_}") for type_ in types if type_ != "null")
    return f"{field}: is {value!r}, which is {_called(value)}; it takes {wanted}.{_hint(value, types)}"


def _choice_fault(name: str, value: Any, argument: Mapping[str, Any]) -> str | None:
    choices = catalogue()["templates"] if name == "template" else argument.get("choices")
    if choices is None or value is None or value in choices:
        return None
    where = "no template of LLaMA-Factory" if name == "template" else "not one of its choices"
    return f"llamafactory.{name}: is {value!r}, which is {where}. {did_you_mean(str(value), choices)}"


def _is(value: Any, type_: str) -> bool:
    # bool is a subclass of int in Python, but `max_steps: true` is a slip.
    if isinstance(value, bool):
        return type_ == "bool"
    return isinstance(value, _PYTHON_TYPES[type_])


def _called(value: Any) -> str:
    if isinstance(value, bool):
        return "a truth value"
    names = {str: "text", int: "a number", float: "a number", list: "a list", dict: "a mapping"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _hint(value: Any, types: list[str]) -> str:
    """How to write it, where the text is a number that YAML did not take for one."""
    if not isinstance(value, str) or not {"int", "float"} & set(types):
        return (
            f" Write it as one of those, e.g. {str(value).lower()} without quotes." if _quoted(value) else ""
        )
    try:
        number = float(value)
    except ValueError:
        return ""
    shown = int(number) if "float" not in types and number.is_integer() else number
    # YAML 1.1 takes 5e-3 for text: a number with an exponent needs a point.
    return f" Write {shown} (YAML takes a number in quotes, or 5e-3 without a point, for text)."


def _quoted(value: Any) -> bool:
    return isinstance(value, str) and value.lower() in ("true", "false")
