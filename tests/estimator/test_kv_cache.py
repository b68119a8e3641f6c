"""Bytes of KV cache per token: against published figures."""

from __future__ import annotations

from typing import Any

from cluster.estimator.kv_cache import KvCache, kv_cache
from tests.estimator.models import LLAMA_3_8B, QWEN3_06B


def of(config: dict[str, Any], **settings: float) -> KvCache:
    found = kv_cache(config, **settings)
    assert found
    return found


def test_grouped_queries_keep_as_many_heads_as_there_are_keys():
    assert of(LLAMA_3_8B).bytes_per_token == 128 << 10
    assert of(LLAMA_3_8B, element_bytes=1).bytes_per_token == 64 << 10
    assert of({"text_config": QWEN3_06B}).bytes_per_token == 112 << 10


def test_mla_keeps_one_latent_vector():
    """DeepSeek-V3's report: 70 kB a token."""
    deepseek = {
        "num_hidden_layers": 61,
        "num_attention_heads": 128,
        "num_key_value_heads": 128,
        "hidden_size": 7168,
        "kv_lora_rank": 512,
        "qk_rope_head_dim": 64,
    }
    cache = of(deepseek)
    assert (cache.bytes_per_token, cache.is_mla) == (70_272, True)


def test_windowed_layers_keep_only_the_window():
    """gpt-oss-20b: every other layer sees 128 tokens."""
    layers = ["sliding_attention", "full_attention"] * 12
    config = {
        "num_hidden_layers": 24,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "hidden_size": 2880,
        "sliding_window": 128,
        "layer_types": layers,
    }
    cache = of(config)
    assert cache.bytes_per_token == cache.windowed_bytes_per_token == 12 * 2 * 8 * 64 * 2
    assert cache.bytes_for(1000) == 1000 * cache.bytes_per_token + 128 * cache.windowed_bytes_per_token
    assert cache.bytes_for(100) == 100 * 2 * cache.bytes_per_token


def test_a_window_that_is_not_used_is_none():
    qwen2 = LLAMA_3_8B | {"sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 28}
    assert of(qwen2).window is None and of(qwen2).bytes_per_token == 128 << 10
    used = qwen2 | {"use_sliding_window": True}
    assert (of(used).bytes_per_token, of(used).windowed_bytes_per_token) == (28 * 4096, 4 * 4096)
    mistral = of(LLAMA_3_8B | {"sliding_window": 4096})
    assert (mistral.bytes_per_token, mistral.windowed_bytes_per_token) == (0, 128 << 10)


def test_linear_layers_keep_nothing_per_token():
    qwen3_next = LLAMA_3_8B | {"full_attention_interval": 4}
    assert of(qwen3_next).bytes_per_token == 8 * 4096 and of(qwen3_next).layers == 8


def test_what_has_no_attention_has_no_cache():
    assert kv_cache({}) is None
