"""Bytes of KV cache per token: against published figures."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.estimator.kv_cache import KvCache, kv_cache
from tests.estimator.models import LLAMA_3_8B, QWEN3_06B


def of(config: dict[str, Any], **settings: Any) -> KvCache:
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


FALCON_7B = {
    "model_type": "falcon", "hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71,
    "multi_query": True, "new_decoder_architecture": False,
}  # fmt: skip
FALCON_40B = {
    "model_type": "falcon", "hidden_size": 8192, "num_hidden_layers": 60, "num_attention_heads": 128,
    "num_kv_heads": 8, "multi_query": True, "new_decoder_architecture": True,
}  # fmt: skip


def test_falcon_has_one_head_or_as_many_as_it_says():
    """vLLM, FalconModelArchConfigConvertor: the new architecture passes over multi_query."""
    assert of(FALCON_7B).bytes_per_token == 32 * 2 * 64 * 2 == 8192
    assert of(FALCON_40B).bytes_per_token == 60 * 2 * 8 * 64 * 2


NEMOTRON_H = "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-"
"""Of Nemotron-H-8B: 52 layers."""


@pytest.mark.parametrize(
    ("change", "layers"),
    [
        ({"attn_layer_period": 8, "attn_layer_offset": 4}, 4),  # Jamba
        ({"num_hidden_layers": len(NEMOTRON_H), "hybrid_override_pattern": NEMOTRON_H}, 4),
        ({"attn_type_list": ([0] * 7 + [1]) * 4}, 4),  # MiniMax
        ({"attn_layer_indices": [9, 18, 27], "mamba_d_state": 128}, 3),  # Bamba
        ({"full_attn_idxs": [2, 5, 8], "conv_L_cache": 3}, 3),  # LFM2
        ({"layers_block_type": ["mamba", "hybrid"] * 16}, 16),  # Zamba2
        ({"model_type": "falcon_h1", "mamba_d_ssm": 1536}, 32),
        ({"num_kv_shared_layers": 12}, 20),  # Gemma 3n
    ],
)
def test_only_layers_that_attend_have_a_cache(change: dict[str, Any], layers: int):
    assert of(LLAMA_3_8B | change).layers == layers
    assert of(LLAMA_3_8B | change).bytes_per_token == layers * 4096


def test_kimi_linear_keeps_a_latent_vector_in_the_layers_that_it_counts_from_1_on():
    config = {
        "model_type": "kimi_linear", "hidden_size": 2304, "num_hidden_layers": 27, "num_attention_heads": 32,
        "kv_lora_rank": 512, "qk_rope_head_dim": 64,
        "linear_attn_config": {"full_attn_layers": [4, 8, 12, 16, 20, 24, 27], "kda_layers": [1, 2, 3]},
    }  # fmt: skip
    assert (of(config).layers, of(config).bytes_per_token) == (7, 7 * 576 * 2)


def test_blocks_with_heads_of_their_own_count_each_by_itself():
    """DeciLM: 64 queries in groups of 8 and of 16, and a block without attention."""
    blocks = [
        {"attention": {"n_heads_in_group": 8}}, {"attention": {"n_heads_in_group": 16, "no_op": False}},
        {"attention": {"n_heads_in_group": None, "no_op": True}},
    ]  # fmt: skip
    config = {
        "hidden_size": 8192, "num_hidden_layers": 3, "num_attention_heads": 64, "num_key_value_heads": None,
        "block_configs": blocks,
    }  # fmt: skip
    assert of(config).bytes_per_token == (8 + 4) * 2 * 128 * 2
    assert of(config, tensor_parallel_size=8).bytes_per_token == (1 + 1) * 2 * 128 * 2


def test_a_pattern_of_letters_is_repeated_and_the_last_layer_sees_all():
    exaone = LLAMA_3_8B | {"sliding_window": 4096, "sliding_window_pattern": "LLLG"}
    assert (of(exaone).bytes_per_token, of(exaone).windowed_bytes_per_token) == (8 * 4096, 24 * 4096)
    odd = exaone | {"num_hidden_layers": 30}
    assert of(odd).bytes_per_token == 8 * 4096


def test_llama_4_attends_to_chunks_where_it_has_rotary_positions():
    llama4 = LLAMA_3_8B | {"model_type": "llama4_text", "attention_chunk_size": 8192}
    for more in ({}, {"no_rope_layers": [1, 1, 1, 0] * 8}):
        assert (of(llama4 | more).bytes_per_token, of(llama4 | more).window) == (8 * 4096, 8192)


@pytest.mark.parametrize(
    "change",
    [
        {"num_attention_heads": [32] * 32},
        {"num_key_value_heads": [8] * 32},
        {"num_key_value_heads": "8"},
        {"num_hidden_layers": True},
        {"head_dim": [128, 256]},
        {"sliding_window": [4096], "sliding_window_pattern": 4},
        {"sliding_window": 4096, "sliding_window_pattern": "LLXG"},
        {"layer_types": ["full_attention"] * 31},
        {"layer_types": ["full_attention"] * 31 + ["heavily_compressed_attention"]},
        {"layer_types": "full_attention"},
        {"hybrid_override_pattern": "M*M"},
        {"attn_layer_period": "8"},
        {"attn_type_list": [0, 1]},
        {"linear_attn_config": {"kda_layers": [1]}},
        {"block_configs": [{"block_type": "mamba"}] * 32},
        {"mamba_d_state": 16},
        {"global_head_dim": 512},
        {"index_topk": 2048, "kv_lora_rank": 512},
        {"kv_lora_rank": "512"},
        {"model_type": "minicpm3", "kv_lora_rank": 256},
    ],
)
def test_of_what_is_not_recognised_nothing_is_known(change: dict[str, Any]):
    assert kv_cache(LLAMA_3_8B | change) is None


@pytest.mark.parametrize(
    ("kv_cache_dtype", "each"),
    [
        # vLLM: turboquant/config.py, slot_size_aligned; ultraquant/format.py: 136 bytes of 128 numbers.
        ("turboquant_k8v4", 128 + 64 + 4),
        ("turboquant_4bit_nc", 64 + 2 + 64 + 4),
        ("turboquant_k3v4_nc", 48 + 2 + 64 + 4),
        ("turboquant_3bit_nc", 48 + 2 + 48 + 4),
        ("ultraquant_4bit", 136),
    ],
)
def test_packed_caches_leave_the_first_and_the_last_two_layers_as_they_are(kv_cache_dtype: str, each: int):
    assert of(LLAMA_3_8B, kv_cache_dtype=kv_cache_dtype).bytes_per_token == 8 * (28 * each + 4 * 512)
    jamba = LLAMA_3_8B | {"attn_layer_period": 8, "attn_layer_offset": 4}
    assert of(jamba, kv_cache_dtype=kv_cache_dtype).bytes_per_token == 8 * 4 * each, "of a hybrid none"


@pytest.mark.parametrize(
    ("kv_cache_dtype", "each"),
    [
        ("fp8", 256), ("bfloat16", 512), ("int8_per_token_head", 264), ("int4_per_token_head", 136),
        ("nvfp4", 144),
    ],
)  # fmt: skip
def test_every_type_of_cache_has_its_size(kv_cache_dtype: str, each: int):
    assert of(LLAMA_3_8B, kv_cache_dtype=kv_cache_dtype).bytes_per_token == 32 * 8 * each
    assert kv_cache(LLAMA_3_8B, kv_cache_dtype="fp6") is None


def test_deepseeks_packed_vector_is_of_one_size_only():
    deepseek = LLAMA_3_8B | {"kv_lora_rank": 512, "qk_rope_head_dim": 64}
    assert of(deepseek, kv_cache_dtype="fp8_ds_mla").bytes_per_token == 32 * 656
    assert kv_cache(deepseek | {"kv_lora_rank": 256}, kv_cache_dtype="fp8_ds_mla") is None
