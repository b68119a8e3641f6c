"""The words in which each family of models says its sizes, and what its config.json may leave out.

Data: families.json, written from transformers' and vLLM's own configuration classes
(``serve_apps/engine/families.py``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

FAMILIES = Path(__file__).with_name("families.json")

SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "multi_query",
    "original_max_position_embeddings",
)
"""Fields that the estimates read, in transformers' words; those of the context are ``context.LENGTHS``."""

_NESTED = {
    "attn_config": {"kv_n_heads": "num_key_value_heads"},
    "ffn_config": {
        "ffn_hidden_size": "intermediate_size",
        "moe_num_experts": "num_experts",
        "moe_top_k": "num_experts_per_tok",
    },
}
"""Parts of a config with sizes of their own: DBRX, MPT.
Source: vLLM, transformers_utils/model_arch_config_convertor.py and models/mpt.py."""
_OLD = {"bloom": {"hidden_size": "n_embed"}}
"""Words that a class still reads beside those of its ``attribute_map``. Source: transformers, BloomConfig."""


@cache
def _families() -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
    return json.loads(FAMILIES.read_text())["families"]  # type: ignore[no-any-return]


def completed(text: Mapping[str, Any]) -> dict[str, Any]:
    """A language model's config with its sizes under transformers' names, as its class would have them.

    What the config says itself goes before what its family says.
    """
    model_type = str(text.get("model_type"))
    family = _families().get(model_type, {})
    made = dict(text)
    for size, word in (dict(family.get("names", {})) | _OLD.get(model_type, {})).items():
        if made.get(size) is None and made.get(word) is not None:
            made[size] = made[word]
    for part, sizes in _NESTED.items():
        inner = text.get(part)
        told = inner if isinstance(inner, Mapping) else {}
        for word, size in sizes.items():
            if told.get(word) is not None:
                made.setdefault(size, told[word])
    # Null is an answer, too: of a size that follows from others.
    return {**family.get("defaults", {}), **made}
