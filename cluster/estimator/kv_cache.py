"""Bytes of KV cache that one token needs: from a model's config, as vLLM lays the cache out.

Source: vllm/v1/kv_cache_interface.py, page_size_bytes of FullAttentionSpec, MLAAttentionSpec and
SlidingWindowSpec.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.estimator.attention_layers import attention_layers, head_size, text_of, whole, window_of

_SCALE_BYTES = 4
"""Of the formats with a scale for each token and head, for keys and for values."""
_TURBOQUANT_BITS = {
    "turboquant_k8v4": (8, 4),
    "turboquant_4bit_nc": (4, 4),
    "turboquant_k3v4_nc": (3, 4),
    "turboquant_3bit_nc": (3, 3),
}
"""Bits of a number of a key and of a value.
Source: vllm/model_executor/layers/quantization/turboquant/config.py."""
_PLAIN_AT_EACH_END = 2
"""Layers that TurboQuant and UltraQuant leave in the model's own type; none where other layers do not attend.
Source: the same, get_boundary_skip_layers."""
_PACKED_MLA_BYTES = {"fp8_ds_mla": 656, "nvfp4_ds_mla": 352}
"""Of DeepSeek's latent vector, 512 numbers, and 64 of its rotary part.
Source: vllm/model_executor/layers/attention/mla_attention.py, get_kv_cache_spec."""
_PACKED_MLA_DIM = 576
_NO_LATENT = ("minicpm3",)
"""Has MLA's fields, and vLLM keeps its heads whole."""


@dataclass(frozen=True)
class KvCache:
    """What one token of one sequence needs, over all layers, on one worker."""

    bytes_per_token: int
    """In the layers that keep every token."""

    windowed_bytes_per_token: int
    """In those that keep the last ``window`` tokens only."""

    window: int | None
    layers: int
    """That have a cache at all."""

    heads: int
    """Key and value heads, of the layer that has most; 1 where they share one latent vector (MLA)."""

    head_dim: int
    """Numbers per head; of MLA, of the latent vector and the rotary part."""

    is_mla: bool

    def bytes_for(self, tokens: int) -> int:
        """Of one sequence of so many tokens."""
        kept = tokens if self.window is None else min(tokens, self.window)
        return tokens * self.bytes_per_token + kept * self.windowed_bytes_per_token


def kv_cache(
    config: Mapping[str, Any],
    *,
    kv_cache_dtype: str = "auto",
    element_bytes: float = 2,
    tensor_parallel_size: int = 1,
) -> KvCache | None:
    """The KV cache of a model; None where its config does not tell (an encoder, an unknown architecture).

    Args:
        config: Its ``config.json``.
        kv_cache_dtype: vLLM's word for what is kept of a number.
        element_bytes: Of a number in the model's own type, which ``auto`` keeps: 2 for BF16 and FP16.
        tensor_parallel_size: Workers that divide the heads. A head is not divided: with more workers than
            heads each has a copy of one, and of MLA's vector always.
    """
    text = text_of(config)
    layers = attention_layers(text)
    if layers is None or text.get("model_type") in _NO_LATENT:
        return None
    is_mla = bool(text.get("kv_lora_rank"))
    dim = _latent_size(text) if is_mla else head_size(text)
    window = window_of(text)
    has_windows = any(layer.is_windowed for layer in layers)
    if dim is None or (has_windows and window is None):
        return None
    own = _slot_bytes("auto", dim, element_bytes, is_mla=is_mla)
    packed = _slot_bytes(kv_cache_dtype, dim, element_bytes, is_mla=is_mla)
    if own is None or packed is None:
        return None
    plain = 0
    if _keeps_ends(kv_cache_dtype) and len(layers) == text.get("num_hidden_layers"):
        plain = min(_PLAIN_AT_EACH_END, len(layers) // 2)
    full = windowed = 0.0
    for number, layer in enumerate(layers):
        each = own if min(number, len(layers) - 1 - number) < plain else packed
        heads = 1 if is_mla else max(1, layer.heads // tensor_parallel_size)
        if layer.is_windowed:
            windowed += heads * each
        else:
            full += heads * each
    return KvCache(
        bytes_per_token=round(full),
        windowed_bytes_per_token=round(windowed),
        window=window if has_windows else None,
        layers=len(layers),
        heads=1 if is_mla else max((layer.heads for layer in layers), default=0),
        head_dim=dim,
        is_mla=is_mla,
    )


def _latent_size(text: Mapping[str, Any]) -> int | None:
    """Numbers of MLA's vector with its rotary part."""
    rank, rotary = whole(text.get("kv_lora_rank")), text.get("qk_rope_head_dim") or 0
    return rank + rotary if rank and type(rotary) is int else None


def _keeps_ends(kv_cache_dtype: str) -> bool:
    return kv_cache_dtype in _TURBOQUANT_BITS or kv_cache_dtype == "ultraquant_4bit"


def _slot_bytes(kv_cache_dtype: str, dim: int, element_bytes: float, *, is_mla: bool) -> float | None:
    """Of one token in one layer: of a head's key and value, or of MLA's one vector; None: not known.

    Source: customize_spec of vLLM's attention backends (triton_attn, flashinfer, turboquant_attn,
    ultraquant_attn).
    """
    vectors = 1 if is_mla else 2
    if kv_cache_dtype == "auto":
        return vectors * dim * element_bytes
    if kv_cache_dtype in ("float16", "bfloat16"):
        return vectors * dim * 2
    if kv_cache_dtype in ("fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc"):
        return vectors * dim
    if is_mla:
        return _PACKED_MLA_BYTES.get(kv_cache_dtype) if dim == _PACKED_MLA_DIM else None
    if kv_cache_dtype in ("fp8_per_token_head", "int8_per_token_head"):
        return 2 * (dim + _SCALE_BYTES)
    if kv_cache_dtype == "int4_per_token_head":
        return 2 * (dim // 2 + _SCALE_BYTES)
    if kv_cache_dtype in ("nvfp4", "nvfp4_4over6"):
        return 2 * (dim // 2 + dim // 16)
    if kv_cache_dtype == "ultraquant_4bit":
        return 2 * (dim // 2 + dim // 32)
    if kv_cache_dtype in _TURBOQUANT_BITS:
        return _turboquant_bytes(dim, *_TURBOQUANT_BITS[kv_cache_dtype])
    return None


def _turboquant_bytes(dim: int, key_bits: int, value_bits: int) -> int:
    """Keys in 8 bits as they are, in fewer with their length in 16; values with a scale and a zero in 16."""
    key = dim if key_bits == 8 else -(-dim * key_bits // 8) + 2
    value = -(-dim * value_bits // 8) + 4
    return -(-(key + value) // 2) * 2  # an even number
