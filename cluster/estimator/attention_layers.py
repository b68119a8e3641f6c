"""Which layers of a model keep keys and values, and how many heads of them: from its ``config.json``.

Every family says it in words of its own. Of one whose words are not known here the answer is None: a cache
that is guessed would refuse what fits, or let pass what does not.

Source: vLLM, transformers_utils/model_arch_config_convertor.py (heads) and config/model.py,
get_num_layers_by_block_type (layers); transformers' configuration classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.estimator.families import completed

_TEXT_PARTS = ("thinker_config", "text_config", "llm_config", "language_config")
"""Parts of a config that hold the language model's. Source: transformers, ``get_text_config``; vLLM,
transformers_utils/config.py, ``_CONFIG_ATTRS_MAPPING``."""
_FULL = ("full_attention", "attention", "hybrid")
_WINDOWED = ("sliding_attention", "chunked_attention")
_NO_CACHE = ("linear_attention", "mamba", "mamba2", "recurrent", "conv", "mlp", "moe")
_OF_LETTERS = {"*": "full_attention", "M": "mamba", "-": "mlp", "E": "moe"}
"""Of NemotronH's ``hybrid_override_pattern``."""
_EVERY = {
    "gemma2": 2, "gemma3": 6, "gemma3_text": 6, "cohere2": 4, "exaone4": 4, "olmo3": 4,
}  # fmt: skip
"""Of these every so many-th layer attends to everything, though their config.json may not say so.
Source: transformers, ``layer_types`` in their configuration classes."""
_KV_HEADS = (
    "n_head_kv",
    "num_kv_heads",
    "num_key_value_heads",
    "multi_query_group_num",
    "num_attention_groups",
)
"""Fields that count key and value heads, the first that is there."""
_OTHER_SIZES = (
    "compress_ratios", "index_topk",  # DeepSeek-V4 and V3.2: compressed tokens, and an indexer's own cache
    "global_head_dim", "num_global_key_value_heads",  # Gemma 4
    "hybrid_layer_pattern", "swa_num_key_value_heads", "swa_head_dim",  # MiMo-V2
    "attention_other_setting",  # Step-3.5
    "per_layer_config", "cross_attention_layers", "is_encoder_decoder", "rswa_window",
)  # fmt: skip
"""Fields by which layers differ in size or keep other things, in ways that are not reckoned here."""
_HYBRID = (
    "mamba_", "ssm_", "linear_", "conv_", "kda_", "gdn_", "lightning_", "hybrid_", "swa_", "mixer_",
    "block_types", "attention_types", "global_attn", "local_attn", "prefix_dense_sliding_window_pattern",
)  # fmt: skip
"""How fields begin of models some of whose layers do not attend to everything."""


@dataclass(frozen=True)
class AttentionLayer:
    """One layer with a cache."""

    heads: int
    """Of keys and values."""

    is_windowed: bool
    """Whether it keeps the last tokens only."""


def text_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config about the language model, with its sizes under transformers' names."""
    inner = next(
        (part for name in _TEXT_PARTS if isinstance(part := config.get(name), Mapping) and part), None
    )
    return completed(config) if inner is None else text_of(inner)


def whole(value: Any) -> int | None:
    """A size of a config; None where it is no whole number from 1 on, such as a list of one a layer."""
    return value if type(value) is int and value > 0 else None


def key_value_heads(text: Mapping[str, Any]) -> int | None:
    """Heads of keys and values, of every layer; None where the config does not tell."""
    is_falcon = text.get("model_type") in ("falcon", "RefinedWeb", "RefinedWebModel")
    if is_falcon and not text.get("new_decoder_architecture") and text.get("multi_query", True):
        return 1  # whatever else it says
    named = next((text[name] for name in _KV_HEADS if text.get(name) is not None), None)
    if named is not None:
        return whole(named)
    return 1 if text.get("multi_query") else whole(text.get("num_attention_heads"))


def head_size(text: Mapping[str, Any]) -> int | None:
    """Numbers per head; None where the config does not tell."""
    for name in ("head_dim", "hidden_size_per_head", "attention_head_dim"):
        if text.get(name):
            return whole(text[name])
    hidden, heads = whole(text.get("hidden_size")), whole(text.get("num_attention_heads"))
    return hidden // heads if hidden and heads else None


def attention_layers(text: Mapping[str, Any]) -> list[AttentionLayer] | None:
    """The layers that keep keys and values; None where the config does not tell, or in unknown words."""
    count, queries = whole(text.get("num_hidden_layers")), whole(text.get("num_attention_heads"))
    if not count or not queries or any(text.get(name) for name in _OTHER_SIZES):
        return None
    if text.get("block_configs"):
        return _of_blocks(text["block_configs"], count, queries)
    heads = key_value_heads(text)
    kinds = _kinds(text, count)
    shared = text.get("num_kv_shared_layers") or 0  # Gemma 3n: its last layers look into the cache of others
    if heads is None or kinds is None or len(kinds) < count or type(shared) is not int:
        return None
    kinds = kinds[: max(0, count - shared)]
    if any(kind not in (*_FULL, *_WINDOWED, *_NO_CACHE) for kind in kinds):
        return None
    return [AttentionLayer(heads, kind in _WINDOWED) for kind in kinds if kind not in _NO_CACHE]


def window_of(text: Mapping[str, Any]) -> int | None:
    """Tokens that windowed layers keep; None where the config does not tell."""
    return whole(text.get("sliding_window") or text.get("attention_chunk_size"))


def _of_blocks(blocks: Any, count: int, queries: int) -> list[AttentionLayer] | None:
    """DeciLM and Nemotron-NAS: each block has key and value heads of its own, or no attention at all."""
    if not isinstance(blocks, list) or len(blocks) != count:
        return None
    found = []
    for block in blocks:
        attention = block.get("attention") if isinstance(block, Mapping) else None
        if not isinstance(attention, Mapping):
            return None
        if attention.get("no_op") or attention.get("replace_with_linear"):
            continue
        group = whole(attention.get("n_heads_in_group"))
        if group is None or attention.get("window_length") or attention.get("sparsify"):
            return None
        found.append(AttentionLayer(max(1, queries // group), is_windowed=False))
    return found


def _kinds(text: Mapping[str, Any], count: int) -> list[Any] | None:
    """What each layer attends to, in transformers' words; None where the config does not tell."""
    for name in ("layer_types", "layers_block_type"):
        if text.get(name):
            return _listed(text[name], count)
    for says in (_jamba, _nemotron_h, _kimi_linear, _minimax, _indexed, _qwen3_next, _llama4):
        if (kinds := says(text, count)) is not None:
            return kinds
    return _windows(text, count)


def _listed(kinds: Any, count: int) -> list[Any] | None:
    return list(kinds[:count]) if isinstance(kinds, list) else None


def _where(full: Any, count: int, otherwise: str) -> list[Any]:
    """By the numbers of the layers that attend to everything, from 0 on; nothing known where they are odd."""
    if not isinstance(full, list) or any(type(number) is not int for number in full):
        return []
    return ["full_attention" if number in full else otherwise for number in range(count)]


def _jamba(text: Mapping[str, Any], count: int) -> list[Any] | None:
    if text.get("attn_layer_period") is None:
        return None
    period, offset = whole(text["attn_layer_period"]), text.get("attn_layer_offset") or 0
    return (
        _where([n for n in range(count) if period and n % period == offset], count, "mamba") if period else []
    )


def _nemotron_h(text: Mapping[str, Any], count: int) -> list[Any] | None:
    pattern = text.get("hybrid_override_pattern")
    if not pattern:
        return None
    letters = pattern[:count] if isinstance(pattern, str) else ""
    return [_OF_LETTERS.get(letter) for letter in letters]


def _kimi_linear(text: Mapping[str, Any], count: int) -> list[Any] | None:
    config = text.get("linear_attn_config")
    if not config:
        return None
    full = config.get("full_attn_layers") if isinstance(config, Mapping) else None
    if not isinstance(full, list) or any(type(number) is not int for number in full):
        return []
    return _where([number - 1 for number in full], count, "linear_attention")  # counted from 1 on


def _minimax(text: Mapping[str, Any], count: int) -> list[Any] | None:
    listed = text.get("attn_type_list")
    if not listed:
        return None
    kinds = {0: "linear_attention", 1: "full_attention"}
    return [kinds.get(kind) for kind in listed[:count]] if isinstance(listed, list) else []


def _indexed(text: Mapping[str, Any], count: int) -> list[Any] | None:
    """Bamba and LFM2."""
    for name, otherwise in (("attn_layer_indices", "mamba"), ("full_attn_idxs", "conv")):
        if text.get(name):
            return _where(text[name], count, otherwise)
    return None


def _qwen3_next(text: Mapping[str, Any], count: int) -> list[Any] | None:
    if not text.get("full_attention_interval"):
        return None
    every = whole(text["full_attention_interval"])
    return _each(every, count, "linear_attention") if every else []


def _llama4(text: Mapping[str, Any], count: int) -> list[Any] | None:
    """Layers without rotary positions attend to everything, those with them to a chunk."""
    if text.get("model_type") != "llama4_text" or not text.get("attention_chunk_size"):
        return None
    listed = text.get("no_rope_layers")
    if isinstance(listed, list) and listed:
        return ["chunked_attention" if has_rope else "full_attention" for has_rope in listed[:count]]
    every = whole(text.get("no_rope_layer_interval", 4))
    return _each(every, count, "chunked_attention") if every else []


def _windows(text: Mapping[str, Any], count: int) -> list[Any] | None:
    """Of a model all of whose layers attend, to everything or to a window."""
    is_falcon_h1 = text.get("model_type") == "falcon_h1"  # every layer has both, attention and a state
    if not is_falcon_h1 and any(name.startswith(_HYBRID) and value for name, value in text.items()):
        return None
    window = text.get("sliding_window")
    if not window:
        # Chunks of a family that is not known here.
        return None if text.get("attention_chunk_size") else ["full_attention"] * count
    if whole(window) is None:
        return None
    if pattern := text.get("sliding_window_pattern") or _EVERY.get(str(text.get("model_type"))):
        return _patterned(pattern, count)
    if not text.get("use_sliding_window", True):
        return ["full_attention"] * count
    # Qwen2 attends to everything in its first layers.
    first = text.get("max_window_layers", 0) if "use_sliding_window" in text else 0
    if type(first) is not int:
        return None
    return ["full_attention" if n < first else "sliding_attention" for n in range(count)]


def _patterned(pattern: Any, count: int) -> list[Any] | None:
    """Every so many-th, or EXAONE's letters over and over; its last layer attends to everything."""
    if isinstance(pattern, str):
        kinds = {"L": "sliding_attention", "G": "full_attention"}
        letters = (pattern * count)[: count - 1] + "G"
        return [kinds.get(letter) for letter in letters]
    every = whole(pattern)
    return _each(every, count, "sliding_attention") if every else None


def _each(every: int, count: int, otherwise: str) -> list[Any]:
    """Every so many-th layer attends to everything."""
    return [otherwise if (n + 1) % every else "full_attention" for n in range(count)]
