"""Models whose sizes are published, as headers without weights."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Shapes = dict[str, tuple[str, list[int]]]
"""Type and shape by name."""

LLAMA_3_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
QWEN3_06B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
MIXTRAL_8X7B: dict[str, Any] = {
    "architectures": ["MixtralForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "tie_word_embeddings": False,
}


def shapes_of(config: Mapping[str, Any], dtype: str = "BF16") -> Shapes:
    """The tensors of a Llama-like model, as its checkpoint names them."""
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    head_dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries, keys = (config[n] * head_dim for n in ("num_attention_heads", "num_key_value_heads"))
    layer = {
        "self_attn.q_proj": [queries, hidden],
        "self_attn.k_proj": [keys, hidden],
        "self_attn.v_proj": [keys, hidden],
        "self_attn.o_proj": [hidden, queries],
        "input_layernorm": [hidden],
        "post_attention_layernorm": [hidden],
    }
    if "head_dim" in config:
        layer |= {"self_attn.q_norm": [head_dim], "self_attn.k_norm": [head_dim]}
    if experts := config.get("num_local_experts"):
        layer["block_sparse_moe.gate"] = [experts, hidden]
        for number in range(experts):
            expert = f"block_sparse_moe.experts.{number}"
            layer |= {f"{expert}.w1": [wide, hidden], f"{expert}.w2": [hidden, wide]}
            layer |= {f"{expert}.w3": [wide, hidden]}
    else:
        layer |= {"mlp.gate_proj": [wide, hidden], "mlp.up_proj": [wide, hidden]}
        layer |= {"mlp.down_proj": [hidden, wide]}
    table = [config["vocab_size"], hidden]
    names = {"model.embed_tokens": table, "model.norm": [hidden], "lm_head": table}
    for number in range(config["num_hidden_layers"]):
        names |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    return {f"{name}.weight": (dtype, shape) for name, shape in names.items()}


def write_headers(folder: Path, config: Mapping[str, Any], shapes: Shapes, *, files: int = 1) -> Path:
    """A model's folder whose files end after their headers."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    names = [f"model-{n + 1:05}-of-{files:05}.safetensors" for n in range(files)]
    where = {tensor: names[n % files] for n, tensor in enumerate(shapes)}
    for name in names:
        header, at = {"__metadata__": {"format": "pt"}}, 0
        for tensor, (dtype, shape) in shapes.items():
            if where[tensor] == name:
                size = math.prod(shape) * {"BF16": 2, "F16": 2, "U8": 1}.get(dtype, 4)
                header[tensor] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}  # type: ignore[assignment]
                at += size
        text = json.dumps(header).encode()
        (folder / name).write_bytes(struct.pack("<Q", len(text)) + text)
    if files > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder
