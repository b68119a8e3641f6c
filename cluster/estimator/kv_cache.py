"""Bytes of KV cache that one token needs: from a model's config, as vLLM lays the cache out.

Source: vllm/v1/kv_cache_interface.py, page_size_bytes of FullAttentionSpec, MLAAttentionSpec and
SlidingWindowSpec.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_NO_CACHE = ("linear_attention", "mamba", "mamba2", "recurrent", "conv")
_WINDOWED = ("sliding_attention", "chunked_attention")
_EVERY = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "cohere2": 4}
"""Of these every so many-th layer attends to everything, though their config.json may not say so.
Source: transformers, ``layer_types`` in their configuration classes."""


@dataclass(frozen=True)
class KvCache:
    """What one token of one sequence needs, over all layers, on one GPU (tensor_parallel_size 1)."""

    bytes_per_token: int
    """In the layers that keep every token."""

    windowed_bytes_per_token: int
    """In those that keep the last ``window`` tokens only."""

    window: int | None
    layers: int
    """That have a cache at all."""

    heads: int
    """Key and value heads; 1 where they share one latent vector (MLA)."""

    head_dim: int
    """Numbers per head; of MLA, of the latent vector and the rotary part."""

    is_mla: bool

    def bytes_for(self, tokens: int) -> int:
        """Of one sequence of so many tokens."""
        kept = tokens if self.window is None else min(tokens, self.window)
        return tokens * self.bytes_per_token + kept * self.windowed_bytes_per_token


def kv_cache(config: Mapping[str, Any], *, element_bytes: float = 2) -> KvCache | None:
    """The KV cache of a model; None where its config does not tell (an encoder, an unknown architecture).

    Args:
        config: Its ``config.json``.
        element_bytes: 2 for BF16 and FP16, 1 for FP8.
    """
    text = config.get("text_config") or config
    layers, heads = text.get("num_hidden_layers"), text.get("num_attention_heads")
    if not layers or not heads:
        return None
    is_mla = bool(text.get("kv_lora_rank"))
    if is_mla:
        kv_heads, head_dim, tensors = 1, text["kv_lora_rank"] + (text.get("qk_rope_head_dim") or 0), 1
    else:
        kv_heads = text.get("num_key_value_heads") or heads
        head_dim = text.get("head_dim") or text.get("hidden_size", 0) // heads
        tensors = 2
    if not head_dim:
        return None
    kinds = _kinds_of_layers(text, layers)
    per_layer = round(tensors * kv_heads * head_dim * element_bytes)
    windowed = sum(kind in _WINDOWED for kind in kinds)
    full = sum(kind not in (*_WINDOWED, *_NO_CACHE) for kind in kinds)
    return KvCache(
        bytes_per_token=full * per_layer,
        windowed_bytes_per_token=windowed * per_layer,
        window=(text.get("sliding_window") or text.get("attention_chunk_size")) if windowed else None,
        layers=full + windowed,
        heads=kv_heads,
        head_dim=head_dim,
        is_mla=is_mla,
    )


def _kinds_of_layers(text: Mapping[str, Any], layers: int) -> list[str]:
    """What each layer attends to, in transformers' words."""
    if text.get("layer_types"):
        return list(text["layer_types"])
    if text.get("full_attention_interval"):
        every = text["full_attention_interval"]
        return ["linear_attention" if (n + 1) % every else "full_attention" for n in range(layers)]
    every = text.get("sliding_window_pattern") or _EVERY.get(str(text.get("model_type")))
    if text.get("sliding_window") and every:
        return ["sliding_attention" if (n + 1) % every else "full_attention" for n in range(layers)]
    if text.get("sliding_window") and text.get("use_sliding_window", True):
        # Qwen2 attends to everything in its first layers.
        first = text.get("max_window_layers", 0) if "use_sliding_window" in text else 0
        return ["full_attention" if n < first else "sliding_attention" for n in range(layers)]
    return ["full_attention"] * layers
