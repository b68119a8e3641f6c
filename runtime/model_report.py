"""``tandem models show``: what a model consists of."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from cluster.estimator.kv_cache import KvCache, kv_cache
from cluster.estimator.parameters import Parameters, count_parameters
from runtime.cli_options import in_words
from runtime.show import print_table
from storage.models import ModelVersion
from storage.tensors import tensors_in


def describe_model(model: ModelVersion) -> dict[str, Any]:
    """Its parameters by part and its KV cache per token in 16 bits, as plain data.

    Raises:
        StorageError: its files' headers cannot be read.
    """
    config = model.config()
    parameters = count_parameters(tensors_in(model.files), config)
    cache = kv_cache(config)
    return {
        "model": model.ref,
        "architecture": next(iter(config.get("architectures") or []), None),
        "parameters": asdict(parameters),
        "kv_cache": asdict(cache) if cache else None,
    }


def print_model(model: ModelVersion, *, as_json: bool) -> None:
    """Print it for people, or as JSON."""
    described = describe_model(model)
    if as_json:
        click.echo(json.dumps(described, indent=2))
        return
    rows = [*described["parameters"]["parts"], _total(described["parameters"])]
    for row in rows:
        row["share"] = f"{row['parameters'] / max(1, described['parameters']['total']):.1%}"
        row["parameters"] = f"{row['parameters']:,}"
        row["size"] = in_words(row["size_bytes"])
        row["types"] = ", ".join(row["dtypes"])
    title = " ".join(word for word in (model.ref, described["architecture"]) if word)
    print_table(rows, ["name", "parameters", "share", "size", "types"], title=title)
    click.echo("\n".join(_notes(described)))


def _total(parameters: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": "all",
        "parameters": parameters["total"],
        "size_bytes": parameters["size_bytes"],
        "dtypes": {},
    }


def _notes(described: dict[str, Any]) -> list[str]:
    parameters = Parameters(**described["parameters"])
    notes = []
    if parameters.active != parameters.total:
        notes.append(f"{parameters.active:,} parameters work on one token.")
    if parameters.tied:
        notes.append("The embedding is the head, too (tie_word_embeddings).")
    if described["kv_cache"]:
        notes.append(_kv_note(KvCache(**described["kv_cache"])))
    return notes


def _kv_note(cache: KvCache) -> str:
    heads = (
        f"a latent vector of {cache.head_dim}" if cache.is_mla else f"{cache.heads} heads of {cache.head_dim}"
    )
    note = (
        f"KV cache: {in_words(cache.bytes_per_token + cache.windowed_bytes_per_token)} a token in 16 bits "
        f"({cache.layers} layers, {heads})"
    )
    if cache.window:
        note += (
            f", of which {in_words(cache.windowed_bytes_per_token)} for the last {cache.window} tokens only"
        )
    return note + "."
