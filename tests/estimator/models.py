"""Models whose sizes are published, as headers without weights."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cluster.estimator.model import ModelShape, model_shape
from storage.tensors import Tensor

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
GPT_OSS_20B: dict[str, Any] = {
    "architectures": ["GptOssForCausalLM"],
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_hidden_layers": 24,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 201088,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "sliding_window": 128,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "quantization_config": {"quant_method": "mxfp4"},
}


def llama(hidden: int, wide: int, layers: int, heads: int, *, context: int, **other: Any) -> dict[str, Any]:
    """The config of a model of the Llama family: 32,000 words, every head with its own keys."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": hidden,
        "intermediate_size": wide,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": 32000,
        "max_position_embeddings": context,
        "tie_word_embeddings": False,
        **other,
    }


QWEN25_3B = llama(
    2048, 11008, 36, 16, context=32768, num_key_value_heads=2, vocab_size=151936, tie_word_embeddings=True
)
LLAMA_2_7B = llama(4096, 11008, 32, 32, context=4096)
LLAMA_2_13B = llama(5120, 13824, 40, 40, context=4096)
LLAMA_30B = llama(6656, 17920, 60, 52, context=2048)
LLAMA_2_70B = llama(8192, 28672, 80, 64, context=4096, num_key_value_heads=8)
LLAMA_31_70B = LLAMA_2_70B | {"vocab_size": 128256, "max_position_embeddings": 131072}

_BYTES = {"BF16": 2, "F16": 2, "U8": 1, "I8": 1, "F8_E4M3": 1}


def model_of(config: Mapping[str, Any], shapes: Shapes | None = None, *, name: str = "model") -> ModelShape:
    """A model as the estimator looks at it, without files."""
    tensors = [
        Tensor(tensor, dtype, tuple(shape), math.prod(shape) * _BYTES.get(dtype, 4))
        for tensor, (dtype, shape) in (shapes or shapes_of(config)).items()
    ]
    return model_shape(name, tensors, config)


def packed(shapes: Shapes, how: Callable[[str, list[int]], Shapes]) -> Shapes:
    """With the weights of all linear layers as ``how`` stores them."""
    made: Shapes = {}
    for name, (dtype, shape) in shapes.items():
        is_linear = "_proj" in name
        made |= how(name.removesuffix(".weight"), shape) if is_linear else {name: (dtype, shape)}
    return made


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
                size = math.prod(shape) * _BYTES.get(dtype, 4)
                header[tensor] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}  # type: ignore[assignment]
                at += size
        text = json.dumps(header).encode()
        (folder / name).write_bytes(struct.pack("<Q", len(text)) + text)
    if files > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder
