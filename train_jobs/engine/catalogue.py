"""Writes ``train_jobs/catalogue.json``: every argument and template of the installed LLaMA-Factory.

    python -m train_jobs.engine.catalogue      # in the train environment, after its pins have changed

The core environment checks specs against the file, because it has no LLaMA-Factory to ask.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib.metadata
import json
import types
import typing
from pathlib import Path
from typing import Any

from llamafactory.data.template import TEMPLATES
from llamafactory.hparams.data_args import DataArguments
from llamafactory.hparams.finetuning_args import FinetuningArguments
from llamafactory.hparams.generating_args import GeneratingArguments
from llamafactory.hparams.model_args import ModelArguments
from llamafactory.hparams.training_args import TrainingArguments

CATALOGUE = Path(__file__).parents[1] / "catalogue.json"

_GROUPS = (ModelArguments, DataArguments, TrainingArguments, FinetuningArguments, GeneratingArguments)
_JSON_TYPES = {bool: "bool", int: "int", float: "float", str: "str", dict: "dict", list: "list"}


def build() -> dict[str, Any]:
    """What the installed LLaMA-Factory knows, as plain data in a stable order.

    Returns:
        ``version``, ``templates`` (names) and ``arguments``: for each name ``types`` (JSON types it
        takes), and ``choices`` where only some values are allowed.
    """
    arguments = {}
    for group in _GROUPS:
        hints = typing.get_type_hints(group)
        for field in dataclasses.fields(group):
            if field.init:
                arguments[field.name] = _describe(hints[field.name], field)
    return {
        "version": importlib.metadata.version("llamafactory"),
        "templates": sorted(TEMPLATES),
        "arguments": dict(sorted(arguments.items())),
    }


def _describe(hint: Any, field: dataclasses.Field[Any]) -> dict[str, Any]:
    types_, choices = _shape(hint)
    if field.default is None:
        types_.add("null")
    described: dict[str, Any] = {"types": sorted(types_)}
    choices = choices or list(field.metadata.get("choices") or ())
    # A lone literal beside free text (``Literal[False] | str``) lists no choices.
    if choices and all(isinstance(choice, str) for choice in choices):
        described["choices"] = sorted(choices)
    return described


def _shape(hint: Any) -> tuple[set[str], list[Any]]:
    """JSON types that ``hint`` takes, and its choices when the whole hint is an enumeration."""
    origin = typing.get_origin(hint)
    if hint is type(None):
        return {"null"}, []
    if hint is Any:
        return {"any"}, []
    if origin is typing.Literal:
        values = list(typing.get_args(hint))
        return {_JSON_TYPES[type(value)] for value in values}, values
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return {"str"}, [member.value for member in hint]
    if origin in (typing.Union, types.UnionType):
        parts = [_shape(part) for part in typing.get_args(hint)]
        return set().union(*(names for names, _ in parts)), [c for _, choices in parts for c in choices]
    return {_JSON_TYPES.get(origin or hint, "any")}, []


def main() -> None:
    """Write the file and say where it is."""
    CATALOGUE.write_text(json.dumps(build(), indent=1) + "\n")
    print(f"wrote {CATALOGUE}")


if __name__ == "__main__":
    main()
