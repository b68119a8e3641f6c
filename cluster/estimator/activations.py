"""What a training keeps of every token between the forward and the backward pass.

Counted with ``torch.autograd.graph.saved_tensors_hooks`` in transformers 5.6's decoder layer (Qwen3, SDPA),
each storage once; docs/estimator.md has the table. H, I, Q, K: numbers per token between the layers, inside
the MLP, of all queries, of all keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cluster.estimator.model import ModelShape

Precision = Literal["autocast", "half", "half lora", "lora", "single"]
"""How a recipe computes. ``autocast``: weights in 32 bits, linear layers in 16. ``half``: all in 16 bits,
under DeepSpeed or with ``pure_bf16``; ``half lora``: an adapter under DeepSpeed. ``lora``: a frozen base in
16 bits and an adapter in 32. ``single``: all in 32 bits."""

_HIDDEN = {"autocast": 26, "half": 16, "half lora": 12, "lora": 18, "single": 24}
"""Bytes per H. Under autocast each norm keeps its input and what it made of it in 32 bits, and q, k, v, gate
and up each cast their input themselves; on weights in 16 bits they share it."""

_RESIDUAL = {"autocast": 4, "half": 2, "half lora": 2, "lora": 2, "single": 4}
"""Bytes of a number between the layers: what gradient checkpointing keeps."""

_HEAD = {"autocast": 10, "half": 8, "half lora": 4, "lora": 4, "single": 12}
"""Bytes per H of the last norm and the head's input."""

_LORA_BYTES = 14
"""Per rank of an adapter, over the linear layers of a block."""


@dataclass(frozen=True)
class Activations:
    """Bytes per token."""

    layer: int
    """Kept of one layer."""

    checkpoint: int
    """Kept of one layer with gradient checkpointing: its input."""

    head: int
    """Kept of the last norm and the head's input."""

    mlp_gradient: int
    """Of one layer's MLP while its gradients are computed."""


def activations(
    model: ModelShape, precision: Precision, *, lora_rank: int, zero_stage: int | None
) -> Activations:
    """What is kept.

    Args:
        lora_rank: Of an adapter; 0 without one.
        zero_stage: Of DeepSpeed; None without it.
    """
    hidden, inner = model.hidden_size, model.intermediate_size
    heads, kv_heads = model.attention_heads, model.kv_heads
    queries, keys = heads * model.head_dim, kv_heads * model.head_dim
    wide = 2 if precision == "single" else 1
    of_keys = 4 if "lora" not in precision else 2
    norms = (6, 6) if model.has_qk_norm else (0, 0)
    layer = (
        _HIDDEN[precision] * hidden
        + 8 * wide * inner
        + (4 * wide + norms[0]) * queries
        + (of_keys * wide + norms[1]) * keys
        + _LORA_BYTES * lora_rank
        + 8 * heads
        + 4 * kv_heads
        + 8
    )
    if precision == "half lora" and zero_stage in (None, 3):
        layer += _of_adapter_in_32_bits(model, lora_rank, is_sharded=zero_stage == 3)
    residual = _RESIDUAL[precision] * hidden
    return Activations(layer, residual, _HEAD[precision] * hidden, 8 * wide * inner)


def _of_adapter_in_32_bits(model: ModelShape, lora_rank: int, *, is_sharded: bool) -> int:
    """More bytes of a layer where an adapter stays in 32 bits, as PEFT makes it, on weights in 16.

    So it is with ``pure_bf16``, and under ZeRO-3: transformers makes the model in DeepSpeed's types, and
    DeepSpeed casts nothing later, as it does in the other stages.
    """
    hidden, inner = model.hidden_size, model.intermediate_size
    queries = model.attention_heads * model.head_dim
    # The inputs of q, k, v, gate and up, of down and of o, each cast for its adapter, which has a rank in 32
    # bits, too.
    more = 4 * (5 * hidden + inner + queries) + _LORA_BYTES * lora_rank
    # An adapter in 16 bits keeps the inputs themselves; ZeRO-3's own linear layers do so in any case.
    return more if is_sharded else more - (4 * hidden + 2 * inner)


def logits_bytes(model: ModelShape, tokens: int) -> int:
    """When the backward pass begins: the logarithms of the softmax, their gradient and the loss' in 32 bits.

    The forward pass holds a little less: the head's output in 16 bits and in 32, and those logarithms.
    """
    return tokens * (12 * model.vocab_size + 16)
