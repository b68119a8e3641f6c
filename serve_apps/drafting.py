"""The model that drafts tokens for an engine's own (speculative decoding), as far as its files tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from cluster.estimator.model import ModelShape, model_shape
from runtime.core.errors import ConfigError, StorageError
from storage.location import locate
from storage.tensors import tensors_in

_WITHOUT_A_MODEL = ("ngram", "[ngram]", "suffix")
_OTHER_NAMES = ("eagle-", "eagle3", "dflash", "dspark")
_OTHER_TYPES = ("medusa", "mlp_speculator", "eagle", "speculators")
_OTHER_LAYERS = ("num_nextn_predict_layers", "mtp_num_hidden_layers")
"""By any of these vLLM takes a draft for something else than a whole model: a head, or layers of one.
Source: vllm/config/speculative.py, ``__post_init__`` and ``hf_config_override``."""


@dataclass(frozen=True)
class Drafting:
    """What an engine drafts with."""

    model: ModelShape | None = None
    """Loaded beside its own; None: none is, or it is not known."""

    tensor_parallel_size: int | None = None
    """Workers that it is divided over; None: as many as the engine's own model."""

    unknown: str | None = None
    """The argument that says what is not reckoned here."""


def drafting_of(engine: Mapping[str, Any]) -> Drafting:
    """What an engine drafts with.

    Args:
        engine: vLLM's arguments.
    """
    given = engine.get("speculative_config")
    told = given if isinstance(given, Mapping) else {}
    asked = {str(name).replace("-", "_"): value for name, value in told.items()}
    argument = "speculative_config" if asked else "spec_method"
    for word, name in (("spec_method", "method"), ("spec_model", "model")):
        if engine.get(word) is not None:
            asked[name] = engine[word]
            argument = word
    method, model = asked.get("method"), asked.get("model")
    if (method is None and model is None) or method in _WITHOUT_A_MODEL or model in _WITHOUT_A_MODEL:
        return Drafting()
    workers = asked.get("draft_tensor_parallel_size")
    is_whole = method in (None, "draft_model") and not asked.get("quantization")
    shape = _shape_of(str(model)) if is_whole and model else None
    if shape is None:
        return Drafting(unknown=argument)
    return Drafting(shape, workers if type(workers) is int else None)


def _shape_of(model: str) -> ModelShape | None:
    """Of a whole model in a folder of this machine: vLLM reads the name as it is, and knows no store."""
    folder = Path(model)
    if not folder.is_absolute() or any(word in model.lower() for word in _OTHER_NAMES):
        return None
    try:
        changed = (folder / "config.json").stat().st_mtime_ns
    except OSError:
        return None
    return _read(model, changed)


@lru_cache(maxsize=8)
def _read(folder: str, changed_ns: int) -> ModelShape | None:
    """Read once: an estimate over all products asks for it hundreds of times."""
    place = locate(folder, field="engine.speculative_config.model")
    try:
        config = (place / "config.json").read_json() or {}
        shape = model_shape(folder, tensors_in(place), config)
    except (ConfigError, StorageError):
        return None
    kind = str(config.get("model_type"))
    is_other = kind in _OTHER_TYPES or kind.endswith("_mtp") or any(shape.text.get(n) for n in _OTHER_LAYERS)
    return None if is_other else shape
