"""How many parameters a model has, by what they are for: exact, from the tensors that it consists of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.estimator.attention_layers import text_of
from storage.tensors import Tensor

# What tells, as a whole component of a tensor's name, what it is for; the first that matches. The words are
# those of transformers' models. What none matches is "other", so that nothing is left out of the sum.
_WORDS = {
    "adapter": ("lora_[AB]", "lora_embedding_[AB]", "lora_magnitude_vector"),
    "vision": ("visual", r"vision_\w+", r"image_\w+", "multi_modal_projector", "mm_projector", r"patch_\w+"),
    "audio": (r"audio_\w+", r"speech_\w+"),
    "shared experts": ("shared_experts?", "shared_mlp"),
    "experts": ("experts", "local_experts", "switch_mlp"),
    # A gate beside experts; that of an MLP is called gate_proj.
    "router": ("router", "gate"),
    # Before norms: q_norm and k_norm are part of it.
    "attention": (
        "self_attn",
        "self_attention",
        "attn",
        "attention",
        "cross_attn",
        "linear_attn",
        "mixer",
        "mamba",
    ),
    "norm": (r"\w*norm\d*", r"ln_\w+"),
    "mlp": ("mlp", "feed_forward", "ffn", "fc1", "fc2"),
    "embedding": (
        "embed_tokens",
        "tok_embeddings",
        "word_embeddings",
        "embeddings?",
        "embed_in",
        "wte",
        "wpe",
    ),
    "head": ("lm_head", "output", "embed_out", "score", "classifier"),
}
_PATTERNS = {part: re.compile(rf"(?:^|\.)(?:{'|'.join(words)})(?=\.|$)") for part, words in _WORDS.items()}

_SCALES = re.compile(
    r"\.(scales?|qzeros|g_idx|weight_scale(_inv|_2)?|input_scale|[kv]_scale|weight_zero_point|weight_shape"
    r"|weight_g_idx|absmax|quant_map|nested_absmax|nested_quant_map|quant_state\S*|SCB|weight_format"
    r"|\w+_proj_scales)$"
)
"""What a quantized format keeps beside its weights: bytes, and no parameters."""
_PACKED = re.compile(r"\.(qweight|weight_packed|\w+_proj_blocks)$")
_BITS = {"I8": 8, "U8": 8, "I32": 32, "I64": 64}


@dataclass
class Part:
    """What one kind of tensors adds up to."""

    name: str
    parameters: int = 0
    size_bytes: int = 0
    dtypes: dict[str, int] = field(default_factory=dict)
    """Bytes by safetensors' name of the type."""


@dataclass(frozen=True)
class Parameters:
    """All of a model's."""

    parts: list[Part]
    """Largest first."""

    total: int
    active: int
    """Those that work on one token: of experts, as many as the router picks."""

    size_bytes: int
    """Of the files' tensors; what is in memory, unless it is loaded in another type."""

    tied: bool
    """Whether the embedding is the head, too; stored twice or not, it is counted once."""


def count_parameters(tensors: Iterable[Tensor], config: Mapping[str, Any]) -> Parameters:
    """The parameters of a model.

    Args:
        tensors: All of its tensors.
        config: Its ``config.json``; empty for an adapter.
    """
    text = text_of(config)
    tied = bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False)))
    pack = packed_bits(config)
    parts: dict[str, Part] = {}
    for tensor in tensors:
        name = part_of(tensor.name)
        if tied and name == "head":
            continue
        part = parts.setdefault(name, Part(name))
        part.parameters += parameters_in(tensor, pack)
        part.size_bytes += tensor.size_bytes
        part.dtypes[tensor.dtype] = part.dtypes.get(tensor.dtype, 0) + tensor.size_bytes
    found = sorted(parts.values(), key=lambda part: -part.parameters)
    total = sum(part.parameters for part in found)
    experts = parts["experts"].parameters if "experts" in parts else 0
    active = total - experts + round(experts * _share_of_experts(text))
    return Parameters(found, total, active, sum(part.size_bytes for part in found), tied)


def part_of(name: str) -> str:
    """What a tensor is for: a word of ``_WORDS``, or ``other``."""
    return next((part for part, pattern in _PATTERNS.items() if pattern.search(name)), "other")


def _share_of_experts(text: Mapping[str, Any]) -> float:
    fields = ("num_experts", "num_local_experts", "n_routed_experts")
    experts = next((text[name] for name in fields if text.get(name)), None)
    picked = text.get("num_experts_per_tok") or text.get("num_experts_per_token")
    return most(picked) / most(experts) if most(experts) and most(picked) else 1.0


def most(value: Any) -> int:
    """A number of a config, or the largest of one for each layer, as Gemma 3n has them; 0 without one."""
    listed = value if isinstance(value, list) else [value]
    return max((number for number in listed if type(number) is int), default=0)


def quantization_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """How its files are quantized; it may stand with the language model's sizes. Empty where they are not."""
    for part in (config, text_of(config)):
        if isinstance(found := part.get("quantization_config"), Mapping) and found:
            return found
    return {}


def packed_bits(config: Mapping[str, Any]) -> float | None:
    """Bits of one parameter, where several are packed into one number; None where they are not."""
    quantization = quantization_of(config)
    in_4_bits = quantization.get("load_in_4bit") or quantization.get("_load_in_4bit")
    if in_4_bits or quantization.get("quant_method") == "mxfp4":
        return 4.0
    groups = quantization.get("config_groups")
    weights = [
        group.get("weights")
        for group in (groups.values() if isinstance(groups, Mapping) else ())
        if isinstance(group, Mapping)
    ]
    found = [one.get("num_bits") for one in weights if isinstance(one, Mapping)]
    named = [quantization.get("bits"), quantization.get("w_bit"), *found]
    return next((float(most(bits)) for bits in named if most(bits) > 0), None)


def parameters_in(tensor: Tensor, bits: float | None) -> int:
    """Parameters that a tensor stands for; 0 for what a quantized format keeps beside its weights.

    Args:
        bits: Of one parameter, as ``packed_bits`` tells.
    """
    if _SCALES.search(tensor.name):
        return 0
    if bits and is_packed(tensor, bits):
        return round(tensor.elements * _BITS[tensor.dtype] / bits)
    return tensor.elements


def is_packed(tensor: Tensor, bits: float | None) -> bool:
    """Whether it holds several parameters in each number."""
    # bitsandbytes packs two into each byte of a tensor that keeps its name.
    packed = _PACKED.search(tensor.name) or (bits == 4 and tensor.dtype == "U8")
    return bool(packed) and bits is not None and tensor.dtype in _BITS
