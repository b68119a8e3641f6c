"""The models that a recipe names: its base, adapters to go on from, and a reference; each looked up in the
store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.core.errors import ConfigError
from storage.models import ModelVersion
from storage.store import Store
from train_jobs.recipe_view import Recipe

ARGUMENTS = {
    "adapter_name_or_path": "adapter",
    "ref_model": "full",
    "ref_model_adapters": "adapter",
}
"""LLaMA-Factory's arguments that name models, by name in the store, path or address, and the kind each
takes."""


def absolute(ref: str) -> str:
    """A relative path, made to mean the same anywhere; a name or an address stays."""
    relative = ref.startswith(("./", "../", "~")) or ref in (".", "..")
    return str(Path(ref).expanduser().absolute()) if relative else ref


def split(value: str) -> list[str]:
    """LLaMA-Factory takes several, with commas between them."""
    return [ref.strip() for ref in value.split(",")]


def base_model(ref: str, store: Store) -> ModelVersion:
    """The model to start from.

    Raises:
        ConfigError: there is none, or it is an adapter.
    """
    model = store.model(ref, field="model")
    if model.is_adapter:
        raise ConfigError(
            f"model is {model.ref!r}, an adapter over {model.base}, which holds no weights to start from. "
            f"Set model: {model.base}; to train it further, llamafactory.adapter_name_or_path: {model.ref}."
        )
    return model


def named_models(arguments: Mapping[str, Any], store: Store) -> dict[str, list[str]]:
    """By argument what it names, as ``name/version`` or an address, where the recipe's stage reads it.

    Raises:
        ConfigError: there is no such model, or it is a full one where an adapter is wanted, or the reverse.
    """
    found = {}
    for argument, kind in ARGUMENTS.items():
        value = arguments.get(argument)
        if isinstance(value, str) and _is_read(argument, arguments):
            found[argument] = [_found(ref, argument, kind, store) for ref in split(value)]
    return found


def _is_read(argument: str, arguments: Mapping[str, Any]) -> bool:
    if argument == "adapter_name_or_path":
        return True
    # Adapters of a reference belong to a model that ref_model names.
    return bool(arguments.get("ref_model")) and Recipe(arguments).uses_ref_model


def _found(ref: str, argument: str, kind: str, store: Store) -> str:
    model = store.model(ref, field=f"llamafactory.{argument}")
    if model.is_adapter == (kind == "adapter"):
        return model.ref
    if kind == "adapter":
        remedy = f"Set model: {model.ref} instead, or name an adapter."
        raise ConfigError(
            f"llamafactory.{argument} is {model.ref!r}, which is a full model and no adapter. {remedy}"
        )
    raise ConfigError(
        f"llamafactory.{argument} is {model.ref!r}, an adapter over {model.base}. Name a full model here, "
        f"and the adapter in {argument}_adapters."
    )
