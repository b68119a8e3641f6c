"""The longest sequence of a model, as vLLM derives it from the config.

Source: vLLM, config/model.py, ``_get_and_verify_max_len``, and
transformers_utils/model_arch_config_convertor.py, ``derive_max_model_len_and_key``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LENGTHS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
"""Fields that may say it; the smallest counts."""

_UNKNOWN = 2048
"""What vLLM takes of a model that says nothing."""
_SCALED_ALREADY = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")
"""Kinds of rotary positions whose ``factor`` is in the length already; with any other it is multiplied."""


@dataclass(frozen=True)
class Context:
    """Lengths of sequences, in tokens."""

    unasked: int
    """That vLLM takes where ``max_model_len`` is not set."""

    longest: int | None
    """That ``max_model_len`` may be set to; None: any, as the config does not tell."""


def context_of(text: Mapping[str, Any]) -> Context:
    """The lengths of a model.

    Args:
        text: The part of its config about the language model (``text_of``).
    """
    lengths = [length for name in LENGTHS if (length := _length(text.get(name)))]
    told = _length(text.get("model_max_length")) or min(lengths, default=None)
    ropes = _ropes(text)
    scaled = int((told or _UNKNOWN) * _factor(text, ropes))
    unasked = scaled
    if any(_kind(rope) in ("su", "longrope") for rope in ropes):
        # Longer ones are possible; short ones would be answered worse with them.
        unasked = int(_length(text.get("original_max_position_embeddings")) or scaled)
    return Context(unasked, None if told is None else scaled)


def _length(value: Any) -> float | None:
    return value if type(value) in (int, float) and value > 0 else None


def _ropes(text: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Its parameters of rotary positions: one, or one for each kind of layer."""
    found = text.get("rope_scaling") or text.get("rope_parameters")
    if not isinstance(found, Mapping):
        return []
    nested = [rope for rope in found.values() if isinstance(rope, Mapping)]
    return nested or [found]


def _factor(text: Mapping[str, Any], ropes: list[Mapping[str, Any]]) -> float:
    if "gemma3" in str(text.get("model_type")):
        return 1.0  # its length is that after scaling, whatever the kind
    factors = [rope.get("factor") for rope in ropes if _kind(rope) not in _SCALED_ALREADY]
    return next((factor for factor in reversed(factors) if _length(factor)), 1.0)


def _kind(rope: Mapping[str, Any]) -> Any:
    return rope.get("rope_type") or rope.get("type") or "default"
