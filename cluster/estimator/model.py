"""A model as the estimates look at it: sizes from its config.json, parameters from its files' headers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from cluster.estimator.attention_layers import head_size, key_value_heads, text_of, whole
from cluster.estimator.context import Context, context_of
from cluster.estimator.kv_cache import KvCache, kv_cache
from cluster.estimator.parameters import (
    Parameters,
    count_parameters,
    is_packed,
    most,
    packed_bits,
    parameters_in,
    part_of,
    quantization_of,
)
from runtime.core.errors import ConfigError
from storage.tensors import Tensor

_NOT_TEXT = ("vision", "audio")
_NOT_LINEAR = (*_NOT_TEXT, "embedding", "head", "experts", "router", "norm")


@dataclass(frozen=True)
class ModelShape:
    """Everything about a model that decides how much memory it needs."""

    name: str
    tensors: tuple[Tensor, ...]
    config: Mapping[str, Any]

    @cached_property
    def parameters(self) -> Parameters:
        """By part."""
        return count_parameters(self.tensors, self.config)

    @cached_property
    def text(self) -> Mapping[str, Any]:
        """The part of the config about the language model."""
        return text_of(self.config)

    @property
    def layers(self) -> int:
        """Transformer blocks of the language model."""
        return self._size("num_hidden_layers")

    @property
    def hidden_size(self) -> int:
        """Numbers per token between the layers."""
        return self._size("hidden_size")

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        return self._size("vocab_size")

    @property
    def attention_heads(self) -> int:
        """Heads of the queries."""
        return self._size("num_attention_heads")

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values; where its config does not tell, those of the queries: no fewer."""
        return key_value_heads(self.text) or self.attention_heads

    @property
    def head_dim(self) -> int:
        """Numbers per head."""
        return head_size(self.text) or self.hidden_size // self.attention_heads

    @cached_property
    def context(self) -> Context:
        """The longest sequences, as vLLM derives them."""
        return context_of(self.text)

    @property
    def has_qk_norm(self) -> bool:
        """Whether queries and keys are normed before attention."""
        return any(".q_norm." in tensor.name for tensor in self.tensors)

    @property
    def intermediate_size(self) -> int:
        """Numbers per token inside the MLPs that one token passes: of experts, those that are picked."""
        text = self.text
        picked = text.get("num_experts_per_tok") or text.get("num_experts_per_token")
        dense = most(text.get("intermediate_size")) or 4 * self.hidden_size
        if not picked or "experts" not in {part.name for part in self.parameters.parts}:
            return dense
        each = most(text.get("moe_intermediate_size")) or dense
        shared = most(text.get("shared_expert_intermediate_size")) or each * most(
            text.get("n_shared_experts")
        )
        return each * most(picked) + shared

    @property
    def total(self) -> int:
        """All parameters."""
        return self.parameters.total

    @property
    def tied(self) -> bool:
        """Whether the embedding is the head, too."""
        return self.parameters.tied

    @cached_property
    def quantized(self) -> bool:
        """Whether its files hold fewer than 16 bits a parameter, more or less."""
        return bool(quantization_of(self.config))

    @property
    def bytes_16bit(self) -> int:
        """Of all weights as the engines load them: in 16 bits, unless the files are quantized."""
        return self.parameters.size_bytes if self.quantized else 2 * self.total

    @cached_property
    def embedding(self) -> int:
        """Parameters of the embedding."""
        return self._in_part("embedding")

    @cached_property
    def head(self) -> int:
        """Parameters of the head; 0 where it is the embedding."""
        return self._in_part("head")

    @cached_property
    def experts(self) -> int:
        """Parameters of routed experts."""
        return self._in_part("experts")

    @cached_property
    def of_text(self) -> int:
        """Parameters but for those of vision and audio."""
        return self.total - sum(self._in_part(name) for name in _NOT_TEXT)

    @cached_property
    def per_layer(self) -> int:
        """Parameters of one block, on average."""
        outside = self.embedding + self.head
        return max(0, self.of_text - outside) // max(1, self.layers)

    def kv_cache(
        self, kv_cache_dtype: str, *, element_bytes: float, tensor_parallel_size: int
    ) -> KvCache | None:
        """What one worker keeps per token; None where the config does not tell."""
        return kv_cache(
            self.config,
            kv_cache_dtype=kv_cache_dtype,
            element_bytes=element_bytes,
            tensor_parallel_size=tensor_parallel_size,
        )

    def linear_layers(self, targets: Iterable[str]) -> list[Tensor]:
        """The matrices of linear layers, by the last word of their names; ``all``: of every block's.

        As LLaMA-Factory's ``lora_target``: neither head nor vision nor audio, nor experts and their router,
        which transformers keeps as parameters that are no linear layers. Of a quantized model each has the
        shape of what it stands for.
        """
        wanted = set(targets)
        bits = packed_bits(self.config)
        found = (self._unpacked(tensor, bits) for tensor in self.tensors)
        return [
            tensor
            for tensor in found
            if tensor is not None
            and part_of(tensor.name) not in _NOT_LINEAR
            and ("all" in wanted or tensor.name.removesuffix(".weight").rsplit(".", 1)[-1] in wanted)
        ]

    def _unpacked(self, tensor: Tensor, bits: float | None) -> Tensor | None:
        """A matrix of weights; None for all else."""
        size = parameters_in(tensor, bits)
        if len(tensor.shape) != 2 or not size:
            return None
        if not is_packed(tensor, bits):
            return tensor
        # Formats differ in which side they pack; nearly every linear layer has hidden_size on one side.
        name = f"{tensor.name.rsplit('.', 1)[0]}.weight"
        return replace(tensor, name=name, shape=(size // self.hidden_size, self.hidden_size))

    def _in_part(self, name: str) -> int:
        return next((part.parameters for part in self.parameters.parts if part.name == name), 0)

    @cached_property
    def _table(self) -> Mapping[str, int]:
        """The sizes that the language model's embedding tells."""
        tables = [
            tensor.shape
            for tensor in self.tensors
            if part_of(tensor.name) == "embedding" and len(tensor.shape) == 2 and "F" in tensor.dtype
        ]
        # That of learned positions has fewer rows.
        rows, width = max(tables, key=lambda shape: shape[0], default=(0, 0))
        return {"vocab_size": rows, "hidden_size": width}

    def _size(self, field: str) -> int:
        value = self.text.get(field)
        size = whole(value if field in self.text else self._table.get(field))
        if size is None:
            raise ConfigError(
                f"model {self.name}: {field} in its config.json is {value!r} and no number from 1 on, so its "
                "memory cannot be estimated. Write it there, or save the model again with save_pretrained."
            )
        return size


def model_shape(name: str, tensors: Iterable[Tensor], config: Mapping[str, Any]) -> ModelShape:
    """The shape of a model.

    Args:
        name: What errors call it.
        tensors: All of its tensors, from the headers.
        config: Its ``config.json``.

    Raises:
        ConfigError: the config lacks a size that every estimate needs.
    """
    found = tuple(tensors)
    if "thinker_config" in config:  # of a model that speaks, the engines load the part that thinks
        found = tuple(tensor for tensor in found if tensor.name.startswith("thinker.")) or found
    shape = ModelShape(name, found, config)
    for needed in ("num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads"):
        shape._size(needed)
    return shape
